"""Programs for NVIDIA GPUs, compiled by the CUDA plugin without a GPU. No program is run.

`-rP` prints the number of registers of every kernel.
"""

import importlib.util
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import jax
import jax.numpy as jnp
import programs
import pytest
from all_cells import CELLS, I
from jax.experimental import topologies
from jax.experimental.pallas import mosaic_gpu
from programs import UNITS

import jaxrnn
from jaxrnn import backends

PLUGINS = "jax_cuda12_plugin", "jax_cuda13_plugin"
pytestmark = [
    pytest.mark.skipif(
        not any(map(importlib.util.find_spec, PLUGINS)),
        reason="compiling for a GPU takes JAX's CUDA plugin: pip install -e '.[test-gpu]'",
    ),
    pytest.mark.usefixtures("standard_promotion"),
]
# Public specifications of the devices.
TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  {}
}}
runtime_version {{ major: 12 minor: 8 }}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 7 }}
device_description_str: "NVIDIA {}"
"""
H100 = TARGET.format(
    """shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  core_count: 132 fpus_per_core: 128 threads_per_core_limit: 2048 clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84929347584
  cuda_compute_capability { major: 9 }""",
    "H100 80GB HBM3",
)
A100 = TARGET.format(
    """shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912
  core_count: 108 fpus_per_core: 64 threads_per_core_limit: 2048 clock_rate_ghz: 1.41
  memory_bandwidth: 2039000000000 l2_cache_size: 41943040 device_memory_size: 84986691584
  cuda_compute_capability { major: 8 }""",
    "A100-SXM4-80GB",
)
L40S = TARGET.format(
    """shared_memory_per_core: 102400 shared_memory_per_block_optin: 101376
  core_count: 142 fpus_per_core: 128 threads_per_core_limit: 1536 clock_rate_ghz: 2.52
  memory_bandwidth: 864000000000 l2_cache_size: 100663296 device_memory_size: 47810936832
  cuda_compute_capability { major: 8 minor: 9 }""",
    "L40S",
)
SETTINGS = {  # environment variables of a process that compiles like these tests
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
    "JAX_ENABLE_COMPILATION_CACHE": "0",
}
GATED = sorted(name for name, cell in CELLS.items() if cell.gate is not None)
# Their kernels equal those of another cell, or are the same for both dtypes.
SAME = {"odyssey-NP", "odyssey-V", "indrnn"}
LSTM, IN_KERNELS = (
    programs.classifier(jaxrnn.lstm(UNITS), implementation) for implementation in (None, "pallas")
)
NOISY = programs.noisy_classifier("pallas")
# The registers of a thread hold 1,020 bytes.
MOST_SPILLED = {"lstm": 64, "lstm-peephole": 96}


@pytest.fixture(autouse=True)
def attached(monkeypatch):
    """Makes the default implementation that of a machine with a GPU."""
    monkeypatch.setattr(backends, "_attached", lambda platform: int(platform == "cuda"))


class Kernel(NamedTuple):
    registers: int
    stack: int
    stored: int
    loaded: int


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """Returns the output of ptxas for the kernels that this test compiles first in its process."""
    monkeypatch.setenv("MOSAIC_GPU_DUMP_TO", str(tmp_path))
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTX", "1")

    def read():
        found = []
        for path in sorted(tmp_path.glob("*.ptxas")):
            words = path.read_text()
            registers = re.search(r"Used (\d+) registers", words)
            spills = re.search(
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", words
            )
            found.append(Kernel(*map(int, registers.groups() + spills.groups())))
        print(*found, sep="\n")
        return found

    return read


def mesh(count, runs=1, target=H100):
    found = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=target, topology=f"1x1x{count}"
    )
    return programs.mesh(found.devices, runs)


def _counts_on_default_device(target, dtype):
    """Compiles a training step with a GPU as the default device, and counts as `counts` does."""
    devices = mesh(1, target=target)
    with jax.default_device(devices.devices.flat[0]):
        return counts(programs.one_step(devices, CELLS["lstm"], "pallas", dtype=dtype))


def counts(compiled):
    """Counts the Pallas kernels and the loops of a program."""
    text = compiled.as_text()
    return len(re.findall(r"custom-call\(.*mosaic_gpu", text)), text.count(" while(")


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("name", GATED)
def test_a_gated_cell_is_one_kernel_forward_and_one_backward(name, dtype, kernels):
    """At 128 units, the multiple to which they round up, the kernels spill no registers.

    An exception is the sLSTM with float32 products, which has four states.
    """
    step = programs.one_step(mesh(1), CELLS[name], "pallas", dtype=dtype)
    assert counts(step) == (2, 0)
    found = kernels()
    assert len(found) == 2 or name in SAME
    most = 64 if name == "slstm" and dtype is None else 0
    assert all(max(each[1:]) <= most for each in found)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("name", ["lstm", "lstm-peephole", "gru", "rnn"])
def test_kernels_with_every_mask(name, dtype, kernels):
    """With float32 products, the forward kernels of four gates have too few registers."""
    options = {"dtype": dtype, "regularizer": programs.REGULARIZER}
    assert counts(programs.one_step(mesh(1), CELLS[name], "pallas", **options)) == (2, 0)
    forward, backward = kernels()
    assert backward[1:] == (0, 0, 0)
    most = MOST_SPILLED.get(name, 0) if dtype is None else 0
    assert max(forward.stack, forward.stored, forward.loaded) <= most


@pytest.mark.parametrize("name", sorted(CELLS))
def test_the_default_has_no_kernels(name):
    assert counts(programs.one_step(mesh(1), CELLS[name], None, features=I))[0] == 0


@pytest.mark.parametrize("implementation", [None, "pallas"])
@pytest.mark.parametrize("target", [A100, L40S], ids=["A100", "L40S"])
def test_another_card_has_the_loop(target, implementation):
    """Mosaic GPU does not compile for a GPU that is neither a Hopper nor the default device."""
    devices = mesh(1, target=target)
    step = programs.one_step(devices, CELLS["lstm"], implementation)
    assert counts(step) == (0, 2)


@pytest.mark.skipif(not hasattr(mosaic_gpu, "mma"), reason="Pallas has `mma` from JAX 0.11")
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("target", [A100, L40S], ids=["A100", "L40S"])
def test_another_card_has_kernels_as_the_default_device(target, dtype, kernels, monkeypatch):
    """Needs a new process, because Mosaic GPU assembles all kernels of a process for one GPU."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        assert process.submit(_counts_on_default_device, target, dtype).result() == (2, 0)
    found = kernels()
    assert len(found) == 2
    assert max(max(each[1:]) for each in found) <= 8


def test_every_primitive_of_a_gate_compiles():
    programs.check_primitives()
    assert counts(programs.one_step(mesh(1), programs.cell_of_primitives(), "pallas")) == (2, 0)


@pytest.mark.parametrize("count", [1, 8])
def test_steps_of_training(count):
    assert counts(programs.chunk(mesh(count), IN_KERNELS)) == (2, 1)
    assert counts(programs.chunk(mesh(count), LSTM))[0] == 0


def test_steps_of_layers_with_noise():
    assert counts(programs.chunk(mesh(8), NOISY)) == (2 * 4, 1)


@pytest.mark.parametrize(("count", "runs"), [(1, 1), (8, 2)])
def test_steps_of_ten_seeds(count, runs):
    assert counts(programs.chunk(mesh(count, runs), IN_KERNELS, seeds=10)) == (2, 1)


def test_memory_of_training_steps():
    programs.check_memory(mesh(8), IN_KERNELS)


@pytest.mark.parametrize("program", [programs.evaluation, programs.prediction])
def test_evaluation(program):
    """Evaluates 1,250 images per GPU, in a loop over batches of 500 and a remainder."""
    assert counts(program(mesh(8), IN_KERNELS)) == (2, 1)


def test_what_is_exported_for_any_batch():
    assert counts(programs.exported(mesh(1), LSTM, "cuda")) == (0, 1)
