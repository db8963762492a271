"""Weights to and from PyTorch: `nn.RNN`, `nn.LSTM`, `nn.GRU`."""

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
        kind: The cell.
        state_dict: `weight_ih_l0`, `weight_hh_l0`, optionally `bias_ih_l0` and `bias_hh_l0`, and
            `weight_hr_l0`, the same names with `_reverse`, and those of the other layers.

    Returns:
        For each layer its parameters: those of the forward direction, then those of the backward
        direction if there is one.

    Raises:
        ValueError: If a name is missing or unexpected, or a shape is wrong; names it.
    """
    read, layers = WeightReader(state_dict), []
    known = re.compile(r"(?:weight|bias)_(?:ih|hh|hr)_l(\d+)(_reverse)?")
    # One array of a layer or direction is enough to expect all of that layer or direction.
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
    """The parameters of one layer and direction."""
    width = gate_width(kind)
    kernel = read(f"weight_ih{suffix}", f"{width} I")
    recurrent = read(f"weight_hh{suffix}", f"{width} P")
    optional = {}
    # PyTorch requires P < H of a projection, so fewer outputs than units imply one.
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
    """The reverse of `from_torch`; the table in `jaxrnn.convert` lists the options to set.

    The whole bias goes into `bias_ih`, except for a GRU's `recurrent_bias`. `torch.from_numpy`
    makes tensors of the arrays for `load_state_dict`.

    Args:
        cell: The cell of all layers.
        params: The parameters of one layer, as the named tuple or a dict of its arrays; or for each
            layer those of its directions, as `from_torch` returns them.

    Returns:
        The state dict of an `nn.RNN`, `nn.LSTM` or `nn.GRU`.

    Raises:
        ValueError: If PyTorch cannot compute this cell, or the parameters do not fit it or each
            other; names what is wrong.
    """
    kind, options = kind_and_options(cell, "PyTorch", OPTIONS)
    _check_options(kind, options)
    layers: Any = params if _is_sequence(params) else [[params]]
    counts = [len(each) if _is_sequence(each) else type(each).__name__ for each in layers]
    if set(counts) not in ({1}, {2}):
        raise ValueError(f"params must have one direction a layer, or two each, got {counts}")
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
    from_torch(kind, state_dict)  # raises if the layers do not fit each other
    return copies(state_dict)


def _check_options(kind: Kind, options: dict[str, Any]) -> None:
    """Raises ValueError for values of the options that PyTorch cannot compute."""
    name = f"PyTorch's {kind.upper()}"
    check_activation(name, options, ACTIVATIONS.get(kind, ()))
    projected, hidden = options.get("projection_size", 0), options["hidden_size"]
    if projected >= hidden:
        raise ValueError(
            f"{name} has no projection_size that is not below hidden_size, "
            f"got {projected} and {hidden}"
        )


def _is_sequence(params: Any) -> bool:
    """Whether these are layers or directions rather than parameters, which are a named tuple."""
    return isinstance(params, Sequence) and not hasattr(params, "_fields")
