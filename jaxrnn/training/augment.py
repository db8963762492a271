"""Random distortions of images, drawn anew at every training step.

The distortions are small affine maps and elastic deformations, as in Simard et al., "Best practices
for convolutional neural networks applied to visual document analysis", 2003.

Shapes: B batch, N side of a square image, K side of the coarse grid of displacements, T time, I
input features.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float

from jaxrnn.training import data


class Distortion(NamedTuple):
    """A random distortion of images: an affine map and an elastic deformation.

    Every amount but `grid` is the standard deviation of a normal distribution around no distortion.

    Attributes:
        rotation: Angle of the rotation, in degrees.
        scale: Relative change of size along each axis.
        shear: Shift of a pixel relative to its distance from the centre.
        shift: Translation along each axis, in pixels.
        elastic: Displacement of the points of a coarse grid, in pixels. It is interpolated smoothly
            between the points.
        grid: K, the number of points along a side of that grid.
        order: The order in which the sequences read the pixels, as in
            `jaxrnn.training.data.sequences`.
    """

    rotation: float = 5.0
    scale: float = 0.05
    shear: float = 0.07
    shift: float = 0.56
    elastic: float = 0.56
    grid: int = 6
    order: str = "rows"

    def __call__(self, key: Array, sequences: Float[Array, "B T I"]) -> Float[Array, "B T I"]:
        """Distorts each image independently, with linear interpolation and zeros outside.

        Args:
            key: The random key.
            sequences: All pixels of square images, float `[B, T, I]` with T · I = N². They are
                read row by row (T = I = N), or in the order of `order`.

        Returns:
            The distorted images, read in the same order, float `[B, T, I]`.

        Raises:
            ValueError: If no square image is read as such sequences.
        """
        side = math.isqrt(math.prod(sequences.shape[1:]))
        # The pixel of the image that each value of a sequence is.
        pixels = data.sequences(np.arange(side**2).reshape(1, side, side), self.order)
        if sequences.shape[1:] != pixels.shape[1:]:
            raise ValueError(
                f"sequences must read square images by {self.order}, got {list(sequences.shape)}"
            )
        pixels = pixels.reshape(-1)
        images = sequences.reshape(len(sequences), -1)[:, np.argsort(pixels)]
        images = self._distorted(key, images.reshape(-1, side, side))
        return images.reshape(len(images), -1)[:, pixels].reshape(sequences.shape)

    def _distorted(self, key, images):
        count, side, _ = images.shape
        keys = jax.random.split(key, 5)
        angle = jnp.deg2rad(self.rotation) * jax.random.normal(keys[0], (count,))
        scale = 1 + self.scale * jax.random.normal(keys[1], (count, 2, 1))
        shear = self.shear * jax.random.normal(keys[2], (count,))
        shift = self.shift * jax.random.normal(keys[3], (count, 2, 1))
        bend = self.elastic * jax.random.normal(keys[4], (count, 2, self.grid, self.grid))
        bend = jax.image.resize(bend, (count, 2, side, side), "cubic").reshape(count, 2, -1)
        turn = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
        slant = jnp.array([[jnp.ones(count), shear], [jnp.zeros(count), jnp.ones(count)]])
        middle = (side - 1) / 2
        offsets = jnp.indices((side, side), dtype=jnp.float32).reshape(2, -1) - middle
        linear = scale * jnp.einsum("ijb,jkb->bik", turn, slant)
        sources = linear @ offsets + shift + bend + middle

        def sample(image, source):
            return map_coordinates(image, list(source), order=1, mode="constant")

        return jax.vmap(sample)(images, sources).reshape(images.shape)
