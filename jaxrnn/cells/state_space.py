"""State space models: linear recurrences that discretize a differential equation of the state.

    s_t = a_t∘s_{t-1} + b_t
    y_t = readout(s_t, x_t)

The coefficients a and b do not depend on the state, so all steps can be computed in parallel. All
parameters but the kernels, and the state, stay in float32 if the kernels are in bfloat16.

Shapes: B batch (any number of axes), I input features, H output features, N states, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn.initializers import glorot_uniform
from jaxtyping import Array, Float

from jaxrnn.arguments import size
from jaxrnn.cell import (
    Cell,
    Recurrence,
    affine,
    along,
    cached,
    linear,
    precise,
    product,
    with_precise_rates,
    zeros,
)
from jaxrnn.initializers import Initializer, kernels


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

    nu: Float[Array, " N"]
    theta: Float[Array, " N"]
    gamma: Float[Array, " N"]
    input_kernel: Float[Array, "2 I N"]
    output_kernel: Float[Array, "2 N H"]
    skip_kernel: Float[Array, "I H"]


class LRUState(NamedTuple):
    """State of `lru` and `s5`, a complex vector s.

    Attributes:
        real: The real part of s.
        imaginary: The imaginary part of s.
    """

    real: Float[Array, "*B N"]
    imaginary: Float[Array, "*B N"]


@cached
def lru(
    hidden_size: int,
    *,
    state_size: int | None = None,
    activation: Callable[[Array], Array] = jax.nn.gelu,
    radius: tuple[float, float] = (0.9, 0.999),
    max_phase: float = 6.28,
) -> Cell[LRUParams, LRUState]:
    """Linear recurrent unit (Orvieto et al., 2023).

        s' = λ∘s + exp(gamma)∘(x·B)         complex, λ = exp(-exp(nu) + i·exp(theta))
        y = activation(Re(s'·C) + x·D)

    Orvieto et al., "Resurrecting recurrent neural networks for long sequences". Only the real part
    of s'·C is used, so a complex state stands for itself and its conjugate, and H real states
    correspond to N = H / 2 complex ones with phases in [0, π]. |λ|² and the phases are initialized
    uniformly, exp(gamma) to √(1 - |λ|²), and the parts of B, those of C, and D to normal numbers
    with variances 1/2I, 1/N and 1/I. The activation replaces the gated block that the paper adds
    after the unit; `jaxrnn.residual` has that block.

    Args:
        hidden_size: H, the number of output features.
        state_size: N, the number of complex states. Defaults to H.
        activation: The elementwise nonlinearity of the output.
        radius: `(low, high)`, the range of |λ| at initialization.
        max_phase: The largest phase of λ at initialization, in radians.

    Returns:
        A cell with `LRUParams` and `LRUState`.

    Raises:
        ValueError: If `hidden_size` or `state_size` is not a positive integer, or `radius` does not
            satisfy 0 <= low < high < 1.
    """
    hidden_size = size("hidden_size", hidden_size)
    states = hidden_size if state_size is None else size("state_size", state_size)
    low, high = radius
    if not 0 <= low < high < 1:
        raise ValueError(f"radius must be (low, high) with 0 <= low < high < 1, got {radius}")

    def init(key, input_size, dtype=jnp.float32):
        keys = jax.random.split(key, 5)
        squared = jax.random.uniform(keys[0], (states,), jnp.float32, low**2, high**2)
        phase = jax.random.uniform(keys[1], (states,), jnp.float32, 1e-4, max_phase)
        normal = jax.random.normal
        params = LRUParams(
            nu=jnp.log(-0.5 * jnp.log(squared)),
            theta=jnp.log(phase),
            gamma=0.5 * jnp.log(1 - squared),
            input_kernel=normal(keys[2], (2, input_size, states)) / (2 * input_size) ** 0.5,
            output_kernel=normal(keys[3], (2, states, hidden_size)) / states**0.5,
            skip_kernel=normal(keys[4], (input_size, hidden_size)) / input_size**0.5,
        )
        return with_precise_rates(params, dtype)

    def initial_state(params, batch_shape=()):
        # Two arrays, because the leaves of a state may be donated.
        return LRUState(zeros(params, batch_shape, states), zeros(params, batch_shape, states))

    def coefficients(params, x):
        eigenvalue = jnp.exp(_complex(-jnp.exp(params.nu), jnp.exp(params.theta)))
        drive = _complex_product(x, params.input_kernel)
        scale = jnp.exp(params.gamma).astype(drive.dtype)
        return eigenvalue, along(scale, drive) * drive

    def readout(params, packed, x):
        y = _real_product(packed, params.output_kernel, x.dtype)
        return activation(y + product(x, params.skip_kernel))

    return linear(Recurrence(coefficients, _unpack, _pack, readout), init, initial_state)


class S5Params(NamedTuple):
    """Parameters of `s5`. With a stride, I is the number of features of one time step.

    Attributes:
        eigenvalues: Λ, its real and its imaginary part.
        log_step: The logarithm of Δ.
        input_kernel: B, its real and its imaginary part.
        output_kernel: C, its real and its imaginary part.
        skip_kernel: D, elementwise `[H]` if I = H, otherwise `[I, H]`.
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
    stride: int = 1,
) -> Cell[S5Params, LRUState]:
    """Simplified state space layer, S5 (Smith et al., 2023).

        s' = Λ̄∘s + x·B̄                     complex, by zero-order hold:
        Λ̄ = exp(Λ∘Δ)        B̄ = B∘(Λ̄ - 1)/Λ
        y = activation(2 Re(s'·C) + x·D)

    Smith et al., "Simplified state space layers for sequence modeling". Each complex state stands
    for a pair of conjugates, so that y is real. Λ is initialized to the eigenvalues of the normal
    part of the HiPPO-LegS matrix, B and C to normal matrices in the basis of its eigenvectors, with
    variances 1/I and 1/2N, D to normal numbers with variance 1, or 1/I if it is a matrix, and Δ
    log-uniformly in `step_range`. The real parts of Λ are kept below zero. The activation
    replaces the gated block that the paper adds after the layer; `jaxrnn.residual` has that block.

    With a stride of k, the cell takes k time steps at once: its input is x_1, …, x_k side by side,
    and its output is that after x_k. As the recurrence is linear, this needs one product:

        s' = Λ̄ᵏ∘s + Σ_j Λ̄ᵏ⁻ʲ∘(x_j·B̄)

    Args:
        hidden_size: H, the number of output features.
        state_size: N, the number of complex states. Defaults to H / 2, rounded up.
        activation: The elementwise nonlinearity of the output.
        step_range: `(low, high)`, the range of Δ at initialization.
        stride: k, the number of time steps in one input.

    Returns:
        A cell with `S5Params` and `LRUState`.

    Raises:
        ValueError: If `hidden_size`, `state_size` or `stride` is not a positive integer, or
            `step_range` does not satisfy 0 < low < high; on use, if the number of input features is
            not a multiple of `stride`.
    """
    hidden_size, stride = size("hidden_size", hidden_size), size("stride", stride)
    states = size("state_size", -(-hidden_size // 2) if state_size is None else state_size)
    low, high = _check_step_range(step_range)

    def init(key, input_size, dtype=jnp.float32):
        if input_size % stride:
            raise ValueError(
                f"the number of input features must be a multiple of stride={stride}, "
                f"got {input_size}"
            )
        input_size //= stride
        keys = jax.random.split(key, 4)
        # The matrix has 2·N eigenvalues, N pairs of conjugates.
        eigenvalues, vectors = _hippo(2 * states)
        eigenvalues, vectors = _parts(eigenvalues[:states]), _parts(vectors[:, :states])
        normal = jax.random.normal
        given = normal(keys[0], (input_size, 2 * states)) / input_size**0.5
        taken = normal(keys[1], (2 * states, hidden_size)) / (2 * states) ** 0.5
        square = input_size == hidden_size
        skip = normal(keys[2], (hidden_size,) if square else (input_size, hidden_size))
        # In the basis of the eigenvectors V, B becomes B·V̄ and C becomes Vᵀ·C.
        conjugate = vectors * jnp.array([1, -1], vectors.dtype)[:, None, None]
        params = S5Params(
            eigenvalues=eigenvalues,
            log_step=_log_uniform(keys[3], states, low, high),
            input_kernel=jnp.einsum("im,pmn->pin", given, conjugate),
            output_kernel=jnp.einsum("pmn,mh->pnh", vectors, taken),
            skip_kernel=skip if square else skip / input_size**0.5,
        )
        return with_precise_rates(params, dtype)

    def initial_state(params, batch_shape=()):
        return LRUState(zeros(params, batch_shape, states), zeros(params, batch_shape, states))

    def coefficients(params, x):
        real, imaginary = params.eigenvalues
        real, step = jnp.minimum(real, -1e-4), jnp.exp(params.log_step)
        exponent = _complex(real * step, imaginary * step)
        kernel = params.input_kernel
        if stride > 1:
            later = jnp.arange(stride - 1, -1, -1).astype(exponent.dtype)
            powers = jnp.exp(jnp.outer(later, exponent))[:, None] * _complex(*kernel)[None]
            powers = powers.reshape(-1, states)
            kernel = jnp.stack([powers.real, powers.imag]).astype(kernel.dtype)
        drive = _complex_product(x, kernel)
        scale = (jnp.expm1(exponent) / _complex(real, imaginary)).astype(drive.dtype)
        return jnp.exp(stride * exponent).astype(drive.dtype), along(scale, drive) * drive

    def readout(params, packed, x):
        y = _real_product(packed, params.output_kernel, x.dtype)
        skip = params.skip_kernel
        x = x[..., x.shape[-1] - x.shape[-1] // stride :]
        skipped = product(x, skip) if skip.ndim == 2 else x * along(skip.astype(x.dtype), x)
        return activation(2 * y + skipped)

    return linear(Recurrence(coefficients, _unpack, _pack, readout), init, initial_state)


class S6Params(NamedTuple):
    """Parameters of `s6`.

    Attributes:
        log_decay: log(-A).
        skip: D.
        step_bias: v, the bias of Δ.
        kernel: U, the input kernel.
        bias: b, its bias.
        selection_kernel: W, which computes δ, B and C, side by side.
        step_kernel: V, from δ to Δ.
    """

    log_decay: Float[Array, "H N"]
    skip: Float[Array, " H"]
    step_bias: Float[Array, " H"]
    kernel: Float[Array, "I H"]
    bias: Float[Array, " H"]
    selection_kernel: Float[Array, "H R+2*N"]
    step_kernel: Float[Array, "R H"]


class S6State(NamedTuple):
    """State of `s6`.

    Attributes:
        states: s, N states for each of the H features.
    """

    states: Float[Array, "*B H N"]


@cached
def s6(
    hidden_size: int,
    *,
    state_size: int = 16,
    rank: int | None = None,
    step_range: tuple[float, float] = (1e-3, 1e-1),
    kernel_init: Initializer | None = None,
) -> Cell[S6Params, S6State]:
    """Selective state space model, S6 (Gu & Dao, 2023).

        u = x·U + b
        δ, B, C = u·W           Δ = softplus(δ·V + v)
        s' = exp(Δ∘A)∘s + (Δ∘u)⊗B            N states for each of H features
        y = s'·C + D∘u

    Gu & Dao, "Mamba: Linear-time sequence modeling with selective state spaces". The step Δ, the
    input vector B and the output vector C depend on the input. A is discretized by zero-order hold
    and B by the Euler method, as in the authors' code. Mamba's block adds a convolution and a gate
    around this layer. The bias b is the one of that convolution, in ±0.5 at initialization. Without
    it, the output at a zero input would be zero. A is initialized to -1, …, -N for every feature, D
    to one, V uniformly in ±1/√R, and Δ log-uniformly in `step_range`.

    Args:
        hidden_size: H, the number of features.
        state_size: N, the number of states of each feature.
        rank: R, the number of features of δ. Defaults to H / 16, rounded up.
        step_range: `(low, high)`, the range of Δ at initialization.
        kernel_init: Initializer of U; see `jaxrnn.initializers.kernels`. Defaults to
            glorot-uniform.

    Returns:
        A cell with `S6Params` and `S6State`.

    Raises:
        ValueError: If `hidden_size`, `state_size` or `rank` is not a positive integer, or
            `step_range` does not satisfy 0 < low < high.
    """
    hidden_size, states = size("hidden_size", hidden_size), size("state_size", state_size)
    rank = size("rank", -(-hidden_size // 16) if rank is None else rank)
    low, high = _check_step_range(step_range)

    def init(key, input_size, dtype=jnp.float32):
        keys = jax.random.split(key, 5)
        kernel, _ = kernels(keys[0], input_size, 1, hidden_size, 1, dtype, kernel_init)
        step = jnp.exp(_log_uniform(keys[1], hidden_size, low, high))
        wide = rank + 2 * states
        params = S6Params(
            log_decay=jnp.tile(jnp.log(jnp.arange(1.0, states + 1)), (hidden_size, 1)),
            skip=jnp.ones(hidden_size),
            step_bias=step + jnp.log(-jnp.expm1(-step)),  # the inverse of softplus
            kernel=kernel,
            bias=jax.random.uniform(keys[4], (hidden_size,), jnp.float32, -0.5, 0.5),
            selection_kernel=glorot_uniform()(keys[2], (hidden_size, wide)),
            step_kernel=jax.random.uniform(keys[3], (rank, hidden_size), float, -1, 1) / rank**0.5,
        )
        return with_precise_rates(params, dtype)

    def initial_state(params, batch_shape=()):
        return S6State(zeros(params, (*batch_shape, hidden_size), states))

    def selection(params, x):
        u = affine(x, params.kernel, params.bias)
        return u, jnp.split(product(u, params.selection_kernel), (rank, rank + states), axis=-1)

    def coefficients(params, x):
        u, (low_rank, given, _) = selection(params, x)
        step = product(low_rank, params.step_kernel)
        step = jax.nn.softplus(step + along(params.step_bias, step))[..., None]
        decay = -jnp.exp(params.log_decay)
        shape = (*u.shape, states)
        a = jnp.exp(step * jnp.broadcast_to(decay, shape))
        b = step * u[..., None] * given[..., None, :]
        return flat(a), flat(b)

    def flat(array):
        # One axis, as N alone would fill only a part of the lanes of an accelerator.
        return array.reshape(*array.shape[:-2], hidden_size * states)

    def pack(state):
        return flat(state.states)

    def unpack(packed, dtype):
        return S6State(packed.reshape(*packed.shape[:-1], hidden_size, states).astype(dtype))

    def readout(params, packed, x):
        u, (_, _, taken) = selection(params, x)
        y = (unpack(packed, x.dtype).states * taken[..., None, :]).sum(-1)
        return y + along(params.skip, u) * u

    return linear(Recurrence(coefficients, unpack, pack, readout), init, initial_state)


def _check_step_range(step_range):
    """Returns the bounds of the steps at initialization, or raises ValueError."""
    low, high = step_range
    if not 0 < low < high:
        raise ValueError(f"step_range must be (low, high) with 0 < low < high, got {step_range}")
    return low, high


def _log_uniform(key, count, low, high):
    """Draws logarithms of numbers that are log-uniform between two bounds."""
    return jax.random.uniform(key, (count,), jnp.float32, math.log(low), math.log(high))


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
    """Stacks the real and the imaginary part, in JAX's default float dtype."""
    return jnp.asarray(np.stack([values.real, values.imag]), float)


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


def _unpack(packed, dtype):
    return LRUState(packed.real.astype(dtype), packed.imag.astype(dtype))


def _complex(real, imaginary):
    """Combines real and imaginary parts to complex64, or complex128 for float64."""
    # The smallest complex dtype is complex64, which consists of two float32 numbers.
    dtype = precise(real.dtype)
    return lax.complex(real.astype(dtype), imaginary.astype(dtype))
