"""Data files with code, with paths, or of an unbounded size, and who can access our files."""

from __future__ import annotations

import gzip
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from idx_files import FILES, write, zipped

from fault_checks.downloads import home, left, pretend, quiet, served
from fault_checks.processes import EXPERIMENTS, PIPES, SCRATCH, Trial, call, options, run

# What the code in a file would write.
MARK = SCRATCH / "mark"
# How much more memory than for small files a damaged one may take.
MOST_BYTES = 300 << 20


class Bomb:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Returns the call that writes the file."""
        return Path.touch, (MARK,)


def security(count: int) -> Iterator[Trial]:
    """Data files cannot run code, name other files or fill the memory; caches are private."""
    yield "no pickle, eval or shell in the code, by ruff's rules", static()
    for name, prepare in ATTACKS.items():
        folder = SCRATCH / name.replace(" ", "-")
        folder.mkdir()
        prepare(folder)
        outside = snapshot(folder)
        error, grown = call(load, folder)
        problem = "" if error else "no error"
        if MARK.exists():
            problem = "code from the file is executed"
        elif snapshot(folder) != outside:
            problem = f"other files have changed: {snapshot(folder) ^ outside}"
        elif grown > MOST_BYTES:
            problem = f"it takes {grown >> 20} MiB"
        yield f"{name}, {grown >> 20} MiB, {error.replace(str(SCRATCH), '')[:120]}", problem
    yield "a study's name with a path", escapes()
    yield from private()


def static() -> str:
    """Returns what ruff finds, whose rules in pyproject.toml include those of flake8-bandit."""
    command = [sys.executable, "-m", "ruff", "check", "jaxrnn", "experiments"]
    done = subprocess.run(command, **PIPES, cwd=EXPERIMENTS.parent)
    return done.stdout if done.returncode else ""


def load(folder: Path) -> tuple[str, int]:
    """Loads MNIST from a folder; returns the error and the growth of the peak memory."""
    from jaxrnn.training import data

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = ""
    try:
        data.load("mnist", folder, 5, cache_dir=SCRATCH / "cache")
    except data.DataError as found:
        error = str(found)
    return error, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def snapshot(folder: Path) -> set[tuple[str, bytes]]:
    """Returns the files outside of a folder and of the cache, with their contents."""
    return {
        (str(path), path.read_bytes())
        for path in SCRATCH.rglob("*")
        if path.is_file() and not {folder, SCRATCH / "cache"} & set(path.parents)
    }


# --- Data sets that attack ------------------------------------------------------------------------


def pickled(folder: Path) -> None:
    """Writes Keras' file with Python objects."""
    objects = np.array([Bomb()], dtype=object)
    np.savez(folder / "mnist.npz", x_train=objects, y_train=objects, x_test=objects, y_test=objects)


def slipping(folder: Path) -> None:
    """Writes Keras' file with names of members outside of the folder."""
    with zipfile.ZipFile(folder / "mnist.npz", "w") as file:
        for name in ("../x_train.npy", str(SCRATCH / "y_train.npy"), "../../x_test.npy"):
            file.writestr(name, b"\x93NUMPY")


def unpacking(folder: Path) -> None:
    """Writes Keras' file with 4 GiB of zeros."""
    with zipfile.ZipFile(folder / "mnist.npz", "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": (1 << 30,)}
                np.lib.format.write_array_header_1_0(member, header)
                for _ in range(64):
                    member.write(bytes(1 << 24))


def announcing(folder: Path) -> None:
    """Writes Keras' file with small members whose headers announce 2⁶² bytes."""
    with zipfile.ZipFile(folder / "mnist.npz", "w") as file:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            with file.open(f"{name}.npy", "w") as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": (1 << 31, 1 << 31)}
                np.lib.format.write_array_header_1_0(member, header)


def gzipped(folder: Path) -> None:
    """Writes IDX files, one of them with 512 MiB of zeros behind its images."""
    write(folder)
    path = folder / f"{FILES[0]}.gz"
    raw = gzip.decompress(path.read_bytes())
    path.write_bytes(zipped(raw + bytes(1 << 29)))


def idx_link(folder: Path) -> None:
    """Writes IDX files, one of them a link to an endless device."""
    write(folder)
    (folder / f"{FILES[0]}.gz").unlink()
    (folder / f"{FILES[0]}.gz").symlink_to("/dev/zero")


def prepared(folder: Path, change: Callable[[Path], None]) -> None:
    """Prepares MNIST through TFDS from the small files, and changes it."""
    with served() as base:
        user = home("user")

        def prepare() -> None:
            from jaxrnn.training.data import tfds

            quiet()
            pretend(user, f"{base}/slow")()
            tfds.read = lambda name, version: shutil.copytree(version, folder / "mnist" / "3.0.1")
            tfds.download("mnist", None)

        call(prepare)
    change(folder / "mnist" / "3.0.1")


def naming_a_module(version: Path) -> None:
    """Names a module whose import writes a file, and removes the records, for an error."""
    (version / "mark_module.py").write_text(f"open({str(MARK)!r}, 'w')")
    sys.path.append(str(version))
    (version / "features.json").write_text('{"pythonClassName": "mark_module.Feature"}')
    for path in version.glob("*.array_record*"):
        path.write_bytes(b"")


def naming_a_file(version: Path) -> None:
    """Names records outside of the folder."""
    path = version / "dataset_info.json"
    info = json.loads(path.read_text())
    for split in info["splits"]:
        split["filepathTemplate"] = "../../../{SPLIT}.array_record"
    path.write_text(json.dumps(info))


def announcing_examples(version: Path) -> None:
    """Announces 10¹² examples."""
    path = version / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"][0]["shardLengths"] = [str(10**12)]
    path.write_text(json.dumps(info))


ATTACKS: dict[str, Callable[[Path], None]] = {
    "npz with objects": pickled,
    "npz with paths": slipping,
    "npz of 4 GiB": unpacking,
    "npz that announces 4 EiB": announcing,
    "gz with 512 MiB more": gzipped,
    "idx link to a device": idx_link,
    "tfds that names a module": lambda folder: prepared(folder, naming_a_module),
    "tfds that names a file": lambda folder: prepared(folder, naming_a_file),
    "tfds of 1e12 examples": lambda folder: prepared(folder, announcing_examples),
}


# --- Folders and permissions ----------------------------------------------------------------------


def escapes() -> str:
    """Returns what is wrong when a study is to be written beside --out."""
    words = ["../beside", "--vary", "cell=rnn,gru", "--dataset", "digits", "--out", SCRATCH / "out"]
    code, _, err = run("ablate", words)
    return "" if code == 2 and not (SCRATCH / "beside").exists() else f"exit code {code}: {err}"


def private() -> Iterator[Trial]:
    """Prepares MNIST with umask 0, trains with umask 077, and looks for what others can access."""
    with served() as base:
        for what, cache in (("with a cache", True), ("without", False)):
            folder = home("home")
            if not cache:
                (folder / ".cache").write_text("in the way")
            found = call(watched, folder, f"{base}/slow")
            rest = left(folder) if cache else []
            problem = f"others can access {found}" if found else rest and f"left behind: {rest}"
            yield f"files in HOME and TMPDIR while data is prepared, {what}", problem or ""
    out = SCRATCH / "run"
    code, _, err = run("mnist", options(out, steps=2), before=lambda: os.umask(0o077))
    shared = [str(path) for path in (out, *out.rglob("*")) if path.stat().st_mode & 0o077]
    problem = err if code else shared and f"others can access {shared}"
    yield "a run's files follow the umask of the user", problem or ""


def watched(folder: Path, url: str) -> list[str]:
    """Prepares MNIST with umask 0; returns what others could access meanwhile."""
    from jaxrnn.training import data
    from jaxrnn.training.data import tfds

    pretend(folder, url)()
    os.umask(0)
    quiet()
    found: set[str] = set()

    def look() -> None:
        for place in (folder / ".cache" / "jaxrnn", Path(tempfile.gettempdir())):
            for path in place.iterdir() if place.is_dir() else ():
                if stat.S_IMODE(path.lstat().st_mode) & 0o077:
                    found.add(str(path))
        place = folder / ".cache" / "jaxrnn"
        if place.is_dir() and stat.S_IMODE(place.stat().st_mode) & 0o077:
            found.add(str(place))

    read = tfds.read
    tfds.read = lambda *words: (look(), read(*words))[1]
    data.load("mnist", validation_size=5)
    look()
    return sorted(found)
