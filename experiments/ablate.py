"""Compares settings of experiments/mnist.py over many seeds, with honest error bars.

    python experiments/ablate.py forget-bias --seeds 10
    python experiments/ablate.py --vary cell=lstm,gru,rnn --vary learning_rate=1e-3,3e-3

Seeds run side by side, one on each device of a CPU or all at once on a GPU; settings that differ
only in hyperparameters share a compiled program. Every finished run is a record of results.jsonl at
once: a study that was interrupted is resumed, one that was changed runs only what is new, and what
another study beside it has run already is taken from there. Settings are chosen on the validation
set; the test set is for the table.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import options
import tyro
from devices import divide_cpu
from errors import OptionError
from experiment import check_model, digest, load_dataset
from jax.experimental import multihost_utils
from jobs import FIXED, Job, batches, changes, lanes, plan, run_batch
from records import Records
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from studies import STUDIES, Study
from terminal import announce, console, run_script

from jaxrnn.training import compare, data, report
from jaxrnn.training.run import cores

# Seconds over which the progress bar averages the speed, to tell the time left.
SPEED_SECONDS = 3600.0
# Seconds between two checks of what the other hosts have kept.
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
    cell: str | None = None
    """The cell of all settings, as --set cell=: one of your own is path/to/file.py:name."""
    cell_options: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """key=value: an option of the cell of all settings, as in experiments/mnist.py."""
    settings: tuple[str, ...] = ()
    """Only these settings of the study."""
    seeds: int = 10
    """How many of each setting."""
    first_seed: int = 0
    """The first of them; others than before show whether a result is reproduced."""
    dataset: options.DatasetName = "auto"
    data_dir: Path | None = None
    out: Path = Path("runs/ablations")
    """A folder for each study goes in here."""
    evaluations: int = 5
    """Evaluations of a run, for the learning curves."""
    dry_run: bool = False
    """Show the settings and how long they would take, and stop."""
    hosts: int = 1
    """Processes, on one or several machines, that share the study; --out is a folder of theirs."""
    host: int = 0
    """Which of them this one is."""
    coordinator: str = ""
    """address:port of host 0, where the others find it."""


def parse(option: str, text: str) -> Any:
    """A value of an option of experiments/mnist.py.

    Raises:
        OptionError: If there is no such option or it takes no such value.
    """
    hints = typing.get_type_hints(options.Config)
    if option not in hints:
        raise OptionError(f"there is no option {option}; see experiments/mnist.py --help")
    if option in FIXED:
        raise OptionError(f"{option} is not an option of a study's settings")
    if option == "cell_options":
        return (text,)
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
    raise OptionError(f"{option} does not take {text!r}")


def resolve(config: Config) -> tuple[Study, dict[str, options.Config]]:
    """The study, and the options of its settings; those not asked for as far as they are possible.

    Raises:
        OptionError: If there is no such study, setting, option or value, or one is given twice.
    """
    study = grid(config) if config.vary else STUDIES.get(config.study)
    if study is None:
        raise OptionError(f"there is no study {config.study}: {', '.join(STUDIES)}, or use --vary")
    if unknown := [name for name in config.settings if name not in study.settings]:
        raise OptionError(
            f"{config.study} has no setting {unknown[0]!r}: {', '.join(study.settings)}"
        )
    common = shared_options(config)
    found, problems = {}, []
    for name, changed in study.settings.items():
        for option in changed.keys() & common.keys():
            if is_asked(name, config) and changed[option] != common[option]:
                raise OptionError(
                    f"--set {option} is not for {name!r}, which has {changed[option]}"
                )
        setting = options.Config(**{**study.base, **common, **changed}, dataset=config.dataset)
        try:
            setting.check()
            check_model(setting)
        except OptionError as error:
            if is_asked(name, config):
                if config.settings or not config.vary:
                    raise
                problems.append(error)  # of a grid only what goes together is run
                console.print(f"left out: {name}, since {error}")
            continue
        found[name] = setting
    if not found:
        raise problems[0]
    return study, found


def grid(config: Config) -> Study:
    """The study of every combination of the values of --vary.

    Raises:
        OptionError: If it has the name of another study, or an option or value twice.
    """
    if config.study in STUDIES:
        raise OptionError(f"{config.study} is a study of its own: give a grid another name")
    axes = [(name, values.split(",")) for name, values in pairs(config.vary)]
    for name, values in axes:
        if len(set(values)) < len(values):
            raise OptionError(f"--vary {name} has a value twice")
    settings = {
        " ".join(f"{name}={value}" for name, value in combination): {
            name: parse(name, value) for name, value in combination
        }
        for combination in itertools.product(
            *[[(name, value) for value in values] for name, values in axes]
        )
    }
    return Study(f"Every combination of {' and '.join(config.vary)}.", settings)


def shared_options(config: Config) -> dict[str, Any]:
    """The options that are given for all settings.

    Raises:
        OptionError: If one of them is unknown, has an unknown value or is given twice.
    """
    words = list(config.set)
    if config.cell is not None:
        words.append(f"cell={config.cell}")
    common = {name: parse(name, value) for name, value in pairs(words)}
    return common | ({"cell_options": config.cell_options} if config.cell_options else {})


def is_asked(setting: str, config: Config) -> bool:
    """Whether a setting of the study is to be run."""
    return not config.settings or setting in config.settings


def pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """Option and value of each word option=value.

    Raises:
        OptionError: If two words have one option.
    """
    found = [(name, value) for name, _, value in (word.partition("=") for word in words)]
    for name, count in Counter(name for name, _ in found).items():
        if count > 1:
            raise OptionError(f"{name} is given {count} times: --vary takes its values with commas")
    return found


def described(jobs: list[Job], data_sha256: str, config: Config) -> dict[str, dict[str, Any]]:
    """What each setting is and which runs it has, for `Records.keep_settings`."""
    found: dict[str, dict[str, Any]] = {}
    shared = sorted(f"{name}={value}" for name, value in shared_options(config).items())
    for job in jobs:
        setting = {"options": changes(job.config), "data_sha256": data_sha256, "set": shared}
        found.setdefault(job.setting, setting | {"runs": []})["runs"].append(job.identity)
    return found


def conclude(config: Config, study: Study, kept: Records) -> None:
    """Prints and writes the table of all runs of the study, and draws its figures."""
    kept.keep_command(command(config))
    runs, folder = kept.of_settings(), kept.folder
    summaries = compare.summarise(runs, list(study.settings))
    table, curves, heat = (folder / name for name in ("table.md", "curves.png", "heat.png"))
    text = [compare.markdown(summaries), compare.LEGEND, f"{compare.verdict(summaries)}\n"]
    table.write_text("\n".join(text))
    report.learning_bands(runs, curves, config.study)
    figures = [curves]
    heat.unlink(missing_ok=True)
    if len(config.vary) == 2:
        draw_heat_map(config, study, summaries, heat)
        figures.append(heat)
    console.print(table.read_text())
    console.print(f"table:   {table}")
    console.print(f"figures: {', '.join(map(str, figures))}")
    records = ", ".join(map(str, sorted(folder.glob("results*.jsonl"))))
    console.print(f"runs:    {records} (a line of JSON for each)")


def draw_heat_map(
    config: Config, study: Study, summaries: Sequence[compare.Summary], path: Path
) -> None:
    """Draws the mean test accuracies of a grid of two options."""
    (down, first), (across, second) = (
        (name, values.split(",")) for name, values in pairs(config.vary)
    )
    means = {summary.setting: summary.test for summary in summaries}
    grid = np.array([means.get(setting, np.nan) for setting in study.settings])
    grid = grid.reshape(len(first), len(second))
    report.heat_map(grid, (down, across), (first, second), path)


def main(config: Config) -> int:
    """Runs what is missing, then draws the conclusions."""
    if config.seeds < 1:
        raise OptionError("--seeds must be at least 1")
    if config.first_seed < 0:
        raise OptionError("--first-seed must not be negative")
    if config.evaluations < 1:
        raise OptionError("--evaluations must be at least 1")
    divide_cpu(cores())
    if config.hosts > 1:
        jax.distributed.initialize(config.coordinator, config.hosts, config.host)
    study, settings = resolve(config)
    dataset = load_dataset(config.dataset, config.data_dir)
    announce(dataset)
    kept = Records(config.out / config.study, config.host)
    data_sha256 = digest(dataset)
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    every, done, others = plan(settings, seeds, data_sha256), kept.read(), kept.beside()
    asked = [job for job in every if is_asked(job.setting, config)]
    missing = [job for job in asked if job.identity not in done]
    jobs = [job for job in missing if job.identity not in others]
    console.print(study.about)
    paces = measured_paces(asked, done | others)
    if jobs and config.dry_run and not paces:
        console.print(f"timing {jobs[0].setting} …")
        paces[jobs[0].setting] = [measure_pace(jobs, dataset)]
    console.print(
        f"{len(asked) // config.seeds} settings × {config.seeds} seeds: "
        f"{len(asked) - len(jobs)} runs are done, {len(jobs)} to do"
        f"{estimate(jobs, paces, config.hosts)}"
    )
    if config.dry_run:
        for name in dict.fromkeys(job.setting for job in asked):
            console.print(f"  {name}: {changes(settings[name])}")
        return 0
    if config.host == 0:
        about = {"study": config.study, "about": study.about}
        kept.keep_settings(
            about, described(every, data_sha256, config), {job.setting for job in asked}
        )
    if config.hosts > 1:
        multihost_utils.sync_global_devices("all have read what is done")
    if config.host == 0:
        for job in missing:
            if job.identity in others:
                kept.append(others[job.identity] | {"setting": job.setting})
    train(jobs[config.host :: config.hosts], kept, dataset, config.evaluations)
    while not {job.identity for job in asked} <= kept.read().keys():
        time.sleep(POLL_SECONDS)  # for other hosts; a barrier would give up after half an hour
    if config.host == 0:
        conclude(
            dataclasses.replace(config, dataset=cast(options.DatasetName, dataset.name)),
            study,
            kept,
        )
        announce(dataset)
    return 0


def measured_paces(jobs: list[Job], done: Mapping[str, dict[str, Any]]) -> dict[str, list[float]]:
    """Seconds of an update, by setting, of the jobs that are done."""
    paces: dict[str, list[float]] = {}
    for job in jobs:
        if record := done.get(job.identity):
            pace = record["seconds"] / record["curve"][-1]["step"]
            paces.setdefault(job.setting, []).append(pace)
    return paces


def measure_pace(jobs: list[Job], dataset: data.Dataset) -> float:
    """Seconds of an update of one run, by a few updates of the first of the jobs."""
    shared, batch = next(batches(jobs, lanes()))
    brief = dataclasses.replace(shared, steps=60)
    *_, records = run_batch(brief, batch, dataset, evaluations=3)
    assert isinstance(records, list)
    return records[0]["ms_per_step"] / 1e3 / len(batch)


def estimate(jobs: list[Job], paces: Mapping[str, list[float]], hosts: int) -> str:
    """How long jobs may take, by the pace of their setting if it is known, or else of all."""
    if not jobs or not paces:
        return ""
    known = list(itertools.chain.from_iterable(paces.values()))
    seconds = sum((job.steps) * np.mean(paces.get(job.setting, known)) for job in jobs)
    unknown = {job.setting for job in jobs} - paces.keys()
    guess = f" if the others take as long as {', '.join(paces)}" if unknown else ""
    return f", about {seconds / 60 / hosts:.0f} minutes{guess}"


def train(jobs: list[Job], kept: Records, dataset: data.Dataset, evaluations: int) -> None:
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
        speed_estimate_period=SPEED_SECONDS,
    ) as progress:
        task = progress.add_task("", total=sum(job.steps for job in jobs))
        for shared, batch in batches(jobs, lanes()):
            settings = dict.fromkeys(job.setting for job in batch)
            progress.update(task, description=", ".join(settings))
            for found in run_batch(shared, batch, dataset, evaluations):
                if isinstance(found, int):
                    progress.advance(task, found)
                    continue
                for record in found:
                    kept.append(record)
                    console.print(
                        f"{record['setting']}, seed {record['seed']}: "
                        f"test {record['test_accuracy']:.4f}, "
                        f"validation {record['validation_accuracy']:.4f}, {record['status']}, "
                        f"{record['seconds']:.0f} s"
                    )


def command(config: Config) -> str:
    """The command that gives this again, wherever the data lies."""
    words = ["python experiments/ablate.py", config.study]
    for name in ("vary", "set"):
        words += [f"--{name} {value}" for value in getattr(config, name)]
    if config.cell is not None:
        words.append(f"--cell {config.cell}")
    words += [f"--cell-options {option}" for option in config.cell_options]
    if config.settings:
        words.append("--settings " + " ".join(repr(setting) for setting in config.settings))
    words.append(f"--seeds {config.seeds}")
    if config.first_seed:
        words.append(f"--first-seed {config.first_seed}")
    if config.evaluations != Config.evaluations:
        words.append(f"--evaluations {config.evaluations}")
    if config.dataset in data.NAMES and config.dataset != "mnist":
        words.append(f"--dataset {config.dataset}")
    return " ".join(words)


if __name__ == "__main__":
    sys.exit(run_script(lambda: main(tyro.cli(Config, description=__doc__))))
