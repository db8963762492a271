"""Compares settings of experiments/mnist.py over many seeds, with honest error bars.

    python experiments/ablate.py forget-bias --seeds 10
    python experiments/ablate.py --vary cell=lstm,gru,rnn --vary learning_rate=1e-3,3e-3

Seeds run side by side, one on each device of a CPU or all at once on a GPU; what differs only in
numbers compiles once. Every finished run is a line of results.jsonl at once: a study that was
interrupted goes on where it stopped, and one that was changed runs only what is new. Settings are
chosen on the validation set; the test set is for the table.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import sys
import time
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mnist
import numpy as np
import tyro
from mnist import console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from studies import STUDIES, Study

from jaxrnn import compare, data, report, sweep
from jaxrnn.run import RunError, cores, environment, write_json

# Options that may differ between the runs of one program.
NUMBERS = ("learning_rate", "forget_bias", "zoneout", "recurrent_dropout", "weight_dropout")
# Runs at once on a device that is no CPU.
LANES = 32


@dataclass(frozen=True)
class Config:
    """Compare settings over many seeds."""

    study: tyro.conf.Positional[str] = "grid"
    """A name from experiments/studies.py, or a name of your own for a grid of --vary."""
    vary: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """option=value,value…: every combination is a setting."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """option=value for all settings; options are those of experiments/mnist.py."""
    rows: tuple[str, ...] = ()
    """Only these settings of the study."""
    seeds: int = 10
    dataset: str = "auto"
    data_dir: Path | None = None
    out: Path = Path("runs/ablations")
    """A folder for each study goes in here."""
    looks: int = 5
    """Evaluations of a run, for the learning curves."""
    dry_run: bool = False
    """Show the settings and how long they would take, and stop."""


@dataclass(frozen=True)
class Build:
    """Makes a run of its numbers; equal for all settings that share a structure."""

    config: mnist.Config

    def __call__(self, numbers: Mapping[str, Any]) -> tuple[Any, Any]:
        """The model and the optimizer."""
        config = dataclasses.replace(self.config, **numbers)
        return mnist.build_model(config), mnist.build_optimizer(config)


def parse(option: str, text: str) -> Any:
    """A value of an option of experiments/mnist.py.

    Raises:
        RunError: If there is no such option or it takes no such value.
    """
    hints = typing.get_type_hints(mnist.Config)
    if option not in hints:
        raise RunError(f"there is no option {option}; see experiments/mnist.py --help")
    if text == "None":
        return None
    kinds = typing.get_args(hints[option]) or (hints[option],)
    if text in kinds:
        return text
    for kind in kinds:
        if kind is bool and text in ("True", "False"):
            return text == "True"
        if kind in (int, float, str, Path):
            try:
                return kind(text)
            except ValueError:
                continue
    raise RunError(f"{option} does not take {text!r}")


def settings(config: Config) -> tuple[Study, dict[str, mnist.Config]]:
    """The study, and what each of its rows is.

    Raises:
        RunError: If there is no such study, option or value.
    """
    if config.vary:
        axes = [axis.partition("=")[::2] for axis in config.vary]
        choices = [[(name, value) for value in values.split(",")] for name, values in axes]
        rows = {
            " ".join(f"{name}={value}" for name, value in combination): {
                name: parse(name, value) for name, value in combination
            }
            for combination in itertools.product(*choices)
        }
        study = Study(f"Every combination of {' and '.join(config.vary)}.", rows)
    elif config.study in STUDIES:
        study = STUDIES[config.study]
    else:
        raise RunError(f"there is no study {config.study}: {', '.join(STUDIES)}, or use --vary")
    common = {name: parse(name, value) for name, _, value in (s.partition("=") for s in config.set)}
    found = {}
    for row, options in study.rows.items():
        if not config.rows or row in config.rows:
            one = mnist.Config(**{**study.base, **common, **options}, dataset=config.dataset)
            one.check()
            mnist.build_model(one)  # says so if its options do not go together
            found[row] = one
    return study, found


def identity(config: mnist.Config, dataset: data.Dataset, seed: int) -> str:
    """What a run's numbers depend on, as a short hash."""
    parts = mnist.identity(dataclasses.replace(config, seed=seed, dataset=dataset.name), dataset)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class Results:
    """results.jsonl: one line a finished run."""

    def __init__(self, folder: Path):
        self.path = folder / "results.jsonl"
        folder.mkdir(parents=True, exist_ok=True)

    def read(self) -> dict[str, dict[str, Any]]:
        """By identity; a last line cut off by a crash is left out."""
        if not self.path.exists():
            return {}
        lines = self.path.read_text().splitlines(keepends=True)
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        return {record["identity"]: record for record in records}

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds one, after mending a line that a crash cut off."""
        text = self.path.read_text() if self.path.exists() else ""
        with self.path.open("a") as file:
            if text and not text.endswith("\n"):
                file.truncate(text.rfind("\n") + 1)
            file.write(json.dumps(record) + "\n")


Job = tuple[str, mnist.Config, int]  # row, options, seed


def batches(jobs: list[Job], size: int) -> Iterator[tuple[mnist.Config, list[Job]]]:
    """Jobs of one structure, as many at once as the devices take."""

    def structure(config):
        given = {name: 0.5 for name in NUMBERS if getattr(config, name) is not None}
        return dataclasses.replace(config, **given)

    by_structure: dict[mnist.Config, list[Job]] = {}
    for job in jobs:
        by_structure.setdefault(structure(job[1]), []).append(job)
    for config, group in by_structure.items():
        for start in range(0, len(group), size):
            yield config, group[start : start + size]


def run_batch(
    shared: mnist.Config, jobs: list[Job], dataset: data.Dataset, config: Config
) -> Iterator[dict[str, Any] | int]:
    """Trains the jobs side by side; yields the steps made, and at the end a record for each."""
    names = [name for name in NUMBERS if getattr(shared, name) is not None]
    numbers = {name: np.array([getattr(job[1], name) for job in jobs]) for name in names}
    splits = tuple(
        split._replace(images=data.sequences(split.images, shared.order, 0))
        for split in (dataset.train, dataset.validation, dataset.test)
    )
    build, started, curve = Build(shared), time.perf_counter(), []
    time_steps = splits[0].images.shape[1]
    eval_every = max(1, shared.steps // config.looks)
    for look in sweep.train_runs(
        build,
        np.array([seed for *_, seed in jobs]),
        numbers,
        splits,
        steps=shared.steps,
        batch_size=shared.batch_size,
        eval_every=eval_every,
        chunk=max(1, mnist.TIME_STEPS_PER_CHUNK // time_steps),
    ):
        curve.append(look)
        yield eval_every * len(jobs)
    seconds = (time.perf_counter() - started) / len(jobs)
    parameters = sweep.count_parameters(
        build, dict.fromkeys(names, 0.5), jnp.asarray(mnist.initial_example(shared))
    )
    for number, (row, options, seed) in enumerate(jobs):
        losses = [float(look.loss[number]) for look in curve]
        yield {
            "row": row,
            "seed": seed,
            "identity": identity(options, dataset, seed),
            "status": "ok" if np.isfinite(losses).all() else "diverged",
            "test_accuracy": float(curve[-1].test_accuracy[number]),
            "validation_accuracy": float(curve[-1].validation_accuracy[number]),
            "parameters": parameters,
            "seconds": round(seconds, 2),
            "ms_per_step": round(1e3 * curve[-1].step_seconds, 3),
            "dataset": dataset.name,
            "curve": [
                {
                    "step": look.step,
                    "loss": round(loss, 5) if np.isfinite(loss) else None,
                    "validation_accuracy": round(float(look.validation_accuracy[number]), 5),
                    "test_accuracy": round(float(look.test_accuracy[number]), 5),
                }
                for look, loss in zip(curve, losses, strict=True)
            ],
        }


def conclude(
    config: Config, study: Study, rows: list[str], records: list[dict[str, Any]], folder: Path
) -> None:
    """The table and the pictures."""
    summaries = compare.summarise(records, rows)
    table = compare.markdown(summaries)
    (folder / "table.md").write_text(table)
    console.print(table)
    report.learning_bands(records, folder / "curves.png", config.study)
    if len(config.vary) == 2:
        first, second = ([*axis.partition("=")[2].split(",")] for axis in config.vary)
        means = {summary.row: summary.test for summary in summaries}
        grid = np.array([means.get(row, np.nan) for row in study.rows])
        names = [axis.partition("=")[0] for axis in config.vary]
        report.heat_map(
            grid.reshape(len(first), len(second)), names, (first, second), folder / "heat.png"
        )


def main(config: Config) -> int:
    """Runs what is missing, then draws the conclusions."""
    study, rows = settings(config)
    jax.config.update("jax_num_cpu_devices", cores())
    dataset = mnist.load_dataset(
        dataclasses.replace(mnist.Config(), dataset=config.dataset, data_dir=config.data_dir)
    )
    mnist.announce(dataset)
    folder = config.out / config.study
    results = Results(folder)
    done = results.read()
    everything = [
        (row, options, seed) for row, options in rows.items() for seed in range(config.seeds)
    ]
    wanted = {identity(options, dataset, seed): None for _, options, seed in everything}
    jobs = [job for job in everything if identity(job[1], dataset, job[2]) not in done]
    on_cpu = jax.default_backend() == "cpu"
    size = jax.device_count() * (1 if on_cpu else LANES)
    total = sum(options.steps for _, options, _ in jobs)
    known = [record["seconds"] for record in done.values()]
    guess = f", about {np.mean(known) * len(jobs) / 60:.0f} minutes" if known and jobs else ""
    console.print(
        f"{study.about}\n{len(rows)} settings × {config.seeds} seeds: "
        f"{len(everything) - len(jobs)} runs are done, {len(jobs)} to do{guess}"
    )
    if config.dry_run:
        for row, options in rows.items():
            given = dataclasses.asdict(options)
            plain = dataclasses.asdict(mnist.Config())
            changed = {name: value for name, value in given.items() if value != plain[name]}
            console.print(f"  {row}: {changed}")
        return 0
    write_json(
        folder / "config.json",
        {
            "study": config.study,
            "about": study.about,
            "command": command(config),
            "rows": {row: _plain(options) for row, options in rows.items()},
            "environment": environment(),
        },
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        for shared, batch in batches(jobs, size):
            progress.update(task, description=", ".join(dict.fromkeys(row for row, *_ in batch)))
            for found in run_batch(shared, batch, dataset, config):
                if isinstance(found, int):
                    progress.advance(task, found)
                    continue
                results.append(found)
                console.print(
                    f"{found['row']}, seed {found['seed']}: test {found['test_accuracy']:.4f}, "
                    f"validation {found['validation_accuracy']:.4f}, {found['status']}, "
                    f"{found['seconds']:.0f} s"
                )
    records = [record for key, record in results.read().items() if key in wanted]
    conclude(config, study, list(rows), records, folder)
    return 0


def command(config: Config) -> str:
    """What to type to get this again, wherever the data lies."""
    words = ["python experiments/ablate.py", config.study]
    for name in ("vary", "set"):
        words += [f"--{name} {value}" for value in getattr(config, name)]
    if config.rows:
        words.append("--rows " + " ".join(repr(row) for row in config.rows))
    words.append(f"--seeds {config.seeds}")
    if config.dataset != "auto":
        words.append(f"--dataset {config.dataset}")
    return " ".join(words)


def _plain(options: mnist.Config) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(options), default=str))


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Config, description=__doc__)))
    except (data.DataError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
