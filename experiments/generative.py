"""Networks that generate an image row by row: one to many, and many to many.

Shapes: B batch (any number of axes), T input time steps, S generated time steps, I input features,
F output features, K features of a code, Z dimensions of a style.
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
    """One to many: reads the same code at every step and generates one row per step.

    Attributes:
        cell: The recurrent cell.
        num_steps: S, the number of steps to generate.
        num_features: F, the number of features of each step.
        implementation: As in `jaxrnn.unroll`.
    """

    cell: Cell
    num_steps: int
    num_features: int
    implementation: str | None = None

    @nn.compact
    def __call__(self, code: Float[Array, "*B K"]) -> Float[Array, "*B S F"]:
        """Returns the logits of the rows; `jax.nn.sigmoid` of them is the image."""
        inputs = jnp.broadcast_to(
            code[..., None, :], (*code.shape[:-1], self.num_steps, code.shape[-1])
        )
        layer = RNN(self.cell, implementation=self.implementation, name="layer")
        return nn.Dense(self.num_features, name="readout")(layer(inputs))


class EncoderDecoder(nn.Module):
    """Many to many: an encoder reads a sequence, a decoder generates what follows it.

    Attributes:
        cell: The recurrent cell of both.
        num_steps: S, the number of steps to generate.
        num_features: F, the number of features of each step.
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
        """Returns the logits of the rows that follow each example's last step."""
        encoder = Stack(self.cell, implementation=self.implementation, name="encoder")
        code = last_output(encoder(inputs, seq_lengths), seq_lengths)
        decoder = Decoder(
            self.cell, self.num_steps, self.num_features, self.implementation, name="decoder"
        )
        return decoder(code)


class ConditionalVAE(nn.Module):
    """One to many with a style: a conditional variational autoencoder over sequences.

    Sohn et al., "Learning structured output representation using deep conditional generative
    models", 2015. The decoder generates a sequence from its label and a latent variable, the style.
    The encoder gives the posterior of the style given the sequence and its label; the prior is a
    standard normal.

    Attributes:
        cell: The recurrent cell of encoder and decoder.
        num_classes: C, the number of labels.
        num_steps: T, the number of steps.
        num_features: F, the number of features of each step.
        style_size: Z, the dimensions of the style.
        implementation: As in `jaxrnn.unroll`.
    """

    cell: Cell
    num_classes: int
    num_steps: int
    num_features: int
    style_size: int = 16
    implementation: str | None = None

    def setup(self):
        """Creates the encoder, the posterior and the decoder."""
        self.encoder = Stack(self.cell, implementation=self.implementation)
        self.posterior = nn.Dense(2 * self.style_size)
        self.decoder = Decoder(self.cell, self.num_steps, self.num_features, self.implementation)

    def __call__(
        self, inputs: Float[Array, "*B T F"], labels: Int[Array, "*B"]
    ) -> tuple[Float[Array, "*B T F"], Float[Array, "*B"]]:
        """Reconstructs the inputs from the posterior's mean, in training from a sample of it.

        Returns:
            The logits of the rows, and the Kullback-Leibler divergence of the posterior from the
            prior in nats.
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
        """Returns the logits of the rows, given labels and styles."""
        label = jax.nn.one_hot(labels, self.num_classes, dtype=style.dtype)
        return self.decoder(jnp.concatenate([label, style], axis=-1))
