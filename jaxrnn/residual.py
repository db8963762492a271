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

from jaxrnn.arguments import check_lengths, size
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

    The blocks at its many steps take most of the time of a long sequence. With a `stride` of k,
    they take one step for every k. If `stem` is `jaxrnn.s5(D, stride=k)`, their input is the output
    of an S5 layer that has read every time step up to there.

    Attributes:
        cell: The recurrent cell of every block.
        num_classes: C, the number of classes.
        features: D, the number of output features of the cell.
        num_layers: The number of blocks.
        stride: k, the number of successive time steps whose features are put side by side before
            the encoder. The last ones are completed with zeros.
        stem: The recurrent cell that is the encoder, with k·I input and D output features. If None,
            the encoder is a dense layer.
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
        >>> model = model.copy(stride=28, stem=jaxrnn.s5(32, state_size=64, stride=28))
        >>> model.init_with_output(jax.random.key(0), inputs)[0].shape
        (2, 10)
    """

    cell: Cell
    num_classes: int
    features: int
    num_layers: int = 4
    stride: int = 1
    stem: Cell | None = None
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
            ValueError: If `stride` is not a positive integer, if the stem does not have D output
                features, or as for `ResidualBlock`.
        """
        *batch, time, _ = inputs.shape
        stride = size("stride", self.stride)
        seq_lengths = check_lengths(seq_lengths, tuple(batch), time, "seq_lengths")
        options: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        layer: Any = options | {"implementation": self.implementation}
        # A NaN in the padding would make the encoder's gradient NaN, as 0 · NaN.
        inputs = mask_inputs(inputs, seq_lengths).astype(self.param_dtype)
        # Transposed once here, rather than in every block.
        inputs = concatenated(jnp.moveaxis(inputs, -2, 0), stride)
        if seq_lengths is not None:
            seq_lengths = -(-seq_lengths // stride)
        if self.stem is None:
            encoder = nn.Dense(self.features, **options, name="encoder")
            hidden = encoder(inputs).astype(inputs.dtype)
        else:
            stem = RNN(self.stem, time_major=True, **layer, name="stem")
            hidden: Any = stem(inputs, seq_lengths=seq_lengths)
            if hidden.shape[-1] != self.features:
                raise ValueError(
                    f"stem must have features={self.features} output features, "
                    f"got {hidden.shape[-1]}"
                )
        for number in range(self.num_layers):
            block = ResidualBlock(self.cell, self.dropout, **layer, name=f"block_{number}")
            hidden = block(hidden, seq_lengths)
        steps = jnp.asarray(hidden.shape[0])
        if seq_lengths is not None:
            hidden = zeros_where(past(seq_lengths, hidden.shape[0]), hidden)
            steps = seq_lengths[..., None]
        mean = hidden.sum(0) / jnp.maximum(steps, 1).astype(hidden.dtype)
        return readout(mean, self.num_classes, **options)


def past(seq_lengths: Int[Array, "*B"], time: int) -> Bool[Array, "T *B"]:
    """Returns True at the steps past the length of each example."""
    return jnp.moveaxis(~within(seq_lengths, time), -1, 0)


def concatenated(inputs: Float[Array, "T *B I"], stride: int) -> Float[Array, "S *B F"]:
    """Puts the features of every `stride` time steps side by side, with zeros after the last."""
    if stride == 1:
        return inputs
    time, *batch, features = inputs.shape
    steps = -(-time // stride)
    axes = [(0, steps * stride - time), *[(0, 0)] * (inputs.ndim - 1)]
    groups = jnp.pad(inputs, axes).reshape(steps, stride, *batch, features)
    return jnp.moveaxis(groups, 1, -2).reshape(steps, *batch, stride * features)
