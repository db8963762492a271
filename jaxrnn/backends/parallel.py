"""Linear recurrences, all steps at once.

    s_t = a_t∘s_{t-1} + b_t        a and b depend on the inputs only, not on the state

`jax.lax.associative_scan` makes all T states in log₂ T rounds (Blelloch, 1990; Martin & Cundy,
"Parallelizing linear recurrent neural nets over sequence length", 2018). On a CPU all products are
still made at once, and only the elementwise recurrence runs step by step.

Shapes: B batch (any number of axes), T time, H hidden units, P output features.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Inexact

from jaxrnn.backends.steps import Steps, select, zeros_where
from jaxrnn.cell import Cell, Params, State, with_kernels_in


def supports(cell: Cell, params: Params, state: State, steps: Steps, dtype: Any) -> str | None:
    """None for linear recurrences, or why not."""
    if cell.recurrence is None:
        return (
            "it needs a linear recurrence, such as jaxrnn.lru, "
            "got a cell whose steps depend on the state"
        )
    return None


def run(
    cell: Cell,
    params: Params,
    start: State,
    reset_state: State | None,
    steps: Steps,
    *,
    dtype: Any = None,
    unroll: int = 1,
) -> tuple[Float[Array, "T *B P"], State]:
    """Runs all steps at once; see `jaxrnn.backends`. There is no loop to unroll."""
    recurrence: Any = cell.recurrence
    params, packed_start = with_kernels_in(dtype, params), recurrence.pack(start)
    a, b = recurrence.coefficients(params, steps.inputs)
    # A coefficient may lack axes, as a decay [H] that is the same for all examples and steps.
    shape = jnp.broadcast_shapes(a.shape, b.shape, steps.inputs.shape[:1] + packed_start.shape)
    a, b = jnp.broadcast_to(a, shape), jnp.broadcast_to(b, shape)
    if steps.resets is not None:
        b = select(steps.resets, b + a * recurrence.pack(reset_state)[None], b)
        a = zeros_where(steps.resets, a)
    if steps.mask is not None:
        a = select(steps.mask, a, jnp.ones_like(a))
        b = zeros_where(~steps.mask, b)
    first = a[0] * packed_start
    if steps.resets is not None:  # 0 · NaN would carry on what a reset ends
        first = zeros_where(steps.resets[0], first)
    packed = states_of(a, b.at[0].add(first), steps.resets)
    outputs = recurrence.readout(params, packed, steps.inputs)
    return outputs, recurrence.unpack(packed[-1], outputs.dtype)


def states_of(
    a: Inexact[Array, "T *B H"],
    b: Inexact[Array, "T *B H"],
    resets: Bool[Array, "T *B"] | None = None,
) -> Inexact[Array, "T *B H"]:
    """All states `s_t = a_t∘s_{t-1} + b_t` with s before the first step zero.

    The states solve the bidiagonal system `s_t - a_t∘s_{t-1} = b_t`, so their derivative, in
    either mode, is a solution of the same system and its transpose the recurrence in reverse.

    Args:
        a: The coefficients of the states; at a reset they must be zero.
        b: The coefficients added.
        resets: Where nothing of an earlier state, not even NaN, is to reach a state.
    """

    def system(states):
        before = jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])
        before = before if resets is None else zeros_where(resets, before)
        return states - a * before

    def solve(_, b):
        return _solve(a, b, resets)

    def transpose_solve(_, g):
        # s_t + a_{t+1}∘s_{t+1}: the recurrence backwards, its coefficients one step later.
        later = jnp.concatenate([a[1:], jnp.zeros_like(a[:1])])
        ends = None
        if resets is not None:
            ends = jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])
            ends = jnp.flip(ends, 0)
        return jnp.flip(_solve(jnp.flip(later, 0), jnp.flip(g, 0), ends), 0)

    return lax.custom_linear_solve(system, b, solve, transpose_solve)


def _solve(a, b, resets):
    if not isinstance(a.shape[0], int):  # a symbolic size cannot be halved
        return _in_turn(a, b, resets)
    # On a CPU, with few cores, each of the log₂ T rounds is only another pass over memory.
    return lax.platform_dependent(a, b, resets, cpu=_in_turn, default=_at_once)


def _at_once(a, b, resets):
    """All states in log₂ T rounds."""

    def join(earlier, later):
        carried = later[0] * earlier[1]
        if resets is None:
            return earlier[0] * later[0], carried + later[1]
        carried = zeros_where(later[2], carried)
        return earlier[0] * later[0], carried + later[1], earlier[2] | later[2]

    return lax.associative_scan(join, (a, b) if resets is None else (a, b, resets))[1]


def _in_turn(a, b, resets):
    """All states, one after the other."""

    def body(state, now):
        a, b, reset = now
        carried = a * state
        if reset is not None:
            carried = zeros_where(reset, carried)
        state = carried + b
        return state, state

    return lax.scan(body, jnp.zeros_like(b[0]), (a, b, resets))[1]
