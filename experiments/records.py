"""The folder of a study.

results.jsonl has a record of each finished run. config.json has the settings of the study, each
with its options and the identities of its runs, and the commands that ran them.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from errors import OptionError
from options import Config
from schemas import Record, Study

from jaxrnn.training import compare, files, report
from jaxrnn.training.run import environment

# The options of a length along which settings are compared.
LENGTHS = ("length", "test_length", "delay", "test_delay")


class Along(NamedTuple):
    """Settings along a length.

    Attributes:
        option: The name of the length.
        lines: The settings by the value of the length, for each line, which is named like its
            settings without the length.
    """

    option: str
    lines: dict[str, dict[int, str]]


class Records:
    """The folder of a study.

    Args:
        folder: The folder, which the first write creates.
        host: The index of this process. Host 1 writes to results-1.jsonl, and so on.
        warn: A function that is called once with a line for each file with damaged records, which
            are left out.
    """

    def __init__(self, folder: Path, host: int = 0, warn: Callable[[str], None] = print):
        self.folder = folder
        self._warn = functools.cache(warn)
        self.path = folder / (f"results-{host}.jsonl" if host else "results.jsonl")
        self.config_path = folder / "config.json"

    def read(self) -> dict[str, dict[str, Any]]:
        """Returns the records of all hosts by the identity of the run."""
        return {
            record["identity"]: record
            for path in sorted(self.folder.glob("results*.jsonl"))
            for record in files.read_records(path, Record, self._warn)
        }

    def of_settings(self) -> list[dict[str, Any]]:
        """Returns the records of the settings in config.json, with their present names."""
        found = self.read()
        return [
            found[identity] | {"setting": name}
            for name, setting in self.config()["settings"].items()
            for identity in setting["runs"]
            if identity in found
        ]

    def config(self) -> dict[str, Any]:
        """Returns the contents of config.json.

        Raises:
            OptionError: If they are damaged.
        """
        try:
            return files.read_json(self.config_path, Study)
        except files.FileError as error:
            raise OptionError(
                f"{self.config_path} is damaged: {error}; delete it, and the same command writes "
                "it again from the records"
            ) from None

    def of_other_studies(self) -> dict[str, dict[str, Any]]:
        """Returns the records of the studies in the same parent folder, by identity."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(self.folder.parent.glob("*/results.jsonl")):
            if path.parent != self.folder:
                found |= Records(path.parent, warn=self._warn).read()
        return found

    def along(self) -> Along | None:
        """Returns the settings along the option of a length that they differ in.

        Returns:
            None if there is no such option whose value each setting names.
        """
        settings = self.config()["settings"]
        for option in LENGTHS:
            lines: dict[str, dict[int, str]] = {}
            for name, setting in settings.items():
                given = setting["options"]
                value, default = (
                    given.get(each, getattr(Config, each))
                    for each in (option, option.removeprefix("test_"))
                )
                line = re.sub(rf",? ?\b{option}[ =]{value}\b,?", "", name).strip()
                # Without a length of their own, the test sequences have that of the others.
                value = default if value is None else value
                if line != name:
                    lines.setdefault(line, {})[value] = name
            named = sum(map(len, lines.values()))
            if named == len(settings) and any(len(points) > 1 for points in lines.values()):
                return Along(option, lines)
        return None

    def groups(self) -> list[list[str]]:
        """Returns the settings that a table compares: those of equal length, or else all."""
        along = self.along()
        if along is None or len(along.lines) == 1:
            return [list(self.config()["settings"])]
        values = sorted({value for points in along.lines.values() for value in points})
        return [
            [points[value] for points in along.lines.values() if value in points]
            for value in values
        ]

    def compared(self, baseline: str | None) -> list[list[compare.Summary]]:
        """Returns the summaries of each table: of `groups` with a record, the baseline first."""
        records = self.of_settings()
        first = [] if baseline is None else [baseline]
        summaries = (
            compare.summarise(records, [*(name for name in first if name in group), *group])
            for group in self.groups()
        )
        return [group for group in summaries if group]

    def draw_lengths(self, path: Path) -> bool:
        """Draws the accuracies along a length; returns False if the settings differ in none."""
        along = self.along()
        if along is None:
            return False
        accuracies: dict[str, list[float]] = {}
        for run in self.of_settings():
            if run["status"] == "ok":
                accuracies.setdefault(run["setting"], []).append(run["test_accuracy"])
        lines = {
            line: {value: accuracies.get(name, []) for value, name in points.items()}
            for line, points in along.lines.items()
        }
        report.lengths(lines, path, along.option, self.folder.name)
        return True

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the folder against writes by other processes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def claims(self) -> Iterator[Callable[[str], bool]]:
        """Yields a function that claims a run for this process, and returns whether it could.

        Other processes cannot claim the run until the context is left or this process ends.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".claims").open("a") as file:

            def claim(identity: str) -> bool:
                # A lock on one byte of the file, which the system releases if the process is
                # killed.
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(identity[:15], 16))
                except BlockingIOError:
                    return False
                return True

            yield claim

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds the record of a run, unless it is there already."""
        with self.locked():
            if record["identity"] not in self.read():
                files.append_record(self.path, record)

    def keep_settings(
        self, about: Mapping[str, Any], study: Mapping[str, dict[str, Any]], asked: Collection[str]
    ) -> None:
        """Writes the settings and the current environment to config.json.

        A setting that is not asked for stays as it is. A setting that the study no longer has, or
        has with other options, is removed.

        Args:
            about: Other entries of config.json.
            study: For each setting, in order, its `options`, the `set` of all settings,
                `data_sha256` and the `runs` of the setting if it is asked for.
            asked: The settings to run.

        Raises:
            OptionError: If a setting that stays was run on other data or with another --set.
        """
        with self.locked():
            before: dict[str, Any] = {"commands": [], "settings": {}}
            if self.config_path.exists():
                before = self.config()
            settings, kept = {}, False
            for name, setting in study.items():
                old = before["settings"].get(name)
                if old is not None and old["data_sha256"] != setting["data_sha256"]:
                    raise OptionError(
                        f"{self.folder} holds runs on other data: choose another --out"
                    )
                if old is not None and name not in asked and old["set"] != setting["set"]:
                    raise OptionError(
                        f"{self.folder} holds {name!r} with another --set: choose another --out"
                    )
                stays = old is not None and old["options"] == setting["options"]
                kept |= stays
                runs = setting["runs"] if name in asked else []
                runs = runs + (old["runs"] if old is not None and stays else [])
                if runs:
                    settings[name] = setting | {"runs": list(dict.fromkeys(runs))}
            self._write_config(
                {
                    **about,
                    "commands": before["commands"] if kept else [],
                    "settings": settings,
                    "environment": environment(),
                }
            )

    def keep_command(self, command: str) -> None:
        """Adds a command to config.json."""
        with self.locked():
            config = self.config()
            config["commands"] = list(dict.fromkeys([*config["commands"], command]))
            self._write_config(config)

    def _write_config(self, config: Mapping[str, Any]) -> None:
        files.write_json(self.config_path, files.sealed(config))
