"""`jit` for programs that run once: without XLA:CPU's optimisations they compile much sooner."""

import functools

import jax

OPTIONS = {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
if jax.__version_info__ < (0, 12):  # newer ones know no such option
    OPTIONS["xla_cpu_use_fusion_emitters"] = False

jit = functools.partial(jax.jit, compiler_options=OPTIONS)
