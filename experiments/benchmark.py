"""Times jaxrnn side by side with its peers.

    pip install -e '.[bench]' && python experiments/benchmark.py

Each task of each library runs in a process of its own, one after the other, for several rounds; the
figures are medians over the rounds, the ratios are to jaxrnn on one device (above 1: jaxrnn is
faster). Compile is what the first call takes longer than the second. The floor is the task's matrix
products at the rate of a 2048³ product measured in the same rounds. Run nothing beside it.

What paid on XLA:CPU, and stayed:

- one product of (h, x, 1) with the stacked kernels instead of a drive computed ahead (13 % of a
  step; on one device with several threads it costs a tenth of an evaluation);
- slopes multiplied out in the forward loop (25 %);
- the gradients of all kernels as one product after the loop;
- the recurrent kernel transposed once before the backward loop (3 %: a product with a transposed
  view runs at four fifths of the speed);
- one single-threaded device a core, and one collective for the flattened gradient.

What did not: computing all slopes outside the loop from saved pre-activations; a separate product
for each gate to avoid a concatenation; one tanh over all gates instead of one for each; shifted
slices instead of saved rows for dW; `unroll` > 1; blocks of recomputed steps on short sequences;
keeping only the sum's gradient of the GRU's r and z; other batches in evaluation.

Nor did anything fill a second core from one device: the batch in halves, as two loops, two chains
in one loop or one batched product (XLA runs a loop's thunks one after the other); the concurrency
scheduler; Eigen, oneDNN or XNNPACK for the products instead of YNNPACK; the recurrent product cut
along its inner dimension, or padded until it is large enough to be given a second thread, which
wakes too late. So the products of both loops run on one thread of a device: that is what limits it.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
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


@dataclass(frozen=True)
class Config:
    """Time jaxrnn side by side with its peers."""

    tasks: tuple[Literal["step", "evaluate", "gru", "rnn", "pixels", "long", "run"], ...] = (
        "step",
        "evaluate",
        "gru",
        "rnn",
        "pixels",
    )
    """run is the tutorial's whole run: several minutes for each library."""
    libraries: tuple[str, ...] = ()
    """All by default; the names are those of the table."""
    rounds: int = 5
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of jaxrnn on one device and torch; the others compute in float32."""
    out: Path = Path("runs/benchmark.json")
    worker: str = ""
    """Internal: measure this library here and print JSON."""


def measure(library: str, name: str, dtype: str) -> dict[str, Any]:
    """Times one task of one library in this process.

    Returns:
        Milliseconds a unit, seconds that the first call took longer than the second (compiling)
        and the most memory that was used, on the GPU where there is one; or why it cannot.
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
    except Exception as error:  # whatever a peer raises, the others are still measured
        return {"cannot": f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]}
    repeats = 1 if library == FLOOR else task.repeats
    return {
        "ms": 1e3 * statistics.median(times) / repeats,
        "compile_s": first - second,
        "peak_bytes": most_memory(),
    }


def seconds(run: Callable[[], Any]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def most_memory() -> int:
    """Bytes this process used at most, of the GPU's memory if it used one."""
    from jaxrnn.training.run import peak_memory

    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        return sys.modules["torch"].cuda.max_memory_allocated()
    if "jax" in sys.modules:
        found = sys.modules["jax"].devices()[0].memory_stats()
        if found:
            return found["peak_bytes_in_use"]
    return peak_memory()


def whole_run(make: Callable, dtype: str) -> float:
    """Seconds of the tutorial's whole run, from building the model to the last evaluation."""
    started = time.perf_counter()
    train, evaluate = (make(TASKS[name]._replace(dtype=dtype)) for name in ("step", "evaluate"))
    for _ in range(EVALUATIONS):
        for _ in range(STEPS_PER_EVALUATION // TASKS["step"].repeats):
            train()
        evaluate()
    return time.perf_counter() - started


def work(config: Config) -> None:
    """The inner process: all cores as devices only where that is what is measured."""
    if config.worker in ALL_CORES:
        from devices import divide_cpu, largest_share

        from jaxrnn.training.run import cores

        divide_cpu(largest_share(BATCH, cores()))
    print(json.dumps(measure(config.worker, config.tasks[0], config.dtype)))


Found = dict[str, dict[str, list[dict[str, Any]]]]  # library, task, round


def compare(config: Config, console: Console) -> Found:
    """Runs every task of every library in turn, round after round."""
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
    """The median over the rounds, or None if it was not measured."""
    values = [one[field] for one in rounds if field in one]
    return statistics.median(values) if values else None


def flops(name: str) -> float:
    """Floating point operations of a task's matrix products."""
    if name == WHOLE:
        return EVALUATIONS * (STEPS_PER_EVALUATION * TASKS["step"].flops + TASKS["evaluate"].flops)
    return TASKS[name].flops


def table(found: Found, tasks: tuple[str, ...]) -> Table:
    """Milliseconds and the ratio to jaxrnn; what is missing is named."""
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


def main() -> int:
    """The command line."""
    config = tyro.cli(Config, description=__doc__)
    if config.worker:
        work(config)
        return 0
    console = Console(highlight=False, soft_wrap=True, width=200)
    found = compare(config, console)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    from jaxrnn.training.run import environment

    kept = {"command": sys.argv[1:], "environment": environment(), "found": found}
    config.out.write_text(json.dumps(kept, indent=1))
    console.print(table(found, config.tasks))
    console.print(f"written to {config.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
