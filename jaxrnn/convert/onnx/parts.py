"""Parts of an ONNX model: what a value depends on, and what it is."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

RANDOM = ("Bernoulli", "Multinomial")  # and RandomNormal, RandomUniformLike and so on
LARGEST = 10**7  # numbers in an array that stands in for an input


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
        graph = helper.make_graph(
            sorted(nodes, key=lambda node: order[id(node)]),
            "part",
            [helper.make_empty_tensor_value_info(each) for each in dummies],
            [helper.make_empty_tensor_value_info(name)],
            [numpy_helper.from_array(array, each) for each, array in known.items()],
        )
        model = helper.make_model(graph, opset_imports=self._opsets, ir_version=self._version)
        try:
            (found,) = ReferenceEvaluator(model).run([name], dummies)
        except Exception as error:
            raise ValueError(f"{name} cannot be computed: {line_of(error)}") from error
        return np.asarray(found)

    def _array(self, name: str) -> np.ndarray:
        """The array of this name that is in the model, or stands for one of its inputs."""
        found = self._known[name]
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
