"""`unroll`: a cell over time, with lengths, resets and directions.

Shapes: B batch (any number of axes, also none), T time, I input features, P outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from jaxrnn.cell import Cell, Params, State, elementwise, make_products, positive
from jaxrnn.cudnn import cudnn, why_not
from jaxrnn.fused import Steps, fused, mixed, where
from jaxrnn.linear import parallel
from jaxrnn.regularize import Regularizer, check, drop_weights, noise

IMPLEMENTATIONS = ("scan", "fused", "parallel", "cudnn")
MEMORY = ("save", "recompute", "offload")
# Steps of a block. Longer blocks save more for a moment, shorter ones keep more starts.
BLOCK = 14
# On long sequences, once what the steps save outgrows the caches by far, recomputing blocks is
# faster than writing and reading it; on short ones it never paid.
LONG = 8 * BLOCK
SAVE_BYTES = 2**26


def unroll(
    cell: Cell,
    params: Params,
    inputs: Array | np.ndarray,
    *,
    initial_state: State | None = None,
    lengths: Array | np.ndarray | None = None,
    resets: Array | np.ndarray | None = None,
    reverse: bool = False,
    time_major: bool = False,
    implementation: str | None = None,
    memory: str | None = None,
    unroll: int = 1,
    truncate: int | None = None,
    regularizer: Regularizer | None = None,
    key: Array | None = None,
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
        implementation: "scan" is `jax.lax.scan` and its autodiff, for every cell and also for
            forward mode; "fused" the deferred gradient of `jaxrnn.fused`, for cells made by
            `jaxrnn.gated`; "parallel" all steps at once, for linear recurrences (on a CPU all
            products at once and the states in turn); "cudnn" NVIDIA's LSTM (not under `vmap`, for
            want of a rule in JAX). None takes "fused" or "parallel" where it can, else "scan".
        memory: What the gradient is computed from. "save" keeps what every step saves;
            "recompute" keeps the state at the start of every 14 steps and runs those forward
            again; "offload" does so too, and keeps those states in the host's memory (TF1's
            `swap_memory`). None takes "recompute" for long sequences that save much; of linear
            recurrences for all long ones on a CPU, and for none where they are made at once.
        unroll: Steps per iteration of the loop, as in `jax.lax.scan`.
        truncate: Truncated backpropagation (Williams & Peng, 1990): the state is carried on, but
            no gradient reaches back across every `truncate`-th step. Memory as with blocks of
            that many steps under "recompute".
        regularizer: Noise between the steps; see `jaxrnn.Regularizer`.
        key: What that noise is drawn from; None, as at evaluation, draws none. Under
            `jax.shard_map` fold the device's index into it.

    Returns:
        The outputs, shaped as the inputs with P features, and the state after the last step.

    Raises:
        ValueError: If a shape, dtype, length or option is wrong; names the argument.
    """
    _check_options(implementation, memory, unroll, truncate)
    inputs, resets, batch_shape = _time_first(params, jnp.asarray(inputs), resets, time_major)
    lengths = _check_lengths(lengths, batch_shape, len(inputs))
    initial_state = _check_state(cell, params, initial_state, batch_shape)
    drop, mix = None, None
    if regularizer is not None:
        check(regularizer, cell, params)
        if key is not None and regularizer.weight_dropout is not None:
            key, weight_key = jax.random.split(key)
            params = drop_weights(weight_key, params, regularizer.weight_dropout)
        drop, mix = noise(key, regularizer, initial_state, len(inputs))
    params, initial_state, inputs, lengths, resets, drop, mix = _alike(
        (params, initial_state, inputs, lengths, resets, drop, mix)
    )
    steps = _steps(inputs, lengths, resets, reverse)._replace(drop=drop, mix=mix)
    implementation = _choose(cell, steps, implementation)
    if memory is None:
        memory = "save" if truncate is None and _is_short(params, inputs) else "recompute"
        if implementation == "parallel" and truncate is None:
            memory = "save" if len(inputs) < LONG else "by platform"
    options = implementation, memory, unroll, truncate
    # Not its `init`, which may hold a traced number that must not be kept.
    run = cell._replace(init=None)
    outputs, state = _call(run, *options)(run, *options, params, initial_state, steps)
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


def _run(cell, implementation, memory, unroll, truncate, params, initial_state, steps):
    run: Run
    if implementation == "cudnn":
        run = partial(cudnn, params)
    elif implementation == "parallel":
        run = partial(parallel, cell.recurrence, params, initial_state)
    elif implementation == "scan":
        run = partial(_scan, cell, unroll, params, initial_state)
    else:
        run = lambda start, steps: fused(cell, unroll, params, start, initial_state, steps)  # noqa: E731
    if memory == "save" and truncate is None:
        return run(initial_state, steps)
    if memory == "by platform":
        # In blocks it would not be parallel in time. A CPU, where it is not, is faster through
        # what stays in its caches.
        blocks = partial(_in_blocks, run, memory="recompute", truncate=None)
        return lax.platform_dependent(initial_state, steps, cpu=blocks, default=run)
    return _in_blocks(run, initial_state, steps, memory, truncate)


_jit_run = jax.jit(_run, static_argnums=range(5), inline=True)


def _choose(cell: Cell, steps: Steps, implementation: str | None) -> str:
    """The implementation asked for, if it can compute this, or the fastest that can."""
    if implementation is None:
        if cell.recurrence is not None:
            return "parallel"
        return "scan" if cell.gate is None else "fused"
    if implementation == "cudnn" and (reason := why_not(cell, steps)):
        raise ValueError(f"implementation 'cudnn' cannot compute this: {reason}")
    if implementation == "fused" and cell.gate is None:
        raise ValueError(
            "implementation 'fused' needs a cell made by jaxrnn.gated, "
            "got one with a step of its own; 'scan' runs every cell"
        )
    if implementation == "parallel" and cell.recurrence is None:
        raise ValueError(
            "implementation 'parallel' needs a linear recurrence, such as jaxrnn.lru, "
            "got a cell whose steps depend on the state"
        )
    return implementation


def _scan(cell: Cell, unroll: int, params, initial_state, start, steps: Steps):
    """The reference: the cell's step under `lax.scan`."""

    def body(state, now: Steps):
        before = state
        if now.resets is not None:
            before = where(now.resets, initial_state, state)
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
    if not all(isinstance(size, int) for size in inputs.shape):
        return True  # a symbolic size, as in jax.export
    leaves = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    width = sum(leaf.shape[-1] for leaf in leaves)
    size = math.prod(inputs.shape[:-1]) * width * inputs.dtype.itemsize
    return len(inputs) < LONG or size <= SAVE_BYTES


def _in_blocks(run: Run, start: State, steps: Steps, memory: str, truncate: int | None):
    """Runs blocks of steps one after the other; the gradient recomputes each from its start."""
    size = truncate or BLOCK
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
            # A row that has ended is only copied from here on: its last state keeps its gradient.
            state = cut if goes_on is None else where(goes_on, cut, state)
        return state, outputs

    blocks, rest = divmod(len(steps.inputs), size)
    if truncate is not None and blocks and not rest:
        blocks, rest = blocks - 1, size  # no cut after the last step
    end = blocks * size
    whole = jax.tree.map(lambda leaf: leaf[:end].reshape(blocks, size, *leaf.shape[1:]), steps)
    goes_on = None
    if truncate is not None and steps.alive is not None:
        goes_on = steps.alive[size : end + 1 : size]
    state, outputs = lax.scan(advance, start, (whole, goes_on))
    outputs = outputs.reshape(end, *outputs.shape[2:])
    if rest:
        state, last = block(state, jax.tree.map(lambda leaf: leaf[end:], steps))
        outputs = jnp.concatenate([outputs, last])
    return outputs, state


def _steps(inputs, lengths, resets, reverse: bool) -> Steps:
    alive = None
    if lengths is not None:
        time = jnp.arange(len(inputs), dtype=lengths.dtype)
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
    """Reverses the time axis (the first), each row within its own length; an involution."""
    if lengths is None:
        return jnp.flip(sequence, axis=0)
    time = jnp.arange(len(sequence), dtype=lengths.dtype).reshape((-1,) + (1,) * lengths.ndim)
    source = jnp.where(time < lengths[None], lengths[None] - 1 - time, time)
    source = source.reshape(source.shape + (1,) * (sequence.ndim - source.ndim))
    return jnp.take_along_axis(sequence, source, axis=0)


def reverse_time(outputs: Array, lengths: Array | None, *, time_major: bool) -> Array:
    """Puts each row in the opposite order within its own length; what lies past it stays there."""
    lengths = None if lengths is None else jnp.asarray(lengths).astype(jnp.int32)
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


def _check_options(implementation, memory, unroll, truncate):
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be None or one of {IMPLEMENTATIONS}, got {implementation!r}"
        )
    if memory is not None and memory not in MEMORY:
        raise ValueError(f"memory must be None or one of {MEMORY}, got {memory!r}")
    positive("unroll", unroll)
    if truncate is not None:
        positive("truncate", truncate)


def _time_first(params, inputs, resets, time_major: bool):
    if inputs.ndim < 2:
        layout = "[T, ..., I]" if time_major else "[..., T, I]"
        raise ValueError(f"inputs must be {layout}, at least 2 axes, got shape {inputs.shape}")
    dtype = jax.tree.leaves(params)[0].dtype
    if inputs.dtype != dtype:
        raise ValueError(f"inputs must have the parameters' dtype {dtype}, got {inputs.dtype}")
    kernel = getattr(params, "kernel", None)
    if kernel is not None and inputs.shape[-1] != kernel.shape[0]:
        raise ValueError(
            f"inputs must have {kernel.shape[0]} features, as the parameters' kernel, "
            f"got shape {inputs.shape}"
        )
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
    return lengths.astype(jnp.int32)  # a narrow type could not count the steps


def _check_state(cell: Cell, params, state, batch_shape):
    default = cell.initial_state(params, batch_shape)
    if state is None:
        return default
    expected = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", default)
    got = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", state)
    # As tuples a TF1 or Flax carry (c, h) would pass for an LSTMState.
    if got != expected or jax.tree.structure(got) != jax.tree.structure(expected):
        raise ValueError(f"initial_state must be {expected}, got {got}")
    return state
