"""Trains a recurrent network to read MNIST digits row by row.

    python experiments/mnist.py

Each digit is a sequence of 28 rows of 28 pixels; the cell reads them one after the other, and a
linear layer on its last output says which digit it was.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import tyro
from jax.sharding import Mesh
from models import INITIALIZERS, make_model
from options import FREE, OPTIMIZERS, RECIPES, Config
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jaxrnn.regularize import Regularizer
from jaxrnn.training import data, report, train
from jaxrnn.training.augment import Distortion
from jaxrnn.training.checkpoint import CheckpointError, Checkpoints
from jaxrnn.training.run import Clock, Run, RunError, Stop, cores, peak_memory

NUM_CLASSES = 10
# A program on the device cannot be interrupted, so a chunk of steps is kept to about a second.
TIME_STEPS_PER_CHUNK = 2800
# Examples whose arrays stay in a CPU core's caches, also while its neighbour works; of a ReNet each
# is as many sequences as the image has rows of patches.
SLICE, PATCHED_SLICE = 50, 20

console = Console(highlight=False, soft_wrap=True, markup=False)


def main(config: Config) -> int:
    """Trains, or goes on training; returns the exit code."""
    config.check()
    mesh = build_mesh(config.batch_size, config.devices)
    dataset = load_dataset(config)
    steps = config.steps or (2_000 if dataset.name == "digits" else 20_000)
    config = dataclasses.replace(config, dataset=dataset.name, steps=steps)
    if config.batch_size > len(dataset.train.labels):
        raise RunError(f"--batch-size must be at most {len(dataset.train.labels)}")
    announce(dataset)
    console.print(f"device: {mesh.size} × {mesh.devices.flat[0].device_kind}")
    model = check_model(config)
    run = Run(config.out)
    changes = run.open(identity(config, digest(dataset)), start_over=not config.resume)
    if run.finished:
        console.print(f"{config.out} is finished:")
        conclude(run.read("result.json"))
        console.print("To start over: --no-resume. To keep it: another folder with --out.")
        return 0
    for change in changes:
        console.print(f"note: since this run began, {change}")

    with Checkpoints(run.checkpoints, warn=console.print) as checkpoints:
        seconds, code = fit(config, model, mesh, dataset, run, checkpoints)
        if code:
            return code
    _, _, params = load_run(config.out)
    draw(config, model, params, dataset, run)
    run.finish(outcome(run.metrics(), dataset, params, seconds))
    conclude(run.read("result.json"))
    announce(dataset)
    return 0


def fit(
    config: Config,
    model: nn.Module,
    mesh: Mesh,
    dataset: data.Dataset,
    run: Run,
    checkpoints: Checkpoints,
) -> tuple[dict[str, float], int]:
    """Trains to the last step; returns the seconds spent in each phase and an exit code."""
    examples, validation, test = train.replicate(as_sequences(dataset, config), mesh)
    sequences, labels = examples
    optimizer, loss_fn = build_optimizer(config), build_loss(config)
    noise_key = train.noise_key(jax.random.key(config.seed))
    step, state = 0, initial_state(config)
    if (restored := checkpoints.restore(state)) is not None:
        step, state = restored
        console.print(f"going on from step {step} of {config.out}")
    state = train.replicate(state, mesh)
    rows = run.rewind_metrics(step)
    best = max((row["validation_accuracy"] or 0 for row in rows), default=0)
    before = rows[-1]["seconds"] if rows else 0.0
    clock = Clock()

    with Stop() as stop, progress_bar(step, config.steps) as advance:
        while step < config.steps and stop.signal is None:
            count = chunk_size(step, config, sequences.shape[1])
            indices = data.batch_indices(config.seed, step, count, config.batch_size, len(labels))
            with clock.phase("train"):
                state, losses = train.train_chunk(
                    model,
                    optimizer,
                    mesh,
                    state,
                    examples,
                    indices,
                    noise_key,
                    loss_fn=loss_fn,
                    slices=slices(config, config.batch_size // mesh.size),
                )
                losses = np.asarray(losses)
            if not np.isfinite(losses).all():
                bad = step + 1 + int(np.argmin(np.isfinite(losses)))
                console.print(f"stopped: the loss is {losses[bad - step - 1]} at step {bad}")
                return clock.seconds, 1
            last_step, step, score = step, step + count, None
            if step % config.eval_every == 0 or step == config.steps:
                with clock.phase("evaluate"):
                    accuracy = train.evaluate(model, mesh, state.params, *test)
                    if len(validation[1]):
                        score = train.evaluate(model, mesh, state.params, *validation)
                loss = float(losses.mean())
                console.print(f"step {step:5d}  loss {loss:.4f}  accuracy {accuracy:.4f}")
                run.append_metrics(
                    {
                        "step": step,
                        "loss": loss,
                        "test_accuracy": accuracy,
                        "validation_accuracy": score,
                        "seconds": round(before + clock.total(), 3),
                    }
                )
            due = step // config.checkpoint_every > last_step // config.checkpoint_every
            improved = score is not None and score >= best
            if due or improved or step == config.steps or stop.signal is not None:
                checkpoints.save(step, state, score)
            best = max(best, score or 0)
            advance(count)
    if step < config.steps:
        console.print(
            f"interrupted at step {step}, which is saved; the same command goes on from there"
        )
        return clock.seconds, 128 + stop.signal
    return clock.seconds, 0


def chunk_size(step: int, config: Config, time_steps: int) -> int:
    """Steps until the next evaluation, or fewer; a function of the step alone.

    A continued run must cut its steps as an uninterrupted one does, since XLA may compile
    programs of different lengths to different last bits.
    """
    until_evaluation = config.eval_every - step % config.eval_every
    longest = max(1, TIME_STEPS_PER_CHUNK // time_steps)
    return min(until_evaluation, longest, config.steps - step)


def slices(config: Config, share: int) -> int:
    """Into how many parts a CPU core cuts its share of a batch, so that they stay in its caches."""
    size = PATCHED_SLICE if config.patch else SLICE
    parts = share // size
    on_cpu = jax.default_backend() == "cpu"
    return parts if on_cpu and parts and share % parts == 0 else 1


def load_dataset(config: Config) -> data.Dataset:
    """The data that the options and JAXRNN_DATA_DIR ask for."""
    data_dir = config.data_dir or os.environ.get("JAXRNN_DATA_DIR") or None
    if config.dataset == "auto":
        return data.load_or_digits(data_dir, config.validation_size)
    return data.load(config.dataset, data_dir, config.validation_size)


def as_sequences(
    dataset: data.Dataset, config: Config
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """For training, validation and test sequences uint8 `[N, T, I]` and labels uint8 `[N]`.

    Whatever the seed, shuffled pixels stand in one order, so that runs compare.
    """
    return tuple(
        (data.sequences(split.images, config.order, delay=delay), split.labels)
        for split, delay in (
            (dataset.train, config.delay),
            (dataset.validation, config.delay),
            (dataset.test, wait(config)),
        )
    )


def wait(config: Config) -> int:
    """The blank steps after a test image."""
    return config.delay if config.test_delay is None else config.test_delay


def build_mesh(batch_size: int, devices: int | None) -> Mesh:
    """The devices that share each batch.

    Raises:
        RunError: If there are fewer devices than asked for, or they cannot share the batch.
    """
    divide_cpu(largest_share(batch_size, devices or cores()))
    share = largest_share(batch_size, devices or jax.device_count())
    if devices not in (None, share):
        raise RunError(f"--devices {devices} cannot share --batch-size {batch_size}")
    if share > jax.device_count():
        raise RunError(f"--devices must be at most {jax.device_count()} here")
    return train.make_mesh(share)


def divide_cpu(devices: int) -> None:
    """Makes the CPU so many devices, single-threaded if there are several.

    XLA does not speed up a cell's small products with a second thread, so a CPU is filled with one
    device a core. It must be said before JAX starts its backend.
    """
    if devices > 1:
        flags, flag = os.environ.get("XLA_FLAGS", ""), "--xla_cpu_multi_thread_eigen=false"
        if flag not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()
    with contextlib.suppress(RuntimeError):  # the backend runs already, with the devices it has
        jax.config.update("jax_num_cpu_devices", devices)


def largest_share(batch_size: int, available: int) -> int:
    """The most devices, of those available, that divide a batch evenly."""
    return max(n for n in range(1, available + 1) if batch_size % n == 0)


def build_model(config: Config) -> nn.Module:
    """The classifier that the options ask for.

    Raises:
        RunError: If they do not go together.
    """
    cell = {
        "forget_bias": config.forget_bias,
        "chrono": config.chrono,
        "recurrent_kernel_init": INITIALIZERS.get(config.recurrent_init),
    }
    noise = (config.zoneout, config.recurrent_dropout, config.tied, config.weight_dropout)
    try:
        return make_model(
            config.cell,
            NUM_CLASSES,
            config.hidden_size,
            cell,
            init_scale=config.init_scale,
            patch=config.patch,
            num_layers=config.num_layers,
            bidirectional=config.bidirectional,
            dropout=config.dropout,
            residual=config.residual,
            regularizer=None if noise == (None,) * 4 else Regularizer(*noise),
            learn_initial_state=config.learn_initial_state,
            truncate=config.truncate,
        )
    except ValueError as error:
        raise RunError(str(error)) from None


def check_model(config: Config) -> nn.Module:
    """The classifier, after a look at whether it can read the data.

    Raises:
        RunError: If the options do not go together.
    """
    model, example = build_model(config), initial_example(config)
    try:
        jax.eval_shape(model.init, jax.random.key(0), example)
    except ValueError as error:
        raise RunError(str(error)) from None
    return model


def build_optimizer(config: Config):
    """The optimizer that the options ask for."""
    return train.optimizer(
        config.learning_rate,
        schedule=config.schedule,
        steps=config.steps,
        clip_norm=config.clip_norm,
        algorithm=OPTIMIZERS[config.optimizer],
    )


def build_loss(config: Config) -> train.Loss:
    """What the options make smaller."""
    if not config.augment and not config.label_smoothing:
        return train.cross_entropy
    return train.Augmented(Distortion() if config.augment else None, config.label_smoothing)


def initial_state(config: Config) -> train.TrainState:
    """The state before the first step."""
    key, example = jax.random.key(config.seed), initial_example(config)
    return train.create_state(build_model(config), build_optimizer(config), key, example)


def initial_example(config: Config) -> np.ndarray:
    """A sequence of the shape that the model reads, float32 `[1, T, I]`."""
    blank = np.zeros((1, data.SIDE, data.SIDE), np.uint8)
    return data.sequences(blank, config.order, delay=config.delay).astype(np.float32)


def digest(dataset: data.Dataset) -> str:
    """A hash of all images and labels."""
    found = hashlib.sha256()
    for split in (dataset.train, dataset.validation, dataset.test):
        found.update(split.images.data)
        found.update(split.labels.data)
    return found.hexdigest()


def identity(config: Config, data_sha256: str) -> dict[str, Any]:
    """What a run's numbers depend on; a folder never mixes two of these."""
    options = dataclasses.asdict(config)
    return {name: options[name] for name in options if name not in FREE} | {
        "data_sha256": data_sha256
    }


def load_run(directory: Path) -> tuple[Config, nn.Module, Any]:
    """The configuration, the model and the parameters that did best on the validation set.

    Raises:
        RunError: If the folder holds no run, or no good checkpoint yet.
        CheckpointError: If its checkpoints are not of the state that this version trains.
    """
    run = Run(directory)
    stored = run.read("config.json")["config"]
    stored.pop("data_sha256", None)
    try:
        config = Config(**stored, out=directory)
    except TypeError as error:
        raise RunError(f"{directory / 'config.json'} is not of this version: {error}") from None
    if not run.checkpoints.is_dir():
        raise RunError(f"{directory} holds no checkpoint yet")
    like = jax.eval_shape(lambda: initial_state(config))
    with Checkpoints(run.checkpoints, read_only=True, warn=console.print) as checkpoints:
        restored = checkpoints.restore(like, best=True)
    if restored is None:
        raise RunError(f"{directory} holds no good checkpoint yet")
    return config, build_model(config), restored[1].params


def draw(config: Config, model: nn.Module, params: Any, dataset: data.Dataset, run: Run) -> None:
    """Pictures of how it learned, what it confuses and how it makes up its mind."""
    rows, (images, labels) = run.metrics(), dataset.test
    sequences = as_sequences(dataset, config)[-1][0]
    probabilities = train.probabilities(model, params, sequences)
    correct = (probabilities.argmax(-1) == labels).mean()
    title = f"{dataset.name}, {config.cell} at step {selected(rows)['step']}: test {correct:.2%}"
    report.curves(rows, run.directory / "curves.png")
    report.confusion(labels, probabilities.argmax(-1), run.directory / "confusion.png", title)
    report.mistakes(images, labels, probabilities, run.directory / "mistakes.png", title)
    # The first digit of every class, so that the picture is not chosen by its result.
    shown = [int(np.argmax(labels == label)) for label in range(NUM_CLASSES)]
    report.beliefs(
        images[shown],
        train.beliefs(model, params, data.sequences(images[shown], config.order)),
        run.directory / "beliefs.png",
        labels[shown],
        order=config.order,
    )


def selected(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The evaluation chosen on the validation set: the best, the latest among equals."""
    return max(rows, key=lambda row: (row["validation_accuracy"] or 0, row["step"]))


def outcome(
    rows: list[dict[str, Any]], dataset: data.Dataset, params: Any, seconds: dict[str, float]
) -> dict[str, Any]:
    """What goes into result.json."""
    chosen = selected(rows)
    return {
        "dataset": dataset.name,
        "note": dataset.note,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "steps": rows[-1]["step"],
        "final_test_accuracy": rows[-1]["test_accuracy"],
        "selected_step": chosen["step"],
        "selected_validation_accuracy": chosen["validation_accuracy"],
        "selected_test_accuracy": chosen["test_accuracy"],
        "best_of_looks_at_the_test_set": max(row["test_accuracy"] for row in rows),
        "looks": len(rows),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "seconds_with_interruptions": rows[-1]["seconds"],
        "peak_memory_bytes": peak_memory(),
    }


def announce(dataset: data.Dataset) -> None:
    """Says which data this is, loudly if it is not what a reader would take it for."""
    sizes = [len(split.labels) for split in (dataset.train, dataset.validation, dataset.test)]
    console.print(
        f"data: {dataset.name}, {sizes[0]:,} training, {sizes[1]:,} validation and "
        f"{sizes[2]:,} test images"
    )
    if dataset.note:
        title = "NOT WHAT WAS ASKED FOR" if dataset.name == "mnist" else "NOT MNIST"
        panel = Panel(dataset.note, title=title, border_style="bold red")
        console.print(panel, soft_wrap=False)  # which would cut the note off at the border


def conclude(result: dict[str, Any]) -> None:
    """Says how a finished run came out."""
    spent = ", ".join(f"{name} {value:.1f} s" for name, value in result["seconds"].items())
    console.print(f"final test accuracy          {result['final_test_accuracy']:.4f}")
    if result["selected_validation_accuracy"] is not None:
        console.print(
            f"selected on validation       {result['selected_test_accuracy']:.4f} "
            f"(step {result['selected_step']})"
        )
    console.print(
        f"best of {result['looks']} looks at the test set "
        f"{result['best_of_looks_at_the_test_set']:.4f} (the tutorial's figure; optimistic)"
    )
    console.print(f"{result['parameters']:,} parameters; {spent}")


@contextlib.contextmanager
def progress_bar(step: int, steps: int) -> Iterator[Any]:
    """A bar below the lines on a terminal, nothing elsewhere; yields `advance(count)`."""
    columns = (
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[speed]:.0f} steps/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=steps, completed=step, speed=0.0)

        def advance(count: int) -> None:
            progress.update(task, advance=count, speed=progress.tasks[0].speed or 0.0)

        yield advance


def command_line() -> Config:
    """The options given, on top of the recipe's."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", default="tutorial")
    recipe = first.parse_known_args()[0].recipe
    options = RECIPES.get(recipe, {})  # tyro complains of a name that is none
    return tyro.cli(Config, default=Config(**options), description=__doc__)


def entry() -> int:
    """The command line: every foreseeable failure is one line and an exit code."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax is talkative
    try:
        return main(command_line())
    except (data.DataError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(entry())
