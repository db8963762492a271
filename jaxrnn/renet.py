"""ReNet: recurrent layers that read an image in place of convolutions.

Visin et al., "ReNet: A recurrent neural network based alternative to convolutional networks", 2015.
A sequence is read as an image whose rows are the time steps. Dropout and shapes are as in
`jaxrnn.linen`; in addition H height, W width, D features of a pixel, S side of a patch, R rows and
Q columns of patches, F features of a patch.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from jaxrnn.cell import Cell
from jaxrnn.linen import Stack, check_rate, dropout, mask_inputs, readout

__all__ = ["ReNet", "ReNetLayer"]


class ReNetLayer(nn.Module):
    """One layer of ReNet: reads every column of patches in both directions, then every row.

    After the columns the features of a patch depend on its column, after the rows on the whole
    image.

    Attributes:
        cell: The recurrent cell of the four directions, each with its own parameters.
        patch: S, the side of a patch in pixels.
        implementation: As in `jaxrnn.unroll`.
        dtype: As in `jaxrnn.unroll`.
        param_dtype: The dtype of the parameters.
    """

    cell: Cell
    patch: int = 1
    implementation: str | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "*B H W D"]) -> Float[Array, "*B R Q F"]:
        """Applies the layer to an image.

        Returns:
            R = H / S rows of Q = W / S patches, each with the F = 2 P outputs of both directions.

        Raises:
            ValueError: If patches of this size do not tile the image.
        """
        column, row = (
            Stack(
                self.cell,
                bidirectional=True,
                implementation=self.implementation,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=name,
            )
            for name in ("column", "row")
        )
        columns = column(jnp.swapaxes(patchify(image, self.patch), -3, -2))
        return row(jnp.swapaxes(columns, -3, -2))


def patchify(image: Float[Array, "*B H W D"], side: int) -> Float[Array, "*B R Q F"]:
    """Splits an image into square patches.

    Returns:
        R = H / S rows of Q = W / S patches, each with the F = S·S·D features of its pixels.

    Raises:
        ValueError: If patches of this size do not tile the image.
    """
    *batch, height, width, depth = image.shape
    if height % side or width % side:
        raise ValueError(f"patch must divide height {height} and width {width}, got {side}")
    blocks = image.reshape(*batch, height // side, side, width // side, side, depth)
    return jnp.swapaxes(blocks, -4, -3).reshape(
        *batch, height // side, width // side, side * side * depth
    )


class ReNet(nn.Module):
    """An image classifier: layers of ReNet and a linear readout of all patches.

    Without the fully connected layer of Visin et al. (2015).

    Attributes:
        cell: The recurrent cell of every layer.
        num_classes: C, the number of classes.
        patches: The side S of the patches of each layer.
        dropout: The dropout rate of each layer's outputs in training, in [0, 1).
        implementation: As in `jaxrnn.unroll`.
        dtype: As in `jaxrnn.unroll`; also of the readout's product.
        param_dtype: The dtype of the parameters.
    """

    cell: Cell
    num_classes: int
    patches: tuple[int, ...] = (2, 2)
    dropout: float | Array | None = None
    implementation: str | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, inputs: Num[Array | np.ndarray, "*B T I"], seq_lengths: Any = None
    ) -> Float[Array, "*B C"]:
        """Returns logits; steps past an example's length are read as zeros.

        Raises:
            ValueError: If the patches of a layer do not tile its input, or `dropout` is not in
                [0, 1).
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
