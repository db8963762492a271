"""Weights to and from TensorFlow 1, PyTorch, Keras 3, Flax Linen and Flax NNX.

Pure functions of arrays: none of these libraries is imported. Each `from_…` takes the kind of cell,
"rnn", "lstm" or "gru", and the arrays under the library's own names, and gives the parameters of
`jaxrnn.rnn`, `jaxrnn.lstm` or `jaxrnn.gru`; each `to_…` does the reverse. They differ in this:

    TF1         one kernel [I+H, ·] for both products; gates i, j, f, o, the forget bias added at
                run time; the GRU resets before its product, gates r, u
    PyTorch     output-first kernels, two biases; gates i, f, g, o and r, z, n
    Keras 3     gates i, f, c, o and z, r, h; the GRU of either kind
    Linen, NNX  a dense layer a gate, or one for all

Shapes: I input features, H hidden units, P the size of an LSTM's output, G gates, R = I + P.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase, digits
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrnn.cells import GRUParams, RNNParams
from jaxrnn.lstm import LSTMParams

Kind = str  # "rnn", "lstm" or "gru"
Params = RNNParams | LSTMParams | GRUParams
Arrays = Mapping[str, Any]
# The size of a cell's gates side by side, in our order i, f, g, o or r, z, n.
WIDTHS = {"rnn": "H", "lstm": "4H", "gru": "3H"}


def from_tf1(kind: Kind, variables: Arrays, *, forget_bias: float = 1.0) -> Params:
    """From `BasicRNNCell`, `BasicLSTMCell`, `LSTMCell` or `GRUCell`.

    Args:
        kind: The cell.
        variables: By their names within the cell's scope: `kernel`, `bias`, for an `LSTMCell`
            maybe `w_i_diag`, `w_f_diag`, `w_o_diag` and `projection/kernel`; or `gates/kernel`,
            `gates/bias`, `candidate/kernel`, `candidate/bias`.
        forget_bias: What the cell adds at run time; becomes part of the forget gate's bias. That
            sum is rounded, so this bias comes back from `to_tf1` within a rounding, the rest as
            it was.

    Returns:
        The parameters; for a GRU those of `jaxrnn.gru(H, reset_after=False)`.

    Raises:
        ValueError: If a name is missing or too many, or a shape is wrong; names it.
    """
    take, width = _Taker(variables), _width(kind)
    peephole = projection = None
    if kind == "gru":
        name = "gates/kernel"
        both = np.concatenate([take(name, "R 2H"), take("candidate/kernel", "R H")], axis=-1)
        bias = np.concatenate([take("gates/bias", "2H"), take("candidate/bias", "H")])
    else:
        name = "kernel"
        both, bias = take(name, f"R {width}"), take("bias", width)
    if kind == "lstm":
        both, bias = (_reorder(each, "igfo", "ifgo") for each in (both, bias))
        bias = bias + _on_forget_gate(forget_bias, bias)
        diagonals = [f"w_{gate}_diag" for gate in "ifo"]
        if any(each in take for each in diagonals):
            peephole = np.stack([take(each, "H") for each in diagonals])
        if "projection/kernel" in take:
            projection = take("projection/kernel", "H P")
    take.done()
    output = take.sizes["H"] if projection is None else take.sizes["P"]
    if len(both) <= output:
        raise ValueError(f"{name} must have more than {output} rows, got {len(both)}")
    arrays = _arrays(both[:-output], both[-output:], bias)
    if kind == "lstm":
        return LSTMParams(*arrays, *_arrays(peephole, projection))
    return (RNNParams if kind == "rnn" else GRUParams)(*arrays)


def to_tf1(params: Params, *, forget_bias: float = 1.0) -> dict[str, np.ndarray]:
    """The reverse of `from_tf1`; the cell must be built with the same `forget_bias`.

    The forget gate's bias less `forget_bias` is rounded; everything else is exact.

    Raises:
        ValueError: If TF1 has no cell with such parameters; names what is wrong.
    """
    kind = _check(params, "TF1", reset_after=False, peephole="3 H", projection="H P")
    both = np.concatenate([params.kernel, params.recurrent_kernel])
    bias = np.asarray(params.bias)
    if kind == "rnn":
        return {"kernel": both, "bias": bias}
    if kind == "gru":
        hidden = len(bias) // 3
        gates, candidate = np.split(both, [2 * hidden], axis=-1)
        return {
            "gates/kernel": gates,
            "gates/bias": bias[: 2 * hidden],
            "candidate/kernel": candidate,
            "candidate/bias": bias[2 * hidden :],
        }
    variables = {
        "kernel": _reorder(both, "ifgo", "igfo"),
        "bias": _reorder(bias - _on_forget_gate(forget_bias, bias), "ifgo", "igfo"),
    }
    if params.peephole is not None:
        rows = zip("ifo", np.asarray(params.peephole), strict=True)
        variables |= {f"w_{gate}_diag": row for gate, row in rows}
    if params.projection is not None:
        variables["projection/kernel"] = np.asarray(params.projection)
    return variables


def from_torch(kind: Kind, state_dict: Arrays) -> tuple[tuple[Params, ...], ...]:
    """From the state dict of `nn.RNN`, `nn.LSTM` or `nn.GRU`.

    Args:
        kind: The cell.
        state_dict: `weight_ih_l0`, `weight_hh_l0`, maybe `bias_ih_l0` and `bias_hh_l0`, maybe
            `weight_hr_l0`, the same with `_reverse`, and those of the other layers.

    Returns:
        For each layer its parameters, forward first, then backward if there are any.

    Raises:
        ValueError: If a name is missing or too many, or a shape is wrong; names it.
    """
    take, layers = _Taker(state_dict), []
    known = re.compile(r"(?:weight|bias)_(?:ih|hh|hr)_l(\d+)(_reverse)?")
    # Any array of a layer or a direction calls for all of its arrays.
    found = [match for name in state_dict if (match := known.fullmatch(name))]
    depth = 1 + max((int(match[1]) for match in found), default=0)
    directions = ["", "_reverse"] if any(match[2] for match in found) else [""]
    for number in range(depth):
        suffixes = [f"_l{number}{direction}" for direction in directions]
        layers.append(tuple(_from_torch_layer(kind, take, suffix) for suffix in suffixes))
        take.sizes["I"] = len(directions) * take.sizes["P"]
    take.done()
    return tuple(layers)


def _from_torch_layer(kind, take, suffix):
    width = _width(kind)
    kernel = take(f"weight_ih{suffix}", f"{width} I")
    recurrent = take(f"weight_hh{suffix}", f"{width} P")
    projection = None
    # Torch projects only to fewer numbers.
    projected = f"weight_hr{suffix}" in take or take.sizes["P"] < take.sizes["H"]
    if kind == "lstm" and projected:
        projection = take(f"weight_hr{suffix}", "P H").T
    else:
        take(f"weight_hh{suffix}", f"{width} H")
    biases = np.zeros((2, len(kernel)), kernel.dtype)
    if any(name.startswith("bias_") for name in take.arrays):
        biases = np.stack([take(f"bias_{each}{suffix}", width) for each in ("ih", "hh")])
    kernels = _arrays(kernel.T, recurrent.T)
    if kind == "gru":
        return GRUParams(*kernels, *_join_gru_bias(biases))
    (bias,) = _arrays(biases.sum(0))
    if kind == "rnn":
        return RNNParams(*kernels, bias)
    return LSTMParams(*kernels, bias, None, *_arrays(projection))


def to_torch(layers: Sequence[Sequence[Params]]) -> dict[str, np.ndarray]:
    """The reverse of `from_torch`; all of the bias goes into `bias_ih` where that is the same.

    The arrays are NumPy's; `torch.from_numpy` makes tensors of them for `load_state_dict`.

    Raises:
        ValueError: If Torch has no module with such layers; names what is wrong.
    """
    counts = [len(directions) for directions in layers]
    if set(counts) not in ({1}, {2}):
        raise ValueError(f"layers must have one direction each, or two each, got {counts}")
    state_dict = {}
    for number, directions in enumerate(layers):
        for params, direction in zip(directions, ["", "_reverse"][: counts[0]], strict=True):
            kind, suffix = _check(params, "torch.nn", projection="H P"), f"_l{number}{direction}"
            biases = _split_bias(params)
            state_dict |= {
                f"weight_ih{suffix}": np.asarray(params.kernel).T,
                f"weight_hh{suffix}": np.asarray(params.recurrent_kernel).T,
                f"bias_ih{suffix}": biases[0],
                f"bias_hh{suffix}": biases[1],
            }
            if kind == "lstm" and params.projection is not None:
                state_dict[f"weight_hr{suffix}"] = np.asarray(params.projection).T
    from_torch(kind, state_dict)  # refuses layers that do not fit each other
    return {name: np.array(array) for name, array in state_dict.items()}  # writable


def from_keras(kind: Kind, weights: Arrays) -> Params:
    """From the weights of `SimpleRNN`, `LSTM` or `GRU` (either `reset_after`).

    Args:
        kind: The cell.
        weights: `kernel`, `recurrent_kernel`, `bias`, the order of the layer's `get_weights()`.
            For a layer without bias give zeros, [G·H], or [2, 3H] if its GRU resets after: its
            other weights do not tell.

    Returns:
        The parameters.

    Raises:
        ValueError: If a name is missing or too many, or a shape is wrong; names it.
    """
    take, width = _Taker(weights), _width(kind)
    recurrent = take("recurrent_kernel", f"H {width}")
    kernel = take("kernel", f"I {width}")
    after = kind == "gru" and np.ndim(weights.get("bias")) == 2
    bias = take("bias", f"2 {width}" if after else width)
    take.done()
    if kind == "rnn":
        return RNNParams(*_arrays(kernel, recurrent, bias))
    if kind == "lstm":
        return LSTMParams(*_arrays(kernel, recurrent, bias))
    kernel, recurrent, bias = (_reorder(each, "zrn", "rzn") for each in (kernel, recurrent, bias))
    biases = _join_gru_bias(bias) if after else (*_arrays(bias), None)
    return GRUParams(*_arrays(kernel, recurrent), *biases)


def to_keras(params: Params) -> dict[str, np.ndarray]:
    """The reverse of `from_keras`, in the order that a layer's `set_weights` takes.

    Raises:
        ValueError: If Keras has no layer with such parameters; names what is wrong.
    """
    kind = _check(params, "keras.layers", reset_after=None)
    kernel, recurrent, bias = map(np.asarray, params[:3])
    if kind == "gru":
        if params.recurrent_bias is not None:
            bias = _split_bias(params)
        kernel, recurrent, bias = (
            _reorder(each, "rzn", "zrn") for each in (kernel, recurrent, bias)
        )
    return {"kernel": kernel, "recurrent_kernel": recurrent, "bias": bias}


# Flax's pairs of dense layers, of the input and of the past: one a gate, or one for all gates.
_LINEN = {
    "rnn": [("i", "h")],
    "lstm": [("ii", "hi"), ("if", "hf"), ("ig", "hg"), ("io", "ho")],
    "gru": [("ir", "hr"), ("iz", "hz"), ("in", "hn")],
}
_NNX = {kind: [("dense_i", "dense_h")] for kind in WIDTHS}
_NNX_BY_GATE = {**_NNX, "lstm": [("ii", "hi"), ("if_", "hf"), ("ig", "hg"), ("io", "ho")]}


def from_linen(kind: Kind, params: Mapping[str, Arrays]) -> Params:
    """From the parameters of `flax.linen` `SimpleCell`, `LSTMCell`, `OptimizedLSTMCell`, `GRUCell`.

    Args:
        kind: The cell.
        params: Layer by layer, as `{"hi": {"kernel": …, "bias": …}, …}`.

    Returns:
        The parameters.

    Raises:
        ValueError: If a name is missing or too many, or a shape is wrong; names it.
    """
    return _from_layers(kind, params, _LINEN)


def to_linen(params: Params) -> dict[str, dict[str, np.ndarray]]:
    """The reverse of `from_linen`.

    Raises:
        ValueError: If Flax has no cell with such parameters; names what is wrong.
    """
    kind = _check(params, "flax.linen")
    return _to_layers(kind, params, _LINEN)


def from_nnx(kind: Kind, params: Mapping[str, Arrays]) -> Params:
    """From the parameters of `flax.nnx` `SimpleCell`, `LSTMCell`, `OptimizedLSTMCell`, `GRUCell`.

    Args:
        kind: The cell.
        params: As of `nnx.state(cell, nnx.Param).to_pure_dict()`.

    Returns:
        The parameters; a GRU's recurrent bias, which NNX has not, is zero.

    Raises:
        ValueError: If a name is missing or too many, or a shape is wrong; names it.
    """
    together = any(name in params for name in ("dense_i", "dense_h"))
    return _from_layers(kind, params, _NNX if together else _NNX_BY_GATE)


def to_nnx(params: Params, *, optimized: bool = True) -> dict[str, dict[str, np.ndarray]]:
    """The reverse of `from_nnx`.

    Args:
        params: The parameters.
        optimized: Whether an LSTM's are for `OptimizedLSTMCell`, otherwise for `LSTMCell`.

    Returns:
        The parameters of the cell, layer by layer.

    Raises:
        ValueError: If NNX has no cell with such parameters; names what is wrong.
    """
    kind = _check(params, "flax.nnx")
    if kind == "gru" and np.any(params.recurrent_bias):
        raise ValueError("params.recurrent_bias must be zero for flax.nnx, whose GRU has none")
    return _to_layers(kind, params, _NNX if optimized else _NNX_BY_GATE)


def _biased(kind, pair):
    """Which of a pair of dense layers has the bias."""
    return pair[1 if kind == "lstm" else 0]


def _from_layers(kind, params, library):
    """Gates side by side, from Flax's dense layers."""
    take, width, pairs = _Taker(_flat(params)), _width(kind), library[kind]
    each = "H" if len(pairs) > 1 else width
    recurrent = [take(f"{h}/kernel", f"H {each}") for _, h in pairs]
    kernel = [take(f"{i}/kernel", f"I {each}") for i, _ in pairs]
    bias = [take(f"{_biased(kind, pair)}/bias", each) for pair in pairs]
    arrays = _arrays(*(np.concatenate(parts, axis=-1) for parts in (kernel, recurrent, bias)))
    if kind == "gru":
        zero = np.zeros(take.sizes["H"], bias[0].dtype)
        arrays += _arrays(take("hn/bias", "H") if len(pairs) > 1 else zero)
    take.done()
    return {"rnn": RNNParams, "lstm": LSTMParams, "gru": GRUParams}[kind](*arrays)


def _to_layers(kind, params, library):
    layers, pairs = {}, library[kind]
    parts = (np.split(np.asarray(each), len(pairs), axis=-1) for each in params[:3])
    for (i, h), kernel, recurrent, bias in zip(pairs, *parts, strict=True):
        layers |= {i: {"kernel": kernel}, h: {"kernel": recurrent}}
        layers[_biased(kind, (i, h))]["bias"] = bias
    if kind == "gru" and len(pairs) > 1:
        layers["hn"]["bias"] = np.asarray(params.recurrent_bias)
    return layers


def _check(params, library, *, reset_after=True, **options):
    """The kind of cell, if the library has it with these parameters; its options by their shapes.

    Other cells share the types: janet, mgu, min_gru and min_lstm are RNNParams, odyssey LSTMParams.
    """
    kinds = {RNNParams: "rnn", LSTMParams: "lstm", GRUParams: "gru"}
    if type(params) not in kinds:
        raise ValueError(f"params must not be {type(params).__name__} for {library}")
    kind = kinds[type(params)]
    width, optional = _width(kind), {"recurrent_bias": "H", **options}
    given = {name: value for name, value in params._asdict().items() if value is not None}
    if kind == "gru" and reset_after not in (None, "recurrent_bias" in given):
        raise ValueError(f"params must be those of gru(reset_after={reset_after}) for {library}")
    shapes = {
        "recurrent_kernel": f"{'P' if 'projection' in given else 'H'} {width}",
        "kernel": f"I {width}",
        "bias": width,
        **{name: shape for name, shape in optional.items() if name in given},
    }
    if refused := sorted(given.keys() - shapes.keys()):
        raise ValueError(f"params must have no {' and no '.join(refused)} for {library}")
    take = _Taker({f"params.{name}": value for name, value in given.items()})
    for name, shape in shapes.items():
        take(f"params.{name}", shape)
    return kind


def _join_gru_bias(biases):
    """Two biases [2, 3H] as one, and the one that stays inside the reset."""
    hidden = biases.shape[-1] // 3
    outside = biases[0] + biases[1] * np.repeat(np.array([1, 1, 0], biases.dtype), hidden)
    return _arrays(outside, biases[1, 2 * hidden :])


def _split_bias(params):
    """One bias as the two [2, G·H] that add up to it."""
    bias = np.asarray(params.bias)
    second = np.zeros_like(bias)
    if isinstance(params, GRUParams):
        second[-len(params.recurrent_bias) :] = params.recurrent_bias
    return np.stack([bias, second])


def _on_forget_gate(value, bias):
    """A bias like this one, of gates i, f, g, o: the value for f, otherwise zero."""
    return np.repeat(np.array([0, value, 0, 0], bias.dtype), len(bias) // 4)


def _reorder(array, source: str, target: str):
    """Puts the blocks of the last axis from one order into another."""
    blocks = dict(zip(source, np.split(np.asarray(array), len(source), axis=-1), strict=True))
    return np.concatenate([blocks[name] for name in target], axis=-1)


def _arrays(*values):
    return tuple(None if value is None else jnp.asarray(value) for value in values)


def _width(kind):
    if kind not in WIDTHS:
        raise ValueError(f"kind must be one of {tuple(WIDTHS)}, got {kind!r}")
    return WIDTHS[kind]


def _flat(layers):
    flat = {}
    for name, each in layers.items():
        inner = each.items() if isinstance(each, Mapping) else ()
        flat |= {f"{name}/{leaf}": array for leaf, array in inner} or {name: each}
    return flat


class _Taker:
    """Takes arrays out of a mapping; complains by name of what is missing, wrong or left over."""

    def __init__(self, arrays: Arrays):
        self.arrays, self.taken = arrays, set()
        self.sizes = {"": 1}  # what the letters of the shapes stand for, as far as known

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __call__(self, name: str, shape: str) -> np.ndarray:
        """The array, if its shape is as given: "4H I" is [4·H, I], and a letter says one number."""
        if name not in self.arrays:
            raise ValueError(f"{name} is missing; there are {sorted(self.arrays)}")
        self.taken.add(name)
        array, sizes = np.asarray(self.arrays[name]), dict(self.sizes)
        axes = [
            (axis, int(axis.rstrip(ascii_uppercase) or 1), axis.lstrip(digits))
            for axis in shape.split()
        ]
        fits = array.ndim == len(axes)
        for (_, times, letter), size in zip(axes, array.shape, strict=False):
            fits &= 0 < size == times * sizes.setdefault(letter, size // times)
        if not fits:
            expected = [
                str(times * self.sizes[letter]) if letter in self.sizes else axis
                for axis, times, letter in axes
            ]
            raise ValueError(
                f"{name} must have shape [{', '.join(expected)}], got {list(array.shape)}"
            )
        self.sizes = sizes
        return array

    def done(self) -> None:
        if extra := sorted(set(self.arrays) - self.taken):
            raise ValueError(f"{', '.join(extra)}: not expected here")
