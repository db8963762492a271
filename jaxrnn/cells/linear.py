"""Cells whose state is a linear recurrence, which can be computed for all steps in parallel.

    s_t = a_t∘s_{t-1} + b_t

The coefficients a and b are functions of the input x_t and do not depend on the state.
Kernels and their initialization are as in `jaxrnn.cells.rnn`.

Shapes: B batch (any number of axes), I input features, H hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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
        drive = _complex_product(x, params.input_kernel)
        scale = jnp.exp(params.gamma).astype(drive.dtype)
        return eigenvalue, along(scale, drive) * drive

    def unpack(packed, dtype):
        return LRUState(packed.real.astype(dtype), packed.imag.astype(dtype))

    def readout(params, packed, x):
        y = _real_product(packed, params.output_kernel, x.dtype)
        return activation(y + product(x, params.skip_kernel))

    return linear(Recurrence(coefficients, unpack, _pack, readout), init, initial_state)


class S5Params(NamedTuple):
    """Parameters of `s5`.

    Attributes:
        eigenvalues: Λ, its real and its imaginary part.
        log_step: The logarithm of Δ.
        input_kernel: B, its real and its imaginary part.
        output_kernel: C, its real and its imaginary part.
        skip_kernel: D, elementwise `[H]` if the inputs have H features, otherwise `[I, H]`.
    """

    eigenvalues: Float[Array, "2 N"]
    log_step: Float[Array, " N"]
    input_kernel: Float[Array, "2 I N"]
    output_kernel: Float[Array, "2 N H"]
    skip_kernel: Float[Array, "*I H"]


@cached
def s5(
    hidden_size: int,
    *,
    state_size: int | None = None,
    activation: Callable[[Array], Array] = jax.nn.gelu,
    step_range: tuple[float, float] = (1e-3, 1e-1),
) -> Cell[S5Params, LRUState]:
    """Simplified state space layer, S5 (Smith et al., 2023).

        s' = Λ̄∘s + B̄·x                     complex, by zero-order hold:
        Λ̄ = exp(Λ∘Δ)        B̄ = Λ⁻¹∘(Λ̄ - 1)∘B
        y = activation(2 Re(C·s') + D·x)

    Smith et al., "Simplified state space layers for sequence modeling". Each complex state stands
    for a pair of conjugates, so that y is real. Λ starts as the eigenvalues of the normal part of
    the HiPPO-LegS matrix. Their real parts are kept below zero. The activation replaces the gated
    block that the paper adds after the layer, which `jaxrnn.residual` has.

    Args:
        hidden_size: H, the number of output features.
        state_size: N, the number of complex states. Defaults to H / 2, rounded up.
        activation: The elementwise nonlinearity of the output.
        step_range: `(low, high)`, the range of Δ at initialization.

    Returns:
        A cell with `S5Params` and `LRUState`.

    Raises:
        ValueError: If `hidden_size` or `state_size` is not a positive integer, or `step_range` does
            not satisfy 0 < low < high.
    """
    hidden_size = size("hidden_size", hidden_size)
    states = size("state_size", -(-hidden_size // 2) if state_size is None else state_size)
    low, high = step_range
    if not 0 < low < high:
        raise ValueError(f"step_range must be (low, high) with 0 < low < high, got {step_range}")

    def init(key, input_size, dtype=jnp.float32):
        keys = jax.random.split(key, 4)
        eigenvalues, vectors = _hippo(2 * states)
        eigenvalues, vectors = eigenvalues[:states], vectors[:, :states]
        normal = jax.random.normal
        given = normal(keys[0], (input_size, 2 * states)) / input_size**0.5
        taken = normal(keys[1], (2 * states, hidden_size)) / (2 * states) ** 0.5
        square = input_size == hidden_size
        skip = normal(keys[2], (hidden_size,) if square else (input_size, hidden_size))
        log_step = jax.random.uniform(
            keys[3], (states,), jnp.float32, math.log(low), math.log(high)
        )
        # Eigenvalues near 0 and small steps would be rounded to the same number in bfloat16.
        precise = _precise(dtype)
        # The states are those of the HiPPO matrix multiplied by the inverse of the eigenvectors.
        return S5Params(
            eigenvalues=_parts(eigenvalues).astype(precise),
            log_step=log_step.astype(precise),
            input_kernel=_parts(given @ vectors.conj()).astype(dtype),
            output_kernel=_parts(vectors.T @ taken).astype(dtype),
            skip_kernel=(skip if square else skip / input_size**0.5).astype(dtype),
        )

    def initial_state(params, batch_shape=()):
        zero = zeros(params, batch_shape, states)
        return LRUState(zero, zero)

    def coefficients(params, x):
        real, imaginary = params.eigenvalues
        eigenvalue = _complex(jnp.minimum(real, -1e-4), imaginary)
        decay = jnp.exp(eigenvalue * jnp.exp(params.log_step))
        drive = _complex_product(x, params.input_kernel)
        scale = ((decay - 1) / eigenvalue).astype(drive.dtype)
        return decay.astype(drive.dtype), along(scale, drive) * drive

    def unpack(packed, dtype):
        return LRUState(packed.real.astype(dtype), packed.imag.astype(dtype))

    def readout(params, packed, x):
        y = _real_product(packed, params.output_kernel, x.dtype)
        skip = params.skip_kernel
        return activation(2 * y + (product(x, skip) if skip.ndim == 2 else x * along(skip, x)))

    return linear(Recurrence(coefficients, unpack, _pack, readout), init, initial_state)


def _hippo(order: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns eigenvalues and eigenvectors of the normal part of the HiPPO-LegS matrix.

    Those with a positive imaginary part come first; the others are their conjugates. Gu et al.,
    "On the parameterization and initialization of diagonal state space models", 2022.
    """
    root = np.sqrt(1 + 2 * np.arange(order))
    lower = np.tril(np.outer(root, root))
    matrix = np.diag(np.arange(order)) - lower  # HiPPO-LegS
    low_rank = np.sqrt(np.arange(order) + 0.5)
    normal = matrix + np.outer(low_rank, low_rank)
    # The real part of every eigenvalue is the diagonal, and the rest is skew-symmetric.
    imaginary, vectors = np.linalg.eigh(-1j * (normal - np.diag(np.diag(normal))))
    order_of = np.argsort(-imaginary)
    return np.mean(np.diag(normal)) + 1j * imaginary[order_of], vectors[:, order_of]


def _parts(values: Any) -> Array:
    """Stacks the real and the imaginary part."""
    return jnp.stack([values.real, values.imag])


def _complex_product(x, kernel):
    """Multiplies real inputs by a complex kernel, in one product of real matrices."""
    both = product(x, jnp.concatenate([kernel[0], kernel[1]], axis=-1))
    return _complex(*jnp.split(both, 2, axis=-1))


def _real_product(state, kernel, dtype):
    """Returns the real part of a complex product, in one product of real matrices."""
    both = jnp.concatenate([state.real, state.imag], axis=-1).astype(dtype)
    return product(both, jnp.concatenate([kernel[0], -kernel[1]]))


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
