"""Simple recurrent cells: one affine map and one nonlinearity.

Conventions of all cells: Kernels are input-first (`x @ kernel`) and hold their gates side by side
along the last axis. Unless stated otherwise, kernels are initialized glorot-uniform (Glorot &
Bengio, 2010) and all other parameters to zero.

Shapes: B batch (any number of axes), I input features, H hidden units, G gates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn.arguments import size
from jaxrnn.cell import Cell, along, cached, gated, zeros
from jaxrnn.initializers import Initializer, kernels


class RNNParams(NamedTuple):
    """Parameters of `rnn`, `mgu`, `janet`, `min_gru` and `min_lstm`.

    Attributes:
        kernel: U, the input kernel, one block of H columns per gate. The number G of gates is 1 for
            `rnn`, 2 for `mgu` (f, n), `janet` (f, g) and `min_gru` (z, n), and 3 for `min_lstm`
            (i, f, g).
        recurrent_kernel: W, the recurrent kernel, or None for `min_gru` and `min_lstm`.
        bias: b, the bias.
    """

    kernel: Float[Array, "I G*H"] | None
    recurrent_kernel: Float[Array, "H G*H"] | None
    bias: Float[Array, " G*H"] | None


class RNNState(NamedTuple):
    """State of a cell whose state is its output.

    Attributes:
        hidden: The hidden state, which is also the output.
    """

    hidden: Float[Array, "*B H"]


class IndRNNParams(NamedTuple):
    """Parameters of `indrnn`.

    Attributes:
        kernel: U, the input kernel.
        bias: b, the bias.
        recurrent_weight: u, one recurrent weight per unit.
        recurrent_kernel: Always None.
    """

    kernel: Float[Array, "I H"] | None
    bias: Float[Array, " H"] | None
    recurrent_weight: Float[Array, " H"] | None
    recurrent_kernel: None = None


@cached
def rnn(
    hidden_size: int,
    *,
    activation: Callable[[Array], Array] = jnp.tanh,
    kernel_init: Initializer | None = None,
    recurrent_kernel_init: Initializer | None = None,
) -> Cell[RNNParams, RNNState]:
    """Simple recurrent network (Elman, "Finding structure in time", 1990).

        h' = activation(x·U + b + h·W)

    With `activation=jax.nn.relu` and `recurrent_kernel_init=jaxrnn.identity()` it is the IRNN (Le
    et al., "A simple way to initialize recurrent networks of rectified linear units", 2015).

    Args:
        hidden_size: H, the number of units.
        activation: The elementwise nonlinearity, such as `jnp.tanh` or `jax.nn.relu`.
        kernel_init: Initializer of the kernel; see `jaxrnn.initializers.kernels`. Defaults to
            glorot-uniform.
        recurrent_kernel_init: Initializer of the recurrent kernel. Defaults to glorot-uniform.

    Returns:
        A cell with `RNNParams` and `RNNState`.

    Raises:
        ValueError: If `hidden_size` is not a positive integer.
    """
    hidden_size = size("hidden_size", hidden_size)

    def init(key, input_size, dtype=jnp.float32):
        sizes = input_size, hidden_size, hidden_size, 1
        made = kernels(key, *sizes, dtype, kernel_init, recurrent_kernel_init)
        return RNNParams(*made, jnp.zeros(hidden_size, dtype))

    def initial_state(params, batch_shape=()):
        return RNNState(zeros(params, batch_shape, hidden_size))

    def gate(params, z, state):
        return RNNState(activation(z.h))

    return gated(gate, "h", init, initial_state)


@cached
def indrnn(
    hidden_size: int,
    *,
    activation: Callable[[Array], Array] = jax.nn.relu,
    kernel_init: Initializer | None = None,
) -> Cell[IndRNNParams, RNNState]:
    """Independently recurrent network (Li et al., 2018).

        h' = activation(x·U + b + u∘h)

    Li et al., "Independently recurrent neural network (IndRNN): Building a longer and deeper RNN".
    The units of a layer do not depend on each other, so at least two layers are usually stacked.
    The recurrent weights u are initialized uniformly in [0, 1).

    Args:
        hidden_size: H, the number of units.
        activation: The elementwise nonlinearity.
        kernel_init: Initializer of the kernel; see `jaxrnn.initializers.kernels`. Defaults to
            glorot-uniform.

    Returns:
        A cell with `IndRNNParams` and `RNNState`.

    Raises:
        ValueError: If `hidden_size` is not a positive integer.
    """
    hidden_size = size("hidden_size", hidden_size)

    def init(key, input_size, dtype=jnp.float32):
        kernel_key, weight_key = jax.random.split(key)
        kernel, _ = kernels(kernel_key, input_size, 1, hidden_size, 1, dtype, kernel_init)
        weight = jax.random.uniform(weight_key, (hidden_size,), dtype)
        return IndRNNParams(kernel, jnp.zeros(hidden_size, dtype), weight)

    def initial_state(params, batch_shape=()):
        return RNNState(zeros(params, batch_shape, hidden_size))

    def gate(params, z, state):
        return RNNState(activation(z.h + along(params.recurrent_weight, z.h) * state.hidden))

    return gated(gate, "h", init, initial_state)
