"""Training as compiled functions: of one run, or of several runs side by side.

A `Trainer` holds what is fixed while a program is compiled: how model and optimizer follow from
hyperparameters, the loss function, the metric, and the mesh of devices. Its methods initialize,
advance and evaluate. The mesh has two axes: "run", over which runs are distributed, and "batch",
over which each run's batches are.

Every method takes one run or several: without a leading axis the state, the key and the
hyperparameters are those of one run, with a leading axis `[S]` those of S runs. A run has the same
results either way, to rounding.

Shapes: S runs, N examples, B batch, K steps of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

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
from jaxtyping import Array, Float, Int

from jaxrnn.training.losses import Loss, Metric, accuracy, cross_entropy

RUN, BATCH = "run", "batch"
# Large enough to fill a core, small enough that a layer's outputs stay in its cache.
EVALUATION_BATCH = 500

T = TypeVar("T")
# A factory from hyperparameters to (model, optimizer). It is called while a program is traced, with
# scalars that may be tracers. It must be hashable and compare equal to itself, so that the program
# is compiled once.
Factory = Callable[[Mapping[str, Any]], tuple[nn.Module, optax.GradientTransformation]]


class Fixed(NamedTuple):
    """The factory of one model and one optimizer, without hyperparameters."""

    model: nn.Module
    optimizer: optax.GradientTransformation

    def __call__(
        self, hparams: Mapping[str, Any]
    ) -> tuple[nn.Module, optax.GradientTransformation]:
        """The model and the optimizer."""
        return self.model, self.optimizer


@flax.struct.dataclass
class TrainState:
    """Everything that a run carries from step to step.

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
        loss_fn: The loss function.
        key: From it and the step's number the loss function's key is derived; None disables
            dropout and recurrent regularization.
        axis: The mesh axis over which the batch is distributed, if it is.
        slices: Number of equal parts into which the batch is cut, and whose gradients are averaged:
            the same but for rounding and noise, and faster where a part stays in a core's caches.
            Must divide the batch.

    Returns:
        The state after the step and the loss before it, over the whole batch.
    """
    if key is not None:
        key = jax.random.fold_in(key, state.step)
        if axis is not None:
            key = jax.random.fold_in(key, lax.axis_index(axis))
    loss_and_grads = _value_and_grad(partial(loss_fn, model), state.params, batch, key, slices)
    if axis is not None:
        flat, unravel = ravel_pytree(loss_and_grads)  # one collective instead of one for each leaf
        loss_and_grads = unravel(lax.pmean(flat, axis))
    loss, grads = loss_and_grads
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), loss


def _value_and_grad(
    loss: Callable[..., Array], params: Any, batch: Any, key: Array | None, slices: int
) -> Any:
    """The mean of the loss and of its gradient over the slices of the batch."""
    value_and_grad = jax.value_and_grad(loss)
    if slices == 1:
        return value_and_grad(params, batch, key)

    def body(total, numbered):
        number, part = numbered
        own = None if key is None else jax.random.fold_in(key, number)
        return jax.tree.map(jnp.add, total, value_and_grad(params, part, own)), None

    def cut(leaf):
        return leaf.reshape(slices, leaf.shape[0] // slices, *leaf.shape[1:])

    parts = jnp.arange(slices), jax.tree.map(cut, batch)
    total, _ = lax.scan(body, (jnp.float32(0), jax.tree.map(jnp.zeros_like, params)), parts)
    return jax.tree.map(lambda leaf: leaf / slices, total)


def make_mesh(
    runs: int = 1, batch: int | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh with the axes "run" and "batch".

    Args:
        runs: Devices over which runs are distributed.
        batch: Devices over which each batch is; by default as many as there are.
        devices: The devices, by default this process's. A mesh of several processes takes equally
            many of each, side by side along "batch".
    """
    devices = jax.local_devices() if devices is None else devices
    batch = max(1, len(devices) // runs) if batch is None else batch
    return Mesh(np.array(devices[: runs * batch]).reshape(runs, batch), (RUN, BATCH))


def replicate(tree: T, mesh: Mesh) -> T:
    """Puts a copy of the tree on every device of the mesh."""
    return put(tree, NamedSharding(mesh, P()))


def put(tree: T, sharding: NamedSharding) -> T:
    """Puts a tree on the devices of a sharding; of several processes, each puts its own part.

    Args:
        tree: Arrays, the same in every process.
        sharding: Where they go.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def part(leaf):
        # Not by device_put, which sends every array to all processes to compare them.
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = part(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(part, tree)


@dataclass(frozen=True)
class Trainer:
    """Initializes, advances and evaluates runs, in compiled functions.

    Attributes:
        factory: Makes model and optimizer from hyperparameters; `Fixed(model, optimizer)` if there
            are none.
        loss_fn: The loss function. Like the factory and the metric it is a part of the compiled
            program: a function of a module, not one that is defined anew for every call.
        metric_fn: The metric of an evaluation.
        mesh: The devices, as `make_mesh` makes them. A device that has several runs vectorizes
            them (`jax.vmap`), which fills a GPU; on a CPU it makes small products slow.
        slices: As in `train_step`, of a device's share of a batch.
    """

    factory: Factory
    loss_fn: Loss = cross_entropy
    metric_fn: Metric = accuracy
    mesh: Mesh = field(default_factory=make_mesh)
    slices: int = 1

    @partial(jax.jit, static_argnums=0)
    def init(self, key: Array, hparams: Mapping[str, Any], *inputs: Any) -> TrainState:
        """The state before the first step.

        Args:
            key: The run's key, or `[S]` keys.
            hparams: The hyperparameters: scalars, or `[S]` each.
            *inputs: The model's arguments, for any number of examples.
        """

        def init(key, hparams, *inputs):
            model, optimizer = self.factory(hparams)
            params = model.init(key, *inputs)["params"]
            return TrainState(jnp.int32(0), params, optimizer.init(params))

        own = _Own((key, hparams), ((), ()), stacked=bool(key.ndim))
        return _for_each_run(self.mesh, init, own, inputs, ((),) * len(inputs), ())

    @partial(jax.jit, static_argnums=0, donate_argnums=1)
    def advance(
        self,
        state: TrainState,
        key: Array,
        hparams: Mapping[str, Any],
        examples: Any,
        indices: Int[Array | np.ndarray, "*S K B"],
    ) -> tuple[TrainState, Float[Array, "*S K"]]:
        """K updates in one program; step k reads the examples `indices[..., k, :]`.

        The state is donated: the one passed in must not be used again. B must be a multiple of the
        number of devices that share a batch.

        Args:
            state: The state before the first step.
            key: As in `init`; the noise of dropout is drawn from another key that follows from it.
            hparams: As in `init`.
            examples: The data set, leaves `[N, ...]`; batches of it are what `loss_fn` takes.
            indices: The batches.

        Returns:
            The state after K steps and the K losses.
        """
        # A collective over one device only costs time.
        axis = BATCH if self.mesh.shape[BATCH] > 1 else None

        def advance(state, key, hparams, indices, examples):
            model, optimizer = self.factory(hparams)
            noise = noise_key(key)

            def body(state, batch):
                batch = jax.tree.map(lambda leaf: leaf[batch], examples)
                return train_step(
                    model,
                    optimizer,
                    state,
                    batch,
                    loss_fn=self.loss_fn,
                    key=noise,
                    axis=axis,
                    slices=self.slices,
                )

            return lax.scan(body, state, indices)

        specs = (), (), (), (None, BATCH)
        own = _Own((state, key, hparams, indices), specs, stacked=bool(key.ndim))
        return _for_each_run(self.mesh, advance, own, (examples,), ((),), ())

    def evaluate(self, state: TrainState, hparams: Mapping[str, Any], examples: Any) -> Any:
        """The mean of the metric over all examples: a float, or `[S]`; NaN if there are none."""
        count = len(jax.tree.leaves(examples)[0])
        if not count:
            return np.full(np.shape(state.step), np.nan)[()]
        return np.asarray(self._sum_metric(state, hparams, examples))[()] / count

    @partial(jax.jit, static_argnums=0)
    def _sum_metric(self, state, hparams, examples):
        def values(params, hparams, examples):
            model, _ = self.factory(hparams)
            return map_batches(partial(self.metric_fn, model, params), examples)

        count, padded = pad(examples, self.mesh.shape[BATCH])
        own = _Own((state.params, hparams), ((), ()), stacked=bool(jnp.ndim(state.step)))
        found = _for_each_run(self.mesh, values, own, (padded,), ((BATCH,),), (BATCH,))
        return found[..., :count].sum(-1)

    def place(self, state: TrainState) -> TrainState:
        """Puts a state, of NumPy arrays or on other devices, where `advance` takes it."""
        spec = P(RUN) if np.ndim(state.step) else P()
        return put(state, NamedSharding(self.mesh, spec))


def noise_key(key: Array) -> Array:
    """The key from which a run draws its noise, unlike `key`, which draws the initial weights."""
    return jax.random.fold_in(key, 1)


class _Own(NamedTuple):
    """Arguments that each run has of its own, with their partitions within a run."""

    values: tuple[Any, ...]
    specs: tuple[tuple[str | None, ...], ...]
    stacked: bool


def _for_each_run(
    mesh: Mesh,
    function: Callable,
    own: _Own,
    shared: tuple[Any, ...],
    shared_specs: tuple[tuple[str | None, ...], ...],
    out_spec: tuple[str | None, ...],
) -> Any:
    """`function(*own, *shared)` of every run, on the devices of that run."""
    stacked = own.stacked

    def local(own, shared):
        if not stacked:
            return function(*own, *shared)
        if len(jax.tree.leaves(own)[0]) == 1:
            # Without vmap: a batch of one matrix is a slow matrix on a CPU.
            found = function(*jax.tree.map(lambda leaf: leaf[0], own), *shared)
            return jax.tree.map(lambda leaf: leaf[None], found)
        return jax.vmap(lambda own: function(*own, *shared))(own)

    runs = (RUN,) if stacked else ()
    own_specs = tuple(P(*runs, *spec) for spec in own.specs)
    sharded = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(own_specs, tuple(P(*spec) for spec in shared_specs)),
        out_specs=P(*runs, *out_spec),
        check_vma=False,
    )
    return sharded(own.values, shared)


def pad(examples: Any, multiple: int) -> tuple[int, Any]:
    """The number of examples, and the examples with zeros after them up to a multiple."""
    count = len(jax.tree.leaves(examples)[0])
    missing = -count % multiple
    if not missing:
        return count, examples
    return count, jax.tree.map(
        lambda leaf: jnp.concatenate([leaf, jnp.zeros((missing, *leaf.shape[1:]), leaf.dtype)]),
        examples,
    )


def map_batches(
    function: Callable[[Any], Any], examples: Any, batch_size: int = EVALUATION_BATCH
) -> Any:
    """Applies a function to batches of the examples, one after the other, to bound the memory.

    Args:
        function: Takes a batch, leaves `[B, ...]`, and returns leaves `[B, ...]`.
        examples: Leaves `[N, ...]`.
        batch_size: B; the last batch is smaller where it does not divide N.

    Returns:
        Leaves `[N, ...]`.
    """
    count = len(jax.tree.leaves(examples)[0])
    whole, parts = count - count % batch_size, []
    if whole:
        cut = lambda leaf: leaf[:whole].reshape(-1, batch_size, *leaf.shape[1:])  # noqa: E731
        found = lax.map(function, jax.tree.map(cut, examples))
        parts.append(jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), found))
    if whole < count or not count:
        parts.append(function(jax.tree.map(lambda leaf: leaf[whole:], examples)))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def count_parameters(params: Any) -> int:
    """The number of parameters, of arrays or their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def run_keys(seed: int | Sequence[int] | np.ndarray) -> Array:
    """The key of a run, or `[S]` keys, from seeds."""
    if np.ndim(seed):
        return jax.vmap(jax.random.key)(jnp.asarray(seed))
    return jax.random.key(int(np.asarray(seed)))
