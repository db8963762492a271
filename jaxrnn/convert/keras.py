"""Weights to and from Keras 3: `SimpleRNN`, `LSTM`, `GRU`."""

from __future__ import annotations

import numpy as np

from jaxrnn.cell import Cell
from jaxrnn.convert.common import (
    Arrays,
    Kind,
    Params,
    WeightReader,
    copies,
    gate_width,
    join_gru_bias,
    make_params,
    reorder,
    split_bias,
    weights_of,
)

OPTIONS = ("activation", "reset_after=True", "reset_after=False")


def from_keras(kind: Kind, weights: Arrays) -> Params:
    """Converts the weights of a `SimpleRNN`, `LSTM` or `GRU` (with either `reset_after`).

    Args:
        kind: The cell.
        weights: `kernel`, `recurrent_kernel` and `bias`, the order of the layer's `get_weights()`.
            For a layer without bias pass zeros, [G·H], or [2, 3H] if its GRU has
            `reset_after=True`, which its other weights do not show.

    Returns:
        The parameters.

    Raises:
        ValueError: If a name is missing or unexpected, or a shape is wrong; names it.
    """
    read, width = WeightReader(weights), gate_width(kind)
    recurrent = read("recurrent_kernel", f"H {width}")
    kernel = read("kernel", f"I {width}")
    reset_after = kind == "gru" and "bias" in read and np.ndim(weights["bias"]) == 2
    bias = read("bias", f"2 {width}" if reset_after else width)
    read.done()
    optional = {}
    if kind == "gru":
        kernel, recurrent, bias = (
            reorder(each, "zrn", "rzn") for each in (kernel, recurrent, bias)
        )
    if reset_after:
        bias, optional["recurrent_bias"] = join_gru_bias(bias)
    return make_params(kind, kernel, recurrent, bias, **optional)


def to_keras(cell: Cell, params: Params | Arrays) -> dict[str, np.ndarray]:
    """The reverse of `from_keras`; the table in `jaxrnn.convert` lists the options to set in Keras.

    Args:
        cell: The cell.
        params: Its parameters: the named tuple, or a dict of its arrays.

    Returns:
        The weights of a `SimpleRNN`, `LSTM` or `GRU`, in the order that `set_weights` takes.

    Raises:
        ValueError: If Keras cannot compute this cell, or the parameters do not fit it; names what
            is wrong.
    """
    kind, arrays = weights_of(cell, params, "Keras", OPTIONS)
    if "recurrent_bias" in arrays:
        arrays["bias"] = split_bias(arrays)
    weights = {name: arrays[name] for name in ("kernel", "recurrent_kernel", "bias")}
    if kind == "gru":
        weights = {name: reorder(array, "rzn", "zrn") for name, array in weights.items()}
    return copies(weights)
