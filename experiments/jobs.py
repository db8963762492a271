"""Plans the runs of a study, and trains those that share a program together."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import options
from cells import cell_sha256
from devices import chunk_size, slices
from experiment import Factory, as_sequences, build_loss, build_metric, dataset_of
from options import FIXED

from jaxrnn import training
from jaxrnn.training import data
from jaxrnn.training.run import git_revision, machine

# Options that are hparams: they may differ between the runs of one program.
HPARAMS = (
    "learning_rate",
    "forget_bias",
    "init_scale",
    "dropout",
    "zoneout",
    "recurrent_dropout",
    "weight_dropout",
)
# Runs that train at once on one device, unless that is a CPU.
LANES = 32


class Job(NamedTuple):
    """A run to train.

    Attributes:
        setting: The name of the setting.
        config: The options of the setting.
        seed: The seed.
        identity: A short hash of everything that the results depend on.
    """

    setting: str
    config: options.Config
    seed: int
    identity: str

    @property
    def steps(self) -> int:
        """The number of train steps, which every setting of a study has."""
        assert self.config.steps is not None
        return self.config.steps


def plan(
    settings: Mapping[str, options.Config], seeds: range, data_sha256: Mapping[str, str]
) -> list[Job]:
    """Returns every run of a study, with a hash of its options, its seed and its setting's data.

    The hash leaves out the revision of the code, which the record of the run has.
    """
    jobs = []
    for name, config in settings.items():
        # Without defaults, so that a new option does not change the hashes of old runs.
        parts = changes(config)
        for seed in seeds:
            every = parts | {"seed": seed, "data_sha256": data_sha256[name]}
            text = json.dumps(every, sort_keys=True)
            identity = hashlib.sha256(text.encode()).hexdigest()[:16]
            jobs.append(Job(name, config, seed, identity))
    return jobs


def changes(config: options.Config) -> dict[str, Any]:
    """Returns the options that are not at their default, and a hash of a user's own cell."""
    plain = dataclasses.asdict(options.Config())
    given = dataclasses.asdict(config)
    found = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in given.items()
        if value != plain[name] and name not in FIXED
    }
    own = cell_sha256(config.cell)
    return found | ({"cell_sha256": own} if own else {})


def batches(jobs: list[Job], size: int) -> Iterator[tuple[options.Config, list[Job]]]:
    """Yields the options that jobs share, and jobs that one program trains, at most `size`."""

    def structure(config: options.Config) -> options.Config:
        return dataclasses.replace(config, **dict.fromkeys(hparam_names(config), 0.5))

    by_structure: dict[options.Config, list[Job]] = {}
    for job in jobs:
        by_structure.setdefault(structure(job.config), []).append(job)
    for config, group in by_structure.items():
        count = -(-len(group) // size)
        for part in range(count):  # of nearly equal sizes, since each size compiles
            yield config, group[part::count]


def hparam_names(config: options.Config) -> list[str]:
    """Returns the options of a setting that are hparams of its program."""
    return [name for name in HPARAMS if getattr(config, name) is not None]


def run_batch(
    shared: options.Config, jobs: list[Job], images: data.Dataset | None, evaluations: int
) -> Iterator[int | list[dict[str, Any]]]:
    """Trains jobs together; yields the steps made after each chunk, and at last the records."""
    names, dataset = hparam_names(shared), dataset_of(shared, images)
    train, validation, test = as_sequences(dataset, shared)
    # Read before training, during which the files may change.
    origin = {"machine": machine(), "revision": git_revision(), "jax": jax.__version__}
    trainer = training.Trainer(
        Factory(shared),
        build_loss(shared),
        build_metric(shared),
        mesh=training.make_mesh(min(len(jobs), jax.local_device_count()), 1),
        slices=slices(shared.batch_size, patched=shared.patch is not None),
    )
    steps = shared.steps or jobs[0].steps
    started, curve, losses, durations = time.perf_counter(), [], [], [(0.0, 0)]
    parameters = 0
    for progress in training.fit(
        trainer,
        train,
        {"validation": validation, "test": test},
        steps=steps,
        batch_size=shared.batch_size,
        seed=[job.seed for job in jobs],
        hparams={name: [getattr(job.config, name) for job in jobs] for name in names},
        eval_every=-(-steps // evaluations),
        chunk=chunk_size(train[0].shape[1]),
    ):
        losses.append(progress.losses)
        durations.append((progress.seconds["train"], progress.step))
        yield progress.losses.size
        if progress.metrics:
            curve.append((progress.step, np.concatenate(losses, 1).mean(1), progress.metrics))
            losses = []
            params = progress.state.params
            parameters = training.count_parameters(params) // len(progress.state.step)
    seconds = (time.perf_counter() - started) / len(jobs)
    spent, made = np.diff(durations, axis=0).T
    yield [
        {
            "setting": job.setting,
            "seed": job.seed,
            "identity": job.identity,
            "parameters": parameters,
            "seconds": round(seconds, 2),
            "ms_per_step": round(1e3 * float(np.median(spent / made)), 3),
            **origin,
            "together": len(jobs),
            "dataset": dataset.name,
            **learning_curve(curve, number),
        }
        for number, job in enumerate(jobs)
    ]


def learning_curve(curve: list[tuple[int, np.ndarray, dict[str, Any]]], run: int) -> dict[str, Any]:
    """Returns the status, the final accuracies and the evaluations of one run."""
    losses = [float(loss[run]) for _, loss, _ in curve]
    last = curve[-1][2]
    return {
        "status": "ok" if np.isfinite(losses).all() else "diverged",
        "test_accuracy": float(last["test"][run]),
        "validation_accuracy": float(last["validation"][run]),
        "curve": [
            {
                "step": step,
                "loss": round(loss, 5) if np.isfinite(loss) else None,
                "validation_accuracy": round(float(metrics["validation"][run]), 5),
                "test_accuracy": round(float(metrics["test"][run]), 5),
            }
            for (step, _, metrics), loss in zip(curve, losses, strict=True)
        ],
    }


def lanes() -> int:
    """Returns how many runs this host trains at once."""
    return jax.local_device_count() * (1 if jax.default_backend() == "cpu" else LANES)
