"""Flax Linen modules over cells.

Shapes: B batch (any number of axes), T time, I input features, P outputs of a cell.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import glorot_uniform
from jaxtyping import Array, Float, Int

from jaxrnn.cell import Cell, State
from jaxrnn.unroll import unroll


class RNN(nn.Module):
    """A recurrent layer: `jaxrnn.unroll` with the cell's parameters held by Flax.

    Attributes:
        cell: The recurrent cell.
        reverse: Read each row from its end to its start.
    """

    cell: Cell
    reverse: bool = False

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "*B T I"],
        *,
        lengths: Int[Array, "*B"] | None = None,
        initial_state: State | None = None,
    ) -> tuple[Float[Array, "*B T P"], State]:
        """Reads the inputs; arguments, result and errors are those of `jaxrnn.unroll`."""
        params = self.param("cell", self.cell.init, inputs.shape[-1], inputs.dtype)
        return unroll(
            self.cell,
            params,
            inputs,
            lengths=lengths,
            initial_state=initial_state,
            reverse=self.reverse,
        )


class Classifier(nn.Module):
    """Many to one: layers of a cell, and a linear readout of the last output.

    Attributes:
        cell: The recurrent cell of every layer.
        num_classes: C, the number of classes.
        num_layers: Layers on top of each other, each reading the outputs of the one below.
        bidirectional: Read in both directions and put the two outputs side by side.
    """

    cell: Cell
    num_classes: int
    num_layers: int = 1
    bidirectional: bool = False

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "*B T I"], lengths: Int[Array, "*B"] | None = None
    ) -> Float[Array, "*B C"]:
        """Returns logits `[*B, C]`; with `lengths`, of what each row says up to its length."""
        hidden = inputs
        for layer in range(self.num_layers):
            below = hidden
            hidden, _ = RNN(self.cell, name=f"layer_{layer}")(below, lengths=lengths)
            last = _last(hidden, lengths)
            if self.bidirectional:
                name = f"layer_{layer}_reverse"
                backward, _ = RNN(self.cell, reverse=True, name=name)(below, lengths=lengths)
                hidden = jnp.concatenate([hidden, backward], axis=-1)
                # A reversed layer has read the whole row when it stands at its first step.
                last = jnp.concatenate([last, backward[..., 0, :]], axis=-1)
        return nn.Dense(self.num_classes, kernel_init=glorot_uniform(), name="readout")(last)


def _last(outputs, lengths):
    """The output at each row's last step; zeros for a row of length 0."""
    if lengths is None:
        return outputs[..., -1, :]
    index = jax.lax.expand_dims(jnp.maximum(lengths - 1, 0), (lengths.ndim, lengths.ndim + 1))
    return jnp.take_along_axis(outputs, index, axis=-2)[..., 0, :]
