"""Malformed input: the fuzzers of faults.py, briefly, and what they have found."""

import os
import tempfile
import zlib
from pathlib import Path

import hypothesis
import numpy as np
import options
import predict
import pytest
import study_options
from command_line import parse
from errors import printable
from fault_checks import fuzz_data, fuzz_models, fuzz_scripts, kinds
from onnx import helper, numpy_helper
from PIL import Image
from test_arguments import unroll

from jaxrnn import convert
from jaxrnn.training.data import folders, idx, tfds

TARGETS = fuzz_data.TARGETS | fuzz_scripts.TARGETS
COUNTS = {"idx": 40, "images": 20, "data sets": 15, "command lines": 10}


@pytest.mark.parametrize("name", COUNTS)
def test_random_input_gives_the_right_answer_or_an_error(name, tmp_path):
    examples, attempt = TARGETS[name]

    @hypothesis.settings(
        max_examples=COUNTS[name],
        derandomize=True,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(examples)
    def test(example):
        assert attempt(example, Path(tempfile.mkdtemp(dir=tmp_path))) == ""

    test()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_refused(value):
    pixels = np.zeros((40, 40), np.float32)
    pixels[3, 3] = value
    with pytest.raises(ValueError, match="has pixels that are NaN or infinite"):
        predict.mnist_style(Image.fromarray(pixels))


def test_large_images_are_reduced_before_they_become_floating_point(monkeypatch):
    sizes = []
    asarray = np.asarray
    monkeypatch.setattr(np, "asarray", lambda a, *b: sizes.append(a.size) or asarray(a, *b))
    for mode in ("I;16", "I", "F", "RGB"):
        predict.opaque(Image.new(mode, (3000, 1500)))
    assert {tuple(size) for size in sizes if isinstance(size, tuple)} == {(1000, 500)}


def test_a_name_that_the_system_refuses_is_an_error_of_the_image():
    with pytest.raises(ValueError, match="File name too long"):
        predict.read_image("a" * 5000)


def test_what_cannot_be_shown_in_a_line_is_escaped():
    assert printable("ü a\nb\x1b[1m\udce9") == r"ü a\nb\x1b[1m\udce9"
    assert predict.as_line("\udce9.png", np.eye(10)[3]).startswith(r"\udce9.png: 3 ")


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (options.Config, ["--seed", "2147483648"]),
        (study_options.Config, ["size", "--seeds", "9" * 30]),
    ],
)
def test_an_integer_larger_than_int32_is_refused(cls, words, capsys):
    with pytest.raises(SystemExit):
        parse(cls, "", words, check=cls.check)
    assert capsys.readouterr().err == f"error: {words[-2]} must be at most 2147483647\n"


def test_an_array_in_an_error_is_one_line():
    for name in ("unroll", "reverse", "memory", "truncate"):
        with pytest.raises(ValueError, match=rf"^{name} must be .*, got float32\[2,2\]$"):
            unroll(**{name: np.zeros((2, 2), np.float32)})


def test_an_empty_table_is_an_error_without_a_warning(tmp_path, recwarn):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("label,pixel0\n")
    with pytest.raises(idx.DataError, match=r"train\.csv: cannot be read .*no data"):
        folders.locate("mnist", tmp_path).read()
    assert not recwarn.list


def test_images_in_parquet_are_measured_and_counted_before_they_are_decoded(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    (tmp_path / "train-0.parquet").write_bytes(fuzz_data.dataset_file("parquet"))
    (tmp_path / "test-0.parquet").write_bytes(fuzz_data.dataset_file("parquet"))
    monkeypatch.setattr(folders, "LARGEST", 1)
    with pytest.raises(idx.DataError, match=r"train-0\.parquet: 2 examples, more than 1"):
        folders.locate("mnist", tmp_path).read()


def test_an_image_of_a_data_set_is_measured_without_a_warning(recwarn):
    with pytest.raises(ValueError, match="images of 10000×10000, expected 28×28"):
        tfds.decode(kinds.png(10_000, 10_000, 8, 0, zlib.compress(b"")))
    assert not recwarn.list


def model(*nodes, **arrays):
    """A model of one RNN, with nodes that make its W, or with another W."""
    found = fuzz_models.onnx_model("RNN")
    own = list(found.graph.node)
    if nodes or arrays:
        del found.graph.node[:], found.graph.initializer[0]
    found.graph.node.extend([*nodes, *own] if nodes or arrays else [])
    found.graph.initializer.extend(
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    )
    return found


def node(kind, inputs, **attributes):
    return helper.make_node(kind, inputs.split(), ["W"], **attributes)


ONE = np.ones(1, np.float32)
COLUMN = np.ones((1, 2**13, 1), np.float32)
NO_END = helper.make_graph([], "body", [], [])
REFUSED = {
    "W has the shape \\[1, 16384, 32768\\], which is too large": lambda: model(
        node("ConstantOfShape", "size", value=numpy_helper.from_array(ONE)), size=[1, 2**14, 2**15]
    ),
    "W has the shape \\[1, 8192, 8192\\], which is too large": lambda: model(
        node("Add", "a b"), a=COLUMN, b=COLUMN.reshape(1, 1, -1)
    ),
    "W has the shape \\[1099511627776\\], which": lambda: model(
        node("Range", "a b c"), a=0, b=2**40, c=1
    ),
    "a Loop may have no end": lambda: model(node("Loop", "n", body=NO_END), n=2**60),
    "W is read before it is computed": lambda: model(node("Identity", "W"), R=ONE),
}


@pytest.mark.parametrize("message", REFUSED)
def test_weights_that_would_take_all_memory_or_time_are_not_computed(message):
    with pytest.raises(ValueError, match=f"^W of RNN Y: W cannot be computed: {message}"):
        convert.from_onnx(REFUSED[message]().SerializeToString())


def test_negative_sizes_and_unknown_opsets_are_refused():
    found = model()
    found.graph.initializer[0].dims[0] = -1
    with pytest.raises(ValueError, match=r"^W of RNN Y: W cannot be read: .* \[-1, 4, 3\]$"):
        convert.from_onnx(found)
    for version in (-1, 0, 999):
        found = model()
        found.opset_import[0].version = version
        with pytest.raises(ValueError, match=f"^the model has the opset {version}, the package"):
            convert.from_onnx(found)


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        (lambda n: [n + 1] * 2 if n < 29 else [], "at most 100,000 nodes, functions unfolded"),
        (lambda n: [n + 1] if n < 29 else [0], "must not call themselves, nor each other more"),
    ],
)
def test_functions_that_unfold_without_bound_are_refused(calls, message):
    found = model()
    opsets = [helper.make_opsetid("", 14), helper.make_opsetid("own", 1)]
    found.graph.node.insert(0, helper.make_node("f0", ["X"], ["Z"], domain="own"))
    found.opset_import.append(opsets[1])
    for number in range(30):
        body = [helper.make_node("Identity", ["a"], ["b"])]
        for place, each in enumerate(calls(number)):
            body.append(helper.make_node(f"f{each}", ["a"], [f"b{place}"], domain="own"))
        function = helper.make_function("own", f"f{number}", ["a"], ["b"], body, opsets)
        found.functions.append(function)
    with pytest.raises(ValueError, match=message):
        convert.from_onnx(found)


def test_names_of_activations_that_are_not_utf8_name_the_node():
    found = model()
    found.graph.node[0].attribute.append(helper.make_attribute("activations", [b"\xff"]))
    with pytest.raises(ValueError, match=r"^RNN Y has the activations \ufffd, which jaxrnn's rnn"):
        convert.from_onnx(found)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_model_is_read_only_from_a_regular_file(make, tmp_path):
    path = tmp_path / "model.onnx"
    make(path)
    with pytest.raises(ValueError, match=r"model\.onnx is not a regular file$"):
        convert.from_onnx(path)
