"""`unroll`: a cell over time, with lengths, resets and directions.

Shapes: B batch (any number of axes, also none), T time, I input features, P outputs.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxrnn.cell import Cell, Params, State

IMPLEMENTATIONS = ("scan",)


class Steps(NamedTuple):
    """What the scan runs over, time first, in the order of processing."""

    inputs: Float[Array, "T *B I"]
    alive: Bool[Array, "T *B"] | None  # False past a row's length
    resets: Bool[Array, "T *B"] | None  # True where the initial state is put back before the step


def unroll(
    cell: Cell,
    params: Params,
    inputs: Array,
    *,
    initial_state: State | None = None,
    lengths: Array | np.ndarray | None = None,
    resets: Array | np.ndarray | None = None,
    reverse: bool = False,
    time_major: bool = False,
    implementation: str | None = None,
    unroll: int = 1,
) -> tuple[Float[Array, "..."], State]:
    """Runs a cell over a sequence with `jax.lax.scan`.

    Args:
        cell: The cell.
        params: Its parameters, as `cell.init` gives them.
        inputs: `[*B, T, I]`, or `[T, *B, I]` with `time_major`; the dtype of the parameters.
        initial_state: The state before the first step, leaves `[*B, ...]`; None takes
            `cell.initial_state(params, B)`.
        lengths: `[*B]` integers in 0..T. Past its length a row outputs zeros and its state is
            copied through; a row of length 0 gives back its initial state.
        resets: Booleans shaped as `inputs` without the last axis. Where True, the initial state
            is put back before the step.
        reverse: Read from the end to the start, each row within its own length. Outputs stand
            where their inputs stand.
        time_major: Whether time is the first axis of inputs, resets and outputs.
        implementation: "scan" is `jax.lax.scan` and its autodiff; None takes the fastest that
            gives the same result.
        unroll: Steps per iteration of the loop, as in `jax.lax.scan`.

    Returns:
        The outputs, shaped as the inputs with P features, and the state after the last step.

    Raises:
        ValueError: If a shape, dtype, length or option is wrong; names the argument.
    """
    _check_options(implementation, unroll)
    inputs, resets, batch_shape = _time_first(params, inputs, resets, time_major)
    lengths = _check_lengths(lengths, batch_shape, len(inputs))
    initial_state = _check_state(cell, params, initial_state, batch_shape)
    steps = _steps(inputs, lengths, resets, reverse)
    outputs, state = _scan(cell, params, initial_state, steps, unroll)
    if reverse:
        outputs = _reverse(outputs, lengths)
    return outputs if time_major else jnp.moveaxis(outputs, 0, -2), state


def _scan(cell: Cell, params, initial_state, steps: Steps, unroll: int):
    """The reference: the cell's step under `lax.scan`."""

    def body(state, now: Steps):
        before = state
        if now.resets is not None:
            before = where(now.resets, initial_state, state)
        after, output = cell.step(params, before, now.inputs)
        if now.alive is not None:
            after = where(now.alive, after, state)
            output = where(now.alive, output, jnp.zeros_like(output))
        return after, output

    state, outputs = lax.scan(body, initial_state, steps, unroll=unroll)
    return outputs, state


def where(condition: Bool[Array, "*B"], this: State, that: State) -> State:
    """`this` in the rows where the condition holds, else `that`; over trees."""

    def select(a, b):
        extra = a.ndim - condition.ndim
        return jnp.where(condition.reshape(condition.shape + (1,) * extra), a, b)

    return jax.tree.map(select, this, that)


def _steps(inputs, lengths, resets, reverse: bool) -> Steps:
    alive = None
    if lengths is not None:
        time = jnp.arange(len(inputs), dtype=lengths.dtype)
        alive = time.reshape((-1,) + (1,) * lengths.ndim) < lengths[None]
    if reverse:
        inputs = _reverse(inputs, lengths)
        resets = None if resets is None else _reverse(resets, lengths)
    if resets is not None and alive is not None:
        resets = resets & alive
    return Steps(inputs, alive, resets)


def _reverse(sequence, lengths):
    """Reverses the time axis (the first), each row within its own length; an involution."""
    if lengths is None:
        return jnp.flip(sequence, axis=0)
    time = jnp.arange(len(sequence), dtype=lengths.dtype).reshape((-1,) + (1,) * lengths.ndim)
    source = jnp.where(time < lengths[None], lengths[None] - 1 - time, time)
    source = source.reshape(source.shape + (1,) * (sequence.ndim - source.ndim))
    return jnp.take_along_axis(sequence, source, axis=0)


def _check_options(implementation, unroll):
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be None or one of {IMPLEMENTATIONS}, got {implementation!r}"
        )
    if not isinstance(unroll, int) or isinstance(unroll, bool) or unroll < 1:
        raise ValueError(f"unroll must be a positive integer, got {unroll!r}")


def _time_first(params, inputs, resets, time_major: bool):
    if inputs.ndim < 2:
        layout = "[T, ..., I]" if time_major else "[..., T, I]"
        raise ValueError(f"inputs must be {layout}, at least 2 axes, got shape {inputs.shape}")
    dtype = jax.tree.leaves(params)[0].dtype
    if inputs.dtype != dtype:
        raise ValueError(f"inputs must have the parameters' dtype {dtype}, got {inputs.dtype}")
    if resets is not None:
        if resets.dtype != jnp.bool_:
            raise ValueError(f"resets must be boolean, got {resets.dtype}")
        if resets.shape != inputs.shape[:-1]:
            raise ValueError(f"resets must have shape {inputs.shape[:-1]}, got {resets.shape}")
    if not time_major:
        inputs = jnp.moveaxis(inputs, -2, 0)
        resets = None if resets is None else jnp.moveaxis(resets, -1, 0)
    return inputs, resets, inputs.shape[1:-1]


def _check_lengths(lengths, batch_shape, time: int):
    if lengths is None:
        return None
    lengths = jnp.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(f"lengths must be integers, got {lengths.dtype}")
    if lengths.shape != batch_shape:
        raise ValueError(f"lengths must have the batch's shape {batch_shape}, got {lengths.shape}")
    if not isinstance(lengths, jax.core.Tracer) and lengths.size:
        values = np.asarray(lengths)
        if values.min() < 0 or values.max() > time:
            raise ValueError(
                f"lengths must lie in 0..{time}, got values from {values.min()} to {values.max()}"
            )
    return lengths


def _check_state(cell: Cell, params, state, batch_shape):
    default = cell.initial_state(params, batch_shape)
    if state is None:
        return default
    expected = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", default)
    got = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", state)
    if got != expected:
        raise ValueError(f"initial_state must be {expected}, got {got}")
    return state
