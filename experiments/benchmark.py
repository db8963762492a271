"""Times jaxrnn and other libraries on the same tasks.

    pip install -e '.[bench]' && python experiments/benchmark.py

Each task of each library runs in its own process, one after the other, for several rounds. The
figures are medians over the rounds, and the ratios are to jaxrnn on one device: above 1, jaxrnn is
faster. The compile time is the difference between the first call and the second. The floor is the
time of the matrix products of the task at the rate of a 2048 × 2048 × 2048 product, measured in the
same rounds. Run nothing else on the machine.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from command_line import parse
from cyclopts import Parameter
from errors import OptionError
from options import check_file, check_folder, check_integers
from peers import ALL_CORES, BATCH, FLOOR, LIBRARIES, PRODUCT, SEEDS, Task
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

TASKS = {
    "step": Task("train step, LSTM"),
    "evaluate": Task("evaluate 10,000", train=False, examples=10_000, repeats=1),
    "gru": Task("train step, GRU", cell="gru"),
    "rnn": Task("train step, tanh RNN", cell="rnn"),
    "pixels": Task("train step, 784 × 1", time=784, features=1, repeats=2),
    "long": Task("train step, 10,000 × 1", time=10_000, features=1, repeats=1),
}
# The tutorial's whole run: 200 times 100 training steps and one evaluation, compiling included.
WHOLE, EVALUATIONS, STEPS_PER_EVALUATION = "run", 200, 100
TITLES = {name: task.title for name, task in TASKS.items()} | {
    WHOLE: "20,000 steps and 200 evaluations"
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options."""

    tasks: tuple[Literal["step", "evaluate", "gru", "rnn", "pixels", "long", "run"], ...] = (
        "step",
        "evaluate",
        "gru",
        "rnn",
        "pixels",
    )
    """Tasks: a train step of an LSTM, GRU or tanh RNN on 28 time steps, and of an LSTM on 784
    (pixels) or 10,000 (long); an evaluation on 10,000 examples; run is the tutorial's whole run,
    which takes several minutes for each library."""
    libraries: tuple[Literal[tuple(LIBRARIES)], ...] = ()
    """Libraries, in quotes where their name has a space. Defaults to all."""
    rounds: int = 5
    """Number of rounds."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of jaxrnn on one device and of torch. The others compute in float32."""
    out: Path = Path("runs/benchmark.json")
    """File for all measurements."""
    worker: Annotated[Literal[("", *LIBRARIES)], Parameter(show=False)] = ""
    """Internal: the library to measure in this process, which prints JSON."""

    def check(self) -> None:
        """Raises OptionError if a value is out of range."""
        check_integers(self)
        if self.rounds < 1:
            raise OptionError("--rounds must be at least 1")
        if not self.tasks:
            raise OptionError("--tasks needs a task")
        check_folder(self.out.parent)
        if self.out.parent.is_dir():
            check_file("--out", self.out)


def measure(library: str, name: str, dtype: str) -> dict[str, Any]:
    """Times one task of one library in this process.

    Returns:
        The milliseconds per unit, the seconds by which the first call is slower than the second
        (compiling), and the peak memory, of the GPU if there is one; or why there are none.
    """
    make, module = LIBRARIES[library]
    if importlib.util.find_spec(module) is None:
        return {"missing": module}
    try:
        if name == WHOLE and library != FLOOR:
            return {"ms": 1e3 * whole_run(make, dtype), "peak_bytes": most_memory()}
        task = TASKS["step" if name == WHOLE else name]._replace(dtype=dtype)
        if library == SEEDS:
            import jax

            task = task._replace(repeats=task.repeats * jax.local_device_count())
        run = make(task)
        first, second = seconds(run), seconds(run)
        started, times = time.perf_counter(), []
        while len(times) < 5 or (time.perf_counter() - started < 2 and len(times) < 50):
            times.append(seconds(run))
    except Exception as error:  # whatever a library raises, the others are measured
        return {"cannot": f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]}
    repeats = 1 if library == FLOOR else task.repeats
    return {
        "ms": 1e3 * statistics.median(times) / repeats,
        "compile_s": first - second,
        "peak_bytes": most_memory(),
    }


def seconds(run: Callable[[], Any]) -> float:
    """Returns the seconds that a call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def most_memory() -> int:
    """Returns the peak memory of this process in bytes, of the GPU if it uses one."""
    from jaxrnn.training.run import peak_memory

    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        return sys.modules["torch"].cuda.max_memory_allocated()
    if "jax" in sys.modules:
        found = sys.modules["jax"].devices()[0].memory_stats()
        if found:
            return found["peak_bytes_in_use"]
    return peak_memory()


def whole_run(make: Callable, dtype: str) -> float:
    """Returns the seconds of the tutorial's run, from building the model to the last evaluation."""
    started = time.perf_counter()
    train, evaluate = (make(TASKS[name]._replace(dtype=dtype)) for name in ("step", "evaluate"))
    for _ in range(EVALUATIONS):
        for _ in range(STEPS_PER_EVALUATION // TASKS["step"].repeats):
            train()
        evaluate()
    return time.perf_counter() - started


def work(config: Config) -> None:
    """Measures one task of one library, and prints JSON.

    The CPU is divided into a device per core only for the libraries in `ALL_CORES`.
    """
    if config.worker in ALL_CORES:
        from devices import divide_cpu, largest_share

        from jaxrnn.training.run import cores

        divide_cpu(largest_share(BATCH, cores()))
    print(json.dumps(measure(config.worker, config.tasks[0], config.dtype)))


Found = dict[str, dict[str, list[dict[str, Any]]]]  # library, task, round


def compare(config: Config, console: Console) -> Found:
    """Measures every task of every library in turn, round after round."""
    libraries = (*config.libraries, FLOOR) if config.libraries else tuple(LIBRARIES)
    found: Found = {library: {task: [] for task in config.tasks} for library in libraries}
    for number, (task, library) in itertools.product(
        range(config.rounds), itertools.product(config.tasks, libraries)
    ):
        command = [sys.executable, __file__, "--worker", library, "--tasks", task]
        command += ["--dtype", config.dtype]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            one = {"cannot": " ".join(result.stderr.strip().splitlines()[-1:])}
        else:
            one = json.loads(result.stdout.splitlines()[-1])
        found[library][task].append(one)
        console.print(f"round {number + 1}: {task}, {library}: {json.dumps(one)}")
    return found


def median(rounds: list[dict[str, Any]], field: str = "ms") -> float | None:
    """Returns the median of a field over the rounds, or None if no round has it."""
    values = [one[field] for one in rounds if field in one]
    return statistics.median(values) if values else None


def flops(name: str) -> float:
    """Returns the floating point operations of the matrix products of a task."""
    if name == WHOLE:
        return EVALUATIONS * (STEPS_PER_EVALUATION * TASKS["step"].flops + TASKS["evaluate"].flops)
    return TASKS[name].flops


def table(found: Found, tasks: tuple[str, ...]) -> Table:
    """Returns a table of milliseconds and ratios to jaxrnn; a library may be missing."""
    titles = (TITLES[task] for task in tasks)
    shown = Table("library", *titles, "compile", "peak memory", box=MARKDOWN)
    for library, rounds in found.items():
        cells = []
        for task in tasks:
            ms, reason = median(rounds[task]), [each for one in rounds[task] for each in one]
            if library == FLOOR and ms:
                ms = flops(task) * ms / (2 * PRODUCT**3)
            ours = median(found.get("jaxrnn", {}).get(task, []))
            ratio = f" ({ms / ours:.2f}×)" if ms and ours else ""
            missing = "missing" if "missing" in reason else "–"
            cells.append(f"{ms:.2f} ms{ratio}" if ms else missing)
        compiled, peak = (median(rounds[tasks[0]], field) for field in ("compile_s", "peak_bytes"))
        if library != FLOOR:
            cells.append(f"{compiled:.1f} s" if compiled else "–")
            cells.append(f"{peak / 2**20:.0f} MiB" if peak else "–")
        shown.add_row(library, *cells)
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints a table; returns the exit code."""
    config = parse(Config, __doc__, arguments, check=Config.check)
    if config.worker:
        work(config)
        return 0
    console = Console(highlight=False, soft_wrap=True, width=200)
    found = compare(config, console)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    from jaxrnn.training.files import write_text
    from jaxrnn.training.run import environment

    kept = {"command": sys.argv[1:], "environment": environment(), "found": found}
    write_text(config.out, json.dumps(kept, indent=1))
    console.print(table(found, config.tasks))
    console.print(f"written to {config.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
