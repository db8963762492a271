"""Compares settings of experiments/mnist.py over many seeds, with honest error bars.

    python experiments/ablate.py forget-bias --seeds 10
    python experiments/ablate.py --vary cell=lstm,gru,rnn --vary learning_rate=1e-3,3e-3

Seeds run side by side, one on each device of a CPU or all at once on a GPU; what differs only in
numbers compiles once. Every finished run is a line of results.jsonl at once: a study that was
interrupted goes on where it stopped, one that was changed runs only what is new, and what another
study beside it has run already is taken from there. Settings are chosen on the validation set; the
test set is for the table.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import sys
import time
import typing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mnist
import numpy as np
import tyro
from jax.experimental import multihost_utils
from mnist import console
from records import Records
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from studies import STUDIES, Study

from jaxrnn.training import compare, data, report, sweep
from jaxrnn.training.run import RunError, cores, git_revision, machine

# Options that may differ between the runs of one program.
NUMBERS = (
    "learning_rate",
    "forget_bias",
    "init_scale",
    "dropout",
    "zoneout",
    "recurrent_dropout",
    "weight_dropout",
)
# Options of experiments/mnist.py that a setting does not have: a study's own, or of no effect.
FIXED = (*mnist.FREE, "dataset", "validation_size", "seed", "eval_every")
# Runs at once on one device, unless that is a CPU.
LANES = 32
# Seconds between two advances of the progress bar, at most, for it to tell the time left.
LONGEST_LOOK = 3600.0
# Seconds between two looks at what the other hosts have kept.
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Config:
    """Compare settings over many seeds."""

    study: tyro.conf.Positional[str] = "grid"
    """A name from experiments/studies.py, or a name of your own for a grid of --vary."""
    vary: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """option=value,value…: every combination is a setting."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """option=value for all settings, none of which has another itself; options are those of
    experiments/mnist.py."""
    rows: tuple[str, ...] = ()
    """Only these settings of the study."""
    seeds: int = 10
    """How many of each setting."""
    first_seed: int = 0
    """The first of them; others than before show whether a result comes again."""
    dataset: str = "auto"
    data_dir: Path | None = None
    out: Path = Path("runs/ablations")
    """A folder for each study goes in here."""
    looks: int = 5
    """Evaluations of a run, for the learning curves."""
    dry_run: bool = False
    """Show the settings and how long they would take, and stop."""
    hosts: int = 1
    """Processes, on one or several machines, that share the study; --out is a folder of theirs."""
    host: int = 0
    """Which of them this one is."""
    coordinator: str = ""
    """address:port of host 0, where the others find it."""


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
    if option in FIXED:
        raise RunError(f"{option} is not an option of a study's settings")
    kinds = typing.get_args(hints[option]) or (hints[option],)
    if text == "None" and type(None) in kinds and option != "steps":  # which a study must know
        return None
    if any(text in (kind, *typing.get_args(kind)) for kind in kinds):
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
    """The study, and what each of its rows is; those not asked for as far as they are possible.

    Raises:
        RunError: If there is no such study, row, option or value, or one is given twice.
    """
    if config.vary:
        if config.study in STUDIES:
            raise RunError(f"{config.study} is a study of its own: give a grid another name")
        axes = [(name, values.split(",")) for name, values in pairs(config.vary)]
        for name, values in axes:
            if len(set(values)) < len(values):
                raise RunError(f"--vary {name} has a value twice")
        choices = [[(name, value) for value in values] for name, values in axes]
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
    if unknown := [row for row in config.rows if row not in study.rows]:
        raise RunError(f"{config.study} has no row {unknown[0]!r}: {', '.join(study.rows)}")
    common = {name: parse(name, value) for name, value in pairs(config.set)}
    found, problems = {}, []
    for row, options in study.rows.items():
        for name in options.keys() & common.keys():
            if is_asked(row, config) and options[name] != common[name]:
                raise RunError(f"--set {name} is not for {row!r}, which has {options[name]}")
        one = mnist.Config(**{**study.base, **common, **options}, dataset=config.dataset)
        try:
            one.check()
            mnist.check_model(one)
        except RunError as error:
            if is_asked(row, config):
                if config.rows or not config.vary:
                    raise
                problems.append(error)  # of a grid only what goes together is run
                console.print(f"left out: {row}, since {error}")
            continue
        found[row] = one
    if not found:
        raise problems[0]
    return study, found


def is_asked(row: str, config: Config) -> bool:
    """Whether the row of a study is to be run."""
    return not config.rows or row in config.rows


def pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """What stands on both sides of the = of each word.

    Raises:
        RunError: If two are of one option.
    """
    found = [(name, value) for name, _, value in (word.partition("=") for word in words)]
    for name, count in Counter(name for name, _ in found).items():
        if count > 1:
            raise RunError(f"{name} is given {count} times: --vary takes its values with commas")
    return found


class Job(NamedTuple):
    """One run to make."""

    row: str
    options: mnist.Config
    seed: int
    identity: str


def plan(rows: Mapping[str, mnist.Config], seeds: range, digest: str) -> list[Job]:
    """Every run of a study, each with a short hash of its options, its seed and the data.

    What the code made of them at the time is not in it; a record tells the revision.
    """
    jobs = []
    for row, options in rows.items():
        # Only what is not the default, so that a new option leaves old runs what they are.
        parts = changes(options)
        for seed in seeds:
            text = json.dumps(parts | {"seed": seed, "data_sha256": digest}, sort_keys=True)
            name = hashlib.sha256(text.encode()).hexdigest()[:16]
            jobs.append(Job(row, options, seed, name))
    return jobs


def changes(options: mnist.Config) -> dict[str, Any]:
    """The options of a setting that are not the default."""
    plain = dataclasses.asdict(mnist.Config())
    given = dataclasses.asdict(options)
    return {
        name: value for name, value in given.items() if value != plain[name] and name not in FIXED
    }


def described(jobs: list[Job], digest: str, words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What each row is and which runs it has, for `Records.keep_rows`."""
    rows: dict[str, dict[str, Any]] = {}
    for job in jobs:
        row = {"options": changes(job.options), "data_sha256": digest, "set": sorted(words)}
        rows.setdefault(job.row, row | {"runs": []})["runs"].append(job.identity)
    return rows


def batches(jobs: list[Job], size: int) -> Iterator[tuple[mnist.Config, list[Job]]]:
    """Jobs of one structure, as many at once as the devices take."""

    def structure(config):
        given = {name: 0.5 for name in NUMBERS if getattr(config, name) is not None}
        return dataclasses.replace(config, **given)

    by_structure: dict[mnist.Config, list[Job]] = {}
    for job in jobs:
        by_structure.setdefault(structure(job.options), []).append(job)
    for config, group in by_structure.items():
        count = -(-len(group) // size)
        for part in range(count):  # as equal as can be, since each length compiles
            yield config, group[part::count]


def run_batch(
    shared: mnist.Config, jobs: list[Job], dataset: data.Dataset, config: Config
) -> Iterator[dict[str, Any] | int]:
    """Trains the jobs side by side; yields the steps made, and at the end a record for each."""
    names = [name for name in NUMBERS if getattr(shared, name) is not None]
    numbers = {name: np.array([getattr(job.options, name) for job in jobs]) for name in names}
    splits = mnist.as_sequences(dataset, shared)
    # Asked for before the hours in which the files may change.
    origin = {"machine": machine(), "revision": git_revision(), "jax": jax.__version__}
    build, started, curve = Build(shared), time.perf_counter(), []
    time_steps = splits[0][0].shape[1]
    eval_every = -(-shared.steps // config.looks)
    for look in sweep.train_runs(
        build,
        np.array([job.seed for job in jobs]),
        numbers,
        splits,
        steps=shared.steps,
        batch_size=shared.batch_size,
        eval_every=eval_every,
        chunk=max(1, mnist.TIME_STEPS_PER_CHUNK // time_steps),
        loss_fn=mnist.build_loss(shared),
        slices=mnist.slices(shared, shared.batch_size),
    ):
        before = curve[-1].step if curve else 0
        curve.append(look)
        yield (look.step - before) * len(jobs)
    seconds = (time.perf_counter() - started) / len(jobs)
    parameters = sweep.count_parameters(
        build, dict.fromkeys(names, 0.5), jnp.asarray(mnist.initial_example(shared))
    )
    for number, job in enumerate(jobs):
        losses = [float(look.loss[number]) for look in curve]
        yield {
            "row": job.row,
            "seed": job.seed,
            "identity": job.identity,
            "status": "ok" if np.isfinite(losses).all() else "diverged",
            "test_accuracy": float(curve[-1].test_accuracy[number]),
            "validation_accuracy": float(curve[-1].validation_accuracy[number]),
            "parameters": parameters,
            "seconds": round(seconds, 2),
            "ms_per_step": round(1e3 * curve[-1].step_seconds, 3),
            **origin,
            "together": len(jobs),
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


def conclude(config: Config, study: Study, kept: Records) -> None:
    """The table and the pictures, of all that is kept of the study."""
    kept.keep_command(command(config))
    runs, folder = kept.of_rows(), kept.folder
    table = compare.markdown(compare.summarise(runs, list(study.rows)))
    (folder / "table.md").write_text(table)
    console.print(table)
    report.learning_bands(runs, folder / "curves.png", config.study)
    (folder / "heat.png").unlink(missing_ok=True)
    if len(config.vary) == 2:
        names, (first, second) = zip(
            *[(n, v.split(",")) for n, v in pairs(config.vary)], strict=True
        )
        means = {summary.row: summary.test for summary in compare.summarise(runs)}
        grid = np.array([means.get(row, np.nan) for row in study.rows])
        report.heat_map(
            grid.reshape(len(first), len(second)), names, (first, second), folder / "heat.png"
        )


def main(config: Config) -> int:
    """Runs what is missing, then draws the conclusions."""
    if config.seeds < 1:
        raise RunError("--seeds must be at least 1")
    if config.first_seed < 0:
        raise RunError("--first-seed must not be negative")
    if config.looks < 1:
        raise RunError("--looks must be at least 1")
    mnist.divide_cpu(cores())
    if config.hosts > 1:
        jax.distributed.initialize(config.coordinator, config.hosts, config.host)
    study, rows = settings(config)
    dataset = mnist.load_dataset(
        dataclasses.replace(mnist.Config(), dataset=config.dataset, data_dir=config.data_dir)
    )
    mnist.announce(dataset)
    kept = Records(config.out / config.study, config.host)
    digest = mnist.digest(dataset)
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    whole, done = plan(rows, seeds, digest), kept.read()
    everything = [job for job in whole if is_asked(job.row, config)]
    missing = [job for job in everything if job.identity not in done]
    others = kept.beside()
    jobs = [job for job in missing if job.identity not in others]
    console.print(
        f"{study.about}\n{len(everything) // config.seeds} settings × {config.seeds} seeds: "
        f"{len(everything) - len(jobs)} runs are done, {len(jobs)} to do"
        f"{estimate(jobs, everything, done | others, dataset, config)}"
    )
    if config.dry_run:
        show({row: one for row, one in rows.items() if is_asked(row, config)})
        return 0
    if config.host == 0:
        about = {"study": config.study, "about": study.about}
        rows_of = described(whole, digest, config.set)
        kept.keep_rows(about, rows_of, {job.row for job in everything})
    if config.hosts > 1:
        multihost_utils.sync_global_devices("all have read what is done")
    if config.host == 0:
        for job in missing:
            if job.identity in others:
                kept.append(others[job.identity] | {"row": job.row})
    train(jobs[config.host :: config.hosts], kept, dataset, config)
    while not {job.identity for job in everything} <= kept.read().keys():
        time.sleep(POLL_SECONDS)  # for other hosts; a barrier would give up after half an hour
    if config.host == 0:
        conclude(dataclasses.replace(config, dataset=dataset.name), study, kept)
        mnist.announce(dataset)
    return 0


def estimate(
    jobs: list[Job],
    everything: list[Job],
    done: Mapping[str, dict[str, Any]],
    dataset: data.Dataset,
    config: Config,
) -> str:
    """How long the jobs may take, by the pace of those of their row that are done, or of all."""
    paces: dict[str, list[float]] = {}
    for job in everything:
        if record := done.get(job.identity):
            pace = record["seconds"] / record["curve"][-1]["step"]
            paces.setdefault(job.row, []).append(pace)
    if jobs and config.dry_run and not paces:
        paces[jobs[0].row] = [measure_pace(jobs, dataset, config)]
    if not jobs or not paces:
        return ""
    anything = [pace for row in paces.values() for pace in row]
    seconds = sum(job.options.steps * np.mean(paces.get(job.row, anything)) for job in jobs)
    unknown = {job.row for job in jobs} - paces.keys()
    guess = f" if the others take as long as {', '.join(paces)}" if unknown else ""
    return f", about {seconds / 60 / config.hosts:.0f} minutes{guess}"


def measure_pace(jobs: list[Job], dataset: data.Dataset, config: Config) -> float:
    """Seconds of an update of one run, by a few of the first of them."""
    shared, batch = next(batches(jobs, lanes()))
    brief = dataclasses.replace(shared, steps=60)
    *_, record = run_batch(brief, batch, dataset, dataclasses.replace(config, looks=3))
    return record["ms_per_step"] / 1e3 / len(batch)


def lanes() -> int:
    """Runs that this host makes at once."""
    return jax.local_device_count() * (1 if jax.default_backend() == "cpu" else LANES)


def show(rows: Mapping[str, mnist.Config]) -> None:
    """What each setting is, as far as it is not the default."""
    for row, options in rows.items():
        console.print(f"  {row}: {changes(options)}")


def train(jobs: list[Job], kept: Records, dataset: data.Dataset, config: Config) -> None:
    """Makes the runs, and keeps each as soon as it is finished."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns,
        console=console,
        disable=not console.is_terminal,
        speed_estimate_period=LONGEST_LOOK,
    ) as progress:
        task = progress.add_task("", total=sum(job.options.steps for job in jobs))
        for shared, batch in batches(jobs, lanes()):
            progress.update(task, description=", ".join(dict.fromkeys(job.row for job in batch)))
            for found in run_batch(shared, batch, dataset, config):
                if isinstance(found, int):
                    progress.advance(task, found)
                    continue
                kept.append(found)
                console.print(
                    f"{found['row']}, seed {found['seed']}: test {found['test_accuracy']:.4f}, "
                    f"validation {found['validation_accuracy']:.4f}, {found['status']}, "
                    f"{found['seconds']:.0f} s"
                )


def command(config: Config) -> str:
    """What to type to get this again, wherever the data lies."""
    words = ["python experiments/ablate.py", config.study]
    for name in ("vary", "set"):
        words += [f"--{name} {value}" for value in getattr(config, name)]
    if config.rows:
        words.append("--rows " + " ".join(repr(row) for row in config.rows))
    words.append(f"--seeds {config.seeds}")
    if config.first_seed:
        words.append(f"--first-seed {config.first_seed}")
    if config.looks != Config.looks:
        words.append(f"--looks {config.looks}")
    if config.dataset in data.NAMES and config.dataset != "mnist":
        words.append(f"--dataset {config.dataset}")
    return " ".join(words)


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Config, description=__doc__)))
    except (data.DataError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
