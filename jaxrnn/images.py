"""Flax Linen modules that read a sequence as an image, its time steps as the rows.

Two baselines without a recurrence, and ReNet, whose recurrent layers stand in the place of
convolutions. Noise and shapes as in `jaxrnn.linen`; besides, H height, W width, D features of a
place, S side of a patch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from jaxrnn.cell import Cell
from jaxrnn.linen import RNN, blank, check_rate, dropout, readout


class MLP(nn.Module):
    """A dense network over the whole sequence at once: the baseline without a recurrence.

    Attributes:
        num_classes: C, the number of classes.
        hidden_sizes: Units of each hidden layer.
        activation: Their nonlinearity.
    """

    num_classes: int
    hidden_sizes: tuple[int, ...] = (100,)
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(
        self, inputs: Num[Array | np.ndarray, "*B T I"], lengths: Any = None
    ) -> Float[Array, "*B C"]:
        """Returns logits; steps past an example's length are read as zeros."""
        hidden = blank(inputs, lengths)
        hidden = hidden.reshape(*inputs.shape[:-2], -1)
        for size in self.hidden_sizes:
            hidden = self.activation(nn.Dense(size)(hidden))
        return nn.Dense(self.num_classes)(hidden)


class CNN(nn.Module):
    """A small convolutional network over the sequence as an image, after LeCun et al. (1998).

    Attributes:
        num_classes: C, the number of classes.
        channels: Channels of the 3 × 3 convolutions, each followed by 2 × 2 maximum pooling.
        hidden_size: Units of the dense layer.
    """

    num_classes: int
    channels: tuple[int, ...] = (16, 32)
    hidden_size: int = 64

    @nn.compact
    def __call__(
        self, inputs: Num[Array | np.ndarray, "*B T I"], lengths: Any = None
    ) -> Float[Array, "*B C"]:
        """Returns logits; steps past an example's length are read as zeros."""
        hidden = blank(inputs, lengths)[..., None]
        for channels in self.channels:
            hidden = nn.relu(nn.Conv(channels, (3, 3), conv_general_dilated=convolve)(hidden))
            hidden = nn.max_pool(hidden, (2, 2), (2, 2))
        hidden = hidden.reshape(*inputs.shape[:-2], -1)
        return nn.Dense(self.num_classes)(nn.relu(nn.Dense(self.hidden_size)(hidden)))


def convolve(
    images: Float[Array, "*B H W C"], kernel: Float[Array, "K L C D"], *_: Any, **__: Any
) -> Float[Array, "*B H W D"]:
    """A convolution at every pixel, with zeros around, as one product with shifted images.

    For `nn.Conv`: XLA:CPU's own is four times slower in a loop, as over training steps.
    """
    (rows, columns), (height, width) = kernel.shape[:2], images.shape[-3:-1]
    margins = [(0, 0)] * (images.ndim - 3)
    margins += [((rows - 1) // 2, rows // 2), ((columns - 1) // 2, columns // 2), (0, 0)]
    padded = jnp.pad(images, margins)
    shifted = [
        padded[..., row : row + height, column : column + width, :]
        for row in range(rows)
        for column in range(columns)
    ]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


class ReNetLayer(nn.Module):
    """A layer of ReNet: patches are read down and up each column, what was found along each row.

    After the first reading a place knows its column, after the second the whole image.

    Attributes:
        cell: The recurrent cell of the four directions, each with its own parameters.
        patch: S, the rows and columns that one place stands for.
        implementation: As in `jaxrnn.unroll`.
        dtype: As in `jaxrnn.unroll`.
        param_dtype: The dtype of the parameters.
    """

    cell: Cell
    patch: int = 1
    implementation: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "*B H W D"]) -> Float[Array, "*B R Q F"]:
        """Reads the image.

        Returns:
            R = H / S rows of Q = W / S places, each with the F = 2 P outputs of both ways.

        Raises:
            ValueError: If patches do not fill it.
        """
        columns = jnp.swapaxes(patchify(image, self.patch), -3, -2)
        found = jnp.swapaxes(self._both_ways("column", columns), -3, -2)
        return self._both_ways("row", found)

    def _both_ways(self, name, sequences):
        def read(name, reverse):
            layer = RNN(
                self.cell,
                reverse=reverse,
                keep_order=True,
                implementation=self.implementation,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=name,
            )
            return layer(sequences)

        both = read(name, False), read(f"{name}_reverse", True)
        return jnp.concatenate(both, axis=-1)


def patchify(image: Float[Array, "*B H W D"], side: int) -> Float[Array, "*B R Q F"]:
    """The image in square patches.

    Returns:
        R = H / S rows of Q = W / S patches, each its F = S·S·D pixels' features side by side.

    Raises:
        ValueError: If patches do not fill it.
    """
    *batch, height, width, depth = image.shape
    if height % side or width % side:
        raise ValueError(f"patch must divide height {height} and width {width}, got {side}")
    blocks = image.reshape(*batch, height // side, side, width // side, side, depth)
    return jnp.swapaxes(blocks, -4, -3).reshape(
        *batch, height // side, width // side, side * side * depth
    )


class ReNet(nn.Module):
    """Classifies an image by layers that sweep over it, and a linear readout of all places.

    Visin et al., "ReNet: a recurrent neural network based alternative to convolutional networks",
    2015; without its fully connected layer.

    Attributes:
        cell: The recurrent cell of every layer.
        num_classes: C, the number of classes.
        patches: S of each layer.
        dropout: The share of what each layer found that is dropped, in training; in [0, 1).
        implementation: As in `jaxrnn.unroll`.
        dtype: As in `jaxrnn.unroll`; also of the readout's product.
        param_dtype: The dtype of the parameters.
    """

    cell: Cell
    num_classes: int
    patches: tuple[int, ...] = (2, 2)
    dropout: float | Array | None = None
    implementation: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, inputs: Num[Array | np.ndarray, "*B T I"], lengths: Any = None
    ) -> Float[Array, "*B C"]:
        """Returns logits; steps past an example's length are read as zeros.

        Raises:
            ValueError: If patches do not fill the image or what a layer found, or `dropout` is not
                in [0, 1).
        """
        check_rate("dropout", self.dropout)
        hidden = blank(inputs, lengths)[..., None]
        for number, patch in enumerate(self.patches):
            layer = ReNetLayer(
                self.cell,
                patch,
                self.implementation,
                self.dtype,
                self.param_dtype,
                name=f"layer_{number}",
            )
            hidden = dropout(self, layer(hidden), self.dropout)
        return readout(self, hidden.reshape(*inputs.shape[:-2], -1))
