"""Linear recurrences, computed for all steps in parallel.

    s_t = a_t∘s_{t-1} + b_t

The coefficients a and b are functions of the inputs only. `jax.lax.associative_scan` computes all T
states in log₂ T rounds (Blelloch, 1990; Martin & Cundy, "Parallelizing linear recurrent neural nets
over sequence length", 2018). On a CPU the matrix products of all steps are also computed at once,
but the elementwise recurrence is computed step by step.

Shapes: B batch (any number of axes), T time, H hidden units, P output features.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Inexact

from jaxrnn.backends.steps import Steps, select, zeros_where
from jaxrnn.cell import Cell, Params, State, with_kernels_in


def supports(cell: Cell, params: Params, state: State, steps: Steps, dtype: Any) -> str | None:
    """Returns None for a cell made by `jaxrnn.linear`, else the reason."""
    if cell.recurrence is None:
        return (
            "cell must be a linear recurrence, such as jaxrnn.lru, "
            "got one that was not made by jaxrnn.linear"
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
    """Runs a linear recurrence; see `jaxrnn.backends`. `unroll` has no effect."""
    recurrence: Any = cell.recurrence
    params, packed_start = with_kernels_in(dtype, params), recurrence.pack(start)
    a, b = recurrence.coefficients(params, steps.inputs)
    shape = jnp.broadcast_shapes(a.shape, b.shape, steps.inputs.shape[:1] + packed_start.shape)
    b = jnp.broadcast_to(b, shape)
    # A coefficient may have fewer axes, such as a decay [H] shared by all examples and steps. It is
    # then not repeated for every example, which would double the memory traffic.
    a = jnp.expand_dims(a, range(len(shape) - a.ndim))
    shared = steps.resets is None and steps.mask is None
    a = jnp.broadcast_to(a, (shape[0], *a.shape[1:]) if shared else shape)
    if steps.resets is not None:
        b = select(steps.resets, b + a * recurrence.pack(reset_state)[None], b)
        a = zeros_where(steps.resets, a)
    if steps.mask is not None:
        a = select(steps.mask, a, jnp.ones_like(a))
        b = zeros_where(~steps.mask, b)
    first = a[0] * packed_start
    if steps.resets is not None:  # a reset must also remove a NaN, but 0 · NaN is NaN
        first = zeros_where(steps.resets[0], first)
    packed = states_of(a, b.at[0].add(first), steps.resets)
    outputs = recurrence.readout(params, packed, steps.inputs)
    return outputs, recurrence.unpack(packed[-1], outputs.dtype)


def states_of(
    a: Inexact[Array, "T ... H"],
    b: Inexact[Array, "T *B H"],
    resets: Bool[Array, "T *B"] | None = None,
) -> Inexact[Array, "T *B H"]:
    """Computes all states `s_t = a_t∘s_{t-1} + b_t` from a zero initial state.

    The states are the solution of the bidiagonal linear system `s_t - a_t∘s_{t-1} = b_t`. Their
    derivatives solve the same system in forward mode, and the transposed system, which is the
    recurrence reversed in time, in reverse mode.

    Args:
        a: The factors of the states, zero at a reset. An axis of size 1 is shared by the examples.
        b: The summands.
        resets: Where True, the previous state is ignored even if it is NaN. If None, there are no
            resets.
    """

    def system(states):
        before = jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])
        before = before if resets is None else zeros_where(resets, before)
        return states - a * before

    def solve(_, b):
        return _solve(a, b, resets)

    def transpose_solve(_, g):
        # The transpose is the recurrence reversed in time, g_t + a_{t+1}∘s_{t+1}.
        later = jnp.concatenate([a[1:], jnp.zeros_like(a[:1])])
        ends = None
        if resets is not None:
            ends = jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])
            ends = jnp.flip(ends, 0)
        return jnp.flip(_solve(jnp.flip(later, 0), jnp.flip(g, 0), ends), 0)

    return lax.custom_linear_solve(system, b, solve, transpose_solve)


def _solve(a, b, resets):
    """Computes all states from a zero initial state, in the way that suits the platform."""
    if not isinstance(a.shape[0], int):  # associative_scan needs a fixed number of steps
        return _in_turn(a, b, resets)
    # On the few cores of a CPU, each of the log₂ T rounds takes as long as a pass over all states.
    return lax.platform_dependent(a, b, resets, cpu=_in_turn, default=_at_once)


# A program has these two functions several times, forward and reversed in time. Under jit they are
# traced and lowered once for each shape.
@jax.jit
def _at_once(a, b, resets):
    """Computes all states in log₂ T rounds."""

    def join(earlier, later):
        carried = later[0] * earlier[1]
        if resets is None:
            return earlier[0] * later[0], carried + later[1]
        carried = zeros_where(later[2], carried)
        return earlier[0] * later[0], carried + later[1], earlier[2] | later[2]

    return lax.associative_scan(join, (a, b) if resets is None else (a, b, resets))[1]


@jax.jit
def _in_turn(a, b, resets):
    """Computes the states one after the other."""

    def body(state, now):
        a, b, reset = now
        carried = a * state
        if reset is not None:
            carried = zeros_where(reset, carried)
        state = carried + b
        return state, state

    return lax.scan(body, jnp.zeros_like(b[0]), (a, b, resets))[1]
