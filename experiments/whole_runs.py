"""Trains recipes from start to end, and records the time that they take and their accuracy."""

from __future__ import annotations

import functools
import os
import time
from typing import Any

import jax
import numpy as np
from experiment import load_dataset, resolve
from measurements import Measurements, OutOfTime
from options import RECIPES, Config

from jaxrnn import training
from jaxrnn.training import data

SEEDS = 10
PIXELS_SEEDS, ORDERS = 3, ("permuted", "pixels")
CHUNK = 100  # train steps in one program
STEPS = 20_000  # of the tutorial's recipe, on digits too
SMALL: dict[str, Any] = {
    "hidden_size": 2,
    "num_layers": 1,
    "batch_size": 4,
    "steps": 6,
    "eval_every": 3,
}
SMALL_SPLITS = 20, 5, 5


@functools.cache
def dataset(small: bool) -> data.Dataset:
    """Loads MNIST from the folder JAXRNN_DATA_DIR, else scikit-learn's digits, else noise."""
    if os.environ.get("JAXRNN_DATA_DIR"):
        found = load_dataset("mnist")
    else:
        try:
            found = data.load("digits")
        except ImportError:
            rng = np.random.default_rng(0)
            labels = np.arange(2000, dtype=np.uint8) % 10
            split = data.Split(rng.integers(0, 256, (2000, 28, 28), np.uint8), labels)
            found = data.Dataset("noise", split, split, split)
    if small:
        train, validation, test = (
            data.Split(split.images[:size], split.labels[:size])
            for split, size in zip(
                (found.train, found.validation, found.test), SMALL_SPLITS, strict=True
            )
        )
        found = data.Dataset(found.name, train, validation, test)
    return found


def config(recipe: str, small: bool, **options: Any) -> Config:
    """Returns the options of a recipe."""
    return Config(**RECIPES[recipe] | options | (SMALL if small else {}))


def train(
    measurements: Measurements,
    record: dict[str, Any],
    config: Config,
    small: bool,
    seeds: int | None = None,
) -> dict[str, Any]:
    """Trains one seed, or several together.

    After every evaluation the time that it took and the accuracies are put into the record, and the
    parameters into a file, so that an interrupted run leaves both.

    Returns:
        The record.

    Raises:
        OutOfTime: If the first steps show that the run would not end in time.
    """
    run = resolve(config, dataset(small))
    trainer = training.Trainer(
        training.Fixed(run.model, run.optimizer), run.loss_fn, mesh=training.make_mesh(1, 1)
    )
    started, first, curve = time.perf_counter(), None, []
    for progress in training.fit(
        trainer,
        run.train,
        {"test": run.test, "validation": run.validation},
        steps=run.steps,
        batch_size=config.batch_size,
        seed=0 if seeds is None else np.arange(seeds),
        eval_every=config.eval_every,
        chunk=CHUNK,
    ):
        step, now = progress.step, time.perf_counter()
        if first is None:  # the first chunk compiles
            first = step, now
        elif step < max(run.steps // 10, 3 * CHUNK):
            left = (now - first[1]) / (step - first[0]) * (run.steps - step)
            if now + left > measurements.deadline:
                raise OutOfTime(
                    f"would take {left:.0f} s more ({1e3 * left / (run.steps - step):.2f} ms a "
                    f"step), {measurements.deadline - now:.0f} s were left"
                )
        if progress.metrics:
            test, validation = (
                np.atleast_1d(progress.metrics[name]) for name in ("test", "validation")
            )
            loss = float(progress.losses.mean())
            curve.append((step, loss, float(validation.mean()), float(test.mean())))
            record |= {
                "steps": step,
                "of_steps": run.steps,
                "seconds": progress.seconds,
                "wall_s": now - started,
                "ms_per_step": 1e3 * progress.seconds["train"] / step,
                "test_accuracy": float(test.mean()),
                "std": float(test.std(ddof=1)) if len(test) > 1 else None,
                "each": test.tolist(),
                "each_validation": validation.tolist(),
                "curve": curve,
            }
            leaves = jax.tree_util.tree_leaves_with_path(progress.state.params)
            arrays = {
                jax.tree_util.keystr(path, simple=True, separator="/"): leaf
                for path, leaf in leaves
            }
            np.savez(measurements.folder / f"{record['what']}.npz", **arrays)
            measurements.write()
            print(*curve[-1])
    return record


def train_recipes(
    measurements: Measurements, small: bool, runs: dict[str, tuple[Config, int | None]]
) -> None:
    """Adds a record of each run."""
    for name, (options, seeds) in runs.items():
        record = {"what": name, "data": dataset(small).name, "seeds": seeds or 1}
        measurements.records.append(record)
        record |= measurements.outcome(
            lambda record=record, options=options, seeds=seeds: train(
                measurements, record, options, small, seeds
            )
        )
        measurements.write()


def summary(records: list[dict[str, Any]]) -> str:
    """Returns a line for each run."""
    lines = []
    for each in records:
        if "test_accuracy" not in each:
            lines.append(f"{each['what']}: {each}")
            continue
        spent = ", ".join(f"{name} {value:.1f} s" for name, value in each["seconds"].items())
        deviation = f" ± {each['std']:.2%}" if each["seeds"] > 1 else ""
        lines.append(
            f"{each['what']}, {each['seeds']} × {each['steps']} steps on {each['data']}: {spent}; "
            f"test {each['test_accuracy']:.2%}{deviation}"
        )
    return "\n".join(lines)


def seeds(measurements: Measurements, small: bool) -> None:
    """Trains the fast recipe with one seed, and with several together."""
    fast, count = config("fast", small), 2 if small else SEEDS
    train_recipes(measurements, small, {"one": (fast, None), "together": (fast, count)})


def tutorial(measurements: Measurements, small: bool) -> None:
    """Trains the tutorial's recipe."""
    train_recipes(measurements, small, {"tutorial": (config("tutorial", small, steps=STEPS), None)})


def pixels(measurements: Measurements, small: bool) -> None:
    """Trains several seeds that read one pixel a time step, in both orders."""
    seeds, orders = (2, ORDERS[:1]) if small else (PIXELS_SEEDS, ORDERS)
    runs: dict[str, Any] = {
        order: (config("state-space", small, order=order), seeds) for order in orders
    }
    train_recipes(measurements, small, runs)
