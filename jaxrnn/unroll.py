"""`unroll`, which runs a cell over a sequence.

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
from jaxrnn.backends import BACKENDS, choose, choose_unroll
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
    unroll: int | None = None,
    truncate: int | None = None,
    regularizer: Regularizer | None = None,
    key: Array | None = None,
) -> tuple[Float[Array, "..."], S]:
    """Runs a cell over a sequence and returns its outputs and its last state.

    The inputs are cast to the dtype of the parameters. All computation is in that dtype, except for
    the matrix products if `dtype` is given.

    The argument `implementation` selects one of these backends:

    - "scan": `jax.lax.scan` over `cell.step`, differentiated by JAX. It runs every cell and is the
      only backend for gated cells that supports forward-mode differentiation.
    - "fused": for cells made by `jaxrnn.gated`. The gradients of the kernels are computed after the
      backward loop, as one matrix product over all steps instead of one product per step. It is
      written for the caches of a CPU. Under `jax.disable_jit` it is "scan".
    - "states": computes the same gradient, but saves only the states in the forward pass, for
      accelerators. The gate must be elementwise. It must not close over an array or use a shape,
      and it must split a parameter `[N, H]` by indexing or unpacking.
    - "pallas": "states" as one kernel forward and one kernel backward, in float32, on TPUs and on
      NVIDIA GPUs of compute capability 9 (Hopper) or, from JAX 0.11, 8 and 10. On other
      platforms, and if the recurrent kernel is too large for the GPU, it is "states". A program
      with "pallas" can be exported only for one platform at a time.
    - "parallel": for linear recurrences. It computes all steps in parallel; on a CPU it computes
      the matrix products of all steps at once and then the states one after the other.
    - "cudnn": NVIDIA's LSTM, for `jaxrnn.lstm` with default options, in float32, without resets or
      a regularizer. It requires a GPU and does not support `jax.vmap`. A program that is lowered
      for another platform uses "fused".
    - None: "parallel" for linear recurrences and "scan" for cells with their own `step`. Gated
      cells use "states" on an attached GPU and "pallas" on an attached TPU where these support the
      cell, and otherwise "fused". On a CPU "scan" is used if some gates are separate, as in the
      GRU, and "states" if there is no recurrent kernel, as in IndRNN. See `jaxrnn.backends.choose`
      for the measurements behind these defaults.

    Args:
        cell: The cell.
        params: The parameters of the cell, as returned by `cell.init`, or as nested dicts, as in
            the `params` of a Flax module.
        inputs: Floating-point `[*B, T, I]`, or `[T, *B, I]` with `time_major`.
        initial_state: The state before the first step, leaves `[*B, ...]`. Defaults to
            `cell.initial_state(params, B)`.
        lengths: The lengths of the examples, integers `[*B]` in 0..T. Past its length, an example
            outputs zeros and keeps its state. An example of length 0 returns its initial state. If
            None, every example has length T. Under `jax.jit`, where lengths cannot be checked, they
            are clipped to 0..T.
        resets: Booleans `[*B, T]`, or `[T, *B]` with `time_major`. Where True, the state is
            replaced by `reset_state` before the step, in the order of reading: with `reverse`, mark
            the last step of each episode rather than the first. A reset past the length of an
            example has no effect. If None, there are no resets.
        reset_state: The state after a reset, leaves `[*B, ...]`. Defaults to
            `cell.initial_state(params, B)`, even if `initial_state` is given.
        reverse: Whether to read each example from its end, at its own length, to its start.
            Outputs are in the order of the inputs.
        time_major: Whether time is the first axis of inputs, resets and outputs.
        dtype: The dtype of the operands of the matrix products, such as bfloat16. Accumulation,
            gates, state, outputs and gradients keep the dtype of the parameters, which is also the
            default. A cell with its own `step` obeys `dtype` if it computes its matrix products
            with `jaxrnn.product`.
        implementation: The backend: "scan", "fused", "states", "pallas", "parallel", "cudnn" or
            None, as described above.
        memory: How the backward pass obtains the intermediate values of the forward pass. "save"
            keeps them for every step. "recompute" keeps the state before every 14th step and
            recomputes the steps in between. "offload" is "recompute" with these states in host
            memory, as with TF1's `swap_memory`. If None, long sequences with many intermediate
            values use "recompute" and others "save". The exceptions are "parallel", which
            recomputes on a CPU from 112 steps, and "states" and "pallas", which recompute if the
            intermediate values exceed 2 GiB.
        unroll: The number of steps per iteration of the loop, as in `jax.lax.scan`. If None, 4 for
            "states" where a GPU is attached, otherwise 1.
        truncate: The number of steps of truncated backpropagation through time (Williams & Peng,
            1990). The state is carried on, but the gradient is cut after every `truncate` steps.
            The backward pass recomputes blocks of this length. If None, the gradient is not
            truncated.
        regularizer: Recurrent regularization, or None; see `jaxrnn.Regularizer`.
        key: The random key of the regularizer. If None, as at evaluation, nothing is random. Under
            `jax.shard_map`, fold the index of the device into the key.

    Returns:
        The outputs `[*B, T, P]`, or `[T, *B, P]` with `time_major`, and the state after the last
        step, leaves `[*B, ...]`.

    Raises:
        ValueError: If an argument has a wrong type, shape, dtype or value, or if a function of the
            cell returns a wrong structure, shape or dtype. The message names the argument or the
            function.

    Examples:
        An LSTM over a batch of 8 sequences of different lengths:

        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxrnn
        >>> cell = jaxrnn.lstm(64)
        >>> params = cell.init(jax.random.key(0), 28)
        >>> inputs = jnp.ones((8, 20, 28))
        >>> lengths = jnp.array([20, 20, 15, 12, 9, 4, 1, 0])
        >>> outputs, state = jaxrnn.unroll(cell, params, inputs, lengths=lengths)
        >>> outputs.shape, state.hidden.shape
        ((8, 20, 64), (8, 64))
    """
    arguments.require_cell(cell)
    if not isinstance(regularizer, Regularizer | None):
        kind = type(regularizer).__name__
        raise ValueError(f"regularizer must be a jaxrnn.Regularizer or None, got a {kind}")
    arguments.choice("implementation", implementation, tuple(BACKENDS))
    arguments.choice("memory", memory, arguments.MEMORY)
    arguments.check_key(key)
    unroll = None if unroll is None else arguments.size("unroll", unroll)
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
    cell = cell._replace(init=None)  # may close over a tracer, which no cache must keep
    output = arguments.check_cell(cell, params, start, inputs)
    params, *masks = regularize(key, regularizer, cell, params, start, time)

    params, start, reset_state, inputs, lengths, resets, masks = _vary_alike(
        (params, start, reset_state, inputs, lengths, resets, masks)
    )
    steps = make_steps(inputs, lengths, resets, reverse, *masks)
    backends = choose(cell, params, start, steps, dtype, implementation)
    plan = tuple(
        (
            platform,
            backend,
            choose_memory(backend, memory, truncate, params, inputs),
            choose_unroll(backend) if unroll is None else unroll,
        )
        for platform, backend in backends.items()
    )
    if isinstance(time, int) and time == 0:
        outputs, state = jnp.zeros((0, *output.shape), output.dtype), start
    else:
        options = cell, plan, truncate, dtype
        outputs, state = _compiled(*options)(*options, params, start, reset_state, steps)
    if steps.mask is not None:
        outputs = zeros_where(~steps.mask, outputs)
    if reverse:
        outputs = reverse_each(outputs, lengths)
    return outputs if time_major else jnp.moveaxis(outputs, 0, -2), state


def _run(cell, plan, truncate, dtype, params, start, reset_state, steps):
    """Runs the backend with the options that `plan` lists for the platform of lowering."""

    def run(backend, memory, unroll, params, start, reset_state, steps):
        run = BACKENDS[backend].run

        def block(start, steps):
            return run(cell, params, start, reset_state, steps, dtype=dtype, unroll=unroll)

        return run_in_memory(block, start, steps, memory, truncate)

    runs = {platform: partial(run, *options) for platform, *options in plan}
    chosen = runs["default"] if len(runs) == 1 else partial(lax.platform_dependent, **runs)
    return chosen(params, start, reset_state, steps)


_jit_run = jax.jit(_run, static_argnums=range(4), inline=True)


def _compiled(*options) -> Callable:
    """Returns `_run` under jit, which caches the compiled loop for later calls outside of jit."""
    try:
        hash(options)
    except TypeError:  # a user's step that is an unhashable callable
        return _run
    return _jit_run


def reverse_time(outputs: Array, lengths: Any, *, time_major: bool) -> Array:
    """Reverses each example in time within its own length; steps past the length stay in place."""
    if not time_major:
        outputs = jnp.moveaxis(outputs, -2, 0)
    lengths = arguments.check_lengths(lengths, outputs.shape[1:-1], outputs.shape[0])
    outputs = reverse_each(outputs, lengths)
    return outputs if time_major else jnp.moveaxis(outputs, 0, -2)


def _vary_alike(tree):
    """Casts all leaves to vary over the union of their mesh axes, inside a `jax.shard_map`.

    The carry of a scan must keep its type, and a custom gradient must have the type of its primal.
    The transpose of `pcast` is a sum over these axes.
    """

    def varying(leaf):
        return jax.typeof(leaf).manual_axis_type.varying

    axes = frozenset().union(*map(varying, jax.tree.leaves(tree)))

    def cast(leaf):
        missing = tuple(sorted(axes - varying(leaf)))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, tree)


def _dtype_of(state, params):
    """Returns the first floating dtype among the leaves of the state, then of the parameters."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves((state, params))]
    return next(dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating))
