"""The forward and the backward loop over time of "states", as XLA loops.

Shapes: N examples, T time, H hidden units.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxrnn.backends.elementwise import BackwardInputs, ForwardInputs, Step, split, tiles
from jaxrnn.cell import product


def forward(
    given: ForwardInputs, *, step: Step, save: bool, unroll: int = 1
) -> tuple[list[Array], list[Array]]:
    """Runs all steps.

    Args:
        given: The inputs.
        step: The elementwise part of a step.
        save: Whether to return the states of all steps.
        unroll: The number of steps per iteration.

    Returns:
        The leaves of the states after each step `[T, N, H]`, without `save` only the first leaf,
        which is the output; and the leaves of the last state `[N, H]`.
    """
    weights, gates = tiles(given.weights, given.start[0]), len(step.gate.names)

    def body(state, now):
        drive, masks = now
        now = step.now(masks, state[0].shape, resets=bool(given.reset))
        before, hidden = step.before(state, given.reset, now)
        products = None
        if given.kernel is not None:
            products = split(product(hidden, given.kernel), gates)
        after = step.after(weights, split(drive, gates), products, before, now)
        return after, after if save else after[:1]

    last, sequences = lax.scan(body, list(given.start), (given.drive, given.masks), unroll=unroll)
    return sequences, last


def backward(
    given: BackwardInputs, *, step: Step, resets: bool, unroll: int = 1
) -> tuple[list[Array], list[Array], list[Array], list[Array]]:
    """Computes the gradients of all steps, from the last to the first.

    Args:
        given: The inputs.
        step: The elementwise part of a step.
        resets: Whether there are resets.
        unroll: The number of steps per iteration.

    Returns:
        The gradients of the leaves of the gate's parameters `[H]`, of the gate's arguments
        `[T, N, G·H]`, of the state before the first step `[N, H]`, and of the reset state `[N, H]`
        (empty without resets).
    """
    weights = tiles(given.weights, given.d_state[0])

    def body(carry, now):
        (d_hidden, *others), sums = carry
        arguments, before, d_output, masks = now
        now = step.now(masks, d_hidden.shape, resets=resets)
        d_after = [d_hidden + d_output, *others]
        d_weights, d_arguments, d_before = step.gradient(
            weights, step.split(arguments), before, d_after, now
        )
        d_hidden = None
        if given.kernel is not None:
            d_products = jnp.concatenate(step.of_products(d_arguments), axis=-1)
            d_hidden = product(d_products, given.kernel)
        d_before, d_reset = step.before_reset(d_before, d_hidden, now)
        sums = jax.tree.map(jnp.add, sums, [*d_weights, *d_reset])
        return (d_before, sums), [jnp.concatenate(d, axis=-1) for d in d_arguments]

    zeros = jax.tree.map(jnp.zeros_like, [*weights, *(given.d_state if resets else [])])
    (d_start, sums), d_arguments = lax.scan(
        body,
        (list(given.d_state), zeros),
        (list(given.arguments), list(given.before), given.d_outputs, given.masks),
        reverse=True,
        unroll=unroll,
    )
    d_weights, d_reset = sums[: len(weights)], sums[len(weights) :]
    return [leaf.sum(0) for leaf in d_weights], d_arguments, d_start, d_reset
