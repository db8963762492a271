"""Checks that hold for every test: shapes as annotated, no silent promotion of dtype or rank."""

import os

from jaxtyping import install_import_hook

# Before anything imports jaxrnn, so that its annotations are checked wherever it is called.
hook = install_import_hook("jaxrnn", "beartype.beartype")

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
    """`jaxrnn.data.load` with a cache of its own."""
    from jaxrnn import data

    return functools.partial(data.load, validation_size=5, cache_dir=tmp_path / "cache")
