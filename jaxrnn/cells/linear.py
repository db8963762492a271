"""Gated linear recurrences, which can be computed for all steps in parallel.

    s_t = a_t∘s_{t-1} + b_t

The coefficients a and b are functions of the input x_t and do not depend on the state.
Kernels and their initialization are as in `jaxrnn.cells.rnn`.

Shapes: B batch (any number of axes), I input features, H hidden units, K units of a
head.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn.arguments import blocks, size
from jaxrnn.cell import (
    Cell,
    Recurrence,
    affine,
    along,
    block_product,
    cached,
    linear,
    with_precise_rates,
    zeros,
)
from jaxrnn.cells.rnn import RNNParams, RNNState
from jaxrnn.initializers import Initializer, kernels


@cached
def min_gru(
    hidden_size: int, *, kernel_init: Initializer | None = None
) -> Cell[RNNParams, RNNState]:
    """The minGRU (Feng et al., "Were RNNs all we needed?", 2024).

        z = σ(x·Uz + bz)
        h' = (1 - z)∘h + z∘(x·Un + bn)

    Args:
        hidden_size: H, the number of units.
        kernel_init: Initializer of the kernel; see `jaxrnn.initializers.kernels`. Defaults to
            glorot-uniform.

    Returns:
        A cell with `RNNParams` (gates z, n; no recurrent kernel) and `RNNState`.

    Raises:
        ValueError: If `hidden_size` is not a positive integer.
    """

    def coefficients(params, x):
        z, n = jnp.split(affine(x, params.kernel, params.bias), 2, axis=-1)
        z = jax.nn.sigmoid(z)
        return 1 - z, z * n

    return _minimal(hidden_size, 2, coefficients, kernel_init)


@cached
def min_lstm(
    hidden_size: int, *, kernel_init: Initializer | None = None
) -> Cell[RNNParams, RNNState]:
    """The minLSTM (Feng et al., "Were RNNs all we needed?", 2024).

        i = σ(x·Ui + bi)        f = σ(x·Uf + bf)
        h' = (f∘h + i∘(x·Ug + bg)) / (f + i)

    Args:
        hidden_size: H, the number of units.
        kernel_init: Initializer of the kernel; see `jaxrnn.initializers.kernels`. Defaults to
            glorot-uniform.

    Returns:
        A cell with `RNNParams` (gates i, f, g; no recurrent kernel) and `RNNState`.

    Raises:
        ValueError: If `hidden_size` is not a positive integer.
    """

    def coefficients(params, x):
        i, f, g = jnp.split(affine(x, params.kernel, params.bias), 3, axis=-1)
        # f / (f + i), in a form that does not divide zero by zero.
        keep = jax.nn.sigmoid(jax.nn.log_sigmoid(f) - jax.nn.log_sigmoid(i))
        return keep, (1 - keep) * g

    return _minimal(hidden_size, 3, coefficients, kernel_init)


class RGLRUParams(NamedTuple):
    """Parameters of `rg_lru`.

    Attributes:
        decay: Λ.
        kernel: U, the input kernel.
        bias: b, its bias.
        gate_kernel: Wa and Wx, the diagonal blocks of the kernels of the gates, side by side.
        gate_bias: ba and bx, one row each.
    """

    decay: Float[Array, " H"]
    kernel: Float[Array, "I H"]
    bias: Float[Array, " H"]
    gate_kernel: Float[Array, "heads K 2*K"]
    gate_bias: Float[Array, "2 H"]


@cached
def rg_lru(
    hidden_size: int,
    *,
    heads: int = 1,
    radius: tuple[float, float] = (0.9, 0.999),
    kernel_init: Initializer | None = None,
) -> Cell[RGLRUParams, RNNState]:
    """Real-gated linear recurrent unit, RG-LRU (De et al., 2024).

        u = x·U + b
        r = σ(u·Wa + ba)        i = σ(u·Wx + bx)
        a = σ(Λ)^(8r)
        h' = a∘h + √(1 - a²)∘(i∘u)

    De et al., "Griffin: Mixing gated linear recurrences with local attention for efficient language
    models". The kernels Wa and Wx are block-diagonal, and initialized to normal numbers with
    variance heads / H. U is the linear layer of the paper's recurrent block, which adds a
    convolution after it.

    Args:
        hidden_size: H, the number of units.
        heads: The number of diagonal blocks. Must divide `hidden_size`.
        radius: `(low, high)`, the range of σ(Λ)^8 at initialization.
        kernel_init: Initializer of U; see `jaxrnn.initializers.kernels`. Defaults to
            glorot-uniform.

    Returns:
        A cell with `RGLRUParams` and `RNNState`.

    Raises:
        ValueError: If `hidden_size` or `heads` is not a positive integer, `heads` does not divide
            `hidden_size`, or `radius` does not satisfy 0 < low < high < 1.
    """
    hidden_size, heads = blocks(hidden_size, heads)
    low, high = radius
    if not 0 < low < high < 1:
        raise ValueError(f"radius must be (low, high) with 0 < low < high < 1, got {radius}")
    power = 8.0  # c in the paper

    def init(key, input_size, dtype=jnp.float32):
        keys, width = jax.random.split(key, 3), hidden_size // heads
        kernel, _ = kernels(keys[0], input_size, 1, hidden_size, 1, dtype, kernel_init)
        squared = jax.random.uniform(keys[1], (hidden_size,), jnp.float32, low**2, high**2)
        log_decay = 0.5 * jnp.log(squared) / power
        params = RGLRUParams(
            decay=log_decay - jnp.log(-jnp.expm1(log_decay)),  # the inverse of log σ
            kernel=kernel,
            bias=jnp.zeros(hidden_size),
            gate_kernel=jax.random.normal(keys[2], (heads, width, 2 * width)) / width**0.5,
            gate_bias=jnp.zeros((2, hidden_size)),
        )
        return with_precise_rates(params, dtype)

    def initial_state(params, batch_shape=()):
        return RNNState(zeros(params, batch_shape, hidden_size))

    def coefficients(params, x):
        u = affine(x, params.kernel, params.bias)
        both = jnp.split(block_product(u, params.gate_kernel), 2, axis=-1)
        r, i = (
            jax.nn.sigmoid(gate.reshape(u.shape) + along(bias, u))
            for gate, bias in zip(both, params.gate_bias, strict=True)
        )
        log_a = power * r * along(jax.nn.log_sigmoid(params.decay), u)
        # The slope of the root is infinite at zero, where that of its argument is zero.
        remainder = jnp.maximum(-jnp.expm1(2 * log_a), jnp.finfo(log_a.dtype).tiny)
        return jnp.exp(log_a), jnp.sqrt(remainder) * i * u

    return linear(Recurrence(coefficients, _unpack), init, initial_state)


def _minimal(hidden_size, gates, coefficients, kernel_init):
    """Makes a cell from the coefficients of a recurrence whose state is its output."""
    hidden_size = size("hidden_size", hidden_size)

    def init(key, input_size, dtype=jnp.float32):
        kernel, _ = kernels(key, input_size, 1, hidden_size, gates, dtype, kernel_init)
        return RNNParams(kernel, None, jnp.zeros(gates * hidden_size, dtype))

    def initial_state(params, batch_shape=()):
        return RNNState(zeros(params, batch_shape, hidden_size))

    return linear(Recurrence(coefficients, _unpack), init, initial_state)


def _unpack(packed, dtype):
    return RNNState(packed)
