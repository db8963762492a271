"""Simple recurrent cells: one affine map and one nonlinearity.

Kernels are input-first (`x @ kernel`), with the gates side by side along the last axis. They start
glorot-uniform (Glorot & Bengio, 2010), everything else at zero unless a cell says otherwise.

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
    """Parameters of `rnn` (G = 1), and of `mgu` (gates f, n) and `jaxrnn.janet` (f, g)."""

    kernel: Float[Array, "I G*H"] | None
    recurrent_kernel: Float[Array, "H G*H"] | None
    bias: Float[Array, " G*H"] | None


class RNNState(NamedTuple):
    """State of a cell that has only its output."""

    hidden: Float[Array, "*B H"]


class IndRNNParams(NamedTuple):
    """Parameters of `indrnn`; its recurrent weights are one number a unit."""

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
    """The simple recurrent network of Elman (1990), `h' = activation(x·U + b + h·W)`.

    With `activation=jax.nn.relu, recurrent_kernel_init=jaxrnn.identity()` it is the IRNN of Le et
    al., "A simple way to initialize recurrent networks of rectified linear units", 2015.

    Args:
        hidden_size: H, the number of units.
        activation: Elementwise nonlinearity: `jnp.tanh`, `jax.nn.relu`, `jax.nn.sigmoid`, …
        kernel_init: How the kernel of each gate starts; see `jaxrnn.initializers.kernels`.
        recurrent_kernel_init: How the recurrent kernel of each gate starts.

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
    """Independently recurrent network, `h' = activation(x·U + b + u∘h)`.

    Li et al., "Independently recurrent neural network (IndRNN): building a longer and deeper
    RNN", 2018. Its units do not see each other within a layer: stack two or more.

    Args:
        hidden_size: H, the number of units.
        activation: Elementwise nonlinearity.
        kernel_init: How the kernel starts.

    Returns:
        A cell with `IndRNNParams`, whose recurrent weights start uniform in 0..1, and `RNNState`.

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
