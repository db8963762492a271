"""The directory of a run, and the signals that stop it.

config.json     the configuration, the data and the environment
metrics.jsonl   one record per evaluation
checkpoints/    the checkpoints, see `jaxrnn.training.checkpoint`
result.json     the result, which exists only if the run is finished
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
    """The directory of a run cannot be used. The message is one line."""


class OtherConfiguration(RunError):
    """The directory holds a run with another configuration."""


class Run:
    """The directory of one run.

    Attributes:
        directory: The directory.
        checkpoints: The directory of the checkpoints of the run.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.checkpoints = directory / "checkpoints"
        self._metrics = directory / "metrics.jsonl"

    def open(self, config: Mapping[str, Any], *, start_over: bool = False) -> list[str]:
        """Creates the directory, or opens it if it holds a run with the same configuration.

        Args:
            config: The configuration: everything on which the results depend.
            start_over: Whether to remove all files of an earlier run, of any configuration.

        Returns:
            One line for every part of the environment that differs from that of the earlier run. If
            there is one, the resumed run need not be bit-identical to an uninterrupted one.

        Raises:
            OtherConfiguration: If the directory holds a run with another configuration, and
                `start_over` is false.
            RunError: If the directory holds other files, or cannot be read or written.
            CheckpointError: If `start_over` is true and another process writes checkpoints there.
        """
        now = {"config": json.loads(json.dumps(config)), "environment": environment()}
        try:
            if not self._holds_run():
                self.directory.mkdir(parents=True, exist_ok=True)
                write_json(self.directory / "config.json", now)
                return []
            if start_over:
                with lock(self.checkpoints):  # not while another process writes there
                    self._clear()
                write_json(self.directory / "config.json", now)
                return []
            before = self.read("config.json")
            _check_same(self.directory, before["config"], now["config"])
        except OSError as error:
            raise RunError(f"{self.directory} cannot be used: {error}") from None
        return differences(before["environment"], now["environment"])

    def check(self, known: Mapping[str, Any]) -> None:
        """Checks, before a run is opened, the part of its configuration that is known.

        Raises:
            OtherConfiguration: If the directory holds a run with another configuration.
            RunError: If the directory holds other files, or cannot be read.
        """
        try:
            if self._holds_run():
                before = self.read("config.json")["config"]
                _check_same(self.directory, before, before | json.loads(json.dumps(known)))
        except OSError as error:
            raise RunError(f"{self.directory} cannot be used: {error}") from None

    def _holds_run(self) -> bool:
        """Returns whether the directory holds a run; raises RunError if it holds other files."""
        if (self.directory / "config.json").exists():
            return True
        left = set(os.listdir(self.directory)) if self.directory.exists() else set()
        if left - {"config.json.tmp"}:  # left by a crash while the run was created
            raise RunError(f"{self.directory} is not empty and holds no run")
        return False

    def _clear(self) -> None:
        """Removes everything but config.json, in an order that always leaves a valid run.

        The result is removed first, and the metrics after the checkpoints that refer to them.
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
            RunError: If the file is missing or damaged.
        """
        try:
            return json.loads((self.directory / name).read_text())
        except FileNotFoundError:
            raise RunError(f"{self.directory} holds no run: {name} is missing") from None
        except (OSError, ValueError) as error:
            raise RunError(f"{self.directory / name} cannot be read: {error}") from None

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return (self.directory / "result.json").exists()

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes the result, which marks the run as finished."""
        write_json(self.directory / "result.json", result)

    def metrics(self) -> list[dict[str, Any]]:
        """Reads the records of the evaluations so far, without a line that a crash cut off."""
        return read_records(self._metrics)

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Appends the record of an evaluation, and returns when it is on disk.

        A checkpoint that is saved afterwards may therefore refer to it.
        """
        append_record(self._metrics, record)

    def rewind_metrics(self, step: int) -> list[dict[str, Any]]:
        """Removes the records of evaluations after `step`, and returns the others."""
        records = [record for record in self.metrics() if record["step"] <= step]
        write_records(self._metrics, records)
        return records


class Stop:
    """A context manager that catches the first SIGINT or SIGTERM.

    The training loop can then finish its chunk and save a checkpoint. A second signal raises
    KeyboardInterrupt.

    Attributes:
        signal: The number of the signal that was caught, or None.
    """

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


def _check_same(directory: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises OtherConfiguration if two configurations differ."""
    if changes := differences(before, now):
        raise OtherConfiguration(
            f"{directory} holds a run with other options ({'; '.join(changes)}); "
            "choose another folder"
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns one line `name: before, now …` for each entry that differs.

    An entry NAME_sha256 is a hash of what the entry NAME names, or a mapping from files to hashes.
    Its lines say what has changed.
    """
    lines = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        subject = name.removesuffix("_sha256")
        if subject == name:
            lines.append(f"{name}: {old}, now {new}")
        elif isinstance(old, Mapping) and isinstance(new, Mapping):
            files = sorted(old.keys() | new.keys())
            lines += [f"{file} has changed" for file in files if old.get(file) != new.get(file)]
        else:
            lines.append(f"{now.get(subject, subject)} has changed")
    return lines


def environment() -> dict[str, Any]:
    """Returns the versions and the hardware, on which the last bits of the results depend too."""
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
    """Returns the model of the CPU, if the system reports it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def machine() -> str:
    """Returns the devices of this process, such as "2 × NVIDIA H100" or "2 × " and a CPU model."""
    device = jax.local_devices()[0]
    kind = processor() if device.platform == "cpu" else device.device_kind
    return f"{jax.local_device_count()} × {kind}"


def peak_memory() -> int:
    """Returns the peak resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def cores() -> int:
    """Returns the number of cores that this process may use, which is also XLA's count."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def git_revision() -> str | None:
    """Returns the git revision of the code, or None if it is not in a repository.

    The revision ends with "-dirty" if a Python file has been changed since.
    """
    git = ["git", "-C", str(Path(__file__).parents[2])]
    describe = [*git, "describe", "--always"]
    # Only Python files count, because runs may write their files into the repository.
    unchanged = [*git, "diff", "--quiet", "HEAD", "--", "*.py"]
    try:
        found = subprocess.run(describe, capture_output=True, text=True, timeout=5).stdout.strip()
        dirty = found and subprocess.run(unchanged, timeout=5).returncode
    except (OSError, subprocess.TimeoutExpired):
        return None
    return f"{found}-dirty" if dirty else found or None
