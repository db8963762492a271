"""The memory of the backward pass: saved residuals of all steps, or recomputed blocks of steps.

Shapes: B batch (any number of axes), T time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from jaxrnn.backends.steps import Steps, select
from jaxrnn.cell import Params, State

# The number of steps in a block. Longer blocks hold more residuals at a time, shorter blocks keep
# more states.
BLOCK = 14
# On a CPU, recomputing blocks is faster than writing and reading the residuals if the sequence is
# long and its residuals are much larger than the caches. On short sequences it was never faster.
LONG = 8 * BLOCK
SAVE_BYTES = 2**26
# On an accelerator blocks add kernel launches, so blocks are used only to save memory. The smallest
# accelerator has 16 GB.
AT_ONCE_BYTES = 2**31

Run = Callable[[State, Steps], tuple[Float[Array, "T *B P"], State]]


def choose_memory(
    backend: str, memory: str | None, truncate: int | None, params: Params, inputs: Array
) -> str:
    """Returns `memory`, or its default if it is None.

    Args:
        backend: The name of the backend.
        memory: "save", "recompute", "offload" or None.
        truncate: The number of steps between two cuts of the gradient, or None.
        params: The parameters.
        inputs: The inputs, time first.

    Returns:
        "save", "recompute", "offload", or "by platform" if the default depends on the platform that
        the program is lowered for.

    Raises:
        ValueError: If the number of steps is symbolic and `memory` or `truncate` needs blocks.
    """
    time = inputs.shape[0]
    if not isinstance(time, int):  # a symbolic size, as in jax.export
        for name, value in (("memory", memory), ("truncate", truncate)):
            if value not in (None, "save"):
                raise ValueError(f"{name} needs a fixed number of steps, got inputs {inputs.shape}")
        return "save"
    if memory is not None:
        return memory
    if truncate is not None:
        return "recompute"
    if backend in ("states", "pallas"):
        # They save little, but hold the pre-activations of all steps and their gradients at once.
        return "save" if _residual_bytes(params, inputs) <= AT_ONCE_BYTES else "recompute"
    if backend == "parallel":
        return "save" if time < LONG else "by platform"
    return "save" if _is_short(params, inputs) else "recompute"


def _is_short(params: Params, inputs: Array) -> bool:
    """Whether keeping the residuals of all steps is faster than recomputing them."""
    return len(inputs) < LONG or _residual_bytes(params, inputs) <= SAVE_BYTES


def _residual_bytes(params: Params, inputs: Array) -> int:
    """Estimates the bytes of residuals of all steps, or returns 0 for a symbolic batch size."""
    if not all(isinstance(length, int) for length in inputs.shape):
        return 0
    leaves = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    width = sum(leaf.shape[-1] for leaf in leaves)
    return math.prod(inputs.shape[:-1]) * width * inputs.dtype.itemsize


def run_in_memory(
    run: Run, start: State, steps: Steps, memory: str, truncate: int | None
) -> tuple[Any, State]:
    """Runs the steps with the backward pass that `memory` and `truncate` select."""
    if memory == "save" and truncate is None:
        return run(start, steps)
    if memory == "by platform":
        # Blocks run one after the other, as all steps do on a CPU, where the residuals of a block
        # stay in the caches.
        blocks = partial(_in_blocks, run, memory="recompute", truncate=None)
        return lax.platform_dependent(start, steps, cpu=blocks, default=run)
    return _in_blocks(run, start, steps, memory, truncate)


def _in_blocks(run: Run, start: State, steps: Steps, memory: str, truncate: int | None):
    """Runs the steps in blocks, which the backward pass recomputes from their first states."""
    length = truncate or BLOCK
    policy = None
    if memory == "offload":
        policy = jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=["start"],
            offload_src="device",
            offload_dst="pinned_host",
        )

    @partial(jax.checkpoint, prevent_cse=False, policy=policy)
    def block(state, steps):
        if memory == "offload":
            state = jax.tree.map(lambda leaf: checkpoint_name(leaf, "start"), state)
        outputs, state = run(state, steps)
        return state, outputs

    def advance(state, now):
        steps, goes_on = now
        state, outputs = block(state, steps)
        if truncate is not None:
            cut = lax.stop_gradient(state)
            # Past its length, the state of an example is only copied, so its gradient is not cut.
            state = cut if goes_on is None else select(goes_on, cut, state)
        return state, outputs

    blocks, rest = divmod(len(steps.inputs), length)
    if truncate is not None and blocks and not rest:
        blocks, rest = blocks - 1, length  # no cut after the last step
    end = blocks * length
    whole = jax.tree.map(lambda leaf: leaf[:end].reshape(blocks, length, *leaf.shape[1:]), steps)
    goes_on = None
    if truncate is not None and steps.mask is not None:
        goes_on = steps.mask[length : end + 1 : length]
    state, parts = start, []
    if blocks:  # under jax.disable_jit a scan must have at least one step
        state, outputs = lax.scan(advance, state, (whole, goes_on))
        parts.append(outputs.reshape(end, *outputs.shape[2:]))
    if rest:
        state, outputs = block(state, jax.tree.map(lambda leaf: leaf[end:], steps))
        parts.append(outputs)
    return jnp.concatenate(parts), state
