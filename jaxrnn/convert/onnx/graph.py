"""ONNX graphs under construction."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

# Opset 17 and IR version 8 are of 2022: every runtime since ONNX Runtime 1.13 reads them.
OPSET, IR_VERSION = 17, 8
FLOAT16_MAX = float(np.finfo(np.float16).max)


class Graph:
    """A graph, or with a parent the body of a `Scan`, whose nodes also see the parent's values.

    Attributes:
        inputs: Its inputs as value infos.
        outputs: Its outputs as value infos.
    """

    def __init__(self, weights: str = "float32", parent: Graph | None = None):
        self.root: Graph = self if parent is None else parent.root
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._weights = weights
        self._nodes: list[Any] = []
        self._initializers: list[Any] = []
        self._constants: dict[Any, str] = {}
        self._named: set[str] = set()
        self._numbers = itertools.count()

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output and returns the output's name."""
        return self.ops(op_type, inputs, 1, **attributes)[0]

    def ops(self, op_type: str, inputs: Sequence[str], count: int, **attributes: Any) -> list[str]:
        """Adds a node and returns the names of its outputs."""
        # A name must be unlike those of the subgraphs as well.
        name = f"{op_type}_{next(self.root._numbers)}"
        outputs = [name if count == 1 else f"{name}_{number}" for number in range(count)]
        self._nodes.append(helper.make_node(op_type, list(inputs), outputs, name, **attributes))
        return outputs

    def constant(self, value: Any, dtype: Any = None) -> str:
        """The name of a constant; equal ones are the same."""
        array = np.asarray(value, dtype)
        key = array.dtype, array.shape, array.tobytes()
        constants = self.root._constants
        if key not in constants:
            constants[key] = f"constant_{len(constants)}"
            self.root._initializers.append(numpy_helper.from_array(array, constants[key]))
        return constants[key]

    def integers(self, *values: int | np.integer) -> str:
        """The name of a constant vector of int64, as axes and shapes are given."""
        return self.constant(values, np.int64)

    def weight(self, name: str, value: Any) -> str:
        """The name of a parameter; one in float32 is stored in the dtype of the weights."""
        self._claim(name)
        array = np.array(value, order="C")
        if array.dtype != np.float32 or self._weights == "float32":
            self.root._initializers.append(numpy_helper.from_array(array, name))
            return name
        if array.size and np.max(np.abs(array)) > FLOAT16_MAX:
            raise ValueError(
                f"{name} does not fit float16: it holds {np.max(np.abs(array)):g}, more than "
                f"{FLOAT16_MAX:g}"
            )
        stored = numpy_helper.from_array(array.astype(np.float16), name)
        self.root._initializers.append(stored)
        return self.root.op("Cast", name, to=TensorProto.FLOAT)

    def input(self, name: str, dtype: Any, shape: Sequence[int | str]) -> str:
        """Adds an input and returns its name."""
        self._claim(name)
        self.inputs.append(_info(name, dtype, shape))
        return name

    def output(self, name: str, value: str, dtype: Any, shape: Sequence[int | str]) -> None:
        """Adds an output under a name of its own."""
        self._claim(name)
        self._nodes.append(helper.make_node("Identity", [value], [name], f"{name}_identity"))
        self.outputs.append(_info(name, dtype, shape))

    def _claim(self, name: str) -> None:
        """Raises ValueError if another value has the name."""
        if name in self.root._named:
            raise ValueError(f"two values of the ONNX model would have the name {name}")
        self.root._named.add(name)

    def proto(self, name: str) -> Any:
        """The graph as `onnx.GraphProto`."""
        return helper.make_graph(
            self._nodes, name, self.inputs, self.outputs, initializer=self._initializers
        )


def _info(name: str, dtype: Any, shape: Sequence[int | str]) -> Any:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, element, list(shape))
