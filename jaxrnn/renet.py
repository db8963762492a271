"""ReNet: recurrent layers that read an image in place of convolutions.

Visin et al., "ReNet: A recurrent neural network based alternative to convolutional networks", 2015.
The time steps of a sequence are the rows of an image. Noise and shapes as in `jaxrnn.linen`;
besides, H height, W width, D features of a place, S side of a patch.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from jaxrnn.cell import Cell
from jaxrnn.linen import RNN, check_rate, dropout, mask_inputs, readout


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
        self, inputs: Num[Array | np.ndarray, "*B T I"], seq_lengths: Any = None
    ) -> Float[Array, "*B C"]:
        """Returns logits; steps past an example's length are read as zeros.

        Raises:
            ValueError: If patches do not fill the image or what a layer found, or `dropout` is not
                in [0, 1).
        """
        check_rate("dropout", self.dropout)
        hidden = mask_inputs(inputs, seq_lengths)[..., None]
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
        hidden = hidden.reshape(*inputs.shape[:-2], -1)
        return readout(hidden, self.num_classes, self.dtype, self.param_dtype)
