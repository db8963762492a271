"""Predictions of a trained model, computed in batches on all devices.

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

# Points along a sequence at which `beliefs` classifies what was read so far.
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
    """The model's outputs for any number of examples, computed in batches to bound the memory.

    Args:
        model: The model.
        params: Its parameters.
        sequences: Its first argument, uint8 or a float, as for `scale`.
        *inputs: Its other arguments, such as lengths `[N]`; each may be None.
        mesh: The devices that share the examples; by default all of this process.

    Returns:
        The outputs, with the leading axis `[N]`; logits `[N, C]` of a classifier.
    """
    mesh = make_mesh() if mesh is None else mesh
    return _predict(model, mesh, replicate(params, mesh), (sequences, *inputs))


def probabilities(model: nn.Module, params: Any, *inputs: Any) -> Float[np.ndarray, "N *C"]:
    """Class probabilities, float32, of a classifier; arguments as in `predict`."""
    return np.asarray(jax.nn.softmax(predict(model, params, *inputs)))


def beliefs(
    model: nn.Module, params: Any, sequences: Num[np.ndarray, "N T I"]
) -> Float[np.ndarray, "N P C"]:
    """Class probabilities at evenly spaced points of each sequence.

    Each sequence is read up to 28 points (or every step, if it has fewer) and classified by what
    was read so far; the model takes lengths as its second argument.

    Returns:
        Class probabilities, float32; P = min(28, T).
    """
    count, time, features = sequences.shape
    points = min(BELIEF_POINTS, time)
    lengths = np.arange(1, points + 1, dtype=np.int32) * time // points
    prefixes = np.broadcast_to(sequences[:, None], (count, points, time, features))
    prefixes = prefixes.reshape(-1, time, features)
    found = probabilities(model, params, prefixes, np.tile(lengths, count))
    return found.reshape(count, points, -1)
