"""Folders that cannot be used, environments without a home directory, and occupied folders."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from idx_files import write

from fault_checks.processes import (
    EXPERIMENTS,
    PIPES,
    SCRATCH,
    STUDY,
    Trial,
    checkpoints_of,
    options,
    run,
    said_badly,
    start,
)

# An error must come within this processor time. The modules are imported already.
SECONDS = 2.0


class Case(NamedTuple):
    """A command that cannot succeed.

    Attributes:
        what: What is wrong, in words.
        script: The name of the script.
        words: The command line.
        path: The path that the error must name.
    """

    what: str
    script: str
    words: list[Any]
    path: Path


def unprivileged() -> None:
    """Makes permissions apply to this process, which stays the owner of its files."""
    version, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(version, nothing):
        raise OSError(ctypes.get_errno(), "capset")


def folders(count: int) -> Iterator[Trial]:
    """A folder that cannot be used, or is in use: an error in 2 s of processor time names it."""
    trained, picture = SCRATCH / "trained", SCRATCH / "three.png"
    code, _, err = run("mnist", options(trained, steps=10))
    assert code == 0, err
    draw_picture(picture)
    for case in [*unusable(trained, picture), *unreadable(trained, picture)][:count]:
        yield fails(case)
    subprocess.run(["umount", SCRATCH / "mount"], check=True)
    yield from homeless()
    yield in_use()


def draw_picture(path: Path) -> None:
    """Writes an image of a stroke."""
    from PIL import Image

    image = Image.new("L", (28, 28), 255)
    image.paste(0, (12, 6, 15, 22))
    image.save(path)


def writers(trained: Path, picture: Path) -> dict[str, Callable[[Path], tuple[list[Any], Path]]]:
    """Returns the scripts that write to a folder, with the command and the path of its file."""
    form = ["in-step", "--dataset", "digits", "--steps", 2, "--hidden-size", 4]

    def export(name: str) -> Callable[[Path], tuple[list[Any], Path]]:
        return lambda out: (["--run", trained, "--out", out / name], out / name)

    return {
        "mnist": lambda out: (options(out, steps=10), out),
        "ablate": lambda out: ([*STUDY, "--out", out], out),
        "forms": lambda out: ([*form, "--out", out], out),
        "predict": lambda out: (
            [picture, "--run", trained, "--beliefs", out / "beliefs.png"],
            out / "beliefs.png",
        ),
        "export": export("model.stablehlo"),
        "export onnx": export("model.onnx"),
        "export html": export("digit.html"),
        "benchmark": lambda out: (
            ["--rounds", 1, "--tasks", "step", "--libraries", "jaxrnn", "--out", out / "b.json"],
            out,
        ),
        "accelerator": lambda out: (["--out", out, "--seconds", 1], out),
    }


def unusable(trained: Path, picture: Path) -> Iterator[Case]:
    """Yields the commands whose output cannot be written."""
    closed, file, mount = (SCRATCH / name for name in ("closed", "file", "mount"))
    inner = SCRATCH / "inner"
    for folder in (closed, mount, inner, *(inner / name for name in ("in-step", "sizes"))):
        folder.mkdir()
    (inner / "checkpoints").mkdir()
    file.write_text("")
    subprocess.run(["mount", "--bind", mount, mount], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", mount], check=True)
    for folder in (closed, *inner.iterdir()):
        folder.chmod(0o500)
    for name, command in writers(trained, picture).items():
        for what, out in (
            ("folder without permission", closed),
            ("below such a folder", closed / "new"),
            ("read-only mount", mount),
            ("a file in place of a folder", file),
            ("below a file", file / "new"),
            ("missing folder", SCRATCH / "missing" / "deeper"),
            ("its own folder without permission", inner),
        ):
            of_file = name.split()[0] in ("predict", "export")
            creates = what == "missing folder" and not of_file
            if creates or (out == inner and name not in ("mnist", "ablate", "forms")):
                continue
            words, path = command(out)
            yield Case(f"{name}, {what}", name.split()[0], words, path)
    folder = SCRATCH / "folder.png"
    folder.mkdir()
    for name, option in (("mnist", "--out"), ("export", "--out"), ("predict", "--beliefs")):
        words = {
            "mnist": options(trained)[2:],
            "export": ["--run", trained, "--format", "onnx"],
            "predict": [picture, "--run", trained],
        }[name]
        path = {"mnist": file, "predict": folder}.get(name, trained)
        yield Case(f"{name} {option} of the wrong kind", name, [*words, option, path], path)


def unreadable(trained: Path, picture: Path) -> Iterator[Case]:
    """Yields the commands whose input cannot be read."""
    file, shut, gone = SCRATCH / "file", SCRATCH / "shut", SCRATCH / "gone"
    shutil.copytree(trained, shut / "run")
    write(shut / "data")
    for path in (shut / "run", shut / "data"):
        path.chmod(0)
    read_only = SCRATCH / "read-only"
    shutil.copytree(trained, read_only)
    read_only.chmod(0o500)
    for run_folder in (gone, file, shut / "run"):
        yield Case("predict --run", "predict", [picture, "--run", run_folder], run_folder)
        yield Case("export --run", "export", ["--run", run_folder], run_folder)
        yield Case("draw --run", "draw", ["--run", run_folder, "--no-browser"], run_folder)
    yield Case("draw in a read-only run", "draw", ["--run", read_only, "--no-browser"], read_only)
    again = options(read_only, steps=10)
    yield Case("mnist --no-resume of a read-only run", "mnist", [*again, "--no-resume"], read_only)
    for folder in (gone, file, shut / "data"):
        out = SCRATCH / "unused"
        data = ["--dataset", "mnist", "--data-dir", folder]
        yield Case("mnist --data-dir", "mnist", [*options(out)[:2], *data], folder)
        yield Case("ablate --data-dir", "ablate", ["fast", "--out", out, *data], folder)
        yield Case("forms --data-dir", "forms", ["in-step", "--out", out, *data], folder)


def fails(case: Case) -> Trial:
    """Runs a command that cannot succeed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, out, err = run(case.script, case.words, before=unprivileged)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # Those of predict.py, whose network is hardly trained.
    err = "".join(line for line in err.splitlines(True) if not line.startswith("warning: "))
    problem = said_badly(code, out, err)
    if code == 0:
        problem = "no error"
    elif str(case.path) not in err:
        problem = problem or f"no word of {case.path}"
    elif seconds > SECONDS:
        problem = problem or f"it took {seconds:.1f} s"
    said = (err.splitlines() or [""])[-1].replace(str(SCRATCH), "")
    return f"{case.what}: {seconds:.2f} s, {said[:150]}", problem


def homeless() -> Iterator[Trial]:
    """Trains without a home directory, and without one for temporary files."""
    data = write(SCRATCH / "data")
    nothing = SCRATCH / "closed" / "new"
    environments: dict[str, dict[str, str | None]] = {
        "HOME is not set": {"HOME": None},
        "HOME does not exist": {"HOME": str(nothing)},
        "HOME is a file": {"HOME": str(SCRATCH / "file")},
        "HOME cannot be written": {"HOME": str(SCRATCH / "closed")},
        "TMPDIR does not exist": {"TMPDIR": str(nothing), "HOME": str(nothing)},
    }
    for number, (what, changes) in enumerate(environments.items()):
        variables = {**os.environ, "XDG_CACHE_HOME": None, **changes}
        environment = {key: value for key, value in variables.items() if value is not None}
        out = SCRATCH / f"homeless-{number}"
        words = options(
            out, dataset="mnist", data_dir=data, steps=2, validation_size=5, batch_size=10
        )
        command = [sys.executable, EXPERIMENTS / "mnist.py", *map(str, words)]
        done = subprocess.run(
            command, **PIPES, env=environment, cwd=SCRATCH, preexec_fn=unprivileged
        )
        problem = said_badly(done.returncode, done.stdout, done.stderr)
        if done.returncode:
            problem = problem or f"exit code {done.returncode}: {done.stderr.strip()}"
        yield f"{what}, {done.stderr.count(chr(10))} lines on stderr", problem


def in_use() -> Trial:
    """Starts a second process on a run that is in use."""
    out = SCRATCH / "in use"
    first = start("mnist", options(out, steps=100_000))
    first.wait_for(lambda: checkpoints_of(out))
    os.kill(first.process.pid, signal.SIGSTOP)
    words = options(out, steps=100_000)
    _, problem = fails(Case("second process", "mnist", words, out))
    what, other = fails(Case("second process, --no-resume", "mnist", [*words, "--no-resume"], out))
    first.process.kill()
    return what, problem or other
