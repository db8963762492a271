"""A trained classifier as a program of its own."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import command_line
import experiment
import export
import jax
import mnist
import numpy as np
import onnx_file
import pytest
import stablehlo
import train
from errors import OptionError
from models import build_model
from options import Config
from test_mnist import SMALL

from jaxrnn import training
from jaxrnn.training.run import RunError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "run"
    config = dataclasses.replace(SMALL, cell="rnn", hidden_size=4, steps=2, eval_every=2, out=out)
    with jax.numpy_dtype_promotion("standard"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "draw", lambda *_: None)
        assert mnist.main(config) == 0
    return out


def test_it_says_the_same_without_jaxrnn_for_any_batch(run, tmp_path, capsys):
    program = tmp_path / "classifier.stablehlo"
    assert (
        export.main(export.Config(run=run, out=program)) == 0
    )  # which checks it in another process
    assert "a process without jaxrnn computes the same" in capsys.readouterr().out
    _, model, params, _ = experiment.load_run(run)
    images = np.random.default_rng(1).integers(0, 256, (17, 28, 28), np.uint8)
    made = jax.export.deserialize(program.read_bytes()).call(images)
    np.testing.assert_allclose(made, training.probabilities(model, params, images), atol=1e-5)


def test_a_program_that_differs_is_found_out_and_not_written(run, tmp_path, monkeypatch):
    exported = jax.export.export(jax.jit(lambda x: jax.nn.softmax(x[:, 0, :10].astype(float))))
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 28, 28"), np.uint8)
    other = exported(shape)
    monkeypatch.setattr(stablehlo, "export", lambda _: other)
    with pytest.raises(RunError, match=r"^the program does not compute what the run does"):
        stablehlo.write(run, tmp_path / "other.stablehlo")
    assert not any(tmp_path.iterdir())


def test_the_suffix_names_the_format():
    def target(*words):
        return command_line.parse(export.Config, "", words).target()

    assert target() == ("stablehlo", Path("mnist.stablehlo"))
    assert target("--format", "html") == ("html", Path("mnist.html"))
    assert target("--out", "a/b.ONNX") == ("onnx", Path("a/b.ONNX"))
    assert target("--out", "b.bin", "--format", "onnx") == ("onnx", Path("b.bin"))
    with pytest.raises(OptionError, match=r"--format is missing, and b\.bin has none of"):
        target("--out", "b.bin")


def test_onnx_runtime_computes_the_same_on_the_test_set(run, tmp_path, capsys):
    runtime = pytest.importorskip("onnxruntime")
    out = tmp_path / "classifier.onnx"
    assert export.main(export.Config(run=run, out=out)) == 0  # which checks it
    assert "the probabilities of 360 test images differ by at most" in capsys.readouterr().out
    _, model, params, _ = experiment.load_run(run)
    images = np.random.default_rng(1).integers(0, 256, (3, 28, 28), np.uint8)
    [found] = runtime.InferenceSession(out).run(None, {"sequences": images})
    np.testing.assert_allclose(found, training.probabilities(model, params, images), atol=1e-5)


def test_an_onnx_model_that_differs_is_found_out_and_not_written(run, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    model = onnx_file.export(run)
    [white] = [each for each in model.graph.initializer if each.name == "white"]
    white.float_data[:] = [250.0]
    monkeypatch.setattr(onnx_file, "export", lambda _: model)
    with pytest.raises(RunError, match=r"^the model does not compute .* does: they differ by 0"):
        onnx_file.write(run, tmp_path / "other.onnx")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"cell": "mlp"}, "takes recurrent layers, not --cell mlp"),
        ({"cell": "gru", "patch": 14}, "takes recurrent layers, not --patch"),
        ({"cell": "gru", "blocks": True}, "takes recurrent layers, not --blocks"),
    ],
)
def test_what_is_no_stack_of_layers_is_refused(options, refused, monkeypatch):
    config = Config(**options)
    trained = experiment.Trained(config, build_model(config), {}, 0)
    monkeypatch.setattr(onnx_file, "load_run", lambda _: trained)
    with pytest.raises(OptionError, match=f"^--format onnx {refused}$"):
        onnx_file.export(Path("run"))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(run, package, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(RunError, match=rf"package {package}: pip install 'jaxrnn\[onnx\]'$"):
        onnx_file.write(run, tmp_path / "a.onnx")
