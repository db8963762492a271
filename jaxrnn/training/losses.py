"""Loss functions and metrics.

A loss function is `(model, params, batch, key) -> scalar`, a mean over the examples of the batch. A
metric is `(model, params, batch) -> [B]`, one value for each example. A batch has the structure of
the data set: a tree of arrays whose leading axis is the example.

Shapes: B batch, T time, I input features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Integer, Num, Shaped

from jaxrnn.training.augment import Distortion

Loss = Callable[[nn.Module, Any, Any, Array | None], Float[Array, ""]]
Metric = Callable[[nn.Module, Any, Any], Shaped[Array, " B"]]


def apply(model: nn.Module, params: Any, *inputs: Any, key: Array | None = None) -> Any:
    """Applies a model.

    Args:
        model: The model.
        params: Its parameters.
        *inputs: Its arguments.
        key: The key of dropout and recurrent regularization. If None, both are disabled.

    Returns:
        The model's outputs.
    """
    rngs = {} if key is None else {"dropout": key}
    return model.apply({"params": params}, *inputs, rngs=rngs)


def scale(sequences: Shaped[Array | np.ndarray, "..."]) -> Float[Array, "..."]:
    """Scales uint8 to float32 in [0, 1], and converts bool to 0 and 1 in float32.

    Floating-point arrays are returned unchanged.

    Raises:
        ValueError: If `sequences` has another dtype.
    """
    sequences = jnp.asarray(sequences)
    if sequences.dtype == jnp.uint8:
        return sequences.astype(jnp.float32) / 255
    if sequences.dtype == jnp.bool:
        return sequences.astype(jnp.float32)
    if not jnp.issubdtype(sequences.dtype, jnp.floating):
        raise ValueError(f"sequences must be uint8, bool or floating-point, got {sequences.dtype}")
    return sequences


def cross_entropy(
    model: nn.Module,
    params: Any,
    batch: tuple[Num[Array, "B T I"], Integer[Array, " B"]],
    key: Array | None = None,
) -> Float[Array, ""]:
    """Computes the mean softmax cross-entropy, in nats.

    If the model classifies every time step, each step has the label of its sequence.

    Args:
        model: A classifier whose logits are `[B, C]` or `[B, T, C]`.
        params: Its parameters.
        batch: Sequences, uint8 or float `[B, T, I]`, and labels, integers `[B]`.
        key: As in `apply`.

    Returns:
        A scalar.
    """
    sequences, labels = batch
    logits = apply(model, params, scale(sequences), key=key)
    labels = jnp.broadcast_to(
        labels.astype(jnp.int32).reshape(-1, *[1] * (logits.ndim - 2)), logits.shape[:-1]
    )
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class AugmentedCrossEntropy(NamedTuple):
    """The softmax cross-entropy with distorted or mixed images and smoothed labels.

    Attributes:
        distortion: The random distortion of the images. If None, they are not distorted.
        smoothing: The share of a label's probability that is spread evenly over all classes
            (Szegedy et al., 2016).
        mixup: α, by which each image is mixed with that of another example of the batch (Zhang et
            al., "mixup: Beyond empirical risk minimization", 2018). The mixture is λ of one image
            and 1 - λ of the other, as are its labels, with λ drawn from Beta(α, α). If 0, images
            are not mixed.
    """

    distortion: Distortion | None = None
    smoothing: float = 0.0
    mixup: float = 0.0

    def __call__(
        self,
        model: nn.Module,
        params: Any,
        batch: tuple[Num[Array, "B T I"], Integer[Array, " B"]],
        key: Array | None = None,
    ) -> Float[Array, ""]:
        """Computes the mean softmax cross-entropy, in nats.

        Args:
            model: A classifier whose logits are `[B, C]`.
            params: Its parameters.
            batch: Sequences, uint8 or float `[B, T, I]`, and labels, integers `[B]`. Only sequences
                of all pixels of square images can be distorted.
            key: As in `apply`. If None, the images are neither distorted nor mixed.

        Returns:
            A scalar.
        """
        images, labels = scale(batch[0]), batch[1]
        if self.distortion is not None and key is not None:
            key, distortion_key = jax.random.split(key)
            images = self.distortion(distortion_key, images)
        share = None
        if self.mixup and key is not None:
            key, mixup_key = jax.random.split(key)
            share = jax.random.beta(mixup_key, self.mixup, self.mixup, labels.shape)
            images = _mixed(share, images)
        logits = apply(model, params, images, key=key)
        targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        targets = optax.smooth_labels(targets, self.smoothing)
        if share is not None:
            targets = _mixed(share, targets)
        return optax.softmax_cross_entropy(logits, targets).mean()


def _mixed(share: Float[Array, " B"], values: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """Mixes a share of each example with the rest of the example before it in the batch."""
    share = share.astype(values.dtype).reshape(-1, *[1] * (values.ndim - 1))
    return share * values + (1 - share) * jnp.roll(values, 1, axis=0)


def accuracy(
    model: nn.Module,
    params: Any,
    batch: tuple[Num[Array, "B T I"], Integer[Array, " B"]],
) -> Bool[Array, " B"]:
    """Returns whether each sequence is classified correctly.

    Args:
        model: A classifier whose logits are `[B, C]`.
        params: Its parameters.
        batch: Sequences, uint8 or float `[B, T, I]`, and labels, integers `[B]`.

    Returns:
        Booleans `[B]`.
    """
    sequences, labels = batch
    predictions = apply(model, params, scale(sequences)).argmax(-1)
    return predictions == labels.astype(predictions.dtype)
