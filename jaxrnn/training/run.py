"""A run: its folder on disk, and the signals that stop it.

config.json     the configuration, the data and the machine
metrics.jsonl   one object per evaluation
checkpoints/    see `jaxrnn.training.checkpoint`
result.json     the outcome; present only when the run is finished
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxrnn.training.checkpoint import lock
from jaxrnn.training.files import append_record, read_records, write_json, write_records

__all__ = ["OtherConfiguration", "Run", "RunError", "Stop"]

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class RunError(ValueError):
    """A run's folder cannot be used as asked; one line says why."""


class OtherConfiguration(RunError):
    """A directory holds a run of another configuration."""


class Run:
    """The directory of one run.

    Attributes:
        directory: The directory.
        checkpoints: The directory of its checkpoints.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.checkpoints = directory / "checkpoints"
        self._metrics = directory / "metrics.jsonl"

    def open(self, config: Mapping[str, Any], *, start_over: bool = False) -> list[str]:
        """Creates the folder, or opens it again if it holds a run of the same configuration.

        Args:
            config: Everything that the results depend on.
            start_over: Remove what an earlier run of the same configuration left.

        Returns:
            One line for every package version or device that differs from the earlier run's, in
            which case its continuation need not be bit-identical.

        Raises:
            RunError: If the folder holds something else, or cannot be written.
            CheckpointError: If it is to be started over and another process writes there.
        """
        now = {"config": json.loads(json.dumps(config)), "environment": environment()}
        try:
            if not (self.directory / "config.json").exists():
                left = set(os.listdir(self.directory)) if self.directory.is_dir() else set()
                if left - {"config.json.tmp"}:  # of a start that was cut short
                    raise RunError(f"{self.directory} is not empty and holds no run")
                self.directory.mkdir(parents=True, exist_ok=True)
                write_json(self.directory / "config.json", now)
                return []
            before = self.read("config.json")
            if changes := differences(before["config"], now["config"]):
                raise OtherConfiguration(
                    f"{self.directory} holds a run with another configuration "
                    f"({'; '.join(changes)}): choose another directory"
                )
            if start_over:
                with lock(self.checkpoints):  # not while another process writes there
                    self._clear()
                write_json(self.directory / "config.json", now)
                return []
        except OSError as error:
            raise RunError(f"{self.directory} cannot be used: {error}") from None
        return differences(before["environment"], now["environment"])

    def _clear(self) -> None:
        """Removes all but config.json; if it is interrupted, the folder still holds a run.

        The result is removed first, and the evaluations after the checkpoints that refer to them.
        """
        (self.directory / "result.json").unlink(missing_ok=True)
        shutil.rmtree(self.checkpoints)
        for path in self.directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "config.json":
                path.unlink()

    def read(self, name: str) -> dict[str, Any]:
        """Reads one of the run's JSON files.

        Raises:
            RunError: If it is missing or damaged.
        """
        try:
            return json.loads((self.directory / name).read_text())
        except FileNotFoundError:
            raise RunError(f"{self.directory} holds no run: {name} is missing") from None
        except (OSError, ValueError) as error:
            raise RunError(f"{self.directory / name} cannot be read: {error}") from None

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return (self.directory / "result.json").exists()

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes the outcome."""
        write_json(self.directory / "result.json", result)

    def metrics(self) -> list[dict[str, Any]]:
        """The records of the evaluations so far; a last line cut off by a crash is left out."""
        return read_records(self._metrics)

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Adds the record of an evaluation, on the disk before a checkpoint can refer to it."""
        append_record(self._metrics, record)

    def rewind_metrics(self, step: int) -> list[dict[str, Any]]:
        """Drops the records after `step`, which will be made again; returns the others."""
        records = [record for record in self.metrics() if record["step"] <= step]
        write_records(self._metrics, records)
        return records


class Stop:
    """Catches the first Ctrl-C or SIGTERM, so that the chunk can be finished and saved."""

    signal: int | None = None

    def __enter__(self) -> Stop:
        self._before = {
            number: signal.signal(number, self._catch) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def _catch(self, number: int, _: Any) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One `name: before -> now` for each entry that differs."""
    names = sorted(before.keys() | now.keys())
    return [
        f"{name}: {before.get(name)} -> {now.get(name)}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def environment() -> dict[str, Any]:
    """What the last bits of the results depend on besides the configuration."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        **({"processes": jax.process_count()} if jax.process_count() > 1 else {}),
        "cores": cores(),
        "machine": platform.machine(),
        "processor": processor(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "git_revision": git_revision(),
    }


def processor() -> str:
    """The CPU's model, if the system reports it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def machine() -> str:
    """The devices of this process, as "2 × NVIDIA H100" or "2 × " and a CPU's model."""
    device = jax.local_devices()[0]
    kind = processor() if device.platform == "cpu" else device.device_kind
    return f"{jax.local_device_count()} × {kind}"


def peak_memory() -> int:
    """The most memory this process has held so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def cores() -> int:
    """The cores this process may use, which is what XLA counts."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def git_revision() -> str | None:
    """The code's, "-dirty" if a Python file was changed since; None where it is no repository."""
    git = ["git", "-C", str(Path(__file__).parents[2])]
    describe = [*git, "describe", "--always"]
    # Of the code alone: what runs leave in the repository does not change what they are.
    unchanged = [*git, "diff", "--quiet", "HEAD", "--", "*.py"]
    try:
        found = subprocess.run(describe, capture_output=True, text=True, timeout=5).stdout.strip()
        dirty = found and subprocess.run(unchanged, timeout=5).returncode
    except (OSError, subprocess.TimeoutExpired):
        return None
    return f"{found}-dirty" if dirty else found or None
