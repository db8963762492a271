"""The kernels' work as a loop of XLA, where no kernel runs: on a CPU, and where one has no room.

Shapes: N examples, T time, H hidden units.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxrnn.backends.pallas.elementwise import BackwardInputs, ForwardInputs, Step, split, tiles
from jaxrnn.cell import product


def forward(given: ForwardInputs, *, step: Step, save: bool) -> tuple[list[Array], list[Array]]:
    """Runs all steps; see `jaxrnn.backends.pallas.tpu.forward`."""
    weights = tiles(given.weights, given.start[0])

    def multiply(hidden):
        return split(product(hidden, given.kernel), len(step.gate.names))

    def body(state, now):
        drive, masks = now
        after = step.forward(
            weights,
            split(drive, len(step.gate.names)),
            None if given.kernel is None else multiply,
            state,
            given.reset,
            step.now(masks, state[0].shape, resets=bool(given.reset)),
        )
        return after, after if save else after[:1]

    last, sequences = lax.scan(body, list(given.start), (given.drive, given.masks))
    return sequences, last


def backward(
    given: BackwardInputs, *, step: Step, resets: bool
) -> tuple[list[Array], list[Array], list[Array], list[Array]]:
    """Runs all steps backwards; see `jaxrnn.backends.pallas.tpu.backward`."""
    weights = tiles(given.weights, given.d_state[0])

    def multiply(d_products):
        return product(jnp.concatenate(d_products, axis=-1), given.kernel)

    def body(carry, now):
        (d_hidden, *others), sums = carry
        arguments, before, d_output, masks = now
        d_weights, d_arguments, d_before, d_reset = step.backward(
            weights,
            step.split(arguments),
            None if given.kernel is None else multiply,
            before,
            [d_hidden + d_output, *others],
            step.now(masks, d_hidden.shape, resets=resets),
        )
        sums = jax.tree.map(jnp.add, sums, [*d_weights, *d_reset])
        return (d_before, sums), [jnp.concatenate(d, axis=-1) for d in d_arguments]

    zeros = jax.tree.map(jnp.zeros_like, [*weights, *(given.d_state if resets else [])])
    (d_start, sums), d_arguments = lax.scan(
        body,
        (list(given.d_state), zeros),
        (list(given.arguments), list(given.before), given.d_outputs, given.masks),
        reverse=True,
    )
    d_weights, d_reset = sums[: len(weights)], sums[len(weights) :]
    return [leaf.sum(0) for leaf in d_weights], d_arguments, d_start, d_reset
