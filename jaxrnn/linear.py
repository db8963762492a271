"""Cells whose state is a linear recurrence, which can be computed for all steps in parallel.

    s_t = a_t∘s_{t-1} + b_t        a and b depend on the inputs only, not on the state

`jax.lax.associative_scan` makes all T states in log₂ T rounds (Blelloch, 1990; Martin & Cundy,
"Parallelizing linear recurrent neural nets over sequence length", 2018). On a CPU all products are
still made at once, and only the elementwise recurrence runs step by step. They are the rivals of
the gated cells: what they give up, a gate that sees the past, is the price of that.

Shapes: B batch (any number of axes), T time, I input features, H hidden units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxrnn.cell import (
    Cell,
    Initializer,
    Params,
    State,
    affine,
    along,
    cached,
    kernels,
    positive,
    zeros,
)
from jaxrnn.cells import RNNParams, RNNState
from jaxrnn.fused import Steps, where


class Recurrence(NamedTuple):
    """What makes up a cell of this kind.

    Attributes:
        coefficients: `(params, x [..., I]) -> (a, b)`, each `[..., H]`, real or complex.
        pack: The state as one array `[..., H]` of the coefficients' dtype.
        unpack: Its inverse, `(packed, dtype) -> state`.
        readout: `(params, packed [..., H], x) -> y`.
    """

    coefficients: Callable[[Params, Array], tuple[Array, Array]]
    pack: Callable[[State], Array] = lambda state: state[0]
    unpack: Callable[[Array, Any], State] = lambda packed, dtype: RNNState(packed)
    readout: Callable[[Params, Array, Array], Array] = lambda params, packed, x: packed


def linear(recurrence: Recurrence, init: Callable, initial_state: Callable) -> Cell:
    """Makes a cell of a linear recurrence; `init` and `initial_state` as in `Cell`."""

    def step(params, state, x):
        a, b = recurrence.coefficients(params, x)
        packed = a * recurrence.pack(state) + b
        return recurrence.unpack(packed, x.dtype), recurrence.readout(params, packed, x)

    return Cell(init, initial_state, step, recurrence=recurrence)


def parallel(
    recurrence: Recurrence, params: Params, initial_state: State, start: State, steps: Steps
) -> tuple[Float[Array, "T *B P"], State]:
    """Runs all steps at once.

    Args:
        recurrence: That of the cell.
        params: The cell's parameters.
        initial_state: What a reset puts back.
        start: The state before the first step.
        steps: The sequence.

    Returns:
        The outputs, zero where a row is not alive, and the state after the last step.
    """
    if not len(steps.inputs):
        output = jax.eval_shape(recurrence.readout, params, recurrence.pack(start), steps.inputs)
        return jnp.zeros(output.shape, output.dtype), start
    a, b = recurrence.coefficients(params, steps.inputs)
    if steps.resets is not None:
        b = where(steps.resets, b + a * recurrence.pack(initial_state)[None], b)
        a = where(steps.resets, jnp.zeros_like(a), a)
    if steps.alive is not None:
        a = where(steps.alive, a, jnp.ones_like(a))
        b = where(steps.alive, b, jnp.zeros_like(b))
    b = b.at[0].add(a[0] * recurrence.pack(start))

    # A CPU has few cores to fill: the rounds would only be so many more passes over the memory.
    packed = lax.platform_dependent(a, b, cpu=_in_turn, default=_at_once)
    outputs = recurrence.readout(params, packed, steps.inputs)
    if steps.alive is not None:
        outputs = where(steps.alive, outputs, jnp.zeros_like(outputs))
    return outputs, recurrence.unpack(packed[-1], outputs.dtype)


def _at_once(a, b):
    """All states in log₂ T rounds."""

    def join(earlier, later):
        return earlier[0] * later[0], later[0] * earlier[1] + later[1]

    return lax.associative_scan(join, (a, b))[1]


def _in_turn(a, b):
    """All states, one after the other."""

    def body(state, now):
        state = now[0] * state + now[1]
        return state, state

    return lax.scan(body, jnp.zeros_like(b[0]), (a, b))[1]


@cached
def min_gru(hidden_size: int, *, kernel_init: Initializer | None = None) -> Cell:
    """The minGRU (Feng et al., "Were RNNs all we needed?", 2024).

        z = σ(x·Uz + bz)
        h' = (1 - z)∘h + z∘(x·Un + bn)

    Args:
        hidden_size: H, the number of units.
        kernel_init: How the kernel of each gate starts; see `jaxrnn.cell.kernels`.

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
def min_lstm(hidden_size: int, *, kernel_init: Initializer | None = None) -> Cell:
    """The minLSTM (Feng et al., "Were RNNs all we needed?", 2024).

        i = σ(x·Ui + bi)        f = σ(x·Uf + bf)
        h' = (f∘h + i∘(x·Ug + bg)) / (f + i)

    Args:
        hidden_size: H, the number of units.
        kernel_init: How the kernel of each gate starts; see `jaxrnn.cell.kernels`.

    Returns:
        A cell with `RNNParams` (gates i, f, g; no recurrent kernel) and `RNNState`.

    Raises:
        ValueError: If `hidden_size` is not a positive integer.
    """

    def coefficients(params, x):
        i, f, g = jnp.split(affine(x, params.kernel, params.bias), 3, axis=-1)
        # f / (f + i), written so that it cannot divide zero by zero.
        keep = jax.nn.sigmoid(jax.nn.log_sigmoid(f) - jax.nn.log_sigmoid(i))
        return keep, (1 - keep) * g

    return _minimal(hidden_size, 3, coefficients, kernel_init)


def _minimal(hidden_size, gates, coefficients, kernel_init):
    positive("hidden_size", hidden_size)

    def init(key, input_size, dtype=jnp.float32):
        kernel, _ = kernels(key, input_size, 1, hidden_size, gates, dtype, kernel_init)
        return RNNParams(kernel, None, jnp.zeros(gates * hidden_size, dtype))

    def initial_state(params, batch_shape=()):
        return RNNState(zeros(params, batch_shape, hidden_size))

    return linear(Recurrence(coefficients), init, initial_state)


class LRUParams(NamedTuple):
    """Parameters of `lru`."""

    nu: Float[Array, " H"]  # log of -log|λ|
    theta: Float[Array, " H"]  # log of λ's phase
    gamma: Float[Array, " H"]  # log of the input's scale
    input_kernel: Float[Array, "2 I H"]  # real and imaginary part
    output_kernel: Float[Array, "2 H H"]
    skip_kernel: Float[Array, "I H"]


class LRUState(NamedTuple):
    """State of `lru`, a complex vector."""

    real: Float[Array, "*B H"]
    imaginary: Float[Array, "*B H"]


@cached
def lru(
    hidden_size: int,
    *,
    activation: Callable[[Array], Array] = jax.nn.gelu,
    radius: tuple[float, float] = (0.9, 0.999),
    max_phase: float = 6.28,
) -> Cell:
    """Linear recurrent unit (Orvieto et al., "Resurrecting recurrent neural networks", 2023).

        s' = λ∘s + exp(gamma)∘(x·B)            complex; λ = exp(-exp(nu) + i·exp(theta))
        y = activation(Re(s'·C) + x·D)

    Args:
        hidden_size: H, the number of complex units and of outputs.
        activation: Nonlinearity of the output, in place of the paper's gated layer around the unit.
        radius: Smallest and largest |λ| at the start.
        max_phase: Largest phase of λ at the start, in radians.

    Returns:
        A cell with `LRUParams` and `LRUState`.

    Raises:
        ValueError: If `hidden_size` is not a positive integer, or `radius` not 0 <= low < high < 1.
    """
    positive("hidden_size", hidden_size)
    low, high = radius
    if not 0 <= low < high < 1:
        raise ValueError(f"radius must be 0 <= low < high < 1, got {radius}")

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
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    def initial_state(params, batch_shape=()):
        zero = zeros(params, batch_shape, hidden_size)
        return LRUState(zero, zero)

    def coefficients(params, x):
        eigenvalue = jnp.exp(_complex(-jnp.exp(params.nu), jnp.exp(params.theta)))
        drive = _complex(x @ params.input_kernel[0], x @ params.input_kernel[1])
        scale = jnp.exp(params.gamma).astype(drive.dtype)
        return along(eigenvalue, drive), along(scale, drive) * drive

    def unpack(packed, dtype):
        return LRUState(packed.real.astype(dtype), packed.imag.astype(dtype))

    def readout(params, packed, x):
        real, imaginary = packed.real.astype(x.dtype), packed.imag.astype(x.dtype)
        y = real @ params.output_kernel[0] - imaginary @ params.output_kernel[1]
        return activation(y + x @ params.skip_kernel)

    return linear(Recurrence(coefficients, _pack, unpack, readout), init, initial_state)


def _pack(state):
    return _complex(*state)


def _complex(real, imaginary):
    # There are no complex numbers smaller than two float32.
    dtype = jnp.float64 if real.dtype == jnp.float64 else jnp.float32
    return lax.complex(real.astype(dtype), imaginary.astype(dtype))
