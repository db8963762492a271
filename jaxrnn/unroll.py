"""`unroll`: a cell over time, with lengths, resets and directions.

Shapes: B batch (any number of axes, also none), T time, I input features, P output features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxrnn import arguments
from jaxrnn.backends import BACKENDS, choose
from jaxrnn.backends.blocks import choose_memory, run_in_memory
from jaxrnn.backends.steps import make_steps, reverse_each, zeros_where
from jaxrnn.cell import Cell, P, S
from jaxrnn.regularize import Regularizer, regularize


def unroll(
    cell: Cell[P, S],
    params: P | Mapping[str, Any],
    inputs: Any,
    *,
    initial_state: S | None = None,
    lengths: Any = None,
    resets: Any = None,
    reset_state: S | None = None,
    reverse: bool = False,
    time_major: bool = False,
    dtype: Any = None,
    implementation: str | None = None,
    memory: str | None = None,
    unroll: int = 1,
    truncate: int | None = None,
    regularizer: Regularizer | None = None,
    key: Array | None = None,
) -> tuple[Float[Array, "..."], S]:
    """Runs a cell over a sequence.

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
        raise ValueError(f"cell must be a jaxrnn.Cell, got {arguments.describe(cell)}")
    if not isinstance(regularizer, Regularizer | None):
        kind = type(regularizer).__name__
        raise ValueError(f"regularizer must be a jaxrnn.Regularizer or None, got a {kind}")
    arguments.choice("implementation", implementation, tuple(BACKENDS))
    arguments.choice("memory", memory, arguments.MEMORY)
    arguments.check_key(key)
    unroll = arguments.size("unroll", unroll)
    truncate = None if truncate is None else arguments.size("truncate", truncate)
    reverse = arguments.flag("reverse", reverse)
    time_major = arguments.flag("time_major", time_major)
    dtype = arguments.check_dtype(dtype)
    inputs = arguments.check_inputs(inputs, time_major)
    params = arguments.check_params(cell.init, params, inputs.shape[-1])
    resets = arguments.check_resets(resets, inputs.shape[:-1])
    if not time_major:
        inputs = jnp.moveaxis(inputs, -2, 0)
        resets = None if resets is None else jnp.moveaxis(resets, -1, 0)
    time, *batch_shape, _ = inputs.shape
    batch_shape = tuple(batch_shape)
    lengths = arguments.check_lengths(lengths, batch_shape, time)
    fresh = cell.initial_state(params, batch_shape)
    start = arguments.check_state("initial_state", initial_state, fresh)
    reset_state = arguments.check_state("reset_state", reset_state, fresh)
    reset_state = None if resets is None else reset_state
    inputs = inputs.astype(_dtype_of(fresh, params))
    cell = cell._replace(init=None)  # which may hold a traced number that must not be kept
    output = arguments.check_cell(cell, params, start, inputs)
    params, *masks = regularize(key, regularizer, cell, params, start, time)

    params, start, reset_state, inputs, lengths, resets, masks = _vary_alike(
        (params, start, reset_state, inputs, lengths, resets, masks)
    )
    steps = make_steps(inputs, lengths, resets, reverse, *masks)
    backend = choose(cell, start, steps, dtype, implementation)
    memory = choose_memory(backend, memory, truncate, params, inputs)
    if isinstance(time, int) and time == 0:
        outputs, state = jnp.zeros((0, *output.shape), output.dtype), start
    else:
        options = cell, backend, memory, truncate, dtype, unroll
        outputs, state = _compiled(*options)(*options, params, start, reset_state, steps)
    if steps.mask is not None:
        outputs = zeros_where(~steps.mask, outputs)
    if reverse:
        outputs = reverse_each(outputs, lengths)
    return outputs if time_major else jnp.moveaxis(outputs, 0, -2), state


def _run(cell, backend, memory, truncate, dtype, unroll, params, start, reset_state, steps):
    run = BACKENDS[backend].run

    def block(start, steps):
        return run(cell, params, start, reset_state, steps, dtype=dtype, unroll=unroll)

    return run_in_memory(block, start, steps, memory, truncate)


_jit_run = jax.jit(_run, static_argnums=range(6), inline=True)


def _compiled(*options) -> Callable:
    """`_run` under jit, so that a second call outside of jit does not compile its loop again."""
    try:
        hash(options)
    except TypeError:  # a user's step that is no plain function
        return _run
    return _jit_run


def reverse_time(outputs: Array, lengths: Any, *, time_major: bool) -> Array:
    """Reverses each example in time within its own length; what lies past it stays there."""
    if not time_major:
        outputs = jnp.moveaxis(outputs, -2, 0)
    lengths = arguments.check_lengths(lengths, outputs.shape[1:-1], outputs.shape[0])
    outputs = reverse_each(outputs, lengths)
    return outputs if time_major else jnp.moveaxis(outputs, 0, -2)


def _vary_alike(tree):
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
