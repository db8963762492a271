"""The folder of a study.

results.jsonl has a record of each finished run. config.json has the settings of the study, each
with its options and the identities of its runs, and the commands that ran them.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from errors import OptionError
from schemas import Record, Study

from jaxrnn.training import files
from jaxrnn.training.run import environment


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
