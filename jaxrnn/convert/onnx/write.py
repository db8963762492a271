"""What `to_onnx` writes around the layers: lengths, states, residual connections, the readout.

Between the layers time is the first axis.

Shapes: B batch, T time, I input features, P output features of a direction, D directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

import jaxrnn
from jaxrnn.arguments import describe
from jaxrnn.convert.onnx.graph import IR_VERSION, OPSET, Graph
from jaxrnn.convert.onnx.layers import (
    Direction,
    Lengths,
    Steps,
    direction,
    expanded,
    in_float32,
    masked,
    reversed_each,
)
from jaxrnn.convert.onnx.native import operator_of, write_native
from jaxrnn.convert.onnx.scan import write_scan
from jaxrnn.linen import RNN, Classifier, Stack


def model_of(module: Any, params: Any, *, lengths: bool, carry: bool, weights: str) -> Any:
    """The model; see `to_onnx`. The parameters are those alone."""
    for each in (module, *([module.stack] if isinstance(module, Classifier) else [])):
        if type(each) not in (RNN, Stack, Classifier):  # a subclass may compute something else
            kind = type(each).__name__
            raise ValueError(f"module must be an RNN, Stack or Classifier of jaxrnn, got {kind}")
    graph = Graph(weights)
    if isinstance(module, Classifier):
        params = _children(params, {"stack", "readout"}, "params")
        outputs, steps = _write_stack(graph, module.stack, params["stack"], lengths, carry)
        _write_logits(graph, module, params["readout"], outputs, steps)
    else:
        outputs, steps = _write_stack(graph, module, params, lengths, carry)
        size, axes = steps.size, ["time", "batch"]
        if not _time_major(module):
            outputs, axes = graph.op("Transpose", outputs, perm=[1, 0, 2]), ["batch", "time"]
        graph.output("outputs", outputs, np.float32, [*axes, size])
    graph.outputs.insert(0, graph.outputs.pop())  # before the states
    model = helper.make_model(
        graph.proto("jaxrnn"),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="jaxrnn",
        producer_version=jaxrnn.__version__,
    )
    onnx.checker.check_model(model)
    return model


def _time_major(module: RNN | Stack) -> bool:
    return isinstance(module, RNN) and module.time_major


def _children(params: Any, names: set[str], place: str) -> Mapping[str, Any]:
    """The parameters, if they are those of these submodules and no others."""
    if not isinstance(params, Mapping) or params.keys() != names:
        found = sorted(params) if isinstance(params, Mapping) else describe(params)
        raise ValueError(f"{place} must hold {sorted(names)}, got {found}")
    return params


def _write_stack(
    graph: Graph, module: RNN | Stack, params: Any, lengths: bool, carry: bool
) -> tuple[str, Steps]:
    """Writes the layers; returns their outputs `[T, B, D·P]` and what is known of the steps."""
    layers, size = _layers(module, params)
    axes = ["time", "batch"] if _time_major(module) else ["batch", "time"]
    outputs = graph.input("inputs", np.float32, [*axes, size])
    if not _time_major(module):
        outputs = graph.op("Transpose", outputs, perm=[1, 0, 2])
    steps = Steps(
        size,
        time=graph.op("Shape", outputs, start=0, end=1),
        batch=graph.op("Shape", outputs, start=1, end=2),
    )
    if lengths:
        steps = steps._replace(lengths=_lengths(graph, steps))
    residual = isinstance(module, Stack) and module.residual
    if residual or operator_of(module) is None:
        outputs = masked(graph, outputs, steps)
    for directions in layers:
        below, outputs = outputs, _write_layer(graph, module, directions, outputs, steps, carry)
        size = sum(each.output_size for each in directions)
        if residual and size == steps.size:
            outputs = graph.op("Add", outputs, below)
        steps = steps._replace(size=size)
    if isinstance(module, RNN) and module.reverse and not module.keep_order:
        outputs = reversed_each(graph, outputs, steps)
    return outputs, steps


def _layers(module: RNN | Stack, params: Any) -> tuple[list[list[Direction]], int]:
    """The directions of each layer, and I, the number of input features of the first."""
    own = {"cell", "initial_state"} if module.learn_initial_state else {"cell"}
    if isinstance(module, RNN):
        backward = (module.reverse,)
        numbers, names = range(1), {(0, module.reverse): ""}
        params = {"": params}
    else:
        backward = (False, True) if module.bidirectional else (False,)
        numbers = range(module.num_layers)
        names = {
            (number, each): f"layer_{number}{'_reverse' if each else ''}"
            for number in numbers
            for each in backward
        }
        params = _children(params, set(names.values()), "params")
    layers, size = [], None
    for number in numbers:
        layer = []
        for each in backward:
            name = names[number, each]
            place = f"layer_{number}/{'backward' if each else 'forward'}"
            found = _children(params[name], own, f"params of {name}" if name else "params")
            layer.append(direction(module, place, found, each, size))
            size = layer[-1].input_size if size is None else size
        layers.append(layer)
        size = sum(each.output_size for each in layer)
    return layers, layers[0][0].input_size


def _write_layer(
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
    if native := operator_of(module):
        outputs, states = write_native(graph, *native, directions, inputs, steps, starts, carry)
    else:
        written = [
            write_scan(graph, module.cell, module.regularizer, each, inputs, steps, start)
            for each, start in zip(directions, starts, strict=True)
        ]
        outputs = [output for output, _ in written]
        outputs = graph.op("Concat", *outputs, axis=2) if len(written) > 1 else outputs[0]
        states = [state for _, state in written]
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
            names.append(expanded(graph, steps, graph.weight(name, leaf), leaf.shape))
    return names


def _lengths(graph: Graph, steps: Steps) -> Lengths:
    """Adds the input of the lengths."""
    found = graph.input("lengths", np.int32, ["batch"])
    time = graph.op("Cast", steps.time, to=TensorProto.INT32)
    numbers = graph.op(
        "Range",
        graph.constant(0, np.int32),
        graph.op("Squeeze", time, graph.integers(0)),
        graph.constant(1, np.int32),
    )
    one = graph.constant([1], np.int32)
    empty = graph.op("Less", found, one)
    return Lengths(
        at_least_one=graph.op("Max", graph.op("Min", found, time), one),
        empty=graph.op("Unsqueeze", empty, graph.integers(1)),
        mask=graph.op("Less", graph.op("Unsqueeze", numbers, graph.integers(1)), found),
    )


def _write_logits(
    graph: Graph, module: Classifier, params: Any, outputs: str, steps: Steps
) -> None:
    """Writes the readout of a classifier, over the outputs `[T, B, P]` of its layers."""
    names = {"kernel": (steps.size, module.num_classes), "bias": (module.num_classes,)}
    params = _children(params, set(names), "params of readout")
    for name, shape in names.items():
        if np.shape(params[name]) != shape:
            raise ValueError(
                f"{name} of readout must have shape {shape}, got {np.shape(params[name])}"
            )
    if module.every_step:
        outputs = graph.op("Transpose", outputs, perm=[1, 0, 2])
    else:
        outputs = _last(graph, outputs, steps, module.stack.bidirectional)
    kernel, bias = (graph.weight(f"readout/{name}", in_float32(params[name])) for name in names)
    logits = graph.op("Add", graph.op("MatMul", outputs, kernel), bias)
    axes = ["batch", "time"] if module.every_step else ["batch"]
    graph.output("logits", logits, np.float32, [*axes, module.num_classes])


def _last(graph: Graph, outputs: str, steps: Steps, bidirectional: bool) -> str:
    """The outputs `[B, P]` after each example was read; see `jaxrnn.linen.last_output`."""
    if steps.lengths is None:
        last = graph.op("Gather", outputs, graph.constant(-1, np.int64), axis=0)
    else:
        lengths = graph.op("Cast", steps.lengths.at_least_one, to=TensorProto.INT64)
        index = graph.op("Sub", lengths, graph.integers(1))
        by_example = graph.op("Transpose", outputs, perm=[1, 0, 2])
        index = graph.op("Unsqueeze", index, graph.integers(1))
        last = graph.op("GatherND", by_example, index, batch_dims=1)
    if not bidirectional:
        return last
    first = graph.op("Gather", outputs, graph.constant(0, np.int64), axis=0)
    half, end, axis = graph.integers(steps.size // 2), graph.integers(steps.size), graph.integers(1)
    forward = graph.op("Slice", last, graph.integers(0), half, axis)
    backward = graph.op("Slice", first, half, end, axis)
    return graph.op("Concat", forward, backward, axis=1)
