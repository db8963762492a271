"""Compiled functions that train and evaluate one run, or several runs side by side.

A `Trainer` holds the constants of the compiled programs: the factory of model and optimizer, the
loss function, the metric, and the mesh of devices. Its methods initialize, advance and evaluate.
The mesh has two axes. Runs are distributed over the axis "run", the batches of each run over the
axis "batch".

Every method takes one run or several. Without a leading axis, the state, the key and the
hyperparameters are those of one run. With a leading axis `[S]`, they are those of S runs. A run has
the same results either way, to rounding.

Shapes: S runs, N examples, B batch, K steps of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
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
# Large enough to keep a core busy, small enough for a layer's outputs to stay in its cache.
EVALUATION_BATCH = 500

T = TypeVar("T")
# A factory from hyperparameters to (model, optimizer). It is called while a program is traced, so
# the hyperparameters may be traced scalars. It must be hashable and compare equal to itself: only
# then is the program compiled once.
Factory = Callable[[Mapping[str, Any]], tuple[nn.Module, optax.GradientTransformation]]


class Fixed(NamedTuple):
    """A factory that always returns the same model and optimizer, without hyperparameters.

    Attributes:
        model: The model.
        optimizer: The optimizer.
    """

    model: nn.Module
    optimizer: optax.GradientTransformation

    def __call__(
        self, hparams: Mapping[str, Any]
    ) -> tuple[nn.Module, optax.GradientTransformation]:
        """Returns the model and the optimizer."""
        return self.model, self.optimizer


@flax.struct.dataclass
class TrainState:
    """The state of a run between two updates.

    Attributes:
        step: The number of updates so far, int32. The position in the data follows from it.
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
    weight_decay: float | Array = 0.0,
    recurrence_rate: float | Array = 1.0,
) -> optax.GradientTransformation:
    """Returns Adam (Kingma & Ba, 2015) with a learning rate schedule and gradient clipping.

    Equal arguments return the same object, so that JAX reuses the programs that it compiled for
    it. An optimizer is not cached if one of its arguments is an array.

    Args:
        learning_rate: The learning rate, or the peak of a one-cycle schedule. It may be traced.
        schedule: "constant", "onecycle" (Smith & Topin, 2018, in its cosine form), or "cosine", a
            linear warm-up in the first tenth of the steps and then half a cosine to zero.
        steps: Number of steps of the one-cycle or cosine schedule.
        clip_norm: The global norm to which gradients are clipped. If None, they are not clipped.
        algorithm: A function from the learning rate to the optimizer that replaces Adam.
        weight_decay: The decoupled weight decay of the kernels (Loshchilov & Hutter, 2019). Biases,
            gains, and the parameters that `recurrence_rate` is for are not decayed.
        recurrence_rate: Factor on the learning rate of the parameters of cells that are neither
            kernels nor biases, such as the eigenvalues of `jaxrnn.lru`.

    Raises:
        ValueError: If `schedule` is unknown, or is not "constant" and `steps` is None, or if
            `clip_norm` is not positive.
    """
    numbers: Any = (learning_rate, weight_decay, recurrence_rate)
    plain = all(isinstance(number, int | float) for number in numbers)
    create = _optimizer if plain else _optimizer.__wrapped__
    if schedule == "constant":
        steps = None  # on which nothing depends
    return create(schedule, steps, clip_norm, algorithm, *numbers)


@lru_cache(maxsize=256, typed=True)
def _optimizer(
    schedule: str,
    steps: int | None,
    clip_norm: float | None,
    algorithm: Callable[[Any], optax.GradientTransformation],
    learning_rate: float | Array,
    weight_decay: float | Array,
    recurrence_rate: float | Array,
) -> optax.GradientTransformation:
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm must be positive or None, got {clip_norm}")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    rate: Any = learning_rate
    if schedule != "constant":
        if steps is None:
            raise ValueError(f"steps must be given if schedule is {schedule!r}, got None")
        shape: Any = SCHEDULES[schedule](steps)
        rate = lambda step: learning_rate * shape(step)  # noqa: E731
    chain = [optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)]
    if isinstance(weight_decay, Array) or weight_decay:
        # The learning rate multiplies the decay too, so that both follow the schedule.
        chain.append(algorithm(1.0))
        chain.append(optax.add_decayed_weights(-weight_decay, partial(_mark, _is_kernel)))
        chain.append(optax.scale_by_learning_rate(rate, flip_sign=False))
    else:
        chain.append(algorithm(rate))
    if isinstance(recurrence_rate, Array) or recurrence_rate != 1.0:
        scaled = optax.masked(optax.scale(recurrence_rate), partial(_mark, _of_recurrence))
        chain.append(scaled)
    return optax.chain(*chain)


SCHEDULES: dict[str, Callable[[int], Any]] = {
    "constant": lambda steps: lambda step: 1.0,
    "onecycle": lambda steps: optax.cosine_onecycle_schedule(steps, 1.0),
    "cosine": lambda steps: optax.warmup_cosine_decay_schedule(
        0.0, 1.0, max(1, steps // 10), max(2, steps)
    ),
}


def _mark(wanted: Callable[[list[str]], bool], params: Any) -> Any:
    """Returns a tree with True at the parameters whose path has the property."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: wanted([jax.tree_util.keystr((key,), simple=True) for key in path]), params
    )


def _is_kernel(path: list[str]) -> bool:
    return path[-1].endswith(("kernel", "projection"))


def _of_recurrence(path: list[str]) -> bool:
    # The last name may be that of a leaf of a learned initial state, such as the LSTM's `cell`.
    return "cell" in path[:-1] and not _is_kernel(path) and not path[-1].endswith("bias")


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
    """Computes one update.

    Args:
        model: The model.
        optimizer: The optimizer.
        state: The state before the update.
        batch: The batch, or this device's share of it, with the structure that `loss_fn` takes.
        loss_fn: The loss function.
        key: The key of the run's noise, from which `loss_fn` receives another key at every step. If
            None, dropout and recurrent regularization are disabled.
        axis: The name of the mesh axis over which the batch is distributed, or None.
        slices: Number of equal slices of the batch. Their gradients are computed in turn and
            averaged, which gives the same update except for rounding and noise. It is faster if a
            slice fits into a core's caches. Must divide the size of the batch.

    Returns:
        The state after the update, and the loss of the whole batch before it.
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
    """Returns the mean of the loss and of its gradient over the slices of the batch."""
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
    """Returns a mesh of devices with the axes "run" and "batch".

    Args:
        runs: Number of devices over which runs are distributed.
        batch: Number of devices that share each batch. Defaults to the number of devices divided by
            `runs`.
        devices: The devices. Defaults to those of this process. A mesh of several processes has the
            same number of devices of each, side by side along "batch".
    """
    devices = jax.local_devices() if devices is None else devices
    batch = max(1, len(devices) // runs) if batch is None else batch
    return Mesh(np.array(devices[: runs * batch]).reshape(runs, batch), (RUN, BATCH))


def replicate(tree: T, mesh: Mesh) -> T:
    """Copies a tree to every device of a mesh."""
    return put(tree, NamedSharding(mesh, P()))


def put(tree: T, sharding: NamedSharding) -> T:
    """Distributes a tree over devices. Of several processes, each puts its own part.

    Args:
        tree: A tree of arrays that is the same in every process.
        sharding: The sharding of the arrays.

    Returns:
        The tree of distributed arrays.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def part(leaf):
        # device_put would send every array to all processes to compare them.
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
    """Initializes, advances and evaluates runs with compiled functions.

    The factory, the loss function and the metric are static arguments of the compiled functions.
    Define them once, in a module: a function that is defined anew for every call is compiled anew.

    Attributes:
        factory: The factory from hyperparameters to model and optimizer. Without hyperparameters,
            `Fixed(model, optimizer)`.
        loss_fn: The loss function.
        metric_fn: The metric of an evaluation.
        mesh: The devices, as returned by `make_mesh`. Several runs on one device are vectorized by
            `jax.vmap`, which uses a GPU well. On a CPU it makes small matrix products slow.
        slices: Number of slices of a device's share of a batch, as in `train_step`.
    """

    factory: Factory
    loss_fn: Loss = cross_entropy
    metric_fn: Metric = accuracy
    mesh: Mesh = field(default_factory=make_mesh)
    slices: int = 1

    @partial(jax.jit, static_argnums=0)
    def init(self, key: Array, hparams: Mapping[str, Any], *inputs: Any) -> TrainState:
        """Initializes the state of a run.

        Args:
            key: The key of the run, or `[S]` keys.
            hparams: The hyperparameters: scalars, or `[S]` arrays.
            *inputs: The model's arguments, for any number of examples.

        Returns:
            The state before the first update.
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
        """Computes K updates in one program.

        Args:
            state: The state before the updates. It is donated and must not be used again.
            key: As in `init`. The key of the noise is derived from it.
            hparams: As in `init`.
            examples: The training data, a tree of arrays `[N, ...]`. The loss function receives
                batches of it.
            indices: The indices of the examples of each batch, int32 `[K, B]` or `[S, K, B]`. B
                must be a multiple of the number of devices that share a batch.

        Returns:
            The state after the updates, and the loss before each update, float32 `[K]` or `[S, K]`.
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
        """Computes the mean of the metric over all examples.

        Args:
            state: The state of a run, or of S runs.
            hparams: As in `init`.
            examples: The data, a tree of arrays `[N, ...]`. The metric receives batches of it.

        Returns:
            A float, or an array `[S]`. NaN if there are no examples.
        """
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
        """Moves a state, such as a restored one, to the devices on which `advance` takes it."""
        spec = P(RUN) if np.ndim(state.step) else P()
        return put(state, NamedSharding(self.mesh, spec))


def noise_key(key: Array) -> Array:
    """Returns the key of a run's noise. The key itself is that of the initial parameters."""
    return jax.random.fold_in(key, 1)


class _Own(NamedTuple):
    """Arguments that differ between runs.

    Attributes:
        values: The arguments.
        specs: The partition of each argument within a run.
        stacked: Whether the arguments have a leading axis of runs.
    """

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
    """Computes `function(*own, *shared)` for every run, on the devices of that run."""
    stacked = own.stacked

    def local(own, shared):
        if not stacked:
            return function(*own, *shared)
        if len(jax.tree.leaves(own)[0]) == 1:
            # Without vmap, because a batched product of one matrix is slow on a CPU.
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
    """Pads the examples with zeros to a multiple.

    Args:
        examples: A tree of arrays `[N, ...]`.
        multiple: The number of which the padded size is a multiple.

    Returns:
        N, and the padded examples.
    """
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
    """Applies a function to one batch of the examples after the other, which bounds the memory.

    Args:
        function: A function from a batch, a tree of arrays `[B, ...]`, to a tree of arrays
            `[B, ...]`.
        examples: A tree of arrays `[N, ...]`.
        batch_size: B. The last batch is smaller if B does not divide N.

    Returns:
        A tree of arrays `[N, ...]`.
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
    """Returns the number of parameters in a tree of arrays, or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def run_keys(seed: int | Sequence[int] | np.ndarray) -> Array:
    """Returns the key of a run, or `[S]` keys for `[S]` seeds."""
    if np.ndim(seed):
        return jax.vmap(jax.random.key)(jnp.asarray(seed))
    return jax.random.key(int(np.asarray(seed)))
