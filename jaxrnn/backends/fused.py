"""The deferred gradient: matrix products that can wait are computed once, over all steps.

Autodiff through a scan adds up dW inside the loop, one small product a step. Here the forward loop
saves what the gate's own pullback needs, the backward loop runs that pullback and the one product
that cannot wait (dh = dr·Wᵀ), and after the loop

    dW = [h_0 … h_{T-1}]ᵀ · [dr_1 … dr_T]        dU = [x_1 … x_T]ᵀ · [dz_1 … dz_T]

are one product each, over the T·B rows of all steps and examples. U is `kernel`, W is
`recurrent_kernel`.

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
    """None for a gated cell, or why not."""
    if cell.gate is None:
        return "it needs a cell made by jaxrnn.gated, got one with a step of its own"
    # The backward pass needs a floating-point cotangent for every leaf.
    if not all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(state)):
        return f"it needs a state of floats, got {describe(state)}"
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
    arguments = params, start, reset_state, steps
    outputs, state, _, _ = _forward(cell, unroll, dtype, *arguments, with_pullbacks=False)
    return outputs, state


def _forward(cell, unroll, dtype, params, start, reset_state, steps, *, with_pullbacks):
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
    params, start, reset_state, steps, pullbacks, saved = residuals
    d_outputs, d_state = cotangents
    products = _Products(cell, params, dtype, gradient=True)
    kernel: Any = None
    if products.recurrent:
        # Transposed once: XLA:CPU takes a fifth longer to multiply by a transposed view.
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
    """The products of a step, and the gradients of the kernels over all steps.

    Where every gate sees only the sum of drive and product, and the inputs are not wider than the
    state, one product of (h, x, 1) with the stacked (W; U; b) computes both where a gradient is
    taken: what is saved of the steps then gives dW, dU and db in one product as well.
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
        return affine(x, self.params.kernel, self.params.bias)

    def ahead(self, inputs):
        """What a step reads: its inputs, and its drive unless it is stacked."""
        return inputs, None if self.stacked else self.drive(inputs)

    def make(self, hidden, ahead):
        """What to save of a step, and the gate's arguments."""
        x, drive = ahead
        if self.stacked:
            one = jnp.ones((*hidden.shape[:-1], 1), hidden.dtype)
            stack = jnp.concatenate([hidden, x, one], axis=-1)
            return stack, self.gate.summed(stack @ self.matrix)
        if not self.recurrent:
            return None, self.gate.arguments(drive, None)
        if self.narrow:
            # On a CPU the drive takes longer to read from memory than to compute from what is in
            # the caches. XLA removes the one that is not used.
            make, read = lambda x, _: self.drive(x), lambda _, drive: drive
            drive = lax.platform_dependent(x, drive, cpu=make, default=read)
        return hidden, self.gate.arguments(drive, product(hidden, self.params.recurrent_kernel))

    def gradients(self, inputs, saved, d_drives, d_products):
        """The gradients of the kernels, the bias and the inputs over all steps."""
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
    """The gradients of the kernels, the bias and the inputs over all steps, one product each.

    Args:
        params: The parameters, with the kernels in the dtype of the products' operands.
        kernel_dtype: That of the kernels themselves.
        inputs: `[T, *B, I]`.
        hidden: What the recurrent products saw, `[T, *B, H]`; of no use without a recurrent kernel.
        d_drives: The gradients of the drives, `[T, *B, G·H]`.
        d_products: Those of the recurrent products, or None where they are equal.
    """
    transposed = partial(_transposed_product, params.kernel.dtype, kernel_dtype)
    d_products = d_drives if d_products is None else d_products
    d_recurrent = None if params.recurrent_kernel is None else transposed(hidden, d_products)
    d_bias = _rows(d_drives).sum(0)
    return transposed(inputs, d_drives), d_recurrent, d_bias, product(d_drives, params.kernel.T)


def _transposed_product(dtype, result_dtype, left, right):
    """`leftᵀ·right` over all steps and examples, with operands in `dtype`."""
    left, right = (_rows(side).astype(dtype) for side in (left, right))
    return jnp.matmul(left.T, right, preferred_element_type=result_dtype)


def _add_hidden(state: State, hidden: Array) -> State:
    return state._replace(**{state._fields[0]: state[0] + hidden})


def _add(a: State, b: State) -> State:
    return jax.tree.map(jnp.add, a, b)


def _rows(sequence: Float[Array, "T *B N"]) -> Float[Array, "R N"]:
    """All steps of all examples as one matrix."""
    return sequence.reshape(-1, sequence.shape[-1])
