"""The training loop, for one run or for several side by side.

    for progress in fit(trainer, examples, {"test": test}, steps=1000, batch_size=100):
        ...  # print, save a checkpoint, write metrics, stop

Shapes: S runs, N examples, K steps of a chunk, B batch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrnn.training import data
from jaxrnn.training.losses import scale
from jaxrnn.training.train import BATCH, RUN, Trainer, TrainState, put, replicate, run_keys


class Progress(NamedTuple):
    """The state of training after a chunk of steps.

    Attributes:
        step: Number of updates so far.
        losses: The loss of each step of the chunk, float32 `[K]`, or `[S, K]` for several runs.
        metrics: The mean of the metric over each evaluation data set, by name: a float, or `[S]`.
            Empty if no evaluation follows this step.
        seconds: Seconds that this call of `fit` has spent so far in "compile", "train" and
            "evaluate".
        state: The train state. The next chunk donates it: copy or save it before.
    """

    step: int
    losses: np.ndarray
    metrics: dict[str, Any]
    seconds: dict[str, float]
    state: TrainState


def fit(
    trainer: Trainer,
    examples: Any,
    evaluations: Mapping[str, Any] | None = None,
    *,
    steps: int,
    batch_size: int,
    seed: int | Sequence[int] | np.ndarray = 0,
    hparams: Mapping[str, Any] | None = None,
    eval_every: int | None = None,
    chunk: int = 100,
    inputs: tuple[Any, ...] | None = None,
    state: TrainState | None = None,
) -> Iterator[Progress]:
    """Trains up to the given step, in chunks of steps. Each chunk is one compiled program.

    The initial parameters, the noise and the order of the data of a run depend on its seed alone. A
    run therefore has the same results, to rounding, alone or beside other runs. The chunks end at
    steps that do not depend on where training started. A resumed run therefore executes the
    programs of an uninterrupted one and ends with the same bits.

    With `jax_debug_nans` or `jax_debug_infs` every step is a chunk. A step that raises JAX's error
    is computed once more operation by operation, so that the traceback names the operation.

    Args:
        trainer: The model, optimizer, loss function, metric and devices.
        examples: The training data, a tree of arrays `[N, ...]`. The loss function receives batches
            of it.
        evaluations: Data sets to evaluate on, by name. The metric receives batches of them.
        steps: Number of updates, including those before `state`.
        batch_size: Number of examples in each update of a run.
        seed: The seed of one run, or `[S]` seeds of runs side by side.
        hparams: Hyperparameters for the trainer's factory: scalars, or `[S]` arrays.
        eval_every: Number of steps between two evaluations. The last step is always followed by
            one. Defaults to `steps`.
        chunk: Largest number of steps in one program. A program cannot be interrupted.
        inputs: The arguments with which the model is initialized. Defaults to one example of the
            first leaf of `examples`, as returned by `scale`.
        state: The state to resume from, which is donated. Defaults to a new state at step 0.

    Yields:
        A `Progress` after every chunk. A run continues if its loss becomes NaN or infinite. The
        runs beside it are not affected.

    Raises:
        ValueError: If `steps`, `eval_every` or `chunk` is less than 1, or if `batch_size` is not a
            multiple of the number of devices that share a batch.
    """
    eval_every = steps if eval_every is None else eval_every
    for name, value in (("steps", steps), ("eval_every", eval_every), ("chunk", chunk)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if _debugging():
        chunk = 1
    mesh = trainer.mesh
    if batch_size % mesh.shape[BATCH]:
        raise ValueError(
            f"batch_size must be a multiple of the {mesh.shape[BATCH]} devices that share a batch, "
            f"got {batch_size}"
        )
    size = len(jax.tree.leaves(examples)[0])
    count, seeds, own_hparams = _fill_mesh(trainer, seed, hparams or {})
    per_run = NamedSharding(mesh, P(RUN) if count else P())
    per_step = NamedSharding(mesh, P(*per_run.spec, None, BATCH))
    keys, own_hparams = put((run_keys(seeds), own_hparams), per_run)
    examples = replicate(examples, mesh)
    datasets = {name: replicate(dataset, mesh) for name, dataset in (evaluations or {}).items()}
    if state is None:
        inputs = (scale(jax.tree.leaves(examples)[0][:1]),) if inputs is None else inputs
        now = trainer.init(keys, own_hparams, *inputs)
    else:
        now = trainer.place(state)
    step = int(np.asarray(now.step).flat[0])
    clock = Clock()
    while step < steps:
        length = min(chunk, eval_every - step % eval_every, steps - step)
        indices = _indices(seeds, step, length, batch_size, size)
        if not per_run.is_fully_addressable:
            indices = put(indices, per_step)  # each process puts its share of every batch
        with clock.phase("train"):
            now, losses = _advance(trainer, now, keys, own_hparams, examples, indices)
            losses = np.asarray(losses)
        step, metrics = step + length, {}
        if step % eval_every == 0 or step == steps:
            with clock.phase("evaluate"):
                metrics = {
                    name: trainer.evaluate(now, own_hparams, dataset)
                    for name, dataset in datasets.items()
                }
        if count:
            losses = losses[:count]
            metrics = {name: values[:count] for name, values in metrics.items()}
        yield Progress(step, losses, metrics, dict(clock.seconds), now)


def _debugging() -> bool:
    config: Any = jax.config  # whose options have no types
    return config.jax_debug_nans or config.jax_debug_infs


def _advance(trainer: Trainer, state: TrainState, *arguments: Any) -> tuple[TrainState, Any]:
    """Calls `trainer.advance`, and again operation by operation if that raises an error of JAX."""
    if not _debugging():
        return trainer.advance(state, *arguments)
    kept = jax.tree.map(jnp.copy, state)  # the state is donated
    try:
        return trainer.advance(state, *arguments)
    except FloatingPointError:
        with jax.disable_jit():
            return trainer.advance(kept, *arguments)


def _fill_mesh(trainer: Trainer, seed: Any, hparams: Mapping[str, Any]) -> tuple[int, Any, Any]:
    """Returns the number of runs, the seeds and the hyperparameters.

    The number is 0 for a single run without a leading axis. Otherwise every device needs the same
    number of runs, and the last run is repeated where one is missing.
    """
    if not np.ndim(seed):
        return 0, seed, {name: jnp.float32(value) for name, value in hparams.items()}
    count = len(seed)
    spare = (0, -count % trainer.mesh.shape[RUN])
    filled = {
        name: jnp.asarray(np.pad(np.asarray(values), spare, "edge"), jnp.float32)
        for name, values in hparams.items()
    }
    return count, np.pad(np.asarray(seed), spare, "edge"), filled


def _indices(seeds: Any, step: int, length: int, batch_size: int, size: int) -> np.ndarray:
    """Returns the indices of the next batches, int32 `[K, B]` or `[S, K, B]`."""
    if not np.ndim(seeds):
        return data.batch_indices(int(seeds), step, length, batch_size, size)
    batches = [data.batch_indices(int(seed), step, length, batch_size, size) for seed in seeds]
    return np.stack(batches)


class Clock:
    """Measures the seconds of each phase, with JAX's compilation as a phase of its own."""

    def __init__(self):
        self.seconds = {"compile": 0.0, "train": 0.0, "evaluate": 0.0}
        self._spans: list[tuple[float, float]] = []

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            end = time.perf_counter()
            # Traces are nested. The outer one is reported last and replaces those inside it.
            self._spans = [span for span in self._spans if span[0] < end - duration_secs]
            self._spans.append((end - duration_secs, end))

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the duration of a `with` block to a phase, except for the compilation in it."""
        started, self._spans = time.perf_counter(), []
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        try:
            yield
        finally:
            jax.monitoring.unregister_event_duration_listener(self._listen)
        compiling = sum(end - start for start, end in self._spans)
        self.seconds["compile"] += compiling
        self.seconds[name] += time.perf_counter() - started - compiling
