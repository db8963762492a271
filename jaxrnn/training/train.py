"""Training as pure functions: a step, a chunk of steps on the device; evaluating a classifier.

Sequences of bytes (uint8) stay so on the devices and are scaled to [0, 1] inside the step; floats
are taken as they are. The batch is sharded over the devices of a mesh, GPUs, TPU cores or CPU cores
alike; everything else is replicated.

Shapes: N examples, B batch, K steps of a chunk, T time, I input features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Integer, Num, Shaped

from jaxrnn.training.augment import Distortion

AXIS = "batch"
# Large enough to fill a core, small enough that a layer's outputs stay in its cache.
EVALUATION_BATCH = 500
# Points along a sequence at which `beliefs` looks.
BELIEF_POINTS = 28


@flax.struct.dataclass
class TrainState:
    """Everything a training run carries from step to step.

    Attributes:
        step: int32, the number of updates made; the position in the data follows from it.
        params: The model's parameters.
        opt_state: The optimizer's state.
    """

    step: Any
    params: Any
    opt_state: Any


def optimizer(
    learning_rate: float | Array,
    *,
    schedule: str = "constant",
    steps: int | None = None,
    clip_norm: float | None = None,
    algorithm: Callable[[Any], optax.GradientTransformation] = optax.adam,
) -> optax.GradientTransformation:
    """Adam (Kingma & Ba, 2015) with a schedule and optional clipping by global norm.

    Args:
        learning_rate: The rate, or the peak of a one-cycle schedule; may be traced.
        schedule: "constant" or "onecycle" (Smith & Topin, 2018; cosine form).
        steps: Length of the one-cycle schedule.
        clip_norm: Largest global gradient norm, or None.
        algorithm: Another optimizer in Adam's place, as a function of the rate.

    Raises:
        ValueError: If the schedule is unknown or lacks its length.
    """
    rate: Any = learning_rate
    if schedule == "onecycle":
        if steps is None:
            raise ValueError("steps must be given for the onecycle schedule, got None")
        shape = optax.cosine_onecycle_schedule(steps, 1.0)
        rate = lambda step: learning_rate * shape(step)  # noqa: E731
    elif schedule != "constant":
        raise ValueError(f"schedule must be 'constant' or 'onecycle', got {schedule!r}")
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    return optax.chain(clip, algorithm(rate))


@partial(jax.jit, static_argnames=("model", "optimizer"))
def create_state(
    model: nn.Module, optimizer: optax.GradientTransformation, key: Array, *example: Array
) -> TrainState:
    """The state before the first step, for a model that reads arguments like the example."""
    params = model.init(key, *example)["params"]
    return TrainState(jnp.int32(0), params, optimizer.init(params))


# What a step makes smaller: `(model, params, batch, key) -> loss`; see `cross_entropy`.
Loss = Callable[[nn.Module, Any, Any, Array | None], Float[Array, ""]]


def cross_entropy(
    model: nn.Module,
    params: Any,
    batch: tuple[Num[Array, "B T I"], Integer[Array, " B"]],
    key: Array | None = None,
) -> Float[Array, ""]:
    """Mean softmax cross-entropy in nats; if the model classifies every step, over all of them."""
    sequences, labels = batch
    logits = apply(model, params, scale(sequences), key=key)
    labels = jnp.broadcast_to(
        labels.astype(jnp.int32).reshape(-1, *[1] * (logits.ndim - 2)), logits.shape[:-1]
    )
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class Augmented(NamedTuple):
    """The cross-entropy of classifiers `[B, C]` on images that are distorted anew at every step.

    Attributes:
        distortion: How; None leaves them as they are.
        smoothing: Share of each label spread over all classes (Szegedy et al., 2016).
    """

    distortion: Distortion | None = None
    smoothing: float = 0.0

    def __call__(
        self,
        model: nn.Module,
        params: Any,
        batch: tuple[Num[Array, "B T I"], Integer[Array, " B"]],
        key: Array | None = None,
    ) -> Float[Array, ""]:
        """Mean softmax cross-entropy in nats; without a key nothing is distorted."""
        images, labels = scale(batch[0]), batch[1]
        if self.distortion is not None and key is not None:
            key, noise = jax.random.split(key)
            images = self.distortion(noise, images)
        logits = apply(model, params, images, key=key)
        targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        targets = optax.smooth_labels(targets, self.smoothing)
        return optax.softmax_cross_entropy(logits, targets).mean()


def apply(model: nn.Module, params: Any, *arguments: Any, key: Array | None = None) -> Any:
    """The model's result; with a key in training, with dropout and other noise."""
    rngs = {} if key is None else {"dropout": key}
    return model.apply({"params": params}, *arguments, rngs=rngs)


def train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Any,
    *,
    loss_fn: Loss = cross_entropy,
    key: Array | None = None,
    axis: str | None = None,
    slices: int = 1,
) -> tuple[TrainState, Float[Array, ""]]:
    """One update.

    Args:
        model: The model.
        optimizer: The optimizer.
        state: The state before the step.
        batch: The batch, or this device's share of it, as `loss_fn` takes it.
        loss_fn: What to make smaller.
        key: What dropout and other noise is drawn from, with the step's number; None is no noise.
        axis: The mesh axis over which the batch is shared, if it is.
        slices: Into how many equal parts the batch is cut, whose gradients are added up: the same
            but for rounding and noise, and faster where a part stays in the caches. Must divide it.

    Returns:
        The state after the step and the loss before it, over the whole batch.
    """
    if key is not None:
        key = jax.random.fold_in(key, state.step)
        if axis is not None:
            key = jax.random.fold_in(key, lax.axis_index(axis))
    found = _value_and_grad(partial(loss_fn, model), state.params, batch, key, slices)
    if axis is not None:
        flat, unravel = ravel_pytree(found)  # one collective instead of one for each leaf
        found = unravel(lax.pmean(flat, axis))
    loss, grads = found
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), loss


def _value_and_grad(loss, params, batch, key, slices):
    """The mean of the loss and of its gradient over the slices of the batch."""
    value_and_grad = jax.value_and_grad(loss)
    if slices == 1:
        return value_and_grad(params, batch, key)

    def body(total, part):
        number, part = part
        own = None if key is None else jax.random.fold_in(key, number)
        return jax.tree.map(jnp.add, total, value_and_grad(params, part, own)), None

    def cut(leaf):
        return leaf.reshape(slices, leaf.shape[0] // slices, *leaf.shape[1:])

    parts = jnp.arange(slices), jax.tree.map(cut, batch)
    total, _ = lax.scan(body, (jnp.float32(0), jax.tree.map(jnp.zeros_like, params)), parts)
    return jax.tree.map(lambda leaf: leaf / slices, total)


def noise_key(key: Array) -> Array:
    """What a run draws its noise from, apart from the initial weights that it draws from `key`."""
    return jax.random.fold_in(key, 1)


def make_mesh(devices: int | None = None) -> Mesh:
    """A mesh of the first `devices` devices (all by default) with the one axis "batch"."""
    return Mesh(np.array(jax.devices()[:devices]), (AXIS,))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of the tree on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


@partial(
    jax.jit,
    static_argnames=("model", "optimizer", "mesh", "loss_fn", "slices"),
    donate_argnames="state",
)
def train_chunk(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    state: TrainState,
    data: Any,
    indices: Int[Array, "K B"],
    key: Array | None = None,
    *,
    loss_fn: Loss = cross_entropy,
    slices: int = 1,
) -> tuple[TrainState, Float[Array, " K"]]:
    """K updates in one program on the devices; step k reads the examples `indices[k]`.

    The state is donated: the one passed in must not be used again. B must be a multiple of the
    number of devices.

    Args:
        model: The model.
        optimizer: The optimizer.
        mesh: The devices.
        state: The state before the first step.
        data: The examples, leaves `[N, ...]`; for `cross_entropy` sequences and labels.
        indices: The batches.
        key: As in `train_step`.
        loss_fn: What to make smaller; a function of the module level, so that it compiles once.
        slices: As in `train_step`, of a device's share of a batch.

    Returns:
        The state after K steps and the K losses.
    """
    # A collective of one device would only cost time.
    axis = AXIS if mesh.size > 1 else None

    def chunk(state, data, key, indices):
        def body(state, batch):
            batch = jax.tree.map(lambda leaf: leaf[batch], data)
            return train_step(
                model,
                optimizer,
                state,
                batch,
                loss_fn=loss_fn,
                key=key,
                axis=axis,
                slices=slices,
            )

        return lax.scan(body, state, indices)

    return jax.shard_map(
        chunk,
        mesh=mesh,
        in_specs=(P(), P(), P(), P(None, AXIS)),
        out_specs=P(),
        check_vma=False,
    )(state, data, key, indices)


@partial(jax.jit, static_argnames=("model", "mesh"))
def logits(
    model: nn.Module,
    mesh: Mesh,
    params: Any,
    sequences: Num[Array | np.ndarray, "N T I"],
    lengths: Int[Array | np.ndarray, " N"] | None = None,
) -> Float[Array, "N *C"]:
    """What the model says of any number of sequences, computed in batches to bound memory.

    For a classifier logits `[N, C]`, or `[N, T, C]` if it classifies every step.
    """
    count = len(sequences)
    missing = -count % mesh.size

    def pad(leaf):
        return jnp.concatenate([leaf, jnp.zeros((missing, *leaf.shape[1:]), leaf.dtype)])

    def share(params, examples):
        def one(example):
            sequence, length = example
            return apply(model, params, scale(sequence), length)

        return lax.map(one, examples, batch_size=min(EVALUATION_BATCH, len(examples[0])))

    examples = jax.tree.map(pad, (sequences, lengths))
    sharded = jax.shard_map(
        share, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P(AXIS), check_vma=False
    )
    return sharded(params, examples)[:count]


def evaluate(
    model: nn.Module,
    mesh: Mesh,
    params: Any,
    sequences: Num[Array | np.ndarray, "N T I"],
    labels: Integer[Array | np.ndarray, " N"],
) -> float:
    """The share of the sequences that the model classifies correctly."""
    return _count_correct(model, mesh, params, sequences, labels).item() / len(labels)


@partial(jax.jit, static_argnames=("model", "mesh"))
def _count_correct(model, mesh, params, sequences, labels):
    predictions = logits(model, mesh, params, sequences).argmax(-1)
    return (predictions == labels.astype(predictions.dtype)).sum()


def probabilities(model: nn.Module, params: Any, sequences: Num[np.ndarray, "N T I"]) -> np.ndarray:
    """Class probabilities `[N, C]`, float32."""
    return np.asarray(jax.nn.softmax(logits(model, make_mesh(), params, sequences)))


def beliefs(model: nn.Module, params: Any, sequences: Num[np.ndarray, "N T I"]) -> np.ndarray:
    """What the model believes while it reads.

    Each sequence is read up to 28 evenly spaced points (or every step, if it has fewer) and
    classified by what was read so far.

    Returns:
        Class probabilities `[N, P, C]`, float32; P = min(28, T).
    """
    count, time, features = sequences.shape
    points = min(BELIEF_POINTS, time)
    lengths = np.arange(1, points + 1, dtype=np.int32) * time // points
    prefixes = np.broadcast_to(sequences[:, None], (count, points, time, features))
    prefixes = prefixes.reshape(-1, time, features)
    beliefs = logits(model, make_mesh(), params, prefixes, np.tile(lengths, count))
    return np.asarray(jax.nn.softmax(beliefs)).reshape(count, points, -1)


def scale(sequences: Shaped[Array | np.ndarray, "..."]) -> Float[Array, "..."]:
    """What a model reads: uint8 is scaled to float32 in [0, 1], floats are taken as they are.

    Raises:
        ValueError: The sequences are of another dtype.
    """
    sequences = jnp.asarray(sequences)
    if sequences.dtype == jnp.uint8:
        return sequences.astype(jnp.float32) / 255
    if not jnp.issubdtype(sequences.dtype, jnp.floating):
        raise ValueError(f"sequences: got dtype {sequences.dtype}, expected uint8 or a float")
    return sequences
