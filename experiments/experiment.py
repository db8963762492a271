"""From options to what a run is made of: data, model, optimizer and loss function."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import numpy as np
import optax
from cells import cell_file, cell_sha256
from errors import OptionError
from models import build_model
from options import FREE, OPTIMIZERS, Config, DatasetName

from jaxrnn import training
from jaxrnn.training import data
from jaxrnn.training.checkpoint import Checkpoints
from jaxrnn.training.run import Run, RunError
from jaxrnn.training.train import run_keys

Examples = tuple[np.ndarray, np.ndarray]


class Experiment(NamedTuple):
    """Options, resolved.

    Attributes:
        config: The options, with the name of the data set and the number of steps.
        steps: Updates to make.
        model: The classifier.
        optimizer: Its optimizer.
        loss_fn: The loss function.
        train: Sequences uint8 `[N, T, I]` and labels uint8 `[N]`; so the next two.
        validation: Empty if none are held out.
        test: With the blank steps of --test-delay.
    """

    config: Config
    steps: int
    model: nn.Module
    optimizer: optax.GradientTransformation
    loss_fn: training.Loss
    train: Examples
    validation: Examples
    test: Examples


def resolve(config: Config, dataset: data.Dataset) -> Experiment:
    """What a run with these options is made of.

    Raises:
        OptionError: If the options do not go together, or not with the data.
    """
    config.check()
    steps = config.steps or (2_000 if dataset.name == "digits" else 20_000)
    config = dataclasses.replace(config, dataset=cast(DatasetName, dataset.name), steps=steps)
    if (own := cell_file(config.cell)) is not None:
        config = dataclasses.replace(config, cell=f"{own[0].absolute()}:{own[1]}")
    if config.batch_size > len(dataset.train.labels):
        raise OptionError(f"--batch-size must be at most {len(dataset.train.labels)}")
    return Experiment(
        config,
        steps,
        check_model(config),
        build_optimizer(config),
        build_loss(config),
        *as_sequences(dataset, config),
    )


def load_dataset(
    name: str, data_dir: Path | None = None, validation_size: int = 5000
) -> data.Dataset:
    """The data set that the options and JAXRNN_DATA_DIR ask for."""
    folder = data_dir or os.environ.get("JAXRNN_DATA_DIR") or None
    if name == "auto":
        return data.load_or_digits(folder, validation_size)
    return data.load(name, folder, validation_size)


def as_sequences(dataset: data.Dataset, config: Config) -> tuple[Examples, Examples, Examples]:
    """Sequences and labels for training, validation and test.

    Shuffled pixels have one order for all seeds, so that runs can be compared.
    """
    test_delay = config.delay if config.test_delay is None else config.test_delay

    def examples(split: data.Split, delay: int) -> Examples:
        return data.sequences(split.images, config.order, delay=delay), split.labels

    return (
        examples(dataset.train, config.delay),
        examples(dataset.validation, config.delay),
        examples(dataset.test, test_delay),
    )


def check_model(config: Config) -> nn.Module:
    """The model that the options ask for, if it can read the data.

    Raises:
        OptionError: If the options do not go together.
    """
    model = build_model(config)
    try:
        jax.eval_shape(model.init, jax.random.key(0), blank_example(config))
    except ValueError as error:
        raise OptionError(str(error)) from None
    return model


def blank_example(config: Config) -> np.ndarray:
    """A sequence of the shape that the model reads, float32 `[1, T, I]`."""
    blank = np.zeros((1, data.SIDE, data.SIDE), np.uint8)
    return data.sequences(blank, config.order, delay=config.delay).astype(np.float32)


def build_optimizer(config: Config) -> optax.GradientTransformation:
    """The optimizer that the options ask for."""
    return training.optimizer(
        config.learning_rate,
        schedule=config.schedule,
        steps=config.steps,
        clip_norm=config.clip_norm,
        algorithm=OPTIMIZERS[config.optimizer],
    )


def build_loss(config: Config) -> training.Loss:
    """The loss function that the options ask for."""
    if not config.augment and not config.label_smoothing:
        return training.cross_entropy
    distortion = training.Distortion() if config.augment else None
    return training.AugmentedCrossEntropy(distortion, config.label_smoothing)


@dataclass(frozen=True)
class Factory:
    """Makes model and optimizer from hyperparameters, which take the place of options."""

    config: Config

    def __call__(
        self, hparams: Mapping[str, Any]
    ) -> tuple[nn.Module, optax.GradientTransformation]:
        """The model and the optimizer."""
        config = dataclasses.replace(self.config, **hparams)
        return build_model(config), build_optimizer(config)


def digest(dataset: data.Dataset) -> str:
    """A hash of all images and labels."""
    found = hashlib.sha256()
    for split in (dataset.train, dataset.validation, dataset.test):
        found.update(split.images.data)
        found.update(split.labels.data)
    return found.hexdigest()


def identity(config: Config, data_sha256: str) -> dict[str, Any]:
    """What a run's results depend on; a folder never mixes two of these."""
    options = dataclasses.asdict(config)
    return {name: options[name] for name in options if name not in FREE} | {
        "data_sha256": data_sha256,
        "cell_sha256": cell_sha256(config.cell),
    }


class Trained(NamedTuple):
    """A trained run, as its folder holds it.

    Attributes:
        config: Its options.
        model: The classifier.
        params: The parameters that did best on the validation set.
        step: The step after which they did.
    """

    config: Config
    model: nn.Module
    params: Any
    step: int


def load_run(directory: Path, warn: Callable[[str], None] = print) -> Trained:
    """Reads a trained run.

    Args:
        directory: Its folder.
        warn: Called with one line for every damaged checkpoint.

    Raises:
        RunError: If the folder holds no run, or no good checkpoint yet.
        OptionError: If a cell of one's own is no longer the one that was trained.
        CheckpointError: If its checkpoints are not of the state that this version trains.
    """
    run = Run(directory)
    stored = run.read("config.json")["config"]
    stored.pop("data_sha256", None)
    trained_cell = stored.pop("cell_sha256", None)
    try:
        stored["cell_options"] = tuple(stored.get("cell_options", ()))
        config = Config(**stored, out=directory)
    except TypeError as error:
        raise RunError(f"{directory / 'config.json'} is not of this version: {error}") from None
    if cell_sha256(config.cell) != trained_cell:
        raise OptionError(f"{config.cell} has changed since {directory} was trained with it")
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


def initial_state(
    config: Config, model: nn.Module, optimizer: optax.GradientTransformation
) -> training.TrainState:
    """The state of a run before its first step."""
    trainer = training.Trainer(training.Fixed(model, optimizer))
    return trainer.init(run_keys(config.seed), {}, blank_example(config))
