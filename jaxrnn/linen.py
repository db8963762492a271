"""Flax Linen modules over cells: a layer, stacks of layers, and a classifier.

Dropout and recurrent regularization draw from Flax's random stream "dropout". Where it is not
given, as at evaluation, there is none:

    model.apply(variables, x, rngs={"dropout": key})      training
    model.apply(variables, x)                             evaluation

Shapes: B batch (any number of axes), T time, I input features, P outputs of a cell, C classes.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import glorot_uniform
from jaxtyping import Array, Float, Int, Num

from jaxrnn.arguments import as_dict as as_dict
from jaxrnn.arguments import as_named, check_lengths, check_params, describe, rate
from jaxrnn.cell import Cell, State, broadcast
from jaxrnn.regularize import Regularizer, dropout_mask
from jaxrnn.unroll import reverse_time, unroll


class RNN(nn.Module):
    """A recurrent layer in place of `flax.linen.RNN`, over `jaxrnn.unroll`.

    A call takes the same arguments, and the layer goes into `flax.linen.Bidirectional`. Different:
    outputs past an example's length are zero, an example of length 0 keeps its initial carry, the
    carry is the cell's state, as `LSTMState(hidden, cell)`, and there are no attributes that lift
    variables other than parameters. The parameters are nested dicts of arrays, `cell/kernel`,
    `cell/recurrent_kernel`, `cell/bias`, … .

    Attributes:
        cell: The recurrent cell.
        time_major: Whether time is the first axis.
        return_carry: Whether to return `(carry, outputs)` instead of the outputs.
        reverse: Read each example from its end to its start.
        keep_order: With `reverse`, let outputs stand where their inputs stand, not in the order
            in which they were made.
        unroll: Steps per iteration of the loop.
        learn_initial_state: Whether the carry before the first step is a parameter; it starts at
            the cell's own.
        regularizer: Recurrent regularization, in training.
        implementation: As in `jaxrnn.unroll`.
        memory: As in `jaxrnn.unroll`.
        truncate: As in `jaxrnn.unroll`.
        dtype: The dtype of the operands of the matrix products, as in `jaxrnn.unroll`.
        param_dtype: The dtype of the parameters, and so of the carry and the outputs, unless the
            cell keeps its state wider, as the LRU does.
    """

    cell: Cell
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False
    unroll: int = 1
    learn_initial_state: bool = False
    regularizer: Regularizer | None = None
    implementation: str | None = None
    memory: str | None = None
    truncate: int | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        inputs: Num[Array | np.ndarray, "..."],
        *,
        initial_carry: State | None = None,
        init_key: Array | None = None,
        seq_lengths: Any = None,
        resets: Any = None,
        reset_state: State | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Float[Array, "..."] | tuple[State, Float[Array, "..."]]:
        """Reads the inputs.

        Args:
            inputs: `[*B, T, I]`, or `[T, *B, I]` with `time_major`.
            initial_carry: The state before the first step.
            init_key: Ignored: the initial carry is deterministic.
            seq_lengths: `[*B]` integers, each example's length.
            resets: Booleans shaped as the inputs without their features. Where True, the carry
                becomes `reset_state` before the step.
            reset_state: The state that a reset puts in place; None takes the learned initial state,
                if there is one, else the cell's own.
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
        inputs = jnp.asarray(inputs)
        if jnp.issubdtype(inputs.dtype, jnp.integer):
            inputs = inputs.astype(self.param_dtype)
        # Nested dicts, which the tools of Flax know their way in, as with any module.
        params = self.param(
            "cell", lambda key: as_dict(self.cell.init(key, inputs.shape[-1], self.param_dtype))
        )
        if self.learn_initial_state:
            named = check_params(self.cell.init, params, inputs.shape[-1])
            state = self.cell.initial_state(named)
            learned = as_named(state, self.param("initial_state", lambda _: as_dict(state)))
            batch = inputs.shape[1:-1] if time_major else inputs.shape[:-2]
            learned = broadcast(learned, batch)
            initial_carry = learned if initial_carry is None else initial_carry
            reset_state = learned if reset_state is None else reset_state
        outputs, carry = unroll(
            self.cell,
            params,
            inputs,
            initial_state=initial_carry,
            lengths=seq_lengths,
            resets=resets,
            reset_state=reset_state,
            reverse=reverse,
            time_major=time_major,
            dtype=self.dtype,
            implementation=self.implementation,
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


# Of each layer its state, or if it is bidirectional (forward, backward).
Carry = tuple[State, ...] | tuple[tuple[State, State], ...]


class Stack(nn.Module):
    """Layers on top of each other, each reading the outputs of the one below.

    Attributes:
        cell: The recurrent cell of every layer.
        num_layers: The number of layers.
        bidirectional: Read in both directions and put the two outputs side by side.
        dropout: The share of a layer's inputs dropped, from the second layer on, in training; a
            number in [0, 1).
        residual: Add a layer's inputs to its outputs where their sizes agree.
        regularizer: Recurrent regularization, in training.
        learn_initial_state: Whether states before the first step are parameters.
        truncate: As in `jaxrnn.unroll`.
        implementation: As in `jaxrnn.unroll`.
        memory: As in `jaxrnn.unroll`.
        dtype: As in `RNN`.
        param_dtype: As in `RNN`.
    """

    cell: Cell
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float | Array | None = None
    residual: bool = False
    regularizer: Regularizer | None = None
    learn_initial_state: bool = False
    truncate: int | None = None
    implementation: str | None = None
    memory: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        inputs: Num[Array | np.ndarray, "*B T I"],
        lengths: Any = None,
        *,
        initial_carry: Carry | None = None,
        return_carry: bool = False,
        resets: Any = None,
        reset_state: Carry | None = None,
    ) -> Any:
        """Reads the inputs.

        Args:
            inputs: The sequences.
            lengths: `[*B]` integers, each example's length.
            initial_carry: The state of every layer before the first step, as an earlier call
                returned it, so that sequences can be read piece by piece; of a bidirectional layer
                a pair of states, forward and backward.
            return_carry: Whether to return `(carry, (outputs, last))`.
            resets: Booleans `[*B, T]`; see `RNN`.
            reset_state: The states that a reset puts in place, as `initial_carry`.

        Returns:
            The outputs of every step `[*B, T, P]`, zero past an example's length, and the last
            layer's output after it has read the whole example `[*B, P]`: a forward layer's at the
            last step, a backward layer's at the first; zero for an example without steps.

        Raises:
            ValueError: As `jaxrnn.unroll`, or if `dropout` is not in [0, 1), or a carry not one
                state a layer and direction.
        """
        check_rate("dropout", self.dropout)
        *batch_shape, time, _ = inputs.shape
        lengths = check_lengths(lengths, tuple(batch_shape), time)
        starts = self._by_layer("initial_carry", initial_carry)
        fresh = self._by_layer("reset_state", reset_state)

        def layer(name, hidden, reverse, start, reset_state):
            rnn = RNN(
                self.cell,
                reverse=reverse,
                keep_order=True,
                learn_initial_state=self.learn_initial_state,
                regularizer=self.regularizer,
                implementation=self.implementation,
                memory=self.memory,
                truncate=self.truncate,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=name,
            )
            return rnn(
                hidden,
                seq_lengths=lengths,
                initial_carry=start,
                resets=resets,
                reset_state=reset_state,
                return_carry=True,
            )

        # What lies past an example's end would be added to the outputs there.
        hidden = blank(inputs, lengths) if self.residual else jnp.asarray(inputs)
        after = []
        for number in range(self.num_layers):
            if number:
                hidden = dropout(self, hidden, self.dropout)
            below = hidden
            carry, hidden = layer(
                f"layer_{number}", below, False, starts[number][0], fresh[number][0]
            )
            if self.bidirectional:
                backward_carry, backward = layer(
                    f"layer_{number}_reverse", below, True, starts[number][1], fresh[number][1]
                )
                carry = carry, backward_carry
                hidden = jnp.concatenate([hidden, backward], axis=-1)
            after.append(carry)
            if self.residual and hidden.shape == below.shape:
                hidden = hidden + below.astype(hidden.dtype)
        last = last_output(hidden, lengths)
        if self.bidirectional and time:
            half = last.shape[-1] // 2
            last = jnp.concatenate([last[..., :half], hidden[..., 0, half:]], axis=-1)
        return (tuple(after), (hidden, last)) if return_carry else (hidden, last)

    def _by_layer(self, name: str, carry: Carry | None) -> list[tuple[Any, ...]]:
        """Of each layer the states of its directions, or None."""
        directions = 1 + self.bidirectional
        if carry is None:
            return [(None,) * directions] * self.num_layers
        pairs = isinstance(carry, (tuple, list)) and [
            state if self.bidirectional else (state,) for state in carry
        ]
        # A state is a tuple too, but one that has fields.
        if (
            not pairs
            or len(pairs) != self.num_layers
            or hasattr(carry, "_fields")
            or any(
                not isinstance(pair, (tuple, list))
                or len(pair) != directions
                or hasattr(pair, "_fields")
                for pair in pairs
            )
        ):
            each = "a pair of states (forward, backward)" if self.bidirectional else "a state"
            raise ValueError(
                f"{name} must be a tuple with {each} for each of {self.num_layers} layers, "
                f"got {describe(carry)}"
            )
        return [tuple(pair) for pair in pairs]


def dropout(module: nn.Module, hidden: Array, share: float | Array | None) -> Array:
    """Drops a share of the entries in training; the share may be traced, as Flax's may not."""
    key = None if share is None else dropout_key(module)
    if key is None:
        return hidden
    return hidden * dropout_mask(key, hidden.shape, share, hidden.dtype)


def check_rate(name: str, value: Any) -> None:
    """Raises ValueError if the value is neither None nor in [0, 1)."""
    if value is not None:
        rate(name, value)


def readout(model: Any, hidden: Array) -> Array:
    """The logits of a classifier: a linear layer `readout` with its `num_classes` and dtypes."""
    dense = nn.Dense(
        model.num_classes,
        dtype=model.dtype,
        param_dtype=model.param_dtype,
        kernel_init=glorot_uniform(),
        name="readout",
    )
    return dense(hidden).astype(hidden.dtype)


def last_output(
    outputs: Float[Array, "*B T P"], lengths: Int[Array, "*B"] | None
) -> Float[Array, "*B P"]:
    """The output at each example's last step; zeros for an example of length 0."""
    if not outputs.shape[-2]:
        return jnp.zeros((*outputs.shape[:-2], outputs.shape[-1]), outputs.dtype)
    if lengths is None:
        return outputs[..., -1, :]
    index = jax.lax.expand_dims(jnp.maximum(lengths - 1, 0), (lengths.ndim, lengths.ndim + 1))
    return jnp.take_along_axis(outputs, index, axis=-2)[..., 0, :]


class Classifier(nn.Module):
    """Many to one, or many to many in step: a `Stack` and a linear readout.

    Attributes:
        cell: As in `Stack`, as all but the next and the last.
        num_classes: C, the number of classes.
        num_layers: See `Stack`.
        bidirectional: See `Stack`.
        dropout: See `Stack`.
        residual: See `Stack`.
        regularizer: See `Stack`.
        learn_initial_state: See `Stack`.
        truncate: See `Stack`.
        implementation: See `Stack`.
        memory: See `Stack`.
        dtype: See `Stack`; also of the readout's product.
        param_dtype: See `Stack`; also of the readout.
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
    implementation: str | None = None
    memory: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32
    every_step: bool = False

    @nn.compact
    def __call__(
        self,
        inputs: Num[Array | np.ndarray, "*B T I"],
        lengths: Any = None,
        *,
        initial_carry: Carry | None = None,
        return_carry: bool = False,
        resets: Any = None,
        reset_state: Carry | None = None,
    ) -> Any:
        """Classifies what was read up to each example's length.

        Args:
            inputs: The sequences.
            lengths: `[*B]` integers, each example's length.
            initial_carry: As in `Stack`.
            return_carry: Whether to return `(carry, logits)`.
            resets: As in `Stack`.
            reset_state: As in `Stack`.

        Returns:
            Logits `[*B, C]`, or with `every_step` `[*B, T, C]`, in the dtype of the parameters.
        """
        shared = {field: getattr(self, field) for field in _STACK_FIELDS}
        carry, (outputs, last) = Stack(**shared, name="stack")(
            inputs,
            lengths,
            initial_carry=initial_carry,
            return_carry=True,
            resets=resets,
            reset_state=reset_state,
        )
        logits = readout(self, outputs if self.every_step else last)
        return (carry, logits) if return_carry else logits


_STACK_FIELDS = (
    "cell",
    "num_layers",
    "bidirectional",
    "dropout",
    "residual",
    "regularizer",
    "learn_initial_state",
    "truncate",
    "implementation",
    "memory",
    "dtype",
    "param_dtype",
)


def blank(inputs: Num[Array | np.ndarray, "*B T I"], lengths: Any) -> Num[Array, "*B T I"]:
    """The inputs with zeros past each example's length."""
    inputs = jnp.asarray(inputs)
    *batch_shape, steps, _ = inputs.shape
    lengths = check_lengths(lengths, tuple(batch_shape), steps)
    if lengths is None:
        return inputs
    time = jnp.arange(steps, dtype=lengths.dtype)
    read = jnp.expand_dims(time, range(lengths.ndim)) < lengths[..., None]
    return jnp.where(read[..., None], inputs, jnp.zeros_like(inputs))
