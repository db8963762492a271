"""Predictions of a trained model, in batches that all devices share.

Shapes: N examples, T time, I input features, C classes, P points of a sequence.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Num, Shaped

from jaxrnn.training.losses import apply, scale
from jaxrnn.training.train import BATCH, make_mesh, map_batches, pad, replicate

# Largest number of points of a sequence at which `beliefs` computes class probabilities.
BELIEF_POINTS = 28


@partial(jax.jit, static_argnames=("model", "mesh"))
def _predict(model, mesh, params, inputs):
    def local(params, inputs):
        return map_batches(lambda batch: apply(model, params, scale(batch[0]), *batch[1:]), inputs)

    count, padded = pad(inputs, mesh.size)
    sharded = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P(BATCH)), out_specs=P(BATCH), check_vma=False
    )
    return jax.tree.map(lambda leaf: leaf[:count], sharded(params, padded))


def predict(
    model: nn.Module,
    params: Any,
    sequences: Shaped[Array | np.ndarray, "N ..."],
    *inputs: Any,
    mesh: Mesh | None = None,
) -> Any:
    """Computes the model's outputs in batches, which bounds the memory.

    Args:
        model: The model.
        params: Its parameters.
        sequences: Its first argument, uint8 or float `[N, ...]`, which is scaled as by `scale`.
        *inputs: Its other arguments, such as lengths `[N]`. Each may be None.
        mesh: The devices that share the examples. Defaults to all devices of this process.

    Returns:
        The outputs `[N, ...]`, such as the logits `[N, C]` of a classifier.
    """
    mesh = make_mesh() if mesh is None else mesh
    return _predict(model, mesh, replicate(params, mesh), (sequences, *inputs))


def probabilities(model: nn.Module, params: Any, *inputs: Any) -> Float[np.ndarray, "N *C"]:
    """Computes the class probabilities of a classifier.

    Args:
        model: The model.
        params: Its parameters.
        *inputs: Its arguments, as in `predict`.

    Returns:
        The softmax of the logits, float32 `[N, C]` or `[N, T, C]`.
    """
    return np.asarray(jax.nn.softmax(predict(model, params, *inputs)))


def beliefs(
    model: nn.Module, params: Any, sequences: Num[np.ndarray, "N T I"]
) -> Float[np.ndarray, "N P C"]:
    """Computes class probabilities after each part of the sequences.

    Each sequence has P = min(28, T) evenly spaced points. The probabilities at a point are those of
    the sequence up to there.

    Args:
        model: A classifier that takes sequences and, as its second argument, their lengths.
        params: Its parameters.
        sequences: uint8 or float `[N, T, I]`.

    Returns:
        The class probabilities, float32 `[N, P, C]`.
    """
    count, time, features = sequences.shape
    points = min(BELIEF_POINTS, time)
    lengths = np.arange(1, points + 1, dtype=np.int32) * time // points
    prefixes = np.broadcast_to(sequences[:, None], (count, points, time, features))
    prefixes = prefixes.reshape(-1, time, features)
    found = probabilities(model, params, prefixes, np.tile(lengths, count))
    return found.reshape(count, points, -1)
