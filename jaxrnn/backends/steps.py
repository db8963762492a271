"""What all backends share: the steps that they run over, and what stands around each of them.

    state ─ begin ─→ before ─ the cell ─→ after ─ finish ─→ state

`begin` and `finish` are linear in the states, so that a backend with a gradient of its own
transposes them instead of writing them again.

Shapes: B batch (any number of axes), T time, I input features, H hidden units.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxrnn.cell import State


class Steps(NamedTuple):
    """What a loop over time runs over, time first, in the order of processing.

    Attributes:
        inputs: The inputs; zeros past an example's length.
        mask: False past an example's length, or None if there are no lengths.
        resets: True where the state is reset before the step, or None; False past the length.
        dropout_mask: The recurrent-dropout mask, by which the recurrent product sees the hidden
            state multiplied, or None.
        zoneout_mask: For each leaf of the state 1 where it is updated and 0 where it keeps its old
            value, or None; at evaluation the share that is updated.
    """

    inputs: Float[Array, "T *B I"]
    mask: Bool[Array, "T *B"] | None
    resets: Bool[Array, "T *B"] | None
    dropout_mask: Float[Array, "T *B H"] | None = None
    zoneout_mask: State | None = None


def make_steps(
    inputs: Float[Array, "T *B I"],
    lengths: Int[Array, "*B"] | None,
    resets: Bool[Array, "T *B"] | None,
    reverse: bool,
    dropout_mask: Float[Array, "T *B H"] | None,
    zoneout_mask: State | None,
) -> Steps:
    """The steps in the order of processing; see `jaxrnn.unroll` for the arguments."""
    mask = None
    if lengths is not None:
        mask = _times(inputs, lengths) < lengths[None]
    if reverse:
        inputs = reverse_each(inputs, lengths)
        resets = None if resets is None else reverse_each(resets, lengths)
    if mask is not None:
        # A NaN in the padding would reach the gradients of the kernels as 0 · NaN.
        inputs = zeros_where(~mask, inputs)
        resets = None if resets is None else resets & mask
    return Steps(inputs, mask, resets, dropout_mask, zoneout_mask)


def reverse_each(
    sequence: Shaped[Array, "T *B ..."], lengths: Int[Array, "*B"] | None
) -> Shaped[Array, "T *B ..."]:
    """Reverses the first axis, each example within its own length; an involution."""
    if lengths is None:
        return jnp.flip(sequence, axis=0)
    time = _times(sequence, lengths)
    source = jnp.where(time < lengths[None], lengths[None] - 1 - time, time)
    source = source.reshape(source.shape + (1,) * (sequence.ndim - source.ndim))
    return jnp.take_along_axis(sequence, source, axis=0)


def _times(sequence, lengths):
    """0..T-1, with an axis for each of the batch's."""
    time = jnp.arange(sequence.shape[0], dtype=lengths.dtype)
    return time.reshape((-1,) + (1,) * lengths.ndim)


def select(condition: Bool[Array, "*B"], this: State, that: State) -> State:
    """`this` for the examples where the condition holds, else `that`; over trees."""

    def one(a, b):
        extra = a.ndim - condition.ndim
        return jnp.where(condition.reshape(condition.shape + (1,) * extra), a, b)

    return jax.tree.map(one, this, that)


def zeros_where(condition: Bool[Array, "*B"], tree: State) -> State:
    """Zeros for the examples where the condition holds, also in place of NaN; over trees."""
    return select(condition, jax.tree.map(jnp.zeros_like, tree), tree)


def begin(now: Steps, reset_state: State | None, state: State) -> State:
    """The state from which a step starts: after a reset, the reset state."""
    return state if now.resets is None else select(now.resets, reset_state, state)


def recurrent_input(now: Steps, state: State) -> Float[Array, "*B H"]:
    """What the recurrent product sees of the state: the hidden state, under recurrent dropout."""
    return state[0] if now.dropout_mask is None else state[0] * now.dropout_mask


def finish(now: Steps, after: State, before: State) -> State:
    """The state that a step leaves: under zoneout, and past an example's length as it was."""
    if now.zoneout_mask is not None:
        after = jax.tree.map(
            lambda new, old, mask: old + mask * (new - old), after, before, now.zoneout_mask
        )
    return after if now.mask is None else select(now.mask, after, before)
