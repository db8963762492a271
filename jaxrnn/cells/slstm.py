"""The LSTM with exponential gates of xLSTM.

Kernels and their initialization are as in `jaxrnn.cells.rnn`.

Shapes: B batch (any number of axes), I input features, H units, K = H / heads units of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn.arguments import blocks
from jaxrnn.cell import (
    Cell,
    Gate,
    affine,
    block_product,
    cached,
    elementwise,
    gated,
    sigmoid,
    zeros,
)
from jaxrnn.initializers import Initializer, kernels


class SLSTMParams(NamedTuple):
    """Parameters of `slstm`. The gates are in the order i, f, z, o.

    Attributes:
        kernel: W, the input kernel.
        recurrent_kernel: R, the recurrent kernel `[H, 4·H]`, or with several heads its diagonal
            blocks `[heads, K, 4·K]`.
        bias: b, the bias.
    """

    kernel: Float[Array, "I 4*H"] | None
    recurrent_kernel: Float[Array, "*heads K 4*K"] | None
    bias: Float[Array, " 4*H"] | None


class SLSTMState(NamedTuple):
    """State of `slstm`.

    Attributes:
        hidden: h, the hidden state, which is also the output.
        cell: c, the memory cells.
        normalizer: n.
        stabilizer: m.
    """

    hidden: Float[Array, "*B H"]
    cell: Float[Array, "*B H"]
    normalizer: Float[Array, "*B H"]
    stabilizer: Float[Array, "*B H"]


@cached
def slstm(
    hidden_size: int,
    *,
    heads: int = 1,
    forget_bias: float | Array | None = None,
    kernel_init: Initializer | None = None,
    recurrent_kernel_init: Initializer | None = None,
) -> Cell[SLSTMParams, SLSTMState]:
    """Scalar LSTM of xLSTM (Beck et al., "xLSTM: Extended long short-term memory", 2024).

        ĩ, f̃, z̃, õ = x·W + h·R + b
        m' = max(log σ(f̃) + m, ĩ)              m' = ĩ if n = 0
        i = exp(ĩ - m')         f = exp(log σ(f̃) + m - m')
        c' = f∘c + i∘tanh(z̃)    n' = f∘n + i
        h' = σ(õ)∘c'/n'

    The input gate is exponential, and the normalizer n keeps the output bounded. The stabilizer m
    scales c and n by the same factor, which does not change h. The forget gate is the sigmoid one
    of the paper's two. The recurrent kernel of several heads is block-diagonal. Such a cell has its
    own step; with one head it is made by `jaxrnn.gated`. The block of the paper adds a convolution,
    a group normalization and a projection around this layer. Zoneout of c, n and m would change
    their common scale; use it for h alone, as `zoneout=(rate, 0.0, 0.0, 0.0)`. The output is
    bounded only from an initial state with n ≥ |c|. A learned initial state need not be one: its n
    may even become negative, and training unstable.

    Args:
        hidden_size: H, the number of units.
        heads: The number of diagonal blocks of the recurrent kernel. Must divide `hidden_size`.
        forget_bias: The initial bias of the forget gate. If None, the biases of the K units of a
            head are 5 - 12·(k/(K - 1))^0.3 for k in 0..K-1, as in the first block of the authors'
            code.
        kernel_init: Initializer of the kernel; see `jaxrnn.initializers.kernels`. Defaults to
            glorot-uniform.
        recurrent_kernel_init: Initializer of the recurrent kernel. Defaults to glorot-uniform.

    Returns:
        A cell with `SLSTMParams` and `SLSTMState`.

    Raises:
        ValueError: If `hidden_size` or `heads` is not a positive integer, or `heads` does not
            divide `hidden_size`.
    """
    hidden_size, heads = blocks(hidden_size, heads)
    width = hidden_size // heads

    def init(key, input_size, dtype=jnp.float32):
        input_key, *keys = jax.random.split(key, 1 + heads)
        kernel, _ = kernels(input_key, input_size, 1, hidden_size, 4, dtype, kernel_init)
        recurrent = [
            kernels(key, 1, width, width, 4, dtype, None, recurrent_kernel_init)[1] for key in keys
        ]
        forget = forget_bias
        if forget is None:
            forget = jnp.tile(5 - 12 * jnp.linspace(0.0, 1.0, width) ** 0.3, heads)
        bias = jnp.zeros(4 * hidden_size, dtype)
        bias = bias.at[hidden_size : 2 * hidden_size].set(jnp.asarray(forget, dtype))
        return SLSTMParams(kernel, recurrent[0] if heads == 1 else jnp.stack(recurrent), bias)

    def initial_state(params, batch_shape=()):
        return SLSTMState(*(zeros(params, batch_shape, hidden_size) for _ in range(4)))

    def gate(params, raw, state):
        # log σ(f) + m, of functions that all backends support.
        kept = jnp.minimum(raw.f, 0) - jnp.log(1 + jnp.exp(-jnp.abs(raw.f))) + state.stabilizer
        m = jnp.where(state.normalizer == 0, raw.i, jnp.maximum(raw.i, kept))
        # The minimum is 0 only if n is 0, where exp could overflow.
        i, f = jnp.exp(raw.i - m), jnp.exp(jnp.minimum(kept - m, 0))
        c = f * state.cell + i * jnp.tanh(raw.z)
        n = f * state.normalizer + i
        return SLSTMState(sigmoid(raw.o) * c / n, c, n, m)

    elements = Gate(gate, ("i", "f", "z", "o"))

    def step(params, state, x):
        recurrent = block_product(state.hidden, params.recurrent_kernel)
        by_gate = jnp.split(recurrent, 4, axis=-1)
        product = jnp.concatenate([each.reshape(state.hidden.shape) for each in by_gate], axis=-1)
        drive = affine(x, params.kernel, params.bias)
        state = elements(elementwise(params), elements.summed(drive + product), state)
        return state, state.hidden

    if heads == 1:
        return gated(gate, elements.names, init, initial_state)
    return Cell(init, initial_state, step, outputs_state=True)
