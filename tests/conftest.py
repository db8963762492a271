"""Checks that hold for every test: shapes as annotated, no silent promotion of dtype or rank."""

import gc
import importlib.metadata
import os
import tempfile

import jaxtyping

# Most of a test's time is compiling what runs once. Nothing is optimised, therefore, and a program
# that another test or process of this run has compiled is taken from a folder of this run. Through
# the environment both hold for the workers of xdist and for the processes that tests start.
if "PYTEST_XDIST_WORKER" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="jaxrnn-compiled-", ignore_cleanup_errors=True)
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": CACHE.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        # Interpreted, each warpgroup of a GPU's kernel takes one of XLA's threads and waits for the
        # others; with as many threads as a small machine has cores they would wait for ever.
        "NPROC": "16",
    }
    # Each version has flags of its own for compiling sooner, and ends the process at unknown ones.
    version = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))
    own = "--xla_cpu_parallel_codegen_split_count=1"
    if version < (0, 12):
        own += " --xla_cpu_use_fusion_emitters=false"  # twice as fast
    else:
        own += " --xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE"
    if version <= (0, 12):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {own}".strip()
if not os.environ.get("JAXRNN_DATA_DIR"):  # empty is as good as unset
    os.environ.pop("JAXRNN_DATA_DIR", None)

# JAX keeps many small objects, and going through them all again and again is a tenth of the time.
gc.set_threshold(100_000, 50, 50)

# The import hook decorates every function, also those defined anew in every trace, at a millisecond
# each; of a function without annotations there is nothing to check.
jaxtyped = jaxtyping.jaxtyped
jaxtyping.jaxtyped = lambda *, typechecker: lambda one: (
    jaxtyped(one, typechecker=typechecker) if getattr(one, "__annotations__", True) else one
)
# Before anything imports jaxrnn, so that its annotations are checked wherever it is called.
hook = jaxtyping.install_import_hook("jaxrnn", "beartype.beartype")

# They need settings of their own, and libraries of gigabytes; see tests/accelerators/conftest.py.
collect_ignore = ["accelerators"]

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tests choose their data themselves; only those of real MNIST read the folder named here.
MNIST_DIR = os.environ.get("JAXRNN_DATA_DIR")

import functools  # noqa: E402

import pytest  # noqa: E402


@pytest.fixture
def standard_promotion():
    """Optax counts in int32 and multiplies in float32, which the strict mode refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home: its test does not see the user's own data or cache."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    return folder


@pytest.fixture
def no_network(monkeypatch):
    def refuse(url, timeout):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.fixture
def load(home, tmp_path):
    """`jaxrnn.training.data.load` with a cache of its own."""
    from jaxrnn.training import data

    return functools.partial(data.load, validation_size=5, cache_dir=tmp_path / "cache")
