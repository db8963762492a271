"""Times train steps and evaluations of jaxrnn's backends and of other libraries.

The programs of a task are compiled together, in threads, and then timed in turn, round after round.
A time is the median over the rounds. Every program runs several steps, as in training.

Shapes: B batch, T time, I input features, H hidden units.
"""

from __future__ import annotations

import importlib.util
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import peers
from measurements import Measurements, compile_threads, failure
from numerics import AMPERE, add_backends
from peers import Task

from jaxrnn.backends import BACKENDS

Timer = Callable[[int], float]  # from a number of calls to the seconds they take
ROUNDS, ROUND_SECONDS = 5, 0.03
GRAPH = ", CUDA graph"
GRAPHS = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,WHILE,CONDITIONAL"
}
OURS: dict[str, dict[str, Any]] = {
    "pallas": {"implementation": "pallas"},
    AMPERE: {"implementation": AMPERE},
    "states": {"implementation": "states"},
    "states, unroll 4": {"implementation": "states", "unroll": 4},
    "fused": {"implementation": "fused"},
    "fused, unroll 4": {"implementation": "fused", "unroll": 4},
    "scan": {"implementation": "scan"},
    "scan, unroll 4": {"implementation": "scan", "unroll": 4},
}
# Only the first task has these, because they are never the fastest.
FIRST = {"states", "fused", "scan, unroll 4"}
CUDNN = "cudnn"  # a backend of jaxrnn, but NVIDIA's program
# Functions from a task to (apply, params), by the module that must be installed.
MODELS = {"flax": peers.flax_linen, "equinox": peers.equinox}
TORCH = "torch", f"torch{GRAPH}"


def tasks(small: bool) -> list[Task]:
    """Returns the tasks, the most valuable first, since time may run out."""

    def task(cell="lstm", batch=100, hidden=128, time=28, **more):
        sizes: dict[str, Any] = {"time": time, "features": 28 if time == 28 else 1, "repeats": 1}
        sizes["repeats"] = max(3, 140_000 // (time * batch))
        if small:
            batch, hidden = 4, 3
            sizes = {"time": 3, "features": 2, "repeats": 2}
        what = "step" if more.get("train", True) else "evaluation"
        return Task(
            what, cell, examples=batch, hidden=hidden, evaluation_batch=batch, **sizes, **more
        )

    evaluation: dict[str, Any] = {"train": False}
    masked: dict[str, Any] = {"masked": True}
    bfloat16: dict[str, Any] = {"products": "bfloat16"}
    first = [task(), task("gru", **masked), task("lstm", 10_000, **evaluation)]
    if small:
        return first
    both = ("lstm", "gru")
    first += [
        task("gru"),
        task(time=784),
        task("lstm", 1024, 512),
        task(**bfloat16),
        task("gru", time=784),
        task("gru", 1024, 512),
        task("gru", **bfloat16),
        task(**masked),
        task(**masked, **bfloat16),
        task("lstm", 1024, 512, **bfloat16),
        task(time=784, **bfloat16),
        task(time=784, **evaluation),
    ]
    sizes = itertools.product((28, 784), (128, 512), (100, 1024))
    dtypes = ({}, bfloat16)
    rest = [
        task(cell, batch, hidden, length, **work, **dtype)
        for dtype, (length, hidden, batch), work, cell in itertools.product(
            dtypes, sizes, ({}, evaluation), both
        )
    ]
    return list(dict.fromkeys(first + rest))


def compare(measurements: Measurements, small: bool) -> None:
    """Adds a record of the device's rates, and one for each task and implementation."""
    add_backends()
    rates: dict[str, Any] = {}
    measurements.add(
        {"what": "rates"}
        | measurements.outcome(lambda: rates.update(measure_rates(small)) or rates)
    )
    for number, task in enumerate(tasks(small)):
        about = {
            "what": task.title,
            "cell": task.cell,
            "B": task.examples,
            "H": task.hidden,
            "T": task.time,
            "masked": task.masked,
            "products": task.products or "float32",
        }
        if time.perf_counter() > measurements.deadline:
            measurements.add(about | {"skipped": "no time was left"})
            continue
        if "GB_per_s" in rates:  # the floor, the time of the products or the memory traffic alone
            about["products_ms"] = task.flops / rates[f"TFLOPs_{about['products']}"] / 1e9
            about["bytes_ms"] = task.least_bytes / rates["GB_per_s"] / 1e6
        names = ways(task, number == 0, small)
        # torch has a process of its own. After an error on the device a process cannot go on.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as others:
            time_task(measurements, task, about, names, compile_threads(small), others)


def measure_rates(small: bool) -> dict[str, float]:
    """Measures the operations per second of a large product, and the bytes per second of a copy."""
    n, size = (128, 2**12) if small else (8192, 2**28)
    found = {}
    for dtype in ("float32", "bfloat16"):
        matrix = jnp.ones((n, n), dtype)
        found[f"TFLOPs_{dtype}"] = 2 * n**3 / milliseconds(lambda a: a @ a, matrix) / 1e9
    values = jnp.ones(size)
    found["GB_per_s"] = 2 * values.nbytes / milliseconds(lambda a: a + 1, values) / 1e6
    return found


def milliseconds(function: Callable, argument: Any) -> float:
    """Returns the median time of several calls."""
    program = jax.jit(function)
    jax.block_until_ready(program(argument))
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        found = [program(argument) for _ in range(4)]
        jax.block_until_ready(found)
        times.append((time.perf_counter() - started) / 4)
    return 1e3 * statistics.median(times)


def ways(task: Task, first: bool, small: bool) -> list[str]:
    """Returns the implementations of a task, of the first one also those that others leave out.

    Those of jaxrnn with ", CUDA graph" are XLA's command buffers.
    """
    platform = jax.default_backend()
    names = [name for name in OURS if first or small or name not in FIRST]
    if small:
        names = [name for name in names if "unroll" not in OURS[name]]
    if task.hidden > 128:
        names.remove(AMPERE)  # a block has no room for the products
    if first and platform == "gpu":
        names += [name + GRAPH for name in ("pallas", "states")]
    if task.masked:
        return names
    names += [CUDNN] if task.cell == "lstm" else []
    names += ["flax", *(["equinox"] if first else [])]
    return [*names, *TORCH] if platform == "gpu" else names


def build(task: Task, way: str) -> Callable[[], None]:
    """Traces and compiles a program; returns a function that runs `task.repeats` units of it."""
    if way in TORCH:
        return peers.torch(task, graph=way == TORCH[1])
    name = way.removesuffix(GRAPH)
    options = OURS.get(name, {"implementation": name})
    model = MODELS[name](task) if name in MODELS else peers.jaxrnn_one(task, **options)
    program, arguments = peers.scanned(task, *model)
    graphs = GRAPHS if way.endswith(GRAPH) else None
    return peers.repeated(program.lower(*arguments).compile(compiler_options=graphs), arguments)


def absent(way: str) -> str | None:
    """Returns why an implementation is missing, or None."""
    backend = OURS.get(way.removesuffix(GRAPH), {}).get("implementation")
    if backend is not None and backend not in BACKENDS:
        return "there is no backend of this name"
    module = "torch" if way in TORCH else way
    if way in (*MODELS, *TORCH) and importlib.util.find_spec(module) is None:
        return f"{module} is not installed"
    return None


def time_task(
    measurements: Measurements,
    task: Task,
    about: dict[str, Any],
    names: list[str],
    workers: int,
    others: Executor,
) -> None:
    """Adds a record for each implementation, and writes its time after every round."""
    building: dict[str, Callable[[], Timer]] = {}
    with ThreadPoolExecutor(workers) as pool:
        for way in names:
            if reason := absent(way):
                measurements.add(about | {"way": way, "absent": reason})
            elif way in TORCH:
                building[way] = partial(build_elsewhere, others, task, way)
            else:
                building[way] = pool.submit(build_timer, task, way).result
    timers: dict[str, Timer] = {}
    records: dict[str, dict[str, Any]] = {}
    for way, built in building.items():  # all are compiled

        def start(way=way, built=built):
            timer = timers[way] = built()
            timer(1)
            return {"ms": 1e3 * timer(1) / task.repeats, "rounds_ms": []}

        records[way] = measurements.add(about | {"way": way} | measurements.outcome(start))
    timed = {way: record for way, record in records.items() if "ms" in record}
    calls = {
        way: max(1, round(ROUND_SECONDS / (record["ms"] / 1e3 * task.repeats)))
        for way, record in timed.items()
    }
    for number in range(ROUNDS):
        for way, record in timed.items():
            if "failed" in record or (number and time.perf_counter() > measurements.deadline):
                continue
            try:
                once = timers[way](calls[way]) / calls[way]
                record["rounds_ms"].append(1e3 * once / task.repeats)
                record["ms"] = statistics.median(record["rounds_ms"])
            except Exception as error:
                del record["ms"]
                record.update(failure(error))
        measurements.write()
    print(summary(list(records.values())), flush=True)


def build_timer(task: Task, way: str) -> Timer:
    """Compiles a program; returns a function from a number of calls to the seconds they take."""
    run = build(task, way)

    def timer(calls: int) -> float:
        return seconds(partial(repeat, run, calls))

    return timer


_elsewhere: dict[str, Timer] = {}  # the programs that another process holds


def build_elsewhere(others: Executor, task: Task, way: str) -> Timer:
    """Builds a program in another process; returns its timer."""
    others.submit(_hold, task, way).result()
    return lambda calls: others.submit(_time_held, way, calls).result()


def _hold(task: Task, way: str) -> None:
    _elsewhere[way] = build_timer(task, way)


def _time_held(way: str, calls: int) -> float:
    return _elsewhere[way](calls)


def repeat(run: Callable[[], None], times: int) -> None:
    """Calls a function several times."""
    for _ in range(times):
        run()


def seconds(run: Callable[[], Any]) -> float:
    """Returns the seconds that a call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def summary(records: list[dict[str, Any]]) -> str:
    """Returns a table of the times, with their ratios to those of flax, cuDNN and torch."""
    by_task: dict[tuple[Any, ...], dict[str, float]] = {}
    for each in records:
        if "ms" in each:
            key = tuple(
                each[name] for name in ("what", "cell", "B", "H", "T", "masked", "products")
            )
            times = by_task.setdefault(key, {})
            times[each["way"]] = each["ms"]
            if "bytes_ms" in each:
                times["floor"] = max(each["products_ms"], each["bytes_ms"])
    columns = [
        name
        for name in (*OURS, *(name + GRAPH for name in OURS), CUDNN, *MODELS, *TORCH, "floor")
        if any(name in times for times in by_task.values())
    ]
    theirs = [name for name in (CUDNN, *TORCH) if name in columns]
    head = ["ms (flax's time / this)", *columns, *(f"ours / {name}" for name in theirs)]
    lines = [head, ["---"] * len(head)]
    for (what, cell, batch, hidden, length, masked, products), times in by_task.items():
        ours = times.get("pallas") or min(
            (times[name] for name in OURS if name in times), default=0
        )
        row = [f"{what}, {cell}, B {batch}, H {hidden}, T {length}, {products}"]
        row[0] += ", lengths and resets" if masked else ""
        for name in columns:
            shown = f"{times[name]:.3f}" if name in times else "–"
            if name in times and "flax" in times and name not in ("flax", "floor"):
                shown += f" ({times['flax'] / times[name]:.2f})"
            row.append(shown)
        row += [f"{ours / times[name]:.2f}" if ours and name in times else "–" for name in theirs]
        lines.append(row)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
