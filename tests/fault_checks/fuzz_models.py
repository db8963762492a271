"""Malformed ONNX models, and malformed arguments of `jaxrnn.unroll`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fault_checks.fuzzing import EDGES, Target, complaint, damaged

# Time steps, examples, features and hidden units of the models.
T, B, I, H = 2, 1, 3, 4  # noqa: E741
WIDTHS = {"RNN": 1, "LSTM": 4, "GRU": 3}


def onnx_model(kind: str, *, behind: bool = False) -> Any:
    """Returns a model with one recurrent node, whose weights may be behind another node."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(2)
    shapes = {"W": (1, WIDTHS[kind] * H, I), "R": (1, WIDTHS[kind] * H, H)}
    shapes["B"] = (1, 2 * WIDTHS[kind] * H)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [helper.make_node(kind, ["X", "W", "R", "B"], ["Y"], hidden_size=H)]
    if behind:
        nodes.insert(0, helper.make_node("Reshape", ["flat", "shape"], ["W"]))
        arrays["flat"], arrays["shape"] = arrays.pop("W").ravel(), np.array(shapes["W"])
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [T, B, I])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    # The oldest opset with the present operators, and a version that every ONNX Runtime reads.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


DIMS = st.sampled_from([-1, -(2**31), 2**40, 2**62, 2**63 - 1, *EDGES])
OPERATORS = ["RNN", "LSTM", "GRU", "Loop", "If", "Identity", "Transpose", "ConstantOfShape", ""]


@st.composite
def _onnx_models(draw: Any) -> bytes:
    """A model with a wrong field, or with damaged bytes."""
    kind, behind = draw(st.sampled_from([*WIDTHS])), draw(st.booleans())
    model = onnx_model(kind, behind=behind)
    graph = model.graph
    way = draw(st.sampled_from(["whole", "bytes", "random", "tensor", "node", "graph", "opset"]))
    if way == "random":
        return draw(st.binary(max_size=100))
    if way == "tensor":
        tensor = draw(st.sampled_from(list(graph.initializer)))
        change = draw(st.sampled_from(["dims", "dtype", "data", "name", "external"]))
        if change == "dims":
            tensor.dims[draw(st.integers(0, len(tensor.dims) - 1))] = draw(DIMS)
        elif change == "dtype":
            tensor.data_type = draw(st.integers(-1, 30))
        elif change == "data":
            tensor.raw_data = draw(st.binary(max_size=64))
        elif change == "name":
            tensor.name = draw(st.text(max_size=3))
        else:
            tensor.ClearField("raw_data")
            tensor.data_location = 1
            places = ["../weights", "/etc/hostname", "weights", ".", "", "/dev/zero"]
            tensor.external_data.add(key="location", value=draw(st.sampled_from(places)))
    elif way == "node":
        node = draw(st.sampled_from(list(graph.node)))
        change = draw(st.sampled_from(["type", "input", "output", "attribute"]))
        if change == "type":
            node.op_type = draw(st.sampled_from(OPERATORS))
        elif change == "input":
            names = st.sampled_from(["X", "W", "R", "B", "Y", "", "no"])
            node.input[draw(st.integers(0, len(node.input) - 1))] = draw(names)
        elif change == "output":
            node.output[0] = draw(st.sampled_from(["X", "W", "Y", "", "B"]))
        else:
            from onnx import helper

            names = ["hidden_size", "direction", "activations", "layout", "clip", "no"]
            names += ["linear_before_reset", "activation_alpha", "input_forget"]
            name = draw(st.sampled_from(names))
            words = ["reverse", "bidirectional", "", "Relu", "\xff"]
            value = draw(
                st.one_of(
                    DIMS,
                    st.floats(),
                    st.sampled_from(words),
                    st.lists(st.sampled_from(["Tanh", "Sigmoid", "Relu", "x"]), min_size=1),
                    st.lists(st.floats(width=32), min_size=1, max_size=3),
                )
            )
            kept = [each for each in node.attribute if each.name != name]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute(name, value)])
    elif way == "graph":
        info = graph.input[0]
        change = draw(st.sampled_from(["dim", "dtype", "none", "twice", "order"]))
        if change == "dim":
            info.type.tensor_type.shape.dim[draw(st.integers(0, 2))].dim_value = draw(DIMS)
        elif change == "dtype":
            info.type.tensor_type.elem_type = draw(st.integers(-1, 30))
        elif change == "none":
            del graph.input[:]
        elif change == "twice":
            graph.node.extend([graph.node[0]])
        else:
            nodes = list(graph.node)[::-1]
            del graph.node[:]
            graph.node.extend(nodes)
    elif way == "opset":
        model.opset_import[0].version = draw(DIMS)
        model.opset_import[0].domain = draw(st.sampled_from(["", "ai.onnx", "no"]))
    whole = model.SerializeToString()
    return draw(damaged(whole)) if way == "bytes" else whole


def try_onnx(content: bytes, folder: Path) -> str:
    """Reads a model, as bytes and as a file: what ONNX Runtime computes, or a ValueError."""
    from jaxrnn import convert

    path = folder / "model.onnx"
    path.write_bytes(content)
    found = []
    for given in (content, path):
        try:
            found.append(convert.from_onnx(given))
        except Exception as error:
            found.append(None)
            if problem := complaint(error, ValueError):
                return problem
    if (found[0] is None) != (found[1] is None):  # weights in another file are read of files only
        return ""
    module, params = found[0] or (None, None)
    if module is None:
        whole = {onnx_model(kind, behind=b).SerializeToString() for kind in WIDTHS for b in (0, 1)}
        return "a valid model is refused" if content in whole else ""
    return other_outputs(content, module, params)


def other_outputs(content: bytes, module: Any, params: Any) -> str:
    """Compares the outputs of a module with those of ONNX Runtime, if that computes the model."""
    import jax
    import onnx
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    x = np.random.default_rng(4).normal(size=(T, B, I)).astype(np.float32)
    try:
        session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
        (expected,) = session.run(["Y"], {"X": x})
    except Exception:
        return ""
    # Where numbers are not finite, or overflow, the two may differ.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(params))
    # A node that reads something else than X, such as a constant, computes something else.
    reads_x = any(each.input[0] == "X" for each in onnx.load_from_string(content).graph.node)
    if expected.ndim != 4 or not largest < 1e3 or not reads_x:
        return ""
    outputs = module.apply({"params": params}, np.swapaxes(x, 0, 1))
    expected = expected.transpose(2, 0, 1, 3).reshape(B, T, -1)
    same = np.allclose(outputs, expected, atol=1e-5, equal_nan=True)
    return "" if same else "other outputs than those of ONNX Runtime"


# ---- unroll


@functools.cache
def cell_of(name: str) -> tuple[Any, Any]:
    """Returns a cell and its parameters."""
    import jax

    import jaxrnn

    cell = {"rnn": jaxrnn.rnn, "lstm": jaxrnn.lstm, "gru": jaxrnn.gru}[name](H)
    params = cell.init(jax.random.key(0), I)
    return cell, params


def oracle(
    name: str, params: Any, x: np.ndarray, start: Any, lengths: Any, resets: Any, reverse: bool
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Computes outputs [B, T, H] and the leaves of the last state in float64, step by step."""
    p = {
        key: np.asarray(value, np.float64)
        for key, value in params._asdict().items()
        if value is not None
    }
    outputs = np.zeros((*x.shape[:2], H))
    last = [leaf.astype(np.float64) for leaf in start]
    for b in range(len(x)):
        state = [leaf[b] for leaf in last]
        steps = range(x.shape[1] if lengths is None else int(lengths[b]))
        for t in reversed(steps) if reverse else steps:
            if resets is not None and resets[b, t]:
                state = [np.zeros(H) for _ in state]
            state = step(name, p, x[b, t].astype(np.float64), state)
            outputs[b, t] = state[0]
        for leaf, value in zip(last, state, strict=True):
            leaf[b] = value
    return outputs, last


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Returns the logistic function."""
    return 1 / (1 + np.exp(-x))


def step(name: str, p: dict, x: np.ndarray, state: list[np.ndarray]) -> list[np.ndarray]:
    """Returns the next state of one example."""
    z, r = x @ p["kernel"] + p["bias"], state[0] @ p["recurrent_kernel"]
    if name == "rnn":
        return [np.tanh(z + r)]
    if name == "lstm":
        i, f, g, o = np.split(z + r, 4)
        cell = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(g)
        return [sigmoid(o) * np.tanh(cell), cell]
    (zr, zz, zn), (rr, rz, rn) = np.split(z, 3), np.split(r, 3)
    update = sigmoid(zz + rz)
    new = np.tanh(zn + sigmoid(zr + rr) * (rn + p.get("recurrent_bias", 0.0)))
    return [(1 - update) * new + update * state[0]]


SIZES = st.integers(0, 3)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.lists(st.one_of(st.integers(-5, 5), st.floats(), st.text(max_size=1)), max_size=4),
    st.just({}),
    st.just(object()),
    st.just(np.array(["a"])),
    st.just(np.array([None, 1])),
    st.just(np.zeros((2, 2), np.complex64)),
    st.just(np.array(["2020-01-01"], "datetime64[D]")),
)
RIGHT = ("reverse", "time_major", "lengths", "resets", "initial_state", "implementation", "memory")
OPTIONS = (*RIGHT, "reset_state", "dtype", "unroll", "truncate", "regularizer", "key")


@st.composite
def _unroll_arguments(draw: Any) -> dict[str, Any]:
    """The name of a cell, and arguments of `unroll`; `wrong` is the one that is of another kind."""
    b, t = draw(SIZES), draw(SIZES)
    found: dict[str, Any] = {"cell": draw(st.sampled_from(["rnn", "lstm", "gru"])), "b": b, "t": t}
    found["seed"] = draw(st.integers(0, 5))
    rng = np.random.default_rng(found["seed"])
    for name in draw(st.sets(st.sampled_from(RIGHT))):
        found[name] = {
            "reverse": lambda: True,
            "time_major": lambda: True,
            "lengths": lambda: rng.integers(0, t + 1, b),
            "resets": lambda: rng.random((b, t)) < 0.5,
            "initial_state": lambda: [rng.normal(size=(b, H)).astype(np.float32) for _ in range(2)],
            "implementation": lambda: draw(st.sampled_from(["scan", "fused", "states"])),
            "memory": lambda: draw(st.sampled_from(["save", "recompute"])),
        }[name]()
    if draw(st.booleans()):
        found["wrong"] = draw(st.sampled_from(["params", "inputs", *OPTIONS]))
        found["value"] = draw(
            st.one_of(
                ODD,
                st.tuples(
                    st.lists(SIZES, max_size=4).map(tuple),
                    st.sampled_from(["float32", "float64", "float16", "int8", "uint64", "bool"]),
                ).map(lambda pair: np.ones(*pair)),
            )
        )
    return found


def try_unroll(example: dict[str, Any], folder: Path) -> str:
    """Unrolls a cell: what NumPy computes step by step, or a ValueError that names the argument."""
    import jax

    import jaxrnn

    name, b, t = (example[key] for key in ("cell", "b", "t"))
    cell, params = cell_of(name)
    rng = np.random.default_rng(10 + example["seed"])
    x = rng.normal(size=(b, t, I)).astype(np.float32)
    options = {key: example[key] for key in RIGHT if key in example}
    state = cell.initial_state(params, (b,))
    start = [np.zeros((b, H)) for _ in state]
    if "initial_state" in options:
        start = options["initial_state"][: len(state)]
        options["initial_state"] = type(state)(*start)
    axes = (1, 0) if "time_major" in options else (0, 1)
    given = {"params": params, "inputs": x.transpose(*axes, 2), **options}
    if "resets" in options:
        given["resets"] = options["resets"].transpose(axes)
    wrong = example.get("wrong")
    if wrong:
        given[wrong] = example["value"]
    try:
        outputs, last = jaxrnn.unroll(cell, given.pop("params"), given.pop("inputs"), **given)
        outputs, leaves = np.asarray(outputs), [np.asarray(each) for each in jax.tree.leaves(last)]
    except Exception as error:
        if not wrong:
            return f"right arguments are refused: {type(error).__name__}: {str(error)[:200]}"
        # Another argument may not fit the wrong one, such as the lengths to the inputs.
        return complaint(error, (ValueError, TypeError), wrong, *options)
    if wrong:
        # What was accepted after all must be what a valid argument is.
        return accepted(wrong, example["value"], outputs, example)
    expected, state = oracle(
        name, params, x, start, options.get("lengths"), options.get("resets"), "reverse" in options
    )
    pairs = [(outputs.transpose(*axes, 2), expected), *zip(leaves, state, strict=True)]
    same = all(a.shape == e.shape and np.allclose(a, e, atol=1e-5) for a, e in pairs)
    return "" if same else "another result than NumPy's"


def accepted(wrong: str, value: Any, outputs: np.ndarray, example: dict[str, Any]) -> str:
    """Returns what is wrong with accepting a value of an argument."""
    b, t = example["b"], example["t"]
    array = value if isinstance(value, np.ndarray | list) else None
    shape = None if array is None else np.shape(array)
    fits = {
        "inputs": array is not None and len(shape) >= 2 and shape[-1] == I,
        "lengths": array is not None and shape == (b,),
        "resets": array is not None
        and np.asarray(array).dtype == bool
        and sorted(shape) == sorted((b, t)),
        "reverse": isinstance(value, bool),
        "time_major": isinstance(value, bool),
        "unroll": type(value) is int and value > 0,
        "truncate": type(value) is int and value > 0,
    }
    if value is None and wrong not in ("inputs", "params", "reverse", "time_major"):
        return ""
    if not fits.get(wrong, False):
        return f"{wrong} is accepted: {value!r}"
    return "" if np.isfinite(outputs).all() else "the outputs are not finite"


TARGETS = {
    "ONNX": Target(_onnx_models(), try_onnx),
    "unroll": Target(_unroll_arguments(), try_unroll),
}
