"""A trained classifier as a program of its own."""

import dataclasses

import experiment
import export
import jax
import mnist
import numpy as np
import pytest
import stablehlo
import train
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


def test_a_program_that_differs_is_found_out(run, tmp_path):
    exported = jax.export.export(jax.jit(lambda x: jax.nn.softmax(x[:, 0, :10].astype(float))))
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 28, 28"), np.uint8)
    program = tmp_path / "other.stablehlo"
    program.write_bytes(exported(shape).serialize())
    with pytest.raises(RunError, match="does not compute what the run does"):
        stablehlo.check(run, program)
