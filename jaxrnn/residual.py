"""A classifier of long sequences: residual blocks around a recurrent layer.

The blocks are those of deep state space models: Gu et al., "Efficiently modeling long sequences
with structured state spaces", 2022; Smith et al., "Simplified state space layers for sequence
modeling", 2023; Orvieto et al., "Resurrecting recurrent neural networks for long sequences", 2023.

Shapes: as in `jaxrnn.linen`, and D features of a block.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Num

from jaxrnn.arguments import check_lengths
from jaxrnn.backends.steps import zeros_where
from jaxrnn.cell import Cell
from jaxrnn.linen import RNN, check_rate, dropout, mask_inputs, readout, within

__all__ = ["ResidualBlock", "ResidualClassifier"]


class ResidualBlock(nn.Module):
    """A recurrent layer between a normalization and a gate, added to its inputs.

        y = RNN(LayerNorm(x))
        x' = x + dropout(y∘σ(W·y + b))

    The dropout mask is the same at all time steps.

    Attributes:
        cell: The recurrent cell, with as many output features as the inputs have, D.
        dropout: The dropout rate in training, in [0, 1), or None.
        implementation: As in `jaxrnn.unroll`.
        dtype: The dtype of the operands of the matrix products, as in `jaxrnn.unroll`. All other
            computation is in the dtype of the inputs.
        param_dtype: The dtype of the parameters.
    """

    cell: Cell
    dropout: float | Array | None = None
    implementation: str | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "T *B D"], seq_lengths: Any = None
    ) -> Float[Array, "T *B D"]:
        """Applies the block to sequences, with time as the first axis.

        Args:
            inputs: The sequences `[T, *B, D]`.
            seq_lengths: The lengths of the examples, integers `[*B]` in 0..T. Defaults to T.

        Returns:
            The sequences `[T, *B, D]`.

        Raises:
            ValueError: If the cell has another number of output features than the inputs, or
                `dropout` is not in [0, 1).
        """
        check_rate("dropout", self.dropout)
        layer = RNN(
            self.cell,
            time_major=True,
            implementation=self.implementation,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="layer",
        )
        norm = nn.LayerNorm(param_dtype=self.param_dtype, name="norm")
        hidden: Any = layer(norm(inputs), seq_lengths=seq_lengths)
        if hidden.shape != inputs.shape:
            raise ValueError(
                f"cell must have {inputs.shape[-1]} output features like the inputs, "
                f"got {hidden.shape[-1]}"
            )
        options: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        gate = nn.Dense(hidden.shape[-1], **options, name="gate")(hidden).astype(hidden.dtype)
        hidden = dropout(self, hidden * jax.nn.sigmoid(gate), self.dropout, shared=0)
        return inputs + hidden.astype(inputs.dtype)


class ResidualClassifier(nn.Module):
    """A sequence classifier: an encoder, residual blocks, and a readout of their mean over time.

    Most of the time of a long sequence is spent on the blocks at its many steps. With `pool`, a
    stem reads every time step with few features: the encoder and a block around `stem`. Its
    outputs at `pool` successive steps are concatenated and projected to D features, as in the
    pyramid of Chan et al., "Listen, attend and spell", 2016. The blocks then take one step where
    the sequence has `pool`.

    Attributes:
        cell: The recurrent cell of every block.
        num_classes: C, the number of classes.
        features: D, the number of output features of the cell.
        num_layers: The number of blocks, without that of the stem.
        pool: The number of time steps that become one step of the blocks.
        stem: The recurrent cell of the stem. Required with `pool` above 1, and None without.
        stem_features: The number of output features of `stem`.
        dropout: The dropout rate of each block in training, in [0, 1), or None.
        implementation: As in `jaxrnn.unroll`.
        dtype: The dtype of the operands of the matrix products, including that of the readout.
        param_dtype: The dtype of the parameters.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxrnn
        >>> from jaxrnn.residual import ResidualClassifier
        >>> model = ResidualClassifier(jaxrnn.s5(32), num_classes=10, features=32)
        >>> inputs = jnp.ones((2, 784, 1))
        >>> logits, variables = model.init_with_output(jax.random.key(0), inputs)
        >>> logits.shape
        (2, 10)
    """

    cell: Cell
    num_classes: int
    features: int
    num_layers: int = 4
    pool: int = 1
    stem: Cell | None = None
    stem_features: int | None = None
    dropout: float | Array | None = None
    implementation: str | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, inputs: Num[Array | np.ndarray, "*B T I"], seq_lengths: Any = None
    ) -> Float[Array, "*B C"]:
        """Classifies the sequences.

        Args:
            inputs: The sequences `[*B, T, I]`.
            seq_lengths: The lengths of the examples, integers `[*B]` in 0..T. The mean is over the
                steps of the blocks, and zero for an example without steps. Defaults to T.

        Returns:
            The logits `[*B, C]`.

        Raises:
            ValueError: If `pool` is below 1, or above 1 without `stem` and `stem_features`, or as
                for `ResidualBlock`.
        """
        *batch, time, _ = inputs.shape
        seq_lengths = check_lengths(seq_lengths, tuple(batch), time, "seq_lengths")
        features = self.stem_features if self.pool > 1 else self.features
        if self.pool < 1 or (self.pool > 1) != (self.stem is not None) or features is None:
            raise ValueError(
                "pool must be at least 1, with stem and stem_features if it is above 1, got "
                f"pool={self.pool}, stem={self.stem}, stem_features={self.stem_features}"
            )
        options: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def dense(name: str, features: int, inputs: Array) -> Array:
            return nn.Dense(features, **options, name=name)(inputs).astype(inputs.dtype)

        def block(name: str, cell: Cell, inputs: Array) -> Array:
            module = ResidualBlock(cell, self.dropout, self.implementation, **options, name=name)
            return module(inputs, seq_lengths)

        # A NaN in the padding would make the encoder's gradient NaN, as 0 · NaN.
        inputs = mask_inputs(inputs, seq_lengths).astype(self.param_dtype)
        # Transposed once here, rather than in every block.
        inputs = jnp.moveaxis(inputs, -2, 0)
        hidden = dense("encoder", features, inputs)
        if self.stem is not None:
            hidden = block("stem", self.stem, hidden)
            if seq_lengths is not None:
                hidden = zeros_where(past(seq_lengths, time), hidden)
                seq_lengths = -(-seq_lengths // self.pool)
            hidden = dense("pool", self.features, concatenated(hidden, self.pool))
        for number in range(self.num_layers):
            hidden = block(f"block_{number}", self.cell, hidden)
        steps = jnp.asarray(len(hidden))
        if seq_lengths is not None:
            hidden = zeros_where(past(seq_lengths, len(hidden)), hidden)
            steps = seq_lengths[..., None]
        mean = hidden.sum(0) / jnp.maximum(steps, 1).astype(hidden.dtype)
        return readout(mean, self.num_classes, **options)


def past(seq_lengths: Int[Array, "*B"], time: int) -> Bool[Array, "T *B"]:
    """Returns True at the steps past the length of each example."""
    return jnp.moveaxis(~within(seq_lengths, time), -1, 0)


def concatenated(inputs: Float[Array, "T *B D"], pool: int) -> Float[Array, "S *B F"]:
    """Concatenates the features of every `pool` successive steps, with zeros after the last one."""
    steps = -(-len(inputs) // pool)
    axes = [(0, steps * pool - len(inputs)), *[(0, 0)] * (inputs.ndim - 1)]
    groups = jnp.pad(inputs, axes).reshape(steps, pool, *inputs.shape[1:])
    return jnp.moveaxis(groups, 1, -2).reshape(steps, *inputs.shape[1:-1], -1)
