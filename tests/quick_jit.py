"""`jit` for programs that run once: without XLA:CPU's optimisations they compile much sooner."""

import functools

import jax

jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_cpu_use_fusion_emitters": False,
        "xla_cpu_parallel_codegen_split_count": 1,
    },
)
