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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, TypedDict

import jax

from jaxrnn.training import files
from jaxrnn.training.checkpoint import LOCK, lock

__all__ = ["OtherConfiguration", "Run", "RunError", "Stop"]

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class RunError(ValueError):
    """The directory of a run cannot be used. The message is one line."""


class OtherConfiguration(RunError):
    """The directory holds a run with another configuration."""


class DamagedConfiguration(OtherConfiguration):
    """The directory holds a run whose configuration cannot be read."""


class _Stored(TypedDict):
    """The contents of config.json."""

    config: dict[str, Any]
    environment: dict[str, Any]


class Run:
    """The directory of one run, as a context manager that releases its lock.

    Attributes:
        directory: The directory.
        checkpoints: The directory of the checkpoints of the run.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.checkpoints = directory / "checkpoints"
        self._metrics = directory / "metrics.jsonl"
        self._lock: IO[str] | None = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def lock(self) -> None:
        """Creates the directory, and locks it against other writers until the context is left.

        It is the lock of the checkpoints, which are then opened with `locked=True`.

        Raises:
            CheckpointError: If another process holds the lock.
            RunError: If the directory holds other files, or cannot be written.
        """
        try:
            self._holds_run()
            self._lock = lock(self.checkpoints)
        except OSError as error:
            raise RunError(f"{self.directory} cannot be used: {error}") from None

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
                files.write_json(self.directory / "config.json", files.sealed(now))
                return []
            if start_over:
                # Not while another process writes there.
                with contextlib.nullcontext() if self._lock else lock(self.checkpoints):
                    self._clear()
                    files.write_json(self.directory / "config.json", files.sealed(now))
                return []
            before = self.configuration()
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
            if self._holds_run() and known:
                before = self.configuration()["config"]
                _check_same(self.directory, before, before | json.loads(json.dumps(known)))
        except OSError as error:
            raise RunError(f"{self.directory} cannot be used: {error}") from None

    def _holds_run(self) -> bool:
        """Returns whether the directory holds a run; raises RunError if it holds other files."""
        if (self.directory / "config.json").exists():
            return True
        left = set(os.listdir(self.directory)) if self.directory.exists() else set()
        # A crash while the run was created leaves a temporary file and the lock.
        left -= {"config.json.tmp"}
        if left == {"checkpoints"} and self.checkpoints.is_dir():
            left = set(os.listdir(self.checkpoints)) - {LOCK}
        if left:
            raise RunError(f"{self.directory} is not empty and holds no run")
        return False

    def _clear(self) -> None:
        """Removes everything but config.json, in an order that always leaves a valid run.

        The result is removed first, and the metrics after the checkpoints that refer to them.
        Nothing is removed behind a symbolic link.
        """
        if self.checkpoints.is_symlink():
            raise RunError(
                f"{self.checkpoints} is a symbolic link, whose contents are not deleted; remove it"
            )
        (self.directory / "result.json").unlink(missing_ok=True)
        # The lock stays, since another process could not see that a removed one is held.
        for path in [*self.checkpoints.iterdir(), *self.directory.iterdir()]:
            if path.is_dir() and not path.is_symlink() and path != self.checkpoints:
                shutil.rmtree(path)
            elif (path.is_file() or path.is_symlink()) and path.name not in ("config.json", LOCK):
                path.unlink()

    def configuration(self) -> dict[str, Any]:
        """Reads config.json: the entries `config` and `environment`.

        Raises:
            DamagedConfiguration: If the file is damaged.
            RunError: If the file is missing, or cannot be read.
        """
        try:
            return self.read("config.json", _Stored)
        except files.FileError as error:
            raise DamagedConfiguration(
                f"{self.directory / 'config.json'} is damaged: {error}; choose another folder"
            ) from None

    def read(self, name: str, schema: Any = dict[str, Any]) -> dict[str, Any]:
        """Reads one of the run's JSON files, and compares it with a schema.

        Raises:
            FileError: If the file is damaged.
            RunError: If the file is missing, or cannot be read.
        """
        try:
            return files.read_json(self.directory / name, schema)
        except FileNotFoundError:
            raise RunError(f"{self.directory} holds no run: {name} is missing") from None
        except OSError as error:
            raise RunError(f"{self.directory / name} cannot be read: {error}") from None

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return (self.directory / "result.json").exists()

    def result(
        self, schema: Any = dict[str, Any], warn: Callable[[str], None] = lambda line: None
    ) -> dict[str, Any] | None:
        """Returns the result, or None if the run is not finished, or the result is damaged.

        Args:
            schema: The type of the result.
            warn: A function that is called with one line if the result is damaged.
        """
        if not self.finished:
            return None
        try:
            return self.read("result.json", schema)
        except files.FileError as error:
            path = self.directory / "result.json"
            warn(f"{path} is damaged and written again from the checkpoints: {error}")
            return None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes the result, which marks the run as finished."""
        files.write_json(self.directory / "result.json", files.sealed(result))

    def metrics(
        self, schema: Any = dict[str, Any], warn: Callable[[str], None] | None = None
    ) -> list[dict[str, Any]]:
        """Reads the records of the evaluations so far, without a line that a crash cut off.

        Args:
            schema: The type of a record.
            warn: A function that is called with one line if other lines are damaged, which are then
                omitted.

        Raises:
            RunError: If a line is damaged and `warn` is None, or the file cannot be read.
        """
        try:
            return files.read_records(self._metrics, schema, warn)
        except files.FileError as error:
            raise RunError(str(error)) from None

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Appends the record of an evaluation, and returns when it is on disk.

        A checkpoint that is saved afterwards may therefore refer to it.
        """
        files.append_record(self._metrics, record)

    def rewind_metrics(
        self,
        step: int,
        schema: Any = dict[str, Any],
        warn: Callable[[str], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Removes the records of evaluations after `step`, and returns the others.

        Of several records of a step, the last one remains. The arguments are those of `metrics`.
        """
        found = {record["step"]: record for record in self.metrics(schema, warn)}
        records = [found[each] for each in sorted(found) if each <= step]
        files.write_records(self._metrics, records)
        return records


class Stop:
    """A context manager that catches the first SIGINT or SIGTERM.

    The training loop can then finish its chunk and save a checkpoint. A second signal is handled as
    it was before, or raises KeyboardInterrupt if it would have ended the process.

    Attributes:
        signal: The number of the signal that was caught, or None.
    """

    signal: int | None = None

    def __enter__(self) -> Stop:
        self._before: dict[int, Any] = {
            number: signal.signal(number, self._catch) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def _catch(self, number: int, frame: Any) -> None:
        if self.signal is None:
            self.signal = number
            return
        if callable(before := self._before[number]):
            before(number, frame)
        raise KeyboardInterrupt

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
