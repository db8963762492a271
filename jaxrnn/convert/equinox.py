"""Weights to and from Equinox: `eqx.nn.LSTMCell`, `eqx.nn.GRUCell`."""

from __future__ import annotations

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
    check_named,
    copies,
    gate_width,
    kind_and_options,
    make_params,
)

OPTIONS = ("activation", "reset_after=True")


def from_equinox(kind: Kind, weights: Arrays) -> Params:
    """Converts the weights of an `LSTMCell` or `GRUCell`.

    Args:
        kind: The kind of cell: "lstm" or "gru". Equinox has no simple RNN.
        weights: The arrays by name: `weight_ih`, `weight_hh`, `bias` and, for a GRU, `bias_n`. With
            `use_bias=False` the biases are None.

    Returns:
        The parameters of the jaxrnn cell.

    Raises:
        ValueError: If a name is missing or unexpected, or an array has a wrong shape or dtype. The
            message names the array.
    """
    width = gate_width(kind)
    check_named(weights)
    if kind == "rnn":
        raise ValueError("Equinox has no rnn")
    read = WeightReader(weights)
    kernel, recurrent = read("weight_ih", f"{width} I"), read("weight_hh", f"{width} H")
    biases = {"bias": (width, len(kernel))}
    if kind == "gru":
        biases["bias_n"] = ("H", recurrent.shape[1])
    found = {}
    for name, (shape, size) in biases.items():
        if weights.get(name, ()) is None:  # without use_bias
            read.names_read.add(name)
            found[name] = np.zeros(size, kernel.dtype)
        else:
            found[name] = read(name, shape)
    read.done()
    optional = {"recurrent_bias": found["bias_n"]} if kind == "gru" else {}
    return make_params(kind, kernel.T, recurrent.T, found["bias"], **optional)


def to_equinox(cell: Cell, params: Params | Arrays) -> dict[str, np.ndarray]:
    """Converts parameters to the weights of an `LSTMCell` or `GRUCell`.

    Args:
        cell: The cell.
        params: The parameters of the cell, as a named tuple or a dict of its arrays.

    Returns:
        The weights of an `LSTMCell` or `GRUCell` with `use_bias`, by name.

    Raises:
        ValueError: If Equinox has no such cell, or the parameters do not fit the cell.

    Examples:
        `equinox.tree_at` puts the weights into a cell of Equinox:

        >>> import jax, jaxrnn
        >>> from jaxrnn import convert
        >>> cell = jaxrnn.lstm(4)
        >>> weights = convert.to_equinox(cell, cell.init(jax.random.key(0), 3))
        >>> sorted(weights)
        ['bias', 'weight_hh', 'weight_ih']
        >>> theirs = eqx.nn.LSTMCell(3, 4, key=jax.random.key(0))  # doctest: +SKIP
        >>> where = lambda each: [getattr(each, name) for name in weights]  # doctest: +SKIP
        >>> theirs = eqx.tree_at(where, theirs, [*weights.values()])  # doctest: +SKIP
    """
    kind, options = kind_and_options(cell, "Equinox", OPTIONS)
    if kind == "rnn":
        raise ValueError("Equinox has no rnn")
    check_activation(f"Equinox's {kind.upper()}", options, TANH)
    arrays = arrays_of(kind, options, params)
    weights = {
        "weight_ih": arrays["kernel"].T,
        "weight_hh": arrays["recurrent_kernel"].T,
        "bias": arrays["bias"],
    }
    if kind == "gru":
        weights["bias_n"] = arrays["recurrent_bias"]
    return copies(weights)
