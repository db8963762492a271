"""What a recurrent cell is: an affine drive, a recurrent product and an elementwise gate.

    drive    z_t = x_t·U + b          needs no state, so every time step can be computed at once
    product  r_t = h_{t-1}·W          the only matrix product that has to wait for the step before
    gate     s_t = gate(z_t, r_t, s_{t-1})      elementwise; s is the state, h its first leaf

`gated` turns a gate into a `Cell`. A cell that does not fit gives its own `step`.

Shapes: B batch (any number of axes, also none), I input features, H hidden units, G gates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Params = Any
State = Any


class Cell(NamedTuple):
    """A recurrent cell as a tuple of pure functions.

    Attributes:
        init: `(key, input_size, dtype=float32) -> params`.
        initial_state: `(params, batch_shape=()) -> state`, leaves `[*batch_shape, ...]`.
        step: `(params, state, x [..., I]) -> (state, y)`, one time step;
            `functools.partial(cell.step, params)` is the body of a `jax.lax.scan`.
        gate: The elementwise part of a cell made by `gated`, or None.
        summed: Whether the gate takes the sum of drive and product instead of both.
        is_cudnn_lstm: Whether this is the LSTM that cuDNN computes.
    """

    init: Callable[..., Params]
    initial_state: Callable[..., State]
    step: Callable[[Params, State, Array], tuple[State, Array]]
    gate: Callable[..., State] | None = None
    summed: bool = False
    is_cudnn_lstm: bool = False


def gated(gate: Callable, init: Callable, initial_state: Callable, *, summed: bool = False) -> Cell:
    """Makes a cell from an elementwise gate.

    Args:
        gate: `(weights, drive [..., G·H], product [..., G·H], state) -> state`, elementwise over
            the batch and the units; `weights` are the parameters without the kernels and the bias.
        init: As in `Cell`; returns a named tuple with `kernel [I, G·H]`, `recurrent_kernel
            [H, G·H]`, `bias [G·H]`, and whatever elementwise parameters the gate uses.
        initial_state: As in `Cell`; returns a named tuple whose first leaf is the hidden state,
            which is also the output.
        summed: The gate is `(weights, drive + product, state) -> state`. Say so where it holds:
            the two products can then be made as one.

    Returns:
        The cell, with `step` = the gate applied to the two products.
    """

    def step(params, state, x):
        drive = affine(x, params.kernel, params.bias)
        product = state[0] @ params.recurrent_kernel
        products = (drive + product,) if summed else (drive, product)
        state = gate(elementwise(params), *products, state)
        return state, state[0]

    return Cell(init, initial_state, step, gate, summed)


def pointwise(function: Callable[..., Array]) -> Callable[..., Array]:
    """An elementwise function whose derivative is kept as one slope for each argument.

    Autodiff keeps a factor for each operation inside; multiplying them at once leaves less to
    store in the forward loop over time and nothing to compute in the backward one.
    """
    wrapped = jax.custom_jvp(function)

    @wrapped.defjvp
    def jvp(arguments, tangents):
        value, pullback = jax.vjp(function, *arguments)
        slopes = pullback(jnp.ones_like(value))
        return value, sum(slope * tangent for slope, tangent in zip(slopes, tangents, strict=True))

    return wrapped


def elementwise(params: Params) -> Params:
    """The parameters that a gate may see: all but the two kernels and the bias."""
    return params._replace(kernel=None, recurrent_kernel=None, bias=None)


def affine(
    x: Float[Array, "*batch I"], kernel: Float[Array, "I G"], bias: Float[Array, " G"]
) -> Float[Array, "*batch G"]:
    """`x·kernel + bias`, with the bias broadcast explicitly over the batch axes."""
    product = x @ kernel
    return product + along(bias, product)


def along(vector: Float[Array, " N"], like: Float[Array, "*batch N"]) -> Float[Array, "*batch N"]:
    """Broadcasts a per-unit vector over the batch axes of `like`."""
    return jnp.broadcast_to(vector, like.shape)


def zeros(params: Params, batch_shape: tuple[int, ...], size: int) -> Float[Array, "*batch size"]:
    """A state of zeros in the dtype of the parameters."""
    return jnp.zeros((*batch_shape, size), jax.tree.leaves(params)[0].dtype)
