"""What the compilers of devices that are not here need before JAX starts them."""

import os

import jax

os.environ |= {
    # Nothing is asked of the network about a TPU, and other processes may have its library too.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    # Without a GPU there is no driver to check, and no kernel to time against another.
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",
}
jax.config.update("jax_platforms", "cpu")
# Here, unlike in the other tests, what is compiled is what counts.
jax.config.update("jax_disable_most_optimizations", False)
jax.config.update("jax_enable_compilation_cache", False)
