"""What `to_onnx` knows of a layer before it writes it, and what both ways to write it share.

Shapes: B batch, T time, I input features, P output features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from onnx import TensorProto

from jaxrnn.arguments import as_named, check_params, check_state, describe, fresh_shapes
from jaxrnn.cell import Cell, broadcast
from jaxrnn.convert.onnx.graph import Graph
from jaxrnn.linen import RNN, Stack


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
        return {f"{self.place}/{path_of(path)}": leaf for path, leaf in named}


def path_of(path: Any) -> str:
    """The path of a leaf of a tree in words; a tree of one leaf has the path "state"."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or "state"


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
    cell, found = module.cell, in_float32(params["cell"])
    if input_size is None:
        input_size = _input_size(cell, found)
    named = check_params(cell.init, found, input_size)
    start = jax.tree.map(np.asarray, cell.initial_state(named))
    pair = jax.tree.map(np.asarray, cell.initial_state(named, (2,)))
    if not jax.tree.all(jax.tree.map(lambda both, one: np.all(both == one), pair, start)):
        raise ValueError(f"the initial state of {name_of(cell)} differs between examples")
    if "initial_state" in params:
        learned = as_named(start, in_float32(params["initial_state"]))
        start = check_state(f"the initial_state of {place}", learned, start)
    batch = broadcast(start, (1,))
    x = jax.ShapeDtypeStruct((1, input_size), jnp.float32)
    _, output = jax.eval_shape(cell.step, named, batch, x)
    return Direction(place, named, start, backward, input_size, output.shape[-1])


def in_float32(tree: Any) -> Any:
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


def expanded(graph: Graph, steps: Steps, value: str, shape: tuple[int, ...]) -> str:
    """The same value for every example."""
    sizes = steps.batch
    if shape:
        sizes = graph.op("Concat", steps.batch, graph.integers(*shape), axis=0)
    return graph.op("Expand", value, sizes)


def vectors(graph: Graph, steps: Steps, direction: Direction, start: list[str]) -> list[str]:
    """The names of the leaves of a state, with zeros for the names that are ""."""
    return [
        name or expanded(graph, steps, graph.constant(np.zeros_like(leaf)), leaf.shape)
        for name, leaf in zip(start, direction.leaves().values(), strict=True)
    ]


def reversed_each(graph: Graph, outputs: str, steps: Steps) -> str:
    """The outputs with each example reversed in time within its own length."""
    if steps.lengths is None:
        lengths = graph.op("Expand", steps.time, steps.batch)
    else:  # to reverse one step changes nothing
        lengths = graph.op("Cast", steps.lengths.at_least_one, to=TensorProto.INT64)
    return graph.op("ReverseSequence", outputs, lengths, batch_axis=1, time_axis=0)
