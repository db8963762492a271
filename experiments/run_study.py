"""Runs a study of experiments/ablate.py: trains what is missing, then writes table and figures."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import options
from cells import one_line
from devices import divide_cpu
from errors import OptionError, unknown
from experiment import check_model, digest, load_dataset
from jax.experimental import multihost_utils
from jobs import Job, batches, changes, lanes, plan, run_batch
from records import Records
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from studies import STUDIES, Study
from study_options import Config, pairs, setting_value, shared_options
from terminal import announce, console

from jaxrnn.training import compare, data, report
from jaxrnn.training.run import cores

# Seconds over which the progress bar averages the speed to estimate the remaining time.
SPEED_SECONDS = 3600.0
# Seconds between two readings of the records of the other hosts.
POLL_SECONDS = 1.0


def resolve(config: Config) -> tuple[Study, dict[str, options.Config]]:
    """Returns the study and the options of its settings.

    Settings that are not asked for are left out if their options do not go together, and so are
    those of a grid if others remain.

    Raises:
        OptionError: If a setting does not exist, is given an option that it sets itself, or has
            options that do not go together.
    """
    study = grid(config) if config.vary else STUDIES[config.study]
    for name in config.settings:
        if name not in study.settings:
            raise unknown(f"{config.study} has no setting {name!r}", name, study.settings)
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
                problems.append(error)
                console.print(f"left out: {name}, since {error}")
            continue
        found[name] = setting
    if not found:
        raise problems[0]
    return study, found


def grid(config: Config) -> Study:
    """Returns the study of every combination of the values of --vary."""
    axes = [[(name, value) for value in values.split(",")] for name, values in pairs(config.vary)]
    settings = {
        " ".join(f"{name}={value}" for name, value in combination): {
            name: setting_value(name, value) for name, value in combination
        }
        for combination in itertools.product(*axes)
    }
    return Study(f"Every combination of {' and '.join(config.vary)}.", settings)


def is_asked(setting: str, config: Config) -> bool:
    """Returns whether a setting of the study is to be run."""
    return not config.settings or setting in config.settings


def described(jobs: list[Job], data_sha256: str, config: Config) -> dict[str, dict[str, Any]]:
    """Returns options and runs of each setting, for `Records.keep_settings`."""
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
    """Trains the runs that are missing, then writes the table and draws the figures."""
    config.check()
    divide_cpu(cores())
    if config.hosts > 1:
        try:
            jax.distributed.initialize(config.coordinator, config.hosts, config.host)
        except (ValueError, RuntimeError) as error:
            raise OptionError(f"--coordinator: {one_line(error)}") from None
    study, settings = resolve(config)
    dataset = load_dataset(config.dataset, config.data_dir)
    announce(dataset)
    kept = Records(config.out / config.study, config.host)
    data_sha256 = digest(dataset)
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    every, done, others = plan(settings, seeds, data_sha256), kept.read(), kept.of_other_studies()
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
        time.sleep(POLL_SECONDS)  # the other hosts; a barrier would time out after half an hour
    if config.host == 0:
        conclude(
            dataclasses.replace(config, dataset=cast(options.DatasetName, dataset.name)),
            study,
            kept,
        )
        announce(dataset)
    return 0


def measured_paces(jobs: list[Job], done: Mapping[str, dict[str, Any]]) -> dict[str, list[float]]:
    """Returns the seconds per train step of each finished job, by setting."""
    paces: dict[str, list[float]] = {}
    for job in jobs:
        if record := done.get(job.identity):
            pace = record["seconds"] / record["curve"][-1]["step"]
            paces.setdefault(job.setting, []).append(pace)
    return paces


def measure_pace(jobs: list[Job], dataset: data.Dataset) -> float:
    """Returns the seconds per train step of one run, from a few steps of the first jobs."""
    shared, batch = next(batches(jobs, lanes()))
    brief = dataclasses.replace(shared, steps=60)
    *_, records = run_batch(brief, batch, dataset, evaluations=3)
    assert isinstance(records, list)
    return records[0]["ms_per_step"] / 1e3 / len(batch)


def estimate(jobs: list[Job], paces: Mapping[str, list[float]], hosts: int) -> str:
    """Returns how long jobs may take at the pace of their setting, or else of all settings."""
    if not jobs or not paces:
        return ""
    known = list(itertools.chain.from_iterable(paces.values()))
    seconds = sum((job.steps) * np.mean(paces.get(job.setting, known)) for job in jobs)
    unknown = {job.setting for job in jobs} - paces.keys()
    guess = f" if the others take as long as {', '.join(paces)}" if unknown else ""
    return f", about {seconds / 60 / hosts:.0f} minutes{guess}"


def train(jobs: list[Job], kept: Records, dataset: data.Dataset, evaluations: int) -> None:
    """Trains the jobs, and keeps the record of each run as soon as it is finished."""
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
    """Returns the command that repeats the study, without the place of the data."""
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
