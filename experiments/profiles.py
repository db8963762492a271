"""Profiles train steps: the time of every kernel on the device.

A step that takes much longer than its kernels waits for launches.
"""

from __future__ import annotations

import collections
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import timings
from measurements import Measurements
from peers import Task

LONGEST = 20  # kernels in a record
# Events that contain others, or are none of the device's.
CONTAINERS = "while", "end: ", "Thread", "Thunk"
WAYS = "pallas", "states, unroll 4"


def compare(measurements: Measurements, small: bool) -> None:
    """Adds a record for each task and implementation."""
    for task in tasks(small):
        for way in WAYS:
            about = {
                "cell": task.cell,
                "T": task.time,
                "products": task.products or "float32",
                "way": way,
            }
            found = measurements.outcome(lambda task=task, way=way: profile(task, way))
            measurements.add(about | found)


def tasks(small: bool) -> list[Task]:
    """Returns the tasks, the most valuable first."""
    if small:  # the cell that compiles fastest
        return [Task("step", "rnn", time=3, features=2, hidden=3, examples=4, repeats=2)]
    lstm = Task("step", "lstm", repeats=10)
    bfloat16, long = lstm._replace(products="bfloat16"), lstm._replace(time=784, features=1)
    return [lstm, lstm._replace(cell="gru"), bfloat16, long]


def profile(task: Task, way: str) -> dict[str, Any]:
    """Returns the time per step, that of all kernels and copies, and those that take the longest.

    A kernel's entry is [name, ms per step, launches per step].
    """
    run = timings.build(task, way)
    run()
    ms = 1e3 * min(timings.seconds(run) for _ in range(3)) / task.repeats
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        total: dict[str, float] = collections.defaultdict(float)
        count: dict[str, int] = collections.Counter()
        for path in Path(folder).rglob("*.xplane.pb"):
            for name, duration in kernels(path):
                total[name] += duration / 1e6 / task.repeats
                count[name] += 1
    longest = [
        [name, round(each, 6), count[name] / task.repeats]
        for name, each in sorted(total.items(), key=lambda item: -item[1])[:LONGEST]
    ]
    return {
        "ms": ms,
        "busy_ms": sum(total.values()),
        "launches": sum(count.values()) / task.repeats,
        "kernels": longest,
    }


def kernels(path: Path) -> Iterator[tuple[str, float]]:
    """Yields the name and the duration in ns of everything that the device executed."""
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        gpu, tpu = (plane.name.startswith(f"/device:{name}") for name in ("GPU", "TPU"))
        for line in plane.lines:
            cpu = plane.name == "/host:CPU" and line.name.startswith("tf_XLA")
            if (gpu and line.name.startswith("Stream")) or (tpu and line.name == "XLA Ops") or cpu:
                for event in line.events:
                    if not event.name.startswith(CONTAINERS):
                        yield event.name, event.duration_ns


def summary(records: list[dict[str, Any]]) -> str:
    """Returns a paragraph for each record, with the kernels that take the longest."""
    lines = []
    for each in records:
        if "kernels" not in each:
            lines.append(str(each))
            continue
        title = ", ".join(str(each[name]) for name in ("cell", "T", "products", "way"))
        lines.append(
            f"{title}: {each['ms']:.3f} ms a step, kernels {each['busy_ms']:.3f} ms in "
            f"{each['launches']:.0f} launches"
        )
        lines += [f"  {ms:.4f} ms, {count:g} × {name[:90]}" for name, ms, count in each["kernels"]]
    return "\n".join(lines)
