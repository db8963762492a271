"""Weights to and from TensorFlow 1, PyTorch, Keras 3, Flax Linen and Flax NNX.

Pure functions of arrays: none of these libraries is imported. Each `from_…` takes the kind of cell,
"rnn", "lstm" or "gru", and the arrays under the library's own names, and gives the parameters of
`jaxrnn.rnn`, `jaxrnn.lstm` or `jaxrnn.gru`; each `to_…` does the reverse. They differ in this:

    TF1         one kernel [I+H, ·] for both products; gates i, j, f, o, the forget bias added at
                run time; the GRU resets before its product, gates r, u
    PyTorch     output-first kernels, two biases; gates i, f, g, o and r, z, n
    Keras 3     gates i, f, c, o and z, r, h; the GRU of either kind
    Linen, NNX  a dense layer a gate, or one for all

Shapes: I input features, H hidden units, P the size of an LSTM's output, G gates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrnn.cells import GRUParams, RNNParams
from jaxrnn.lstm import LSTMParams

Kind = str  # "rnn", "lstm" or "gru"
Params = RNNParams | LSTMParams | GRUParams
Arrays = Mapping[str, Any]
# The order of our gates; sources name theirs by the same letters.
GATES = {"rnn": "h", "lstm": "ifgo", "gru": "rzn"}


def from_tf1(kind: Kind, variables: Arrays, *, forget_bias: float = 1.0) -> Params:
    """From `BasicRNNCell`, `BasicLSTMCell`, `LSTMCell` or `GRUCell`.

    Args:
        kind: The cell.
        variables: By their names within the cell's scope: `kernel`, `bias`, for an `LSTMCell`
            maybe `w_i_diag`, `w_f_diag`, `w_o_diag` and `projection/kernel`; or `gates/kernel`,
            `gates/bias`, `candidate/kernel`, `candidate/bias`.
        forget_bias: What the cell adds at run time; becomes part of the bias.

    Returns:
        The parameters; for a GRU those of `jaxrnn.gru(H, reset_after=False)`.

    Raises:
        ValueError: If a name is missing or too many, or a shape is wrong; names it.
    """
    take = _Taker(variables)
    if kind == "gru":
        gates_bias = take("gates/bias", ("2H",))
        hidden = len(gates_bias) // 2
        both = np.concatenate(
            [
                take("gates/kernel", (None, 2 * hidden)),
                take("candidate/kernel", (None, hidden)),
            ],
            axis=-1,
        )
        bias = np.concatenate([gates_bias, take("candidate/bias", (hidden,))])
        take.done()
        return GRUParams(*_arrays(both[:-hidden], both[-hidden:], bias), recurrent_bias=None)
    count = len(GATES[_kind(kind)])
    bias = take("bias", (f"{count}H",))
    hidden = len(bias) // count
    projection = take("projection/kernel", (hidden, None)) if "projection/kernel" in take else None
    output = hidden if projection is None else projection.shape[1]
    both = take("kernel", (None, count * hidden))
    if len(both) <= output:
        raise ValueError(f"kernel must have more than {output} rows, got shape {both.shape}")
    if kind == "rnn":
        take.done()
        return RNNParams(*_arrays(both[:-output], both[-output:], bias))
    peephole = None
    if "w_i_diag" in take:
        peephole = np.stack([take(f"w_{name}_diag", (hidden,)) for name in "ifo"])
    take.done()
    both, bias = (_reorder(each, "igfo", "ifgo") for each in (both, bias))
    bias = bias + np.repeat(np.array([0, forget_bias, 0, 0], bias.dtype), hidden)
    return LSTMParams(*_arrays(both[:-output], both[-output:], bias, peephole, projection))


def to_tf1(params: Params, *, forget_bias: float = 1.0) -> dict[str, np.ndarray]:
    """The reverse of `from_tf1`; the cell must be built with the same `forget_bias`.

    Raises:
        ValueError: If the GRU resets after its product, which TF1's cannot.
    """
    both = np.concatenate([params.kernel, params.recurrent_kernel])
    bias = np.asarray(params.bias)
    if isinstance(params, GRUParams):
        if params.recurrent_bias is not None:
            raise ValueError("params must be those of gru(reset_after=False) for TF1's GRUCell")
        hidden = len(bias) // 3
        gates, candidate = np.split(both, [2 * hidden], axis=-1)
        return {
            "gates/kernel": gates,
            "gates/bias": bias[: 2 * hidden],
            "candidate/kernel": candidate,
            "candidate/bias": bias[2 * hidden :],
        }
    if isinstance(params, RNNParams):
        return {"kernel": both, "bias": bias}
    added = np.repeat(np.array([0, forget_bias, 0, 0], bias.dtype), len(bias) // 4)
    variables = {
        "kernel": _reorder(both, "ifgo", "igfo"),
        "bias": _reorder(bias - added, "ifgo", "igfo"),
    }
    if params.peephole is not None:
        rows = zip("ifo", np.asarray(params.peephole), strict=True)
        variables |= {f"w_{name}_diag": row for name, row in rows}
    if params.projection is not None:
        variables["projection/kernel"] = np.asarray(params.projection)
    return variables


def from_torch(kind: Kind, state_dict: Arrays) -> tuple[tuple[Params, ...], ...]:
    """From the state dict of `nn.RNN`, `nn.LSTM` or `nn.GRU`.

    Args:
        kind: The cell.
        state_dict: `weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`, `bias_hh_l0`, maybe
            `weight_hr_l0`, the same with `_reverse`, and those of the other layers.

    Returns:
        For each layer its parameters, forward first, then backward if there are any.

    Raises:
        ValueError: If a name is missing or too many, or a shape is wrong; names it.
    """
    take, layers = _Taker(state_dict), []
    count = len(GATES[_kind(kind)])
    while not layers or f"weight_ih_l{len(layers)}" in take:
        suffixes = [f"_l{len(layers)}"]
        if f"weight_ih_l{len(layers)}_reverse" in take:
            suffixes.append(f"_l{len(layers)}_reverse")
        layers.append(tuple(_from_torch_layer(kind, count, take, each) for each in suffixes))
    take.done()
    return tuple(layers)


def _from_torch_layer(kind, count, take, suffix):
    kernel = take(f"weight_ih{suffix}", (f"{count}H", None))
    width, hidden = len(kernel), len(kernel) // count
    projection = None
    if f"weight_hr{suffix}" in take:
        projection = take(f"weight_hr{suffix}", (None, hidden)).T
    output = hidden if projection is None else projection.shape[1]
    recurrent = take(f"weight_hh{suffix}", (width, output))
    biases = np.zeros((2, width), kernel.dtype)
    if f"bias_ih{suffix}" in take or f"bias_hh{suffix}" in take:
        biases = np.stack([take(f"bias_{each}{suffix}", (width,)) for each in ("ih", "hh")])
    kernels = _arrays(kernel.T, recurrent.T)
    if kind == "gru":
        bias, recurrent_bias = _join_gru_bias(biases)
        return GRUParams(*kernels, bias, recurrent_bias)
    (bias,) = _arrays(biases.sum(0))
    if kind == "rnn":
        return RNNParams(*kernels, bias)
    return LSTMParams(*kernels, bias, None, *_arrays(projection))


def to_torch(layers: Sequence[Sequence[Params]]) -> dict[str, np.ndarray]:
    """The reverse of `from_torch`; all of the bias goes into `bias_ih` where that is the same.

    Raises:
        ValueError: If a layer is a GRU that resets before its product, or has peepholes.
    """
    state_dict = {}
    for number, directions in enumerate(layers):
        for params, direction in zip(directions, ("", "_reverse"), strict=False):
            suffix = f"_l{number}{direction}"
            if getattr(params, "peephole", None) is not None:
                raise ValueError("params must have no peephole for torch.nn.LSTM")
            biases = _split_bias(params, "torch.nn.GRU")
            state_dict |= {
                f"weight_ih{suffix}": np.asarray(params.kernel).T,
                f"weight_hh{suffix}": np.asarray(params.recurrent_kernel).T,
                f"bias_ih{suffix}": biases[0],
                f"bias_hh{suffix}": biases[1],
            }
            if getattr(params, "projection", None) is not None:
                state_dict[f"weight_hr{suffix}"] = np.asarray(params.projection).T
    return state_dict


def from_keras(kind: Kind, weights: Arrays) -> Params:
    """From the weights of `SimpleRNN`, `LSTM` or `GRU` (either `reset_after`).

    Args:
        kind: The cell.
        weights: `kernel`, `recurrent_kernel`, `bias`, the order of the layer's `get_weights()`.

    Returns:
        The parameters.

    Raises:
        ValueError: If a name is missing or too many, or a shape is wrong; names it.
    """
    take, count = _Taker(weights), len(GATES[_kind(kind)])
    recurrent = take("recurrent_kernel", (None, f"{count}H"))
    hidden = recurrent.shape[1] // count
    if len(recurrent) != hidden:
        raise ValueError(
            f"recurrent_kernel must be [H, {count}H], got shape {tuple(recurrent.shape)}"
        )
    kernel = take("kernel", (None, count * hidden))
    after = kind == "gru" and np.ndim(weights.get("bias")) == 2
    bias = take("bias", (2, count * hidden) if after else (count * hidden,))
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
        ValueError: If the LSTM has peepholes or a projection, which Keras' has not.
    """
    if isinstance(params, LSTMParams):
        _simple(params, "keras.layers.LSTM")
    kernel, recurrent, bias = map(np.asarray, params[:3])
    if isinstance(params, GRUParams):
        if params.recurrent_bias is not None:
            bias = _split_bias(params, "keras.layers.GRU")
        kernel, recurrent, bias = (
            _reorder(each, "rzn", "zrn") for each in (kernel, recurrent, bias)
        )
    return {"kernel": kernel, "recurrent_kernel": recurrent, "bias": bias}


# Flax's dense layers: which of the two of each gate has a bias.
_LINEN_BIAS = {"rnn": "i", "lstm": "hhhh", "gru": "iii"}


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
    gates = [""] if kind == "rnn" else GATES[_kind(kind)]
    return _from_layers(kind, params, [(f"i{gate}", f"h{gate}") for gate in gates])


def to_linen(params: Params) -> dict[str, dict[str, np.ndarray]]:
    """The reverse of `from_linen`.

    Raises:
        ValueError: If Flax has no such cell.
    """
    kind = _plain(params, "flax.linen")
    gates = [""] if kind == "rnn" else GATES[kind]
    return _to_layers(kind, params, [(f"i{gate}", f"h{gate}") for gate in gates])


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
    if kind == "lstm" and "ii" in params:
        renamed = {("if" if name == "if_" else name): value for name, value in params.items()}
        return from_linen(kind, renamed)
    take, count = _Taker(_flat(params)), len(GATES[_kind(kind)])
    recurrent = take("dense_h/kernel", (None, f"{count}H"))
    width = recurrent.shape[1]
    kernel = take("dense_i/kernel", (None, width))
    bias = take(f"dense_{'h' if kind == 'lstm' else 'i'}/bias", (width,))
    take.done()
    arrays = _arrays(kernel, recurrent, bias)
    if kind == "gru":
        return GRUParams(*arrays, jnp.zeros_like(arrays[2][: width // 3]))
    return (RNNParams if kind == "rnn" else LSTMParams)(*arrays)


def to_nnx(params: Params) -> dict[str, dict[str, np.ndarray]]:
    """The reverse of `from_nnx`, for `SimpleCell`, `OptimizedLSTMCell` or `GRUCell`.

    Raises:
        ValueError: If NNX has no such cell.
    """
    kind = _plain(params, "flax.nnx")
    if kind == "gru" and np.any(params.recurrent_bias):
        raise ValueError("params.recurrent_bias must be zero for flax.nnx.GRUCell, which has none")
    layers = {
        "dense_i": {"kernel": np.asarray(params.kernel)},
        "dense_h": {"kernel": np.asarray(params.recurrent_kernel)},
    }
    layers["dense_h" if kind == "lstm" else "dense_i"]["bias"] = np.asarray(params.bias)
    return layers


def _from_layers(kind, params, names):
    """Gates side by side, from a pair of dense layers each."""
    take = _Taker(_flat(params))
    first = take(f"{names[0][1]}/kernel", (None, "H"))
    hidden = len(first)
    recurrent = [first]
    recurrent += [take(f"{h}/kernel", (hidden, hidden)) for _, h in names[1:]]
    kernel = [take(f"{i}/kernel", (None, hidden)) for i, _ in names]
    owners = [
        i if owner == "i" else h for (i, h), owner in zip(names, _LINEN_BIAS[kind], strict=True)
    ]
    bias = [take(f"{owner}/bias", (hidden,)) for owner in owners]
    recurrent_bias = take("hn/bias", (hidden,)) if kind == "gru" else None
    take.done()
    arrays = _arrays(*(np.concatenate(each, axis=-1) for each in (kernel, recurrent, bias)))
    if kind == "gru":
        return GRUParams(*arrays, *_arrays(recurrent_bias))
    return (RNNParams if kind == "rnn" else LSTMParams)(*arrays)


def _to_layers(kind, params, names):
    pieces = (np.split(np.asarray(each), len(names), axis=-1) for each in params[:3])
    layers = {}
    for (i, h), owner, kernel, recurrent, bias in zip(
        names, _LINEN_BIAS[kind], *pieces, strict=True
    ):
        layers |= {i: {"kernel": kernel}, h: {"kernel": recurrent}}
        layers[i if owner == "i" else h]["bias"] = bias
    if kind == "gru":
        layers["hn"]["bias"] = np.asarray(params.recurrent_bias)
    return layers


def _plain(params, library):
    """The kind of cell, if Flax has it."""
    if isinstance(params, LSTMParams):
        _simple(params, library)
    if isinstance(params, GRUParams) and params.recurrent_bias is None:
        raise ValueError(f"params must be those of gru(reset_after=True) for {library}")
    kinds = {RNNParams: "rnn", LSTMParams: "lstm", GRUParams: "gru"}
    return kinds[type(params)]


def _simple(params: LSTMParams, library: str) -> None:
    if params.peephole is not None or params.projection is not None:
        raise ValueError(f"params must have no peephole and no projection for {library}")


def _join_gru_bias(biases):
    """Two biases [2, 3H] as one, and the one that stays inside the reset."""
    hidden = biases.shape[-1] // 3
    outside = biases[0] + biases[1] * np.repeat(np.array([1, 1, 0], biases.dtype), hidden)
    return _arrays(outside, biases[1, 2 * hidden :])


def _split_bias(params, library):
    """One bias as the two [2, G·H] that add up to it."""
    bias = np.asarray(params.bias)
    second = np.zeros_like(bias)
    if isinstance(params, GRUParams):
        if params.recurrent_bias is None:
            raise ValueError(f"params must be those of gru(reset_after=True) for {library}")
        second[-len(params.recurrent_bias) :] = params.recurrent_bias
    return np.stack([bias, second])


def _reorder(array, source: str, target: str):
    """Puts the blocks of the last axis from one order into another."""
    blocks = dict(zip(source, np.split(np.asarray(array), len(source), axis=-1), strict=True))
    return np.concatenate([blocks[name] for name in target], axis=-1)


def _arrays(*values):
    return tuple(None if value is None else jnp.asarray(value) for value in values)


def _kind(kind):
    if kind not in GATES:
        raise ValueError(f"kind must be one of {tuple(GATES)}, got {kind!r}")
    return kind


def _flat(layers):
    return {
        f"{name}/{leaf}": array for name, each in layers.items() for leaf, array in each.items()
    }


class _Taker:
    """Takes arrays out of a mapping; complains by name of what is missing, wrong or left over."""

    def __init__(self, arrays: Arrays):
        self.arrays, self.taken = arrays, set()

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __call__(self, name: str, shape: tuple) -> np.ndarray:
        """The array, if its shape is as given: a number, None for any, "4H" for a multiple of 4."""
        if name not in self.arrays:
            raise ValueError(f"{name} is missing; there are {sorted(self.arrays)}")
        self.taken.add(name)
        array = np.asarray(self.arrays[name])

        def fits(size, wanted):
            if isinstance(wanted, str):
                return size > 0 and size % int(wanted[:-1] or 1) == 0
            return wanted is None or size == wanted

        if array.ndim != len(shape) or not all(map(fits, array.shape, shape)):
            expected = ", ".join("any" if each is None else str(each) for each in shape)
            raise ValueError(f"{name} must have shape [{expected}], got {list(array.shape)}")
        return array

    def done(self) -> None:
        if extra := sorted(set(self.arrays) - self.taken):
            raise ValueError(f"{', '.join(extra)}: not expected here")
