"""Regularisers of the recurrence: zoneout, recurrent dropout, weight dropout.

They are noise on the way from step to step; without a key there is none, as at evaluation.

Shapes: B batch (any number of axes), T time, H hidden units, G gates.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxrnn.arguments import rate
from jaxrnn.cell import Cell, Params, State


class Regularizer(NamedTuple):
    """Which noise, as probabilities in [0, 1); None is none. No gradient reaches a probability.

    Attributes:
        zoneout: How likely a unit keeps its old value (Krueger et al., 2017); one number for
            every leaf of the state, or one for each, as (hidden, cell) for an LSTM. Without a key
            the state is the mean of old and new.
        recurrent_dropout: How likely the recurrent product does not see a unit, the others scaled
            up to make up for it. Gated cells only.
        tied: Whether that mask is the same at every step of a sequence, as in variational dropout
            (Gal & Ghahramani, 2016), or drawn anew at each. There is no default.
        weight_dropout: How likely an entry of the recurrent kernel is zero, for all steps and rows
            (DropConnect, Wan et al., 2013, as in the AWD-LSTM of Merity et al., 2018).
    """

    zoneout: float | Array | tuple[float, ...] | None = None
    recurrent_dropout: float | Array | None = None
    tied: bool | None = None
    weight_dropout: float | Array | None = None


def check(regularizer: Regularizer, cell: Cell, params: Params) -> None:
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


def drop_weights(key: Array, params: Params, share: float | Array) -> Params:
    """The parameters with entries of the recurrent kernel dropped, the others scaled up."""
    kernel = params.recurrent_kernel
    return params._replace(
        recurrent_kernel=kernel * dropout_mask(key, kernel.shape, share, kernel.dtype)
    )


def noise(
    key: Array | None, regularizer: Regularizer, state: State, time: int
) -> tuple[Float[Array, "T *B H"] | None, State | None]:
    """The noise of every step.

    Args:
        key: Where it is drawn from; None at evaluation.
        regularizer: Which.
        state: A state, for its shapes.
        time: T, the number of steps.

    Returns:
        By what the recurrent product sees the hidden state multiplied; and how much of each leaf
        of the state is renewed, `[T, *B, H]` zeros and ones, or at evaluation `[T]` shares.
    """
    drop, mix = None, None
    leaves, treedef = jax.tree.flatten(state)
    if regularizer.zoneout is not None:
        rates = regularizer.zoneout
        rates = rates if isinstance(rates, tuple) else (rates,) * len(leaves)
        if len(rates) != len(leaves):
            raise ValueError(
                f"regularizer.zoneout must be a number or {len(leaves)} of them, got {rates}"
            )
        mix = []
        for i, (leaf, value) in enumerate(zip(leaves, rates, strict=True)):
            renewed = 1.0 - lax.stop_gradient(value)
            if key is None:
                mix.append(jnp.full(time, renewed, leaf.dtype))
            else:
                keep = jax.random.bernoulli(
                    jax.random.fold_in(key, i), renewed, (time, *leaf.shape)
                )
                mix.append(keep.astype(leaf.dtype))
        mix = treedef.unflatten(mix)
    if regularizer.recurrent_dropout is not None and key is not None:
        hidden, steps = leaves[0], 1 if regularizer.tied else time
        shape = (steps, *hidden.shape)
        mask_key = jax.random.fold_in(key, len(leaves))
        mask = dropout_mask(mask_key, shape, regularizer.recurrent_dropout, hidden.dtype)
        drop = jnp.broadcast_to(mask, (time, *hidden.shape))
    return drop, mix


def dropout_mask(key: Array, shape: tuple[int, ...], share: float | Array, dtype) -> Array:
    """Zeros for the share that is dropped, else 1 / (1 - share); the share may be traced."""
    kept = 1.0 - lax.stop_gradient(share)
    keep = jax.random.bernoulli(key, kept, shape)
    return jnp.where(keep, jnp.asarray(1 / kept, dtype), jnp.zeros((), dtype))
