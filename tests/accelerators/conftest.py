"""Settings for compiling for devices that are not attached, made before JAX starts."""

import os

import jax

os.environ |= {
    # libtpu must not query the network for a TPU, and must allow other processes to load it.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    # Without a GPU there is no driver to check, and kernels cannot be timed for autotuning.
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",
}
jax.config.update("jax_platforms", "cpu")
# Unlike the other tests, these tests inspect the compiled programs.
jax.config.update("jax_disable_most_optimizations", False)
jax.config.update("jax_enable_compilation_cache", False)
