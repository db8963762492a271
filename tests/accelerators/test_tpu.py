"""Programs for TPUs, compiled by libtpu without a TPU. No program is run."""

import importlib.util

import jax.numpy as jnp
import programs
import pytest
from all_cells import CELLS, I
from jax.experimental import topologies
from programs import UNITS

import jaxrnn
from jaxrnn import backends

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="compiling for a TPU takes libtpu: pip install -e '.[test-tpu]'",
    ),
    pytest.mark.usefixtures("standard_promotion"),
]
GATED = sorted(name for name, cell in CELLS.items() if cell.gate is not None)
OTHERS = sorted(CELLS.keys() - set(GATED))
ONE, FOUR, POD = (1, "v5e:2x2"), (4, "v5e:2x2"), (256, "v5e:16x16")
LSTM, NOISY = programs.classifier(jaxrnn.lstm(UNITS)), programs.noisy_classifier()


@pytest.fixture(autouse=True)
def attached(monkeypatch):
    """Makes the default implementation that of a machine with a TPU."""
    monkeypatch.setattr(backends, "_attached", lambda platform: int(platform == "tpu"))


def mesh(count, name, runs=1):
    found = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    return programs.mesh(found[:count], runs)


def counts(compiled):
    """Counts the Pallas kernels and the loops of a program."""
    text = compiled.as_text()
    return text.count('custom_call_target="tpu_custom_call"'), text.count(" while(")


@pytest.mark.parametrize("name", GATED)
def test_a_gated_cell_is_one_kernel_forward_and_one_backward(name):
    assert counts(programs.one_step(mesh(*ONE), CELLS[name], "pallas")) == (2, 0)


@pytest.mark.parametrize("name", OTHERS)
def test_other_cells_have_no_kernels(name):
    assert counts(programs.one_step(mesh(*ONE), CELLS[name], None, features=I))[0] == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dtype": jnp.bfloat16}, (2, 0)),
        ({"regularizer": programs.REGULARIZER}, (2, 0)),
        # Loops over blocks of 14 steps. The backward loop recomputes each block.
        ({"memory": "recompute"}, (3, 2)),
    ],
)
def test_options(options, expected):
    step = programs.one_step(mesh(*ONE), jaxrnn.lstm(UNITS), "pallas", **options)
    assert counts(step) == expected


def test_every_primitive_of_a_gate_compiles():
    programs.check_primitives()
    assert counts(programs.one_step(mesh(*ONE), programs.cell_of_primitives(), "pallas")) == (2, 0)


@pytest.mark.parametrize("chips", [ONE, FOUR, POD])
def test_steps_of_training(chips):
    assert counts(programs.chunk(mesh(*chips), LSTM)) == (2, 1)


def test_steps_of_layers_with_noise():
    assert counts(programs.chunk(mesh(*FOUR), NOISY)) == (2 * 4, 1)


@pytest.mark.parametrize(("chips", "runs"), [(ONE, 1), (FOUR, 2)])
def test_steps_of_ten_seeds(chips, runs):
    assert counts(programs.chunk(mesh(*chips, runs), LSTM, seeds=10)) == (2, 1)


def test_memory_of_training_steps():
    programs.check_memory(mesh(*FOUR), LSTM)


@pytest.mark.parametrize("program", [programs.evaluation, programs.prediction])
def test_evaluation(program):
    assert counts(program(mesh(*FOUR), LSTM)) == (1, 1)


def test_what_is_exported_for_any_batch():
    assert counts(programs.exported(mesh(*ONE), LSTM, "tpu")) == (0, 1)
