"""Runs the scripts of experiments/ in forked processes, and reads the runs that they leave."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_FOLDERS = [tempfile.TemporaryDirectory(prefix="jaxrnn-faults-") for _ in range(2)]
# For everything that a check writes; emptied after it.
SCRATCH = Path(_FOLDERS[0].name)
# Processes are forked from this one, which has imported everything and must have one thread.
os.environ |= {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # Programs are compiled once, and quickly.
    "JAX_COMPILATION_CACHE_DIR": _FOLDERS[1].name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}
os.environ.pop("JAXRNN_DATA_DIR", None)
EXPERIMENTS = Path(__file__).parents[2] / "experiments"
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
    import terminal

    reading, writing = os.pipe()

    def work() -> None:
        # As the scripts do: after a restore that failed, tensorstore calls a closed event loop.
        terminal.quieten_orbax()
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
