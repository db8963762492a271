"""The deferred gradient: every matrix product that can wait is made once, over all steps.

Autodiff through a scan adds up dW inside the loop, one small product a step. Here the forward loop
saves what the gate's own pullback needs, the backward loop runs that pullback and the one product
that cannot wait (dh = dr·Wᵀ), and after the loop

    dW = [h_0 … h_{T-1}]ᵀ · [dr_1 … dr_T]        dU = [x_1 … x_T]ᵀ · [dz_1 … dz_T]

are one product each over all T·B rows.

Shapes: B batch (any number of axes), T time, I input features, H hidden units, G gates.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxrnn.cell import Cell, Params, State, affine, elementwise, product, with_kernels_in


class Steps(NamedTuple):
    """What a scan over time runs over, time first, in the order of processing."""

    inputs: Float[Array, "T *B I"]
    alive: Bool[Array, "T *B"] | None  # False past an example's length
    resets: Bool[Array, "T *B"] | None  # True where the state is reset before the step
    drop: Float[Array, "T *B H"] | None = None  # times it the recurrent product sees the state
    mix: State | None = None  # how much of the state is new; the rest is kept


def where(condition: Bool[Array, "*B"], this: State, that: State) -> State:
    """`this` for the examples where the condition holds, else `that`; over trees."""

    def select(a, b):
        extra = a.ndim - condition.ndim
        return jnp.where(condition.reshape(condition.shape + (1,) * extra), a, b)

    return jax.tree.map(select, this, that)


def mixed(mix: State | None, new: State, old: State) -> State:
    """The state that zoneout lets through: `new` where `mix` is 1, `old` where it is 0."""
    if mix is None:
        return new
    return jax.tree.map(lambda new, old, mix: old + mix * (new - old), new, old, mix)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def fused(
    cell: Cell,
    unroll: int,
    dtype: Any,
    params: Params,
    start: State,
    reset_state: State | None,
    steps: Steps,
) -> tuple[Float[Array, "T *B H"], State]:
    """Runs a cell made by `jaxrnn.gated` over time, with the deferred gradient.

    Args:
        cell: The cell.
        unroll: Steps per iteration of the loop.
        dtype: The dtype of the products' operands; None is that of the kernels.
        params: The cell's parameters.
        start: The state before the first step.
        reset_state: The state that a reset puts back.
        steps: The sequence.

    Returns:
        The outputs, zero past an example's length, and the state after the last step.
    """
    return _forward(cell, unroll, dtype, params, start, reset_state, steps, with_pullbacks=False)[
        :2
    ]


def _forward(cell, unroll, dtype, params, start, reset_state, steps, with_pullbacks):
    weights, products = elementwise(params), _Products(cell, params, dtype)

    def body(state, now):
        ahead, now = now
        alive = now.alive
        before = state if now.resets is None else where(now.resets, reset_state, state)
        hidden = before[0] if now.drop is None else before[0] * now.drop
        row, arguments = products.make(hidden, ahead)

        def gate(weights, *arguments):
            return mixed(now.mix, cell.gate(weights, *arguments), arguments[-1])

        if with_pullbacks:
            after, pullback = jax.vjp(gate, weights, *arguments, before)
        else:
            after, pullback, row = gate(weights, *arguments, before), None, None
        output = after[0]
        if alive is not None:
            after = where(alive, after, state)
            output = where(alive, output, jnp.zeros_like(output))
        return after, (output, pullback, row)

    state, (outputs, pullbacks, rows) = lax.scan(
        body,
        start,
        (products.ahead(steps.inputs), steps._replace(inputs=None)),
        unroll=unroll,
    )
    return outputs, state, pullbacks, rows


class _Products:
    """The products of one step, and the gradients of the kernels over all steps.

    Where the gate sees only the sum of drive and product, and the inputs are not wider than the
    state, one product of the row (h, x, 1) with the stacked (W; U; b) makes both. It saves writing
    and reading the drive, and the saved rows give dW, dU and db in one product as well.
    """

    def __init__(self, cell, params, dtype):
        kernel_dtype = params.kernel.dtype
        self.params = params = with_kernels_in(dtype, params)
        self.recurrent = params.recurrent_kernel is not None
        # In a narrower dtype the stacked bias would be rounded too.
        self.stacked = (
            self.recurrent
            and cell.summed
            and len(params.kernel) <= len(params.recurrent_kernel)
            and params.kernel.dtype == params.bias.dtype
        )
        self.summed = cell.summed
        self.transposed = partial(_transposed_product, params.kernel.dtype, kernel_dtype)
        if self.stacked:
            kernels = params.recurrent_kernel, params.kernel, params.bias[None]
            self.matrix = jnp.concatenate(kernels)

    def ahead(self, inputs):
        """What can be made for all steps at once: the drive, unless it is stacked."""
        if not self.stacked:
            return affine(inputs, self.params.kernel, self.params.bias)
        return inputs

    def make(self, hidden, ahead):
        """One step: the row to save, and the gate's arguments."""
        if self.stacked:
            one = jnp.ones((*hidden.shape[:-1], 1), hidden.dtype)
            row = jnp.concatenate([hidden, ahead, one], axis=-1)
            return row, (row @ self.matrix,)
        if not self.recurrent:
            return None, (ahead,)
        recurrent = product(hidden, self.params.recurrent_kernel)
        return hidden, ((ahead + recurrent,) if self.summed else (ahead, recurrent))

    def gradients(self, inputs, saved, d_arguments):
        """The gradients of the kernels, the bias and the inputs."""
        d_drives, d_products = d_arguments[0], d_arguments[-1]
        d_inputs = product(d_drives, self.params.kernel.T)
        if self.stacked:
            hidden_size, input_size = len(self.params.recurrent_kernel), len(self.params.kernel)
            d_matrix = self.transposed(saved, d_drives)
            split = [hidden_size, hidden_size + input_size]
            d_recurrent, d_kernel, d_bias = jnp.split(d_matrix, split)
            return d_kernel, d_recurrent, d_bias[0], d_inputs
        d_kernel = self.transposed(inputs, d_drives)
        d_recurrent = self.transposed(saved, d_products) if self.recurrent else None
        return d_kernel, d_recurrent, rows(d_drives).sum(0), d_inputs


def _transposed_product(dtype, result_dtype, left, right):
    """`leftᵀ·right` over all steps and examples, with operands in `dtype`."""
    left, right = (rows(side).astype(dtype) for side in (left, right))
    return jnp.matmul(left.T, right, preferred_element_type=result_dtype)


def _fused_forward(cell, unroll, dtype, *arguments):
    outputs, state, *saved = _forward(cell, unroll, dtype, *arguments, with_pullbacks=True)
    return (outputs, state), (*arguments, *saved)


def _fused_backward(cell, unroll, dtype, saved, cotangents):
    params, _, reset_state, steps, pullbacks, saved_rows = saved
    d_outputs, d_state = cotangents
    products = _Products(cell, params, dtype)
    transposed = None
    if products.recurrent:
        # Transposed once: XLA:CPU takes a fifth longer to multiply by a transposed view.
        transposed = lax.optimization_barrier(products.params.recurrent_kernel.T)

    def body(carry, now):
        d_state, d_weights, d_reset = carry
        d_output, pullback, (_, alive, resets, drop, _) = now
        d_after = _add_hidden(d_state, d_output)
        if alive is not None:
            nothing = jax.tree.map(jnp.zeros_like, d_state)
            d_after, d_copied = where(alive, d_after, nothing), where(alive, nothing, d_state)
        d_gate, *d_arguments, d_before = pullback(d_after)
        if products.recurrent:
            d_hidden = product(d_arguments[-1], transposed)
            d_before = _add_hidden(d_before, d_hidden if drop is None else d_hidden * drop)
        if resets is not None:
            nothing = jax.tree.map(jnp.zeros_like, d_before)
            d_reset = add(d_reset, where(resets, d_before, nothing))
            d_before = where(resets, nothing, d_before)
        if alive is not None:
            d_before = add(d_before, d_copied)
        return (d_before, add(d_weights, d_gate), d_reset), d_arguments

    zeros = partial(jax.tree.map, jnp.zeros_like)
    (d_state, d_weights, d_reset), d_arguments = lax.scan(
        body,
        (d_state, zeros(elementwise(params)), zeros(reset_state)),
        (d_outputs, pullbacks, steps._replace(inputs=None)),
        reverse=True,
        unroll=unroll,
    )
    d_kernel, d_recurrent, d_bias, d_inputs = products.gradients(
        steps.inputs, saved_rows, d_arguments
    )
    d_params = d_weights._replace(kernel=d_kernel, recurrent_kernel=d_recurrent, bias=d_bias)
    return d_params, d_state, d_reset, Steps(d_inputs, None, None)


def _add_hidden(state: State, hidden: Array) -> State:
    return state._replace(**{state._fields[0]: state[0] + hidden})


def add(a: State, b: State) -> State:
    """The sum of two trees."""
    return jax.tree.map(jnp.add, a, b)


def rows(sequence: Float[Array, "T *B N"]) -> Float[Array, "R N"]:
    """All steps of all examples of the batch as one matrix."""
    return sequence.reshape(-1, sequence.shape[-1])


fused.defvjp(_fused_forward, _fused_backward)
