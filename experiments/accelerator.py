"""Measures the library on a GPU or TPU: one run that leaves all the figures.

    python experiments/accelerator.py --seconds 540 --out runs/accelerator

Needs neither an installation nor more than jax, flax, optax, orbax, numpy and jaxtyping. Each part
has a file in the folder, with its records so far, so that a run that is cut off keeps what it has
measured:

    correct.json    every backend against "scan" in float64 on the host
    speed.json      steps and evaluations of every backend and of its peers, side by side
    seeds.json      the fast recipe, one seed and ten together
    tutorial.json   the tutorial's 20,000 steps and 200 evaluations
    pixels.json     permuted and sequential MNIST, 50 epochs

A record that has no figures says why: the case failed, its backend refused it, something is absent,
or no time was left. The last three parts read MNIST from the folder that JAXRNN_DATA_DIR names, and
scikit-learn's digits where there is none. On a CPU everything is small. Uses one device.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # this copy of the library, installed or not

import jax
import numerics
import numpy as np
import timings
from experiment import load_dataset, resolve
from measurements import Measurements, OutOfTime
from options import RECIPES, Config

from jaxrnn import training
from jaxrnn.training import data
from jaxrnn.training.run import cores, environment

SEEDS = 10
EPOCHS, PIXELS_EVALUATIONS = 50, 10
CHUNK = 100  # steps in one program
STEPS = 20_000  # of the tutorial, also on digits
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
    """MNIST from the folder of JAXRNN_DATA_DIR, else scikit-learn's digits, else noise."""
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
    """The options of a recipe."""
    return Config(**RECIPES[recipe] | options | (SMALL if small else {}))


def train(
    kept: Measurements, config: Config, small: bool, seeds: int | None = None
) -> dict[str, Any]:
    """Trains seed 0, or several seeds side by side; returns what it took and the accuracies.

    Raises:
        OutOfTime: If the first steps show that it would not end in time.
    """
    run = resolve(config, dataset(small))
    trainer = training.Trainer(
        training.Fixed(run.model, run.optimizer), run.loss_fn, mesh=training.make_mesh(1, 1)
    )
    started, first = time.perf_counter(), None
    seconds, curve, accuracy = {}, [], np.zeros(1)
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
        step, now, seconds = progress.step, time.perf_counter(), progress.seconds
        if first is None:  # the first chunk compiles
            first = step, now
        elif step < max(run.steps // 10, 3 * CHUNK):
            left = (now - first[1]) / (step - first[0]) * (run.steps - step)
            if now + left > kept.deadline:
                raise OutOfTime(
                    f"would take {left:.0f} s more ({1e3 * left / (run.steps - step):.2f} ms a "
                    f"step), {kept.deadline - now:.0f} s were left"
                )
        if progress.metrics:
            accuracy = np.atleast_1d(progress.metrics["test"])
            curve.append((step, float(accuracy.mean())))
    return {
        "steps": run.steps,
        "seconds": seconds,
        "wall_s": time.perf_counter() - started,
        "ms_per_step": 1e3 * seconds["train"] / run.steps,
        "test_accuracy": float(accuracy.mean()),
        "std": float(accuracy.std(ddof=1)) if len(accuracy) > 1 else None,
        "each": accuracy.tolist(),
        "curve": curve,
    }


def train_recipes(
    kept: Measurements, small: bool, runs: dict[str, tuple[Config, int | None]]
) -> None:
    """Adds a record of each run."""
    for name, (options, seeds) in runs.items():
        found = kept.outcome(
            lambda options=options, seeds=seeds: train(kept, options, small, seeds)
        )
        kept.add({"what": name, "data": dataset(small).name, "seeds": seeds or 1} | found)


def summary(records: list[dict[str, Any]]) -> str:
    """A line for each run."""
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


def correct(kept: Measurements, small: bool) -> None:
    """Part 1."""
    numerics.compare(kept, small, workers(small))


def speed(kept: Measurements, small: bool) -> None:
    """Part 2."""
    timings.compare(kept, small, workers(small))


def seeds(kept: Measurements, small: bool) -> None:
    """Part 3."""
    fast, count = config("fast", small), 2 if small else SEEDS
    train_recipes(kept, small, {"one": (fast, None), "together": (fast, count)})


def tutorial(kept: Measurements, small: bool) -> None:
    """Part 4."""
    train_recipes(kept, small, {"tutorial": (config("tutorial", small, steps=STEPS), None)})


def pixels(kept: Measurements, small: bool) -> None:
    """Part 5; first what has fewer steps."""
    runs = {}
    for name in ("permuted-mnist", "sequential-mnist"):
        batch_size = RECIPES[name].get("batch_size", Config().batch_size)
        steps = EPOCHS * (len(dataset(small).train.labels) // batch_size)
        sizes = {"steps": steps, "eval_every": -(-steps // PIXELS_EVALUATIONS)}
        runs[name] = config(name, small, **sizes), None
    train_recipes(kept, small, runs)


def workers(small: bool) -> int:
    """Threads that compile. One on a CPU, where kernels are interpreted in threads of their own."""
    return 1 if small else max(1, min(cores() - 2, 12))


# The parts, in order, and the share of the time that each may take, if those before took theirs.
PARTS: dict[str, tuple[Callable[[Measurements, bool], None], float]] = {
    "correct": (correct, 0.2),
    "speed": (speed, 0.45),
    "seeds": (seeds, 0.1),
    "tutorial": (tutorial, 0.1),
    "pixels": (pixels, 0.15),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    started = time.perf_counter()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/accelerator"), help="the folder")
    parser.add_argument("--seconds", type=float, default=600, help="when no new case is started")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--small", action="store_true", help="tiny sizes, as on a CPU")
    asked = parser.parse_args(arguments)
    small = asked.small or jax.default_backend() == "cpu"
    asked.out.mkdir(parents=True, exist_ok=True)
    about = {"platform": jax.default_backend(), "small": small, "environment": environment()}
    print(*(f"{name}={value}" for name, value in about.items()))
    shares = {name: share for name, (_, share) in PARTS.items() if name in asked.parts}
    spent, tables = 0.0, []
    for name, share in shares.items():
        spent += share
        deadline = started + asked.seconds * spent / sum(shares.values())
        print(f"{name}: until {deadline - started:.0f} s, at {time.perf_counter() - started:.0f} s")
        kept = Measurements(asked.out / f"{name}.json", about, deadline)
        # A part that fails as a whole, such as for want of its data.
        if stopped := kept.outcome(lambda name=name, kept=kept: PARTS[name][0](kept, small) or {}):
            kept.add({"what": name} | stopped)
        summaries = {"correct": numerics.summary, "speed": timings.summary}
        tables.append(summaries.get(name, summary)(kept.records))
    print("", *tables, sep="\n\n")
    print(f"written to {asked.out} in {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # room for torch
    platforms: str | None = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    if platforms and "cpu" not in platforms:  # the host computes what is compared with
        jax.config.update("jax_platforms", f"{platforms},cpu")
    sys.exit(main())
