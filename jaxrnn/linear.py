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
from jaxtyping import Array, Bool, Float, Inexact

from jaxrnn.arguments import size
from jaxrnn.cell import (
    Cell,
    Initializer,
    Params,
    State,
    affine,
    along,
    cached,
    kernels,
    product,
    with_kernels_in,
    zeros,
)
from jaxrnn.cells import RNNParams, RNNState
from jaxrnn.fused import Steps, where


class Recurrence(NamedTuple):
    """What makes up a cell of this kind.

    Attributes:
        coefficients: `(params, x [..., I]) -> (a, b)`, each `[..., H]` or of a shape that is
            broadcast to it, real or complex, in the dtype of the packed state.
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
    recurrence: Recurrence,
    dtype: Any,
    params: Params,
    reset_state: State | None,
    start: State,
    steps: Steps,
) -> tuple[Float[Array, "T *B P"], State]:
    """Runs all steps at once.

    Args:
        recurrence: That of the cell.
        dtype: The dtype of the products' operands; None is that of the kernels.
        params: The cell's parameters.
        reset_state: The state that a reset puts back.
        start: The state before the first step.
        steps: The sequence.

    Returns:
        The outputs, zero past an example's length, and the state after the last step.
    """
    params, packed_start = with_kernels_in(dtype, params), recurrence.pack(start)
    a, b = recurrence.coefficients(params, steps.inputs)
    # A coefficient may lack axes, as a decay [H] that is the same for all examples and steps.
    shape = jnp.broadcast_shapes(a.shape, b.shape, steps.inputs.shape[:1] + packed_start.shape)
    a, b = jnp.broadcast_to(a, shape), jnp.broadcast_to(b, shape)
    if steps.resets is not None:
        b = where(steps.resets, b + a * recurrence.pack(reset_state)[None], b)
        a = where(steps.resets, jnp.zeros_like(a), a)
    if steps.alive is not None:
        a = where(steps.alive, a, jnp.ones_like(a))
        b = where(steps.alive, b, jnp.zeros_like(b))
    first = a[0] * packed_start
    if steps.resets is not None:  # 0 · NaN would carry on what a reset ends
        first = where(steps.resets[0], jnp.zeros_like(first), first)
    packed = states_of(a, b.at[0].add(first), steps.resets)
    outputs = recurrence.readout(params, packed, steps.inputs)
    if steps.alive is not None:
        outputs = where(steps.alive, outputs, jnp.zeros_like(outputs))
    return outputs, recurrence.unpack(packed[-1], outputs.dtype)


def states_of(
    a: Inexact[Array, "T *B H"],
    b: Inexact[Array, "T *B H"],
    resets: Bool[Array, "T *B"] | None = None,
) -> Inexact[Array, "T *B H"]:
    """All states `s_t = a_t∘s_{t-1} + b_t` with s before the first step zero.

    The states solve the bidiagonal system `s_t - a_t∘s_{t-1} = b_t`, so their derivative, in
    either mode, is a solution of the same system and its transpose the recurrence in reverse.

    Args:
        a: The coefficients of the states; at a reset they must be zero.
        b: The coefficients added.
        resets: Where nothing of an earlier state, not even NaN, is to reach a state.
    """
    cut = lambda states: states  # noqa: E731
    if resets is not None:
        cut = lambda states: where(resets, jnp.zeros_like(states), states)  # noqa: E731

    def system(states):
        before = jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])
        return states - a * cut(before)

    def solve(_, b):
        return _solve(a, b, resets)

    def transpose_solve(_, g):
        # s_t + a_{t+1}∘s_{t+1}: the recurrence backwards, its coefficients one step later.
        later = jnp.concatenate([a[1:], jnp.zeros_like(a[:1])])
        ends = None
        if resets is not None:
            ends = jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])
            ends = jnp.flip(ends, 0)
        return jnp.flip(_solve(jnp.flip(later, 0), jnp.flip(g, 0), ends), 0)

    return lax.custom_linear_solve(system, b, solve, transpose_solve)


def _solve(a, b, resets):
    if not isinstance(a.shape[0], int):  # a symbolic size cannot be halved
        return _in_turn(a, b, resets)
    # A CPU has few cores to fill: the rounds would only be so many more passes over the memory.
    return lax.platform_dependent(a, b, resets, cpu=_in_turn, default=_at_once)


def _at_once(a, b, resets):
    """All states in log₂ T rounds."""

    def join(earlier, later):
        carried = later[0] * earlier[1]
        if resets is None:
            return earlier[0] * later[0], carried + later[1]
        carried = where(later[2], jnp.zeros_like(carried), carried)
        return earlier[0] * later[0], carried + later[1], earlier[2] | later[2]

    return lax.associative_scan(join, (a, b) if resets is None else (a, b, resets))[1]


def _in_turn(a, b, resets):
    """All states, one after the other."""

    def body(state, now):
        a, b, reset = now
        carried = a * state
        if reset is not None:
            carried = where(reset, jnp.zeros_like(carried), carried)
        state = carried + b
        return state, state

    return lax.scan(body, jnp.zeros_like(b[0]), (a, b, resets))[1]


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
    hidden_size = size("hidden_size", hidden_size)

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


_LRU_KERNELS = ("input_kernel", "output_kernel", "skip_kernel")


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
    hidden_size = size("hidden_size", hidden_size)
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
        # The eigenvalues need float32: in bfloat16 those near 1 would fall together.
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

    return linear(Recurrence(coefficients, _pack, unpack, readout), init, initial_state)


def _pack(state):
    return _complex(*state)


def _complex(real, imaginary):
    # There are no complex numbers smaller than two float32.
    dtype = _precise(real.dtype)
    return lax.complex(real.astype(dtype), imaginary.astype(dtype))


def _precise(dtype):
    return jnp.float64 if dtype == jnp.float64 else jnp.float32
