"""The deferred gradient with each loop over time in one kernel; see `jaxrnn.backends.states`.

A loop of XLA launches several kernels a step; where a step is short, that is all the time it takes.
Here time is a loop inside of a Pallas kernel, which keeps the state and the recurrent kernel on the
chip: `tpu` for TPUs, `gpu` for NVIDIA's Hopper GPUs and, from JAX 0.11, for Ampere, Ada and
B200. On other platforms, and on a GPU where the recurrent kernel is too large, or float32
products are to be exact, the loop of XLA runs instead.
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

# A larger recurrent kernel does not fit on the chip; its products are so large that the launches of
# a loop no longer decide.
KERNEL_BYTES = 2**25


def supports(cell: Cell, params: Params, state: State, steps: Steps, dtype: Any) -> str | None:
    """None for a gated cell in float32 whose gate is elementwise, or why not."""
    if reason := states.supports(cell, params, state, steps, dtype):
        return reason
    if steps.inputs.dtype != jnp.float32:
        return f"it needs float32, got {describe(params)}"
    if dtype is not None and jnp.dtype(dtype).itemsize > 4:
        return f"it needs products in float32 or less, got {jnp.dtype(dtype)}"
    kernel = params.recurrent_kernel
    if kernel is not None:
        units = -(-len(kernel) // UNITS) * UNITS
        size = units * units * kernel.shape[1] // len(kernel)
        size *= jnp.dtype(dtype or kernel.dtype).itemsize
        if size > KERNEL_BYTES:
            return f"the recurrent kernel takes {size / 2**20:.0f} MiB, more than fit on the chip"
    gate: Any = cell.gate
    return refusal(gate, elementwise(params), state, in_kernels=True)


def _on_platform(direction: str, given: Any, **options: Any) -> Any:
    """Runs the kernel of the platform that the program is lowered for.

    A kernel has no derivative; second derivatives are those of the loop of XLA.
    """
    # Pallas takes a quarter of a second to import.
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


def interpreted(module: ModuleType, **options: Any) -> SimpleNamespace:
    """A backend whose kernels are interpreted on any platform.

    It is slow, and for a GPU's kernels XLA needs more threads than a block has warpgroups (the
    environment variable NPROC) and JAX 0.11. Put it among `jaxrnn.backends.BACKENDS` to use it.

    Args:
        module: `tpu` or `gpu`.
        **options: Further arguments of its kernels.
    """
    kernels = Kernels(
        partial(module.forward, interpret=True, **options),
        partial(module.backward, interpret=True, **options),
    )
    return SimpleNamespace(supports=supports, run=partial(run, kernels=kernels))
