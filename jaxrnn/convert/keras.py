"""Conversion of weights to and from the `SimpleRNN`, `LSTM` and `GRU` of Keras 3."""

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
    """Converts the weights of a `SimpleRNN`, `LSTM` or `GRU` with either `reset_after`.

    Args:
        kind: The kind of cell: "rnn", "lstm" or "gru".
        weights: The arrays by name: `kernel`, `recurrent_kernel` and `bias`, which is also the
            order of the layer's `get_weights()`. For a layer without bias pass zeros: `[G·H]`, or
            `[2, 3H]` for a GRU with `reset_after=True`, because the kernels do not determine
            `reset_after`.

    Returns:
        The parameters of the jaxrnn cell, for a GRU with the same `reset_after`.

    Raises:
        ValueError: If a name is missing or unexpected, or an array has a wrong shape or dtype. The
            message names the array.
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
    """Converts parameters to the weights of a `SimpleRNN`, `LSTM` or `GRU`.

    The table in `jaxrnn.convert` lists the options to pass to the layer of Keras.

    Args:
        cell: The cell.
        params: The parameters of the cell, as a named tuple or a dict of its arrays.

    Returns:
        The arrays by name, in the order of the layer's `set_weights`.

    Raises:
        ValueError: If Keras has no such cell, or the parameters do not fit the cell.
    """
    kind, arrays = weights_of(cell, params, "Keras", OPTIONS)
    if "recurrent_bias" in arrays:
        arrays["bias"] = split_bias(arrays)
    weights = {name: arrays[name] for name in ("kernel", "recurrent_kernel", "bias")}
    if kind == "gru":
        weights = {name: reorder(array, "rzn", "zrn") for name, array in weights.items()}
    return copies(weights)
