"""Flax Linen modules over cells: a layer, stacks of layers, and the models of the five forms.

Dropout and the regularisers of the recurrence draw from Flax's random stream "dropout". Where it is
not given, as at evaluation, there are none:

    model.apply(variables, x, rngs={"dropout": key})      training
    model.apply(variables, x)                             evaluation

Shapes: B batch (any number of axes), T time, I input features, P outputs of a cell, C classes,
K features of a code, F features drawn.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import glorot_uniform
from jaxtyping import Array, Float, Int, Num

from jaxrnn.cell import Cell, State, broadcast
from jaxrnn.regularize import Regularizer, dropout_mask
from jaxrnn.unroll import reverse_time, unroll


class RNN(nn.Module):
    """A recurrent layer in place of `flax.linen.RNN`, over `jaxrnn.unroll`.

    A call takes the same arguments, and the layer goes into `flax.linen.Bidirectional`. Different:
    outputs past a row's length are zero, a row of length 0 keeps its initial carry, the carry is
    the cell's state, as `LSTMState(hidden, cell)`, and there are no attributes that lift variables
    other than parameters.

    Attributes:
        cell: The recurrent cell.
        time_major: Whether time is the first axis.
        return_carry: Whether to return `(carry, outputs)` instead of the outputs.
        reverse: Read each row from its end to its start.
        keep_order: With `reverse`, let outputs stand where their inputs stand, not in the order
            in which they were made.
        unroll: Steps per iteration of the loop.
        learn_initial_state: Whether the carry before the first step is a parameter; it starts at
            the cell's own.
        regularizer: Noise between the steps, in training.
        memory: As in `jaxrnn.unroll`.
        truncate: As in `jaxrnn.unroll`.
        param_dtype: That of the parameters, to which inputs are cast; None is that of the inputs,
            or float32 if they are integers.
    """

    cell: Cell
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False
    unroll: int = 1
    learn_initial_state: bool = False
    regularizer: Regularizer | None = None
    memory: str | None = None
    truncate: int | None = None
    param_dtype: Any = None

    @nn.compact
    def __call__(
        self,
        inputs: Num[Array | np.ndarray, "..."],
        *,
        initial_carry: State | None = None,
        init_key: Array | None = None,
        seq_lengths: Int[Array | np.ndarray, "*B"] | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Float[Array, "..."] | tuple[State, Float[Array, "..."]]:
        """Reads the inputs.

        Args:
            inputs: `[*B, T, I]`, or `[T, *B, I]` with `time_major`.
            initial_carry: The state before the first step.
            init_key: Not used; cells start without chance.
            seq_lengths: Each row's length.
            return_carry: Overrides the attribute, as do the others.
            time_major: See above.
            reverse: See above.
            keep_order: See above.

        Returns:
            The outputs `[*B, T, P]` (or `[T, *B, P]`), with the last carry if asked for.

        Raises:
            ValueError: As `jaxrnn.unroll`.
        """
        del init_key
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order
        inputs, dtype = jnp.asarray(inputs), self.param_dtype
        if dtype is None:
            dtype = inputs.dtype if jnp.issubdtype(inputs.dtype, jnp.floating) else jnp.float32
        params = self.param("cell", self.cell.init, inputs.shape[-1], dtype)
        inputs = inputs.astype(dtype)
        if self.learn_initial_state and initial_carry is None:
            learned = self.param("initial_state", lambda _: self.cell.initial_state(params))
            batch = inputs.shape[1:-1] if time_major else inputs.shape[:-2]
            initial_carry = broadcast(learned, batch)
        outputs, carry = unroll(
            self.cell,
            params,
            inputs,
            initial_state=initial_carry,
            lengths=seq_lengths,
            reverse=reverse,
            time_major=time_major,
            memory=self.memory,
            truncate=self.truncate,
            unroll=self.unroll,
            regularizer=self.regularizer,
            key=dropout_key(self) if self.regularizer is not None else None,
        )
        if reverse and not keep_order:
            outputs = reverse_time(outputs, seq_lengths, time_major=time_major)
        with_carry = self.return_carry if return_carry is None else return_carry
        return (carry, outputs) if with_carry else outputs


def dropout_key(module: nn.Module) -> Array | None:
    """A key of the stream "dropout" if the caller gave one, which is what makes it training."""
    return module.make_rng("dropout") if module.has_rng("dropout") else None


Carry = tuple[State, ...]  # of each layer


class Stack(nn.Module):
    """Layers on top of each other, each reading the outputs of the one below.

    Attributes:
        cell: The recurrent cell of every layer.
        num_layers: How many.
        bidirectional: Read in both directions and put the two outputs side by side.
        dropout: Share of a layer's inputs dropped, from the second layer on, in training.
        residual: Add a layer's inputs to its outputs where their sizes agree.
        regularizer: Noise between the steps, in training.
        learn_initial_state: Whether states before the first step are parameters.
        truncate: As in `jaxrnn.unroll`.
    """

    cell: Cell
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float | Array | None = None
    residual: bool = False
    regularizer: Regularizer | None = None
    learn_initial_state: bool = False
    truncate: int | None = None

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "*B T I"],
        lengths: Int[Array | np.ndarray, "*B"] | None = None,
        *,
        initial_carry: Carry | None = None,
        return_carry: bool = False,
    ) -> Any:
        """Reads the inputs.

        Args:
            inputs: The sequences.
            lengths: Each row's length.
            initial_carry: The state of every layer before the first step, as an earlier call
                returned it; so sequences can be read piece by piece.
            return_carry: Whether to return `(carry, (outputs, last))`.

        Returns:
            The outputs of every step `[*B, T, P]`, zero past a row's length, and what the last
            layer says once it has read all `[*B, P]`: a forward layer at a row's last step, a
            backward one at its first.

        Raises:
            ValueError: If a stack that reads backwards is to carry its state, or as
                `jaxrnn.unroll`.
        """
        if self.bidirectional and (return_carry or initial_carry is not None):
            raise ValueError("bidirectional must be False where states are carried, got True")
        if lengths is not None:
            lengths = jnp.asarray(lengths).astype(jnp.int32)
        before = (None,) * self.num_layers if initial_carry is None else initial_carry

        def layer(name, hidden, reverse, start):
            rnn = RNN(
                self.cell,
                reverse=reverse,
                keep_order=True,
                learn_initial_state=self.learn_initial_state,
                regularizer=self.regularizer,
                truncate=self.truncate,
                name=name,
            )
            return rnn(hidden, seq_lengths=lengths, initial_carry=start, return_carry=True)

        # What lies past a row's end would be added to the outputs there.
        hidden = blank(inputs, lengths) if self.residual else inputs
        after = []
        for number in range(self.num_layers):
            if number and self.dropout is not None and self.has_rng("dropout"):
                key = self.make_rng("dropout")
                hidden = hidden * dropout_mask(key, hidden.shape, self.dropout, hidden.dtype)
            below = hidden
            carry, hidden = layer(f"layer_{number}", below, False, before[number])
            after.append(carry)
            if self.bidirectional:
                _, backward = layer(f"layer_{number}_reverse", below, True, None)
                hidden = jnp.concatenate([hidden, backward], axis=-1)
            if self.residual and hidden.shape == below.shape:
                hidden = hidden + below
        last = last_output(hidden, lengths)
        if self.bidirectional:
            half = last.shape[-1] // 2
            last = jnp.concatenate([last[..., :half], hidden[..., 0, half:]], axis=-1)
        return (tuple(after), (hidden, last)) if return_carry else (hidden, last)


def last_output(
    outputs: Float[Array, "*B T P"], lengths: Int[Array, "*B"] | None
) -> Float[Array, "*B P"]:
    """The output at each row's last step; zeros for a row of length 0."""
    if lengths is None:
        return outputs[..., -1, :]
    index = jax.lax.expand_dims(jnp.maximum(lengths - 1, 0), (lengths.ndim, lengths.ndim + 1))
    return jnp.take_along_axis(outputs, index, axis=-2)[..., 0, :]


class Classifier(nn.Module):
    """Many to one, or many to many in step: a stack and a linear readout.

    Attributes:
        cell: The recurrent cell of every layer.
        num_classes: C, the number of classes.
        num_layers: Layers on top of each other.
        bidirectional: Read in both directions.
        dropout: Share of a layer's inputs dropped, from the second layer on, in training.
        residual: Add a layer's inputs to its outputs where their sizes agree.
        regularizer: Noise between the steps, in training.
        learn_initial_state: Whether states before the first step are parameters.
        truncate: As in `jaxrnn.unroll`.
        every_step: Classify after every step what was read so far, instead of once at the end.
    """

    cell: Cell
    num_classes: int
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float | Array | None = None
    residual: bool = False
    regularizer: Regularizer | None = None
    learn_initial_state: bool = False
    truncate: int | None = None
    every_step: bool = False

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "*B T I"],
        lengths: Int[Array | np.ndarray, "*B"] | None = None,
        *,
        initial_carry: Carry | None = None,
        return_carry: bool = False,
    ) -> Any:
        """Classifies what was read up to each row's length.

        Args:
            inputs: The sequences.
            lengths: Each row's length.
            initial_carry: As in `Stack`.
            return_carry: Whether to return `(carry, logits)`.

        Returns:
            Logits `[*B, C]`, or with `every_step` `[*B, T, C]`.
        """
        stack = Stack(
            self.cell,
            self.num_layers,
            self.bidirectional,
            self.dropout,
            self.residual,
            self.regularizer,
            self.learn_initial_state,
            self.truncate,
            name="stack",
        )
        found = stack(inputs, lengths, initial_carry=initial_carry, return_carry=return_carry)
        carry, (outputs, last) = found if return_carry else (None, found)
        readout = nn.Dense(self.num_classes, kernel_init=glorot_uniform(), name="readout")
        logits = readout(outputs if self.every_step else last)
        return (carry, logits) if return_carry else logits


class Decoder(nn.Module):
    """One to many: a code is read at every step, and every step draws one row of a sequence.

    Attributes:
        cell: The recurrent cell.
        num_steps: T, the steps drawn.
        num_features: F, the features of each.
    """

    cell: Cell
    num_steps: int
    num_features: int

    @nn.compact
    def __call__(self, code: Float[Array, "*B K"]) -> Float[Array, "*B T F"]:
        """Returns logits of the rows; `jax.nn.sigmoid` of them is the drawing."""
        inputs = jnp.broadcast_to(
            code[..., None, :], (*code.shape[:-1], self.num_steps, code.shape[-1])
        )
        return nn.Dense(self.num_features, name="readout")(RNN(self.cell, name="layer")(inputs))


class EncoderDecoder(nn.Module):
    """Many to many: one network reads a sequence to its end, another draws what follows.

    Attributes:
        cell: The recurrent cell of both.
        num_steps: T', the steps drawn.
        num_features: F, the features of each.
    """

    cell: Cell
    num_steps: int
    num_features: int

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "*B T I"], lengths: Int[Array, "*B"] | None = None
    ) -> Float[Array, "*B S F"]:
        """Returns logits of the rows that follow what was read up to each row's length."""
        _, code = Stack(self.cell, name="encoder")(inputs, lengths)
        return Decoder(self.cell, self.num_steps, self.num_features, name="decoder")(code)


class Sketcher(nn.Module):
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
    """

    cell: Cell
    num_classes: int
    num_steps: int
    num_features: int
    style_size: int = 16

    def setup(self):
        """The parts."""
        self.encoder = Stack(self.cell)
        self.posterior = nn.Dense(2 * self.style_size)
        self.decoder = Decoder(self.cell, self.num_steps, self.num_features)

    def __call__(
        self, inputs: Float[Array, "*B T F"], labels: Int[Array, "*B"]
    ) -> tuple[Float[Array, "*B T F"], Float[Array, "*B"]]:
        """Reads the style of the inputs, adds the posterior's noise in training, and draws them.

        Returns:
            Logits of the rows, and how many nats of style were used (the Kullback-Leibler
            divergence from a standard normal).
        """
        _, read = self.encoder(inputs)
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


def blank(
    inputs: Float[Array, "*B T I"], lengths: Int[Array | np.ndarray, "*B"] | None
) -> Float[Array, "*B T I"]:
    """The inputs with zeros past each row's length."""
    if lengths is None:
        return inputs
    lengths = jnp.asarray(lengths).astype(jnp.int32)
    time = jnp.arange(inputs.shape[-2], dtype=lengths.dtype)
    read = jnp.expand_dims(time, range(lengths.ndim)) < lengths[..., None]
    return jnp.where(read[..., None], inputs, jnp.zeros_like(inputs))
