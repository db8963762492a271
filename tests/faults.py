"""Counts the faults that runs, studies and data sets survive: the table of docs/reliability.md.

    python tests/faults.py kill --count 50
    python tests/faults.py all

Every check trains small networks on scikit-learn's digits, causes faults, and compares what is left
with a run without faults. The table, in Markdown, is printed at the end. The exit code is 1 if a
trial has failed. Linux only; `disk` mounts file systems and needs root.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from collections.abc import Callable, Iterator

from fault_checks.damage import files, flips
from fault_checks.disk import disk
from fault_checks.downloads import downloads
from fault_checks.folders import folders
from fault_checks.interruptions import kill, nan, repeat, resume, signals
from fault_checks.machines import devices, hosts, study
from fault_checks.malformed import fuzz, malformed
from fault_checks.processes import SCRATCH, Trial
from fault_checks.security import security
from fault_checks.soak import soak


def main() -> int:
    """Runs checks and prints their table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("check", choices=["all", *CHECKS])
    parser.add_argument("--count", type=int, help="trials; the default depends on the check")
    given = parser.parse_args()
    # Ignored if a shell has started this script in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("train", "run_study", "predict", "sklearn.datasets", "matplotlib.figure"):
        __import__(name)
    lines = ["| check | tried | passed | what failed |", "|---|---|---|---|"]
    failed = 0
    for name in CHECKS if given.check == "all" else [given.check]:
        check, default = CHECKS[name]
        tried = passed = 0
        problems = []
        for what, problem in check(given.count or default):
            print(f"{name}: {what}: {problem or 'ok'}", flush=True)
            if what.startswith("("):
                continue
            tried += 1
            passed += not problem
            if problem:
                problems.append(f"{what}: {problem}")
        for path in SCRATCH.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        failed += len(problems)
        about = (check.__doc__ or "").splitlines()[0]
        what = "; ".join(dict.fromkeys(each[:120] for each in problems[:5]))
        lines.append(f"| `{name}`: {about} | {tried} | {passed} | {what} |".replace("\n", " "))
    print("\n".join(lines))
    return 1 if failed else 0


CHECKS: dict[str, tuple[Callable[[int], Iterator[Trial]], int]] = {
    "kill": (kill, 50),
    "signals": (signals, 20),
    "resume": (resume, 10),
    "repeat": (repeat, 5),
    "flips": (flips, 200),
    "files": (files, 1000),
    "nan": (nan, 10),
    "devices": (devices, 1),
    "hosts": (hosts, 10),
    "study": (study, 10),
    "disk": (disk, 10),
    "downloads": (downloads, 20),
    "folders": (folders, 1000),
    "security": (security, 1),
    "soak": (soak, 10),
    "malformed": (malformed, 1000),
    "fuzz": (fuzz, 200),
}

if __name__ == "__main__":
    sys.exit(main())
