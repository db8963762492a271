"""Files with a flipped bit, and files that are truncated, emptied, deleted or renamed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import random
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fault_checks.interruptions import stop_at
from fault_checks.processes import (
    SCRATCH,
    STUDY,
    Trial,
    best_step,
    call,
    options,
    run,
    said_badly,
    state_of,
)


def flip(path: Path, bit: int) -> None:
    """Flips one bit of a file."""
    contents = bytearray(path.read_bytes())
    contents[bit // 8] ^= 1 << bit % 8
    path.write_bytes(contents)


def truncate(path: Path) -> None:
    """Removes the second half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def rename(path: Path) -> None:
    """Gives a file another name."""
    path.rename(path.with_name(f"{path.name}-moved"))


WAYS: dict[str, Callable[[Path], Any]] = {
    "truncated": truncate,
    "emptied": lambda path: os.truncate(path, 0),
    "deleted": Path.unlink,
    "renamed": rename,
}


@dataclasses.dataclass
class Sound:
    """Undamaged folders, and what scripts print and compute from them.

    Attributes:
        part: A run that is stopped at step 40 of 60.
        whole: A finished run.
        study: The folder of a study of two runs.
        data: A folder with IDX files.
        cache: The cache of their arrays.
        image: A picture of a digit.
        expected: The numbers of each kind of folder.
    """

    part: Path
    whole: Path
    study: Path
    data: Path
    cache: Path
    image: Path
    expected: dict[str, Any]

    def use(self, kind: str, folder: Path) -> tuple[int | None, str, str, Any]:
        """Uses a folder as a user does; returns exit code, output, errors and numbers."""
        if kind == "data cache":
            code, found = call(arrays, self.data, folder)
            return code, "", found if code else "", found
        if kind == "whole run, predict":
            code, out, err = run("predict", [self.image, "--run", folder, "--json"])
            numbers = [re.sub(r'"(file|run)": "[^"]*"', "", out)]
        elif kind == "study":
            code, out, err = run("ablate", [*STUDY, "--seeds", 1, "--out", folder])
            paths = sorted(folder.glob("*/results*.jsonl"))
            lines = [line for path in paths for line in path.read_bytes().splitlines()]
            kept = ("test_accuracy", "validation_accuracy", "curve")
            numbers: Any = {}
            for line in lines:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    record = json.loads(line)  # a later one replaces a damaged one
                    numbers[record["identity"]] = [record[key] for key in kept]
            if not code and "2 runs are done" in out:
                numbers["table"] = (folder / "sizes" / "table.md").read_text()
        else:
            code, out, err = run("mnist", options(folder, steps=60))
            numbers = [
                line for line in out.splitlines() if "accuracy" in line and "step  " not in line
            ]
            if not code and kind == "part of a run":
                lines = (folder / "metrics.jsonl").read_text().splitlines()
                times = [json.loads(line)["seconds"] for line in lines]
                numbers += [state_of(folder), times[:3]]
        return code, out, err, numbers

    def trial(self, kind: str, damage: Callable[[Path], Any], file: Path) -> str:
        """Damages a file of a copy of a folder; returns what is wrong with its use."""
        source = self.folders()[kind]
        copy = Path(tempfile.mkdtemp(dir=SCRATCH))
        shutil.copytree(source, copy, dirs_exist_ok=True)
        damage(copy / file)
        code, out, err, numbers = self.use(kind, copy)
        problem = said_badly(code, out, err)
        if not problem and not code and numbers != self.expected[kind]:
            names = {file.name, *(part for part in file.parts if part.isdigit())}
            if not any(name in out + err for name in names):
                problem = "other numbers, and no word"
        shutil.rmtree(copy)
        return problem

    def folders(self) -> dict[str, Path]:
        """Returns the folder of each kind."""
        return {
            "part of a run": self.part,
            "whole run": self.whole,
            "whole run, predict": self.whole,
            "study": self.study,
            "data cache": self.cache,
        }

    def files(self, kind: str) -> list[Path]:
        """Returns the files that a use of this kind of folder reads, relative to the folder."""
        folder = self.folders()[kind]
        found = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
        json_files = [path for path in found if path.suffix in (".json", ".jsonl")]
        step = best_step(self.whole, 60) if kind == "whole run, predict" else 40
        checkpoint = [path for path in found if path.parts[:2] == ("checkpoints", str(step))]
        return {
            "part of a run": json_files + checkpoint,
            "whole run": json_files,
            "whole run, predict": [Path("config.json"), *checkpoint],
            "study": json_files,
            "data cache": found,
        }[kind]


def sound() -> Sound:
    """Creates the undamaged folders."""
    from idx_files import write
    from PIL import Image
    from sklearn.datasets import load_digits

    names = ("part", "whole", "study", "data", "cache", "image.png")
    found = Sound(*(SCRATCH / name for name in names), {})
    Image.fromarray((load_digits().images[3] * 15).astype("uint8")).resize((64, 64)).save(
        found.image
    )
    write(found.data)
    code, *_ = run("mnist", options(found.part, steps=60), before=stop_at(40))
    assert code == 128 + signal.SIGTERM
    code, _, err = run("mnist", options(found.whole, steps=60))
    assert code == 0, err
    for kind, folder in (("study", found.study), ("data cache", found.cache)):
        code, _, err, _ = found.use(kind, folder)
        assert code == 0, err
    for kind, folder in found.folders().items():
        copy = Path(tempfile.mkdtemp(dir=SCRATCH))
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        code, _, err, found.expected[kind] = found.use(kind, copy)
        assert code == 0, err
    return found


def arrays(data_dir: Path, cache: Path) -> tuple[int, Any]:
    """Loads a data set; returns a code and the hash of its arrays, or the error."""
    from jaxrnn.training import data

    try:
        found = data.load("mnist", data_dir, 5, cache)
    except data.DataError as error:
        return 2, f"{error}\n"
    hashed = hashlib.sha256()
    for split in (found.train, found.validation, found.test):
        hashed.update(split.images.tobytes() + split.labels.tobytes())
    return 0, hashed.hexdigest()


def flips(count: int) -> Iterator[Trial]:
    """A flipped bit in a file: an older state, an error in a line, or the same numbers."""
    rng, folders = random.Random(3), sound()
    # Each restores a checkpoint in one process; the others run a script.
    restored = count // 2
    files = [path for path in folders.part.glob("checkpoints/*/**/*") if path.stat().st_size]
    files = [path for path in files if path.is_file()]
    chosen = [rng.choice(files) for _ in range(restored)]
    bits = [rng.randrange(8 * path.stat().st_size) for path in chosen]
    problems = call(restore_flipped, folders.part, list(zip(map(str, chosen), bits, strict=True)))
    for path, bit, problem in zip(chosen, bits, problems, strict=True):
        yield f"restored, {path.relative_to(folders.part)}, bit {bit}", problem
    for _ in range(count - restored):
        kind = rng.choice(list(folders.folders()))
        source = folders.folders()[kind]
        file = rng.choice([each for each in folders.files(kind) if (source / each).stat().st_size])
        bit = rng.randrange(8 * (source / file).stat().st_size)
        problem = folders.trial(kind, functools.partial(flip, bit=bit), file)
        yield f"{kind}, {file}, bit {bit}", problem


def restore_flipped(out: Path, flipped: list[tuple[str, int]]) -> list[str]:
    """Restores a run's checkpoints, each time with a flipped bit; returns what was wrong."""
    import experiment
    import jax

    from jaxrnn.training.checkpoint import CheckpointError, Checkpoints

    config, model, _, _ = experiment.load_run(out)
    optimizer = experiment.build_optimizer(config)
    like = jax.eval_shape(lambda: experiment.initial_state(config, model, optimizer))

    def restore() -> tuple[int, str, list[str]]:
        lines: list[str] = []
        with Checkpoints(out / "checkpoints", read_only=True, warn=lines.append) as checkpoints:
            step, state = checkpoints.restore(like) or (0, None)
        contents = b"".join(leaf.tobytes() for leaf in jax.tree.leaves(state))
        return step, hashlib.sha256(contents).hexdigest(), lines

    expected, moved = {}, []
    while (found := restore())[0]:  # of each step
        expected[found[0]] = found[1]
        moved.append(out / "checkpoints" / str(found[0]))
        moved[-1].rename(out / f"{found[0]}-moved")
    for path in moved:
        (out / f"{path.name}-moved").rename(path)
    problems = []
    for name, bit in flipped:
        flip(Path(name), bit)
        try:
            step, state, lines = restore()
            problem = "" if state == expected[step] else f"another state at step {step}"
            if step < max(expected) and len(lines) != 1:
                problem = f"an older state with {len(lines)} lines"
        except CheckpointError as error:
            problem = "" if "\n" not in str(error) else f"error of several lines: {error}"
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        flip(Path(name), bit)
        problems.append(problem)
    return problems


def files(count: int) -> Iterator[Trial]:
    """A file truncated, emptied, deleted or renamed: as with flipped bits."""
    folders = sound()
    trials = [
        (kind, way, file)
        for kind in folders.folders()
        for file in folders.files(kind)
        for way in WAYS
    ]
    for kind, way, file in random.Random(4).sample(trials, min(count, len(trials))):
        yield f"{kind}, {file} {way}", folders.trial(kind, WAYS[way], file)
