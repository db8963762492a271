"""`unroll`: a cell over time, with lengths, resets and directions.

Shapes: B batch (any number of axes, also none), T time, I input features, P output features.
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

from jaxrnn.arguments import (
    IMPLEMENTATIONS,
    MEMORY,
    check_cell,
    check_dtype,
    check_key,
    check_lengths,
    check_params,
    check_resets,
    check_state,
    choice,
    describe,
    flag,
    floating,
    size,
)
from jaxrnn.backends.cudnn import cudnn, why_not
from jaxrnn.backends.fused import Steps, fused, mixed, where
from jaxrnn.backends.parallel import parallel
from jaxrnn.cell import Cell, Params, State, elementwise, make_products, with_kernels_in
from jaxrnn.regularize import Regularizer, check, drop_weights, noise

# Steps of a block. Longer blocks save more for a moment, shorter ones keep more starts.
BLOCK = 14
# On long sequences, once what the steps save outgrows the caches by far, recomputing blocks is
# faster than writing and reading it; on short ones it never paid.
LONG = 8 * BLOCK
SAVE_BYTES = 2**26


def unroll(
    cell: Cell,
    params: Params,
    inputs: Any,
    *,
    initial_state: State | None = None,
    lengths: Any = None,
    resets: Any = None,
    reset_state: State | None = None,
    reverse: bool = False,
    time_major: bool = False,
    dtype: Any = None,
    implementation: str | None = None,
    memory: str | None = None,
    unroll: int = 1,
    truncate: int | None = None,
    regularizer: Regularizer | None = None,
    key: Array | None = None,
) -> tuple[Float[Array, "..."], State]:
    """Runs a cell over a sequence with `jax.lax.scan`.

    Everything is computed in the dtype of the parameters, to which the inputs are cast, except the
    products where `dtype` says otherwise.

    Args:
        cell: The cell.
        params: Its parameters, as `cell.init` gives them, or as nested dicts, as in the `params` of
            a Flax module.
        inputs: `[*B, T, I]`, or `[T, *B, I]` with `time_major`; floating-point.
        initial_state: The state before the first step, leaves `[*B, ...]`; None takes
            `cell.initial_state(params, B)`.
        lengths: `[*B]` integers in 0..T. Past its length an example outputs zeros and its state is
            copied through; an example of length 0 gives back its initial state. Under `jit`, where
            they cannot be checked, lengths beyond T count as T and negative ones as 0.
        resets: Booleans shaped as `inputs` without the last axis. Where True, the state becomes
            `reset_state` before the step.
        reset_state: The state that a reset puts in place, leaves `[*B, ...]`; None takes
            `cell.initial_state(params, B)`, also where `initial_state` was carried over from the
            sequence before.
        reverse: Read from the end to the start, each example within its own length. Outputs stand
            where their inputs stand.
        time_major: Whether time is the first axis of inputs, resets and outputs.
        dtype: The dtype of the operands of the matrix products, as bfloat16; sums, gates, state,
            outputs and gradients keep the dtype of the parameters. None is that of the parameters.
            A cell with a step of its own obeys it where it calls `jaxrnn.product`.
        implementation: "scan" is `jax.lax.scan` and its autodiff, for every cell and also for
            forward mode; "fused" the deferred gradient of `jaxrnn.backends.fused`, for cells made
            by `jaxrnn.gated`; "parallel" all steps at once, for linear recurrences (on a CPU all
            products at once and the states in turn); "cudnn" NVIDIA's LSTM (not under `vmap`, for
            want of a rule in JAX). None takes "fused" or "parallel" where it can, else "scan".
            Under `jax.disable_jit` "fused" runs as "scan".
        memory: What the gradient is computed from. "save" keeps what every step saves;
            "recompute" keeps the state at the start of every 14 steps and runs those forward
            again; "offload" does so too, and keeps those states in the host's memory (TF1's
            `swap_memory`). None takes "recompute" for long sequences that save much; of linear
            recurrences for all long ones on a CPU, and for none where they are made at once.
        unroll: Steps per iteration of the loop, as in `jax.lax.scan`.
        truncate: Truncated backpropagation (Williams & Peng, 1990): the state is carried on, but
            no gradient reaches back across every `truncate`-th step. Memory as with blocks of
            that many steps under "recompute".
        regularizer: Recurrent regularization; see `jaxrnn.Regularizer`.
        key: The random key for it; None, as at evaluation, draws nothing. Under `jax.shard_map`
            fold the device's index into it.

    Returns:
        The outputs, shaped as the inputs with P features, and the state after the last step.

    Raises:
        ValueError: If an argument has a wrong type, shape, dtype or value, or a function of the
            cell returns what it must not; names the argument or the function.
    """
    if not isinstance(cell, Cell):
        raise ValueError(f"cell must be a jaxrnn.Cell, got {describe(cell)}")
    choice("implementation", implementation, IMPLEMENTATIONS)
    choice("memory", memory, MEMORY)
    unroll = size("unroll", unroll)
    truncate = None if truncate is None else size("truncate", truncate)
    reverse, time_major = flag("reverse", reverse), flag("time_major", time_major)
    dtype = check_dtype(dtype)
    check_key(key)
    if not isinstance(regularizer, Regularizer | None):
        kind = type(regularizer).__name__
        raise ValueError(f"regularizer must be a jaxrnn.Regularizer or None, got a {kind}")
    inputs = _check_inputs(inputs, time_major)
    params = check_params(cell.init, params, inputs.shape[-1])
    resets = check_resets(resets, inputs.shape[:-1])
    if not time_major:
        inputs = jnp.moveaxis(inputs, -2, 0)
        resets = None if resets is None else jnp.moveaxis(resets, -1, 0)
    time, *batch_shape, _ = inputs.shape
    batch_shape = tuple(batch_shape)
    lengths = check_lengths(lengths, batch_shape, time)
    fresh = cell.initial_state(params, batch_shape)
    if initial_state is None:
        initial_state = fresh
    else:
        initial_state = check_state("initial_state", initial_state, fresh)
    if reset_state is not None:
        reset_state = check_state("reset_state", reset_state, fresh)
    if resets is None:
        reset_state = None
    elif reset_state is None:
        reset_state = fresh
    inputs = inputs.astype(_dtype_of(fresh, params))
    # Not its `init`, which may hold a traced number that must not be kept.
    cell = cell._replace(init=None)
    output = check_cell(cell, params, initial_state, inputs)
    drop, mix = None, None
    if regularizer is not None:
        check(regularizer, cell, params)
        if key is not None and regularizer.weight_dropout is not None:
            key, weight_key = jax.random.split(key)
            params = drop_weights(weight_key, params, regularizer.weight_dropout)
        drop, mix = noise(key, regularizer, initial_state, time)
    params, initial_state, reset_state, inputs, lengths, resets, drop, mix = _alike(
        (params, initial_state, reset_state, inputs, lengths, resets, drop, mix)
    )
    steps = _steps(inputs, lengths, resets, reverse)._replace(drop=drop, mix=mix)
    implementation = _choose(cell, initial_state, steps, dtype, implementation)
    memory = _choose_memory(implementation, memory, truncate, params, inputs)
    if isinstance(time, int) and time == 0:
        outputs, state = jnp.zeros((0, *output.shape), output.dtype), initial_state
    else:
        options = implementation, memory, unroll, truncate, dtype
        arguments = params, initial_state, reset_state, steps
        outputs, state = _call(cell, *options)(cell, *options, *arguments)
    if reverse:
        outputs = _reverse(outputs, lengths)
    return outputs if time_major else jnp.moveaxis(outputs, 0, -2), state


Run = Callable[[State, Steps], tuple[Array, State]]


def _call(*static) -> Callable:
    """`_run` under jit, so that a second call outside of jit does not compile its loop again."""
    try:
        hash(static)
    except TypeError:  # a user's step that is no plain function
        return _run
    return _jit_run


def _run(
    cell, implementation, memory, unroll, truncate, dtype, params, initial_state, reset_state, steps
):
    run: Run
    if implementation == "cudnn":
        run = partial(cudnn, params)
    elif implementation == "parallel":
        run = partial(parallel, cell.recurrence, dtype, params, reset_state)
    # Without jit there is no one program of a step whose pullback could be saved.
    elif implementation == "scan" or jax.config.jax_disable_jit:
        run = partial(_scan, cell, unroll, dtype, params, reset_state)
    else:
        run = lambda start, steps: fused(cell, unroll, dtype, params, start, reset_state, steps)  # noqa: E731
    if memory == "save" and truncate is None:
        return run(initial_state, steps)
    if memory == "by platform":
        # In blocks it would not be parallel in time. A CPU, where it is not, is faster through
        # what stays in its caches.
        blocks = partial(_in_blocks, run, memory="recompute", truncate=None)
        return lax.platform_dependent(initial_state, steps, cpu=blocks, default=run)
    return _in_blocks(run, initial_state, steps, memory, truncate)


_jit_run = jax.jit(_run, static_argnums=range(6), inline=True)


def _choose(cell: Cell, state: State, steps: Steps, dtype: Any, implementation: str | None) -> str:
    """The implementation asked for, if it can compute this, or the fastest that can."""
    if implementation is None:
        if cell.recurrence is not None:
            return "parallel"
        return "fused" if cell.gate is not None and _has_floats_only(state) else "scan"
    if implementation == "cudnn" and (reason := why_not(cell, steps, dtype)):
        raise ValueError(f"implementation 'cudnn' cannot compute this: {reason}")
    if implementation == "fused" and cell.gate is None:
        raise ValueError(
            "implementation 'fused' needs a cell made by jaxrnn.gated, "
            "got one with a step of its own; 'scan' runs every cell"
        )
    if implementation == "fused" and not _has_floats_only(state):
        raise ValueError(
            f"implementation 'fused' needs a state of floats, got {describe(state)}; "
            "'scan' runs every cell"
        )
    if implementation == "parallel" and cell.recurrence is None:
        raise ValueError(
            "implementation 'parallel' needs a linear recurrence, such as jaxrnn.lru, "
            "got a cell whose steps depend on the state"
        )
    return implementation


def _has_floats_only(state) -> bool:
    """Whether every leaf has a gradient, as the deferred one takes for granted."""
    return all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(state))


def _choose_memory(implementation, memory, truncate, params, inputs) -> str:
    """The kind of memory asked for, or the fastest."""
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
    if implementation == "parallel":
        return "save" if time < LONG else "by platform"
    return "save" if _is_short(params, inputs) else "recompute"


def _scan(cell: Cell, unroll: int, dtype, params, reset_state, start, steps: Steps):
    """The reference: the cell's step under `lax.scan`."""
    uncast = params

    def body(state, now: Steps):
        # Within the step, so that the gradients of the kernels add up in their own dtype.
        params = with_kernels_in(dtype, uncast)
        before = state
        if now.resets is not None:
            before = where(now.resets, reset_state, state)
        if cell.gate is None or now.drop is None:
            after, output = cell.step(params, before, now.inputs)
        else:
            products = make_products(params, before[0] * now.drop, now.inputs, cell.summed)
            after = cell.gate(elementwise(params), *products, before)
            output = after[0]
        if now.mix is not None:
            shows_state = output is jax.tree.leaves(after)[0]
            after = mixed(now.mix, after, before)
            output = jax.tree.leaves(after)[0] if shows_state else output
        if now.alive is not None:
            after = where(now.alive, after, state)
            output = where(now.alive, output, jnp.zeros_like(output))
        return after, output

    state, outputs = lax.scan(body, start, steps, unroll=unroll)
    return outputs, state


def _is_short(params, inputs) -> bool:
    """Whether what all steps save is better kept than computed again."""
    if not all(isinstance(length, int) for length in inputs.shape):
        return True  # a symbolic size of the batch
    leaves = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    width = sum(leaf.shape[-1] for leaf in leaves)
    saved = math.prod(inputs.shape[:-1]) * width * inputs.dtype.itemsize
    return len(inputs) < LONG or saved <= SAVE_BYTES


def _in_blocks(run: Run, start: State, steps: Steps, memory: str, truncate: int | None):
    """Runs blocks of steps one after the other; the gradient recomputes each from its start."""
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
            # What has ended is only copied from here on: its last state keeps its gradient.
            state = cut if goes_on is None else where(goes_on, cut, state)
        return state, outputs

    blocks, rest = divmod(len(steps.inputs), length)
    if truncate is not None and blocks and not rest:
        blocks, rest = blocks - 1, length  # no cut after the last step
    end = blocks * length
    whole = jax.tree.map(lambda leaf: leaf[:end].reshape(blocks, length, *leaf.shape[1:]), steps)
    goes_on = None
    if truncate is not None and steps.alive is not None:
        goes_on = steps.alive[length : end + 1 : length]
    state, parts = start, []
    if blocks:  # under jax.disable_jit a scan must not be empty
        state, outputs = lax.scan(advance, state, (whole, goes_on))
        parts.append(outputs.reshape(end, *outputs.shape[2:]))
    if rest:
        state, outputs = block(state, jax.tree.map(lambda leaf: leaf[end:], steps))
        parts.append(outputs)
    return jnp.concatenate(parts), state


def _steps(inputs, lengths, resets, reverse: bool) -> Steps:
    alive = None
    if lengths is not None:
        time = jnp.arange(inputs.shape[0], dtype=lengths.dtype)
        alive = time.reshape((-1,) + (1,) * lengths.ndim) < lengths[None]
    if reverse:
        inputs = _reverse(inputs, lengths)
        resets = None if resets is None else _reverse(resets, lengths)
    if alive is not None:
        # A NaN in the padding would reach the kernels' gradients as 0 · NaN.
        inputs = where(alive, inputs, jnp.zeros_like(inputs))
        resets = None if resets is None else resets & alive
    return Steps(inputs, alive, resets)


def _reverse(sequence, lengths):
    """Reverses the time axis (the first), each example within its own length; an involution."""
    if lengths is None:
        return jnp.flip(sequence, axis=0)
    time = jnp.arange(sequence.shape[0], dtype=lengths.dtype).reshape((-1,) + (1,) * lengths.ndim)
    source = jnp.where(time < lengths[None], lengths[None] - 1 - time, time)
    source = source.reshape(source.shape + (1,) * (sequence.ndim - source.ndim))
    return jnp.take_along_axis(sequence, source, axis=0)


def reverse_time(outputs: Array, lengths: Array | None, *, time_major: bool) -> Array:
    """Reverses each example in time within its own length; what lies past it stays there."""
    if lengths is not None:
        axis = 0 if time_major else -2
        batch_shape = outputs.shape[1:-1] if time_major else outputs.shape[:-2]
        lengths = check_lengths(lengths, batch_shape, outputs.shape[axis])
    if time_major:
        return _reverse(outputs, lengths)
    return jnp.moveaxis(_reverse(jnp.moveaxis(outputs, -2, 0), lengths), 0, -2)


def _alike(tree):
    """Makes all leaves vary over the mesh axes of a `jax.shard_map` over which any of them does.

    The state of a loop must keep its type, and a gradient has the type of what it belongs to; the
    cast's transpose adds up the devices' shares of it.
    """

    def varying(leaf):
        return jax.typeof(leaf).manual_axis_type.varying

    axes = frozenset().union(*map(varying, jax.tree.leaves(tree)))

    def cast(leaf):
        missing = tuple(sorted(axes - varying(leaf)))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, tree)


def _dtype_of(state, params):
    """The dtype of the computation: that of the state, or of the parameters if it has no floats."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves((state, params))]
    return next(dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating))


def _check_inputs(inputs, time_major: bool) -> Array:
    inputs = floating("inputs", inputs)
    if inputs.ndim < 2:
        layout = "[T, ..., I]" if time_major else "[..., T, I]"
        raise ValueError(f"inputs must be {layout}, at least 2 axes, got shape {inputs.shape}")
    if isinstance(inputs.shape[-1], int) and not inputs.shape[-1]:
        raise ValueError(f"inputs must have at least one feature, got shape {inputs.shape}")
    return inputs
