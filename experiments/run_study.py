"""Runs a study of experiments/ablate.py: trains what is missing, then writes table and figures."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import hosts
import jax
import numpy as np
import options
from cells import one_line
from devices import divide_cpu
from errors import OptionError, listed, unknown
from event_file import write_study
from experiment import Dataset, check_model, check_task, dataset_of, digest, load_dataset
from jax.experimental import multihost_utils
from jobs import Job, batches, changes, lanes, plan, run_batch
from options import RECIPES
from records import Records
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from studies import STUDIES, Study
from study_options import Config, pairs, setting_value, shared_options
from terminal import announce, console, sizes

from jaxrnn.training import compare, data, report
from jaxrnn.training.files import write_text
from jaxrnn.training.run import cores, differences

# Seconds over which the progress bar averages the speed to estimate the remaining time.
SPEED_SECONDS = 3600.0
# Seconds between two readings of the records of the other hosts.
POLL_SECONDS = 1.0
# What a process claims, in place of a run, while it writes the table and the figures.
CONCLUSION = "0"


class Resolved(NamedTuple):
    """A study and the options of its settings.

    Attributes:
        study: The study.
        settings: The options of each setting.
        left_out: The settings whose options do not go together, with the reason.
    """

    study: Study
    settings: dict[str, options.Config]
    left_out: dict[str, OptionError]


def resolve(config: Config) -> Resolved:
    """Returns the study and the options of its settings.

    Settings that are not asked for are left out if their options do not go together, and so are
    those of a grid if others remain.

    Raises:
        OptionError: If a setting does not exist, is given an option that it sets itself, or has
            options that do not go together, or if the baseline is not to be run.
    """
    study = grid(config) if config.vary else STUDIES[config.study]
    for name in (*config.settings, *filter(None, [config.baseline])):
        if name not in study.settings:
            raise unknown(f"{config.study} has no setting {name!r}", name, study.settings)
    if config.baseline is not None and not is_asked(config.baseline, config):
        raise OptionError(f"--baseline {listed([config.baseline])} is not among --settings")
    common = shared_options(config)
    found, left_out, checked = {}, {}, set()
    for name, changed in study.settings.items():
        for option in changed.keys() & common.keys():
            if is_asked(name, config) and changed[option] != common[option]:
                raise OptionError(
                    f"--set {option} is not for {name!r}, which has {changed[option]}"
                )
        setting = options.Config(**{**study.base, **common, **changed}, dataset=config.dataset)
        try:
            setting.check()
            if setting.task is not None:
                check_task(setting.task, setting.length, setting.test_length)
            # The lengths of a task have no effect on the model.
            model = dataclasses.replace(setting, length=1, test_length=None)
            if model not in checked:
                check_model(setting)
                checked.add(model)
        except OptionError as error:
            if is_asked(name, config):
                if config.settings or not config.vary or name == config.baseline:
                    raise
                left_out[name] = error
            continue
        found[name] = setting
    if not found:
        raise next(iter(left_out.values()))
    if len({setting.task for setting in found.values()}) > 1:
        raise OptionError("the settings of a study must have the same task")
    return Resolved(study, found, left_out)


def other_baseline(config: Config, resolved: Resolved) -> str:
    """Returns a warning if the first setting is left out and so is not the baseline."""
    first, baseline = (next(iter(each)) for each in (resolved.study.settings, resolved.settings))
    if config.baseline is not None or first == baseline:
        return ""
    return (
        f"The first setting, {first!r}, is left out. The differences are from {baseline!r}; "
        "--baseline chooses another."
    )


def explain_left_out(resolved: Resolved) -> str:
    """Returns a sentence about the settings that are left out, if there are any."""
    study, _, left_out = resolved
    if not left_out:
        return ""
    return (
        f"{len(left_out)} of {len(study.settings)} settings are left out, since their options do "
        f"not go together: {listed(left_out)}."
    )


def warn(text: str) -> None:
    """Prints a text in a frame, if there is one."""
    if text:
        panel = Panel(text, title="NOT THE FIRST SETTING", border_style="bold red")
        console.print(panel, soft_wrap=False)


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


def changed_cells(kept: Records, settings: Mapping[str, options.Config]) -> list[str]:
    """Returns a line for each file of a user's own cell that differs from that of the kept runs."""
    if not kept.config_path.exists():
        return []
    lines = []
    for name, setting in kept.config()["settings"].items():
        if name in settings:
            parts = [
                {part: each.get(part) for part in ("cell", "cell_sha256")}
                for each in (setting["options"], changes(settings[name]))
            ]
            lines += differences(*parts) if parts[0]["cell"] == parts[1]["cell"] else []
    return list(dict.fromkeys(lines))


def described(
    jobs: list[Job], data_sha256: Mapping[str, str], config: Config
) -> dict[str, dict[str, Any]]:
    """Returns options and runs of each setting, for `Records.keep_settings`."""
    found: dict[str, dict[str, Any]] = {}
    shared = sorted(f"{name}={value}" for name, value in shared_options(config).items())
    for job in jobs:
        sha256 = data_sha256[job.setting]
        setting = {"options": changes(job.config), "data_sha256": sha256, "set": shared}
        found.setdefault(job.setting, setting | {"runs": []})["runs"].append(job.identity)
    return found


def conclude(config: Config, resolved: Resolved, dataset: Dataset, kept: Records) -> None:
    """Prints and writes the table of all runs of the study, and draws its figures."""
    kept.keep_command(command(config))
    runs, folder, study = kept.of_settings(), kept.folder, resolved.study
    compared = kept.compared(config.baseline)
    summaries = [summary for group in compared for summary in group]
    table, tex, curves, heat, lengths = (
        folder / name for name in ("table.md", "table.tex", "curves.png", "heat.png", "lengths.png")
    )
    shown = [resolved.settings[s.setting] for s in summaries]
    notes = [
        f"{compare.LEGEND}\nThe speed of cells is measured by experiments/benchmark.py.",
        f"All settings: {in_common(study, shown, dataset)}.",
        explain_left_out(resolved),
        other_baseline(config, resolved),
        "\n".join(f"    {each}" for each in kept.config()["commands"]),
        *map(compare.verdict, compared),
    ]
    text = "\n\n".join(filter(None, notes))
    write_text(table, "\n".join([*map(compare.markdown, compared), f"{text}\n"]))
    write_text(
        tex,
        "\n".join(compare.latex(each, text if each is compared[0] else "") for each in compared),
    )
    report.learning_bands(runs, curves, config.study)
    figures = [curves]
    heat.unlink(missing_ok=True)
    if len(config.vary) == 2:
        draw_heat_map(config, study, summaries, heat)
        figures.append(heat)
    lengths.unlink(missing_ok=True)
    if kept.draw_lengths(lengths):
        figures.append(lengths)
    console.print(table.read_text())
    console.print(f"table:   {table}, {tex}")
    console.print(f"figures: {', '.join(map(str, figures))}")
    records = ", ".join(map(str, sorted(folder.glob("results*.jsonl"))))
    console.print(f"runs:    {records} (a line of JSON for each)")
    if config.tensorboard:
        write_study(runs, folder / "events")
        console.print(f"events:  {folder / 'events'}")
    console.print(f"config:  {kept.config_path}")


# Options that are shown even at their default.
SHOWN = ("cell", "hidden_size", "batch_size", "steps", "learning_rate", "optimizer", "schedule")
SHOWN += ("clip_norm",)


def in_common(study: Study, settings: Sequence[options.Config], dataset: Dataset) -> str:
    """Returns the data set, the recipe and the options that settings have in common."""
    words = [f"{dataset.name} ({sizes(dataset)})"]
    words += [f"the {name} recipe" for name, base in RECIPES.items() if base == study.base]
    every = [dataclasses.asdict(setting) for setting in settings]
    given = [changes(setting) for setting in settings]
    words += [
        f"{name}={value}"
        for name, value in every[0].items()
        if (name in SHOWN or name in given[0]) and all(each[name] == value for each in every)
    ]
    return ", ".join(words)


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
        hosts.filter_stderr()
        # The service would catch SIGTERM.
        jax.config.update("jax_enable_preemption_service", False)
        try:
            jax.distributed.initialize(
                config.coordinator,
                config.hosts,
                config.host,
                heartbeat_timeout_seconds=hosts.HEARTBEAT_SECONDS,
            )
        except (ValueError, RuntimeError) as error:
            raise OptionError(f"--coordinator: {one_line(error)}") from None
    resolved = resolve(config)
    study, settings, left_out = resolved
    for name, error in left_out.items():
        console.print(f"left out: {name}, since {error}")
    warn(other_baseline(config, resolved))
    first = next(iter(settings.values()))
    images = load_dataset(config.dataset, config.data_dir) if first.task is None else None
    dataset = dataset_of(first, images)
    announce(dataset)
    kept = Records(config.out / config.study, config.host, console.print)
    data_sha256 = digests(settings, dataset)
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    every, done, others = plan(settings, seeds, data_sha256), kept.read(), kept.of_other_studies()
    asked = [job for job in every if is_asked(job.setting, config)]
    missing = [job for job in asked if job.identity not in done]
    jobs = [job for job in missing if job.identity not in others]
    console.print(study.about)
    for line in changed_cells(kept, settings):
        console.print(f"note: {line}; runs with the earlier file are trained again")
    paces = measured_paces(asked, done | others)
    if jobs and config.dry_run and not paces:
        console.print(f"timing {jobs[0].setting} …")
        paces[jobs[0].setting] = [measure_pace(jobs, images)]
    console.print(
        f"{len(asked) // config.seeds} settings × {config.seeds} seeds: "
        f"{len(asked) - len(jobs)} runs are done, {len(jobs)} to do"
        f"{estimate(jobs, paces, config.hosts)}"
    )
    if config.dry_run:
        for name in dict.fromkeys(job.setting for job in asked):
            shown = {
                key: each for key, each in changes(settings[name]).items() if key != "cell_sha256"
            }
            console.print(f"  {name}: {shown}")
        return 0
    if config.host == 0:
        about = {"study": config.study, "about": study.about, "baseline": config.baseline}
        kept.keep_settings(
            about, described(every, data_sha256, config), {job.setting for job in asked}
        )
    if config.hosts > 1:
        multihost_utils.sync_global_devices("all have read what is done")
        jax.distributed.shutdown()  # from here on a host that is killed does not end the others
    if config.host == 0:
        for job in missing:
            if job.identity in others:
                kept.append(others[job.identity] | {"setting": job.setting})
    train(jobs[config.host :: config.hosts], kept, images, config.evaluations)
    waiting = False
    while missing := {job.identity for job in asked} - kept.read().keys():
        if not waiting:
            console.print(
                f"waiting for {len(missing)} runs of other hosts; if a host has been killed, the "
                "same command without --hosts, --host and --coordinator trains its runs"
            )
        waiting = True
        time.sleep(POLL_SECONDS)  # a barrier would time out after half an hour
    if config.host == 0:
        named = config
        if images is not None:
            named = dataclasses.replace(config, dataset=cast(options.DatasetName, images.name))
        with kept.claims() as claim:
            while not claim(CONCLUSION):
                time.sleep(POLL_SECONDS)
            conclude(named, resolved, dataset, kept)
        warn(other_baseline(config, resolved))
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


def digests(settings: Mapping[str, options.Config], dataset: Dataset) -> dict[str, str]:
    """Returns a hash of the data of each setting: of `dataset`, or of its task at its lengths."""
    if isinstance(dataset, data.Dataset):
        return dict.fromkeys(settings, digest(dataset))
    known: dict[Any, str] = {}
    for setting in settings.values():
        if (lengths := (setting.length, setting.test_length)) not in known:
            known[lengths] = digest(dataset_of(setting, None))
    return {name: known[each.length, each.test_length] for name, each in settings.items()}


def measure_pace(jobs: list[Job], images: data.Dataset | None) -> float:
    """Returns the seconds per train step of one run, from a few steps of the first jobs."""
    shared, batch = next(batches(jobs, lanes()))
    brief = dataclasses.replace(shared, steps=60)
    *_, records = run_batch(brief, batch, images, evaluations=3)
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


def train(jobs: list[Job], kept: Records, images: data.Dataset | None, evaluations: int) -> None:
    """Trains the jobs, and keeps the record of each run as soon as it is finished.

    Another process that runs the same study trains other jobs meanwhile. This waits for them, and
    trains those that the other leaves when it ends.
    """
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
        left, waiting = jobs, False
        while left:
            trained = False
            for shared, batch in batches(left, lanes()):
                with kept.claims() as claim:
                    batch = [job for job in batch if claim(job.identity)]
                    # Another process may have released its claim because it is done.
                    done = kept.read()
                    batch = [job for job in batch if job.identity not in done]
                    if not batch:
                        continue
                    trained = True
                    settings = dict.fromkeys(job.setting for job in batch)
                    progress.update(task, description=", ".join(settings))
                    for found in run_batch(shared, batch, images, evaluations):
                        if isinstance(found, int):
                            progress.advance(task, found)
                            continue
                        for record in found:
                            kept.append(record)
                            show(record)
            done = kept.read()
            left = [job for job in left if job.identity not in done]
            if left and not trained:
                if not waiting:
                    console.print(f"waiting for {len(left)} runs that another process trains")
                waiting = True
                time.sleep(POLL_SECONDS)


def show(record: Mapping[str, Any]) -> None:
    """Prints the outcome of a run."""
    console.print(
        f"{record['setting']}, seed {record['seed']}: test {record['test_accuracy']:.4f}, "
        f"validation {record['validation_accuracy']:.4f}, {record['status']}, "
        f"{record['seconds']:.0f} s"
    )


def command(config: Config) -> str:
    """Returns the command that repeats the study, without the place of the data."""
    words = ["python", "experiments/ablate.py", config.study]
    for name in ("vary", "set"):
        for value in getattr(config, name):
            words += [f"--{name}", value]
    if config.cell is not None:
        words += ["--cell", config.cell]
    for option in config.cell_options:
        words += ["--cell-options", option]
    if config.settings:
        words += ["--settings", *config.settings]
    if config.baseline is not None:
        words += ["--baseline", config.baseline]
    words += ["--seeds", str(config.seeds)]
    if config.first_seed:
        words += ["--first-seed", str(config.first_seed)]
    if config.evaluations != Config.evaluations:
        words += ["--evaluations", str(config.evaluations)]
    if config.dataset in data.NAMES and config.dataset != "mnist":
        words += ["--dataset", config.dataset]
    return shlex.join(words)
