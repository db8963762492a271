"""Gated recurrent units.

Kernels and their initialization are as in `jaxrnn.cells.rnn`.

Shapes: B batch (any number of axes), I input features, H hidden units.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn.arguments import size
from jaxrnn.cell import Cell, affine, along, cached, gated, pointwise, product, sigmoid, zeros
from jaxrnn.cells.rnn import RNNParams, RNNState
from jaxrnn.initializers import Initializer, chrono_bias, kernels


class GRUParams(NamedTuple):
    """Parameters of `gru`, with the gates in the order r, z, n.

    Attributes:
        kernel: U, the input kernel.
        recurrent_kernel: W, the recurrent kernel.
        bias: b, the bias.
        recurrent_bias: The bias of n that the reset gate multiplies; None with
            `reset_after=False`.
    """

    kernel: Float[Array, "I 3H"] | None
    recurrent_kernel: Float[Array, "H 3H"] | None
    bias: Float[Array, " 3H"] | None
    recurrent_bias: Float[Array, " H"] | None = None


class GRUState(NamedTuple):
    """State of `gru`.

    Attributes:
        hidden: The hidden state, which is also the output.
    """

    hidden: Float[Array, "*B H"]


@cached
def gru(
    hidden_size: int,
    *,
    reset_after: bool = True,
    chrono: float | None = None,
    kernel_init: Initializer | None = None,
    recurrent_kernel_init: Initializer | None = None,
) -> Cell[GRUParams, GRUState]:
    """Gated recurrent unit (Cho et al., 2014).

        r = σ(x·Ur + h·Wr + br)                            reset gate
        z = σ(x·Uz + h·Wz + bz)                            update gate
        n = tanh(x·Un + bn + r∘(h·Wn + recurrent_bias))    candidate, reset_after
        n = tanh(x·Un + bn + (r∘h)·Wn)                     candidate, otherwise
        h' = (1 - z)∘n + z∘h

    Cho et al., "Learning phrase representations using RNN encoder–decoder for statistical machine
    translation", apply the reset before the product, as TF1 does. cuDNN, PyTorch and Flax apply it
    after the product.

    Args:
        hidden_size: H, the number of units.
        reset_after: Whether the reset gate is applied after the recurrent product.
        chrono: If given, the bias of z is initialized for time scales of up to this many steps
            (Tallec & Ollivier, 2018). If None, it is initialized to zero.
        kernel_init: Initializer of the kernel; see `jaxrnn.initializers.kernels`. Defaults to
            glorot-uniform.
        recurrent_kernel_init: Initializer of the recurrent kernel. Defaults to glorot-uniform.

    Returns:
        A cell with `GRUParams` and `GRUState`.

    Raises:
        ValueError: If `hidden_size` is not a positive integer, or in the cell's `init` if `chrono`
            is not greater than 2.
    """
    hidden_size = size("hidden_size", hidden_size)

    def init(key, input_size, dtype=jnp.float32):
        kernel_key, bias_key = jax.random.split(key)
        sizes = input_size, hidden_size, hidden_size, 3
        bias = jnp.zeros(3 * hidden_size, dtype)
        if chrono is not None:
            keep = chrono_bias(bias_key, hidden_size, chrono, dtype)
            bias = bias.at[hidden_size : 2 * hidden_size].set(keep)
        return GRUParams(
            *kernels(kernel_key, *sizes, dtype, kernel_init, recurrent_kernel_init),
            bias,
            recurrent_bias=jnp.zeros(hidden_size, dtype) if reset_after else None,
        )

    def initial_state(params, batch_shape=()):
        return GRUState(zeros(params, batch_shape, hidden_size))

    @pointwise
    def new_hidden(r, z, n, past, h):
        n = jnp.tanh(n + sigmoid(r) * past)
        return n + sigmoid(z) * (h - n)  # (1 - z)∘n + z∘h

    def gate(params, pre, recurrent, state):
        past = recurrent.n + along(params.recurrent_bias, recurrent.n)
        return GRUState(new_hidden(pre.r, pre.z, pre.n, past, state.hidden))

    def reset_before_step(params, state, x):
        # The reset is applied to an operand of a product, which `gated` cannot express.
        rz_kernel, n_kernel = jnp.split(params.recurrent_kernel, [2 * hidden_size], axis=-1)
        drive = affine(x, params.kernel, params.bias)
        rz_drive, n_drive = jnp.split(drive, [2 * hidden_size], axis=-1)
        r, z = jnp.split(sigmoid(rz_drive + product(state.hidden, rz_kernel)), 2, axis=-1)
        n = jnp.tanh(n_drive + product(r * state.hidden, n_kernel))
        state = GRUState(n + z * (state.hidden - n))
        return state, state.hidden

    if reset_after:
        return gated(gate, "r z n", init, initial_state, separate="n")
    return Cell(init, initial_state, reset_before_step, outputs_state=True)


@cached
def mgu(
    hidden_size: int,
    *,
    kernel_init: Initializer | None = None,
    recurrent_kernel_init: Initializer | None = None,
) -> Cell[RNNParams, RNNState]:
    """Minimal gated unit (Zhou et al., "Minimal gated unit for recurrent neural networks", 2016).

        f = σ(x·Uf + h·Wf + bf)               how much of the state to replace
        n = tanh(x·Un + bn + (f∘h)·Wn)        candidate
        h' = (1 - f)∘h + f∘n

    Args:
        hidden_size: H, the number of units.
        kernel_init: Initializer of the kernel; see `jaxrnn.initializers.kernels`. Defaults to
            glorot-uniform.
        recurrent_kernel_init: Initializer of the recurrent kernel. Defaults to glorot-uniform.

    Returns:
        A cell with `RNNParams` (gates f, n) and `RNNState`.

    Raises:
        ValueError: If `hidden_size` is not a positive integer.
    """
    hidden_size = size("hidden_size", hidden_size)

    def init(key, input_size, dtype=jnp.float32):
        sizes = input_size, hidden_size, hidden_size, 2
        made = kernels(key, *sizes, dtype, kernel_init, recurrent_kernel_init)
        return RNNParams(*made, jnp.zeros(2 * hidden_size, dtype))

    def initial_state(params, batch_shape=()):
        return RNNState(zeros(params, batch_shape, hidden_size))

    def step(params, state, x):
        # The gate is applied to an operand of the second product, which `gated` cannot express.
        f_kernel, n_kernel = jnp.split(params.recurrent_kernel, 2, axis=-1)
        f_drive, n_drive = jnp.split(affine(x, params.kernel, params.bias), 2, axis=-1)
        f = sigmoid(f_drive + product(state.hidden, f_kernel))
        n = jnp.tanh(n_drive + product(f * state.hidden, n_kernel))
        state = RNNState(state.hidden + f * (n - state.hidden))
        return state, state.hidden

    return Cell(init, initial_state, step, outputs_state=True)
