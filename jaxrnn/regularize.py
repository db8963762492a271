"""Recurrent regularization: zoneout, recurrent dropout, weight dropout.

Without a key nothing is dropped, as at evaluation.

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
    """Rates of recurrent regularization, in [0, 1); None is none. No gradient reaches a rate.

    Attributes:
        zoneout: The probability that a unit of the state keeps its old value (Krueger et al.,
            2017): one number for every leaf of the state, or one for each, as (hidden, cell) for
            an LSTM. Without a key the state is the mean of old and new. The outputs are those of
            the state under zoneout where they are the state (`Cell.outputs_state`).
        recurrent_dropout: The share of the hidden state that is dropped from the recurrent
            product; the rest is scaled up to make up for it. Gated cells only.
        tied: Whether the recurrent-dropout mask is the same at every step of a sequence, as in
            variational dropout (Gal & Ghahramani, 2016), or drawn anew at each. There is no
            default.
        weight_dropout: The share of the recurrent kernel that is zero, for all steps and examples
            (DropConnect, Wan et al., 2013, as in the AWD-LSTM of Merity et al., 2018).
    """

    zoneout: float | Array | tuple[float, ...] | None = None
    recurrent_dropout: float | Array | None = None
    tied: bool | None = None
    weight_dropout: float | Array | None = None


def _check(regularizer: Regularizer, cell: Cell, params: Params) -> None:
    """Raises ValueError if a rate is wrong or the regularizer not for this cell."""
    if regularizer.recurrent_dropout is not None and not isinstance(regularizer.tied, bool):
        raise ValueError(
            "regularizer.tied must be True (one mask for all steps) or False (one for each) "
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
            "regularizer.recurrent_dropout needs a cell made by jaxrnn.gated with a recurrent "
            "kernel, got one without"
        )
    if regularizer.weight_dropout is not None and not recurrent:
        raise ValueError("regularizer.weight_dropout needs params with a recurrent_kernel")
    if regularizer.zoneout is not None and cell.recurrence is not None:
        raise ValueError(
            "regularizer.zoneout needs a cell whose steps follow each other, "
            "got a linear recurrence"
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
        key: The random key; None, as at evaluation, draws nothing.
        regularizer: The regularizer, or None.
        cell: The cell.
        params: Its parameters.
        state: A state, for its shapes.
        time: T, the number of steps; may be a symbolic size without a regularizer.

    Returns:
        The parameters, under weight dropout; the recurrent-dropout mask; and the zoneout mask: for
        each leaf of the state `[T, *B, H]` ones and zeros, or without a key `[T]` probabilities.

    Raises:
        ValueError: If a rate is wrong or the regularizer not for this cell.
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
    if zoneout is None:
        return None
    leaves, structure = jax.tree.flatten(state)
    rates = zoneout if isinstance(zoneout, tuple) else (zoneout,) * len(leaves)
    if len(rates) != len(leaves):
        raise ValueError(
            f"regularizer.zoneout must be a number or {len(leaves)} of them, got {rates}"
        )

    def mask(number, leaf, rate):
        updated = 1.0 - lax.stop_gradient(rate)
        if key is None:
            return jnp.full(time, updated, leaf.dtype)
        own_key = jax.random.fold_in(key, number)
        return jax.random.bernoulli(own_key, updated, (time, *leaf.shape)).astype(leaf.dtype)

    return structure.unflatten(map(mask, range(len(leaves)), leaves, rates))


def dropout_mask(key: Array, shape: tuple[int, ...], share: float | Array, dtype) -> Array:
    """Zeros for the share that is dropped, else 1 / (1 - share); the share may be traced."""
    kept = 1.0 - lax.stop_gradient(share)
    keep = jax.random.bernoulli(key, kept, shape)
    return jnp.where(keep, jnp.asarray(1 / kept, dtype), jnp.zeros((), dtype))
