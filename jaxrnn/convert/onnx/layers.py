"""The layers that `to_onnx` writes: ONNX's own operators, or else a `Scan`.

Shapes: B batch, T time, I input features, H hidden units, P output features, G gates, D directions.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.arguments import as_named, check_params, check_state, describe, fresh_shapes
from jaxrnn.cell import Cell, broadcast
from jaxrnn.convert.common import arrays_of, kind_and_options, reorder, split_bias
from jaxrnn.convert.onnx.graph import Graph
from jaxrnn.linen import RNN, Stack

# The options of cells that ONNX's operators have.
OPTIONS = ("activation", "peephole", "reset_after=True", "reset_after=False")
OPERATORS = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}
# The order of the gates in jaxrnn and in ONNX.
GATES = {"rnn": ("h", "h"), "lstm": ("ifgo", "iofg"), "gru": ("rzn", "zrn")}
# Each activation with its name, alpha and beta in ONNX. Softplus is not among them, because that of
# ONNX Runtime's operators overflows at 89.
ACTIVATIONS: dict[Any, tuple[str, float | None, float | None]] = {
    jnp.tanh: ("Tanh", None, None),
    jax.nn.tanh: ("Tanh", None, None),
    jax.lax.tanh: ("Tanh", None, None),
    jax.nn.relu: ("Relu", None, None),
    jax.nn.sigmoid: ("Sigmoid", None, None),
    jax.lax.logistic: ("Sigmoid", None, None),
    jax.nn.soft_sign: ("Softsign", None, None),
    jax.nn.elu: ("Elu", 1.0, None),
    jax.nn.leaky_relu: ("LeakyRelu", 0.01, None),
    jax.nn.hard_sigmoid: ("HardSigmoid", 1 / 6, 0.5),
    jax.nn.identity: ("Affine", 1.0, 0.0),
}


class Lengths(NamedTuple):
    """The names of what follows from the lengths.

    Attributes:
        at_least_one: `[B]` int32, the lengths in 1..T.
        empty: `[B, 1]` booleans, whether the length is 0.
        mask: `[T, B]` booleans, False past an example's length.
    """

    at_least_one: str
    empty: str
    mask: str


class Steps(NamedTuple):
    """What is known of the sequence that a layer reads.

    Attributes:
        size: I, the number of features.
        time: The name of T, a vector of one int64.
        batch: The name of B, likewise.
        lengths: See there; None if all examples have T steps.
    """

    size: int
    time: str
    batch: str
    lengths: Lengths | None = None


class Direction(NamedTuple):
    """A recurrent layer, or one direction of it.

    Attributes:
        place: Its place, as "layer_0/forward".
        params: The parameters of its cell, in float32.
        start: The state before the first step, without the batch axis.
        backward: Whether it reads from the end to the start.
        input_size: I.
        output_size: P.
    """

    place: str
    params: Any
    start: Any
    backward: bool
    input_size: int
    output_size: int

    def leaves(self) -> dict[str, Any]:
        """The leaves of the start by name, as "layer_0/forward/hidden"."""
        named, _ = jax.tree_util.tree_flatten_with_path(self.start)
        write = jax.tree_util.keystr
        return {
            "/".join([self.place, *filter(None, [write(path, simple=True, separator="/")])]): leaf
            for path, leaf in named
        }


def direction(
    module: RNN | Stack,
    place: str,
    params: Mapping[str, Any],
    backward: bool,
    input_size: int | None,
) -> Direction:
    """Checks the parameters of a layer.

    Args:
        module: The module that holds the layer.
        place: Its place.
        params: Its parameters: those of the cell, and of the initial state if that is learned.
        backward: Whether it reads from the end to the start.
        input_size: I, or None to take it from the parameters.

    Raises:
        ValueError: If they do not fit the cell.
    """
    cell, found = module.cell, _in_float32(params["cell"])
    if input_size is None:
        input_size = _input_size(cell, found)
    named = check_params(cell.init, found, input_size)
    start = jax.tree.map(np.asarray, cell.initial_state(named))
    pair = jax.tree.map(np.asarray, cell.initial_state(named, (2,)))
    if not jax.tree.all(jax.tree.map(lambda both, one: np.all(both == one), pair, start)):
        raise ValueError(f"the initial state of {name_of(cell)} differs between examples")
    if "initial_state" in params:
        learned = as_named(start, _in_float32(params["initial_state"]))
        start = check_state(f"the initial_state of {place}", learned, start)
    batch = broadcast(start, (1,))
    x = jax.ShapeDtypeStruct((1, input_size), jnp.float32)
    _, output = jax.eval_shape(cell.step, named, batch, x)
    return Direction(place, named, start, backward, input_size, output.shape[-1])


def _in_float32(tree: Any) -> Any:
    """The tree with its floating-point leaves in float32."""

    def cast(leaf):
        array = np.asarray(leaf)
        floating = jnp.issubdtype(array.dtype, jnp.floating)
        return jnp.asarray(array.astype(np.float32) if floating else array)

    return jax.tree.map(cast, tree)


def _input_size(cell: Cell, params: Any) -> int:
    """I, the size for which the cell's `init` gives parameters of these shapes."""
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(params))
    kernel = params.get("kernel") if isinstance(params, Mapping) else None
    if kernel is not None and kernel.ndim:  # so that the shapes of the others are named
        return kernel.shape[0]
    sizes = [
        size
        for size in sorted({size for shape in shapes for size in shape if size})
        if sorted(leaf.shape for leaf in jax.tree.leaves(fresh_shapes(cell.init, size))) == shapes
    ]
    if len(sizes) != 1:
        raise ValueError(
            f"params do not show how many features {name_of(cell)} reads: {describe(params)}"
        )
    return sizes[0]


def name_of(cell: Cell) -> str:
    """The name of a cell for error messages."""
    if cell.origin is not None and cell.origin.describes(cell):
        variant = cell.origin.options.get("variant")
        return cell.origin.constructor.__name__ + (f"(variant={variant!r})" if variant else "")
    function = cell.gate.function if cell.gate else cell.step
    return getattr(function, "__qualname__", repr(function))


def masked(graph: Graph, value: str, steps: Steps) -> str:
    """The value `[T, B, N]` with zeros past each example's length."""
    if steps.lengths is None:
        return value
    mask = graph.op("Unsqueeze", steps.lengths.mask, graph.integers(2))
    return graph.op("Where", mask, value, graph.constant(0, np.float32))


def write_layer(
    graph: Graph,
    module: RNN | Stack,
    directions: Sequence[Direction],
    inputs: str,
    steps: Steps,
    carry: bool,
) -> str:
    """Writes a layer, and with `carry` the inputs and outputs of its state.

    Args:
        graph: The graph.
        module: The module that holds the layer.
        directions: The layer's directions.
        inputs: The name of its inputs `[T, B, I]`.
        steps: What is known of them.
        carry: See `to_onnx`.

    Returns:
        The name of the outputs `[T, B, D·P]`, zero past an example's length.
    """
    starts = [_start(graph, each, steps, carry) for each in directions]
    native = _native(module)
    if native is None:
        raise ValueError(f"ONNX has no {name_of(module.cell)}")
    outputs, states = _write_native(graph, *native, directions, inputs, steps, starts, carry)
    if carry:
        for each, state in zip(directions, states, strict=True):
            for (name, leaf), value in zip(each.leaves().items(), state, strict=True):
                graph.output(f"{name}_out", value, leaf.dtype, ["batch", *leaf.shape])
    return masked(graph, outputs, steps)


def _start(graph: Graph, each: Direction, steps: Steps, carry: bool) -> list[str]:
    """The names of the leaves of a state before the first step, `[B, …]`; "" for zeros."""
    names = []
    for name, leaf in each.leaves().items():
        if carry:
            names.append(graph.input(name, leaf.dtype, ["batch", *leaf.shape]))
        elif not np.any(leaf):
            names.append("")
        else:
            shape = graph.op("Concat", steps.batch, graph.integers(*leaf.shape), axis=0)
            floating = jnp.issubdtype(leaf.dtype, jnp.floating)
            one = graph.weight(name, leaf) if floating else graph.constant(leaf)
            names.append(graph.op("Expand", one, shape))
    return names


def _native(module: RNN | Stack) -> tuple[str, dict[str, Any]] | None:
    """The kind and the options of a cell that one of ONNX's operators computes."""
    if module.regularizer is not None and module.regularizer.zoneout is not None:
        return None  # at evaluation it averages the states before and after a step
    try:
        kind, options = kind_and_options(module.cell, "ONNX", OPTIONS)
    except ValueError:
        return None
    activation = options.get("activation", jnp.tanh)
    if not (isinstance(activation, Hashable) and activation in ACTIVATIONS):
        return None
    return kind, options


def _write_native(
    graph: Graph,
    kind: str,
    options: dict[str, Any],
    directions: Sequence[Direction],
    inputs: str,
    steps: Steps,
    starts: list[list[str]],
    carry: bool,
) -> tuple[str, list[list[str]]]:
    """Writes a layer as an operator of ONNX; returns its outputs and the states after it."""
    each = [arrays_of(kind, options, one.params) for one in directions]
    layer = directions[0].place.split("/")[0]

    def stacked(name, arrays):
        return graph.weight(f"{layer}/{name}", np.stack(arrays))

    def ordered(array):
        return reorder(array, *GATES[kind])

    weights = [
        stacked("W", [ordered(arrays["kernel"]).T for arrays in each]),
        stacked("R", [ordered(arrays["recurrent_kernel"]).T for arrays in each]),
        stacked("B", [ordered(split_bias(arrays)).ravel() for arrays in each]),
    ]
    lengths = "" if steps.lengths is None else steps.lengths.at_least_one
    peephole = []
    if "peephole" in options:  # i, f, o in jaxrnn and i, o, f in ONNX
        peephole = [stacked("P", [arrays["peephole"][[0, 2, 1]].ravel() for arrays in each])]
    joined = [_joined(graph, steps, directions, leaf) for leaf in zip(*starts, strict=True)]
    given = [inputs, *weights, lengths, *joined, *peephole]
    while not given[-1]:  # optional inputs at the end are left out
        given.pop()
    both = len(directions) > 1
    one = "reverse" if directions[0].backward else "forward"
    attributes = _activations(kind, options, len(directions))
    if kind == "gru":
        attributes["linear_before_reset"] = int("reset_after=True" in options)
    outputs, *states = graph.ops(
        OPERATORS[kind],
        given,
        1 + len(joined) * carry,
        hidden_size=options["hidden_size"],
        direction="bidirectional" if both else one,
        **attributes,
    )
    if both:  # [T, D, B, H] to [T, B, D·H]
        outputs = graph.op("Transpose", outputs, perm=[0, 2, 1, 3])
        outputs = graph.op("Reshape", outputs, graph.integers(0, 0, -1))
    else:
        outputs = graph.op("Squeeze", outputs, graph.integers(1))
    return outputs, [
        [
            _unless_empty(graph, steps, start, graph.op("Gather", state, graph.constant(number)))
            for start, state in zip(starts[number], states, strict=carry)
        ]
        for number in range(len(directions))
    ]


def _activations(kind: str, options: dict[str, Any], count: int) -> dict[str, Any]:
    """The attributes of the activations, which are named only if they are not the defaults."""
    name, alpha, beta = ACTIVATIONS[options.get("activation", jnp.tanh)]
    if name == "Tanh":
        return {}
    names = {"rnn": [name], "lstm": ["Sigmoid", name, name]}[kind] * count
    found: dict[str, Any] = {"activations": names}
    if alpha is not None:  # one for each activation that takes one
        found["activation_alpha"] = [alpha] * names.count(name)
    if beta is not None:
        found["activation_beta"] = [beta] * names.count(name)
    return found


def _joined(
    graph: Graph, steps: Steps, directions: Sequence[Direction], leaves: Sequence[str]
) -> str:
    """A leaf of the state of all directions, `[D, B, N]`, or "" for zeros."""
    if not any(leaves):
        return ""
    parts = []
    for each, leaf in zip(directions, leaves, strict=True):
        if not leaf:  # zeros beside a learned state
            size = each.output_size  # that of every leaf, since ONNX's LSTM has no projection
            shape = graph.op("Concat", steps.batch, graph.integers(size), axis=0)
            leaf = graph.op("Expand", graph.constant(0, np.float32), shape)
        parts.append(graph.op("Unsqueeze", leaf, graph.integers(0)))
    return graph.op("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]


def _unless_empty(graph: Graph, steps: Steps, start: str, state: str) -> str:
    """The state after a layer; for an example of length 0 that before it."""
    return state if steps.lengths is None else graph.op("Where", steps.lengths.empty, start, state)
