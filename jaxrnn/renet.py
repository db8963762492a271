"""ReNet, an image classifier with recurrent layers in place of convolutions.

Visin et al., "ReNet: A recurrent neural network based alternative to convolutional networks", 2015.

Shapes: as in `jaxrnn.linen`, and H height, W width, D features of a pixel, S side of a patch, R
rows and Q columns of patches, F features of a patch.
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
    """A ReNet layer, which reads every column of patches in both directions and then every row.

    The features of a patch depend on its column after the first pass, and on the whole image after
    the second.

    Attributes:
        cell: The recurrent cell. Each of the four directions has its own parameters.
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

        Args:
            image: `[*B, H, W, D]`.

        Returns:
            The features `[*B, R, Q, F]` of R = H / S rows of Q = W / S patches, with the F = 2 P
            outputs of both directions.

        Raises:
            ValueError: If `patch` does not divide the height and the width.
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

    Args:
        image: `[*B, H, W, D]`.
        side: S, the side of a patch in pixels.

    Returns:
        The features `[*B, R, Q, F]` of R = H / S rows of Q = W / S patches, with the F = S·S·D
        features of their pixels.

    Raises:
        ValueError: If `side` does not divide the height and the width.
    """
    *batch, height, width, depth = image.shape
    if height % side or width % side:
        raise ValueError(f"patch must divide height {height} and width {width}, got {side}")
    blocks = image.reshape(*batch, height // side, side, width // side, side, depth)
    return jnp.swapaxes(blocks, -4, -3).reshape(
        *batch, height // side, width // side, side * side * depth
    )


class ReNet(nn.Module):
    """An image classifier: ReNet layers followed by a linear readout of all patches.

    The fully connected layer of Visin et al. (2015) is omitted. Dropout is applied as in
    `jaxrnn.linen`.

    Attributes:
        cell: The recurrent cell of every layer.
        num_classes: C, the number of classes.
        patches: The side S of the patches in pixels, one number per layer.
        dropout: The dropout rate of each layer's outputs in training, in [0, 1), or None.
        implementation: As in `jaxrnn.unroll`.
        dtype: The dtype of the operands of the matrix products, including that of the readout.
        param_dtype: The dtype of the parameters.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxrnn
        >>> from jaxrnn.renet import ReNet
        >>> model = ReNet(jaxrnn.gru(16), num_classes=10)
        >>> images = jnp.ones((2, 28, 28))
        >>> logits, variables = model.init_with_output(jax.random.key(0), images)
        >>> logits.shape
        (2, 10)
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
        """Classifies images, or sequences read as images whose rows are the time steps.

        Args:
            inputs: Images with one feature per pixel, `[*B, T, I]` with height T and width I.
            seq_lengths: Integers `[*B]` in 0..T. Rows of an image past its length are read as
                zeros. Defaults to T.

        Returns:
            The logits `[*B, C]`.

        Raises:
            ValueError: If the patches of a layer do not divide the height and the width of its
                inputs, or `dropout` is not in [0, 1).
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
