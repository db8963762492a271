"""The deferred gradient with the whole sequence in one kernel, forward and backward.

A loop of XLA launches a dozen kernels a step; where a step is short, that is all the time it takes.
Here time is a loop inside of one kernel, which keeps the state and the recurrent kernel W on the
chip. As in `jaxrnn.backends.fused`, U is `kernel` and W is `recurrent_kernel`:

    drive     x·U + b, one product
    forward   h_t from h_{t-1}·W and the gate, one kernel; saves the states alone
    z         drive + h·W, one product: the pre-activations of all steps once more
    backward  dz_t by the gate's own pullback and dh_{t-1} = dz_t·Wᵀ, one kernel
    dU, dW, db and dx, one product each

The kernels are those of `tpu` and `gpu`. On other platforms, and on a GPU where the recurrent
kernel does not fit into shared memory or float32 products are to be exact, `loop` does their work
as a loop of XLA.

Shapes: B batch (any number of axes), N examples, T time, I input features, H hidden units, G gates,
S separate gates. In the kernels N and H are rounded up to whole tiles. What is added copies the
last example and the last unit, so that a gate meets no values there that it does not meet
elsewhere; no unit reads what is added.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxrnn.arguments import describe
from jaxrnn.backends.fused import kernel_gradients
from jaxrnn.backends.pallas.elementwise import (
    EXAMPLES,
    UNITS,
    BackwardInputs,
    ForwardInputs,
    Masks,
    Step,
    each_alone,
    refusal,
)
from jaxrnn.backends.steps import Steps, recurrent_input, select
from jaxrnn.cell import Cell, Params, State, affine, elementwise, product, with_kernels_in

# A larger recurrent kernel does not fit on the chip; its products are so large that the launches of
# a loop no longer decide.
KERNEL_BYTES = 2**25


def supports(cell: Cell, params: Params, state: State, steps: Steps, dtype: Any) -> str | None:
    """None for a gated cell in float32 whose gate is elementwise, or why not."""
    if cell.gate is None:
        return "it needs a cell made by jaxrnn.gated, got one with a step of its own"
    if not all(isinstance(length, int) for length in steps.inputs.shape):
        return f"it needs fixed sizes, got inputs of shape {steps.inputs.shape}"
    leaves = jax.tree.leaves(state)
    if any(leaf.shape != leaves[0].shape for leaf in leaves):
        return f"it needs a state whose leaves have one shape, got {describe(state)}"
    if any(leaf.dtype != jnp.float32 for leaf in jax.tree.leaves((state, params))):
        return f"it needs float32, got {describe((state, params))}"
    kernel = params.recurrent_kernel
    if kernel is not None:
        size = _round(len(kernel), UNITS) ** 2 * len(cell.gate.names)
        size *= jnp.dtype(dtype or kernel.dtype).itemsize
        if size > KERNEL_BYTES:
            return f"the recurrent kernel takes {size / 2**20:.0f} MiB, more than fit on the chip"
    return refusal(cell.gate, elementwise(params), state)


def run(
    cell: Cell,
    params: Params,
    start: State,
    reset_state: State | None,
    steps: Steps,
    *,
    dtype: Any = None,
    unroll: int = 1,
    kernels: Any = None,
) -> tuple[Float[Array, "T *B H"], State]:
    """Runs a cell made by `jaxrnn.gated` over time; see `jaxrnn.backends`. Unrolls nothing.

    `kernels` has the functions `forward` and `backward`, as `jaxrnn.backends.pallas.tpu`; None
    takes those of the platform.
    """
    time, *batch, _ = steps.inputs.shape
    examples, units = math.prod(batch), start[0].shape[-1]
    if examples == 0:
        return jnp.zeros((time, *start[0].shape), start[0].dtype), start

    def tiles(leaf, leading=0):
        """`[T, N]` or `[T, N, H]` of whole tiles; without T if `leading` is 0."""
        shape = *leaf.shape[:leading], examples, *leaf.shape[leading + len(batch) :]
        leaf = _extend(leaf.reshape(shape), leading, EXAMPLES)
        return _extend(leaf, -1, UNITS) if leaf.ndim > leading + 1 else leaf

    begun = jax.tree.map(tiles, (start, reset_state))
    inputs = _extend(steps.inputs.reshape(time, examples, -1), 1, EXAMPLES)
    masks = steps._replace(inputs=None, zoneout_mask=_for_examples(steps.zoneout_mask, batch))
    steps = jax.tree.map(partial(tiles, leading=1), masks)._replace(inputs=inputs)
    padded = _padded(params, units, len(cell.gate.names))
    step = Step(cell.gate, *map(jax.tree.structure, (start, elementwise(padded))))
    # What is added has no part in the outputs, so the gradients that come back to it are zeros.
    outputs, state = _sequence(kernels, step, dtype, padded, *begun, steps)
    cut = lambda leaf: leaf[..., :examples, :units].reshape(*leaf.shape[:-2], *batch, units)  # noqa: E731
    return cut(outputs), jax.tree.map(cut, state)


def _for_examples(mask, batch):
    """A mask of one value a step `[T]`, as zoneout has it at evaluation, for every example."""

    def spread(leaf):
        if leaf.ndim > 1:
            return leaf
        return jnp.broadcast_to(leaf.reshape(-1, *[1] * len(batch), 1), (len(leaf), *batch, 1))

    return jax.tree.map(spread, mask)


def _round(size: int, tile: int) -> int:
    return -(-size // tile) * tile


def _extend(x: Array, axis: int, tile: int) -> Array:
    """Copies the last entry along an axis until there are whole tiles."""
    missing = -x.shape[axis] % tile
    if not missing:
        return x
    last = lax.slice_in_dim(x, x.shape[axis] - 1, x.shape[axis], axis=axis)
    return jnp.concatenate([x, jnp.repeat(last, missing, axis=axis)], axis=axis)


def _padded(params: Params, units: int, gates: int) -> Params:
    """The parameters for whole tiles of units; those that a gate sees one for each unit."""

    def extend(x):
        split = x.reshape(*x.shape[:-1], gates, units)
        return _extend(split, -1, UNITS).reshape(*x.shape[:-1], -1)

    def one_each(leaf):
        return _extend(jnp.broadcast_to(leaf, (units,)), 0, UNITS)

    recurrent = params.recurrent_kernel
    if recurrent is not None:
        recurrent = jnp.pad(extend(recurrent), ((0, -units % UNITS), (0, 0)))
    return jax.tree.map(one_each, each_alone(elementwise(params)))._replace(
        kernel=extend(params.kernel), recurrent_kernel=recurrent, bias=extend(params.bias)
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _sequence(kernels, step, dtype, params, start, reset_state, steps):
    """The outputs and the last state, all in whole tiles."""
    outputs, state, _ = _forward(
        kernels, step, dtype, params, start, reset_state, steps, save=False
    )
    return outputs, state


def _forward(kernels, step, dtype, params, start, reset_state, steps, *, save):
    cast = with_kernels_in(dtype, params)
    given = ForwardInputs(
        cast.recurrent_kernel,
        jax.tree.leaves(elementwise(params)),
        affine(steps.inputs, cast.kernel, cast.bias),
        jax.tree.leaves(start),
        jax.tree.leaves(reset_state),
        Masks.of(steps),
    )
    sequences, last = _run_on_platform(kernels, "forward", given, step, save=save)
    return sequences[0], step.state.unflatten(last), sequences


def _sequence_forward(kernels, step, dtype, *arguments):
    outputs, state, states = _forward(kernels, step, dtype, *arguments, save=True)
    return (outputs, state), (*arguments, states)


def _sequence_backward(kernels, step, dtype, residuals, cotangents):
    params, start, reset_state, steps, states = residuals
    d_outputs, d_state = cotangents
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
    hidden, recurrent = recurrent_input(steps, before), None
    if cast.recurrent_kernel is not None:
        recurrent = product(hidden, cast.recurrent_kernel)
    drive = affine(steps.inputs, cast.kernel, cast.bias)
    arguments = gate.arguments(drive, recurrent)
    given = BackwardInputs(
        None if recurrent is None else cast.recurrent_kernel.T,
        jax.tree.leaves(elementwise(params)),
        [jnp.concatenate(argument, axis=-1) for argument in arguments],
        jax.tree.leaves(before),
        d_outputs,
        jax.tree.leaves(d_state),
        Masks.of(steps),
    )
    resets = steps.resets is not None
    d_weights, d_arguments, d_start, d_reset = _run_on_platform(
        kernels, "backward", given, step, resets=resets
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


def _run_on_platform(kernels, direction: str, given: Any, step: Step, **options):
    """Runs the kernel of the platform that the program is lowered for, or that of `kernels`."""
    # Pallas takes a quarter of a second to import.
    from jaxrnn.backends.pallas import gpu, loop, tpu

    def runs(module):
        return partial(getattr(module, direction), step=step, **options)

    if kernels is not None:
        return runs(kernels)(given)
    cuda = runs(gpu if gpu.fits(given, step) else loop)
    return lax.platform_dependent(given, tpu=runs(tpu), cuda=cuda, default=runs(loop))
