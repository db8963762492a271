"""A recurrent layer for Flax NNX over cells.

Shapes: B batch (any number of axes), T time, I input features, P outputs of a cell.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxrnn.cell import Cell, State
from jaxrnn.regularize import Regularizer
from jaxrnn.unroll import reverse_time, unroll


class RNN(nnx.Module):
    """A recurrent layer in place of `flax.nnx.RNN`, over `jaxrnn.unroll`.

    A call takes the same arguments, and the layer goes into `flax.nnx.Bidirectional`. Different:
    outputs past a row's length are zero, a row of length 0 keeps its initial carry, and the carry
    is the cell's state, as `LSTMState(hidden, cell)`.

    Each parameter of the cell is an `nnx.Param` of the same name.

    Args:
        cell: The recurrent cell.
        in_features: I.
        rngs: The stream "params" starts the parameters; "dropout", if the layer is called with
            `rngs`, gives the regularizer's noise.
        time_major: Whether time is the first axis.
        return_carry: Whether to return `(carry, outputs)` instead of the outputs.
        reverse: Read each row from its end to its start.
        keep_order: With `reverse`, let outputs stand where their inputs stand.
        unroll: Steps per iteration of the loop.
        regularizer: Noise between the steps, in training.
        param_dtype: That of the parameters.
    """

    def __init__(
        self,
        cell: Cell,
        in_features: int,
        *,
        rngs: nnx.Rngs,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = False,
        unroll: int = 1,
        regularizer: Regularizer | None = None,
        param_dtype: Any = jnp.float32,
    ):
        params = cell.init(rngs.params(), in_features, param_dtype)
        self.cell = cell
        self.make_params = type(params)
        self.names = tuple(name for name in params._fields if getattr(params, name) is not None)
        for name in self.names:
            setattr(self, name, nnx.Param(getattr(params, name)))
        self.time_major = time_major
        self.return_carry = return_carry
        self.reverse = reverse
        self.keep_order = keep_order
        self.unroll = unroll
        self.regularizer = regularizer

    @property
    def params(self) -> Any:
        """The cell's parameters, as `jaxrnn.unroll` takes them."""
        found = {name: getattr(self, name)[...] for name in self.names}
        return self.make_params(**{name: found.get(name) for name in self.make_params._fields})

    def __call__(
        self,
        inputs: Float[Array, "..."],
        *,
        initial_carry: State | None = None,
        seq_lengths: Int[Array | np.ndarray, "*B"] | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> Float[Array, "..."] | tuple[State, Float[Array, "..."]]:
        """Reads the inputs.

        Args:
            inputs: `[*B, T, I]`, or `[T, *B, I]` with `time_major`.
            initial_carry: The state before the first step.
            seq_lengths: Each row's length.
            return_carry: Overrides the layer's own, as do the others.
            time_major: See above.
            reverse: See above.
            keep_order: See above.
            rngs: Its stream "dropout", if there is one, makes this training.

        Returns:
            The outputs `[*B, T, P]` (or `[T, *B, P]`), with the last carry if asked for.

        Raises:
            ValueError: As `jaxrnn.unroll`.
        """
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order
        key: jax.Array | None = None
        if self.regularizer is not None and isinstance(rngs, nnx.Rngs) and "dropout" in rngs:
            key = rngs.dropout()
        outputs, carry = unroll(
            self.cell,
            self.params,
            inputs,
            initial_state=initial_carry,
            lengths=seq_lengths,
            reverse=reverse,
            time_major=time_major,
            unroll=self.unroll,
            regularizer=self.regularizer,
            key=key,
        )
        if reverse and not keep_order:
            outputs = reverse_time(outputs, seq_lengths, time_major=time_major)
        with_carry = self.return_carry if return_carry is None else return_carry
        return (carry, outputs) if with_carry else outputs
