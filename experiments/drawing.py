"""Networks that draw a sequence row by row: one to many, and many to many.

Shapes: B batch (any number of axes), T time, I input features, K features of a code, F features
drawn, Z numbers of a style.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrnn import Cell
from jaxrnn.linen import RNN, Stack, dropout_key, last_output


class Decoder(nn.Module):
    """One to many: a code is read at every step, and every step draws one row of a sequence.

    Attributes:
        cell: The recurrent cell.
        num_steps: T, the steps drawn.
        num_features: F, the features of each.
        implementation: As in `jaxrnn.unroll`.
    """

    cell: Cell
    num_steps: int
    num_features: int
    implementation: str | None = None

    @nn.compact
    def __call__(self, code: Float[Array, "*B K"]) -> Float[Array, "*B T F"]:
        """Returns logits of the rows; `jax.nn.sigmoid` of them is the drawing."""
        inputs = jnp.broadcast_to(
            code[..., None, :], (*code.shape[:-1], self.num_steps, code.shape[-1])
        )
        layer = RNN(self.cell, implementation=self.implementation, name="layer")
        return nn.Dense(self.num_features, name="readout")(layer(inputs))


class EncoderDecoder(nn.Module):
    """Many to many: one network reads a sequence to its end, another draws what follows.

    Attributes:
        cell: The recurrent cell of both.
        num_steps: T', the steps drawn.
        num_features: F, the features of each.
        implementation: As in `jaxrnn.unroll`.
    """

    cell: Cell
    num_steps: int
    num_features: int
    implementation: str | None = None

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "*B T I"], seq_lengths: Any = None
    ) -> Float[Array, "*B S F"]:
        """Returns logits of the rows that follow what was read up to each example's length."""
        encoder = Stack(self.cell, implementation=self.implementation, name="encoder")
        code = last_output(encoder(inputs, seq_lengths), seq_lengths)
        decoder = Decoder(
            self.cell, self.num_steps, self.num_features, self.implementation, name="decoder"
        )
        return decoder(code)


class ConditionalVAE(nn.Module):
    """One to many with a style: a conditional variational autoencoder over sequences.

    Sohn et al., "Learning structured output representation using deep conditional generative
    models", 2015. A label and a random style are the code from which the rows are drawn; in
    training the style is read off the sequence that is to be drawn.

    Attributes:
        cell: The recurrent cell of encoder and decoder.
        num_classes: C, the number of labels.
        num_steps: T, the steps drawn.
        num_features: F, the features of each.
        style_size: Numbers in a style.
        implementation: As in `jaxrnn.unroll`.
    """

    cell: Cell
    num_classes: int
    num_steps: int
    num_features: int
    style_size: int = 16
    implementation: str | None = None

    def setup(self):
        """The parts."""
        self.encoder = Stack(self.cell, implementation=self.implementation)
        self.posterior = nn.Dense(2 * self.style_size)
        self.decoder = Decoder(self.cell, self.num_steps, self.num_features, self.implementation)

    def __call__(
        self, inputs: Float[Array, "*B T F"], labels: Int[Array, "*B"]
    ) -> tuple[Float[Array, "*B T F"], Float[Array, "*B"]]:
        """Reads the style of the inputs, adds the posterior's noise in training, and draws them.

        Returns:
            Logits of the rows, and how many nats of style were used (the Kullback-Leibler
            divergence from a standard normal).
        """
        read = last_output(self.encoder(inputs))
        label = jax.nn.one_hot(labels, self.num_classes, dtype=inputs.dtype)
        code = self.posterior(jnp.concatenate([read, label], axis=-1))
        mean, log_scale = jnp.split(code, 2, axis=-1)
        nats = 0.5 * (mean**2 + jnp.exp(2 * log_scale) - 1) - log_scale
        key = dropout_key(self)
        style = mean
        if key is not None:
            style = mean + jnp.exp(log_scale) * jax.random.normal(key, mean.shape, mean.dtype)
        return self.draw(labels, style), nats.sum(-1)

    def draw(self, labels: Int[Array, "*B"], style: Float[Array, "*B Z"]) -> Float[Array, "*B T F"]:
        """Logits of the rows for labels in the given styles."""
        label = jax.nn.one_hot(labels, self.num_classes, dtype=style.dtype)
        return self.decoder(jnp.concatenate([label, style], axis=-1))
