"""Cells whose state is a linear recurrence, which can be computed for all steps in parallel.

    s_t = a_t∘s_{t-1} + b_t

The coefficients a and b are functions of the input x_t and do not depend on the state.
Kernels and their initialization are as in `jaxrnn.cells.rnn`.

Shapes: B batch (any number of axes), I input features, H hidden units.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrnn.arguments import size
from jaxrnn.cell import Cell, Recurrence, affine, cached, linear, zeros
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
