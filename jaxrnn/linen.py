"""Flax Linen modules: a recurrent layer, a stack of layers and a classifier.

Dropout and recurrent regularization draw from Flax's random stream "dropout". They are applied only
if a call provides that stream, so there is no argument `deterministic`:

    model.apply(variables, x, rngs={"dropout": key})      # training
    model.apply(variables, x)                             # evaluation

A call with `rngs=key` provides the stream "params" only, and nothing is dropped.

Shapes: B batch (any number of axes), T time, I input features, H hidden units, P output features,
C classes. A `State` is what `cell.initial_state` returns, such as `LSTMState(hidden, cell)`. A
`Carry` is a tuple with one state per layer, or with a pair of states (forward, backward) per
bidirectional layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, Literal, TypedDict, Unpack, overload

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn.initializers import glorot_uniform
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Num

from jaxrnn.arguments import as_dict as as_dict
from jaxrnn.arguments import (
    as_named,
    check_layer_arguments,
    check_layer_inputs,
    check_lengths,
    check_params,
    check_resets,
    describe,
    flag,
    rate,
    require_cell,
    size,
)
from jaxrnn.backends.steps import zeros_where
from jaxrnn.cell import Cell, S, State, broadcast
from jaxrnn.regularize import Regularizer, dropout_mask
from jaxrnn.unroll import reverse_time, unroll

__all__ = ["RNN", "Classifier", "Stack", "as_dict", "last_output"]

# One state per layer, or per bidirectional layer a pair of states (forward, backward).
Carry = tuple[State, ...] | tuple[tuple[State, State], ...]


class RNNOptions(TypedDict, total=False):
    """The optional arguments of `RNN.__call__`."""

    initial_carry: State | None
    init_key: Array | None
    seq_lengths: Any
    resets: Any
    reset_state: State | None
    time_major: bool | None
    reverse: bool | None
    keep_order: bool | None


class StackOptions(TypedDict, total=False):
    """The optional arguments of `Stack.__call__` and `Classifier.__call__`."""

    initial_carry: Carry | None
    resets: Any
    reset_state: Carry | None


class RNN(nn.Module, Generic[S]):
    """A recurrent layer that replaces `flax.linen.RNN`.

    `__call__` takes the same arguments as that of `flax.linen.RNN`, and the layer can be used in
    `flax.linen.Bidirectional`. It differs from Flax's layer as follows:

    - Outputs past the length of an example are zero.
    - An example of length 0 returns its initial carry.
    - The carry is the state of the cell, such as `LSTMState(hidden, cell)`.
    - There are no attributes for lifted transformations, such as `variable_axes`.

    The parameters are nested dicts of arrays: `cell/kernel`, `cell/recurrent_kernel`, `cell/bias`
    and so on, the fields of the cell's parameters. `apply` also accepts the named tuple that
    `cell.init` returns in place of the dict `cell`.

    Attributes:
        cell: The recurrent cell.
        time_major: Whether time is the first axis of inputs and outputs.
        return_carry: Whether to return `(carry, outputs)` instead of the outputs.
        reverse: Whether to read each example from its end to its start.
        keep_order: With `reverse`, whether outputs are in the order of the inputs rather than in
            the order in which they were computed.
        unroll: The number of steps per iteration of the loop, as in `jaxrnn.unroll`.
        learn_initial_state: Whether the initial carry is a parameter. It is initialized to the
            initial state of the cell. Its leaves are those of one example, such as
            `initial_state/hidden` `[H]`.
        regularizer: Recurrent regularization, or None. It is random only in a call that provides
            the stream "dropout".
        implementation: As in `jaxrnn.unroll`.
        memory: As in `jaxrnn.unroll`.
        truncate: As in `jaxrnn.unroll`.
        dtype: The dtype of the operands of the matrix products, as in `jaxrnn.unroll`. Defaults to
            `param_dtype`.
        param_dtype: The dtype of the parameters. The carry and the outputs have the same dtype,
            unless the cell needs a wider one for its state, as `jaxrnn.lru` does.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxrnn
        >>> from jaxrnn.linen import RNN
        >>> layer, inputs = RNN(jaxrnn.lstm(64)), jnp.ones((8, 20, 28))
        >>> variables = layer.init(jax.random.key(0), inputs)
        >>> lengths = jnp.array([20, 20, 15, 12, 9, 4, 1, 0])
        >>> outputs = layer.apply(variables, inputs, seq_lengths=lengths)
        >>> outputs.shape
        (8, 20, 64)
    """

    cell: Cell[Any, S]
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False
    unroll: int | None = None
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
            inputs: `[*B, T, I]`, or `[T, *B, I]` with `time_major`. Integers are cast to
                `param_dtype`.
            initial_carry: The state before the first step, as returned by
                `cell.initial_state(params, B)`, leaves `[*B, ...]`. Defaults to
                the learned initial state if there is one, otherwise to the initial state of the
                cell.
            init_key: Ignored; the initial carry is deterministic.
            seq_lengths: The lengths of the examples, integers `[*B]` in 0..T. Defaults to T.
            resets: Booleans `[*B, T]`, or `[T, *B]` with `time_major`. Where True, the carry is
                replaced by `reset_state` before the step, in the order of reading: with `reverse`,
                mark the last step of each episode rather than the first. A reset past the length
                of an example has no effect. If None, there are no resets.
            reset_state: The state after a reset, leaves `[*B, ...]`. Defaults to the learned
                initial state if there is one, otherwise to the initial state of the cell.
            return_carry: Overrides the attribute `return_carry` unless None.
            time_major: Overrides the attribute `time_major` unless None.
            reverse: Overrides the attribute `reverse` unless None.
            keep_order: Overrides the attribute `keep_order` unless None.

        Returns:
            The outputs `[*B, T, P]`, or `[T, *B, P]` with `time_major`. With `return_carry`,
            `(carry, outputs)`.

        Raises:
            ValueError: As for `jaxrnn.unroll`, or if the attribute `cell` is not a `jaxrnn.Cell`.
        """
        del init_key
        require_cell(self.cell)
        time_major = flag("time_major", self.time_major if time_major is None else time_major)
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order
        return_carry = self.return_carry if return_carry is None else return_carry
        inputs = check_layer_inputs(inputs, time_major, self.param_dtype)
        params = self._param(
            "cell", lambda key: self.cell.init(key, inputs.shape[-1], self.param_dtype)
        )
        initial_carry, seq_lengths = check_layer_arguments(
            self.cell, params, inputs, time_major, initial_carry, seq_lengths
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

    def _param(self, name: str, init: Callable[[Array], Any]) -> Any:
        """Returns a tree of parameters, which `init` creates as a named tuple.

        It is stored as nested dicts, because Flax's tools for parameters expect dicts. A caller may
        provide a named tuple instead.
        """
        given = self.get_variable("params", name)
        if hasattr(given, "_fields"):
            return self.param(name, init)
        return self.param(name, lambda key: as_dict(init(key)))

    def _learned_state(self, params: Any, input_size: int) -> State:
        """Returns the initial state of one example, which is a parameter."""
        named = check_params(self.cell.init, params, input_size)
        state = self.cell.initial_state(named)
        return as_named(state, self._param("initial_state", lambda _: state))


class Stack(nn.Module):
    """A stack of recurrent layers, each of which reads the outputs of the previous layer.

    The parameters are those of the layers, each as in `RNN`: `layer_0/cell/kernel`,
    `layer_1/cell/kernel` and so on, and for the backward direction `layer_0_reverse/cell/kernel`.

    Attributes:
        cell: The recurrent cell of every layer.
        num_layers: The number of layers.
        bidirectional: Whether each layer reads its inputs in both directions. The forward and the
            backward outputs are concatenated in this order. P is then twice the number of output
            features of the cell, such as 2·H.
        dropout: The dropout rate between layers in training, in [0, 1), or None. The outputs of
            every layer but the last are dropped, by a new mask per example, step and feature, in
            a call that provides the stream "dropout". With another stream or a single key, as in
            `rngs=key`, nothing is dropped.
        residual: Whether to add the inputs of a layer to its outputs if they have the same shape.
        regularizer: As in `RNN`.
        learn_initial_state: Whether the initial carries are parameters, such as
            `layer_0/initial_state/hidden` `[H]`.
        truncate: As in `jaxrnn.unroll`.
        implementation: As in `jaxrnn.unroll`.
        memory: As in `jaxrnn.unroll`.
        block: The number of time steps that all layers read before they read the next ones. The
            backward pass keeps the states between the blocks and computes each block again. If
            None, each layer reads the whole sequence. Blocks can be faster on a CPU, where what the
            layers pass on then stays in the caches; see the guide to performance. The dropout masks
            differ from those without blocks. Must be None with `bidirectional`, `regularizer` or
            `truncate`.
        dtype: As in `RNN`.
        param_dtype: As in `RNN`.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxrnn
        >>> from jaxrnn.linen import Stack
        >>> stack = Stack(jaxrnn.gru(32), num_layers=2, bidirectional=True)
        >>> inputs = jnp.ones((8, 20, 28))
        >>> outputs, variables = stack.init_with_output(jax.random.key(0), inputs)
        >>> outputs.shape
        (8, 20, 64)
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
    block: int | None = None
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
            inputs: The sequences `[*B, T, I]`.
            seq_lengths: The lengths of the examples, integers `[*B]` in 0..T. Defaults to T.
            initial_carry: A tuple with the state before the first step of each layer. For a
                bidirectional layer, a pair of states (forward, backward). Unless the stack is
                bidirectional, a sequence can be read in chunks by passing the carry that the
                previous call returned. The backward direction would need the last chunk first.
                Defaults to that of `RNN`.
            return_carry: Whether to return `(carry, outputs)` instead of the outputs.
            resets: Booleans `[*B, T]`, True at the first step of each episode. There, the forward
                direction continues from `reset_state`, and so does the backward direction at the
                last step of the previous episode. No state or gradient passes between episodes. A
                reset past the length of an example has no effect. If None, there are no resets.
            reset_state: The states after a reset, in the structure of `initial_carry`. Defaults to
                that of `RNN`.

        Returns:
            The outputs of the last layer `[*B, T, P]`, zero past the length of an example. With
            `return_carry`, `(carry, outputs)`.

        Raises:
            ValueError: As for `RNN`, or if `dropout` is not in [0, 1), or a carry is not one state
                per layer and direction.
        """
        require_cell(self.cell)
        check_rate("dropout", self.dropout)
        inputs = check_layer_inputs(inputs, False, self.param_dtype)
        seq_lengths = check_lengths(seq_lengths, inputs.shape[:-2], inputs.shape[-2], "seq_lengths")
        resets = check_resets(resets, inputs.shape[:-1])
        ends = None if resets is None else before_resets(resets, seq_lengths)
        starts = self._by_layer("initial_carry", initial_carry)
        reset_states = self._by_layer("reset_state", reset_state)
        # Residual connections add the inputs to the outputs, which must stay zero past the length.
        hidden = mask_inputs(inputs, seq_lengths) if self.residual else inputs
        block = self._block_size(hidden.shape[-2])
        run = self._layers if block is None else partial(self._in_blocks, block)
        carry, hidden = run(hidden, seq_lengths, resets, ends, starts, reset_states)
        return (carry, hidden) if return_carry else hidden

    def _layers(self, hidden, seq_lengths, resets, ends, starts, reset_states):
        """Applies the layers one after the other; returns `(carry, outputs)`."""
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
                    resets=ends if suffix else resets,
                    reset_state=reset,
                    return_carry=True,
                )
                states.append(state)
                outputs.append(output)
            carry.append(tuple(states) if self.bidirectional else states[0])
            hidden = jnp.concatenate(outputs, axis=-1) if self.bidirectional else outputs[0]
            if self.residual and hidden.shape == below.shape:
                hidden = hidden + below.astype(hidden.dtype)
        return tuple(carry), hidden

    def _block_size(self, time: Any) -> int | None:
        """Returns the number of time steps of a block, or None if there are no blocks."""
        if self.block is None:
            return None
        block = size("block", self.block)
        if self.bidirectional or self.regularizer is not None or self.truncate is not None:
            raise ValueError("block must be None with bidirectional, regularizer or truncate")
        if not isinstance(time, int):
            raise ValueError(f"block must be None for a number of time steps of {time}")
        # The first call creates the parameters, which a scan over blocks cannot do.
        return None if self.is_initializing() or time < 2 * block else block

    def _in_blocks(self, block, hidden, seq_lengths, resets, ends, starts, reset_states):
        """Applies all layers to a block of time steps, then to the next; as `_layers`."""
        del ends  # for the backward direction
        time = hidden.shape[-2]
        first = time % block + block  # steps of the first block, so that the others are equal

        def later(x, axis):  # [*B, T, ...] -> [blocks, *B, block, ...]
            x = jnp.moveaxis(lax.slice_in_dim(x, first, time, axis=axis), axis, 0)
            x = x.reshape(-1, block, *x.shape[1:])
            return jnp.moveaxis(x, 1, axis)

        def part(offset, steps):  # the lengths within a block
            return None if seq_lengths is None else jnp.clip(seq_lengths - offset, 0, steps)

        def body(stack, carry, now):
            offset, hidden, resets = now
            starts = [(state,) for state in carry]
            return stack._layers(hidden, part(offset, block), resets, None, starts, reset_states)

        scan = nn.scan(
            nn.remat(body, prevent_cse=False),
            variable_broadcast="params",
            split_rngs={"params": False, "dropout": True},
        )
        carry, outputs = self._layers(
            hidden[..., :first, :],
            part(0, first),
            None if resets is None else resets[..., :first],
            None,
            starts,
            reset_states,
        )
        inputs = later(hidden, -2)
        resets = None if resets is None else later(resets, -1)
        carry, rest = scan(self, carry, (jnp.arange(first, time, block), inputs, resets))
        rest = jnp.moveaxis(rest, 0, -3)
        rest = rest.reshape(*rest.shape[:-3], time - first, rest.shape[-1])
        return carry, jnp.concatenate([outputs, rest], axis=-2)

    def _layer(self, name: str, reverse: bool) -> RNN:
        """Returns one layer and direction of the stack."""
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
        """Returns the carry as one tuple of states per layer, one state or None per direction."""
        directions = 2 if self.bidirectional else 1
        if carry is None:
            return [(None,) * directions] * self.num_layers

        def is_tuple(value, size):  # but not a named tuple, which is a state
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
    """A sequence classifier: a `Stack` followed by a linear readout.

    It computes one vector of logits per sequence (many to one), or with `every_step` one per time
    step (many to many). Its parameters are those of the stack, such as `stack/layer_0/cell/kernel`,
    and those of the `readout`.

    Attributes:
        stack: The recurrent layers.
        num_classes: C, the number of classes.
        every_step: Whether to compute logits after every step rather than only after the last.
        dtype: The dtype of the operands of the readout's matrix product. Defaults to that of
            the stack.
        param_dtype: The dtype of the readout's parameters. Defaults to that of the stack.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxrnn
        >>> from jaxrnn.linen import Classifier, Stack
        >>> model = Classifier(Stack(jaxrnn.lstm(64)), num_classes=10)
        >>> inputs = jnp.ones((8, 28, 28))  # rows of 8 images as sequences
        >>> logits, variables = model.init_with_output(jax.random.key(0), inputs)
        >>> logits.shape
        (8, 10)
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
        """Classifies the sequences.

        Args:
            inputs: The sequences `[*B, T, I]`.
            seq_lengths: The lengths of the examples, integers `[*B]` in 0..T. Defaults to T.
            initial_carry: As in `Stack`.
            return_carry: Whether to return `(carry, logits)` instead of the logits.
            resets: As in `Stack`.
            reset_state: As in `Stack`.

        Returns:
            The logits `[*B, C]`, or `[*B, T, C]` with `every_step`, in the dtype of the stack's
            outputs. With `return_carry`, `(carry, logits)`.

        Raises:
            ValueError: As for `Stack`, or if `stack` is not a `Stack`.
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
    """Selects the output of a stack after it has read the whole of each example.

    This is the output at the last step of an example in the forward direction, and at the first
    step in the backward direction.

    Args:
        outputs: The outputs of `Stack`, `[*B, T, P]`.
        seq_lengths: The lengths of the examples, integers `[*B]` in 0..T. Defaults to T.
        bidirectional: Whether the second half of the features belongs to the backward direction.

    Returns:
        The outputs `[*B, P]`, zero for an example of length 0.

    Raises:
        ValueError: If `seq_lengths` has a wrong dtype, shape or value.
    """
    *batch_shape, time, size = outputs.shape
    if not time:
        return jnp.zeros((*batch_shape, size), outputs.dtype)
    seq_lengths = check_lengths(seq_lengths, tuple(batch_shape), time, "seq_lengths")
    if seq_lengths is None:
        last = outputs[..., -1, :]
    else:
        index = jnp.maximum(seq_lengths - 1, 0)  # for length 0, all outputs are zero
        index = jax.lax.expand_dims(index, (index.ndim, index.ndim + 1))
        last = jnp.take_along_axis(outputs, index, axis=-2)[..., 0, :]
    if bidirectional:
        half = size // 2
        last = jnp.concatenate([last[..., :half], outputs[..., 0, half:]], axis=-1)
    return last


def readout(hidden: Array, num_classes: int, dtype: Any, param_dtype: Any) -> Array:
    """Computes logits by a linear layer named `readout`; for use in a compact method."""
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
    """Sets the inputs past the length of each example to zero."""
    inputs = jnp.asarray(inputs)
    seq_lengths = check_lengths(seq_lengths, inputs.shape[:-2], inputs.shape[-2], "seq_lengths")
    if seq_lengths is None:
        return inputs
    return zeros_where(~within(seq_lengths, inputs.shape[-2]), inputs)


def within(seq_lengths: Int[Array, "*B"], time: Any) -> Bool[Array, "*B T"]:
    """Returns True at the steps before the length of each example."""
    steps = jnp.arange(time, dtype=seq_lengths.dtype)
    return jnp.expand_dims(steps, range(seq_lengths.ndim)) < seq_lengths[..., None]


def before_resets(
    resets: Bool[Array, "*B T"], seq_lengths: Int[Array, "*B"] | None
) -> Bool[Array, "*B T"]:
    """Marks the step before each reset, which is the first step of an episode read in reverse.

    A reset past the length of an example belongs to its padding and is ignored.
    """
    if seq_lengths is not None:
        resets = resets & within(seq_lengths, resets.shape[-1])
    return jnp.concatenate([resets[..., 1:], jnp.zeros_like(resets[..., :1])], axis=-1)


def dropout_key(module: nn.Module) -> Array | None:
    """Returns a key from the stream "dropout", or None if the caller did not provide the stream."""
    return module.make_rng("dropout") if module.has_rng("dropout") else None


def dropout(
    module: nn.Module, hidden: Array, rate: float | Array | None, shared: int | None = None
) -> Array:
    """Applies dropout in training. Unlike in `flax.linen.Dropout`, the rate may be traced.

    The entries along the axis `shared` are dropped together.
    """
    if rate is None or (key := dropout_key(module)) is None:
        return hidden
    shape = list(hidden.shape)
    if shared is not None:
        shape[shared] = 1
    return hidden * dropout_mask(key, tuple(shape), rate, hidden.dtype)


def check_rate(name: str, value: Any) -> None:
    """Raises ValueError if the value is neither None nor a number in [0, 1)."""
    if value is not None:
        rate(name, value)
