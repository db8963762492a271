"""File systems without space."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fault_checks.interruptions import ended, finish
from fault_checks.processes import (
    SCRATCH,
    STUDY,
    Trial,
    checkpoints_of,
    options,
    run,
    said_badly,
    state_of,
)
from jaxrnn.training import files


def disk(count: int) -> Iterator[Trial]:
    """A full disk, in bytes or inodes: an error in a line, the same bits once there is space."""
    whole = SCRATCH / "whole"
    code, _, err = run("mnist", options(whole, steps=60))
    assert code == 0, err
    expected = state_of(whole)
    yield from studies(count)
    for trial in range(count):
        # Up to the figures, which are drawn at the end.
        share = trial // 2 / max(1, (count - 1) // 2)
        limits = ("size", 8192 + int(6e5 * share)), ("nr_inodes", 8 + int(150 * share))
        limit = limits[trial % 2]
        what = f"{limit[0]}={limit[1]}"
        with small_disk(what) as (folder, enlarge):
            out = folder / "run"
            code, printed, err = run("mnist", options(out, steps=60), pictures=True)
            problem = said_badly(code, printed, err)
            what += f", {err.strip()[:100]}" if code else ", enough"
            before = checkpoints_of(out)
            enlarge()
            code, script = finish(options(out, steps=60))
            if before and f"resuming from step {before[-1]}" not in script.out:
                problem = problem or ("finished" not in script.out and "it does not resume") or ""
            for _, other in ended(code, script, out, expected):
                problem = problem or other
        yield what, problem


@contextlib.contextmanager
def small_disk(limit: str) -> Iterator[tuple[Path, Callable[[], Any]]]:
    """Mounts a file system; yields its folder and a function that gives it more space.

    Args:
        limit: Its size or its number of inodes, as an option of mount.
    """
    folder = Path(tempfile.mkdtemp(dir=SCRATCH))
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(folder), "-o"]
    subprocess.run([*mount, limit], check=True)
    try:
        yield (
            folder,
            lambda: subprocess.run([*mount, "remount,size=64m,nr_inodes=9999"], check=True),
        )
    finally:
        subprocess.run(["umount", folder], check=True)


def studies(count: int) -> Iterator[Trial]:
    """Runs a study on a disk that is full while it trains, saves or draws, and completes it."""
    whole = SCRATCH / "study"
    code, _, err = run("ablate", [*STUDY, "--out", whole])
    assert code == 0, err
    expected = accuracies(whole)
    for trial in range(count):
        share = trial // 2 / max(1, (count - 1) // 2)
        limits = f"size={8192 + 4096 * int(24 * share**2)}", f"nr_inodes={3 + int(5 * share)}"
        with small_disk(limits[trial % 2]) as (folder, enlarge):
            words = [*STUDY, "--out", folder]
            code, printed, err = run("ablate", words)
            problem = said_badly(code, printed, err)
            before = accuracies(folder)
            what = f"study, {limits[trial % 2]}, {len(before)} of {len(expected)} runs, "
            what += err.strip().replace(str(folder), "")[:100] if code else "enough"
            enlarge()
            code, printed, err = run("ablate", words)
            problem = problem or said_badly(code, printed, err)
            if code or accuracies(folder) != expected:
                problem = problem or f"the study is not completed: {err}"
            if f"{len(before)} runs are done" not in printed:
                problem = problem or "a record is lost"
            names = {path.name for path in (folder / "sizes").iterdir()}
            if names != {path.name for path in (whole / "sizes").iterdir()}:
                problem = problem or f"the folder holds {names}"
        yield what, problem


def accuracies(out: Path) -> list[tuple[Any, ...]]:
    """Returns setting, seed and accuracies of the runs of a study."""
    path = out / "sizes" / "results.jsonl"
    records = files.read_records(path, warn=lambda line: None)
    fields = ("setting", "seed", "test_accuracy", "validation_accuracy")
    return sorted(tuple(record[field] for field in fields) for record in records)
