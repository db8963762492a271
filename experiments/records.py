"""What is kept of a study: a folder of finished runs, and of what they are runs of.

results.jsonl holds a line for each finished run; config.json the rows of the study, each with its
options and the identities of its runs, and the commands that made them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from jaxrnn.training.run import RunError, environment, write_json


class Records:
    """The folder of a study.

    Args:
        folder: It; made when something is kept.
        host: Which process this one is; those after the first write to results-1.jsonl and so on.
    """

    def __init__(self, folder: Path, host: int = 0):
        self.folder = folder
        self.path = folder / (f"results-{host}.jsonl" if host else "results.jsonl")
        self.config_path = folder / "config.json"

    def read(self) -> dict[str, dict[str, Any]]:
        """Runs of all hosts by identity; a last line cut off by a crash is left out."""
        found = {}
        for path in sorted(self.folder.glob("results*.jsonl")):
            lines = path.read_text().splitlines(keepends=True)
            records = [json.loads(line) for line in lines if line.endswith("\n")]
            found |= {record["identity"]: record for record in records}
        return found

    def of_rows(self) -> list[dict[str, Any]]:
        """The runs of the study's rows as they are now defined, whatever they were called."""
        found = self.read()
        return [
            found[name] | {"row": row}
            for row, kept in self.config()["rows"].items()
            for name in kept["runs"]
            if name in found
        ]

    def config(self) -> dict[str, Any]:
        """What config.json holds."""
        return json.loads(self.config_path.read_text())

    def beside(self) -> dict[str, dict[str, Any]]:
        """The runs of the other studies kept with this one, by identity."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(self.folder.parent.glob("*/results.jsonl")):
            if path.parent != self.folder:
                found |= Records(path.parent).read()
        return found

    @contextlib.contextmanager
    def locked(self) -> Iterator[IO[str]]:
        """The file of runs, to append to, while no other process writes to it or to config.json."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a run, after mending a line that a crash cut off."""
        with self.locked() as file:
            text = self.path.read_text()
            if text and not text.endswith("\n"):
                file.truncate(text.rfind("\n") + 1)
            file.write(json.dumps(record) + "\n")

    def keep_rows(
        self, about: Mapping[str, Any], study: Mapping[str, dict[str, Any]], asked: Collection[str]
    ) -> None:
        """Writes config.json, with the environment of this time.

        A row that is not asked for stays as it was; one that the study no longer has, or has with
        other options, is dropped.

        Args:
            about: What else it shall say.
            study: Of each row, in order, its `options`, the `set` of all rows, `data_sha256` and
                the `runs` that it would have if asked for.
            asked: The rows to run.

        Raises:
            RunError: If a row would stay that was run on other data or with another --set.
        """
        with self.locked():
            before = self.config() if self.config_path.exists() else {"commands": [], "rows": {}}
            rows, kept = {}, False
            for name, row in study.items():
                old = before["rows"].get(name)
                if old and old["data_sha256"] != row["data_sha256"]:
                    raise RunError(f"{self.folder} holds runs on other data: choose another --out")
                if old and name not in asked and old["set"] != row["set"]:
                    raise RunError(
                        f"{self.folder} holds {name!r} with another --set: choose another --out"
                    )
                stays = old is not None and old["options"] == row["options"]
                kept |= stays
                runs = (row["runs"] if name in asked else []) + (old["runs"] if stays else [])
                if runs:
                    rows[name] = row | {"runs": list(dict.fromkeys(runs))}
            write_json(
                self.config_path,
                {
                    **about,
                    "commands": before["commands"] if kept else [],
                    "rows": rows,
                    "environment": environment(),
                },
            )

    def keep_command(self, command: str) -> None:
        """Adds the command to config.json."""
        with self.locked():
            config = self.config()
            config["commands"] = list(dict.fromkeys([*config["commands"], command]))
            write_json(self.config_path, config)
