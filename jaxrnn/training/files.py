"""JSON files that are written atomically, and JSON Lines files to which records are appended."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically: a crash leaves either the old file or the new one."""
    _replace(path, [json.dumps(value, indent=2) + "\n"])


def read_records(path: Path) -> list[dict[str, Any]]:
    """Reads the records of a JSON Lines file.

    A last line without an end, which a crash leaves, is omitted. A file that does not exist has no
    records.
    """
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Appends a record to a JSON Lines file, and returns when it is on disk.

    A last line without an end, which a crash leaves, is overwritten.
    """
    with path.open("a+") as file:
        file.seek(0)
        text = file.read()
        if text and not text.endswith("\n"):
            file.truncate(len(text[: text.rfind("\n") + 1].encode()))
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes a JSON Lines file atomically: a crash leaves either the old file or the new one."""
    _replace(path, (json.dumps(record) + "\n" for record in records))


def _replace(path: Path, lines: Iterable[str]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
