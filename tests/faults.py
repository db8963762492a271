"""Counts the faults that runs, studies and data sets survive: the table of docs/reliability.md.

    python tests/faults.py kill --count 50
    python tests/faults.py all

Every check trains small networks on scikit-learn's digits, causes faults, and compares what is left
with a run without faults. The table, in Markdown, is printed at the end. The exit code is 1 if a
trial has failed. Linux only; `disk` mounts file systems and needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import multiprocessing
import os
import random
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

COMPILED = tempfile.TemporaryDirectory(prefix="jaxrnn-faults-")
# Processes are forked from this one, which has imported everything and must have one thread.
os.environ |= {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # Programs are compiled once, and quickly.
    "JAX_COMPILATION_CACHE_DIR": COMPILED.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}
os.environ.pop("JAXRNN_DATA_DIR", None)
EXPERIMENTS = Path(__file__).parents[1] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

FORK = multiprocessing.get_context("fork")
# A trial: what was done, and what went wrong, or "".
Trial = tuple[str, str]
PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
# A study of two settings.
STUDY = [
    *("sizes", "--dataset", "digits", "--cell", "rnn", "--vary", "hidden_size=4,5"),
    *("--set", "batch_size=50", "--set", "steps=40", "--set", "learning_rate=0.01"),
    *("--evaluations", 2),
]


def options(out: Path, **changes: Any) -> list[Any]:
    """Returns the options of a run of mnist.py with a checkpoint after every ten steps."""
    found = {
        "out": out,
        "dataset": "digits",
        "cell": "rnn",
        "hidden_size": 8,
        "batch_size": 50,
        "learning_rate": 0.01,
        "devices": 1,
        "eval_every": 10,
        "checkpoint_every": 10,
    }
    pairs = [(f"--{key.replace('_', '-')}", value) for key, value in (found | changes).items()]
    return [word for pair in pairs for word in pair]


@dataclasses.dataclass
class Script:
    """A script that runs in a forked process.

    Attributes:
        process: The process.
        folder: The folder of the files `out` and `err` with what it prints.
    """

    process: Any
    folder: Path

    @property
    def out(self) -> str:
        """What the script has printed so far."""
        return (self.folder / "out").read_text(errors="replace")

    @property
    def err(self) -> str:
        """What the script has printed on stderr so far."""
        return (self.folder / "err").read_text(errors="replace")

    def end(self, seconds: float = 300) -> int | None:
        """Waits for the script; returns its exit code, or None if it had to be killed."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            return None
        return self.process.exitcode

    def wait_for(self, condition: Callable[[], Any], seconds: float = 120) -> bool:
        """Waits until a condition is true; returns False if the script ends first."""
        end = time.monotonic() + seconds
        while not condition():
            if self.process.exitcode is not None or time.monotonic() > end:
                return False
            time.sleep(0.0005)
        return True


def start(
    name: str,
    words: Sequence[Any],
    before: Callable[[], Any] = lambda: None,
    pictures: bool = False,
) -> Script:
    """Starts a script of experiments/.

    Args:
        name: The name of the script, such as "mnist".
        words: The command line.
        before: A function that the new process calls first.
        pictures: Whether mnist.py draws its figures, which takes most of the time of a small run.
    """
    folder = Path(tempfile.mkdtemp(dir=SCRATCH, prefix=f"{name}-"))

    def run() -> None:
        for number, file in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / file, os.O_WRONLY | os.O_CREAT), number)
        before()
        if not pictures:
            import train

            train.draw = lambda *_: None  # type: ignore[assignment]
        sys.argv = [str(EXPERIMENTS / f"{name}.py"), *map(str, words)]
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()

    process = FORK.Process(target=run)
    process.start()
    for file in ("out", "err"):
        while not (folder / file).exists() and process.exitcode is None:
            time.sleep(0.001)
    return Script(process, folder)


def run(name: str, words: Sequence[Any], **options: Any) -> tuple[int | None, str, str]:
    """Runs a script; returns its exit code and what it has printed."""
    script = start(name, words, **options)
    code = script.end()
    return code, script.out, script.err


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a forked process, and returns its result through JSON."""
    reading, writing = os.pipe()

    def work() -> None:
        with os.fdopen(writing, "w") as file:
            json.dump(function(*arguments), file)

    process = FORK.Process(target=work)
    process.start()
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    process.join()
    return json.loads(text)


def restore(out: Path) -> tuple[int, Any]:
    """Returns step and train state of the latest checkpoint of a run."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    import experiment
    import jax

    from jaxrnn.training.checkpoint import Checkpoints

    config, model, _, _ = experiment.load_run(out)
    optimizer = experiment.build_optimizer(config)
    like = jax.eval_shape(lambda: experiment.initial_state(config, model, optimizer))
    with Checkpoints(out / "checkpoints", read_only=True) as checkpoints:
        restored = checkpoints.restore(like)
    assert restored is not None
    return restored


def state_of(out: Path) -> dict[str, Any]:
    """Returns step, hash of the train state, and records of the latest checkpoint of a run."""

    def read() -> dict[str, Any]:
        import jax

        from jaxrnn.training.run import Run

        restored = restore(out)
        found = hashlib.sha256()
        for leaf in jax.tree.leaves(restored[1]):
            found.update(leaf.tobytes())
        records = [{**record, "seconds": 0} for record in Run(out).metrics()]
        return {"step": restored[0], "state": found.hexdigest(), "records": records}

    return call(read)


def checkpoints_of(out: Path) -> list[int]:
    """Returns the steps of the checkpoints that are complete."""
    folder = out / "checkpoints"
    return sorted(
        int(path.name)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.name.isdigit() and (path / "commit_success.txt").exists()
    )


def best_step(out: Path, step: int) -> int:
    """Returns the step with the best validation accuracy, up to a step."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    known = [record for record in records if record["step"] <= step]
    return max(known, key=lambda r: (r["validation_accuracy"], r["step"]))["step"]


def said_badly(code: int | None, out: str, err: str) -> str:
    """Returns what is wrong with the end of a script: it hangs, or prints more than an error."""
    if code is None:
        return "it did not end"
    if "Traceback" in out + err:
        return f"traceback: {err.strip().splitlines()[-1][:200]}"
    if code and err.count("\n") != 1 and "stopped: " not in out and "interrupted at" not in out:
        return f"exit code {code} and {err.count(chr(10))} lines of errors: {err[:200]!r}"
    return ""


# --- Killed processes -----------------------------------------------------------------------------


def kill_at_operation(number: int, folder: Path) -> Callable[[], None]:
    """Returns a function after which the process kills itself before a file operation in a folder.

    Args:
        number: The number of the operation: a file opened, renamed or removed, a folder created.
        folder: The folder.
    """

    def install() -> None:
        count = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            kinds = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
            if event in kinds and str(arguments[0]).startswith(str(folder)):
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)

    return install


def kill(count: int) -> Iterator[Trial]:
    """SIGKILL at random moments: no complete checkpoint lost, the same bits at the end."""
    rng, steps = random.Random(0), 600
    whole, out = SCRATCH / "whole", SCRATCH / "killed"
    began = time.monotonic()
    code, _, err = run("mnist", options(whole, steps=steps))
    assert code == 0, err
    seconds, expected = time.monotonic() - began, state_of(whole)
    words, made, amid = options(out, steps=steps), 0, {"save": 0, "clean-up": 0}
    while made < count:
        kind = ("any moment", "training", "save", "file operation")[made % 4]
        before = checkpoints_of(out)
        operation = kill_at_operation(rng.randrange(1, 2000), out)
        script = start("mnist", words, operation if kind == "file operation" else lambda: None)
        seen = max(before, default=0)
        if kind == "any moment":
            time.sleep(rng.uniform(0, seconds))
        elif kind == "training":
            script.wait_for(lambda seen=seen: max(checkpoints_of(out), default=0) > seen)
            time.sleep(rng.uniform(0, 0.5))
        elif kind == "save":
            script.wait_for(lambda: unfinished(out))
            time.sleep(rng.uniform(0, 0.02))
        else:
            script.wait_for(lambda: False)
        seen = max(seen, *checkpoints_of(out), 0)
        script.process.kill()
        code = script.end()
        if code == -signal.SIGKILL:
            made += 1
            for each in unfinished(out):
                amid[each] += 1
            left = checkpoints_of(out)
            problem = "" if seen in [0, *left] else f"step {seen} was complete and is lost"
            if left and not problem and (best := best_step(out, left[-1])) not in left:
                problem = f"the best step {best} is lost"
            if "damaged" in script.out:
                problem = f"damaged: {script.out}"
            yield f"{kind}, at step {seen}", problem
        else:  # it ended before it was killed, or has been killed often enough
            yield from ended(code, script, out, expected)
            shutil.rmtree(out)
    yield from ended(*finish(words), out, expected)
    yield f"(killed in {amid['save']} saves and {amid['clean-up']} clean-ups)", ""


def finish(words: Sequence[Any]) -> tuple[int | None, Script]:
    """Runs mnist.py to its end."""
    script = start("mnist", words)
    return script.end(), script


def ended(code: int | None, script: Script, out: Path, expected: Any) -> Iterator[Trial]:
    """Yields a trial: a run has ended and equals the expected one bit for bit."""
    problem = said_badly(code, script.out, script.err) or (code and script.err) or ""
    if not problem and "damaged" in script.out:
        problem = script.out
    left = [path.name for path in (out / "checkpoints").iterdir() if not path.name.isdigit()]
    if not problem and left != ["lock"]:
        problem = f"left behind: {left}"
    if not problem and state_of(out) != expected:
        problem = "it ends with other bits"
    yield "at the end", problem


def unfinished(out: Path) -> set[str]:
    """Returns "save" and "clean-up" if a checkpoint of a run is being written or removed."""
    found = set()
    folder = out / "checkpoints"
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name == "removed":
            found.add("clean-up")
        elif "tmp" in path.name:
            found.add("save")
    return found


def signals(count: int) -> Iterator[Trial]:
    """SIGTERM and SIGINT in all phases: saved, and ended in 2 s of processor time and in a line."""
    rng, out = random.Random(1), SCRATCH / "run"
    words = options(out, steps=1500)
    began = time.monotonic()
    fresh = subprocess.run(
        [sys.executable, str(EXPERIMENTS / "mnist.py"), *map(str, words)], check=False, **PIPES
    )
    assert fresh.returncode == 0, fresh.stderr
    seconds, step, slowest = time.monotonic() - began, 0, 0.0
    shutil.rmtree(out)
    for number in (signal.SIGTERM, signal.SIGINT):
        for trial in range(count):
            # A process of its own, since most of the time is spent on imports.
            process = subprocess.Popen(
                [sys.executable, str(EXPERIMENTS / "mnist.py"), *map(str, words)], **PIPES
            )
            time.sleep(0.1 + (seconds - 0.1) * (trial + rng.random()) / count)
            seen = max(checkpoints_of(out), default=0)
            # Processor time, since other processes may use the same cores.
            spent = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            before = os.times()
            process.send_signal(number)
            printed, err = process.communicate()
            after = os.times()
            took = after.children_user + after.children_system
            took -= before.children_user + before.children_system
            took -= sum(map(int, spent)) / os.sysconf("SC_CLK_TCK")
            slowest = max(took, slowest)
            code, saved = process.returncode, checkpoints_of(out)
            stopped = re.findall(r"interrupted at step (\d+), which is saved", printed)
            lines = [line for line in printed.splitlines() if "interrupted" in line]
            lines += err.splitlines()
            problem = ""
            if "Traceback" in err:
                problem = f"traceback of {len(lines)} lines"
            elif code in (0, -number):  # as Python itself ends, after the last line
                problem = "" if (out / "result.json").exists() else "it ends with code 0"
            elif code != 128 + number:
                problem = f"exit code {code}"
            elif len(lines) != 1:
                problem = f"{len(lines)} lines: {lines}"
            elif took > 2:
                problem = f"it ends after {took:.1f} s"
            elif saved and stopped and int(stopped[0]) != saved[-1]:
                problem = f"it says step {stopped[0]}, but {saved[-1]} is saved"
            elif seen and seen not in saved and max(saved, default=0) < seen:
                problem = f"step {seen} is lost"
            if step and "step " in printed and f"resuming from step {step}" not in printed:
                problem = problem or f"it did not resume from step {step}"
            phase = f"step {stopped[0]}" if stopped else f"after {printed.count(chr(10))} lines"
            step = max(saved, default=0)
            yield f"{number.name}, {phase}, {took:.2f} s", problem
            if code == 0 or step > 1300:
                shutil.rmtree(out)
                step = 0
    yield f"(the longest end took {slowest:.2f} s)", ""


# --- Equal bits -----------------------------------------------------------------------------------


def stop_at(step: int) -> Callable[[], None]:
    """Returns a function after which the process sends itself SIGTERM when it writes a record."""

    def install() -> None:
        from jaxrnn.training.run import Run

        append = Run.append_metrics

        def append_and_stop(run: Run, record: Any) -> None:
            append(run, record)
            if record["step"] == step:
                os.kill(os.getpid(), signal.SIGTERM)

        Run.append_metrics = append_and_stop  # type: ignore[method-assign]

    return install


def resume(count: int) -> Iterator[Trial]:
    """Stopped and resumed at a step, epoch boundaries among them: the same bits at the end."""
    # 1,257 images are three batches of 419. Of the batches of 50, the 26th spans two epochs.
    for size, last, steps in ((419, 13, (1, 2, 3, 6, 9)), (50, 55, (1, 25, 26, 50, 51))):
        expected = None
        for step in (None, *steps[: -(-count // 2)]):
            out = SCRATCH / f"{size}-{step}"
            words = options(out, steps=last, batch_size=size, eval_every=1)
            if step is not None:
                code, printed, err = run("mnist", words, before=stop_at(step))
                if code != 128 + signal.SIGTERM or f"step {step}, which is saved" not in printed:
                    yield f"batches of {size}, step {step}", f"not stopped: {err}"
                    continue
            code, script = finish(words)
            if step is None:
                assert code == 0, script.err
                expected = state_of(out)
                continue
            if f"resuming from step {step} " not in script.out:
                yield f"batches of {size}, step {step}", "not resumed"
                continue
            for _, problem in ended(code, script, out, expected):
                yield f"batches of {size}, step {step}", problem


def repeat(count: int) -> Iterator[Trial]:
    """The same seed in another process: the same bits."""
    found = []
    for number in range(count):
        code, _, err = run("mnist", options(SCRATCH / str(number), steps=100))
        assert code == 0, err
        found.append(state_of(SCRATCH / str(number)))
        yield f"run {number + 1}", "" if found[-1] == found[0] else "other bits"


# --- Damaged files --------------------------------------------------------------------------------


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

    logging.getLogger("absl").setLevel(logging.CRITICAL)
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


# --- Not finite -----------------------------------------------------------------------------------


def poison(step: int) -> Callable[[], None]:
    """Returns a function after which the update of a step sets every parameter to NaN."""

    def install() -> None:
        import experiment
        import jax.numpy as jnp
        import optax

        def poisoned(rate: Any) -> optax.GradientTransformation:
            def update(updates: Any, state: Any, params: Any = None) -> Any:
                import jax

                factor = jnp.sqrt(jnp.where(state == step - 1, -1.0, 1.0))
                return jax.tree.map(lambda leaf: leaf * factor, updates), state + 1

            return optax.chain(
                optax.adam(rate), optax.GradientTransformation(lambda _: jnp.int32(0), update)
            )

        experiment.OPTIMIZERS["adam"] = poisoned

    return install


def nan(count: int) -> Iterator[Trial]:
    """A parameter becomes NaN: exit code 1 with the step and a command that replays it."""
    rng, last = random.Random(2), 200
    for step in [*rng.sample(range(1, last), count - 2), 100, last]:
        out = SCRATCH / f"nan-{step}"
        words = options(out, steps=last)
        code, printed, err = run("mnist", words, before=poison(step))
        what, saved = f"after step {step}", checkpoints_of(out)
        line = next((line for line in printed.splitlines() if "stopped: " in line), "")
        if code != 1 or "Traceback" in err:
            yield what, f"exit code {code}: {err}"
        elif not re.search(rf"step {step}\b|step {step + 1}\b", line):
            yield what, f"the step is not named: {line!r} {err!r}"
        elif saved and saved[-1] >= step:
            yield what, f"step {saved[-1]} is saved"
        elif saved and best_step(out, saved[-1]) not in saved:
            yield what, "the best checkpoint is lost"
        elif (out / "result.json").exists():
            yield what, "it has a result"
        elif "JAX_DEBUG_NANS=1 python" not in line:
            yield what, "no command replays it"
        else:
            yield what, replay(line, words, step)


def replay(line: str, words: Sequence[Any], step: int) -> str:
    """Runs the command of a line; returns what is wrong with it."""
    command = shlex.split(line.partition("JAX_DEBUG_NANS=1 python ")[2])
    if command[1:] != list(map(str, words)):
        return f"the command has other options: {line}"

    def debug() -> None:
        import jax

        # As the variable does in a process that has not imported JAX yet.
        jax.config.update("jax_debug_nans", True)
        poison(step)()

    code, printed, err = run("mnist", words, before=debug)
    if not code or "Invalid value (nan)" not in err or "factor = jnp.sqrt" not in err:
        return f"the command does not find the operation: {code} {printed} {err[-300:]}"
    return ""


# --- Devices and processes ------------------------------------------------------------------------


def devices(count: int) -> Iterator[Trial]:
    """1, 2, 4 and 8 devices agree, and each resumes the checkpoint of each other one."""
    import numpy as np

    def words(share: int, out: Path) -> list[Any]:
        return options(out, steps=60, batch_size=40, devices=share)

    shares, largest = (1, 2, 4, 8), 0.0
    expected = None
    for share in shares:
        for name, before in (("whole", lambda: None), ("part", stop_at(30))):
            out = SCRATCH / f"{name}-{share}"
            code, _, err = run("mnist", words(share, out), before=devices_of(share, before))
            assert code in (0, 128 + signal.SIGTERM), err
        params = call(parameters, SCRATCH / f"whole-{share}")
        expected = expected or params
        distance = float(np.abs(np.subtract(params, expected)).max())
        largest = max(largest, distance)
        yield f"{share} devices", "" if distance < TOLERANCE else f"they differ by {distance:.1e}"
    for one in shares:
        for other in shares:
            out = SCRATCH / f"{one}-{other}"
            shutil.copytree(SCRATCH / f"part-{one}", out)
            script = start("mnist", words(other, out), devices_of(other, lambda: None))
            problem = said_badly(script.end(), script.out, script.err) or script.err
            if f"device: {other} × " not in script.out:
                problem = problem or "it has other devices"
            if "resuming from step 30" not in script.out:
                problem = problem or "it does not resume"
            if not problem:
                distance = float(np.abs(np.subtract(call(parameters, out), expected)).max())
                largest = max(largest, distance)
                problem = "" if distance < TOLERANCE else f"they differ by {distance:.1e}"
            yield f"a checkpoint of {one} devices on {other}", problem
    yield f"(the largest difference of a parameter is {largest:.1e})", ""


# The largest difference of a parameter after 60 steps on other numbers of devices.
TOLERANCE = 1e-4


def devices_of(number: int, before: Callable[[], Any]) -> Callable[[], None]:
    """Returns a function that gives the process a number of devices, then calls another one."""

    def install() -> None:
        flag = f"--xla_force_host_platform_device_count={number}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
        before()

    return install


def parameters(out: Path) -> list[float]:
    """Returns all parameters of the latest checkpoint of a run."""
    import jax
    import numpy as np

    restored = restore(out)
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(restored[1].params)]).tolist()


def free_port() -> int:
    """Returns a port that no process uses."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def hosts(count: int) -> Iterator[Trial]:
    """One of two or four processes is killed: all end within 60 s in a line, and resume."""
    rng, slowest = random.Random(5), 0.0
    for trial in range(count):
        size, out = (2, 4)[trial % 2], SCRATCH / f"hosts-{trial}"
        words = options(out, steps=1_000_000, batch_size=40)
        scripts = start_processes(size, words)
        begun = scripts[0].wait_for(lambda: checkpoints_of(out), 120)  # noqa: B023
        time.sleep(rng.uniform(0, 2))
        victim = rng.randrange(size)
        scripts[victim].process.kill()
        killed = time.monotonic()
        codes = [script.end(90) for script in scripts]
        took = time.monotonic() - killed
        slowest = max(took, slowest)
        what, saved = f"process {victim} of {size}", max(checkpoints_of(out), default=0)
        problem = "" if begun else f"it does not begin: {scripts[0].err}"
        for number, script in enumerate(scripts):
            if number != victim and (codes[number] in (0, None) or took > 60):
                problem = problem or f"process {number}: code {codes[number]} after {took:.0f} s"
            if number != victim and not re.fullmatch(r"error: .* resumes\n", script.err):
                problem = problem or f"process {number}: {script.err[:300]!r}"
        scripts = start_processes(size, words)
        resumed = scripts[0].wait_for(lambda: max(checkpoints_of(out)) > saved, 120)  # noqa: B023
        for script in scripts:
            script.process.terminate()
        codes = [script.end(90) for script in scripts]
        if not resumed or f"resuming from step {saved}" not in scripts[0].out:
            problem = problem or f"not resumed from {saved}: {scripts[0].err}"
        if codes != [128 + signal.SIGTERM] * size:
            problem = problem or f"codes {codes} when it is stopped"
        yield what, problem
    yield f"(the slowest ended after {slowest:.0f} s)", ""


def start_processes(size: int, words: Sequence[Any]) -> list[Script]:
    """Starts processes that train a network together."""
    together = ["--coordinator", f"localhost:{free_port()}", "--num-processes", size]
    return [start("mnist", [*words, *together, "--process-id", each]) for each in range(size)]


def study(count: int) -> Iterator[Trial]:
    """One of two hosts of a study is killed: the other goes on, and nothing is trained twice."""
    rng = random.Random(6)
    for trial in range(count):
        out, victim = SCRATCH / f"study-{trial}", trial % 2
        words = [*STUDY, "--seeds", 6, "--out", out]
        together = ["--hosts", 2, "--coordinator", f"localhost:{free_port()}"]
        scripts = [start("ablate", [*words, *together, "--host", host]) for host in range(2)]
        wanted = rng.randrange(4)
        begun = scripts[victim].wait_for(
            lambda: "to do" in scripts[victim].out and len(records_of(out)) >= wanted  # noqa: B023
        )
        time.sleep(rng.uniform(0, 0.2))
        scripts[victim].process.kill()
        code, other = scripts[victim].end(), scripts[1 - victim]
        what = f"host {victim}, with {len(records_of(out))} of 12 runs done"
        if not begun or code != -signal.SIGKILL:
            yield what, f"not killed: {code} {scripts[victim].err}"
            continue
        waits = other.wait_for(lambda: "waiting for" in other.out, 120)  # noqa: B023
        before = records_of(out)
        gone = not waits and re.fullmatch(r"error: process 0 is gone.*\n", other.err)
        problem = "" if waits or gone else f"no word: {other.process.exitcode} {other.err[:300]}"
        code, printed, err = run("ablate", words)
        problem = problem or said_badly(code, printed, err) or (code and err) or ""
        after = records_of(out)
        if waits and (code := other.end(60)) != 0:
            problem = problem or f"the other host ends with {code}: {other.err}"
        if after[: len(before)] != before and sorted(before) != sorted(set(after) & set(before)):
            problem = problem or "records have changed"
        identities = [json.loads(record)["identity"] for record in after]
        if len(identities) != 12 or len(set(identities)) != 12:
            problem = problem or f"{len(identities)} records of {len(set(identities))} runs"
        yield what, problem


def records_of(out: Path) -> list[str]:
    """Returns the complete records of a study."""
    return [
        line
        for path in sorted(out.glob("*/results*.jsonl"))
        for line in path.read_text().splitlines(keepends=True)
        if line.endswith("\n")
    ]


# --- A full disk ----------------------------------------------------------------------------------


def disk(count: int) -> Iterator[Trial]:
    """A full disk, in bytes or inodes: an error in a line, the same bits once there is space."""
    whole = SCRATCH / "whole"
    code, _, err = run("mnist", options(whole, steps=60))
    assert code == 0, err
    expected = state_of(whole)
    for trial in range(count):
        # Up to the figures, which are drawn at the end.
        share = trial // 2 / max(1, (count - 1) // 2)
        limits = ("size", 8192 + int(6e5 * share)), ("nr_inodes", 8 + int(150 * share))
        limit = limits[trial % 2]
        folder, what = SCRATCH / f"disk-{trial}", f"{limit[0]}={limit[1]}"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "tmpfs", str(folder), "-o"]
        subprocess.run([*mount, what], check=True)
        try:
            out = folder / "run"
            code, printed, err = run("mnist", options(out, steps=60), pictures=True)
            problem = said_badly(code, printed, err)
            what += f", {err.strip()[:100]}" if code else ", enough"
            before = checkpoints_of(out)
            subprocess.run([*mount, "remount,size=64m,nr_inodes=9999"], check=True)
            code, script = finish(options(out, steps=60))
            if before and f"resuming from step {before[-1]}" not in script.out:
                problem = problem or ("finished" not in script.out and "it does not resume") or ""
            for _, other in ended(code, script, out, expected):
                problem = problem or other
        finally:
            subprocess.run(["umount", folder], check=True)
        yield what, problem


# --- One process for long -------------------------------------------------------------------------


def soak(count: int) -> Iterator[Trial]:
    """A run again and again in one process: memory, files and threads do not grow."""
    for trial, (memory, first, opened, threads) in enumerate(call(repeated, SCRATCH, count)):
        if trial >= SETTLED:
            problem = "" if memory <= 1.02 * first else f"{memory / first - 1:.1%} more memory"
            yield f"run {trial + 1}, {memory >> 20} MB, {opened} files, {threads} threads", problem


# The first runs fill caches.
SETTLED = 2


def repeated(folder: Path, count: int) -> list[tuple[int, int, int, int]]:
    """Runs mnist.py in this process; returns memory, files and threads after each run."""
    import contextlib
    import gc

    import mnist

    found: list[tuple[int, int, int, int]] = []
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        for number in range(count):
            words = list(map(str, options(folder / str(number), steps=200, hidden_size=128)))
            assert mnist.main(mnist.command_line(words)) == 0
            gc.collect()
            memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf(
                "SC_PAGESIZE"
            )
            first = found[SETTLED - 1][0] if len(found) >= SETTLED else memory
            files, threads = (len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task"))
            found.append((memory, first, files, threads))
    return found


# --- Data -----------------------------------------------------------------------------------------


def main() -> int:
    """Runs checks and prints their table; returns the exit code."""
    global SCRATCH
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("check", choices=["all", *CHECKS])
    parser.add_argument("--count", type=int, help="trials; the default depends on the check")
    given = parser.parse_args()
    # Ignored if a shell has started this script in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("train", "run_study", "predict", "sklearn.datasets", "matplotlib.figure"):
        __import__(name)
    lines = ["| check | tried | passed | what failed |", "|---|---|---|---|"]
    failed = 0
    for name in CHECKS if given.check == "all" else [given.check]:
        check, default = CHECKS[name]
        tried = passed = 0
        problems = []
        with tempfile.TemporaryDirectory(prefix="jaxrnn-faults-") as folder:
            SCRATCH = Path(folder)
            for what, problem in check(given.count or default):
                print(f"{name}: {what}: {problem or 'ok'}", flush=True)
                if what.startswith("("):
                    continue
                tried += 1
                passed += not problem
                if problem:
                    problems.append(f"{what}: {problem}")
        failed += len(problems)
        about = (check.__doc__ or "").splitlines()[0]
        what = "; ".join(dict.fromkeys(each[:120] for each in problems[:5]))
        lines.append(f"| `{name}`: {about} | {tried} | {passed} | {what} |".replace("\n", " "))
    print("\n".join(lines))
    return 1 if failed else 0


SCRATCH = Path()
CHECKS: dict[str, tuple[Callable[[int], Iterator[Trial]], int]] = {
    "kill": (kill, 50),
    "signals": (signals, 20),
    "resume": (resume, 10),
    "repeat": (repeat, 5),
    "flips": (flips, 200),
    "files": (files, 1000),
    "nan": (nan, 10),
    "devices": (devices, 1),
    "hosts": (hosts, 10),
    "study": (study, 10),
    "disk": (disk, 10),
    "soak": (soak, 10),
}

if __name__ == "__main__":
    sys.exit(main())
