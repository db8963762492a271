"""Creates data, model, optimizer and loss function from the options, and loads trained runs."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import flax.linen as nn
import jax
import numpy as np
import optax
from cells import cell_sha256, failure
from errors import OptionError
from models import build_model
from options import FREE, Config, DatasetName, cell_file, parse_cell_options

from jaxrnn import training
from jaxrnn.training import data, tasks
from jaxrnn.training.checkpoint import Checkpoints
from jaxrnn.training.files import conforms
from jaxrnn.training.run import Run, RunError, differences
from jaxrnn.training.train import run_keys

# Sequences and labels, or sequences, lengths and targets.
Examples = tuple[np.ndarray, np.ndarray] | tasks.Examples
Dataset = data.Dataset | tasks.Splits

OPTIMIZERS = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "nadam": optax.nadam,
    "rmsprop": optax.rmsprop,
    "momentum": partial(optax.sgd, momentum=0.9),
}


class Experiment(NamedTuple):
    """Data, model, optimizer and loss function of a run.

    Attributes:
        config: The options, with the name of the data set and the number of steps filled in.
        steps: The number of train steps.
        model: The classifier.
        optimizer: The optimizer.
        loss_fn: The loss function.
        metric_fn: The metric.
        train: Training sequences uint8 `[N, T, I]` and labels uint8 `[N]`, or the examples of a
            task.
        validation: Validation sequences and labels, empty if none are held out.
        test: Test sequences and labels, with the blank time steps of --test-delay.
    """

    config: Config
    steps: int
    model: nn.Module
    optimizer: optax.GradientTransformation
    loss_fn: training.Loss
    metric_fn: training.Metric
    train: Examples
    validation: Examples
    test: Examples


def resolve(config: Config, dataset: Dataset) -> Experiment:
    """Creates data, model, optimizer and loss function.

    Raises:
        OptionError: If the options do not go together or do not fit the data.
    """
    config.check()
    examples = sum(len(split[0]) for split in (dataset.train, dataset.validation, dataset.test))
    delay = max(config.delay, config.test_delay or 0)
    check_memory(f"--delay {delay}", examples * delay * data.SIDE)
    steps = config.steps or (2_000 if dataset.name == "digits" else 20_000)
    config = dataclasses.replace(absolute(config), steps=steps)
    if config.task is None:
        config = dataclasses.replace(config, dataset=cast(DatasetName, dataset.name))
    if config.batch_size > len(dataset.train[0]):
        raise OptionError(f"--batch-size must be at most {len(dataset.train[0])}")
    return Experiment(
        config,
        steps,
        check_model(config),
        build_optimizer(config),
        build_loss(config),
        build_metric(config),
        *as_sequences(dataset, config),
    )


def load_dataset(
    name: str, data_dir: Path | None = None, validation_size: int = 5000
) -> data.Dataset:
    """Loads a data set from a folder, by default that of JAXRNN_DATA_DIR.

    Images that are not published ones, of the name "other", are read from files named as MNIST's.

    Raises:
        OptionError: If an option does not fit the data set.
        DataError: If the data cannot be loaded.
    """
    if name == "digits" and data_dir is not None:
        raise OptionError("--data-dir does not go with --dataset digits, which is in scikit-learn")
    folder = data_dir or os.environ.get("JAXRNN_DATA_DIR") or None
    name = "mnist" if name == "other" else name
    load = data.load_or_digits if name == "auto" else partial(data.load, name)
    try:
        return load(folder, validation_size)
    except data.DataError as error:
        if str(error).startswith("validation_size"):
            raise OptionError(str(error).replace("validation_size", "--validation-size")) from None
        raise


@functools.lru_cache(maxsize=2)
def make_task(name: str, length: int, test_length: int | None) -> tasks.Splits:
    """Generates the examples of a task, which are the same for all seeds of the runs.

    Raises:
        OptionError: If the task does not have such a length, or there is not enough memory.
    """
    check_task(name, length, test_length)
    try:
        return tasks.make(name, length, test_length)
    except MemoryError:
        raise OptionError(f"--length {length} needs more memory than there is") from None


def check_task(name: str, length: int, test_length: int | None) -> None:
    """Checks the lengths of a task before its examples are generated.

    Raises:
        OptionError: If the task does not have such a length, or there is not enough memory.
    """
    features = tasks.TASKS[name].num_features
    *training, test = tasks.SIZES
    check_memory(f"--length {length}", sum(training) * length * features)
    check_memory(f"--test-length {test_length}", test * (test_length or 0) * features)
    try:
        tasks.make(name, length, test_length, sizes=(0, 0, 0))
    except ValueError as error:
        raise OptionError(f"--task {name}: {error}") from None


def dataset_of(config: Config, images: data.Dataset | None) -> Dataset:
    """Returns the data of a setting: its task, or else the images."""
    if config.task is not None:
        return make_task(config.task, config.length, config.test_length)
    assert images is not None  # they are loaded for every setting without a task
    return images


def as_sequences(dataset: Dataset, config: Config) -> tuple[Examples, Examples, Examples]:
    """Returns sequences and labels for training, validation and test, or the examples of a task.

    The order of shuffled pixels is the same for all seeds, so that runs can be compared.
    """
    if isinstance(dataset, tasks.Splits):
        return dataset.train, dataset.validation, dataset.test
    test_delay = config.delay if config.test_delay is None else config.test_delay

    def examples(split: data.Split, delay: int, stream: int) -> Examples:
        noise = stream if config.noise else None
        return data.sequences(split.images, config.order, delay=delay, noise=noise), split.labels

    return (
        examples(dataset.train, config.delay, 0),
        examples(dataset.validation, config.delay, 1),
        examples(dataset.test, test_delay, 2),
    )


def check_memory(option: str, needed: int) -> None:
    """Raises OptionError if an option needs more bytes than there are: JAX may wait for ever."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise OptionError(
            f"{option} needs {needed / 2**30:,.0f} GiB of memory; there are {there / 2**30:,.0f}"
        )


def check_model(config: Config) -> nn.Module:
    """Builds the model and checks that it accepts the shape of the data.

    Raises:
        OptionError: If the options do not go together.
    """
    check_memory(f"--delay {config.delay}", config.delay * data.SIDE)
    model = build_model(config)
    try:
        shapes = jax.eval_shape(model.init, jax.random.key(0), blank_example(config))
    except Exception as error:
        if cell_file(config.cell) is not None:
            raise failure(config.cell, parse_cell_options(config.cell_options), error) from error
        if isinstance(error, ValueError):
            raise OptionError(str(error)) from None
        raise
    # Parameters, gradients and the two moments of Adam, in float32.
    count = training.count_parameters(shapes)
    check_memory(f"--hidden-size {config.hidden_size}: training {count:,} parameters", 16 * count)
    return model


def blank_example(config: Config) -> np.ndarray:
    """Returns zeros of the shape of a sequence, float32 `[1, T, I]`."""
    if config.task is not None:
        return np.zeros((1, config.length, tasks.TASKS[config.task].num_features), np.float32)
    blank = np.zeros((1, data.SIDE, data.SIDE), np.uint8)
    return data.sequences(blank, config.order, delay=config.delay).astype(np.float32)


def build_optimizer(config: Config) -> optax.GradientTransformation:
    """Returns the optimizer."""
    return training.optimizer(
        config.learning_rate,
        schedule=config.schedule,
        steps=config.steps,
        clip_norm=config.clip_norm,
        algorithm=OPTIMIZERS[config.optimizer],
        weight_decay=config.weight_decay,
        recurrence_rate=config.recurrence_rate,
    )


def build_loss(config: Config) -> training.Loss:
    """Returns the loss function."""
    if config.task is not None:
        return tasks.TASKS[config.task].loss_fn
    distortion = training.Distortion(order=config.order) if config.augment else None
    loss = training.AugmentedCrossEntropy(distortion, config.label_smoothing, config.mixup)
    return training.cross_entropy if loss == training.AugmentedCrossEntropy() else loss


def build_metric(config: Config) -> training.Metric:
    """Returns the metric, a value in [0, 1] for each example."""
    return training.accuracy if config.task is None else tasks.TASKS[config.task].metric_fn


@dataclass(frozen=True)
class Factory:
    """Creates model and optimizer from hparams, which override options of the same names."""

    config: Config

    def __call__(
        self, hparams: Mapping[str, Any]
    ) -> tuple[nn.Module, optax.GradientTransformation]:
        """Returns the model and the optimizer."""
        config = dataclasses.replace(self.config, **hparams)
        return build_model(config), build_optimizer(config)


def digest(dataset: Dataset) -> str:
    """Returns a hash of all images and labels, or of all examples of a task."""
    found = hashlib.sha256()
    for split in (dataset.train, dataset.validation, dataset.test):
        for array in split:
            found.update(array.data)
    return found.hexdigest()


def identity(config: Config, data_sha256: str) -> dict[str, Any]:
    """Returns everything that the results of a run depend on; it is the same for a whole folder."""
    options = dataclasses.asdict(config)
    return {name: options[name] for name in options if name not in FREE} | {
        "data_sha256": data_sha256,
        "cell_sha256": cell_sha256(config.cell),
    }


def known_identity(config: Config) -> dict[str, Any]:
    """Returns the part of `identity` that is known before the data is loaded."""
    unknown = ["data_sha256", "dataset"] + ["steps"] * (config.steps is None)
    found = identity(absolute(config), "")
    return {name: found[name] for name in found if name not in unknown}


def absolute(config: Config) -> Config:
    """Returns the options with an absolute path in the name of a user's own cell."""
    own = cell_file(config.cell)
    return (
        dataclasses.replace(config, cell=f"{own[0].absolute()}:{own[1]}")
        if own is not None
        else config
    )


class Trained(NamedTuple):
    """A trained run.

    Attributes:
        config: The options.
        model: The classifier.
        params: The parameters of the checkpoint with the best validation accuracy.
        step: The train step of that checkpoint.
    """

    config: Config
    model: nn.Module
    params: Any
    step: int


def load_run(
    directory: Path, warn: Callable[[str], None] = print, *, of_images: bool = True
) -> Trained:
    """Loads a trained run.

    Args:
        directory: The folder of the run.
        warn: Called with one line for every damaged checkpoint.
        of_images: Whether the run must be that of a classifier of images, not of a task.

    Raises:
        RunError: If the folder holds no run, or no undamaged checkpoint yet, or if its run is that
            of a task and `of_images` is true.
        OptionError: If the file of the user's own cell has changed since the run was trained.
        CheckpointError: If the checkpoints hold a train state of another structure.
    """
    run = Run(directory)
    if not (directory / "config.json").exists():
        raise RunError(
            f"{directory} holds no run; train one with experiments/mnist.py, "
            "or name its folder with --run"
        )
    config, trained_cell = stored_config(run)
    if config.task is not None and of_images:
        raise RunError(f"{directory} holds a run of the task {config.task}, not of images")
    cell = {"cell": config.cell, "cell_sha256": cell_sha256(config.cell)}
    if changed := differences(cell | {"cell_sha256": trained_cell}, cell):
        raise OptionError(f"{'; '.join(changed)} since {directory} was trained with it")
    if not run.checkpoints.is_dir():
        raise RunError(f"{directory} holds no checkpoint yet")
    model = build_model(config)
    like = jax.eval_shape(lambda: initial_state(config, model, build_optimizer(config)))
    with Checkpoints(run.checkpoints, read_only=True, warn=warn) as checkpoints:
        restored = checkpoints.restore(like, best=True)
    if restored is None:
        raise RunError(f"{directory} holds no good checkpoint yet")
    step, state = restored
    return Trained(config, model, state.params, step)


def stored_config(run: Run) -> tuple[Config, Any]:
    """Returns the options of a run, and the hash of the file of the user's own cell.

    Raises:
        RunError: If config.json does not hold options of this version that go together.
    """
    stored = run.configuration()["config"]
    stored.pop("data_sha256", None)
    trained_cell = stored.pop("cell_sha256", None)
    if isinstance(stored.get("cell_options"), list):
        stored["cell_options"] = tuple(stored["cell_options"])
    # The name of the images, which "other" is if they are not published ones.
    hints = typing.get_type_hints(Config) | {"dataset": DatasetName | Literal["other"]}
    problems = [f"there is no option {name}" for name in stored if name not in hints]
    problems += [
        f"{name}: {problem}"
        for name, value in stored.items()
        if name in hints and (problem := conforms(value, hints[name]))
    ]
    try:
        if problems:
            raise OptionError(problems[0])
        config = Config(**stored, out=run.directory)
        config.check()
        check_memory("--delay", config.delay * data.SIDE)
    except OptionError as error:
        path = run.directory / "config.json"
        raise RunError(f"{path} does not hold options of this version: {error}") from None
    return config, trained_cell


def initial_state(
    config: Config, model: nn.Module, optimizer: optax.GradientTransformation
) -> training.TrainState:
    """Returns the train state before the first step."""
    trainer = training.Trainer(training.Fixed(model, optimizer))
    return trainer.init(run_keys(config.seed), {}, blank_example(config))
