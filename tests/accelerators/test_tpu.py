"""Programs for TPUs, compiled by libtpu, which needs no TPU. Nothing is run."""

import importlib.util

import jax
import programs
import pytest
from all_cells import CELLS
from jax.experimental import topologies

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


@pytest.fixture(autouse=True)
def attached(monkeypatch):
    """The default is that of a machine with a TPU."""
    monkeypatch.setattr(backends, "_tpu_takes_kernels", lambda: True)


def mesh(count, name, runs=1):
    found = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    return programs.mesh(found[:count], runs)


def counts(compiled):
    """How many kernels a program has, and how many loops."""
    text = compiled.as_text()
    return text.count('custom_call_target="tpu_custom_call"'), text.count(" while(")


@pytest.mark.parametrize("name", GATED)
def test_a_gated_cell_is_one_kernel_forward_and_one_backward(name):
    step = programs.one_step(mesh(*ONE), CELLS[name], "pallas")
    assert counts(step) == (2, 0)


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_cells_compile(name):
    step = programs.one_step(mesh(*ONE), CELLS[name], None)
    assert counts(step)[0] == 0
