"""The records of experiments/accelerator.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxrnn.training.files import write_json
from jaxrnn.training.run import cores


class OutOfTime(Exception):
    """A case is not started, or is given up, because it would not end in time."""


class Measurements:
    """The records of one part, in a JSON file that is complete after each of them.

    Attributes:
        records: The records so far.
        deadline: The time of `time.perf_counter` after which no new case is started.
        folder: The folder of the file.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], deadline: float):
        self.records: list[dict[str, Any]] = []
        self.deadline, self._started = deadline, time.perf_counter()
        self.folder = path.parent
        self._path, self._about, self._lock = path, about, threading.Lock()
        self.write()

    def write(self) -> None:
        """Writes the file, after a record has been added or changed."""
        with self._lock:
            write_json(self._path, {**self._about, "records": self.records})

    def add(self, record: dict[str, Any]) -> dict[str, Any]:
        """Adds a record to the file and prints it."""
        shown = (
            f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in record.items()
            if not isinstance(value, dict | list)
        )
        with self._lock:
            self.records.append(record)
            print(f"{time.perf_counter() - self._started:6.0f} s", *shown, flush=True)
        self.write()
        return record

    def outcome(self, case: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Returns the result of a case, or a record of why there is none."""
        return outcome(case, self.deadline)


def outcome(case: Callable[[], dict[str, Any]], deadline: float) -> dict[str, Any]:
    """Returns the result of a case, or a record of why there is none; see `Measurements`."""
    try:
        if time.perf_counter() > deadline:
            raise OutOfTime("no time was left")
        return case()
    except OutOfTime as error:
        return {"skipped": str(error)}
    except Exception as error:  # whatever a case raises, the next one runs
        return failure(error)


def failure(error: Exception) -> dict[str, Any]:
    """Returns a record of an error, or of the reason why a backend does not support a case."""
    refused = isinstance(error, ValueError) and "cannot compute this: " in str(error)
    if refused:
        return {"refused": str(error).partition("cannot compute this: ")[2]}
    return {"failed": f"{type(error).__name__}: {error}"[:400]}


def compile_threads(small: bool) -> int:
    """Returns how many threads compile programs.

    One for small sizes, as on a CPU, since interpreted kernels start threads of their own.
    """
    return 1 if small else max(1, min(cores() - 2, 12))
