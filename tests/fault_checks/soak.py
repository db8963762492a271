"""Runs again and again in one process."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Iterator
from pathlib import Path

from fault_checks.processes import SCRATCH, Trial, call

# The first runs fill caches.
SETTLED = 3
# Train steps of a run, of the tutorial's 20,000.
STEPS = 200
# The option of glibc's mallopt for the number of heaps.
ARENA_MAX = -8


def soak(count: int) -> Iterator[Trial]:
    """The tutorial's run again and again in one process: memory, files, threads do not grow."""
    found = call(repeated, SCRATCH, SETTLED + count)
    memory, files, threads = found[SETTLED - 1]
    yield f"(after {SETTLED} runs {memory / 2**20:.1f} MB, {files} files, {threads} threads)", ""
    for number, (more, opened, running) in enumerate(found[SETTLED:], SETTLED + 1):
        problem = ""
        if more > 1.02 * memory:
            problem = f"{more / memory - 1:.1%} more memory"
        elif opened > files:
            problem = f"{opened - files} more files"
        elif running > threads + 1:  # the threads of JAX come and go
            problem = f"{running - threads} more threads"
        yield f"run {number}, {more / 2**20:.1f} MB, {opened} files, {running} threads", problem


def repeated(folder: Path, count: int) -> list[tuple[int, int, int]]:
    """Runs mnist.py in this process; returns memory, files and threads after each run."""
    import mnist

    libc, found = ctypes.CDLL(None), []
    # One heap for all threads. With one for each, as is the default, the gaps in them change the
    # memory of the process by some 5 %, although the same number of bytes is in use.
    assert libc.mallopt(ARENA_MAX, 1)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        for number in range(count):
            words = ["--dataset=digits", f"--steps={STEPS}", f"--out={folder / str(number)}"]
            assert mnist.main(mnist.command_line(words)) == 0
            gc.collect()
            libc.malloc_trim(0)  # gives freed memory back, of which more or less is kept
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            files, threads = (len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task"))
            found.append((pages * os.sysconf("SC_PAGESIZE"), files, threads))
    return found
