"""Parts of an ONNX model: what a value depends on, and what it is."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from onnx import (
    AttributeProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
    shape_inference,
)
from onnx.reference import ReferenceEvaluator

RANDOM = ("Bernoulli", "Multinomial")  # and RandomNormal, RandomUniformLike and so on
LARGEST = 10**7  # numbers in an array that stands in for an input
SMALL = 1000  # numbers in an array that may be a shape


class Parts:
    """The values of a model, computed from its initializers and from what stands in for the rest.

    A value depends on another only by its shape if every path between them leads through `Shape`.

    Attributes:
        stops: The nodes at which a part ends, in the model's order; their outputs are not computed.
    """

    def __init__(self, model: Any, inputs: Mapping[str, Any], stops: Collection[str]):
        graph = model.graph
        self._opsets = model.opset_import
        self._version = model.ir_version
        for tensor in _tensors(graph):
            if tensor.data_location == TensorProto.EXTERNAL:
                raise ValueError(
                    f"the numbers of {tensor.name} are in another file, which is read only of a "
                    "model given by its path"
                )
        self._known: dict[str, Any] = {each.name: each for each in graph.initializer}
        self._known |= {name: np.asarray(array) for name, array in inputs.items()}
        self.stops = [
            node for node in graph.node if node.op_type in stops and node.domain in ("", "ai.onnx")
        ]
        self._makers: dict[str, NodeProto] = {
            name: node for node in graph.node for name in node.output if name
        }
        self._stopping = {name for node in self.stops for name in node.output}
        self._inputs = {each.name: each for each in graph.input if each.name not in self._known}
        self._values = {*self._known, *self._makers, *self._inputs}
        self._sizes: dict[str, int] = {}
        # What stands in for the inputs of the model and for the outputs of the stops.
        self.dummies: dict[str, np.ndarray] = {}

    def sources(self, name: str, *, shapes: bool = False) -> set[str]:
        """The inputs of the model and the outputs of stops on which a value depends.

        Args:
            name: The value.
            shapes: Whether those on which it depends by their shape alone are among them.
        """
        found, seen, names = set(), set(), [name]
        while names:
            name = names.pop()
            if not name or name in seen or name in self._known:
                continue
            seen.add(name)
            node = self._makers.get(name)
            if node is None or name in self._stopping or _is_random(node):
                found.add(name)
            elif shapes or node.op_type not in ("Shape", "Size"):
                names += self._read(node)
        return found

    def value(self, name: str) -> np.ndarray:
        """A value, computed with the dummies.

        Raises:
            ValueError: If ONNX's reference implementation cannot compute it.
        """
        if name in self._known:
            return self._array(name)
        nodes, known, names = [], {}, [name]
        sources = self.sources(name, shapes=True)
        dummies = {each: self._dummy(each) for each in sources}
        seen = set(dummies)
        while names:
            each = names.pop()
            if not each or each in seen:
                continue
            seen.add(each)
            if each in self._known:
                known[each] = self._array(each)
            else:
                nodes.append(node := self._makers[each])
                seen |= set(node.output)
                names += self._read(node)
        order = {id(node): number for number, node in enumerate(self._makers.values())}
        values = known | dummies
        for node in sorted(nodes, key=lambda node: order[id(node)]):
            try:
                values |= self._run(node, values)
            except Exception as error:
                raise ValueError(f"{name} cannot be computed: {line_of(error)}") from error
        return np.asarray(values[name])

    def _run(self, node: NodeProto, values: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs of a node.

        Raises:
            ValueError: If there is no end to it, or an output would be too large.
        """
        if node.op_type == "Loop":
            raise ValueError("a Loop may have no end")
        names = dict.fromkeys(self._read(node))
        if early := [each for each in names if each not in values]:
            raise ValueError(f"{early[0]} is read before it is computed")
        inputs = {each: values[each] for each in names}
        arrays = {each: a for each, a in inputs.items() if isinstance(a, np.ndarray)}
        # Shapes and the like are constants for the inference of the shape of what they make.
        small = {each for each, array in arrays.items() if array.size <= SMALL}
        graph = helper.make_graph(
            [node],
            "part",
            [_info(each, inputs[each]) for each in inputs.keys() - small],
            [helper.make_empty_tensor_value_info(each) for each in node.output if each],
            [numpy_helper.from_array(arrays[each], each) for each in sorted(small)],
        )
        model = helper.make_model(graph, opset_imports=self._opsets, ir_version=self._version)
        given = sum(array.size for array in arrays.values())
        for info in shape_inference.infer_shapes(model).graph.output:
            shape = [each.dim_value for each in info.type.tensor_type.shape.dim]
            if math.prod(shape) > max(LARGEST, 2 * given):
                raise ValueError(f"{info.name} has the shape {shape}, which is too large")
        found = ReferenceEvaluator(model).run(
            None, {each: inputs[each] for each in inputs.keys() - small}
        )
        return dict(zip(filter(None, node.output), found, strict=True))

    def _array(self, name: str) -> np.ndarray:
        """The array of this name that is in the model, or stands for one of its inputs."""
        found = self._known[name]
        if isinstance(found, TensorProto) and min(found.dims, default=0) < 0:
            raise ValueError(f"{name} cannot be read: it has the shape {list(found.dims)}")
        try:
            return numpy_helper.to_array(found) if isinstance(found, TensorProto) else found
        except Exception as error:
            raise ValueError(f"{name} cannot be read: {line_of(error)}") from error

    def fill(self, name: str, value: int) -> None:
        """Puts this number everywhere into what stands in for an input of the model."""
        self.dummies[name] = np.full_like(self._dummy(name), value)

    def _dummy(self, name: str) -> np.ndarray:
        """What stands in for an input of the model or for an output of a stop."""
        if name not in self.dummies:
            if name not in self._inputs:
                raise ValueError(f"{name} is no input of the model and has no known shape")
            self.dummies[name] = _dummy(self._inputs[name], self._sizes)
        return self.dummies[name]

    def _read(self, node: NodeProto) -> list[str]:
        """The names that a node reads, also those that its subgraphs read of the graph around."""
        names = list(node.input)
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                names += [name for each in attribute.g.node for name in self._read(each)]
        return [name for name in names if name in self._values]


def line_of(error: Exception) -> str:
    """The message of an error of another library, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _info(name: str, value: Any) -> ValueInfoProto:
    """The type and shape of a value, if it is an array."""
    if not isinstance(value, np.ndarray):
        return helper.make_empty_tensor_value_info(name)
    dtype = helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_value_info(name, dtype, value.shape)


def _is_random(node: NodeProto) -> bool:
    return node.op_type.startswith("Random") or node.op_type in RANDOM


def _tensors(graph: Any) -> Iterator[TensorProto]:
    """The tensors of a graph and of its nodes, whose numbers may be in another file."""
    yield from graph.initializer
    for node in graph.node:
        for each in node.attribute:
            yield from (each.t, each.sparse_tensor.values, *each.tensors)
            for inner in (each.g, *each.graphs):
                yield from _tensors(inner)


def _dummy(info: Any, sizes: dict[str, int]) -> np.ndarray:
    """An array of the shape of an input, where each unknown size is another."""
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        raise ValueError(f"{info.name} has no known shape")
    primes = (2, 3, 5, 7, 11, 13, 17, 19)
    shape = []
    for number, dim in enumerate(tensor.shape.dim):
        name = dim.dim_param or f"{info.name}.{number}"
        free = primes[len(sizes) % len(primes)]
        shape.append(dim.dim_value or sizes.setdefault(name, free))
    if min(shape, default=1) < 0 or math.prod(shape) > LARGEST:
        raise ValueError(f"{info.name} has the shape {shape}, which is too large")
    try:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    except (KeyError, TypeError):
        raise ValueError(f"{info.name} has no known dtype") from None
    if not np.issubdtype(dtype, np.floating):
        return np.ones(shape, dtype)
    return np.random.default_rng(len(sizes)).normal(size=shape).astype(dtype)
