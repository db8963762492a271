"""Cells whose state is a linear recurrence, which can be computed for all steps in parallel.

    s_t = a_t∘s_{t-1} + b_t

The coefficients a and b are functions of the input x_t and do not depend on the state.
Kernels and their initialization are as in `jaxrnn.cells.rnn`.

Shapes: B batch (any number of axes), I input features, H hidden units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxrnn.arguments import size
from jaxrnn.cell import (
    Cell,
    Recurrence,
    affine,
    along,
    cached,
    linear,
    product,
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


class LRUParams(NamedTuple):
    """Parameters of `lru`.

    Attributes:
        nu: log(-log|λ|).
        theta: The logarithm of the phase of λ.
        gamma: The logarithm of the scale of the inputs.
        input_kernel: B, its real and its imaginary part.
        output_kernel: C, its real and its imaginary part.
        skip_kernel: D.
    """

    nu: Float[Array, " H"]
    theta: Float[Array, " H"]
    gamma: Float[Array, " H"]
    input_kernel: Float[Array, "2 I H"]
    output_kernel: Float[Array, "2 H H"]
    skip_kernel: Float[Array, "I H"]


_LRU_KERNELS = ("input_kernel", "output_kernel", "skip_kernel")


class LRUState(NamedTuple):
    """State of `lru`, a complex vector s.

    Attributes:
        real: The real part of s.
        imaginary: The imaginary part of s.
    """

    real: Float[Array, "*B H"]
    imaginary: Float[Array, "*B H"]


@cached
def lru(
    hidden_size: int,
    *,
    activation: Callable[[Array], Array] = jax.nn.gelu,
    radius: tuple[float, float] = (0.9, 0.999),
    max_phase: float = 6.28,
) -> Cell[LRUParams, LRUState]:
    """Linear recurrent unit (Orvieto et al., 2023).

        s' = λ∘s + exp(gamma)∘(x·B)         complex, λ = exp(-exp(nu) + i·exp(theta))
        y = activation(Re(s'·C) + x·D)

    Orvieto et al., "Resurrecting recurrent neural networks for long sequences". The activation
    replaces the gated block that the paper adds after the unit.

    Args:
        hidden_size: H, the number of complex units and of output features.
        activation: The elementwise nonlinearity of the output.
        radius: `(low, high)`, the range of |λ| at initialization.
        max_phase: The largest phase of λ at initialization, in radians.

    Returns:
        A cell with `LRUParams` and `LRUState`.

    Raises:
        ValueError: If `hidden_size` is not a positive integer, or `radius` does not satisfy
            0 <= low < high < 1.
    """
    hidden_size = size("hidden_size", hidden_size)
    low, high = radius
    if not 0 <= low < high < 1:
        raise ValueError(f"radius must be (low, high) with 0 <= low < high < 1, got {radius}")

    def init(key, input_size, dtype=jnp.float32):
        keys = jax.random.split(key, 5)
        squared = jax.random.uniform(keys[0], (hidden_size,), jnp.float32, low**2, high**2)
        phase = jax.random.uniform(keys[1], (hidden_size,), jnp.float32, 1e-4, max_phase)
        normal = jax.random.normal
        params = LRUParams(
            nu=jnp.log(-0.5 * jnp.log(squared)),
            theta=jnp.log(phase),
            gamma=0.5 * jnp.log(1 - squared),
            input_kernel=normal(keys[2], (2, input_size, hidden_size)) / (2 * input_size) ** 0.5,
            output_kernel=normal(keys[3], (2, hidden_size, hidden_size)) / hidden_size**0.5,
            skip_kernel=normal(keys[4], (input_size, hidden_size)) / input_size**0.5,
        )
        # In bfloat16, eigenvalues near 1 would be rounded to the same number.
        precise = _precise(dtype)
        return params._replace(
            **{name: getattr(params, name).astype(precise) for name in ("nu", "theta", "gamma")},
            **{name: getattr(params, name).astype(dtype) for name in _LRU_KERNELS},
        )

    def initial_state(params, batch_shape=()):
        return LRUState(
            zeros(params, batch_shape, hidden_size), zeros(params, batch_shape, hidden_size)
        )

    def coefficients(params, x):
        eigenvalue = jnp.exp(_complex(-jnp.exp(params.nu), jnp.exp(params.theta)))
        drive = _complex(product(x, params.input_kernel[0]), product(x, params.input_kernel[1]))
        scale = jnp.exp(params.gamma).astype(drive.dtype)
        return along(eigenvalue, drive), along(scale, drive) * drive

    def unpack(packed, dtype):
        return LRUState(packed.real.astype(dtype), packed.imag.astype(dtype))

    def readout(params, packed, x):
        real, imaginary = packed.real.astype(x.dtype), packed.imag.astype(x.dtype)
        y = product(real, params.output_kernel[0]) - product(imaginary, params.output_kernel[1])
        return activation(y + product(x, params.skip_kernel))

    return linear(Recurrence(coefficients, unpack, _pack, readout), init, initial_state)


def _pack(state):
    return _complex(*state)


def _complex(real, imaginary):
    """Combines real and imaginary parts to complex64, or complex128 for float64."""
    # The smallest complex dtype is complex64, which consists of two float32 numbers.
    dtype = _precise(real.dtype)
    return lax.complex(real.astype(dtype), imaginary.astype(dtype))


def _precise(dtype):
    """Returns float64 for float64, otherwise float32."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32
