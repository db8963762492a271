"""Flax Linen modules over cells: a layer, a stack of layers, and a classifier.

Dropout and recurrent regularization draw from Flax's random stream "dropout". They apply only where
a call provides that stream, so there is no `deterministic` flag:

    model.apply(variables, x, rngs={"dropout": key})      training
    model.apply(variables, x)                             evaluation

Shapes: B batch (any number of axes), T time, I input features, P output features, C classes.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypedDict, Unpack, overload

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import glorot_uniform
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from jaxrnn.arguments import as_dict as as_dict
from jaxrnn.arguments import as_named, check_lengths, check_params, describe, rate
from jaxrnn.backends.steps import zeros_where
from jaxrnn.cell import Cell, S, State, broadcast
from jaxrnn.regularize import Regularizer, dropout_mask
from jaxrnn.unroll import reverse_time, unroll

__all__ = ["RNN", "Classifier", "Stack", "as_dict", "last_output"]

# The state of each layer; of a bidirectional layer a pair of states, (forward, backward).
Carry = tuple[State, ...] | tuple[tuple[State, State], ...]


class RNNOptions(TypedDict, total=False):
    """Arguments of a call of `RNN`; see there."""

    initial_carry: State | None
    init_key: Array | None
    seq_lengths: Any
    resets: Any
    reset_state: State | None
    time_major: bool | None
    reverse: bool | None
    keep_order: bool | None


class StackOptions(TypedDict, total=False):
    """Arguments of a call of `Stack` or `Classifier`; see there."""

    initial_carry: Carry | None
    resets: Any
    reset_state: Carry | None


class RNN(nn.Module, Generic[S]):
    """A recurrent layer over `jaxrnn.unroll` that replaces `flax.linen.RNN`.

    A call takes the same arguments, and the layer can be used in `flax.linen.Bidirectional`. It
    differs from Flax's in four ways: outputs past an example's length are zero, an example of
    length 0 returns its initial carry, the carry is the cell's state, as `LSTMState(hidden, cell)`,
    and there are no attributes that lift variables other than parameters. The parameters are nested
    dicts of arrays: `cell/kernel`, `cell/recurrent_kernel`, `cell/bias`, and so on.

    Attributes:
        cell: The recurrent cell.
        time_major: Whether time is the first axis.
        return_carry: Whether to return `(carry, outputs)` instead of the outputs.
        reverse: Whether to read each example from its end to its start.
        keep_order: With `reverse`, whether outputs are returned in the order of the inputs rather
            than in the order in which they were computed.
        unroll: Steps per iteration of the loop.
        learn_initial_state: Whether the initial carry is a parameter; its initial value is the
            cell's own initial state.
        regularizer: Recurrent regularization in training.
        implementation: As in `jaxrnn.unroll`.
        memory: As in `jaxrnn.unroll`.
        truncate: As in `jaxrnn.unroll`.
        dtype: The dtype of the operands of the matrix products, as in `jaxrnn.unroll`.
        param_dtype: The dtype of the parameters, and so of the carry and the outputs, unless the
            cell keeps its state in a wider one, as the LRU does.
    """

    cell: Cell[Any, S]
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
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @overload
    def __call__(
        self, inputs: Any, *, return_carry: Literal[True], **options: Unpack[RNNOptions]
    ) -> tuple[S, Array]: ...

    @overload
    def __call__(
        self, inputs: Any, *, return_carry: Literal[False], **options: Unpack[RNNOptions]
    ) -> Array: ...

    @overload
    def __call__(
        self, inputs: Any, *, return_carry: None = None, **options: Unpack[RNNOptions]
    ) -> Array | tuple[S, Array]: ...

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
    ) -> Float[Array, "..."] | tuple[S, Float[Array, "..."]]:
        """Applies the cell to every step of the inputs.

        Args:
            inputs: `[*B, T, I]`, or `[T, *B, I]` with `time_major`.
            initial_carry: The state before the first step.
            init_key: Ignored: the initial carry is deterministic.
            seq_lengths: `[*B]` integers, the length of each example.
            resets: Booleans shaped as the inputs without their features. Where True, the carry
                becomes `reset_state` before the step.
            reset_state: The state that a reset starts from; None takes the learned initial state
                if there is one, else the cell's own.
            return_carry: Overrides the attribute of this name, as do the arguments below.
            time_major: See above.
            reverse: See above.
            keep_order: See above.

        Returns:
            The outputs `[*B, T, P]` (or `[T, *B, P]`), or `(carry, outputs)` with `return_carry`.

        Raises:
            ValueError: As `jaxrnn.unroll`.
        """
        del init_key
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order
        return_carry = self.return_carry if return_carry is None else return_carry
        inputs = jnp.asarray(inputs)
        if jnp.issubdtype(inputs.dtype, jnp.integer):
            inputs = inputs.astype(self.param_dtype)
        # Nested dicts rather than named tuples, because Flax's tools for parameters expect dicts.
        params = self.param(
            "cell", lambda key: as_dict(self.cell.init(key, inputs.shape[-1], self.param_dtype))
        )
        if self.learn_initial_state:
            batch = inputs.shape[1:-1] if time_major else inputs.shape[:-2]
            learned = broadcast(self._learned_state(params, inputs.shape[-1]), batch)
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
        return (carry, outputs) if return_carry else outputs

    def _learned_state(self, params: Any, input_size: int) -> State:
        """The initial state of one example as a parameter."""
        named = check_params(self.cell.init, params, input_size)
        state = self.cell.initial_state(named)
        return as_named(state, self.param("initial_state", lambda _: as_dict(state)))


class Stack(nn.Module):
    """Recurrent layers on top of each other, each reading the outputs of the one below.

    Attributes:
        cell: The recurrent cell of every layer.
        num_layers: The number of layers.
        bidirectional: Whether each layer reads in both directions and concatenates the outputs of
            the two, the forward ones first.
        dropout: The dropout rate between layers in training, in [0, 1).
        residual: Whether to add a layer's inputs to its outputs where their sizes agree.
        regularizer: Recurrent regularization in training.
        learn_initial_state: Whether the initial carries are parameters.
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
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @overload
    def __call__(
        self,
        inputs: Any,
        seq_lengths: Any = None,
        *,
        return_carry: Literal[False] = False,
        **options: Unpack[StackOptions],
    ) -> Array: ...

    @overload
    def __call__(
        self,
        inputs: Any,
        seq_lengths: Any = None,
        *,
        return_carry: Literal[True],
        **options: Unpack[StackOptions],
    ) -> tuple[Carry, Array]: ...

    @nn.compact
    def __call__(
        self,
        inputs: Num[Array | np.ndarray, "*B T I"],
        seq_lengths: Any = None,
        *,
        initial_carry: Carry | None = None,
        return_carry: bool = False,
        resets: Any = None,
        reset_state: Carry | None = None,
    ) -> Any:
        """Applies the layers to the inputs.

        Args:
            inputs: The sequences.
            seq_lengths: `[*B]` integers, the length of each example.
            initial_carry: The state of every layer before the first step, as an earlier call
                returned it, so that a sequence can be read in pieces; of a bidirectional layer a
                pair of states (forward, backward).
            return_carry: Whether to return `(carry, outputs)` instead of the outputs.
            resets: Booleans `[*B, T]`. Where True, the carry becomes `reset_state` before the step.
            reset_state: The states that a reset starts from, structured as `initial_carry`; None as
                in `RNN`.

        Returns:
            The outputs of the last layer `[*B, T, P]`, zero past an example's length, or
            `(carry, outputs)` with `return_carry`.

        Raises:
            ValueError: As `jaxrnn.unroll`, or if `dropout` is not in [0, 1), or a carry is not one
                state per layer and direction.
        """
        check_rate("dropout", self.dropout)
        inputs = jnp.asarray(inputs)
        seq_lengths = check_lengths(seq_lengths, inputs.shape[:-2], inputs.shape[-2], "seq_lengths")
        starts = self._by_layer("initial_carry", initial_carry)
        reset_states = self._by_layer("reset_state", reset_state)
        # Residual connections add the inputs to the outputs, which must be zero past the end.
        hidden = mask_inputs(inputs, seq_lengths) if self.residual else inputs
        carry = []
        for number in range(self.num_layers):
            if number:
                hidden = dropout(self, hidden, self.dropout)
            below = hidden
            states, outputs = [], []
            directions = zip(("", "_reverse"), starts[number], reset_states[number], strict=False)
            for suffix, start, reset in directions:
                layer = self._layer(f"layer_{number}{suffix}", reverse=bool(suffix))
                state, output = layer(
                    below,
                    seq_lengths=seq_lengths,
                    initial_carry=start,
                    resets=resets,
                    reset_state=reset,
                    return_carry=True,
                )
                states.append(state)
                outputs.append(output)
            carry.append(tuple(states) if self.bidirectional else states[0])
            hidden = jnp.concatenate(outputs, axis=-1) if self.bidirectional else outputs[0]
            if self.residual and hidden.shape == below.shape:
                hidden = hidden + below.astype(hidden.dtype)
        return (tuple(carry), hidden) if return_carry else hidden

    def _layer(self, name: str, reverse: bool) -> RNN:
        return RNN(
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

    def _by_layer(self, name: str, carry: Carry | None) -> list[tuple[Any, ...]]:
        """The states of each layer as a tuple with one for each direction; None is none given."""
        directions = 2 if self.bidirectional else 1
        if carry is None:
            return [(None,) * directions] * self.num_layers

        def is_tuple(value, size):  # a state is a tuple too, but a named one
            plain = isinstance(value, (tuple, list)) and not hasattr(value, "_fields")
            return plain and len(value) == size

        fits = is_tuple(carry, self.num_layers)
        if fits and not self.bidirectional:
            return [(state,) for state in carry]
        if not (fits and all(is_tuple(pair, 2) for pair in carry)):
            each = "a pair of states (forward, backward)" if self.bidirectional else "a state"
            raise ValueError(
                f"{name} must be a tuple with {each} for each of {self.num_layers} layers, "
                f"got {describe(carry)}"
            )
        return [tuple(pair) for pair in carry]


class Classifier(nn.Module):
    """Many to one, or many to many: a `Stack` and a linear readout that gives logits.

        model = Classifier(Stack(jaxrnn.lstm(128)), num_classes=10)

    Its parameters are those of the `stack`, as `stack/layer_0/cell/kernel`, and those of the
    `readout`.

    Attributes:
        stack: The recurrent layers.
        num_classes: C, the number of classes.
        every_step: Whether to classify after every step what was read so far, instead of once at
            the end.
        dtype: The dtype of the operands of the readout's product; None takes that of the stack.
        param_dtype: The dtype of the readout's parameters; None takes that of the stack.
    """

    stack: Stack
    num_classes: int
    every_step: bool = False
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike | None = None

    @overload
    def __call__(
        self,
        inputs: Any,
        seq_lengths: Any = None,
        *,
        return_carry: Literal[False] = False,
        **options: Unpack[StackOptions],
    ) -> Array: ...

    @overload
    def __call__(
        self,
        inputs: Any,
        seq_lengths: Any = None,
        *,
        return_carry: Literal[True],
        **options: Unpack[StackOptions],
    ) -> tuple[Carry, Array]: ...

    @nn.compact
    def __call__(
        self,
        inputs: Num[Array | np.ndarray, "*B T I"],
        seq_lengths: Any = None,
        *,
        initial_carry: Carry | None = None,
        return_carry: bool = False,
        resets: Any = None,
        reset_state: Carry | None = None,
    ) -> Any:
        """Classifies the inputs up to the length of each example.

        Args:
            inputs: The sequences.
            seq_lengths: `[*B]` integers, the length of each example.
            initial_carry: As in `Stack`.
            return_carry: Whether to return `(carry, logits)` instead of the logits.
            resets: As in `Stack`.
            reset_state: As in `Stack`.

        Returns:
            Logits `[*B, C]`, or with `every_step` `[*B, T, C]`, in the dtype of the stack's
            outputs; or `(carry, logits)` with `return_carry`.

        Raises:
            ValueError: As `Stack`, or if `stack` is something else.
        """
        if not isinstance(self.stack, Stack):
            raise ValueError(f"stack must be a Stack, got {type(self.stack).__name__}")
        carry, outputs = self.stack(
            inputs,
            seq_lengths,
            initial_carry=initial_carry,
            return_carry=True,
            resets=resets,
            reset_state=reset_state,
        )
        if not self.every_step:
            outputs = last_output(outputs, seq_lengths, bidirectional=self.stack.bidirectional)
        logits = readout(
            outputs,
            self.num_classes,
            dtype=self.stack.dtype if self.dtype is None else self.dtype,
            param_dtype=self.stack.param_dtype if self.param_dtype is None else self.param_dtype,
        )
        return (carry, logits) if return_carry else logits


def last_output(
    outputs: Float[Array, "*B T P"], seq_lengths: Any = None, *, bidirectional: bool = False
) -> Float[Array, "*B P"]:
    """The output of a stack after it has read the whole of each example.

    A forward layer has done so at the example's last step, a backward layer at its first.

    Args:
        outputs: The outputs of `Stack`.
        seq_lengths: `[*B]` integers, the length of each example.
        bidirectional: Whether the second half of the features is of a backward layer.

    Returns:
        The outputs, zero for an example of length 0.
    """
    *batch_shape, time, size = outputs.shape
    if not time:
        return jnp.zeros((*batch_shape, size), outputs.dtype)
    seq_lengths = check_lengths(seq_lengths, tuple(batch_shape), time, "seq_lengths")
    if seq_lengths is None:
        last = outputs[..., -1, :]
    else:
        index = jnp.maximum(seq_lengths - 1, 0)  # at length 0 the outputs are zero everywhere
        index = jax.lax.expand_dims(index, (index.ndim, index.ndim + 1))
        last = jnp.take_along_axis(outputs, index, axis=-2)[..., 0, :]
    if bidirectional:
        half = size // 2
        last = jnp.concatenate([last[..., :half], outputs[..., 0, half:]], axis=-1)
    return last


def readout(hidden: Array, num_classes: int, dtype: Any, param_dtype: Any) -> Array:
    """The logits of a classifier: a linear layer named `readout`, inside a compact method."""
    dense = nn.Dense(
        num_classes,
        dtype=dtype,
        param_dtype=param_dtype,
        kernel_init=glorot_uniform(),
        name="readout",
    )
    return dense(hidden).astype(hidden.dtype)


def mask_inputs(
    inputs: Num[Array | np.ndarray, "*B T I"], seq_lengths: Any
) -> Num[Array, "*B T I"]:
    """The inputs with zeros past each example's length."""
    inputs = jnp.asarray(inputs)
    seq_lengths = check_lengths(seq_lengths, inputs.shape[:-2], inputs.shape[-2], "seq_lengths")
    if seq_lengths is None:
        return inputs
    time = jnp.arange(inputs.shape[-2], dtype=seq_lengths.dtype)
    past_end = jnp.expand_dims(time, range(seq_lengths.ndim)) >= seq_lengths[..., None]
    return zeros_where(past_end, inputs)


def dropout_key(module: nn.Module) -> Array | None:
    """A key from the stream "dropout" if the caller provided it, which is the case in training."""
    return module.make_rng("dropout") if module.has_rng("dropout") else None


def dropout(module: nn.Module, hidden: Array, rate: float | Array | None) -> Array:
    """Dropout in training; the rate may be traced, unlike that of `flax.linen.Dropout`."""
    if rate is None or (key := dropout_key(module)) is None:
        return hidden
    return hidden * dropout_mask(key, hidden.shape, rate, hidden.dtype)


def check_rate(name: str, value: Any) -> None:
    """Raises ValueError if the value is neither None nor in [0, 1)."""
    if value is not None:
        rate(name, value)
