"""`unroll`: a cell over time, with lengths, resets and directions.

Shapes: B batch (any number of axes, also none), T time, I input features, P output features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
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

    The inputs are cast to the dtype of the parameters, and everything is computed in it, except for
    the matrix products if `dtype` is given.

    Args:
        cell: The cell.
        params: Its parameters, as `cell.init` gives them, or as nested dicts, as in the `params` of
            a Flax module.
        inputs: `[*B, T, I]`, or `[T, *B, I]` with `time_major`; floating-point.
        initial_state: The state before the first step, leaves `[*B, ...]`; None takes
            `cell.initial_state(params, B)`.
        lengths: `[*B]` integers in 0..T. Past its length an example outputs zeros and its state is
            copied through; an example of length 0 returns its initial state. Under `jit`, where
            they cannot be checked, lengths beyond T count as T and negative ones as 0.
        resets: Booleans shaped as `inputs` without the last axis. Where True, the state becomes
            `reset_state` before the step.
        reset_state: The state that a reset puts in place, leaves `[*B, ...]`; None takes
            `cell.initial_state(params, B)`, also where `initial_state` was carried over from the
            sequence before.
        reverse: Read from the end to the start, each example within its own length. Outputs are in
            the order of the inputs.
        time_major: Whether time is the first axis of inputs, resets and outputs.
        dtype: The dtype of the operands of the matrix products, such as bfloat16; sums, gates,
            state, outputs and gradients keep the dtype of the parameters. None is that of the
            parameters.
            A cell with a step of its own obeys it where it calls `jaxrnn.product`.
        implementation: The backend. "scan" is `jax.lax.scan` and its autodiff, for every cell, and
            also for forward mode. "fused", "states" and "pallas" are the deferred gradient, for
            cells made by `jaxrnn.gated`: "fused" is shaped for the caches of a CPU and runs as
            "scan" under `jax.disable_jit`; "states" saves the states alone, for accelerators;
            "pallas" does so in one kernel forward and one backward, in float32, on TPUs and NVIDIA
            GPUs (Ampere to B200) and is "states" on other platforms and where a GPU has no room for
            the recurrent kernel. These two need an elementwise gate that closes over no array, uses
            no shape, and takes a parameter `[N, H]` apart by index or in turn; a program with
            "pallas" is exported for one platform at a time. "parallel" computes all steps at once,
            for linear recurrences; on a CPU all products at once and the states in turn. "cudnn" is
            NVIDIA's LSTM, for `jaxrnn.lstm` without options, in float32, without resets or
            regularizer, where there is a GPU; a program lowered there for another platform runs
            "fused". JAX has no rule for it under `vmap`. None is "parallel" for linear recurrences
            and "scan" for cells with a step of their own; for gated cells it is "fused" ("scan" for
            the GRU on a CPU), on an attached GPU "states" and on an attached TPU "pallas"; see
            `jaxrnn.backends.choose`.
        memory: What the gradient is computed from. "save" keeps the residuals of every step;
            "recompute" keeps the state before every 14th step and runs the steps between forward
            again; "offload" does the same with those states in the host's memory (TF1's
            `swap_memory`). None is "recompute" for long sequences with many residuals, and "save"
            for others; for "parallel" it is "recompute" on a CPU from 112 steps on, for "states"
            and "pallas" from 2 GiB of residuals on.
        unroll: Steps per iteration of the loop, as in `jax.lax.scan`.
        truncate: Truncated backpropagation (Williams & Peng, 1990): the state is carried on, but
            no gradient reaches back across every `truncate`-th step. The gradient
            recomputes blocks of that many steps, as "recompute" does.
        regularizer: Recurrent regularization; see `jaxrnn.Regularizer`.
        key: The random key for it; None, as at evaluation, is deterministic. Under `jax.shard_map`
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
    cell = cell._replace(init=None)  # which may close over a tracer that no cache must keep
    output = arguments.check_cell(cell, params, start, inputs)
    params, *masks = regularize(key, regularizer, cell, params, start, time)

    params, start, reset_state, inputs, lengths, resets, masks = _vary_alike(
        (params, start, reset_state, inputs, lengths, resets, masks)
    )
    steps = make_steps(inputs, lengths, resets, reverse, *masks)
    backends = choose(cell, params, start, steps, dtype, implementation)
    plan = tuple(
        (platform, backend, choose_memory(backend, memory, truncate, params, inputs))
        for platform, backend in backends.items()
    )
    if isinstance(time, int) and time == 0:
        outputs, state = jnp.zeros((0, *output.shape), output.dtype), start
    else:
        options = cell, plan, truncate, dtype, unroll
        outputs, state = _compiled(*options)(*options, params, start, reset_state, steps)
    if steps.mask is not None:
        outputs = zeros_where(~steps.mask, outputs)
    if reverse:
        outputs = reverse_each(outputs, lengths)
    return outputs if time_major else jnp.moveaxis(outputs, 0, -2), state


def _run(cell, plan, truncate, dtype, unroll, params, start, reset_state, steps):
    def run(backend, memory, params, start, reset_state, steps):
        run = BACKENDS[backend].run

        def block(start, steps):
            return run(cell, params, start, reset_state, steps, dtype=dtype, unroll=unroll)

        return run_in_memory(block, start, steps, memory, truncate)

    runs = {platform: partial(run, backend, memory) for platform, backend, memory in plan}
    chosen = runs["default"] if len(runs) == 1 else partial(lax.platform_dependent, **runs)
    return chosen(params, start, reset_state, steps)


_jit_run = jax.jit(_run, static_argnums=range(5), inline=True)


def _compiled(*options) -> Callable:
    """`_run` under jit, which keeps the compiled loop for the next call outside of jit."""
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

    The carry of a scan has one type, and a custom gradient has the type of its primal. The
    transpose of `pcast` is a sum over these axes.
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
