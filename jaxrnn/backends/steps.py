"""The inputs and masks of a sequence, and the operations on the state around the cell in a step.

    state ── begin ──→ before ── cell ──→ after ── finish ──→ state

`begin` applies resets. `finish` applies zoneout and keeps the state past the length of an example;
`unroll` sets the outputs there to zero. "parallel" applies resets and mask to the coefficients of
the recurrence instead, and "cudnn" passes lengths. `begin` and `finish` are linear in the states,
so that a backend with its own gradient can transpose them.

Shapes: B batch (any number of axes), T time, I input features, H hidden units.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxrnn.cell import State


class Steps(NamedTuple):
    """The inputs and masks of all steps or of one step, time first, in the order of processing.

    Attributes:
        inputs: The inputs, zero past the length of an example.
        mask: True within the length of an example, or None if there are no lengths.
        resets: True where the state is reset before the step, and False past the length of an
            example. None if there are no resets.
        dropout_mask: The recurrent-dropout mask, which multiplies the hidden state as operand of
            the recurrent product, or None.
        zoneout_mask: A tree in the structure of the state with leaves `[T, *B, H]`, 1 where a unit
            is updated and 0 where it keeps its old value, or at evaluation leaves `[T]` with the
            expected value. None without zoneout.
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
    """Returns the steps in the order of processing.

    Args:
        inputs: The inputs.
        lengths: The lengths of the examples, or None.
        resets: The resets, or None.
        reverse: Whether to process each example from its end to its start.
        dropout_mask: The recurrent-dropout mask in the order of processing, or None.
        zoneout_mask: The zoneout mask in the order of processing, or None.
    """
    mask = None
    if lengths is not None:
        mask = _times(inputs, lengths) < lengths[None]
    if reverse:
        inputs = reverse_each(inputs, lengths)
        resets = None if resets is None else reverse_each(resets, lengths)
    if mask is not None:
        # A NaN in the padding would make the gradients of the kernels NaN, as 0 · NaN.
        inputs = zeros_where(~mask, inputs)
        resets = None if resets is None else resets & mask
    return Steps(inputs, mask, resets, dropout_mask, zoneout_mask)


def reverse_each(
    sequence: Shaped[Array, "..."], lengths: Int[Array, "*B"] | None
) -> Shaped[Array, "..."]:
    """Reverses the first axis, each example within its own length; it is its own inverse."""
    if lengths is None:
        return jnp.flip(sequence, axis=0)
    time = _times(sequence, lengths)
    source = jnp.where(time < lengths[None], lengths[None] - 1 - time, time)
    source = source.reshape(source.shape + (1,) * (sequence.ndim - source.ndim))
    return jnp.take_along_axis(sequence, source, axis=0)


def _times(sequence, lengths):
    """Returns 0..T-1 with one more axis of size 1 for every batch axis."""
    time = jnp.arange(sequence.shape[0], dtype=lengths.dtype)
    return time.reshape((-1,) + (1,) * lengths.ndim)


def select(condition: Bool[Array, "*B"], this: State, that: State) -> State:
    """Selects the leaves of `this` for the examples where `condition` is True, else of `that`."""

    def one(a, b):
        extra = a.ndim - condition.ndim
        return jnp.where(condition.reshape(condition.shape + (1,) * extra), a, b)

    return jax.tree.map(one, this, that)


def zeros_where(condition: Bool[Array, "*B"], tree: State) -> State:
    """Sets the leaves to zero, even if they are NaN, for the examples where `condition` is True."""
    return select(condition, jax.tree.map(jnp.zeros_like, tree), tree)


def begin(now: Steps, reset_state: State | None, state: State) -> State:
    """Returns the state before a step: the reset state for the examples that are reset."""
    return state if now.resets is None else select(now.resets, reset_state, state)


def recurrent_input(now: Steps, state: State) -> Float[Array, "*B H"]:
    """Returns the operand of the recurrent product: the hidden state after recurrent dropout."""
    return state[0] if now.dropout_mask is None else state[0] * now.dropout_mask


def finish(now: Steps, after: State, before: State) -> State:
    """Applies zoneout to the state after a step, and keeps it past the length of an example."""
    if now.zoneout_mask is not None:
        after = jax.tree.map(
            lambda new, old, mask: old + mask * (new - old), after, before, now.zoneout_mask
        )
    return after if now.mask is None else select(now.mask, after, before)
