"""A recurrent layer for Flax NNX.

Shapes: B batch (any number of axes), T time, I input features, P output features.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from jaxrnn.arguments import (
    check_layer_arguments,
    check_layer_inputs,
    flag,
    require_cell,
)
from jaxrnn.cell import Cell, S, State, broadcast
from jaxrnn.regularize import Regularizer
from jaxrnn.unroll import reverse_time, unroll

__all__ = ["RNN"]


class Tree(nnx.Module):
    """A pytree of parameters that stores each leaf as an `nnx.Param` named by its path."""

    def __init__(self, tree: Any):
        leaves, self._treedef = jax.tree_util.tree_flatten_with_path(tree)
        names = (jax.tree_util.keystr(path, simple=True, separator="_") for path, _ in leaves)
        self._names = tuple(names)
        if len(set(self._names)) < len(self._names):
            raise ValueError(f"parameters must have different names, got {self._names}")
        for name, (_, leaf) in zip(self._names, leaves, strict=True):
            setattr(self, name, nnx.Param(leaf))

    def __call__(self) -> Any:
        """Returns the tree of arrays."""
        return self._treedef.unflatten([getattr(self, name)[...] for name in self._names])


class RNNOptions(TypedDict, total=False):
    """The optional arguments of `RNN.__call__`."""

    initial_carry: State | None
    seq_lengths: Any
    resets: Any
    reset_state: State | None
    time_major: bool | None
    reverse: bool | None
    keep_order: bool | None
    rngs: nnx.Rngs | nnx.RngStream | None


class RNN(nnx.Module, Generic[S]):
    """A recurrent layer that replaces `flax.nnx.RNN`.

    `__call__` takes the same arguments as that of `flax.nnx.RNN`, and the layer can be used in
    `flax.nnx.Bidirectional`. It differs from Flax's layer as follows:

    - Outputs past the length of an example are zero.
    - An example of length 0 returns its initial carry.
    - The carry is the state of the cell, such as `LSTMState(hidden, cell)`.

    `nnx.Bidirectional` passes lengths to its layers, but neither `resets` nor `reset_state`.

    Each parameter of the cell is an `nnx.Param` of the same name in `layer.weights`. As with
    `nnx.Dropout`, the regularizer is applied unless the layer is deterministic. It is deterministic
    after `layer.eval()` and in `nnx.view(model, deterministic=True)`.

    Args:
        cell: The recurrent cell.
        in_features: I, the number of input features.
        rngs: The random streams: "params" for the initial parameters, "dropout" for the
            regularizer.
        time_major: Whether time is the first axis of inputs and outputs.
        return_carry: Whether to return `(carry, outputs)` instead of the outputs.
        reverse: Whether to read each example from its end to its start.
        keep_order: With `reverse`, whether outputs are in the order of the inputs rather than in
            the order in which they were computed.
        unroll: The number of steps per iteration of the loop, as in `jaxrnn.unroll`.
        learn_initial_state: Whether the initial carry is a parameter. It is initialized to the
            initial state of the cell. Its leaves are in `layer.initial_state`, each of the shape
            of one example, such as `hidden` `[H]`.
        regularizer: Recurrent regularization in training, or None.
        implementation: As in `jaxrnn.unroll`.
        memory: As in `jaxrnn.unroll`.
        truncate: As in `jaxrnn.unroll`.
        dtype: The dtype of the operands of the matrix products, as in `jaxrnn.unroll`. Defaults to
            `param_dtype`.
        param_dtype: The dtype of the parameters. The carry and the outputs have the same dtype,
            unless the cell needs a wider one for its state, as `jaxrnn.lru` does.
        deterministic: Whether to disable the regularizer, as at evaluation.

    Raises:
        ValueError: If `cell` is not a `jaxrnn.Cell`, or two parameters have the same name.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.nnx import RNN
        >>> layer = RNN(jaxrnn.lstm(64), 28, rngs=nnx.Rngs(0))
        >>> lengths = jnp.array([20, 20, 15, 12, 9, 4, 1, 0])
        >>> outputs = layer(jnp.ones((8, 20, 28)), seq_lengths=lengths)
        >>> outputs.shape
        (8, 20, 64)
    """

    def __init__(
        self,
        cell: Cell[Any, S],
        in_features: int,
        *,
        rngs: nnx.Rngs,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = False,
        unroll: int | None = None,
        learn_initial_state: bool = False,
        regularizer: Regularizer | None = None,
        implementation: str | None = None,
        memory: str | None = None,
        truncate: int | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        deterministic: bool = False,
    ):
        require_cell(cell)
        params = cell.init(rngs.params(), in_features, param_dtype)
        self.cell = cell
        self.weights = Tree(params)
        self.initial_state = Tree(cell.initial_state(params)) if learn_initial_state else None
        self.rngs = rngs.dropout.fork() if regularizer is not None else None
        self.deterministic = deterministic
        self.dtype = dtype
        self.implementation = implementation
        self.param_dtype = param_dtype
        self.time_major = time_major
        self.return_carry = return_carry
        self.reverse = reverse
        self.keep_order = keep_order
        self.unroll = unroll
        self.regularizer = regularizer
        self.memory = memory
        self.truncate = truncate

    def set_view(self, deterministic: bool | None = None):
        """Sets the options of `nnx.view(model, deterministic=…)`.

        Args:
            deterministic: Whether to disable the regularizer. If None, nothing changes.
        """
        if deterministic is not None:
            self.deterministic = deterministic

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

    def __call__(
        self,
        inputs: Num[Array | np.ndarray, "..."],
        *,
        initial_carry: State | None = None,
        seq_lengths: Any = None,
        resets: Any = None,
        reset_state: State | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> Float[Array, "..."] | tuple[S, Float[Array, "..."]]:
        """Applies the cell to every step of the inputs.

        Args:
            inputs: `[*B, T, I]`, or `[T, *B, I]` with `time_major`. Integers are cast to
                `param_dtype`.
            initial_carry: The state before the first step, as returned by
                `cell.initial_state(params, B)`, leaves `[*B, ...]`. Defaults to
                the learned initial state if there is one, otherwise to the initial state of the
                cell.
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
            rngs: Random streams, of which "dropout" replaces the layer's own stream for the
                regularizer in this call.

        Returns:
            The outputs `[*B, T, P]`, or `[T, *B, P]` with `time_major`. With `return_carry`,
            `(carry, outputs)`.

        Raises:
            ValueError: As for `jaxrnn.unroll`.
        """
        time_major = flag("time_major", self.time_major if time_major is None else time_major)
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order
        return_carry = self.return_carry if return_carry is None else return_carry
        inputs = check_layer_inputs(inputs, time_major, self.param_dtype)
        params = self.weights()
        initial_carry, seq_lengths = check_layer_arguments(
            self.cell, params, inputs, time_major, initial_carry, seq_lengths
        )
        if self.initial_state is not None:
            batch = inputs.shape[1:-1] if time_major else inputs.shape[:-2]
            learned = broadcast(self.initial_state(), batch)
            initial_carry = learned if initial_carry is None else initial_carry
            reset_state = learned if reset_state is None else reset_state
        key: jax.Array | None = None
        if self.rngs is not None and not self.deterministic:
            # nnx.Bidirectional passes a single stream, for initial carries, instead of Rngs.
            key = rngs.dropout() if isinstance(rngs, nnx.Rngs) else self.rngs()
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
            key=key,
        )
        if reverse and not keep_order:
            outputs = reverse_time(outputs, seq_lengths, time_major=time_major)
        return (carry, outputs) if return_carry else outputs
