"""Parts of an ONNX model: what a value depends on, and what it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from onnx import AttributeProto, NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator


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
        self._known = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
        self._known |= {name: np.asarray(array) for name, array in inputs.items()}
        self.stops = [
            node for node in graph.node if node.op_type in stops and node.domain in ("", "ai.onnx")
        ]
        self._makers: dict[str, NodeProto] = {
            name: node for node in graph.node for name in node.output if name
        }
        self._stopping = {name for node in self.stops for name in node.output}
        inputs_left = [each for each in graph.input if each.name not in self._known]
        self._values = {*self._known, *self._makers, *(each.name for each in inputs_left)}
        # What stands in for the inputs of the model and for the outputs of the stops.
        sizes: dict[str, int] = {}
        found = {each.name: _dummy(each, sizes) for each in inputs_left}
        self.dummies = {name: array for name, array in found.items() if array is not None}

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
            if node is None or name in self._stopping:
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
            return self._known[name]
        nodes, known, names = [], {}, [name]
        sources = self.sources(name, shapes=True)
        if unknown := sorted(sources - self.dummies.keys()):
            raise ValueError(f"{name} cannot be computed: {', '.join(unknown)} has no known shape")
        dummies = {each: self.dummies[each] for each in sources}
        seen = set(dummies)
        while names:
            each = names.pop()
            if not each or each in seen:
                continue
            seen.add(each)
            if each in self._known:
                known[each] = self._known[each]
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
            raise ValueError(f"{name} cannot be computed: {error}") from error
        return np.asarray(found)

    def _read(self, node: NodeProto) -> list[str]:
        """The names that a node reads, also those that its subgraphs read of the graph around."""
        names = list(node.input)
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                names += [name for each in attribute.g.node for name in self._read(each)]
        return [name for name in names if name in self._values]


def _dummy(info: Any, sizes: dict[str, int]) -> np.ndarray | None:
    """An array of the shape of an input, where each unknown size is another; None if unknown."""
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    primes = (2, 3, 5, 7, 11, 13, 17, 19)
    shape = []
    for number, dim in enumerate(tensor.shape.dim):
        name = dim.dim_param or f"{info.name}.{number}"
        free = primes[len(sizes) % len(primes)]
        shape.append(dim.dim_value or sizes.setdefault(name, free))
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if not np.issubdtype(dtype, np.floating):
        return np.ones(shape, dtype)
    return np.random.default_rng(len(sizes)).normal(size=shape).astype(dtype)
