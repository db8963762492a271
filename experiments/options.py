"""The options of experiments/mnist.py and of a study's settings, and recipes: values by name."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import optax
from cells import CELLS, INITIALIZERS, flag, parse_cell_options
from errors import OptionError
from networks import BASELINES

from jaxrnn.training import data

with contextlib.suppress(ImportError):  # only a command line reads what the annotations say of it
    import tyro

# Options that may differ when a run is resumed. No result depends on them, but for rounding, and
# for noise, which each device draws for its own share of a batch.
FREE = (
    "recipe",
    "data_dir",
    "out",
    "resume",
    "checkpoint_every",
    "devices",
    "distributed",
    "coordinator",
    "num_processes",
    "process_id",
)

DatasetName = Literal[("auto", *data.NAMES)]

OPTIMIZERS = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "nadam": optax.nadam,
    "rmsprop": optax.rmsprop,
    "momentum": partial(optax.sgd, momentum=0.9),
}

PIXELS = {
    "cell": "lru",
    "hidden_size": 64,
    "num_layers": 3,
    "residual": True,
    "schedule": "onecycle",
    "learning_rate": 4e-3,
    "steps": 3000,
    "clip_norm": 1.0,
    "eval_every": 1000,
}
CELL_NAMES = "{" + ",".join((*CELLS, *BASELINES, "FILE.py:NAME")) + "}"
# Any of their values can be overridden.
RECIPES: dict[str, dict[str, Any]] = {
    # The TF1 tutorial's: 20,000 steps of Adam at 0.001, batches of 100, evaluated every 100 steps.
    "tutorial": {},
    # The same network in a seventh of the steps; rate and steps were chosen on validation.
    "fast": {
        "schedule": "onecycle",
        "learning_rate": 8e-3,
        "steps": 3000,
        "clip_norm": 1.0,
        "eval_every": 1000,
    },
    # A ReNet: two layers that sweep over patches, on images that are distorted anew in every epoch.
    # Strength of the distortion and dropout, units and layers were chosen on validation.
    "best": {
        "cell": "janet",
        "hidden_size": 64,
        "num_layers": 2,
        "patch": 4,
        "augment": True,
        "dropout": 0.2,
        "schedule": "onecycle",
        "learning_rate": 3e-3,
        "steps": 36_000,
        "clip_norm": 1.0,
        "eval_every": 1000,
    },
    # One pixel a step. A linear recurrence remembers what it read 784 steps ago, and its products
    # are computed for many steps at once.
    "sequential-mnist": {
        **PIXELS,
        "order": "pixels",
        "cell": "lru-long",
        "batch_size": 50,
        "steps": 7000,
    },
    "permuted-mnist": {**PIXELS, "order": "permuted"},
}


@dataclass(frozen=True)
class Config:
    """Train a recurrent network to read MNIST digits, then picture what it learned."""

    recipe: Literal[tuple(RECIPES)] = "tutorial"
    """Defaults for the other options."""
    dataset: DatasetName = "auto"
    """auto takes MNIST where it can be had and scikit-learn's digits where not."""
    data_dir: Path | None = None
    """Folder with the set as IDX, .npz, .csv or .parquet, or prepared by TFDS [JAXRNN_DATA_DIR]."""
    order: Literal["rows", "columns", "shuffled", "pixels", "permuted"] = "rows"
    """How an image is read: 28 rows, columns or rows of shuffled pixels; or 784 pixels, in order or
    permuted."""
    delay: int = 0
    """Blank steps after each image, before it is classified."""
    test_delay: int | None = None
    """The same for the test images, by default as many."""
    cell: Annotated[str, tyro.conf.arg(metavar=CELL_NAMES)] = "lstm"
    """The cell: one of the library, or one of your own as path/to/file.py:name, a function of the
    hidden size and of keyword options that returns a jaxrnn.Cell; mlp and cnn are a dense network
    and a small CNN to compare with."""
    cell_options: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE")
    ] = ()
    """An option of the cell, as a Python literal; may be repeated."""
    hidden_size: int = 128
    """Units of a layer; the networks without a recurrence have sizes of their own."""
    num_layers: int = 1
    bidirectional: bool = False
    patch: int | None = None
    """Sweep over squares of so many pixels a side, along columns and then rows (ReNet)."""
    augment: bool = False
    """Distort the training images anew at every step (Simard et al., 2003)."""
    label_smoothing: float = 0.0
    """Share of each label spread over all classes."""
    residual: bool = False
    """Add each layer's inputs to its outputs."""
    forget_bias: float | None = None
    """Initial bias of the forget gate, by default 1."""
    chrono: float | None = None
    """Start the biases so that the cell keeps for up to this many steps (Tallec & Ollivier)."""
    recurrent_init: Literal[tuple(INITIALIZERS)] | None = None
    """How the recurrent kernel of each gate starts."""
    init_scale: float | None = None
    """How many times as large the cell's kernels start."""
    learn_initial_state: bool = False
    """Make the state before the first row a parameter."""
    dropout: float | None = None
    """Share of a layer's inputs dropped, from the second layer on; with --patch of each layer's
    outputs."""
    zoneout: float | None = None
    """How likely a unit keeps its old value."""
    recurrent_dropout: float | None = None
    """How likely a unit is dropped from the recurrent product; needs --tied True or
    --tied False."""
    tied: bool | None = None
    """Whether that is drawn once a sequence, as in variational dropout, or at every step."""
    weight_dropout: float | None = None
    """Share of the recurrent kernel dropped (DropConnect)."""
    truncate: int | None = None
    """Let no gradient reach back across every so many steps."""
    batch_size: int = 100
    steps: int | None = None
    """Updates to make; by default 20,000, or 2,000 on digits."""
    learning_rate: float = 1e-3
    """The optimizer's rate, or its peak with --schedule onecycle."""
    optimizer: Literal[tuple(OPTIMIZERS)] = "adam"
    schedule: Literal["constant", "onecycle"] = "constant"
    clip_norm: float | None = None
    """Largest global norm of the gradient."""
    eval_every: int = 100
    """Steps between two evaluations."""
    validation_size: int = 5000
    """Training images held out to choose a step by; fewer on digits."""
    seed: int = 0
    """Determines the initial weights, the noise and the batches."""
    out: Path = Path("runs/mnist")
    """Folder of the run."""
    resume: bool = True
    """Resume the run in the folder; --no-resume starts it over."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints, besides those of the best validation accuracy."""
    devices: int | None = None
    """GPUs, TPU cores or CPU cores of this process that share each batch; by default all that
    divide it evenly."""
    distributed: bool = False
    """Train with other processes, which the cluster names (Slurm, Open MPI, a TPU pod); the next
    three options name them where it does not. See docs/guides/many_devices.md."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where the others find it."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Which of them this is, from 0."""

    def check(self) -> None:
        """Raises OptionError for a value that cannot work."""
        for name in ("hidden_size", "num_layers", "batch_size", "eval_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise OptionError(f"{flag(name)} must be at least 1")
        for name in ("steps", "devices", "truncate", "patch"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise OptionError(f"{flag(name)} must be at least 1")
        for name in ("validation_size", "seed", "delay", "test_delay"):
            if (getattr(self, name) or 0) < 0:
                raise OptionError(f"{flag(name)} must not be negative")
        if not 0 < self.learning_rate < float("inf"):
            raise OptionError("--learning-rate must be positive and finite")
        parse_cell_options(self.cell_options)
        as_image = self.augment or self.patch
        if as_image and (self.order != "rows" or self.delay or self.test_delay):
            raise OptionError("--augment and --patch go with --order rows and no --delay")
        if self.cell in BASELINES and (self.delay or self.test_delay):
            raise OptionError(
                f"--cell {self.cell} has no memory to test with --delay, --test-delay"
            )
        shares = ("dropout", "zoneout", "recurrent_dropout", "weight_dropout", "label_smoothing")
        for name in shares:
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise OptionError(f"{flag(name)} must be in [0, 1)")
        if self.recurrent_dropout is not None and self.tied is None:
            raise OptionError("--recurrent-dropout needs --tied True or --tied False")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise OptionError("--clip-norm must be positive")
