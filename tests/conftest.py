"""Settings of all tests: annotated shapes are checked, dtype and rank are never promoted."""

import functools
import gc
import importlib.metadata
import os
import signal
import tempfile

import jaxtyping
import pytest

# Most of the time of the tests is spent on compiling programs that run once. XLA therefore does not
# optimise them, and a cache folder shares compiled programs between the tests and processes of this
# run. Environment variables pass both settings to xdist workers and to processes that tests start.
if "PYTEST_XDIST_WORKER" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="jaxrnn-compiled-", ignore_cleanup_errors=True)
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": CACHE.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        # In an interpreted GPU kernel, each warpgroup occupies one XLA thread and waits for the
        # others. With one thread per core of a small machine this would deadlock.
        "NPROC": "16",
    }
    # The flags for faster compilation depend on the version, and unknown flags end the process.
    version = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))
    own = "--xla_cpu_parallel_codegen_split_count=1"
    if version < (0, 12):
        own += " --xla_cpu_use_fusion_emitters=false"  # twice as fast
    else:
        own += " --xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE"
    if version <= (0, 12):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {own}".strip()
# A shell starts its background processes with SIGINT ignored, which processes inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if not os.environ.get("JAXRNN_DATA_DIR"):  # treat an empty value as unset
    os.environ.pop("JAXRNN_DATA_DIR", None)

# JAX keeps many small objects alive, and collecting garbage with the default thresholds takes a
# tenth of the time.
gc.set_threshold(100_000, 50, 50)

# The import hook decorates every function, also those that each trace defines anew, which takes a
# millisecond each. A function without annotations has nothing to check.
jaxtyped = jaxtyping.jaxtyped
jaxtyping.jaxtyped = lambda *, typechecker: (
    lambda one: (
        jaxtyped(one, typechecker=typechecker) if getattr(one, "__annotations__", True) else one
    )
)
# The hook must precede all imports of jaxrnn, so that its annotations are checked in all tests.
hook = jaxtyping.install_import_hook("jaxrnn", "beartype.beartype")

# These tests need other settings and large libraries; see tests/accelerators/conftest.py.
collect_ignore = ["accelerators"]

# Only the tests with real MNIST read this folder; all others choose their own data.
MNIST_DIR = os.environ.get("JAXRNN_DATA_DIR")


def pytest_configure(config):
    """Configures JAX in the processes that run tests; xdist's own does not even import it."""
    if config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput"):
        return
    import jax

    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def standard_promotion():
    """Allows promotion of dtypes, because optax multiplies int32 counts by float32 numbers."""
    import jax

    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Replaces the home directory by an empty one, to hide the user's own data and cache."""
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
    """Returns `jaxrnn.training.data.load` with a separate cache."""
    from jaxrnn.training import data

    return functools.partial(data.load, validation_size=5, cache_dir=tmp_path / "cache")
