"""Recurrent regularization: zoneout, recurrent dropout and weight dropout.

Shapes: B batch (any number of axes), T time, H hidden units, G gates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxrnn.arguments import rate
from jaxrnn.cell import Cell, Params, State


class Regularizer(NamedTuple):
    """Rates of recurrent regularization, for the argument `regularizer` of `jaxrnn.unroll`.

    Every rate is a number in [0, 1), possibly traced, or None to disable that regularization. No
    gradient flows to a rate. Masks are drawn only if `unroll` receives a key. Without a key, as at
    evaluation, there is no dropout, and zoneout takes the expected value.

    Attributes:
        zoneout: The probability that a unit of the state keeps its old value (Krueger et al.,
            2017), either one number for all leaves of the state or a tuple with one per leaf, such
            as (hidden, cell) for an LSTM. Without a key the state is the mean of the old and the
            new value, weighted by this probability. If the outputs are the state
            (`Cell.outputs_state`), they are the state after zoneout.
        recurrent_dropout: The dropout rate of the hidden state where it enters the recurrent
            product. The remaining units are divided by one minus the rate. For gated cells only.
        tied: Whether all steps of a sequence share one recurrent-dropout mask, as in variational
            dropout (Gal & Ghahramani, 2016), rather than drawing a new mask at each step. Required
            with `recurrent_dropout`.
        weight_dropout: The dropout rate of the recurrent kernel (DropConnect, Wan et al., 2013, as
            in the AWD-LSTM of Merity et al., 2018). All steps and examples share one mask. The
            remaining weights are divided by one minus the rate.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxrnn
        >>> cell, inputs = jaxrnn.lstm(64), jnp.ones((8, 28, 28))
        >>> params = cell.init(jax.random.key(0), 28)
        >>> regularizer = jaxrnn.Regularizer(zoneout=(0.05, 0.5))  # of h and c
        >>> outputs, _ = jaxrnn.unroll(
        ...     cell, params, inputs, regularizer=regularizer, key=jax.random.key(1)
        ... )
        >>> outputs.shape
        (8, 28, 64)
    """

    zoneout: float | Array | tuple[float, ...] | None = None
    recurrent_dropout: float | Array | None = None
    tied: bool | None = None
    weight_dropout: float | Array | None = None


def _check(regularizer: Regularizer, cell: Cell, params: Params) -> None:
    """Raises ValueError if a rate is wrong or the cell does not support the regularizer."""
    if regularizer.recurrent_dropout is not None and not isinstance(regularizer.tied, bool):
        raise ValueError(
            "regularizer.tied must be True (one mask for all steps) or False (one mask per step) "
            f"with recurrent_dropout, got {regularizer.tied!r}"
        )
    rates = regularizer._replace(tied=None)._asdict()
    if isinstance(regularizer.zoneout, tuple):
        for value in rates.pop("zoneout"):
            rate("regularizer.zoneout", value)
    for name, value in rates.items():
        if value is not None:
            rate(f"regularizer.{name}", value)
    recurrent = getattr(params, "recurrent_kernel", None) is not None
    if regularizer.recurrent_dropout is not None and (cell.gate is None or not recurrent):
        raise ValueError(
            "regularizer.recurrent_dropout needs a cell made by jaxrnn.gated with a "
            f"recurrent kernel, got {'a cell with its own step' if recurrent else 'none'}"
        )
    if regularizer.weight_dropout is not None and not recurrent:
        raise ValueError(
            "regularizer.weight_dropout needs params with a recurrent_kernel, "
            f"got {type(params).__name__}"
        )
    if regularizer.zoneout is not None and cell.recurrence is not None:
        raise ValueError(
            "regularizer.zoneout must be None for a cell made by jaxrnn.linear, "
            f"got {regularizer.zoneout!r}"
        )


def regularize(
    key: Array | None,
    regularizer: Regularizer | None,
    cell: Cell,
    params: Params,
    state: State,
    time: Any,
) -> tuple[Params, Float[Array, "T *B H"] | None, State | None]:
    """Draws the masks of a sequence.

    Args:
        key: The random key. If None, as at evaluation, nothing is drawn.
        regularizer: The regularizer, or None.
        cell: The cell.
        params: The parameters of the cell.
        state: A state of the cell, used for its shapes and dtypes.
        time: T, the number of steps. May be a symbolic size if there is no regularizer.

    Returns:
        The parameters after weight dropout, the recurrent-dropout mask or None, and the zoneout
        mask or None. The zoneout mask has the structure of the state. Its leaves are zeros and ones
        `[T, *B, H]`, or without a key probabilities `[T]`.

    Raises:
        ValueError: If a rate is wrong or the cell does not support the regularizer.
    """
    if regularizer is None:
        return params, None, None
    _check(regularizer, cell, params)
    if key is not None and regularizer.weight_dropout is not None:
        key, weight_key = jax.random.split(key)
        kernel = params.recurrent_kernel
        mask = dropout_mask(weight_key, kernel.shape, regularizer.weight_dropout, kernel.dtype)
        params = params._replace(recurrent_kernel=kernel * mask)
    dropout = None
    if key is not None and regularizer.recurrent_dropout is not None:
        hidden, *others = jax.tree.leaves(state)
        shape = (1 if regularizer.tied else time, *hidden.shape)
        own_key = jax.random.fold_in(key, 1 + len(others))
        dropout = dropout_mask(own_key, shape, regularizer.recurrent_dropout, hidden.dtype)
        dropout = jnp.broadcast_to(dropout, (time, *hidden.shape))
    return params, dropout, _zoneout_mask(key, regularizer.zoneout, state, time)


def _zoneout_mask(key, zoneout, state, time):
    """Draws the zoneout mask, or returns its expected value without a key."""
    if zoneout is None:
        return None
    leaves, structure = jax.tree.flatten(state)
    rates = zoneout if isinstance(zoneout, tuple) else (zoneout,) * len(leaves)
    if len(rates) != len(leaves):
        raise ValueError(
            f"regularizer.zoneout must be a number or a tuple of length {len(leaves)}, one number "
            f"per leaf of the state, got {rates}"
        )

    def mask(number, leaf, rate):
        updated = 1.0 - lax.stop_gradient(rate)
        if key is None:
            return jnp.full(time, updated, leaf.dtype)
        own_key = jax.random.fold_in(key, number)
        return jax.random.bernoulli(own_key, updated, (time, *leaf.shape)).astype(leaf.dtype)

    return structure.unflatten(map(mask, range(len(leaves)), leaves, rates))


def dropout_mask(key: Array, shape: tuple[int, ...], share: float | Array, dtype) -> Array:
    """Draws a mask: 0 with probability `share`, which may be traced, otherwise 1 / (1 - share)."""
    kept = 1.0 - lax.stop_gradient(share)
    keep = jax.random.bernoulli(key, kept, shape)
    return jnp.where(keep, jnp.asarray(1 / kept, dtype), jnp.zeros((), dtype))
