"""The reference backend: `jax.lax.scan` over the cell's step, differentiated by JAX."""

from __future__ import annotations

from typing import Any

import jax
from jax import lax
from jaxtyping import Array, Float

from jaxrnn.backends.steps import Steps, begin, finish, recurrent_input
from jaxrnn.cell import Cell, Params, State, gated_step, with_kernels_in


def supports(cell: Cell, params: Params, state: State, steps: Steps, dtype: Any) -> str | None:
    """Returns None, because this backend supports every cell."""
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
    """Runs the cell over time; see `jaxrnn.backends`."""

    def body(state, now):
        # The cast is inside the loop, so that the gradients of the kernels are summed in the dtype
        # of the kernels.
        cast = with_kernels_in(dtype, params)
        before = begin(now, reset_state, state)
        if now.dropout_mask is None or cell.gate is None:
            after, output = cell.step(cast, before, now.inputs)
        else:
            hidden = recurrent_input(now, before)
            output, *_ = after = gated_step(cell.gate, cast, before, hidden, now.inputs)
        state = finish(now, after, before)
        return state, jax.tree.leaves(state)[0] if cell.outputs_state else output

    state, outputs = lax.scan(body, start, steps, unroll=unroll)
    return outputs, state
