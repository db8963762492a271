"""Conversion of weights to and from PyTorch's `nn.RNN`, `nn.LSTM` and `nn.GRU`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

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
    gate_width,
    join_gru_bias,
    kind_and_options,
    make_params,
    split_bias,
)

OPTIONS = ("activation", "projection_size", "reset_after=True")
ACTIVATIONS = {"rnn": (*TANH, jax.nn.relu), "lstm": TANH}


def from_torch(kind: Kind, state_dict: Arrays) -> tuple[tuple[Params, ...], ...]:
    """Converts the state dict of an `nn.RNN`, `nn.LSTM` or `nn.GRU`.

    Args:
        kind: The kind of cell: "rnn", "lstm" or "gru".
        state_dict: The arrays by name: `weight_ih_l0` `[G·H, I]`, `weight_hh_l0` `[G·H, P]`,
            optionally `bias_ih_l0` and `bias_hh_l0` `[G·H]`, and with a projection `weight_hr_l0`
            `[P, H]`. The names of the backward direction end in `_reverse`, and those of the other
            layers contain `l1`, `l2` and so on.

    Returns:
        One tuple per layer with the parameters of the forward direction and, if the layer is
        bidirectional, of the backward direction.

    Raises:
        ValueError: If a name is missing or unexpected, or an array has a wrong shape or dtype. The
            message names the array.

    Examples:
        With PyTorch, the arrays are those of `torch.nn.LSTM(3, 4).state_dict()`, each converted by
        `tensor.numpy()`. Here they are made by NumPy:

        >>> import numpy as np
        >>> from jaxrnn import convert
        >>> state_dict = {
        ...     "weight_ih_l0": np.ones((16, 3), np.float32),
        ...     "weight_hh_l0": np.ones((16, 4), np.float32),
        ...     "bias_ih_l0": np.ones(16, np.float32),
        ...     "bias_hh_l0": np.ones(16, np.float32),
        ... }
        >>> ((params,),) = convert.from_torch("lstm", state_dict)
        >>> params.kernel.shape, params.recurrent_kernel.shape
        ((3, 16), (4, 16))
    """
    read, layers = WeightReader(state_dict), []
    known = re.compile(r"(?:weight|bias)_(?:ih|hh|hr)_l(\d+)(_reverse)?")
    # One array of a layer or direction implies all other arrays of this layer or direction.
    found = [match for name in state_dict if (match := known.fullmatch(name))]
    depth = 1 + max((int(match[1]) for match in found), default=0)
    directions = ["", "_reverse"] if any(match[2] for match in found) else [""]
    for number in range(depth):
        suffixes = [f"_l{number}{direction}" for direction in directions]
        layers.append(tuple(_read_layer(kind, read, suffix) for suffix in suffixes))
        read.sizes["I"] = len(directions) * read.sizes["P"]
    read.done()
    return tuple(layers)


def _read_layer(kind: Kind, read: WeightReader, suffix: str) -> Params:
    """Returns the parameters of one layer and direction."""
    width = gate_width(kind)
    kernel = read(f"weight_ih{suffix}", f"{width} I")
    recurrent = read(f"weight_hh{suffix}", f"{width} P")
    optional = {}
    # PyTorch requires P < H for a projection, so P < H implies that there is one.
    projected = f"weight_hr{suffix}" in read or read.sizes["P"] < read.sizes["H"]
    if kind == "lstm" and projected:
        optional["projection"] = read(f"weight_hr{suffix}", "P H").T
    else:
        read(f"weight_hh{suffix}", f"{width} H")
    biases = np.zeros((2, len(kernel)), kernel.dtype)
    if any(name.startswith("bias_") for name in read.arrays):
        biases = np.stack([read(f"bias_{each}{suffix}", width) for each in ("ih", "hh")])
    if kind == "gru":
        bias, optional["recurrent_bias"] = join_gru_bias(biases)
    else:
        bias = biases.sum(0)
    return make_params(kind, kernel.T, recurrent.T, bias, **optional)


def to_torch(
    cell: Cell, params: Params | Arrays | Sequence[Sequence[Params | Arrays]]
) -> dict[str, np.ndarray]:
    """Converts parameters to the state dict of an `nn.RNN`, `nn.LSTM` or `nn.GRU`.

    The table in `jaxrnn.convert` lists the options to pass to PyTorch's module. `bias_ih` receives
    the whole bias, and `bias_hh` is zero except for the `recurrent_bias` of a GRU. For
    `load_state_dict`, convert the arrays to tensors with `torch.from_numpy`.

    Args:
        cell: The cell of all layers.
        params: The parameters of a single layer, as a named tuple or a dict of its arrays. For
            several layers or directions, one sequence per layer with the parameters of its
            directions, as returned by `from_torch`.

    Returns:
        The arrays by name, as in `from_torch`.

    Raises:
        ValueError: If PyTorch has no such cell, or the parameters do not fit the cell or each
            other.
    """
    kind, options = kind_and_options(cell, "PyTorch", OPTIONS)
    _check_options(kind, options)
    layers: Any = params if _is_sequence(params) else [[params]]
    counts = [len(each) if _is_sequence(each) else type(each).__name__ for each in layers]
    if set(counts) not in ({1}, {2}):
        raise ValueError(
            f"params must have one direction per layer or two directions per layer, got {counts}"
        )
    state_dict = {}
    for number, directions in enumerate(layers):
        for each, direction in zip(directions, ("", "_reverse"), strict=False):
            place = f"params[{number}][{int(bool(direction))}]" if layers is params else "params"
            arrays = arrays_of(kind, options, each, place)
            suffix, biases = f"_l{number}{direction}", split_bias(arrays)
            state_dict |= {
                f"weight_ih{suffix}": arrays["kernel"].T,
                f"weight_hh{suffix}": arrays["recurrent_kernel"].T,
                f"bias_ih{suffix}": biases[0],
                f"bias_hh{suffix}": biases[1],
            }
            if "projection" in arrays:
                state_dict[f"weight_hr{suffix}"] = arrays["projection"].T
    from_torch(kind, state_dict)  # raises ValueError if the layers do not fit each other
    return copies(state_dict)


def _check_options(kind: Kind, options: dict[str, Any]) -> None:
    """Raises ValueError for option values that PyTorch does not have."""
    name = f"PyTorch's {kind.upper()}"
    check_activation(name, options, ACTIVATIONS.get(kind, ()))
    projected, hidden = options.get("projection_size", 0), options["hidden_size"]
    if projected >= hidden:
        raise ValueError(
            f"{name} needs projection_size < hidden_size, got {projected} and {hidden}"
        )


def _is_sequence(params: Any) -> bool:
    """Whether `params` are layers or directions rather than parameters, which are a named tuple."""
    return isinstance(params, Sequence) and not hasattr(params, "_fields")
