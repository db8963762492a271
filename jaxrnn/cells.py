"""The cells: each a gate that reads like its paper.

Kernels are input-first (`x @ kernel`), with the gates side by side along the last axis. They start
glorot-uniform (Glorot & Bengio, 2010), everything else at zero unless a cell says otherwise.

Shapes: I input features, H hidden units, P the size of the output (H, or the projection's).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import glorot_uniform
from jaxtyping import Array, Float

from jaxrnn.cell import Cell, affine, along, gated, pointwise, zeros


class RNNParams(NamedTuple):
    """Parameters of `rnn`."""

    kernel: Float[Array, "I H"] | None
    recurrent_kernel: Float[Array, "H H"] | None
    bias: Float[Array, " H"] | None


class RNNState(NamedTuple):
    """State of `rnn`."""

    hidden: Float[Array, "*B H"]


class LSTMParams(NamedTuple):
    """Parameters of `lstm`; gates in the order i, f, g, o, peepholes i, f, o."""

    kernel: Float[Array, "I 4H"] | None
    recurrent_kernel: Float[Array, "P 4H"] | None
    bias: Float[Array, " 4H"] | None
    peephole: Float[Array, "3 H"] | None = None
    projection: Float[Array, "H P"] | None = None


class LSTMState(NamedTuple):
    """State of `lstm`."""

    hidden: Float[Array, "*B P"]
    cell: Float[Array, "*B H"]


class GRUParams(NamedTuple):
    """Parameters of `gru`; gates in the order r, z, n."""

    kernel: Float[Array, "I 3H"] | None
    recurrent_kernel: Float[Array, "H 3H"] | None
    bias: Float[Array, " 3H"] | None
    recurrent_bias: Float[Array, " H"] | None = None


class GRUState(NamedTuple):
    """State of `gru`."""

    hidden: Float[Array, "*B H"]


def _kernels(key, input_size: int, output_size: int, width: int, dtype):
    """The two glorot-uniform kernels `[I, width]` and `[P, width]`."""
    input_key, recurrent_key = jax.random.split(key)
    return (
        glorot_uniform()(input_key, (input_size, width), dtype),
        glorot_uniform()(recurrent_key, (output_size, width), dtype),
    )


@cache
def rnn(hidden_size: int, *, activation: Callable[[Array], Array] = jnp.tanh) -> Cell:
    """The simple recurrent network of Elman (1990), `h' = activation(x·U + b + h·W)`.

    Args:
        hidden_size: H, the number of units.
        activation: Elementwise nonlinearity.

    Returns:
        A cell with `RNNParams` and `RNNState`.

    Raises:
        ValueError: If `hidden_size` is not a positive integer.
    """
    _positive("hidden_size", hidden_size)

    def init(key, input_size, dtype=jnp.float32):
        kernels = _kernels(key, input_size, hidden_size, hidden_size, dtype)
        return RNNParams(*kernels, jnp.zeros(hidden_size, dtype))

    def initial_state(params, batch_shape=()):
        return RNNState(zeros(params, batch_shape, hidden_size))

    def gate(weights, total, state):
        return RNNState(activation(total))

    return gated(gate, init, initial_state, summed=True)


@cache
def lstm(
    hidden_size: int,
    *,
    forget_bias: float = 1.0,
    activation: Callable[[Array], Array] = jnp.tanh,
    peephole: bool = False,
    projection_size: int | None = None,
    cell_clip: float | None = None,
) -> Cell:
    """Long short-term memory (Hochreiter & Schmidhuber, 1997; forget gate Gers et al., 2000).

        i = σ(x·Ui + h·Wi + bi [+ pi∘c])      how much of the candidate to write
        f = σ(x·Uf + h·Wf + bf [+ pf∘c])      how much of the old cell to keep
        g = tanh(x·Ug + h·Wg + bg)            the candidate
        c' = f∘c + i∘g
        o = σ(x·Uo + h·Wo + bo [+ po∘c'])     how much of the cell to show
        h' = o∘tanh(c') [·projection]

    Args:
        hidden_size: H, the number of memory cells.
        forget_bias: Initial bias of the forget gate (Jozefowicz et al., 2015); part of the
            parameters, never added in the forward pass, so that weights can be exchanged.
        activation: Nonlinearity of the candidate and of the output.
        peephole: Let the gates see the cell (Gers & Schmidhuber, 2000).
        projection_size: P, the size of a linear projection of the output (Sak et al., 2014).
        cell_clip: Keep the cell within ±cell_clip.

    Returns:
        A cell with `LSTMParams` and `LSTMState`.

    Raises:
        ValueError: If a size or `cell_clip` is not positive.
    """
    _positive("hidden_size", hidden_size)
    if projection_size is not None:
        _positive("projection_size", projection_size)
    if cell_clip is not None and not cell_clip > 0:
        raise ValueError(f"cell_clip must be positive, got {cell_clip}")
    output_size = projection_size or hidden_size

    def init(key, input_size, dtype=jnp.float32):
        kernel_key, projection_key = jax.random.split(key)
        bias = jnp.zeros(4 * hidden_size, dtype).at[hidden_size : 2 * hidden_size].set(forget_bias)
        return LSTMParams(
            *_kernels(kernel_key, input_size, output_size, 4 * hidden_size, dtype),
            bias,
            peephole=jnp.zeros((3, hidden_size), dtype) if peephole else None,
            projection=glorot_uniform()(projection_key, (hidden_size, output_size), dtype)
            if projection_size
            else None,
        )

    def initial_state(params, batch_shape=()):
        return LSTMState(
            zeros(params, batch_shape, output_size), zeros(params, batch_shape, hidden_size)
        )

    @pointwise
    def write(i, f, g, cell):
        return sigmoid(f) * cell + sigmoid(i) * activation(g)

    @pointwise
    def show(o, cell):
        return sigmoid(o) * activation(cell)

    def gate(weights, total, state):
        i, f, g, o = jnp.split(total, 4, axis=-1)
        if peephole:
            i = i + along(weights.peephole[0], i) * state.cell
            f = f + along(weights.peephole[1], f) * state.cell
        cell = write(i, f, g, state.cell)
        if cell_clip is not None:
            cell = jnp.clip(cell, -cell_clip, cell_clip)
        if peephole:
            o = o + along(weights.peephole[2], o) * cell
        return LSTMState(show(o, cell), cell)

    def projected_step(params, state, x):
        # The projection is a second product within the step, so this is no gate.
        total = affine(x, params.kernel, params.bias) + state.hidden @ params.recurrent_kernel
        state = gate(params, total, state)
        state = LSTMState(state.hidden @ params.projection, state.cell)
        return state, state.hidden

    if projection_size is not None:
        return Cell(init, initial_state, projected_step)
    plain = activation is jnp.tanh and not peephole and cell_clip is None
    return gated(gate, init, initial_state, summed=True)._replace(is_cudnn_lstm=plain)


@cache
def gru(hidden_size: int, *, reset_after: bool = True) -> Cell:
    """Gated recurrent unit (Cho et al., 2014).

        r = σ(x·Ur + h·Wr + br)               how much of the past the candidate sees
        z = σ(x·Uz + h·Wz + bz)               how much of the past to keep
        n = tanh(x·Un + bn + r∘(h·Wn + recurrent_bias))      reset_after, as in cuDNN and PyTorch
        n = tanh(x·Un + bn + (r∘h)·Wn)                       otherwise, as in the paper and TF1
        h' = (1 - z)∘n + z∘h

    Args:
        hidden_size: H, the number of units.
        reset_after: Whether the reset gate acts after the product with the past.

    Returns:
        A cell with `GRUParams` and `GRUState`.

    Raises:
        ValueError: If `hidden_size` is not a positive integer.
    """
    _positive("hidden_size", hidden_size)

    def init(key, input_size, dtype=jnp.float32):
        return GRUParams(
            *_kernels(key, input_size, hidden_size, 3 * hidden_size, dtype),
            jnp.zeros(3 * hidden_size, dtype),
            recurrent_bias=jnp.zeros(hidden_size, dtype) if reset_after else None,
        )

    def initial_state(params, batch_shape=()):
        return GRUState(zeros(params, batch_shape, hidden_size))

    @pointwise
    def update(r, z, n_drive, n_past, hidden):
        n = jnp.tanh(n_drive + sigmoid(r) * n_past)
        return n + sigmoid(z) * (hidden - n)

    def gate(weights, drive, product, state):
        r_drive, z_drive, n_drive = jnp.split(drive, 3, axis=-1)
        r_past, z_past, n_past = jnp.split(product, 3, axis=-1)
        n_past = n_past + along(weights.recurrent_bias, n_past)
        return GRUState(update(r_drive + r_past, z_drive + z_past, n_drive, n_past, state.hidden))

    def reset_before_step(params, state, x):
        # The reset stands inside the product, so this is no gate.
        rz_kernel, n_kernel = jnp.split(params.recurrent_kernel, [2 * hidden_size], axis=-1)
        drive = affine(x, params.kernel, params.bias)
        rz_drive, n_drive = jnp.split(drive, [2 * hidden_size], axis=-1)
        r, z = jnp.split(sigmoid(rz_drive + state.hidden @ rz_kernel), 2, axis=-1)
        n = jnp.tanh(n_drive + (r * state.hidden) @ n_kernel)
        state = GRUState(n + z * (state.hidden - n))
        return state, state.hidden

    return (
        gated(gate, init, initial_state)
        if reset_after
        else Cell(init, initial_state, reset_before_step)
    )


def sigmoid(x: Array) -> Array:
    """The logistic function, written so that XLA's vectorised tanh computes it."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


def _positive(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
