"""Weights to and from Haiku: `hk.VanillaRNN`, `hk.LSTM`, `hk.GRU`."""

from __future__ import annotations

import jax
import numpy as np

from jaxrnn.cell import Cell
from jaxrnn.convert.common import (
    TANH,
    Arrays,
    Kind,
    Params,
    WeightReader,
    arrays_of,
    check_activation,
    copies,
    flat_names,
    gate_width,
    kind_and_options,
    make_params,
    reorder,
)

OPTIONS = ("activation", "reset_after=False")
ACTIVATIONS = {"rnn": (jax.nn.relu,), "lstm": TANH, "gru": TANH}
NAMES = {"rnn": "vanilla_rnn", "lstm": "lstm", "gru": "gru"}


def from_haiku(kind: Kind, params: Arrays) -> Params:
    """Converts the parameters of a `VanillaRNN` (whose activation is relu), `LSTM` or `GRU`.

    Args:
        kind: The kind of cell: "rnn", "lstm" or "gru".
        params: The arrays of the core alone, under Haiku's names, such as
            `{"lstm/linear": {"w": …, "b": …}}`, `{"gru": {"w_i": …, "w_h": …, "b": …}}`, or
            `{"vanilla_rnn/linear": …, "vanilla_rnn/linear_1": …}`. The core may have any name.

    Returns:
        The parameters of the jaxrnn cell. Haiku adds 1 to the forget gate of an LSTM at run time,
        so 1 is added to that bias here. In Haiku's GRU the gate z weights the new candidate instead
        of the old state, so the signs of its weights are changed.

    Raises:
        ValueError: If a name is missing or unexpected, or an array has a wrong shape or dtype. The
            message names the array.
    """
    width, arrays = gate_width(kind), flat_names(params)
    # The one array that every core of this kind has tells the core's name.
    own = "w_h" if kind == "gru" else "linear/w"
    cores = [name.removesuffix(own) for name in arrays if f"/{name}".endswith(f"/{own}")]
    if len(cores) > 1:
        raise ValueError(f"params must be those of one core, got {sorted(params)}")
    core = cores[0] if cores else f"{NAMES[kind]}/"
    read = WeightReader(arrays)
    if kind == "gru":
        recurrent, kernel = read(f"{core}w_h", "H 3H"), read(f"{core}w_i", "I 3H")
        weights = kernel, recurrent, read(f"{core}b", "3H")
        kernel, recurrent, bias = _gates(*weights, "zrn", "rzn")
    elif kind == "lstm":
        both, bias = read(f"{core}linear/w", "R 4H"), read(f"{core}linear/b", "4H")
        hidden = len(bias) // 4
        if len(both) <= hidden:
            raise ValueError(f"{core}linear/w must have more than {hidden} rows, got {len(both)}")
        both, bias = (reorder(each, "igfo", "ifgo") for each in (both, bias))
        kernel, recurrent = both[:-hidden], both[-hidden:]
        bias[hidden : 2 * hidden] += 1
    else:
        recurrent, kernel = read(f"{core}linear_1/w", "H H"), read(f"{core}linear/w", "I H")
        bias = read(f"{core}linear/b", width)
        if f"{core}linear_1/b" in read:  # double_bias
            bias = bias + read(f"{core}linear_1/b", width)
    read.done()
    return make_params(kind, kernel, recurrent, bias)


def to_haiku(
    cell: Cell, params: Params | Arrays, *, name: str | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """Converts parameters to those of a `VanillaRNN`, `LSTM` or `GRU`.

    Args:
        cell: The cell.
        params: The parameters of the cell, as a named tuple or a dict of its arrays.
        name: The name of Haiku's core, as "net/~/lstm"; None is its default, such as "lstm".

    Returns:
        The parameters of a `VanillaRNN` (with `double_bias`), `LSTM` or `GRU` by module.

    Raises:
        ValueError: If Haiku has no such cell, or the parameters do not fit the cell.
    """
    kind, options = kind_and_options(cell, "Haiku", OPTIONS)
    check_activation(f"Haiku's {kind.upper()}", options, ACTIVATIONS[kind])
    arrays, name = arrays_of(kind, options, params), NAMES[kind] if name is None else name
    kernel, recurrent, bias = (arrays[each] for each in ("kernel", "recurrent_kernel", "bias"))
    if kind == "gru":
        kernel, recurrent, bias = _gates(kernel, recurrent, bias, "rzn", "zrn")
        written = {name: {"w_i": kernel, "w_h": recurrent, "b": bias}}
    elif kind == "lstm":
        both = np.concatenate([kernel, recurrent])
        both, bias = (reorder(each, "ifgo", "igfo") for each in (both, bias))
        hidden = options["hidden_size"]
        bias[2 * hidden : 3 * hidden] -= 1
        written = {f"{name}/linear": {"w": both, "b": bias}}
    else:
        written = {
            f"{name}/linear": {"w": kernel, "b": bias},
            f"{name}/linear_1": {"w": recurrent, "b": np.zeros_like(bias)},
        }
    return {module: copies(leaves) for module, leaves in written.items()}


def _gates(
    kernel: np.ndarray, recurrent: np.ndarray, bias: np.ndarray, source: str, target: str
) -> list[np.ndarray]:
    """A GRU's weights in another order of the gates, with the sign of z changed."""
    signs = np.repeat([-1 if gate == "z" else 1 for gate in target], bias.shape[-1] // 3)
    return [
        reorder(each, source, target) * signs.astype(each.dtype)
        for each in (kernel, recurrent, bias)
    ]
