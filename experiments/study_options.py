"""The options of experiments/ablate.py."""

from __future__ import annotations

import typing
from collections import Counter
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import options
from command_line import convert
from cyclopts import Parameter
from errors import OptionError, did_you_mean, unknown

# The keys of `studies.STUDIES`.
STUDIES = (
    "cells",
    "cells-equal",
    "tutorial",
    "fast",
    "best",
    "odyssey",
    "forget-bias",
    "init",
    "size",
    "order",
    "regularisers",
    "optimizers",
    "length-generalisation",
    "sequential-mnist",
    "permuted-mnist",
    "adding",
    "copying",
    "reber",
    "parity",
    "dyck",
    "noisy-rows",
)
# The first option under each heading of --help.
HEADINGS = {"vary": "settings", "seeds": "runs", "dataset": "data and output", "hosts": "hosts"}


@dataclass(frozen=True)
class Config:
    """The options of experiments/ablate.py."""

    study: Literal[STUDIES] | str = "grid"
    """Study of experiments/studies.py, or with --vary a name of your own."""
    _: KW_ONLY
    vary: Annotated[
        tuple[str, ...], Parameter(metavar="OPTION=VALUE,VALUE", consume_multiple=False)
    ] = ()
    """Option of experiments/mnist.py and the values to compare, as in hidden_size=64,128. If
    repeated, every combination of the values is a setting. An option of the cell's own is
    cell_options=KEY=VALUE,KEY=VALUE, and None sets no option."""
    set: Annotated[tuple[str, ...], Parameter(metavar="OPTION=VALUE", consume_multiple=False)] = ()
    """Option of experiments/mnist.py for all settings, as in steps=1000. May be repeated."""
    cell: options.CellName | str | None = None
    """Cell of all settings, as --set cell=NAME. Your own is path/to/file.py:name."""
    cell_options: Annotated[
        tuple[str, ...], Parameter(metavar="KEY=VALUE", consume_multiple=False)
    ] = ()
    """Keyword argument of the cell of all settings, as in experiments/mnist.py. May be repeated."""
    settings: Annotated[tuple[str, ...], Parameter(metavar="SETTING")] = ()
    """Settings of the study to run. Defaults to all."""
    baseline: Annotated[str | None, Parameter(metavar="SETTING")] = None
    """Setting with which the table compares the others. Defaults to the first."""
    seeds: int = 10
    """Number of seeds of each setting."""
    first_seed: int = 0
    """First of the seeds, which are consecutive."""
    evaluations: int = 5
    """Number of evaluations of each run, which are the points of the learning curves."""
    dry_run: bool = False
    """Print the settings and an estimate of the time, and exit."""
    dataset: options.DatasetName = "auto"
    """Data set. auto is MNIST if it is found or can be downloaded, and otherwise the 1,797 small
    digits of scikit-learn."""
    data_dir: Path | None = None
    """Folder with the data set as IDX, .npz, .csv or .parquet files, or as prepared by TFDS.
    Defaults to the environment variable JAXRNN_DATA_DIR."""
    out: Path = Path("runs/ablations")
    """Folder with a folder for each study. Runs that are found there are not repeated."""
    tensorboard: bool = False
    """Also write the learning curve of each run as an event file for TensorBoard. Needs the package
    tensorboardX."""
    hosts: int = 1
    """Number of processes, on one or several machines, that share the runs. All write to --out."""
    host: int = 0
    """Index of this process, from 0."""
    coordinator: Annotated[str, Parameter(metavar="HOST:PORT")] = ""
    """Address of process 0, at which the others connect."""

    def check(self) -> None:
        """Raises OptionError if a value is out of range or the options do not go together."""
        options.check_integers(self)
        options.check_folder(self.out)
        options.check_tensorboard(self.tensorboard)
        for name in ("seeds", "evaluations", "hosts"):
            if getattr(self, name) < 1:
                raise OptionError(f"--{name} must be at least 1")
        if self.first_seed < 0:
            raise OptionError("--first-seed must not be negative")
        if not 0 <= self.host < self.hosts:
            raise OptionError(f"--host must be at least 0 and less than --hosts, got {self.host}")
        if self.hosts > 1 and not self.coordinator:
            raise OptionError("--hosts needs --coordinator HOST:PORT, the address of --host 0")
        if self.coordinator:
            options.check_address(self.coordinator)
        if not self.vary and self.study not in STUDIES:
            problem = f"there is no study {self.study!r}, and no --vary to define it"
            raise unknown(problem, self.study, STUDIES)
        if self.vary and self.study in STUDIES:
            raise OptionError(f"{self.study} is a study of its own: give a grid another name")
        if self.study in ("", ".", "..") or Path(self.study).name != self.study:
            raise OptionError(f"a study is the name of a folder of --out, got {self.study!r}")
        for name, values in pairs(self.vary):
            each = values.split(",")
            if len(set(each)) < len(each):
                raise OptionError(f"--vary {name} has a value twice")
            if name not in options.OPTIONS and is_of_cell(name, self):
                spelling = ",".join(f"{name}={value}" for value in each)
                raise OptionError(
                    f"{name} is an option of the cell: --vary cell_options={spelling}"
                )
            for value in each:
                setting_value(name, value)
        for name, value in pairs(self.set, "--set"):
            if name not in options.OPTIONS and is_of_cell(name, self):
                raise OptionError(f"{name} is an option of the cell: --cell-options {name}={value}")
        shared_options(self)


def is_of_cell(option: str, config: Config) -> bool:
    """Returns whether the constructor of one of the cells of a study has an option of this name."""
    from cells import cell_parameters  # and with it JAX, which takes a second

    words = dict(pairs(config.vary)) | dict(pairs(config.set, "--set"))
    names = config.cell or words.get("cell", options.Config.cell)
    return any(option in cell_parameters(name) for name in names.split(","))


def shared_options(config: Config) -> dict[str, Any]:
    """Returns the options that are given for all settings.

    Raises:
        OptionError: If an option is unknown, does not take its value, or is given twice.
    """
    words = list(config.set)
    if config.cell is not None:
        words.append(f"cell={config.cell}")
    common = {name: setting_value(name, value) for name, value in pairs(words, "--set")}
    return common | ({"cell_options": config.cell_options} if config.cell_options else {})


def setting_value(option: str, text: str) -> Any:
    """Returns the value of an option of experiments/mnist.py.

    Raises:
        OptionError: If the option is unknown or fixed by the study, or does not take the value.
    """
    hints = typing.get_type_hints(options.Config)
    if option not in hints:
        near = did_you_mean(option, hints)
        raise OptionError(
            f"there is no option {option}{near or '; see python experiments/mnist.py --help'}"
        )
    if option in options.FIXED:
        raise OptionError(f"{option} is not an option of a study's settings")
    if option == "cell":
        options.check_cell(option, text)
    if option == "cell_options":
        return () if text == "None" else (text,)
    # The number of steps must be known, to plan the runs.
    return convert(option, int if option == "steps" else hints[option], text)


def pairs(words: Sequence[str], flag: str = "--vary") -> list[tuple[str, str]]:
    """Splits words option=value.

    Args:
        words: The words.
        flag: The option of the command line that takes them, for the error.

    Raises:
        OptionError: If a word is of another form, or two words have the same option.
    """
    form = "option=value,value" if flag == "--vary" else "option=value"
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise OptionError(f"{flag} must be {form}, got {word!r}")
        found.append((name, value))
    for name, count in Counter(name for name, _ in found).items():
        if count > 1:
            raise OptionError(f"{name} is given {count} times: --vary takes its values with commas")
    return found
