"""JSON files that are written atomically, and JSON Lines files to which records are appended.

What is read is compared with a schema, a type such as a `TypedDict`. A value that was written with
`sealed` also contains its own checksum, because a flipped bit often leaves valid JSON.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

# The entry with the checksum of the others.
CHECKSUM = "checksum"
# Larger files are not read.
LARGEST = 1 << 28


class FileError(ValueError):
    """A file does not hold what was written to it. The message is one line."""


def conforms(value: Any, schema: Any) -> str:
    """Returns how a value differs from a type, such as a `TypedDict`, or "" if it does not."""
    try:
        check_type(value, schema, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    except TypeCheckError as error:
        return " ".join(str(error).split())
    return ""


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an object of JSON with a checksum of its entries."""
    return {**value, CHECKSUM: _checksum(value)}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically: a crash leaves either the old file or the new one."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path, schema: Any = dict[str, Any]) -> Any:
    """Reads a JSON file, and returns its contents without their checksum.

    Raises:
        FileError: If the contents do not conform to the schema, or to their checksum.
        OSError: If the system does not allow reading it.
    """
    return _decode(_read(path), schema)


def read_records(
    path: Path,
    schema: Any = dict[str, Any],
    warn: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Reads the records of a JSON Lines file, without their checksums.

    A last line without an end, which a crash leaves, is omitted. A file that does not exist has no
    records.

    Args:
        path: The file.
        schema: The type of a record.
        warn: A function that is called with one line if other lines are damaged, which are then
            omitted.

    Raises:
        FileError: If a line is damaged and `warn` is None.
        OSError: If the system does not allow reading the file.
    """
    if not path.exists():
        return []
    records, problems = [], []
    for number, line in enumerate(_read(path).split(b"\n")[:-1], 1):
        try:
            records.append(_decode(line, schema))
        except FileError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        text = f"damaged lines: {len(problems)}, first {problems[0]}"
        if warn is None:
            raise FileError(f"{path} has {text}")
        warn(f"{path} is read without {text}")
    return records


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Appends a record with its checksum to a JSON Lines file, and returns when it is on disk.

    A last line without an end, which a crash leaves, is overwritten.
    """
    with _naming(path), path.open("ab+") as file:
        file.seek(0)
        text = file.read()
        if text and not text.endswith(b"\n"):
            file.truncate(text.rfind(b"\n") + 1)
        file.write(_line(record).encode())
        file.flush()
        os.fsync(file.fileno())


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes a JSON Lines file atomically: a crash leaves either the old file or the new one."""
    write_text(path, "".join(map(_line, records)))


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: a crash leaves either the old file or the new one."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically: a crash leaves either the old file or the new one."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the path of a temporary file, which replaces the file at the end.

    After an error the file is as it was before.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with _naming(path):
            temporary.unlink(missing_ok=True)  # a link there would be followed
            yield temporary
            temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def swept(folder: Path, *patterns: str) -> Iterator[None]:
    """Removes temporary files that killed processes have left, and protects those of this process.

    All processes that write such files hold a shared lock on the directory. A process that is alone
    with it removes the files that are there.

    Args:
        folder: The directory.
        *patterns: Glob patterns of the temporary files and directories.

    Raises:
        OSError: If the directory cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # another process is there, or NFS has no such lock
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in itertools.chain.from_iterable(map(folder.glob, patterns)):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # a pipe would wait, and a device may never end
        raise FileError("not a regular file")
    if (size := path.stat().st_size) > LARGEST:
        raise FileError(f"has {size:,} bytes, more than {LARGEST:,}")
    return path.read_bytes()


def _decode(text: bytes, schema: Any) -> Any:
    """Returns the value of a JSON text, without its checksum; raises FileError."""
    try:
        value = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise FileError(f"not JSON: {' '.join(str(error).split())}") from None
    if isinstance(value, dict) and CHECKSUM in value:
        checksum = value.pop(CHECKSUM)
        if checksum != _checksum(value):
            raise FileError("differs from its checksum")
    if problem := conforms(value, schema):
        raise FileError(problem)
    return value


def _checksum(value: Mapping[str, Any]) -> str:
    # As JSON restores it, where a tuple is a list and every key a string.
    text = json.dumps(json.loads(json.dumps(value)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(sealed(record)) + "\n"


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Adds the path to an error of the system that names no file, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
