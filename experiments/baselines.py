"""Two baselines without recurrence, an MLP and a CNN, that read a sequence as an image.

The time steps of a sequence are the rows of an image. Shapes are as in `jaxrnn.linen`; in addition
H height, W width, K by L the window of a convolution, D output channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from jaxrnn.linen import mask_inputs


class MLP(nn.Module):
    """A multilayer perceptron over all time steps at once.

    Attributes:
        num_classes: C, the number of classes.
        hidden_sizes: The number of units of each hidden layer.
        activation: The activation function of the hidden layers.
    """

    num_classes: int
    hidden_sizes: tuple[int, ...] = (100,)
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(
        self, inputs: Num[Array | np.ndarray, "*B T I"], seq_lengths: Any = None
    ) -> Float[Array, "*B C"]:
        """Returns logits; steps past an example's length are read as zeros."""
        hidden = mask_inputs(inputs, seq_lengths)
        hidden = hidden.reshape(*inputs.shape[:-2], -1)
        for size in self.hidden_sizes:
            hidden = self.activation(nn.Dense(size)(hidden))
        return nn.Dense(self.num_classes)(hidden)


class CNN(nn.Module):
    """A small convolutional network over the sequence as an image, after LeCun et al. (1998).

    Attributes:
        num_classes: C, the number of classes.
        channels: The output channels of each 3 × 3 convolution, which is followed by 2 × 2 max
            pooling.
        hidden_size: The number of units of the dense layer.
    """

    num_classes: int
    channels: tuple[int, ...] = (16, 32)
    hidden_size: int = 64

    @nn.compact
    def __call__(
        self, inputs: Num[Array | np.ndarray, "*B T I"], seq_lengths: Any = None
    ) -> Float[Array, "*B C"]:
        """Returns logits; steps past an example's length are read as zeros.

        Raises:
            ValueError: If nothing of the image would be left after the pooling.
        """
        if min(inputs.shape[-2:]) < (least := 2 ** len(self.channels)):
            raise ValueError(
                f"a CNN needs at least {least} time steps of {least} features, "
                f"got {inputs.shape[-2]} of {inputs.shape[-1]}"
            )
        hidden = mask_inputs(inputs, seq_lengths)[..., None]
        for channels in self.channels:
            hidden = nn.relu(nn.Conv(channels, (3, 3), conv_general_dilated=convolve)(hidden))
            hidden = nn.max_pool(hidden, (2, 2), (2, 2))
        hidden = hidden.reshape(*inputs.shape[:-2], -1)
        return nn.Dense(self.num_classes)(nn.relu(nn.Dense(self.hidden_size)(hidden)))


def convolve(
    images: Float[Array, "*B H W C"], kernel: Float[Array, "K L C D"], *_: Any, **__: Any
) -> Float[Array, "*B H W D"]:
    """A convolution of stride 1 with zero padding, as one matrix product with shifted images.

    For the `conv_general_dilated` of `nn.Conv`. XLA:CPU's own convolution is four times slower
    inside a loop, such as one over training steps.
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


BASELINES = {"mlp": MLP, "cnn": CNN}
