"""What `from_onnx` reads: recurrent operators, their weights, and how they follow each other.

Shapes: B batch, T time, I input features, H hidden units, G gates, D directions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from onnx import defs, helper, inliner

from jaxrnn.arguments import as_dict
from jaxrnn.cells.gru import gru
from jaxrnn.cells.lstm import lstm
from jaxrnn.cells.rnn import rnn
from jaxrnn.convert.common import WIDTHS, WeightReader, join_gru_bias, make_params, reorder
from jaxrnn.convert.onnx.native import ACTIVATIONS, GATES, OPERATORS
from jaxrnn.convert.onnx.parts import Parts, line_of
from jaxrnn.linen import RNN, Stack

KINDS = {operator: kind for kind, operator in OPERATORS.items()}
CONSTRUCTORS: dict[str, Any] = {"rnn": rnn, "lstm": lstm, "gru": gru}
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
BACKWARD = {b"forward": [False], b"reverse": [True], b"bidirectional": [False, True]}
# The activations that take alpha and beta, and their defaults.
ALPHA = {
    **{"Elu": 1.0, "LeakyRelu": 0.01, "HardSigmoid": 0.2, "ThresholdedRelu": 1.0},
    **{"Affine": 1.0, "ScaledTanh": 1.0},
}
BETA = {"HardSigmoid": 0.5, "Affine": 0.0, "ScaledTanh": 1.0}
TANH, SIGMOID = ("Tanh", None, None), ("Sigmoid", None, None)
FUNCTIONS: dict[Any, Any] = {("Softplus", None, None): jax.nn.softplus}
for _function, _name in ACTIVATIONS.items():
    FUNCTIONS.setdefault(_name, _function)
DEEPEST = 100  # of functions that call functions
MOST_NODES = 100_000  # of a model, with its functions unfolded
NAMES = {name.lower(): name for name, _, _ in FUNCTIONS} | {name.lower(): name for name in ALPHA}


class Direction(NamedTuple):
    """One direction of a recurrent operator.

    Attributes:
        backward: Whether it reads from the end to the start.
        options: The options of the cell's constructor.
        params: The parameters of the cell.
        start: The leaves of the state before the first step by name, if they are constants.
    """

    backward: bool
    options: dict[str, Any]
    params: Any
    start: dict[str, np.ndarray]


class Operator:
    """A recurrent operator of a model.

    Attributes:
        label: Its name for error messages.
        kind: "rnn", "lstm" or "gru".
        inputs: The names of its inputs by ONNX's names for them.
        outputs: The names of its outputs.
        layout: 0 if time is the first axis, 1 if the batch is.
        backward: For each direction, whether it reads from the end to the start.
    """

    def __init__(self, node: Any):
        name = node.name or next(filter(None, node.output), "")
        self.label = " ".join((node.op_type, *name.split()))
        self.kind = KINDS[node.op_type]
        self.inputs = {
            name: value for name, value in zip(INPUTS, node.input, strict=False) if value
        }
        self.outputs = list(node.output)
        if missing := [name for name in INPUTS[:3] if name not in self.inputs]:
            raise ValueError(f"{self.label} has no input {missing[0]}")
        types: Any = defs.get_schema(node.op_type).attributes
        for each in node.attribute:
            if each.name in types and each.type != types[each.name].type.value:
                expected = types[each.name].type.name.lower()
                raise ValueError(f"{each.name} of {self.label} must be of the type {expected}")
        self.attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        self.layout = self._one_of("layout", 0, (0, 1))
        self.backward = BACKWARD[self._one_of("direction", b"forward", BACKWARD)]

    def _one_of(self, name: str, default: Any, values: Collection[Any]) -> Any:
        """An attribute, if it is one of these values."""
        found = self.attributes.get(name, default)
        if found not in values:
            raise ValueError(
                f"{name} of {self.label} must be one of {', '.join(map(repr, values))}, "
                f"got {found!r}"
            )
        return found

    def value(self, parts: Parts, name: str) -> np.ndarray:
        """An input by ONNX's name for it."""
        try:
            return parts.value(self.inputs[name])
        except ValueError as error:
            raise ValueError(f"{name} of {self.label}: {error}") from error

    def steps(self, parts: Parts) -> tuple[int, int]:
        """T and B of the inputs X."""
        shape = self.value(parts, "X").shape
        if len(shape) != 3:
            raise ValueError(f"X of {self.label} must have three axes, got {list(shape)}")
        return shape[self.layout], shape[1 - self.layout]

    def directions(self, parts: Parts) -> list[Direction]:
        """The parameters and options of each direction."""
        for name in ("clip", "input_forget"):
            value = self.attributes.get(name)
            if value or (name == "clip" and value is not None):
                raise ValueError(f"{self.label} has {name}={value}, which jaxrnn has not")
        width, count = WIDTHS[self.kind], len(self.backward)
        shapes = {"W": f"D {width} I", "R": f"D {width} H"}
        optional = {"B": f"D {2 * int(width[:-1] or 1)}H", "P": "D 3H"}
        shapes |= {name: shape for name, shape in optional.items() if name in self.inputs}
        found = {f"{name} of {self.label}": self._weight(parts, name) for name in shapes}
        read = WeightReader(found)
        read.sizes["D"] = count
        if "hidden_size" in self.attributes:
            read.sizes["H"] = self.attributes["hidden_size"]
        arrays = {name: read(f"{name} of {self.label}", shape) for name, shape in shapes.items()}
        hidden = arrays["R"].shape[-1]
        arrays.setdefault("B", np.zeros((count, 2 * arrays["R"].shape[1]), arrays["W"].dtype))
        options = {"hidden_size": hidden, **self._options()}
        starts = self._starts(parts, hidden)
        return [
            Direction(backward, options, self._params(arrays, number, options), starts[number])
            for number, backward in enumerate(self.backward)
        ]

    def _weight(self, parts: Parts, name: str) -> np.ndarray:
        if found := sorted(parts.sources(self.inputs[name])):
            raise ValueError(
                f"{name} of {self.label} is not a constant: it depends on {', '.join(found)}, "
                "whose values the argument inputs can give"
            )
        return self.value(parts, name)

    def _params(self, arrays: dict[str, np.ndarray], number: int, options: Any) -> Any:
        """The parameters of one direction."""

        def ordered(array):
            return reorder(array, *reversed(GATES[self.kind]))

        biases, optional = ordered(arrays["B"][number].reshape(2, -1)), {}
        bias = biases.sum(0)
        if self.kind == "gru" and options.get("reset_after", True):
            bias, optional["recurrent_bias"] = join_gru_bias(biases)
        if "P" in arrays:  # i, o, f in ONNX and i, f, o in jaxrnn
            optional["peephole"] = arrays["P"][number].reshape(3, -1)[[0, 2, 1]]
        kernel, recurrent = (ordered(arrays[name][number].T) for name in ("W", "R"))
        return make_params(self.kind, kernel, recurrent, bias, **optional)

    def _options(self) -> dict[str, Any]:
        """The options of the cell's constructor that are not the defaults, without its size."""
        found = self._activations()
        last = found[-1]
        expected = {"rnn": [last], "lstm": [SIGMOID, last, last], "gru": [SIGMOID, TANH]}[self.kind]
        function = next((each for name, each in FUNCTIONS.items() if _same(name, last)), None)
        if found != expected * len(self.backward) or function is None:
            words = [" ".join(str(part) for part in each if part is not None) for each in found]
            raise ValueError(
                f"{self.label} has the activations {', '.join(words)}, which jaxrnn's "
                f"{self.kind} has not"
            )
        if self.kind == "gru":
            return {} if self.attributes.get("linear_before_reset") else {"reset_after": False}
        options = {} if last == TANH else {"activation": function}
        return {**options, "peephole": True} if "P" in self.inputs else options

    def _activations(self) -> list[tuple[str, float | None, float | None]]:
        """The activations of all directions with alpha and beta, if they have them."""
        defaults = {
            "rnn": ["Tanh"],
            "lstm": ["Sigmoid", "Tanh", "Tanh"],
            "gru": ["Sigmoid", "Tanh"],
        }
        names = [each.decode(errors="replace") for each in self.attributes.get("activations", [])]
        names = names or defaults[self.kind] * len(self.backward)
        names = [NAMES.get(name.lower(), name) for name in names]
        # Each activation that takes a value takes the next of the list.
        alphas = iter(self.attributes.get("activation_alpha", []))
        betas = iter(self.attributes.get("activation_beta", []))
        return [
            (
                name,
                next(alphas, ALPHA[name]) if name in ALPHA else None,
                next(betas, BETA[name]) if name in BETA else None,
            )
            for name in names
        ]

    def _starts(self, parts: Parts, hidden: int) -> list[dict[str, np.ndarray]]:
        """The leaves of the state of each direction that are constants and not zero."""
        starts: list[dict[str, np.ndarray]] = [{} for _ in self.backward]
        for leaf, name in {"hidden": "initial_h", "cell": "initial_c"}.items():
            value = self.inputs.get(name)
            if value is None or parts.sources(value):  # it is the call's initial_carry
                continue
            state = self.value(parts, name)
            state = np.swapaxes(state, 0, 1) if self.layout else state
            if state.ndim != 3 or state.shape[::2] != (len(starts), hidden) or not state.size:
                raise ValueError(
                    f"{name} of {self.label} must have shape [{len(starts)}, B, {hidden}], "
                    f"got {list(state.shape)}"
                )
            if np.any(state != state[:, :1]):
                raise ValueError(f"{name} of {self.label} differs between examples")
            for start, vector in zip(starts, state[:, 0], strict=True):
                if np.any(vector):
                    start[leaf] = vector
        return starts


def _same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two activations are the same, with alpha and beta in single precision."""
    numbers = [[np.nan if each is None else each for each in (*a[1:],)] for a in (one, other)]
    return one[0] == other[0] and np.allclose(*numbers, rtol=1e-6, atol=0, equal_nan=True)


def _check_model(model: Any) -> None:
    """Raises ValueError if the operators are of an unknown opset, or functions call too many."""
    latest = defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and not 1 <= opset.version <= latest:
            raise ValueError(
                f"the model has the opset {opset.version}, the package onnx knows 1 to {latest}"
            )
    functions = {(each.domain, each.name, each.overload): each for each in model.functions}
    sizes: dict[Any, int] = dict.fromkeys(functions, 0)

    def size(nodes: Any) -> int:
        """The number of nodes when functions are replaced by what they call."""
        return sum(
            1
            + sizes.get((node.domain, node.op_type, node.overload), 0)
            + sum(size(inner.node) for each in node.attribute for inner in (each.g, *each.graphs))
            for node in nodes
        )

    # Functions call each other in any order.
    for _ in range(DEEPEST):
        before = dict(sizes)
        for key, function in functions.items():
            sizes[key] = min(size(function.node), MOST_NODES + 1)
        if sizes == before:
            break
    else:
        raise ValueError(
            f"the functions of the model must not call themselves, nor each other more than "
            f"{DEEPEST} deep"
        )
    if size(model.graph.node) > MOST_NODES:
        raise ValueError(f"the model must have at most {MOST_NODES:,} nodes, functions unfolded")


def module_of(model: Any, inputs: Mapping[str, Any]) -> tuple[Stack | RNN, dict[str, Any]]:
    """The module and its parameters; see `from_onnx`."""
    _check_model(model)
    try:
        model = inliner.inline_local_functions(model)
    except Exception as error:
        raise ValueError(f"the ONNX model cannot be read: {line_of(error)}") from error
    names = {each.name for each in model.graph.input}
    names |= {name for node in model.graph.node for name in node.input}
    if unknown := [str(name) for name in inputs if name not in names]:
        raise ValueError(f"inputs has {', '.join(unknown)}, which the model does not read")
    parts = Parts(model, inputs, set(KINDS))
    operators = [Operator(node) for node in parts.stops]
    if not operators:
        types = sorted({node.op_type for node in model.graph.node})
        found = ", ".join(types) or "no nodes"
        raise ValueError(f"the model must have a node RNN, LSTM or GRU, got {found}")
    layers = _layers(parts, operators)
    every = [each for layer in layers for each in layer]
    cell = _cell({operator.kind for operator in operators}, every)
    learned = any(each.start for each in every)
    backward = [tuple(each.backward for each in layer) for layer in layers]
    options: Any = {
        "learn_initial_state": learned,
        "param_dtype": jax.tree.leaves(every[0].params)[0].dtype,
    }
    if backward == [(True,)]:
        module = RNN(cell, reverse=True, keep_order=True, **options)
        return module, _params(cell, every[0], learned)
    if len({*backward}) > 1 or backward[0] not in ((False,), (False, True)):
        found = ["+".join(("forward", "reverse")[each] for each in layer) for layer in backward]
        raise ValueError(
            f"all layers must be forward or all bidirectional, got the directions {found}"
        )
    module = Stack(cell, len(layers), bidirectional=len(backward[0]) == 2, **options)
    return module, {
        f"layer_{number}{'_reverse' * each.backward}": _params(cell, each, learned)
        for number, layer in enumerate(layers)
        for each in layer
    }


def _cell(kinds: set[str], directions: Sequence[Direction]) -> Any:
    """The cell of all directions."""
    found = [dict(each.options) for each in directions]
    if any(options.get("peephole") for options in found):
        # A layer without peepholes is one whose peepholes are zero.
        found = [{**options, "peephole": True} for options in found]
    if len(kinds) > 1 or any(options != found[0] for options in found):
        raise ValueError(
            f"all layers must have the same cell, got {sorted(kinds)} with the options {found}"
        )
    # As a caller writes it, since each way to write it makes a cell of its own.
    return CONSTRUCTORS[kinds.pop()](found[0].pop("hidden_size"), **found[0])


def _params(cell: Any, direction: Direction, learned: bool) -> dict[str, Any]:
    """The parameters of one direction as those of a layer."""
    params = direction.params
    if cell.origin.options.get("peephole") and params.peephole is None:
        zeros = jnp.zeros((3, direction.options["hidden_size"]), params.kernel.dtype)
        params = params._replace(peephole=zeros)
    found = {"cell": as_dict(params)}
    if learned:
        state = as_dict(cell.initial_state(params))
        dtype = params.kernel.dtype
        start = {name: jnp.asarray(leaf, dtype) for name, leaf in direction.start.items()}
        found["initial_state"] = {**state, **start}
    return found


def _layers(parts: Parts, operators: Sequence[Operator]) -> list[list[Direction]]:
    """The directions of each layer, whose inputs are the outputs of the layer before."""
    first, layers, groups = operators[0], [], []
    time, batch = 3, 2
    if len(operators) > 1 or "sequence_lens" in first.inputs:
        time, batch = first.steps(parts)
    _check_lengths(parts, operators, time)
    for number, operator in enumerate(operators):
        directions = operator.directions(parts)
        if groups and _is_other_direction(parts, groups[-1], operator):
            groups[-1].append(operator)
            layers[-1].append(directions[0])
        else:
            if groups:
                _check_follows(parts, groups[-1], operator)
            groups.append([operator])
            layers.append(directions)
        _set_outputs(parts, operator, number, (time, batch, directions[0].options["hidden_size"]))
    for layer in layers:
        layer.sort(key=lambda each: each.backward)
    return layers


def _is_other_direction(parts: Parts, group: Sequence[Operator], operator: Operator) -> bool:
    """Whether an operator reads what the one of the group reads, from the other end."""
    if len(group) > 1 or [*group[0].backward, *operator.backward] not in ([0, 1], [1, 0]):
        return False
    names = [each.inputs["X"] for each in (group[0], operator)]
    if names[0] == names[1]:
        return True
    if parts.sources(names[0]) != parts.sources(names[1]):
        return False
    return np.array_equal(parts.value(names[0]), parts.value(names[1]))


def _set_outputs(
    parts: Parts, operator: Operator, number: int, sizes: tuple[int, int, int]
) -> None:
    """Puts random numbers in the place of an operator's outputs."""
    time, batch, hidden = sizes
    count = len(operator.backward)
    shapes = [(time, count, batch, hidden), *[(count, batch, hidden)] * 2]
    if operator.layout:
        shapes = [(batch, time, count, hidden), *[(batch, count, hidden)] * 2]
    for name, shape in zip(operator.outputs, shapes, strict=False):
        # Of both signs and of all magnitudes, so that no other function keeps them all, and exact
        # in float16, through which they may go.
        random = np.random.default_rng((number, len(shape)))
        numbers = random.choice((-1, 1), shape) * 2 ** random.uniform(-8, 15, shape)
        parts.dummies[name] = numbers.astype(np.float16).astype(np.float32)


def _check_follows(parts: Parts, group: Sequence[Operator], operator: Operator) -> None:
    """Raises ValueError if an operator reads anything but the outputs of the layer before."""
    name = operator.inputs["X"]
    before = " and ".join(each.label for each in group)
    lengths = {each for one in (*group, operator) for each in _lengths(parts, one)}
    found = parts.sources(name) - lengths
    if found != {each.outputs[0] for each in group}:
        raise ValueError(
            f"X of {operator.label} must be the outputs of {before}, but it depends on "
            f"{', '.join(sorted(found)) or 'nothing'}"
        )
    outputs = []
    for each in sorted(group, key=lambda each: each.backward):
        y = parts.value(each.outputs[0])  # [T, D, B, H], or [B, T, D, H]
        outputs.append(y.transpose((1, 0, 2, 3) if each.layout else (0, 2, 1, 3)))
    expected = np.concatenate([y.reshape(*y.shape[:2], -1) for y in outputs], axis=-1)
    x = operator.value(parts, "X")
    if not np.array_equal(np.swapaxes(x, 0, 1) if operator.layout else x, expected):
        raise ValueError(f"X of {operator.label} is not the outputs of {before} as they are")


def _check_lengths(parts: Parts, operators: Sequence[Operator], time: int) -> None:
    """Raises ValueError unless all layers have the lengths of the call, or all have T steps.

    Every example is then as long as the inputs.
    """
    sources = [_lengths(parts, operator) for operator in operators]
    for operator, found in zip(operators, sources, strict=True):
        if found != sources[0]:
            raise ValueError(
                f"{operator.label} must have the sequence_lens of {operators[0].label}"
            )
        for name in found:
            parts.fill(name, time)
        if "sequence_lens" not in operator.inputs:
            continue
        lengths = operator.value(parts, "sequence_lens")
        if np.any(lengths != time):
            got = "a function of one" if found else f"{lengths.tolist()} for T = {time}"
            raise ValueError(
                f"sequence_lens of {operator.label} must be an input of the model, or T for every "
                f"example, got {got}"
            )


def _lengths(parts: Parts, operator: Operator) -> set[str]:
    return parts.sources(operator.inputs.get("sequence_lens", ""))
