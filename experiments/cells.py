"""The cells that --cell names: those of the library, and a user's own."""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
import runpy
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
from errors import OptionError, unknown
from imports import importing, own_modules
from jax.nn.initializers import glorot_uniform, orthogonal
from options import BASELINES, cell_file, functions

import jaxrnn

CELLS: dict[str, Callable[..., jaxrnn.Cell]] = {
    "rnn": jaxrnn.rnn,
    "rnn-relu": partial(jaxrnn.rnn, activation=jax.nn.relu),
    "rnn-sigmoid": partial(jaxrnn.rnn, activation=jax.nn.sigmoid),
    "irnn": partial(jaxrnn.rnn, activation=jax.nn.relu, recurrent_kernel_init=jaxrnn.identity()),
    "indrnn": jaxrnn.indrnn,
    "lstm": jaxrnn.lstm,
    "lstm-peephole": partial(jaxrnn.lstm, peephole=True),
    "lstm-projection": partial(jaxrnn.lstm, projection_size=64),
    "lstm-chrono": partial(jaxrnn.lstm, chrono=28.0),
    "lstm-nig": partial(jaxrnn.odyssey, variant="NIG"),
    "lstm-nfg": partial(jaxrnn.odyssey, variant="NFG"),
    "lstm-nog": partial(jaxrnn.odyssey, variant="NOG"),
    "lstm-niaf": partial(jaxrnn.odyssey, variant="NIAF"),
    "lstm-noaf": partial(jaxrnn.odyssey, variant="NOAF"),
    "lstm-cifg": partial(jaxrnn.odyssey, variant="CIFG"),
    "lstm-np": partial(jaxrnn.odyssey, variant="NP"),
    "lstm-fgr": partial(jaxrnn.odyssey, variant="FGR"),
    "lstm-layer-norm": jaxrnn.layer_norm_lstm,
    "janet": jaxrnn.janet,
    "gru": jaxrnn.gru,
    "gru-before": partial(jaxrnn.gru, reset_after=False),
    "mgu": jaxrnn.mgu,
    "min-gru": jaxrnn.min_gru,
    "min-lstm": jaxrnn.min_lstm,
    "lru": jaxrnn.lru,
    # The paper's initialization for long sequences whose neighbouring inputs are alike.
    "lru-long": partial(jaxrnn.lru, radius=(0.99, 0.9999), max_phase=math.pi / 10),
    "s5": jaxrnn.s5,
    "s6": jaxrnn.s6,
    "rg-lru": jaxrnn.rg_lru,
    "slstm": jaxrnn.slstm,
    "lem": jaxrnn.lem,
    "cornn": jaxrnn.cornn,
    "unicornn": jaxrnn.unicornn,
}
INITIALIZERS = {
    "glorot": glorot_uniform(),
    "orthogonal": orthogonal(),
    "identity": jaxrnn.identity(),
}


# The arguments of a cell that have an option of their own.
FLAGS = {
    "forget_bias": "--forget-bias",
    "chrono": "--chrono",
    "recurrent_kernel_init": "--recurrent-init",
}


def make_cell(name: str, hidden_size: int, **options: Any) -> jaxrnn.Cell:
    """Creates the cell of this name.

    Args:
        name: One of `CELLS`, or "path/to/file.py:name": a function of the hidden size and keyword
            options that returns a `jaxrnn.Cell`.
        hidden_size: The number of hidden units.
        **options: Keyword arguments of the cell. None leaves an argument at its default.

    Raises:
        OptionError: If the cell does not exist, or does not take an option or its value.
    """
    constructor = _constructor(name)
    options = {key: value for key, value in options.items() if value is not None}
    for key in options:
        _check_takes(name, constructor, key)
    try:
        cell = constructor(hidden_size, **options)
    except Exception as error:
        if name in CELLS and not isinstance(error, (TypeError, ValueError)):
            raise
        raise failure(name, options, error) from error
    if not isinstance(cell, jaxrnn.Cell):
        raise OptionError(f"--cell {name} returns {type(cell).__name__}, expected a jaxrnn.Cell")
    return cell


def cell_parameters(name: str) -> list[str]:
    """Returns the names of the keyword arguments of the cell of this name.

    Raises:
        OptionError: If the file of a user's own cell fails, or does not define the cell.
    """
    return [] if name in BASELINES else _keywords(_constructor(name))


def _constructor(name: str) -> Callable[..., Any]:
    return CELLS[name] if name in CELLS else _own_cell(name)


def _keywords(constructor: Callable[..., Any]) -> list[str]:
    """Returns the names of the arguments after the hidden size."""
    parameters = list(inspect.signature(constructor).parameters.values())[1:]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [each.name for each in parameters if each.kind in named]


def _check_takes(name: str, constructor: Callable[..., Any], option: str) -> None:
    """Raises OptionError if the constructor of a cell has no such keyword argument."""
    parameters = inspect.signature(constructor).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return
    taken = _keywords(constructor)
    if option in taken:
        return
    if option in FLAGS:
        raise OptionError(f"--cell {name} does not take {FLAGS[option]}")
    problem = f"--cell {name} does not take --cell-options {option}"
    if not taken:
        raise OptionError(f"{problem}; it has no options")
    raise unknown(problem, option, taken)


def one_line(error: BaseException) -> str:
    """Returns the message of an error on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def failure(name: str, options: Mapping[str, Any], error: BaseException) -> OptionError:
    """Returns an error that says with which options a cell fails, and where in the user's files.

    Args:
        name: The name of the cell.
        options: Keyword arguments of the cell.
        error: The error that its constructor or one of its functions raised.
    """
    if isinstance(error, OptionError):
        return error
    own = cell_file(name)
    if own is None:
        return OptionError(f"--cell {name}: {one_line(error)}")
    files = {str(path) for path in (own[0].absolute(), *own_modules(own[0]).values())}
    where, cause = "", error
    while cause is not None:  # the library explains an error of a cell's function by another
        frames = [f for f in traceback.extract_tb(cause.__traceback__) if f.filename in files]
        if frames and "StackTrace" not in type(cause).__name__:  # which JAX adds to an error
            error, where = cause, f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
        cause = cause.__cause__
    values = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return OptionError(
        f"--cell {name}{values and f' with {values}'} fails: "
        f"{type(error).__name__}: {one_line(error)}{where}"
    )


def cell_sha256(name: str) -> str | dict[str, str] | None:
    """Returns hashes of the files of a user's own cell.

    Args:
        name: The name of the cell.

    Returns:
        None for a cell of the library; the hash of the cell's file if that imports no module of the
        user's own; else a hash for each file, by its name below the folder it is imported from.

    Raises:
        OptionError: If a file cannot be read.
    """
    own = cell_file(name)
    if own is None:
        return None
    hashes = _hashes(own[0])
    return hashes if len(hashes) > 1 else hashes[own[0].name]


def _hashes(path: Path) -> dict[str, str]:
    source = _read(path)  # first, for its error
    files = {
        module.replace(".", "/") + ("/__init__" * (file.stem == "__init__")) + file.suffix: file
        for module, file in own_modules(path).items()
    }
    return {path.name: hashlib.sha256(source).hexdigest()} | {
        name: hashlib.sha256(_read(file)).hexdigest() for name, file in files.items()
    }


def _own_cell(name: str) -> Callable[..., Any]:
    own = cell_file(name)
    if own is None:
        raise unknown(f"--cell does not take {name!r}", name, [*CELLS, "path/to/file.py:name"])
    path, attribute = own
    defined = _execute(path.absolute(), tuple(_hashes(path).items()))
    constructor = defined.get(attribute)
    if constructor is None:
        problem = f"--cell {name}: {path} does not define {attribute!r}"
        raise unknown(problem, attribute, functions(path))
    if not callable(constructor):
        raise OptionError(f"--cell {name}: {attribute} is not a function")
    return constructor


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OptionError(f"--cell: {path} cannot be read: {error.strerror}") from None


@functools.cache
def _execute(path: Path, hashes: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Returns what the file defines, cached so that its cells stay the same functions."""
    del hashes
    try:
        with importing(path.parent, own_modules(path)):
            return runpy.run_path(str(path))
    except Exception as error:
        raise OptionError(
            f"--cell: {path} fails with {type(error).__name__}: {one_line(error)}"
        ) from error
