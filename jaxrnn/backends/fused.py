"""The deferred gradient: the gradients of the kernels are computed after the backward loop.

Autodiff through a scan accumulates dW inside the loop, with one small matrix product per step. Here
the forward loop saves the residuals of the gate's pullback. The backward loop runs this pullback
and the only product that the recurrence needs, dh = dr·Wᵀ. After the loop,

    dW = [h_0 … h_{T-1}]ᵀ · [dr_1 … dr_T]
    dU = [x_1 … x_T]ᵀ · [dz_1 … dz_T]

are computed by one product each, over all steps and examples. U is `kernel`, W is
`recurrent_kernel`, z is the drive x·U + b and r is the product h·W.

Shapes: B batch (any number of axes), T time, I input features, H hidden units, G gates.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxrnn.arguments import describe
from jaxrnn.backends.steps import Steps, begin, finish, recurrent_input
from jaxrnn.cell import Cell, Params, State, affine, elementwise, product, with_kernels_in


def supports(cell: Cell, params: Params, state: State, steps: Steps, dtype: Any) -> str | None:
    """Returns None for a gated cell with a floating-point state, else the reason."""
    if cell.gate is None:
        return "cell must be made by jaxrnn.gated, got one with its own step"
    # The backward pass needs a floating-point cotangent for every leaf.
    if not all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(state)):
        return f"the state must be floating-point, got {describe(state)}"
    return None


def run(
    cell: Cell,
    params: Params,
    start: State,
    reset_state: State | None,
    steps: Steps,
    *,
    dtype: Any = None,
    unroll: int = 1,
) -> tuple[Float[Array, "T *B H"], State]:
    """Runs a cell made by `jaxrnn.gated` over time; see `jaxrnn.backends`."""
    return _fused(cell, unroll, dtype, params, start, reset_state, steps)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _fused(cell, unroll, dtype, params, start, reset_state, steps):
    """Runs the forward loop; its gradient is `_fused_backward`."""
    arguments = params, start, reset_state, steps
    outputs, state, _, _ = _forward(cell, unroll, dtype, *arguments, with_pullbacks=False)
    return outputs, state


def _forward(cell, unroll, dtype, params, start, reset_state, steps, *, with_pullbacks):
    """Runs the forward loop and returns outputs, last state, pullbacks and operands of products."""
    weights = elementwise(params)
    products = _Products(cell, params, dtype, gradient=with_pullbacks)

    def body(state, now):
        now, ahead = now
        before = begin(now, reset_state, state)
        saved, arguments = products.make(recurrent_input(now, before), ahead)
        if with_pullbacks:
            after, pullback = jax.vjp(cell.gate, weights, arguments, before)
        else:
            after, pullback, saved = cell.gate(weights, arguments, before), None, None
        state = finish(now, after, before)
        return state, (state[0], pullback, saved)

    state, (outputs, pullbacks, saved) = lax.scan(
        body,
        start,
        (steps._replace(inputs=None), products.ahead(steps.inputs)),
        unroll=unroll,
    )
    return outputs, state, pullbacks, saved


def _fused_forward(cell, unroll, dtype, *arguments):
    outputs, state, *saved = _forward(cell, unroll, dtype, *arguments, with_pullbacks=True)
    return (outputs, state), (*arguments, *saved)


def _fused_backward(cell, unroll, dtype, residuals, cotangents):
    """Runs the backward loop, then computes the gradients of the kernels over all steps."""
    params, start, reset_state, steps, pullbacks, saved = residuals
    d_outputs, d_state = cotangents
    products = _Products(cell, params, dtype, gradient=True)
    kernel: Any = None
    if products.recurrent:
        # The barrier makes XLA transpose the kernel once. On a CPU a product with a transposed view
        # takes a fifth longer.
        kernel = lax.optimization_barrier(products.params.recurrent_kernel.T)

    def body(carry, now):
        d_state, d_weights, d_reset = carry
        now, pullback, d_output = now
        d_state = _add_hidden(d_state, d_output)
        d_after, d_before = jax.linear_transpose(partial(finish, now), start, start)(d_state)
        d_now, d_arguments, d_gate_before = pullback(d_after)
        d_before = _add(d_before, d_gate_before)
        d_drive, d_product = cell.gate.join(d_arguments)
        if products.recurrent:
            d_hidden = product(d_drive if d_product is None else d_product, kernel)
            (d_product_before,) = jax.linear_transpose(partial(recurrent_input, now), start)(
                d_hidden
            )
            d_before = _add(d_before, d_product_before)
        d_again, d_state = jax.linear_transpose(partial(begin, now), reset_state, start)(d_before)
        return (d_state, _add(d_weights, d_now), _add(d_reset, d_again)), (d_drive, d_product)

    zeros = partial(jax.tree.map, jnp.zeros_like)
    (d_state, d_weights, d_reset), d_products = lax.scan(
        body,
        (d_state, zeros(elementwise(params)), zeros(reset_state)),
        (steps._replace(inputs=None), pullbacks, d_outputs),
        reverse=True,
        unroll=unroll,
    )
    d_kernel, d_recurrent, d_bias, d_inputs = products.gradients(steps.inputs, saved, *d_products)
    d_params = d_weights._replace(kernel=d_kernel, recurrent_kernel=d_recurrent, bias=d_bias)
    return d_params, d_state, d_reset, Steps(d_inputs, None, None)


_fused.defvjp(_fused_forward, _fused_backward)


class _Products:
    """The matrix products of a step, and the gradients of the kernels over all steps.

    If a gradient is taken, no gate is separate, and the inputs are not wider than the state, one
    product of (h, x, 1) with the stacked matrix (W; U; b) computes the sum of drive and product.
    The saved (h, x, 1) of all steps then give dW, dU and db in one product as well.
    """

    def __init__(self, cell, params, dtype, *, gradient):
        self.kernel_dtype = params.kernel.dtype
        self.params = params = with_kernels_in(dtype, params)
        self.gate = cell.gate
        self.recurrent = params.recurrent_kernel is not None
        self.narrow = self.recurrent and len(params.kernel) <= len(params.recurrent_kernel)
        self.stacked = (
            gradient
            and self.narrow
            and not cell.gate.separate
            and params.kernel.dtype == params.bias.dtype  # else the bias would be cast too
        )
        if self.stacked:
            kernels = params.recurrent_kernel, params.kernel, params.bias[None]
            self.matrix = jnp.concatenate(kernels)

    def drive(self, x):
        """Computes the drive x·U + b."""
        return affine(x, self.params.kernel, self.params.bias)

    def ahead(self, inputs):
        """Returns what the loop reads in each step: the inputs, and the drive or None."""
        return inputs, None if self.stacked else self.drive(inputs)

    def make(self, hidden, ahead):
        """Returns the operand of the product, to be saved, and the arguments of the gate."""
        x, drive = ahead
        if self.stacked:
            one = jnp.ones((*hidden.shape[:-1], 1), hidden.dtype)
            stack = jnp.concatenate([hidden, x, one], axis=-1)
            return stack, self.gate.summed(stack @ self.matrix)
        if not self.recurrent:
            return None, self.gate.arguments(drive, None)
        if self.narrow:
            # On a CPU, reading the drive from memory takes longer than computing it from inputs in
            # the cache. XLA removes the drive that is not used.
            make, read = lambda x, _: self.drive(x), lambda _, drive: drive
            drive = lax.platform_dependent(x, drive, cpu=make, default=read)
        return hidden, self.gate.arguments(drive, product(hidden, self.params.recurrent_kernel))

    def gradients(self, inputs, saved, d_drives, d_products):
        """Computes the gradients of the kernel, the recurrent kernel, the bias and the inputs."""
        if not self.stacked:
            return kernel_gradients(
                self.params, self.kernel_dtype, inputs, saved, d_drives, d_products
            )
        hidden_size, input_size = len(self.params.recurrent_kernel), len(self.params.kernel)
        split = [hidden_size, hidden_size + input_size]
        rows = _transposed_product(self.params.kernel.dtype, self.kernel_dtype, saved, d_drives)
        d_recurrent, d_kernel, d_bias = jnp.split(rows, split)
        return d_kernel, d_recurrent, d_bias[0], product(d_drives, self.params.kernel.T)


def kernel_gradients(params, kernel_dtype, inputs, hidden, d_drives, d_products):
    """Computes the gradients of the kernels, the bias and the inputs over all steps.

    Args:
        params: The parameters, with the kernels in the dtype of the operands of the products.
        kernel_dtype: The dtype of the kernels before the cast.
        inputs: The inputs `[T, *B, I]`.
        hidden: The operands of the recurrent products, `[T, *B, H]`; ignored without a recurrent
            kernel.
        d_drives: The gradients of the drives, `[T, *B, G·H]`.
        d_products: The gradients of the recurrent products, `[T, *B, G·H]`, or None if they equal
            `d_drives`.

    Returns:
        The gradients of the kernel, the recurrent kernel (or None), the bias and the inputs.
    """
    transposed = partial(_transposed_product, params.kernel.dtype, kernel_dtype)
    d_products = d_drives if d_products is None else d_products
    d_recurrent = None if params.recurrent_kernel is None else transposed(hidden, d_products)
    d_bias = _rows(d_drives).sum(0)
    return transposed(inputs, d_drives), d_recurrent, d_bias, product(d_drives, params.kernel.T)


def _transposed_product(dtype, result_dtype, left, right):
    """Computes `leftᵀ·right` over all steps and examples, with operands in `dtype`."""
    left, right = (_rows(side).astype(dtype) for side in (left, right))
    return jnp.matmul(left.T, right, preferred_element_type=result_dtype)


def _add_hidden(state: State, hidden: Array) -> State:
    """Adds to the first leaf of a state."""
    return state._replace(**{state._fields[0]: state[0] + hidden})


def _add(a: State, b: State) -> State:
    return jax.tree.map(jnp.add, a, b)


def _rows(sequence: Float[Array, "T *B N"]) -> Float[Array, "R N"]:
    """Merges the axes of time and batch, R = T·B."""
    return sequence.reshape(-1, sequence.shape[-1])
