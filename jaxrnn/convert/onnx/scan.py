"""Layers of cells that ONNX has no operator for: a `Scan` over the cell's step.

Shapes: B batch, T time, I input features, P output features.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.extend.core import ClosedJaxpr

from jaxrnn.backends import steps
from jaxrnn.cell import Cell
from jaxrnn.convert.onnx.graph import Graph
from jaxrnn.convert.onnx.layers import Direction, Steps, name_of, path_of, reversed_each, vectors
from jaxrnn.convert.onnx.primitives import Unsupported, Value, translate
from jaxrnn.regularize import Regularizer, regularize


def write_scan(
    graph: Graph,
    cell: Cell,
    regularizer: Regularizer | None,
    direction: Direction,
    inputs: str,
    sequence: Steps,
    start: list[str],
) -> tuple[str, list[str]]:
    """Writes one direction of a layer.

    Args:
        graph: The graph.
        cell: The cell.
        regularizer: The regularizer; zoneout averages at evaluation.
        direction: The direction.
        inputs: The name of the inputs `[T, B, I]`.
        sequence: What is known of them.
        start: The names of the leaves of the state before the first step, "" for zeros.

    Returns:
        The names of the outputs `[T, B, P]` and of the leaves of the state after the last step.

    Raises:
        ValueError: If a primitive of the cell's step has no counterpart in ONNX.
    """
    leaves, place = direction.leaves(), direction.place
    body = Graph(parent=graph)
    # Names that start otherwise than those of the states, whose leaves may have any name.
    before = [
        body.input(f"before/{name}", leaf.dtype, ["batch", *leaf.shape])
        for name, leaf in leaves.items()
    ]
    scanned = [body.input(f"x/{place}", np.float32, ["batch", direction.input_size])]
    given = [reversed_each(graph, inputs, sequence) if direction.backward else inputs]
    if sequence.lengths is not None:
        scanned.append(body.input(f"mask/{place}", bool, ["batch"]))
        given.append(sequence.lengths.mask)
    named, _ = jax.tree_util.tree_flatten_with_path(direction.params)
    parameters = [graph.weight(f"params/{place}/{path_of(path)}", leaf) for path, leaf in named]
    jaxpr = _step(cell, regularizer, direction, len(scanned) > 1)
    constants = [graph.constant(np.asarray(each)) for each in jaxpr.consts]
    values = [Value(each, True) for each in (*constants, *parameters)]
    values += [Value(each, False) for each in (*before, *scanned)]
    try:
        *after, output = translate(jaxpr.jaxpr, values, body, sequence.batch)
    except Unsupported as error:
        raise ValueError(
            f"ONNX cannot express {name_of(cell)}, whose step has the primitive {error}"
        ) from error
    for (name, leaf), value in zip(leaves.items(), after, strict=True):
        body.output(f"after/{name}", value.name, leaf.dtype, ["batch", *leaf.shape])
    body.output(f"y/{place}", output.name, np.float32, ["batch", direction.output_size])
    *states, outputs = graph.ops(
        "Scan",
        [*vectors(graph, sequence, direction, start), *given],
        len(leaves) + 1,
        body=body.proto(place),
        num_scan_inputs=len(scanned),
    )
    return reversed_each(graph, outputs, sequence) if direction.backward else outputs, states


def _step(
    cell: Cell, regularizer: Regularizer | None, direction: Direction, masked: bool
) -> ClosedJaxpr:
    """One time step, `(params, state, x[, mask]) -> (state, output)`, of any number of examples."""
    zoneout = None
    if regularizer is not None:
        one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], direction.start)
        _, _, zoneout = regularize(None, regularizer, cell, direction.params, one, 1)
        zoneout = jax.tree.map(lambda leaf: leaf[0], zoneout)
    (batch,) = export.symbolic_shape("batch")

    def run(params, state, x, mask):
        after, output = cell.step(params, state, x)
        state = steps.finish(steps.Steps(x, mask, None, None, zoneout), after, state)
        output = jax.tree.leaves(state)[0] if cell.outputs_state else output
        return state, output.astype(jnp.float32)

    def shaped(leaf):
        return jax.ShapeDtypeStruct((batch, *leaf.shape), leaf.dtype)

    state = jax.tree.map(shaped, direction.start)
    x = jax.ShapeDtypeStruct((batch, direction.input_size), jnp.float32)
    mask = jax.ShapeDtypeStruct((batch,), bool) if masked else None
    try:
        return jax.make_jaxpr(run)(direction.params, state, x, mask)
    except Exception as error:
        raise ValueError(
            f"ONNX cannot express {name_of(cell)}, whose step fails for a batch of unknown size: "
            f"{type(error).__name__}: {error}"
        ) from error
