"""The deferred gradient of "states", with each loop over time in one Pallas kernel.

An XLA loop launches several kernels per step, which takes most of the time if a step is short. Here
the loop over time is inside the kernel, which keeps the state and the recurrent kernel on the chip.
The kernels are in `tpu` for TPUs and in `gpu` for NVIDIA GPUs of compute capability 8, 9 and 10;
capabilities 8 and 10 require JAX 0.11. The XLA loop runs instead on other platforms, and on a GPU
if the recurrent kernel is too large or `jax_default_matmul_precision` requires full float32.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.arguments import describe
from jaxrnn.backends import loop, states
from jaxrnn.backends.elementwise import EXAMPLES, UNITS, refusal
from jaxrnn.backends.states import Kernels
from jaxrnn.backends.steps import Steps
from jaxrnn.cell import Cell, Params, State, elementwise

# A larger recurrent kernel does not fit on the chip. Its products take longer than the launches of
# an XLA loop, so that a kernel would gain little.
KERNEL_BYTES = 2**25


def supports(cell: Cell, params: Params, state: State, steps: Steps, dtype: Any) -> str | None:
    """Returns None for a gated cell in float32 with an elementwise gate, else the reason."""
    if reason := states.supports(cell, params, state, steps, dtype):
        return reason
    if steps.inputs.dtype != jnp.float32:
        return f"params must be float32, got {describe(params)}"
    if dtype is not None and jnp.dtype(dtype).itemsize > 4:
        return f"dtype must be None or have at most 32 bits, got {jnp.dtype(dtype)}"
    kernel = params.recurrent_kernel
    if kernel is not None:
        units = -(-len(kernel) // UNITS) * UNITS
        size = units * units * kernel.shape[1] // len(kernel)
        size *= jnp.dtype(dtype or kernel.dtype).itemsize
        if size > KERNEL_BYTES:
            return (
                f"recurrent_kernel must have at most {KERNEL_BYTES / 2**20:.0f} MiB, "
                f"got {size / 2**20:.0f} MiB"
            )
    gate: Any = cell.gate
    return refusal(gate, elementwise(params), state, in_kernels=True)


def _on_platform(direction: str, given: Any, **options: Any) -> Any:
    """Runs the kernel of the platform that the program is lowered for.

    A kernel cannot be differentiated. Its derivative, needed for second derivatives, is that of the
    XLA loop.
    """
    # Importing Pallas takes 0.25 s.
    from jaxrnn.backends.pallas import gpu, tpu

    def runs(module):
        return partial(getattr(module, direction), **options)

    card = gpu.card_for(given, options["step"])
    cuda = partial(runs(gpu), card=card) if card else runs(loop)

    @jax.custom_jvp
    def call(given):
        return lax.platform_dependent(given, tpu=runs(tpu), cuda=cuda, default=runs(loop))

    call.defjvp(partial(jax.jvp, runs(loop)))
    return call(given)


KERNELS = Kernels(partial(_on_platform, "forward"), partial(_on_platform, "backward"))

run = partial(states.run, kernels=KERNELS, tile=(EXAMPLES, UNITS))


def with_kernels(module: ModuleType, **options: Any) -> SimpleNamespace:
    """Returns a backend that runs the same kernels on every platform.

    Add it to `jaxrnn.backends.BACKENDS` to use it. With `interpret=True` the kernels are
    interpreted on any platform, for tests. Interpretation is slow. GPU kernels need JAX 0.11 for
    it, and more XLA threads than a block has warpgroups (the environment variable NPROC).

    Args:
        module: The module of the kernels, `tpu` or `gpu`.
        **options: Further arguments of the kernels, such as `interpret`, or `card` for `gpu`.
    """
    kernels = Kernels(partial(module.forward, **options), partial(module.backward, **options))
    return SimpleNamespace(supports=supports, run=partial(run, kernels=kernels))
