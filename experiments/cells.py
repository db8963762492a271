"""The cells that the experiments' options name: those of the library, and a user's own."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import math
import runpy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from errors import OptionError
from jax.nn.initializers import glorot_uniform, orthogonal

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
    # As the paper starts it on long sequences whose neighbours are alike.
    "lru-long": partial(jaxrnn.lru, radius=(0.99, 0.9999), max_phase=math.pi / 10),
}
INITIALIZERS = {
    "glorot": glorot_uniform(),
    "orthogonal": orthogonal(),
    "identity": jaxrnn.identity(),
}


# The arguments of a cell that have a flag of their own.
FLAGS = ("forget_bias", "chrono", "recurrent_kernel_init")


def make_cell(name: str, hidden_size: int, **options: Any) -> jaxrnn.Cell:
    """The cell of this name; options that are None are left at the cell's default.

    Args:
        name: One of `CELLS`, or "path/to/file.py:name": a function of the hidden size and keyword
            options that returns a `jaxrnn.Cell`.
        hidden_size: Units of the cell.
        **options: The cell's options.

    Raises:
        OptionError: If there is no such cell, or it has no such option or value.
    """
    constructor: Callable[..., Any] = CELLS[name] if name in CELLS else _own_cell(name)
    options = {key: value for key, value in options.items() if value is not None}
    refused = [key for key in options if not _takes(constructor, key)]
    if refused:
        flags = [flag(key) if key in FLAGS else f"--cell-options {key}" for key in refused]
        raise OptionError(f"--cell {name} does not take {', '.join(flags)}")
    try:
        cell = constructor(hidden_size, **options)
    except (TypeError, ValueError) as error:
        raise OptionError(f"--cell {name}: {one_line(error)}") from error
    if not isinstance(cell, jaxrnn.Cell):
        raise OptionError(f"--cell {name} returns {type(cell).__name__}, expected a jaxrnn.Cell")
    return cell


def flag(option: str) -> str:
    """The command-line flag of an option, or of a cell's argument."""
    option = {"recurrent_kernel_init": "recurrent_init"}.get(option, option)
    return f"--{option.replace('_', '-')}"


def one_line(error: BaseException) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _takes(constructor: Callable[..., Any], option: str) -> bool:
    parameters = inspect.signature(constructor).parameters
    keyword = parameters.get(option)
    return (keyword is not None and keyword.kind is not keyword.POSITIONAL_ONLY) or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def parse_cell_options(words: Sequence[str]) -> dict[str, Any]:
    """Options of a cell from key=value, the values being Python literals.

    Raises:
        OptionError: If a word is not of that form, or names an option that another word names.
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
                f"--cell-options {word}: {value} is not a Python literal; text needs quotes"
            ) from None
    return options


def cell_file(name: str) -> tuple[Path, str] | None:
    """The file and the name of a cell of one's own, or None if `name` is not of that form."""
    path, colon, attribute = name.rpartition(":")
    return (Path(path), attribute) if colon and path.endswith(".py") else None


def cell_sha256(name: str) -> str | None:
    """A hash of the file of a cell of one's own; None for a cell of the library.

    Raises:
        OptionError: If the file cannot be read.
    """
    own = cell_file(name)
    return own and hashlib.sha256(_read(own[0])).hexdigest()


def _own_cell(name: str) -> Callable[..., Any]:
    own = cell_file(name)
    if own is None:
        raise OptionError(
            f"--cell {name} is neither path/to/file.py:name nor one of {', '.join(CELLS)}"
        )
    path, attribute = own
    constructor = _execute(path, _read(path)).get(attribute)
    if not callable(constructor):
        kind = "no" if constructor is None else "something else than a function for"
        raise OptionError(f"--cell {name}: {path} defines {kind} {attribute or 'name'}")
    return constructor


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OptionError(f"--cell: {path} cannot be read: {error.strerror}") from None


@functools.cache
def _execute(path: Path, source: bytes) -> dict[str, Any]:
    """What the file defines; once for each content, so that its cells stay the same functions."""
    del source
    try:
        return runpy.run_path(str(path))
    except Exception as error:
        raise OptionError(
            f"--cell: {path} fails with {type(error).__name__}: {one_line(error)}"
        ) from error
