"""The options of experiments/mnist.py, which a study's settings share, and the recipes.

Names of cells, optimizers and data sets are listed here, apart from the functions that they name,
so that a command line is parsed before JAX is imported.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from command_line import flag
from cyclopts import Parameter
from errors import OptionError, unknown

# The keys of `cells.CELLS`, `baselines.BASELINES`, `cells.INITIALIZERS`, `experiment.OPTIMIZERS`.
CELLS = (
    "rnn",
    "rnn-relu",
    "rnn-sigmoid",
    "irnn",
    "indrnn",
    "lstm",
    "lstm-peephole",
    "lstm-projection",
    "lstm-chrono",
    "lstm-nig",
    "lstm-nfg",
    "lstm-nog",
    "lstm-niaf",
    "lstm-noaf",
    "lstm-cifg",
    "lstm-np",
    "lstm-fgr",
    "lstm-layer-norm",
    "janet",
    "gru",
    "gru-before",
    "mgu",
    "min-gru",
    "min-lstm",
    "lru",
    "lru-long",
    "s5",
    "s6",
    "rg-lru",
    "slstm",
    "lem",
    "cornn",
    "unicornn",
)
BASELINES = ("mlp", "cnn")
CellName = Literal[(*CELLS, *BASELINES)]
Initializer = Literal["glorot", "orthogonal", "identity"]
Optimizer = Literal["adam", "adamw", "nadam", "rmsprop", "momentum"]
# Those of `jaxrnn.training.data`, and "auto".
DatasetName = Literal["auto", "mnist", "fashion_mnist", "kmnist", "digits"]
# The keys of `jaxrnn.training.tasks.TASKS`.
TASKS = ("adding", "copying", "reber", "parity", "dyck")
Order = Literal["rows", "columns", "shuffled", "pixels", "permuted"]
# Options that may differ when a run is resumed. No result depends on them, but for rounding, and
# for noise, which each device draws for its own share of a batch.
FREE = (
    "recipe",
    "data_dir",
    "out",
    "resume",
    "checkpoint_every",
    "tensorboard",
    "devices",
    "distributed",
    "coordinator",
    "num_processes",
    "process_id",
)

# Options that a study determines, or that have no effect on its settings.
FIXED = (*FREE, "dataset", "validation_size", "seed", "eval_every")

# Options that only images have.
OF_IMAGES = ("dataset", "data_dir", "validation_size", "order", "delay", "test_delay", "noise")
OF_IMAGES += ("augment", "patch", "label_smoothing", "mixup")

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
    # A state space model as in Smith et al. (2023), with fewer than 70,000 parameters. Its stem
    # reads the pixels, and the blocks its output at every 28th. Images are distorted anew in every
    # epoch.
    "state-space": {
        "order": "permuted",
        "augment": True,
        "cell": "s5",
        "cell_options": ("state_size=44",),
        "hidden_size": 64,
        "num_layers": 3,
        "blocks": True,
        "stride": 28,
        "stem_states": 128,
        "schedule": "cosine",
        "learning_rate": 4e-3,
        "recurrence_rate": 0.25,
        "weight_decay": 0.05,
        "batch_size": 64,
        "steps": 36_000,
        "clip_norm": 1.0,
        "eval_every": 2000,
    },
}

# The first option under each heading of --help.
HEADINGS = {
    "dataset": "data",
    "cell": "model",
    "dropout": "regularization",
    "batch_size": "optimization",
    "out": "run",
    "distributed": "several processes",
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of experiments/mnist.py."""

    recipe: Literal[tuple(RECIPES)] = "tutorial"
    """Sets the defaults of the other options: tutorial trains an LSTM for 20,000 steps, fast the
    same network in 3,000, best a ReNet (the most accurate); sequential-mnist, permuted-mnist and
    state-space read one pixel a time step. With a recipe, --help shows its values, and None unsets
    one of them."""
    dataset: DatasetName = "auto"
    """Data set. auto is MNIST if it is found or can be downloaded, and otherwise the 1,797 small
    digits of scikit-learn."""
    data_dir: Path | None = None
    """Folder with the data set as IDX, .npz, .csv or .parquet files, or as prepared by TFDS.
    Defaults to the environment variable JAXRNN_DATA_DIR."""
    validation_size: int = 5000
    """Number of training examples held out for validation, on which a checkpoint is selected; at
    most 180 of digits."""
    order: Order = "rows"
    """How an image becomes a sequence: 28 rows, 28 columns, 28 rows of shuffled pixels, 784 pixels,
    or 784 permuted pixels. One permutation serves all images."""
    delay: int = 0
    """Number of blank time steps after each image, before the classification."""
    test_delay: int | None = None
    """Number of blank time steps after each test image. Defaults to --delay."""
    noise: bool = False
    """Fill the time steps of --delay with uniform noise, which is drawn once for each image."""
    task: Literal[TASKS] | None = None
    """Learn a synthetic task, which is generated, in place of a data set: the adding problem,
    copying memory, the embedded Reber grammar, parity or Dyck-1. See docs/guides/tasks.md."""
    length: int = 100
    """Length of the sequences of --task: the smallest of adding, the delay of copying, the largest
    of the others."""
    test_length: int | None = None
    """Length of the test sequences of --task. Of reber, parity and dyck they are then all longer
    than --length. Defaults to the lengths in training."""
    augment: bool = False
    """Distort the training images anew at every step (Simard et al., 2003)."""
    cell: CellName | str = "lstm"
    """Recurrent cell. Your own is path/to/file.py:name, where name is a function from the hidden
    size and keyword options to a jaxrnn.Cell. mlp and cnn are networks without recurrence, for
    comparison."""
    cell_options: Annotated[
        tuple[str, ...], Parameter(metavar="KEY=VALUE", consume_multiple=False)
    ] = ()
    """Keyword argument of the cell's constructor, as a Python literal: projection_size=32,
    peephole=True. May be repeated."""
    hidden_size: int = 128
    """Number of hidden units of each layer. mlp and cnn have sizes of their own."""
    num_layers: int = 1
    """Number of recurrent layers, each reading the outputs of the last."""
    bidirectional: bool = False
    """Read each sequence in both directions and concatenate the outputs of each layer."""
    residual: bool = False
    """Add the inputs of each layer to its outputs if they have the same size."""
    blocks: bool = False
    """Put each layer into a residual block, with a layer normalization before it and a gate after
    it, and classify the mean over time (Gu et al., 2022)."""
    stride: int = 1
    """Number of time steps that become one step of the --blocks."""
    stem_states: int | None = None
    """Number of states of an S5 layer that reads every time step and gives its output at every
    --stride of them to the --blocks. Defaults to a dense layer over the steps of a stride."""
    patch: int | None = None
    """Side in pixels of the square patches of a ReNet (Visin et al., 2015), whose layers sweep over
    the columns and then the rows of an image. Must divide 28."""
    forget_bias: float | None = None
    """Initial bias of the forget gate. Defaults to 1."""
    chrono: float | None = None
    """Chrono initialization of the gates' biases for dependencies of up to this many time steps
    (Tallec & Ollivier, 2018)."""
    recurrent_init: Initializer | None = None
    """Initializer of the recurrent kernel of each gate. Defaults to the cell's own."""
    init_scale: float | None = None
    """Factor on the cell's initial kernels."""
    learn_initial_state: bool = False
    """Make the initial carry of each layer a parameter."""
    dropout: float | None = None
    """Dropout rate of the inputs of each layer but the first; with --patch or --blocks, of the
    outputs of each layer."""
    zoneout: float | None = None
    """Probability that a hidden unit keeps its value for a time step (Krueger et al., 2017)."""
    recurrent_dropout: float | None = None
    """Dropout rate of the hidden state in the recurrent product. Needs --tied."""
    tied: Literal[True, False] | None = None
    """Whether the recurrent-dropout mask is the same at all time steps, as in variational dropout
    (Gal & Ghahramani, 2016), or drawn anew at each."""
    weight_dropout: float | None = None
    """Dropout rate of the entries of the recurrent kernel (DropConnect; Merity et al., 2018)."""
    label_smoothing: float = 0.0
    """Probability mass of each label that is spread evenly over all classes."""
    mixup: float = 0.0
    """Train on mixtures of two images, in shares drawn from the beta distribution whose parameters
    have this value (Zhang et al., 2018)."""
    batch_size: int = 100
    """Number of examples in a batch."""
    steps: int | None = None
    """Number of train steps. Defaults to 20,000, and to 2,000 on digits."""
    learning_rate: float = 1e-3
    """Learning rate; with --schedule onecycle or cosine, its peak."""
    optimizer: Optimizer = "adam"
    """Optimizer from optax; momentum is SGD with momentum 0.9."""
    schedule: Literal["constant", "onecycle", "cosine"] = "constant"
    """Learning rate schedule: constant, one cosine cycle up to the peak and down to nearly zero
    (onecycle; Smith & Topin, 2018), or a short warm-up and half a cosine to zero (cosine)."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the kernels (Loshchilov & Hutter, 2019)."""
    recurrence_rate: float = 1.0
    """Factor on the learning rate of the eigenvalues of linear recurrences, and of other parameters
    of cells that are neither kernels nor biases."""
    clip_norm: float | None = None
    """Global norm to which gradients are clipped. Not clipped by default."""
    truncate: int | None = None
    """Stop the gradient every N time steps (truncated backpropagation through time)."""
    seed: int = 0
    """Seed of the initial parameters, the order of the batches and all noise."""
    out: Path = Path("runs/mnist")
    """Folder of the run."""
    resume: bool = True
    """Resume the run in the folder if there is one; --no-resume deletes it and starts anew."""
    eval_every: int = 100
    """Number of train steps between two evaluations."""
    checkpoint_every: int = 1000
    """Number of train steps between two checkpoints. The best step by validation accuracy is saved
    besides."""
    tensorboard: bool = False
    """Also write the metrics, the confusion matrix and the class probabilities by row as an event
    file for TensorBoard into the folder of the run. Needs the package tensorboardX."""
    devices: int | None = None
    """Number of devices of this process (GPUs, TPU cores or CPU cores) that share each batch.
    Defaults to the most that divide it evenly."""
    distributed: bool = False
    """Train together with other processes that a cluster started (Slurm, Open MPI, a TPU pod).
    Elsewhere, pass the next three options to each process. See docs/guides/many_devices.md."""
    coordinator: Annotated[str | None, Parameter(metavar="HOST:PORT")] = None
    """Address of process 0, at which the others connect."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Index of this process, from 0."""

    def check(self) -> None:
        """Raises OptionError if a value is out of range or the options do not go together."""
        check_integers(self)
        counts = ("hidden_size", "num_layers", "batch_size", "eval_every", "checkpoint_every")
        counts += ("length", "test_length", "steps", "devices", "truncate", "patch", "stride")
        for name in (*counts, "stem_states"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise OptionError(f"{flag(name)} must be at least 1")
        if self.num_layers > 1000:
            raise OptionError("--num-layers must be at most 1000")
        for name in ("validation_size", "seed", "delay", "test_delay"):
            if (getattr(self, name) or 0) < 0:
                raise OptionError(f"{flag(name)} must not be negative")
        if not 0 < self.learning_rate < float("inf"):
            raise OptionError("--learning-rate must be positive and finite")
        for name in ("weight_decay", "recurrence_rate", "mixup"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise OptionError(f"{flag(name)} must be finite and not negative")
        check_cell("--cell", self.cell)
        check_folder(self.out)
        if self.coordinator is not None:
            check_address(self.coordinator)
        for word in self.cell_options:
            name = word.partition("=")[0]
            if self.cell in CELLS and name in OPTIONS - {"forget_bias", "chrono"}:
                raise OptionError(
                    f"--cell-options {name}: not an option of the cell; use {flag(name)}"
                )
        own = parse_cell_options(self.cell_options)
        if self.patch and self.order != "rows":
            raise OptionError("--patch goes with --order rows")
        if (self.augment or self.patch) and (self.delay or self.test_delay):
            raise OptionError("--augment and --patch go with no --delay")
        if self.cell in BASELINES and (self.delay or self.test_delay):
            raise OptionError(
                f"--cell {self.cell} has no memory to test with --delay, --test-delay"
            )
        if self.noise and not (self.delay or self.test_delay):
            raise OptionError("--noise needs --delay or --test-delay")
        if self.task is None and (self.length != Config.length or self.test_length is not None):
            raise OptionError("--length and --test-length need --task")
        if self.task is not None:
            changed = [name for name in OF_IMAGES if getattr(self, name) != getattr(Config, name)]
            if given := [flag(name) for name in changed]:
                raise OptionError(f"{' and '.join(given)}: for images, not for --task {self.task}")
            if self.cell in BASELINES:
                raise OptionError(f"--cell {self.cell} classifies images and has no --task")
        shares = ("dropout", "zoneout", "recurrent_dropout", "weight_dropout", "label_smoothing")
        for name in shares:
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise OptionError(f"{flag(name)} must be in [0, 1)")
        if self.recurrent_dropout is not None and self.tied is None:
            raise OptionError("--recurrent-dropout needs --tied True or --tied False")
        if self.tied is not None and self.recurrent_dropout is None:
            raise OptionError("--tied needs --recurrent-dropout")
        if self.num_layers == 1 and self.dropout and not (self.patch or self.blocks):
            raise OptionError(
                "--dropout needs --num-layers of at least 2, --patch or --blocks: "
                "it drops inputs of each layer but the first"
            )
        for name, unset in (("stride", 1), ("stem_states", None)):
            if getattr(self, name) != unset and not self.blocks:
                raise OptionError(f"{flag(name)} needs --blocks")
        chrono = self.chrono is not None or self.cell == "lstm-chrono" or "chrono" in own
        if self.cell in CELLS and chrono and self.forget_bias is not None:
            raise OptionError(
                "--forget-bias does not go with --chrono, which sets the bias of the forget gate"
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise OptionError("--clip-norm must be positive")
        check_tensorboard(self.tensorboard)


LARGEST = 2**31 - 1  # of an integer
OPTIONS = {field.name for field in fields(Config)}


def check_integers(config: Any) -> None:
    """Raises OptionError if an option is larger than what arrays are indexed by, an int32."""
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, int) and value > LARGEST:
            raise OptionError(f"{flag(field.name)} must be at most {LARGEST}")


def check_address(address: str) -> None:
    """Raises OptionError if the address of --coordinator is not HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise OptionError(f"--coordinator must be HOST:PORT, got {address}")


def check_tensorboard(wanted: bool) -> None:
    """Raises OptionError if --tensorboard is given without the package that writes event files."""
    if wanted and importlib.util.find_spec("tensorboardX") is None:
        raise OptionError(
            "--tensorboard needs the package tensorboardX: pip install 'jaxrnn[tensorboard]'"
        )


def check_folder(path: Path) -> None:
    """Raises OptionError if the folder of --out cannot be created or written."""
    for each in (path, *path.absolute().parents):
        if each.exists():
            if not each.is_dir():
                raise OptionError(f"--out {path}: {each} is a file, not a folder")
            if not os.access(each, os.W_OK | os.X_OK):
                raise OptionError(f"--out {path}: {each} cannot be written")
            return


def check_file(option: str, path: Path) -> None:
    """Raises OptionError if a file cannot be created or replaced."""
    folder = path.absolute().parent
    if path.is_dir():
        raise OptionError(f"{option} {path} is a folder, not a file")
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        raise OptionError(f"{option} {path}: {folder} {problem}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OptionError(f"{option} {path}: {folder} cannot be written")


def check_cell(option: str, name: str) -> None:
    """Raises OptionError if no cell has this name."""
    if name.endswith(".py"):
        names = ", ".join(functions(Path(name)))
        raise OptionError(
            f"{option}: {name} names no function; write {name}:NAME{names and f' ({names})'}"
        )
    if name not in (*CELLS, *BASELINES) and cell_file(name) is None:
        names = [*CELLS, *BASELINES, "path/to/file.py:name"]
        raise unknown(f"{option} does not take {name!r}", name, names)


def cell_file(name: str) -> tuple[Path, str] | None:
    """Returns the file and the name of a user's own cell, or None if `name` is not of that form."""
    path, colon, attribute = name.rpartition(":")
    return (Path(path), attribute) if colon and path.endswith(".py") else None


def functions(path: Path) -> list[str]:
    """Returns the names of the functions that a file defines, without those that start with _."""
    try:
        defined = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return []
    names = [each.name for each in defined if isinstance(each, ast.FunctionDef)]
    return [name for name in names if name[0] != "_"]


def parse_cell_options(words: Sequence[str]) -> dict[str, Any]:
    """Returns the keyword arguments of a cell from words key=value, whose values are literals.

    Raises:
        OptionError: If a word is not of that form, or a key is given twice.
    """
    options: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise OptionError(f"--cell-options must be key=value, got {word!r}")
        if name in options:
            raise OptionError(f"--cell-options has {name} twice")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise OptionError(
                f"--cell-options {word}: {value} is not a Python literal, such as 2, True or 'text'"
            ) from None
    return options
