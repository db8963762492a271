"""Weights to and from TensorFlow 1, PyTorch, Keras 3, Flax Linen and Flax NNX.

Pure functions of arrays: none of these libraries is imported. Each `from_…` takes the kind of cell,
"rnn", "lstm" or "gru", and the arrays under the library's own names, and gives the parameters of
`jaxrnn.rnn`, `jaxrnn.lstm` or `jaxrnn.gru`. Each `to_…` takes a cell and its parameters and does
the reverse. The libraries differ in this:

    TF1         one kernel [I+H, ·] for both products; gates i, j, f, o, the forget bias added at
                run time; the GRU resets before its product, gates r, u
    PyTorch     output-first kernels, two biases; gates i, f, g, o and r, z, n
    Keras 3     gates i, f, c, o and z, r, h; the GRU of either kind
    Linen, NNX  a dense layer a gate, or one for all

Weights do not hold everything that a cell computes. A `to_…` raises ValueError for an option that
the library cannot compute (–), and the library's own cell must be made with the others:

    option of the cell        TF1                 PyTorch            Keras 3       Linen, NNX
    rnn(activation=…)         activation=         nonlinearity=,     activation=   activation_fn=
                                                  "tanh" or "relu"
    lstm(activation=…)        activation=         –                  activation=   activation_fn=
    lstm(peephole=True)       use_peepholes=True  –                  –             –
    lstm(projection_size=P)   num_proj=P          proj_size=P < H    –             –
    lstm(cell_clip=…)         cell_clip=          –                  –             –
    gru(reset_after=True)     –                   the only one       reset_after=  the only one
    gru(reset_after=False)    the only one        –                  reset_after=  –

`jaxrnn.odyssey`'s variants "V" and "NP" are LSTMs with and without peepholes. No library has the
other cells.

All arrays are copies. Those of a `to_…` are NumPy's, contiguous and writable, so that
`safetensors.numpy.save_file` and the like can write them. Weights may be anything that NumPy makes
an array of floating-point numbers of, in any byte order; lists of numbers are as well. A dtype is
kept where JAX has it: float64 becomes float32 unless `jax_enable_x64` is set.

Shapes: I input features, H hidden units, P the size of an LSTM's output, G gates, R = I + P.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase, digits
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.arguments import as_dict
from jaxrnn.cell import Cell
from jaxrnn.cells.gru import GRUParams, gru
from jaxrnn.cells.lstm import LSTMParams, lstm, odyssey
from jaxrnn.cells.rnn import RNNParams, rnn

Kind = str  # "rnn", "lstm" or "gru"
Arrays = Mapping[str, Any]
Params = RNNParams | LSTMParams | GRUParams
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


def to_tf1(
    cell: Cell, params: Params | Arrays, *, forget_bias: float = 1.0
) -> dict[str, np.ndarray]:
    """The reverse of `from_tf1`; the table at the head of this module names the options to set.

    The forget gate's bias less `forget_bias` is rounded; everything else is exact.

    Args:
        cell: The cell.
        params: Its parameters: its named tuple, or a dict of that tuple's arrays.
        forget_bias: That of TF1's LSTM, which adds it at run time.

    Returns:
        The variables by their names within TF1's cell's scope.

    Raises:
        ValueError: If TF1 cannot compute this cell, or the parameters do not fit it; names what is
            wrong.
    """
    has = ["activation", "peephole", "projection_size", "cell_clip", "reset_after=False"]
    kind, arrays = _weights(cell, params, "TF1", has)
    both, bias = np.concatenate([arrays["kernel"], arrays["recurrent_kernel"]]), arrays["bias"]
    if kind == "rnn":
        return _copies({"kernel": both, "bias": bias})
    if kind == "gru":
        hidden = len(bias) // 3
        gates, candidate = np.split(both, [2 * hidden], axis=-1)
        return _copies(
            {
                "gates/kernel": gates,
                "gates/bias": bias[: 2 * hidden],
                "candidate/kernel": candidate,
                "candidate/bias": bias[2 * hidden :],
            }
        )
    variables = {
        "kernel": _reorder(both, "ifgo", "igfo"),
        "bias": _reorder(bias - _on_forget_gate(forget_bias, bias), "ifgo", "igfo"),
    }
    if "peephole" in arrays:
        diagonals = zip("ifo", arrays["peephole"], strict=True)
        variables |= {f"w_{gate}_diag": diagonal for gate, diagonal in diagonals}
    if "projection" in arrays:
        variables["projection/kernel"] = arrays["projection"]
    return _copies(variables)


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


def to_torch(
    cell: Cell, params: Params | Arrays | Sequence[Sequence[Params | Arrays]]
) -> dict[str, np.ndarray]:
    """The reverse of `from_torch`; the table at the head of this module names the options to set.

    All of the bias goes into `bias_ih` where that is the same. `torch.from_numpy` makes tensors of
    the arrays for `load_state_dict`.

    Args:
        cell: The cell, that of all layers.
        params: The parameters of one layer, its named tuple or a dict of that tuple's arrays; or
            for each layer those of its directions, as `from_torch` gives them.

    Returns:
        The state dict of an `nn.RNN`, `nn.LSTM` or `nn.GRU`.

    Raises:
        ValueError: If PyTorch cannot compute this cell, or the parameters do not fit it or each
            other; names what is wrong.
    """
    layers: Any = params if _is_sequence(params) else [[params]]
    counts = [len(each) if _is_sequence(each) else type(each).__name__ for each in layers]
    if set(counts) not in ({1}, {2}):
        raise ValueError(f"params must have one direction a layer, or two each, got {counts}")
    has, suffixes, state_dict = ["projection_size", "reset_after=True"], ["", "_reverse"], {}
    for number, directions in enumerate(layers):
        for which, each in enumerate(directions):
            name = f"params[{number}][{which}]" if layers is params else "params"
            kind, arrays = _weights(cell, each, "PyTorch", has, name)
            suffix, biases = f"_l{number}{suffixes[which]}", _split_bias(arrays)
            state_dict |= {
                f"weight_ih{suffix}": arrays["kernel"].T,
                f"weight_hh{suffix}": arrays["recurrent_kernel"].T,
                f"bias_ih{suffix}": biases[0],
                f"bias_hh{suffix}": biases[1],
            }
            if "projection" in arrays:
                state_dict[f"weight_hr{suffix}"] = arrays["projection"].T
    from_torch(kind, state_dict)  # refuses layers that do not fit each other
    return _copies(state_dict)


def _is_sequence(params):
    return isinstance(params, Sequence) and not hasattr(params, "_fields")


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


def to_keras(cell: Cell, params: Params | Arrays) -> dict[str, np.ndarray]:
    """The reverse of `from_keras`; the table at the head of this module names the options to set.

    Args:
        cell: The cell.
        params: Its parameters: its named tuple, or a dict of that tuple's arrays.

    Returns:
        The weights of a `SimpleRNN`, `LSTM` or `GRU`, in the order that `set_weights` takes.

    Raises:
        ValueError: If Keras cannot compute this cell, or the parameters do not fit it; names what
            is wrong.
    """
    has = ["activation", "reset_after=True", "reset_after=False"]
    kind, arrays = _weights(cell, params, "Keras", has)
    if "recurrent_bias" in arrays:
        arrays["bias"] = _split_bias(arrays)
    weights = {name: arrays[name] for name in ("kernel", "recurrent_kernel", "bias")}
    if kind == "gru":
        weights = {name: _reorder(array, "rzn", "zrn") for name, array in weights.items()}
    return _copies(weights)


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
    return _from_layers(kind, _flat(params), _LINEN)


def to_linen(cell: Cell, params: Params | Arrays) -> dict[str, dict[str, np.ndarray]]:
    """The reverse of `from_linen`; the table at the head of this module names the options to set.

    Args:
        cell: The cell.
        params: Its parameters: its named tuple, or a dict of that tuple's arrays.

    Returns:
        The parameters of Flax' cell, layer by layer.

    Raises:
        ValueError: If Linen cannot compute this cell, or the parameters do not fit it; names what
            is wrong.
    """
    kind, arrays = _weights(cell, params, "flax.linen", ["activation", "reset_after=True"])
    return _to_layers(kind, arrays, _LINEN)


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
    flat = _flat(params)
    together = any(name.startswith("dense_") for name in flat)
    return _from_layers(kind, flat, _NNX if together else _NNX_BY_GATE)


def to_nnx(
    cell: Cell, params: Params | Arrays, *, optimized: bool = True
) -> dict[str, dict[str, np.ndarray]]:
    """The reverse of `from_nnx`; the table at the head of this module names the options to set.

    Args:
        cell: The cell.
        params: Its parameters: its named tuple, or a dict of that tuple's arrays.
        optimized: Whether an LSTM's are for `OptimizedLSTMCell`, otherwise for `LSTMCell`.

    Returns:
        The parameters of Flax' cell, layer by layer.

    Raises:
        ValueError: If NNX cannot compute this cell, or the parameters do not fit it; names what is
            wrong.
    """
    kind, arrays = _weights(cell, params, "flax.nnx", ["activation", "reset_after=True"])
    if np.any(arrays.get("recurrent_bias")):
        raise ValueError("params.recurrent_bias must be zero for flax.nnx, whose GRU has none")
    return _to_layers(kind, arrays, _NNX if optimized else _NNX_BY_GATE)


def _biased(kind, pair):
    """Which of a pair of dense layers has the bias."""
    return pair[1 if kind == "lstm" else 0]


def _from_layers(kind, flat, library):
    """Gates side by side, from Flax's dense layers."""
    take, width, pairs = _Taker(flat), _width(kind), library[kind]
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


def _to_layers(kind, arrays, library):
    layers, pairs = {}, library[kind]
    names = ["kernel", "recurrent_kernel", "bias"]
    parts = (np.split(arrays[name], len(pairs), axis=-1) for name in names)
    for (i, h), kernel, recurrent, bias in zip(pairs, *parts, strict=True):
        layers |= {i: {"kernel": kernel}, h: {"kernel": recurrent}}
        layers[_biased(kind, (i, h))]["bias"] = bias
    if kind == "gru" and len(pairs) > 1:
        layers["hn"]["bias"] = arrays["recurrent_bias"]
    return {name: _copies(layer) for name, layer in layers.items()}


def _weights(cell, params, library, has, name="params"):
    """The kind of cell and its parameters in NumPy, if a library with these options computes it."""
    kind, options = _options(cell, library)
    _check_options(kind, options, library, has)
    shapes = {
        "recurrent_kernel": f"{'P' if 'projection_size' in options else 'H'} {WIDTHS[kind]}",
        "kernel": f"I {WIDTHS[kind]}",
        "bias": WIDTHS[kind],
    }
    if "peephole" in options:
        shapes["peephole"] = "3 H"
    if "projection_size" in options:
        shapes["projection"] = "H P"
    if "reset_after=True" in options:
        shapes["recurrent_bias"] = "H"
    given = as_dict(params)
    if not isinstance(given, Mapping):
        raise ValueError(
            f"{name} must be the cell's named tuple or a dict of its arrays, "
            f"got {type(params).__name__}"
        )
    take = _Taker({f"{name}.{key}": each for key, each in given.items()})
    take.sizes |= {"H": options["hidden_size"], "P": options.get("projection_size")}
    arrays = {key: take(f"{name}.{key}", shape) for key, shape in shapes.items()}
    take.done()
    return kind, arrays


def _options(cell, library):
    """The kind of cell, and those of its constructor's options that change what it computes."""
    if not isinstance(cell, Cell):
        raise ValueError(f"cell must be a jaxrnn.Cell, got {type(cell).__name__}")
    if cell.origin is None or not cell.origin.describes(cell):
        function = cell.gate.function if cell.gate else cell.step
        raise ValueError(
            f"{library} has no {getattr(function, '__qualname__', repr(function))}: cell must be "
            "made by a constructor of jaxrnn, with nothing replaced but init"
        )
    constructor, options = cell.origin.constructor, cell.origin.options
    if constructor is odyssey and options["variant"] in ("V", "NP"):
        same = lstm(options["hidden_size"], peephole=options["variant"] == "V")
        return _options(same, library)
    kinds = {rnn: "rnn", lstm: "lstm", gru: "gru"}
    if constructor not in kinds:
        variant = f"(variant={options['variant']!r})" if constructor is odyssey else ""
        raise ValueError(f"{library} has no {constructor.__name__}{variant}")
    used = {name: value for name, value in options.items() if value is not None}
    if constructor is lstm and not used["peephole"]:
        del used["peephole"]
    if constructor is gru:  # has one of two equations, which a library has or not
        used[f"reset_after={bool(used.pop('reset_after'))}"] = True
    return kinds[constructor], used


# What PyTorch calls tanh and relu, under each name that JAX has for them.
_TANH = [jnp.tanh, jax.nn.tanh, jax.lax.tanh]
_TORCH_ACTIVATIONS = {"rnn": [*_TANH, jax.nn.relu], "lstm": _TANH}


def _check_options(kind, options, library, has):
    name = f"{library}'s {kind.upper()}"
    if refused := sorted(options.keys() - {*has, "hidden_size", "activation"}):
        raise ValueError(f"{name} has no {' and no '.join(refused)}")
    if "activation" in options and "activation" not in has:  # PyTorch
        activation, allowed = options["activation"], _TORCH_ACTIVATIONS[kind]
        if not any(activation is each for each in allowed):
            names = " or ".join(dict.fromkeys(each.__name__ for each in allowed))
            got = getattr(activation, "__name__", repr(activation))
            raise ValueError(f"{name} has no activation but {names}, got {got}")
    projected, hidden = options.get("projection_size", 0), options["hidden_size"]
    if library == "PyTorch" and projected >= hidden:
        raise ValueError(
            f"{name} has no projection_size that is not below hidden_size, "
            f"got {projected} and {hidden}"
        )


def _join_gru_bias(biases):
    """Two biases [2, 3H] as one, and the one that stays inside the reset."""
    hidden = biases.shape[-1] // 3
    outside = biases[0] + biases[1] * np.repeat(np.array([1, 1, 0], biases.dtype), hidden)
    return _arrays(outside, biases[1, 2 * hidden :])


def _split_bias(arrays):
    """One bias as the two [2, G·H] that add up to it."""
    second = np.zeros_like(arrays["bias"])
    if "recurrent_bias" in arrays:
        second[-len(arrays["recurrent_bias"]) :] = arrays["recurrent_bias"]
    return np.stack([arrays["bias"], second])


def _on_forget_gate(value, bias):
    """A bias like this one, of gates i, f, g, o: the value for f, otherwise zero."""
    return np.repeat(np.array([0, value, 0, 0], bias.dtype), len(bias) // 4)


def _reorder(array, source: str, target: str):
    """Puts the blocks of the last axis from one order into another."""
    blocks = dict(zip(source, np.split(np.asarray(array), len(source), axis=-1), strict=True))
    return np.concatenate([blocks[name] for name in target], axis=-1)


def _arrays(*values):
    return tuple(None if value is None else jnp.array(value) for value in values)


def _copies(arrays):
    return {name: np.array(array, order="C") for name, array in arrays.items()}


def _numbers(name, values):
    """The values as an array of floating-point numbers in the machine's byte order."""
    try:
        array = np.asarray(values)
    except Exception as error:  # of NumPy, or of the library whose array it is
        raise ValueError(f"{name} must be an array: {error}") from error
    if not hasattr(values, "dtype") and np.issubdtype(array.dtype, np.integer):
        array = array.astype(float)  # a list may hold Python's integers
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} must be of floating-point numbers, got {array.dtype}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _width(kind):
    if kind not in WIDTHS:
        raise ValueError(f"kind must be one of {tuple(WIDTHS)}, got {kind!r}")
    return WIDTHS[kind]


def _check_named(arrays):
    if not isinstance(arrays, Mapping):
        raise ValueError(f"weights must be arrays by name, got {type(arrays).__name__}")


def _flat(layers):
    _check_named(layers)
    flat = {}
    for name, each in layers.items():
        inner = each.items() if isinstance(each, Mapping) else ()
        flat |= {f"{name}/{leaf}": array for leaf, array in inner} or {name: each}
    return flat


class _Taker:
    """Takes arrays out of a mapping; complains by name of what is missing, wrong or left over."""

    def __init__(self, arrays):
        _check_named(arrays)
        self.arrays, self.taken = arrays, set()
        self.sizes = {"": 1}  # what the letters of the shapes stand for, as far as known

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __call__(self, name: str, shape: str) -> np.ndarray:
        """The array, if its shape is as given: "4H I" is [4·H, I], and a letter says one number."""
        if name not in self.arrays:
            raise ValueError(f"{name} is missing; there are {sorted(self.arrays)}")
        self.taken.add(name)
        array, sizes = _numbers(name, self.arrays[name]), dict(self.sizes)
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
