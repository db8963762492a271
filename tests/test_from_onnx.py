"""Recurrent layers read from ONNX models: of ONNX's own tests, of exporters, and of ours.

What is read is written again and run, since `test_onnx.py` tests what is written.
"""

import importlib
from pathlib import Path

import jax
import numpy as np
import pytest
from onnx_models import NATIVE, B, H, I, T, normal, run, variables

import jaxrnn
from jaxrnn import convert as weights_of
from jaxrnn.arguments import as_dict
from jaxrnn.convert import onnx as convert
from jaxrnn.linen import RNN, Stack

onnx = pytest.importorskip("onnx")
helper = pytest.importorskip("onnx.helper")

GOLDEN = Path(__file__).parent / "golden"


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def backend_cases():
    node = importlib.import_module("onnx.backend.test.case.node")
    for name in ("lstm", "gru", "rnn"):  # all of them would take half a minute
        importlib.import_module(f"onnx.backend.test.case.node.{name}")
    operators = ("RNN", "LSTM", "GRU")
    cases = {case.name: case for case in node._NodeTestCases}
    return {
        name: case for name, case in cases.items() if case.model.graph.node[0].op_type in operators
    }


CASES = backend_cases()


def test_onnx_has_cases():
    assert len(CASES) >= 18


@pytest.mark.parametrize("name", CASES)
def test_onnx_test_cases_pass(name):
    case = CASES[name]
    ((arrays, expected),) = case.data_sets
    node = case.model.graph.node[0]
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    batch_first = attributes.get("layout", 0) == 1
    given = dict(zip([each.name for each in case.model.graph.input], arrays, strict=True))
    inputs, lengths = given.pop("X"), given.pop("seq_lens", None)
    carry = [given.pop(name) for name in ("initial_h", "initial_c") if name in given]
    module, params = convert.from_onnx(case.model, given)
    model = convert.to_onnx(module, params, lengths=lengths is not None, carry=True)
    # In the order of the model's inputs: for each direction the leaves of its state.
    directions = 2 if attributes.get("direction") == b"bidirectional" else 1
    size, leaves = attributes["hidden_size"], 2 if node.op_type == "LSTM" else 1
    inputs = inputs if batch_first else np.swapaxes(inputs, 0, 1)
    zeros = np.zeros((directions, len(inputs), size), np.float32)
    carry = [np.swapaxes(each, 0, 1) if batch_first else each for each in carry]
    carry = [*carry, *[zeros] * (leaves - len(carry))]
    carry = [leaf[direction] for direction in range(directions) for leaf in carry]
    values = [inputs, *([] if lengths is None else [lengths]), *carry]
    names = [each.name for each in model.graph.input]
    outputs, *states = run(model, dict(zip(names, values, strict=True)))
    found = {
        "Y": outputs.reshape(*outputs.shape[:2], directions, size),
        "Y_h": np.stack(states[::leaves], axis=1),
        "Y_c": np.stack(states[leaves - 1 :: leaves], axis=1),
    }
    made = [kind for kind, name in zip(("Y", "Y_h", "Y_c"), node.output, strict=False) if name]
    for kind, array in zip(made, expected, strict=True):
        array = array if batch_first else np.moveaxis(array, -2, 0)
        np.testing.assert_allclose(found[kind], array, atol=1e-6, rtol=1e-6)


EXPORTED = {
    "torch_rnn_relu": jaxrnn.rnn(H, activation=jax.nn.relu),
    "torch_lstm": jaxrnn.lstm(H),
    "torch_lstm_dynamo": jaxrnn.lstm(H),
    "torch_gru": jaxrnn.gru(H),
    "torch_gru_dynamo": jaxrnn.gru(H),
    "keras_lstm": jaxrnn.lstm(H),
    "keras_gru": jaxrnn.gru(H),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_exporters_write_the_same_weights(name):
    module, params = convert.from_onnx(GOLDEN / f"{name}.onnx")
    file, kind = name.removesuffix("_dynamo"), name.split("_")[1]
    with np.load(GOLDEN / f"{file}.npz") as arrays:
        weights = {
            key.removeprefix("weights/"): arrays[key]
            for key in arrays
            if key.startswith("weights/")
        }
    if name.startswith("torch"):
        expected = {
            f"layer_{number}{suffix}": {"cell": as_dict(direction)}
            for number, directions in enumerate(weights_of.from_torch(kind, weights))
            for direction, suffix in zip(directions, ("", "_reverse"), strict=True)
        }
        assert module == Stack(EXPORTED[name], num_layers=2, bidirectional=True)
    else:
        expected = {"layer_0": {"cell": as_dict(weights_of.from_keras(kind, weights))}}
        assert module == Stack(EXPORTED[name])
    assert_same(params, expected)


def test_layers_of_keras_compute_the_same():
    model = onnx.load(GOLDEN / "keras_lstm_bidirectional.onnx")
    module, params = convert.from_onnx(model)
    assert (module.num_layers, module.bidirectional) == (2, True)
    given = {"inputs": normal(0, (B, T, I))}
    found = run(convert.to_onnx(module, params), given)
    np.testing.assert_allclose(found, run(model, given), atol=1e-6)


@pytest.mark.parametrize("name", [name for name in NATIVE if name != "odyssey-V"])
def test_what_is_written_comes_back_exactly(name, tmp_path):
    module = Stack(NATIVE[name], num_layers=2, bidirectional=True, learn_initial_state=True)
    params = variables(module)["params"]
    model = convert.to_onnx(module, params, lengths=True)
    found, read = convert.from_onnx(model.SerializeToString())
    assert found == module
    assert_same(read, params)


def test_a_layer_that_reads_from_the_end_comes_back():
    module = RNN(NATIVE["gru"], reverse=True, keep_order=True)
    params = variables(module)["params"]
    found, read = convert.from_onnx(convert.to_onnx(module, params, carry=True))
    assert found == module
    assert_same(read, params)


def test_weights_in_float16_are_read():
    module = Stack(NATIVE["lstm"])
    params = jax.tree.map(lambda leaf: leaf.astype(np.float16), variables(module)["params"])
    found, read = convert.from_onnx(convert.to_onnx(module, params, weights="float16"))
    assert found == module
    assert_same(read, jax.tree.map(lambda leaf: leaf.astype(np.float32), params))


# Models of one's own. By name: W and R of two directions, of RNNs for brevity, and the inputs.
ARRAYS = {"W": normal(1, (2, H, I)), "R": normal(2, (2, H, H)), "B": normal(3, (2, 2 * H))}
BELOW = {"V": normal(4, (1, H, H)), "S": normal(5, (1, H, H))}


def model_of(nodes, arrays=ARRAYS):
    inputs = helper.make_tensor_value_info("X", onnx.TensorProto.FLOAT, [None, None, I])
    graph = helper.make_graph(
        nodes,
        "graph",
        [inputs],
        [helper.make_empty_tensor_value_info(name) for each in nodes[-1:] for name in each.output],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def node(op_type, inputs, output, **attributes):
    """A node named after its output; a dash stands for an input that is left out."""
    inputs = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op_type, inputs, [output], name=output, **attributes)


def rnn(inputs, output, **attributes):
    return node("RNN", inputs, output, hidden_size=H, **attributes)


ONE = {name: array[:1] for name, array in ARRAYS.items()}


def cell_of(arrays, number=0):
    return {
        "kernel": arrays["W"][number].T,
        "recurrent_kernel": arrays["R"][number].T,
        "bias": arrays["B"][number].reshape(2, H).sum(0),
    }


def test_weights_behind_other_nodes_are_computed():
    arrays = {
        "w": ARRAYS["W"][0].T,
        "r": ARRAYS["R"][0].astype(np.float64),
        "b0": ARRAYS["B"][:1, :H],
        "b1": ARRAYS["B"][:1, H:],
        "zero": np.array([0]),
    }
    nodes = [
        node("Transpose", "w", "wt"),
        node("Unsqueeze", "wt zero", "W"),
        node("Cast", "r", "r32", to=onnx.TensorProto.FLOAT),
        node("Unsqueeze", "r32 zero", "r1"),
        node("Identity", "r1", "R"),
        node("Concat", "b0 b1", "B", axis=1),
        rnn("X W R B", "Y"),
    ]
    module, params = convert.from_onnx(model_of(nodes, arrays))
    assert module == Stack(NATIVE["rnn"])
    assert_same(params, jax.tree.map(jax.numpy.asarray, {"layer_0": {"cell": cell_of(ARRAYS)}}))


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_a_node_for_each_direction_is_one_layer(order):
    arrays = {
        f"{name}{number}": array[number : number + 1]
        for name, array in ARRAYS.items()
        for number in range(2)
    }
    both = [
        rnn("X W0 R0 B0", "Y0", direction="forward"),
        rnn("X W1 R1 B1", "Y1", direction="reverse"),
    ]
    nodes = [both[number] for number in order]
    module, params = convert.from_onnx(model_of(nodes, arrays))
    assert module == Stack(NATIVE["rnn"], bidirectional=True)
    expected = {
        "layer_0": {"cell": cell_of(ARRAYS)},
        "layer_0_reverse": {"cell": cell_of(ARRAYS, 1)},
    }
    assert_same(params, jax.tree.map(jax.numpy.asarray, expected))


def test_constant_initial_states_are_learned_ones():
    start = np.broadcast_to(normal(7, (1, 1, H)), (1, B, H)).copy()
    nodes = [rnn("X W R B - start", "Y")]
    module, params = convert.from_onnx(model_of(nodes, {**ONE, "start": start}))
    assert module == Stack(NATIVE["rnn"], learn_initial_state=True)
    np.testing.assert_array_equal(params["layer_0"]["initial_state"]["hidden"], start[0, 0])
    start[0, 1, 2] += 1
    with pytest.raises(ValueError, match="initial_h of RNN Y differs between examples"):
        convert.from_onnx(model_of(nodes, {**ONE, "start": start}))


def test_a_layer_without_peepholes_beside_one_with_them_has_zeros():
    shapes = {"W": (1, 4 * H, I), "R": (1, 4 * H, H), "P": (1, 3 * H), "W1": (1, 4 * H, H)}
    arrays = {name: normal(8, shape) for name, shape in shapes.items()}
    nodes = [
        node("LSTM", "X W R - - - - P", "Y", hidden_size=H),
        node("Squeeze", "Y one", "y"),
        node("LSTM", "y W1 R", "Z", hidden_size=H),
    ]
    module, params = convert.from_onnx(model_of(nodes, {**arrays, "one": np.array([1])}))
    assert module == Stack(NATIVE["lstm-peephole"], num_layers=2)
    np.testing.assert_array_equal(
        params["layer_0"]["cell"]["peephole"], arrays["P"].reshape(3, H)[[0, 2, 1]]
    )
    assert not params["layer_1"]["cell"]["peephole"].any()


def lstm(**attributes):
    arrays = {"W": normal(1, (1, 4 * H, I)), "R": normal(2, (1, 4 * H, H))}
    return [node("LSTM", "X W R", "Y", hidden_size=H, **attributes)], arrays


def two(between, second, **arrays):
    """A layer, other nodes that make `x` of its outputs `Y`, and another layer."""
    nodes = [rnn("X W R B", "Y"), node("Squeeze", "Y one", "y"), *between, second]
    return nodes, {**ONE, **BELOW, "one": np.array([1]), **arrays}


REFUSED = {
    "no node": (
        [node("Tanh", "X", "Y")],
        {},
        "the model must have a node RNN, LSTM or GRU, got Tanh",
    ),
    "clip": (*lstm(clip=3.0), r"LSTM Y has clip=3\.0, which jaxrnn has not"),
    "input_forget": (*lstm(input_forget=1), "LSTM Y has input_forget=1, which jaxrnn has not"),
    "gates": (
        *lstm(activations=["HardSigmoid", "Tanh", "Tanh"]),
        r"LSTM Y has the activations HardSigmoid 0\.2 0\.5, Tanh, Tanh, which jaxrnn's lstm has",
    ),
    "output": (
        *lstm(activations=["Sigmoid", "Tanh", "Relu"]),
        "LSTM Y has the activations Sigmoid, Tanh, Relu, which jaxrnn's lstm has not",
    ),
    "alpha": (
        *lstm(activations=["Sigmoid", "Elu", "Elu"], activation_alpha=[0.5, 0.5]),
        r"LSTM Y has the activations Sigmoid, Elu 0\.5, Elu 0\.5, which jaxrnn's lstm has not",
    ),
    "a size": (
        [rnn("X W R B", "Y")],
        {**ONE, "R": normal(2, (1, H, H + 1))},
        r"R of RNN Y must have shape \[1, 4, 4\], got \[1, 4, 5\]",
    ),
    "a number of directions": (
        [rnn("X W R B", "Y")],
        ARRAYS,
        r"W of RNN Y must have shape \[1, 4, I\], got \[2, 4, 3\]",
    ),
    "weights": (
        [node("Slice", "X one two", "w"), rnn("X w R B", "Y")],
        {**ONE, "one": np.array([0]), "two": np.array([1])},
        "W of RNN Y is not a constant: it depends on X, whose values the argument inputs can give",
    ),
    "cells": (
        *two(
            [],
            node("GRU", "y W2 R2", "Z", hidden_size=H),
            W2=normal(1, (1, 3 * H, H)),
            R2=normal(1, (1, 3 * H, H)),
        ),
        r"all layers must have the same cell, got \['gru', 'rnn'\]",
    ),
    "directions": (
        *two([], rnn("y V S", "Z", direction="reverse")),
        r"all layers must be forward or all bidirectional, got .*\['forward', 'reverse'\]",
    ),
    "a residual connection": (
        *two(
            [node("Slice", "X zero four", "s"), node("Add", "y s", "x")],
            rnn("x V S", "Z"),
            zero=np.array([0, 0, 0]),
            four=np.array([9, 9, 1]),
        ),
        "X of RNN Z must be the outputs of RNN Y, but it depends on X, Y",
    ),
    "another order": (
        *two(
            [node("Gather", "y order", "x", axis=2)],
            rnn("x V S", "Z"),
            order=np.array([1, 0, 2, 3]),
        ),
        "X of RNN Z is not the outputs of RNN Y as they are",
    ),
    "another activation": (
        *two([node("Tanh", "y", "x")], rnn("x V S", "Z")),
        "X of RNN Z is not the outputs of RNN Y as they are",
    ),
    **{
        op_type: (
            *two([node(op_type, inputs, "x", **attributes)], rnn("x V S", "Z"), ten=np.float32(10)),
            "X of RNN Z is not the outputs of RNN Y as they are",
        )
        for op_type, inputs, attributes in (
            ("Relu", "y", {}),
            ("Abs", "y", {}),
            ("Ceil", "y", {}),
            ("LeakyRelu", "y", {}),
            ("Min", "y ten", {}),
        )
    },
    "random weights": (
        [node("RandomNormal", "", "W", shape=[1, H, I]), rnn("X W R B", "Y")],
        {"R": ONE["R"], "B": ONE["B"]},
        "W of RNN Y is not a constant: it depends on W",
    ),
    "a missing input": ([rnn("X - R B", "Y")], ONE, "RNN Y has no input W"),
    "a direction": (
        [rnn("X W R B", "Y", direction="up")],
        ONE,
        "direction of RNN Y must be one of b'forward', b'reverse', b'bidirectional', got b'up'",
    ),
    "a layout": ([rnn("X W R B", "Y", layout=2)], ONE, "layout of RNN Y must be one of 0, 1"),
    "a type": (
        [rnn("X W R B", "Y", activations=[1, 2])],
        ONE,
        "activations of RNN Y must be of the type strings",
    ),
    "clip of 0": (*lstm(clip=0.0), r"LSTM Y has clip=0\.0, which jaxrnn has not"),
    "no examples": (
        [rnn("X W R B - start", "Y")],
        {**ONE, "start": np.ones((1, 0, H), np.float32)},
        r"initial_h of RNN Y must have shape \[1, B, 4\], got \[1, 0, 4\]",
    ),
    "constant lengths": (
        [rnn("X W R B lengths", "Y")],
        {**ONE, "lengths": np.array([4, 3], np.int32)},
        r"sequence_lens of RNN Y must be an input .*, got \[4, 3\] for T = 2",
    ),
    "lengths of one layer": (
        *two(
            [node("ReduceMax", "X", "x", axes=[0, 2], keepdims=0), node("Cast", "x", "n", to=6)],
            rnn("y V S - n", "Z"),
        ),
        "RNN Z must have the sequence_lens of RNN Y",
    ),
    "a cycle": (
        [node("Identity", "b", "W"), node("Identity", "W", "b"), rnn("X W R B", "Y")],
        {"R": ONE["R"], "B": ONE["B"]},
        "W of RNN Y: W cannot be computed",
    ),
    "no nodes": ([], {}, "a node RNN, LSTM or GRU, got no nodes"),
    "two networks": (
        [rnn("X W R B", "Y"), rnn("X W R B", "Z")],
        ONE,
        "X of RNN Z must be the outputs of RNN Y, but it depends on X",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_jaxrnn_cannot_compute_is_refused(name):
    nodes, arrays, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        convert.from_onnx(model_of(nodes, arrays))


def test_a_residual_stack_of_ours_is_refused():
    module = Stack(NATIVE["rnn"], num_layers=2, residual=True)
    model = convert.to_onnx(module, variables(module, H))
    with pytest.raises(ValueError, match=r"must be the outputs of RNN .*, but it depends on"):
        convert.from_onnx(model)


def test_arguments_of_other_types_are_named():
    with pytest.raises(ValueError, match="model must be a path, bytes or a ModelProto, got int"):
        convert.from_onnx(7)
    model = model_of([rnn("X W R B", "Y")], ONE)
    with pytest.raises(ValueError, match="inputs has w, which the model does not read"):
        convert.from_onnx(model, {"w": ONE["W"]})


def test_a_broken_file_is_refused_in_one_line(tmp_path):
    file = tmp_path / "model.onnx"
    whole = model_of([rnn("X W R B", "Y")], ONE).SerializeToString()
    for content in (whole[:-1], b"no model"):
        file.write_bytes(content)
        for model in (file, content):
            with pytest.raises(ValueError, match=r"^the ONNX model cannot be read: .*$"):
                convert.from_onnx(model)


def test_a_shape_too_large_to_stand_in_is_refused():
    model = model_of(*two([], rnn("y V S", "Z")))
    for dim in model.graph.input[0].type.tensor_type.shape.dim[:2]:
        dim.dim_value = 10**6
    with pytest.raises(ValueError, match=r"^X of RNN Y: X has the shape .*, which is too large$"):
        convert.from_onnx(model)
    unused = helper.make_tensor_value_info("unused", onnx.TensorProto.FLOAT, [10**6, 10**6])
    model = model_of([rnn("X W R B", "Y")], ONE)
    model.graph.input.append(unused)
    assert convert.from_onnx(model)[0] == Stack(NATIVE["rnn"])


def test_weights_in_other_files_are_those_beside_the_model(tmp_path, monkeypatch):
    model = model_of([rnn("X W R B", "Y")], ONE)
    weights = next(each for each in model.graph.initializer if each.name == "W")
    folder = tmp_path / "folder"
    folder.mkdir()
    for place in (folder, tmp_path):
        (place / "weights").write_bytes(weights.raw_data)
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    location = weights.external_data.add(key="location", value="weights")
    file = folder / "model.onnx"
    file.write_bytes(model.SerializeToString())
    assert_same(convert.from_onnx(file)[1]["layer_0"]["cell"]["kernel"], ONE["W"][0].T)
    monkeypatch.chdir(folder)
    for given in (model, model.SerializeToString()):
        with pytest.raises(ValueError, match="W are in another file, which is read only of a"):
            convert.from_onnx(given)
    for outside in ("../weights", str(tmp_path / "weights")):
        location.value = outside
        file.write_bytes(model.SerializeToString())
        with pytest.raises(ValueError, match=r"^the ONNX model cannot be read: .*weights"):
            convert.from_onnx(file)
