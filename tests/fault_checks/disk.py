"""File systems without space."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

from fault_checks.interruptions import ended, finish
from fault_checks.processes import (
    SCRATCH,
    Trial,
    checkpoints_of,
    options,
    run,
    said_badly,
    state_of,
)


def disk(count: int) -> Iterator[Trial]:
    """A full disk, in bytes or inodes: an error in a line, the same bits once there is space."""
    whole = SCRATCH / "whole"
    code, _, err = run("mnist", options(whole, steps=60))
    assert code == 0, err
    expected = state_of(whole)
    for trial in range(count):
        # Up to the figures, which are drawn at the end.
        share = trial // 2 / max(1, (count - 1) // 2)
        limits = ("size", 8192 + int(6e5 * share)), ("nr_inodes", 8 + int(150 * share))
        limit = limits[trial % 2]
        folder, what = SCRATCH / f"disk-{trial}", f"{limit[0]}={limit[1]}"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "tmpfs", str(folder), "-o"]
        subprocess.run([*mount, what], check=True)
        try:
            out = folder / "run"
            code, printed, err = run("mnist", options(out, steps=60), pictures=True)
            problem = said_badly(code, printed, err)
            what += f", {err.strip()[:100]}" if code else ", enough"
            before = checkpoints_of(out)
            subprocess.run([*mount, "remount,size=64m,nr_inodes=9999"], check=True)
            code, script = finish(options(out, steps=60))
            if before and f"resuming from step {before[-1]}" not in script.out:
                problem = problem or ("finished" not in script.out and "it does not resume") or ""
            for _, other in ended(code, script, out, expected):
                problem = problem or other
        finally:
            subprocess.run(["umount", folder], check=True)
        yield what, problem
