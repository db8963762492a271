"""Many training runs as one program: each with its own seed and numbers, side by side.

The runs are shared by the devices of a mesh. A device that has several of them vectorises them
(`jax.vmap`), which fills a GPU; on a CPU that makes small products slow, so give each of its
devices one run at a time. Structure (cell, sizes) is the same for all of them and compiles once;
numbers (learning rate, forget bias, zoneout, …) may differ from run to run.

Shapes: S runs, N examples, B batch, K steps of a chunk, T time, I input features.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxrnn.training import data, train

AXIS = "run"
# What a run is made of: `(numbers) -> (model, optimizer)`, called inside the program with the run's
# own numbers as traced scalars. Hashable, and equal for all calls, so that it compiles once.
Build = Callable[[Mapping[str, Array]], tuple[nn.Module, optax.GradientTransformation]]


class Look(NamedTuple):
    """One evaluation of all runs; arrays `[S]`.

    Attributes:
        step: Updates made so far.
        loss: Its mean since the look before.
        validation_accuracy: In 0..1.
        test_accuracy: In 0..1.
        step_seconds: Of an update of all runs; the median over chunks so far, which leaves
            compiling out once there are three.
    """

    step: int
    loss: np.ndarray
    validation_accuracy: np.ndarray
    test_accuracy: np.ndarray
    step_seconds: float


def make_mesh(runs: int) -> Mesh:
    """A mesh of this host's devices, no more than there are runs, with the axis "run"."""
    return Mesh(np.array(jax.local_devices()[:runs]), (AXIS,))


def train_runs(
    build: Build,
    seeds: np.ndarray,
    numbers: Mapping[str, np.ndarray],
    splits: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    steps: int,
    batch_size: int,
    eval_every: int,
    chunk: int = 100,
    loss_fn: train.Loss = train.cross_entropy,
    slices: int = 1,
) -> Iterator[Look]:
    """Trains all runs to their last step.

    A run's weights, noise and order of the data follow from its seed alone, so that it comes out
    the same whichever runs stand beside it.

    Args:
        build: What the runs are made of.
        seeds: `[S]`, one for each run.
        numbers: `[S]` arrays, each run's own numbers for `build`.
        splits: Sequences `[N, T, I]`, uint8 or float as for `train.scale`, and integer labels, for
            training, validation and test.
        steps: Updates of each run.
        batch_size: Examples of each update.
        eval_every: Updates between two evaluations.
        chunk: Most updates in one program.
        loss_fn: What to make smaller; a function of the module level, so that it compiles once.
        slices: As in `jaxrnn.training.train.train_step`.

    Yields:
        A `Look` after every `eval_every` steps and after the last. A run whose loss is no longer
        finite goes on as it is; the others do not see it.
    """
    count, mesh = len(seeds), make_mesh(len(seeds))
    spare = (0, -count % mesh.size)  # every device has as many runs: the last is made again
    seeds = np.pad(seeds, spare, "edge")
    numbers = {
        name: jnp.asarray(np.pad(values, spare, "edge"), jnp.float32)
        for name, values in numbers.items()
    }
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    keys, numbers = jax.device_put((keys, numbers), NamedSharding(mesh, P(AXIS)))
    examples, validation, test = train.replicate(tuple(map(tuple, splits)), mesh)
    example = jnp.zeros((1, *splits[0][0].shape[1:]), jnp.float32)
    states = _create(build, mesh, keys, numbers, example)
    step, losses, durations = 0, [], []
    while step < steps:
        length = min(chunk, eval_every - step % eval_every, steps - step)
        indices = np.stack(
            [
                data.batch_indices(int(seed), step, length, batch_size, len(splits[0][1]))
                for seed in seeds
            ]
        )
        started = time.perf_counter()
        states, loss = _advance(
            build, mesh, loss_fn, slices, states, keys, numbers, examples, indices
        )
        losses.append(np.asarray(loss))
        durations.append((time.perf_counter() - started) / length)
        step += length
        if step % eval_every == 0 or step == steps:
            yield Look(
                step,
                np.concatenate(losses, axis=1).mean(1)[:count],
                _accuracy(build, mesh, states, numbers, *validation)[:count],
                _accuracy(build, mesh, states, numbers, *test)[:count],
                float(np.median(durations)),
            )
            losses = []


def count_parameters(build: Build, numbers: Mapping[str, float], example: Array) -> int:
    """The parameters of a model that `build` makes."""
    model, _ = build(numbers)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), example)["params"])
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _each(function: Callable, mesh: Mesh, split: int, *arguments: Any) -> Any:
    """Applies the function to every run; the first `split` arguments hold one entry for each."""

    def share(*arguments):
        def one(*own):
            return function(*own, *arguments[split:])

        own = arguments[:split]
        if len(jax.tree.leaves(own)[0]) == 1:
            # Without vmap: a batch of one matrix is a slow matrix on a CPU.
            found = one(*jax.tree.map(lambda leaf: leaf[0], own))
            return jax.tree.map(lambda leaf: leaf[None], found)
        return jax.vmap(one)(*own)

    specs = (P(AXIS),) * split + (P(),) * (len(arguments) - split)
    sharded = jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=P(AXIS), check_vma=False)
    return sharded(*arguments)


@partial(jax.jit, static_argnames=("build", "mesh"))
def _create(build, mesh, keys, numbers, example):
    def create(key, numbers, example):
        model, optimizer = build(numbers)
        params = model.init(key, example)["params"]
        return train.TrainState(jnp.int32(0), params, optimizer.init(params))

    return _each(create, mesh, 2, keys, numbers, example)


@partial(jax.jit, static_argnames=("build", "mesh", "loss_fn", "slices"), donate_argnames="states")
def _advance(build, mesh, loss_fn, slices, states, keys, numbers, examples, indices):
    def advance(state, key, numbers, indices, examples):
        model, optimizer = build(numbers)
        noise = train.noise_key(key)

        def body(state, batch):
            batch = jax.tree.map(lambda leaf: leaf[batch], examples)
            return train.train_step(
                model, optimizer, state, batch, loss_fn=loss_fn, key=noise, slices=slices
            )

        return lax.scan(body, state, indices)

    return _each(advance, mesh, 4, states, keys, numbers, indices, examples)


def _accuracy(build, mesh, states, numbers, sequences, labels) -> np.ndarray:
    correct = _count_correct(build, mesh, states.params, numbers, sequences, labels)
    return np.asarray(correct) / len(labels)


@partial(jax.jit, static_argnames=("build", "mesh"))
def _count_correct(build, mesh, params, numbers, sequences, labels) -> Float[Array, " S"]:
    def correct(params, numbers, sequences, labels):
        model, _ = build(numbers)

        def one(example):
            return train.apply(model, params, train.scale(example))

        size = min(train.EVALUATION_BATCH, len(sequences))
        predictions = lax.map(one, sequences, batch_size=size).argmax(-1)
        return (predictions == labels.astype(predictions.dtype)).sum().astype(jnp.float32)

    return _each(correct, mesh, 2, params, numbers, sequences, labels)
