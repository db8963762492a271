"""Random distortions of images on the device, drawn anew at every training step.

Simard et al., "Best practices for convolutional neural networks applied to visual document
analysis", 2003: small random affine maps, and elastic ones that move neighbours together.

Shapes: B batch, N side of a square image, K side of the coarse grid of displacements.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float


class Distortion(NamedTuple):
    """A random distortion; each amount is a standard deviation.

    Attributes:
        rotation: In degrees.
        scale: Relative, for each axis.
        shear: Relative to the distance from the centre.
        shift: In pixels, along each axis.
        elastic: In pixels, of the points of a coarse grid, smooth in between.
        grid: K, points along a side of that grid.
    """

    rotation: float = 5.0
    scale: float = 0.05
    shear: float = 0.07
    shift: float = 0.56
    elastic: float = 0.56
    grid: int = 6

    def __call__(self, key: Array, images: Float[Array, "B N N"]) -> Float[Array, "B N N"]:
        """Distorts each image by a map of its own, with linear interpolation and zeros outside."""
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
        places = jnp.indices((side, side), dtype=jnp.float32).reshape(2, -1) - middle
        linear = scale * jnp.einsum("ijb,jkb->bik", turn, slant)
        sources = linear @ places + shift + bend + middle

        def draw(image, source):
            return map_coordinates(image, list(source), order=1, mode="constant")

        return jax.vmap(draw)(images, sources).reshape(images.shape)
