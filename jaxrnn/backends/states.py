"""The deferred gradient with saved states: the forward loop saves only the states.

The gradients of the kernels are computed after the backward loop, as in `jaxrnn.backends.fused`.
But the loops write as little as possible in each step, because on an accelerator a write takes
longer than computing a value twice:

1. The drives x·U + b of all steps are computed by one product.
2. The forward loop computes h_t from h_{t-1}·W and the gate, and saves the states.
3. The pre-activations z = x·U + b + h·W of all steps are computed again, by one product.
4. The backward loop computes dz_t by the pullback of the gate, and dh_{t-1} = dz_t·Wᵀ. It saves dz.
5. dU, dW, db and dx are computed by one product or sum each.

U is `kernel` and W is `recurrent_kernel`. The two loops are XLA loops, in `loop`, or kernels, in
`pallas`. A kernel computes whole tiles, so N and H are rounded up. The padding repeats the last
example and the last unit, so that the gate receives only values that occur elsewhere. The recurrent
kernel is padded with zeros, so that no unit depends on the padding.

Shapes: B batch (any number of axes), N examples, T time, I input features, H hidden units, G gates,
S separate gates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxrnn.arguments import describe
from jaxrnn.backends import loop
from jaxrnn.backends.elementwise import (
    BackwardInputs,
    ForwardInputs,
    Masks,
    Step,
    as_parts,
    refusal,
)
from jaxrnn.backends.fused import kernel_gradients
from jaxrnn.backends.steps import Steps, recurrent_input, select
from jaxrnn.cell import Cell, Params, State, affine, elementwise, product, with_kernels_in


class Kernels(NamedTuple):
    """An implementation of the two loops over time.

    Attributes:
        forward: A function like `jaxrnn.backends.loop.forward`.
        backward: A function like `jaxrnn.backends.loop.backward`.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]


LOOP = Kernels(loop.forward, loop.backward)


def supports(cell: Cell, params: Params, state: State, steps: Steps, dtype: Any) -> str | None:
    """Returns None for a gated cell with an elementwise gate and fixed sizes, else the reason."""
    if cell.gate is None:
        return "cell must be made by jaxrnn.gated, got one with its own step"
    if not all(isinstance(length, int) for length in steps.inputs.shape):
        return f"inputs must have fixed sizes, got shape {steps.inputs.shape}"
    leaves = jax.tree.leaves(state)
    if any(leaf.shape != leaves[0].shape for leaf in leaves):
        return f"the leaves of the state must have the same shape, got {describe(state)}"
    if any(leaf.dtype != steps.inputs.dtype for leaf in jax.tree.leaves((state, params))):
        return f"state and params must have one floating dtype, got {describe((state, params))}"
    return refusal(cell.gate, elementwise(params), state, in_kernels=False)


def run(
    cell: Cell,
    params: Params,
    start: State,
    reset_state: State | None,
    steps: Steps,
    *,
    dtype: Any = None,
    unroll: int = 1,
    kernels: Kernels = LOOP,
    tile: tuple[int, int] = (1, 1),
) -> tuple[Float[Array, "T *B H"], State]:
    """Runs a cell made by `jaxrnn.gated` over time; see `jaxrnn.backends`.

    Args:
        cell: The cell.
        params: The parameters of the cell.
        start: The state before the first step.
        reset_state: The state after a reset, or None.
        steps: The inputs and masks.
        dtype: The dtype of the operands of the products, or None.
        unroll: The number of steps per iteration of an XLA loop.
        kernels: The loops over time.
        tile: The shape of a tile: the numbers of examples and units are padded to its multiples.

    Returns:
        The outputs and the last state.
    """
    time, *batch, _ = steps.inputs.shape
    examples, units = math.prod(batch), start[0].shape[-1]
    if examples == 0:
        return jnp.zeros((time, *start[0].shape), start[0].dtype), start

    def tiles(leaf, leading=0):
        """Merges the batch axes and pads `[T, N]` or `[T, N, H]`, without T if `leading` is 0."""
        shape = *leaf.shape[:leading], examples, *leaf.shape[leading + len(batch) :]
        leaf = _extend(leaf.reshape(shape), leading, tile[0])
        return _extend(leaf, -1, tile[1]) if leaf.ndim > leading + 1 else leaf

    begun = [jax.tree.map(tiles, each) for each in (start, reset_state)]
    inputs = _extend(steps.inputs.reshape(time, examples, steps.inputs.shape[-1]), 1, tile[0])
    masks = steps._replace(inputs=None, zoneout_mask=_for_examples(steps.zoneout_mask, batch))
    steps = jax.tree.map(partial(tiles, leading=1), masks)._replace(inputs=inputs)
    gate: Any = cell.gate
    padded = _padded(params, units, len(gate.names), tile[1])
    step = Step(gate, jax.tree.structure(start), jax.tree.structure(elementwise(padded)))
    # The padding is cut off from the outputs, so its gradients are zero.
    sequence: Any = _sequence
    outputs, state = sequence(kernels, step, dtype, unroll, padded, *begun, steps)
    cut = lambda leaf: leaf[..., :examples, :units].reshape(*leaf.shape[:-2], *batch, units)  # noqa: E731
    return cut(outputs), jax.tree.map(cut, state)


def _for_examples(mask, batch):
    """Broadcasts mask leaves `[T]`, as zoneout has them at evaluation, to every example."""

    def spread(leaf):
        if leaf.ndim > 1:
            return leaf
        return jnp.broadcast_to(leaf.reshape(-1, *[1] * len(batch), 1), (len(leaf), *batch, 1))

    return jax.tree.map(spread, mask)


def _extend(x: Array, axis: int, tile: int) -> Array:
    """Pads an axis to a multiple of `tile` by repeating its last entry."""
    missing = -x.shape[axis] % tile
    if not missing:
        return x
    last = lax.slice_in_dim(x, x.shape[axis] - 1, x.shape[axis], axis=axis)
    return jnp.concatenate([x, jnp.repeat(last, missing, axis=axis)], axis=axis)


def _padded(params: Params, units: int, gates: int, tile: int) -> Params:
    """Pads the parameters to whole tiles of units, and broadcasts those of the gate to `[H]`."""

    def extend(x):
        split = x.reshape(*x.shape[:-1], gates, units)
        return _extend(split, -1, tile).reshape(*x.shape[:-1], -1)

    def one_each(leaf):
        return _extend(jnp.broadcast_to(leaf, (units,)), 0, tile)

    recurrent = params.recurrent_kernel
    if recurrent is not None:
        recurrent = jnp.pad(extend(recurrent), ((0, -units % tile), (0, 0)))
    return jax.tree.map(one_each, as_parts(elementwise(params)))._replace(
        kernel=extend(params.kernel), recurrent_kernel=recurrent, bias=extend(params.bias)
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _sequence(kernels, step, dtype, unroll, params, start, reset_state, steps):
    """Runs the forward loop on padded arrays and returns the outputs and the last state."""
    outputs, state, _ = _forward(
        kernels, step, dtype, unroll, params, start, reset_state, steps, save=False
    )
    return outputs, state


def _forward(kernels, step, dtype, unroll, params, start, reset_state, steps, *, save):
    """Runs the forward loop and returns the outputs, the last state and the states to save."""
    cast = with_kernels_in(dtype, params)
    given = ForwardInputs(
        cast.recurrent_kernel,
        jax.tree.leaves(elementwise(params)),
        affine(steps.inputs, cast.kernel, cast.bias),
        jax.tree.leaves(start),
        jax.tree.leaves(reset_state),
        Masks.from_steps(steps),
    )
    sequences, last = kernels.forward(given, step=step, save=save, unroll=unroll)
    return sequences[0], step.state.unflatten(last), sequences


def _sequence_forward(kernels, step, dtype, unroll, *arguments):
    outputs, state, states = _forward(kernels, step, dtype, unroll, *arguments, save=True)
    return (outputs, state), (*arguments, states)


def _sequence_backward(kernels, step, dtype, unroll, residuals, cotangents):
    """Runs the backward loop, then computes the gradients of the kernels over all steps."""
    params, start, reset_state, steps, states = residuals
    d_outputs, d_state = jax.tree.map(jnp.asarray, cotangents)
    cast, gate = with_kernels_in(dtype, params), step.gate
    before = step.state.unflatten(
        [
            jnp.concatenate([first[None], leaf[:-1]])
            for first, leaf in zip(jax.tree.leaves(start), states, strict=True)
        ]
    )
    if steps.resets is not None:
        again = jax.tree.map(lambda leaf: leaf[None], reset_state)
        before = select(steps.resets, again, before)
    hidden, kernel, recurrent = recurrent_input(steps, before), cast.recurrent_kernel, None
    if kernel is not None:
        recurrent = product(hidden, kernel)
    drive = affine(steps.inputs, cast.kernel, cast.bias)
    arguments = gate.arguments(drive, recurrent)
    given = BackwardInputs(
        None if kernel is None else kernel.T,
        jax.tree.leaves(elementwise(params)),
        [jnp.concatenate(argument, axis=-1) for argument in arguments],
        jax.tree.leaves(before),
        d_outputs,
        jax.tree.leaves(d_state),
        Masks.from_steps(steps),
    )
    resets = steps.resets is not None
    d_weights, d_arguments, d_start, d_reset = kernels.backward(
        given, step=step, resets=resets, unroll=unroll
    )
    d_drive, d_product = gate.join(step.named(step.split(d_arguments)))
    d_kernel, d_recurrent, d_bias, d_inputs = kernel_gradients(
        cast, params.kernel.dtype, steps.inputs, hidden, d_drive, d_product
    )
    d_params = step.weights.unflatten(d_weights)._replace(
        kernel=d_kernel, recurrent_kernel=d_recurrent, bias=d_bias
    )
    d_reset = None if reset_state is None else step.state.unflatten(d_reset)
    return d_params, step.state.unflatten(d_start), d_reset, Steps(d_inputs, None, None)


_sequence.defvjp(_sequence_forward, _sequence_backward)
