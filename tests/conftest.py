"""Checks that hold for every test: shapes as annotated, no silent promotion of dtype or rank."""

import os

from jaxtyping import install_import_hook

# Before anything imports jaxrnn, so that its annotations are checked wherever it is called.
hook = install_import_hook("jaxrnn", "beartype.beartype")

import jax  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tests choose their data themselves; only those of real MNIST read the folder named here.
MNIST_DIR = os.environ.get("JAXRNN_DATA_DIR")
