"""Layers that one of ONNX's operators computes: its RNN, LSTM and GRU.

Shapes: B batch, T time, I input features, H hidden units, G gates, D directions.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.convert.common import arrays_of, kind_and_options, reorder, split_bias
from jaxrnn.convert.onnx.graph import Graph
from jaxrnn.convert.onnx.layers import Direction, Steps, vectors
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


def operator_of(module: RNN | Stack) -> tuple[str, dict[str, Any]] | None:
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


def write_native(
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
    if any(map(any, starts)):  # no zeros beside other states
        starts = [
            vectors(graph, steps, each, start)
            for each, start in zip(directions, starts, strict=True)
        ]
    joined = [_joined(graph, leaf) for leaf in zip(*starts, strict=True)]
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


def _joined(graph: Graph, leaves: Sequence[str]) -> str:
    """A leaf of the state of all directions, `[D, B, N]`, or "" for zeros."""
    if not any(leaves):
        return ""
    parts = [graph.op("Unsqueeze", leaf, graph.integers(0)) for leaf in leaves]
    return graph.op("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]


def _unless_empty(graph: Graph, steps: Steps, start: str, state: str) -> str:
    """The state after a layer; for an example of length 0 that before it."""
    return state if steps.lengths is None else graph.op("Where", steps.lengths.empty, start, state)
