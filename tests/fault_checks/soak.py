"""Runs again and again in one process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from fault_checks.processes import SCRATCH, Trial, call, options


def soak(count: int) -> Iterator[Trial]:
    """A run again and again in one process: memory, files and threads do not grow."""
    for trial, (memory, first, opened, threads) in enumerate(call(repeated, SCRATCH, count)):
        if trial >= SETTLED:
            problem = "" if memory <= 1.02 * first else f"{memory / first - 1:.1%} more memory"
            yield f"run {trial + 1}, {memory >> 20} MB, {opened} files, {threads} threads", problem


# The first runs fill caches.
SETTLED = 2


def repeated(folder: Path, count: int) -> list[tuple[int, int, int, int]]:
    """Runs mnist.py in this process; returns memory, files and threads after each run."""
    import gc

    import mnist

    found: list[tuple[int, int, int, int]] = []
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        for number in range(count):
            words = list(map(str, options(folder / str(number), steps=200, hidden_size=128)))
            assert mnist.main(mnist.command_line(words)) == 0
            gc.collect()
            memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf(
                "SC_PAGESIZE"
            )
            first = found[SETTLED - 1][0] if len(found) >= SETTLED else memory
            files, threads = (len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task"))
            found.append((memory, first, files, threads))
    return found
