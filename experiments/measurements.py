"""The records of experiments/accelerator.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxrnn.training.files import write_json


class OutOfTime(Exception):
    """A case is not to be started any more, or would not end in time."""


class Measurements:
    """The records of a part, in a file that is whole after each of them.

    Attributes:
        records: So far.
        deadline: When no new case is started, as `time.perf_counter` tells it.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], deadline: float):
        self.records: list[dict[str, Any]] = []
        self.deadline = deadline
        self._path, self._about, self._lock = path, about, threading.Lock()
        self.write()

    def write(self) -> None:
        """Writes the file, after a record has been added or changed."""
        with self._lock:
            write_json(self._path, {**self._about, "records": self.records})

    def add(self, record: dict[str, Any]) -> dict[str, Any]:
        """Keeps and prints a record."""
        shown = (
            f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in record.items()
            if not isinstance(value, dict | list)
        )
        with self._lock:
            self.records.append(record)
            print(" ", *shown, flush=True)
        self.write()
        return record

    def outcome(self, case: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a case returns; or that it is too late for it, or how it failed."""
        try:
            if time.perf_counter() > self.deadline:
                raise OutOfTime("no time was left")
            return case()
        except OutOfTime as error:
            return {"skipped": str(error)}
        except Exception as error:  # whatever a case raises, the next one is run
            return failure(error)


def failure(error: Exception) -> dict[str, Any]:
    """The entry of a record of what cannot be computed: that a backend says so, or the error."""
    refused = isinstance(error, ValueError) and "cannot compute this: " in str(error)
    if refused:
        return {"refused": str(error).partition("cannot compute this: ")[2]}
    return {"failed": f"{type(error).__name__}: {error}"[:400]}
