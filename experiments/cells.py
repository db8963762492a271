"""The cells that --cell names: those of the library, and a user's own."""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from errors import OptionError, unknown
from jax.nn.initializers import glorot_uniform, orthogonal
from options import cell_file

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
    constructor: Callable[..., Any] = CELLS[name] if name in CELLS else _own_cell(name)
    options = {key: value for key, value in options.items() if value is not None}
    for key in options:
        _check_takes(name, constructor, key)
    try:
        cell = constructor(hidden_size, **options)
    except (TypeError, ValueError) as error:
        raise OptionError(f"--cell {name}: {one_line(error)}") from error
    if not isinstance(cell, jaxrnn.Cell):
        raise OptionError(f"--cell {name} returns {type(cell).__name__}, expected a jaxrnn.Cell")
    return cell


def _check_takes(name: str, constructor: Callable[..., Any], option: str) -> None:
    """Raises OptionError if the constructor of a cell has no such keyword argument."""
    parameters = list(inspect.signature(constructor).parameters.values())[1:]
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return
    taken = [each.name for each in parameters if each.kind is not each.POSITIONAL_ONLY]
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


def cell_sha256(name: str) -> str | None:
    """Returns a hash of the file of a user's own cell, and None for a cell of the library.

    Raises:
        OptionError: If the file cannot be read.
    """
    own = cell_file(name)
    return own and hashlib.sha256(_read(own[0])).hexdigest()


def _own_cell(name: str) -> Callable[..., Any]:
    own = cell_file(name)
    if own is None:
        raise unknown(f"--cell does not take {name!r}", name, [*CELLS, "path/to/file.py:name"])
    path, attribute = own
    defined = _execute(path, _read(path))
    constructor = defined.get(attribute)
    if constructor is None:
        names = [key for key, value in defined.items() if callable(value) and key[0] != "_"]
        raise unknown(f"--cell {name}: {path} does not define {attribute!r}", attribute, names)
    if not callable(constructor):
        raise OptionError(f"--cell {name}: {attribute} is not a function")
    return constructor


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OptionError(f"--cell: {path} cannot be read: {error.strerror}") from None


@functools.cache
def _execute(path: Path, source: bytes) -> dict[str, Any]:
    """Returns what the file defines, cached so that its cells stay the same functions."""
    del source
    try:
        return runpy.run_path(str(path))
    except Exception as error:
        raise OptionError(
            f"--cell: {path} fails with {type(error).__name__}: {one_line(error)}"
        ) from error
