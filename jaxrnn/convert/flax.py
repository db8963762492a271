"""Conversion of weights to and from Flax Linen and Flax NNX.

The cells are `SimpleCell`, `LSTMCell`, `OptimizedLSTMCell` and `GRUCell`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxrnn.cell import Cell
from jaxrnn.convert.common import (
    WIDTHS,
    Arrays,
    Kind,
    Params,
    WeightReader,
    copies,
    flat_names,
    gate_width,
    make_params,
    weights_of,
)

OPTIONS = ("activation", "reset_after=True")
# Pairs of dense layers, one for the input and one for the hidden state. There is one pair per gate,
# or one pair for all gates.
Layers = dict[Kind, list[tuple[str, str]]]
LINEN: Layers = {
    "rnn": [("i", "h")],
    "lstm": [("ii", "hi"), ("if", "hf"), ("ig", "hg"), ("io", "ho")],
    "gru": [("ir", "hr"), ("iz", "hz"), ("in", "hn")],
}
NNX: Layers = {kind: [("dense_i", "dense_h")] for kind in WIDTHS}
NNX_BY_GATE = {**NNX, "lstm": [("ii", "hi"), ("if_", "hf"), ("ig", "hg"), ("io", "ho")]}


def from_linen(kind: Kind, params: Mapping[str, Arrays]) -> Params:
    """Converts the parameters of a cell of `flax.linen`.

    Args:
        kind: The kind of cell: "rnn" for `SimpleCell`, "lstm" for `LSTMCell` and
            `OptimizedLSTMCell`, "gru" for `GRUCell`.
        params: The arrays by dense layer and name, `{"hi": {"kernel": …, "bias": …}, …}`, as in
            the `params` of the cell.

    Returns:
        The parameters of the jaxrnn cell: `RNNParams`, `LSTMParams` or `GRUParams`. For the
        variables of `jaxrnn.linen.RNN`, convert them by `jaxrnn.linen.as_dict`.

    Raises:
        ValueError: If a name is missing or unexpected, or an array has a wrong shape or dtype. The
            message names the array.

    Examples:
        >>> import flax.linen as nn
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxrnn import convert
        >>> flax_layer = nn.RNN(nn.OptimizedLSTMCell(64))
        >>> variables = flax_layer.init(jax.random.key(0), jnp.ones((8, 20, 28)))
        >>> params = convert.from_linen("lstm", variables["params"]["cell"])
        >>> params.kernel.shape, params.recurrent_kernel.shape
        ((28, 256), (64, 256))
    """
    return _from_layers(kind, flat_names(params), LINEN)


def to_linen(cell: Cell, params: Params | Arrays) -> dict[str, dict[str, np.ndarray]]:
    """Converts parameters to those of a cell of `flax.linen`.

    The table in `jaxrnn.convert` lists the options to pass to Flax's cell.

    Args:
        cell: The cell.
        params: The parameters of the cell, as a named tuple or a dict of its arrays.

    Returns:
        The arrays by dense layer and name, as in `from_linen`.

    Raises:
        ValueError: If Linen has no such cell, or the parameters do not fit the cell.
    """
    kind, arrays = weights_of(cell, params, "flax.linen", OPTIONS)
    return _to_layers(kind, arrays, LINEN)


def from_nnx(kind: Kind, params: Mapping[str, Arrays]) -> Params:
    """Converts the parameters of a cell of `flax.nnx`.

    Args:
        kind: The kind of cell: "rnn" for `SimpleCell`, "lstm" for `LSTMCell` and
            `OptimizedLSTMCell`, "gru" for `GRUCell`.
        params: The arrays by dense layer and name, as returned by
            `nnx.to_pure_dict(nnx.state(cell, nnx.Param))`.

    Returns:
        The parameters of the jaxrnn cell. The recurrent bias of a GRU, which NNX does not have, is
        zero.

    Raises:
        ValueError: If a name is missing or unexpected, or an array has a wrong shape or dtype. The
            message names the array.
    """
    flat = flat_names(params)
    together = any(name.startswith("dense_") for name in flat)
    return _from_layers(kind, flat, NNX if together else NNX_BY_GATE)


def to_nnx(
    cell: Cell, params: Params | Arrays, *, optimized: bool = True
) -> dict[str, dict[str, np.ndarray]]:
    """Converts parameters to those of a cell of `flax.nnx`.

    The table in `jaxrnn.convert` lists the options to pass to Flax's cell.

    Args:
        cell: The cell.
        params: The parameters of the cell, as a named tuple or a dict of its arrays.
        optimized: Whether the parameters of an LSTM are for `OptimizedLSTMCell` rather than for
            `LSTMCell`.

    Returns:
        The arrays by dense layer and name, as in `from_nnx`.

    Raises:
        ValueError: If NNX has no such cell, the parameters do not fit the cell, or the recurrent
            bias of a GRU is not zero.
    """
    kind, arrays = weights_of(cell, params, "flax.nnx", OPTIONS)
    if np.any(arrays.get("recurrent_bias", 0)):
        raise ValueError("params.recurrent_bias must be zero for flax.nnx, whose GRU has none")
    return _to_layers(kind, arrays, NNX if optimized else NNX_BY_GATE)


def _bias_layer(kind: Kind, pair: tuple[str, str]) -> str:
    """Returns the layer of a pair that has a bias: the second in an LSTM, otherwise the first."""
    return pair[1 if kind == "lstm" else 0]


def _from_layers(kind: Kind, flat: Arrays, library: Layers) -> Params:
    """Converts the arrays of Flax's dense layers to parameters."""
    read, width, pairs = WeightReader(flat), gate_width(kind), library[kind]
    by_gate = len(pairs) > 1
    each = "H" if by_gate else width
    recurrent = [read(f"{h}/kernel", f"H {each}") for _, h in pairs]
    kernel = [read(f"{i}/kernel", f"I {each}") for i, _ in pairs]
    bias = [read(f"{_bias_layer(kind, pair)}/bias", each) for pair in pairs]
    optional = {}
    if kind == "gru":
        zeros = np.zeros(read.sizes["H"], bias[0].dtype)
        optional["recurrent_bias"] = read("hn/bias", "H") if by_gate else zeros
    read.done()
    joined = (np.concatenate(parts, axis=-1) for parts in (kernel, recurrent, bias))
    return make_params(kind, *joined, **optional)


def _to_layers(
    kind: Kind, arrays: dict[str, np.ndarray], library: Layers
) -> dict[str, dict[str, np.ndarray]]:
    """Converts parameters to the arrays of Flax's dense layers."""
    layers, pairs = {}, library[kind]
    names = ["kernel", "recurrent_kernel", "bias"]
    parts = (np.split(arrays[name], len(pairs), axis=-1) for name in names)
    for (i, h), kernel, recurrent, bias in zip(pairs, *parts, strict=True):
        layers |= {i: {"kernel": kernel}, h: {"kernel": recurrent}}
        layers[_bias_layer(kind, (i, h))]["bias"] = bias
    if kind == "gru" and len(pairs) > 1:
        layers["hn"]["bias"] = arrays["recurrent_bias"]
    return {name: copies(layer) for name, layer in layers.items()}
