"""Malformed input: a table of kinds, and fuzzers."""

from __future__ import annotations

import itertools
import json
import os
import resource
import select
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fault_checks import fuzz_data, fuzz_models, fuzz_scripts, kinds
from fault_checks.fuzzing import Target
from fault_checks.processes import FORK, SCRATCH, STUDY, Trial, options, run

# Bounds of each input: seconds, and bytes by which the memory of the process may grow. An image may
# have 89 million pixels, of four bytes and twice in memory.
SECONDS = 120
MEMORY = 1 << 30
TARGETS: dict[str, Target] = fuzz_data.TARGETS | fuzz_models.TARGETS | fuzz_scripts.TARGETS


def malformed(count: int) -> Iterator[Trial]:
    """Malformed input of every kind: an error in a line, in bounded time and memory."""
    made = scripts()
    groups: dict[str, Callable[[], dict[str, kinds.Kind]]] = {
        "IDX": kinds.idx_kinds,
        "image": lambda: kinds.image_kinds(made),
        "data set": kinds.dataset_kinds,
        "ONNX": kinds.onnx_kinds,
        "JSON": lambda: kinds.json_kinds(made),
        "command line": kinds.command_kinds,
    }

    def work(group: str, report: Callable[..., None]) -> None:
        for name, attempt in groups[group]().items():
            report(f"{group}: {name}", attempt)

    found = (trial for group in groups for trial in bounded(partial(work, group)))
    yield from itertools.islice(found, count)


def fuzz(count: int) -> Iterator[Trial]:
    """Random input: an error in a line, or the right answer, in bounded time and memory."""
    for name, target in (TARGETS | scripts().targets()).items():
        tried = passed = 0
        for what, problem in bounded(partial(explore, target, count)):
            tried, passed = tried + 1, passed + (not problem)
            yield f"{name} {tried}" + (f", {what[:500]}" if problem else ""), problem
        yield f"({name}: {tried} tried, {passed} passed)", ""


def scripts() -> fuzz_scripts.Scripts:
    """Creates a finished run and a finished study."""
    run_words = list(map(str, options(SCRATCH, steps=20)[2:]))
    study_words = [str(word).replace("steps=40", "steps=10") for word in (*STUDY, "--seeds", 1)]
    found = fuzz_scripts.Scripts(
        SCRATCH / "run", run_words, SCRATCH / "study", study_words, SCRATCH / "digit.png"
    )
    fuzz_data.digit().save(found.image)
    for name, words, out in (("mnist", run_words, found.run), ("ablate", study_words, found.study)):
        code, _, err = run(name, [*words, "--out", out])
        assert code == 0, err
    return found


def explore(target: Target, count: int, report: Callable[..., Any]) -> None:
    """Tries examples of a target, and reports each before and after."""
    import hypothesis

    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(target.examples)
    def attempt(example: Any) -> None:
        report(repr(example), lambda folder: target.attempt(example, folder))

    attempt()


def bounded(work: Callable[[Callable[..., Any]], None]) -> Iterator[Trial]:
    """Runs trials in a forked process, with a limit of time and of memory for each.

    Args:
        work: A function that calls its argument with the description of each trial, and a function
            from an empty folder to what is wrong.
    """
    reading, writing = os.pipe()

    def child() -> None:
        os.close(reading)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        # So that an input without bounds ends this process rather than the machine.
        resource.setrlimit(resource.RLIMIT_AS, (size + 8 * MEMORY,) * 2)

        def report(what: str, attempt: Callable[[Path], str]) -> None:
            send({"what": what})
            folder = Path(tempfile.mkdtemp(dir=SCRATCH))
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
            before = memory("VmRSS")
            try:
                problem = attempt(folder)
            except Exception as error:
                problem = f"{type(error).__name__}: {str(error)[:200]}"
            grown = memory("VmHWM") - before
            if not problem and grown > MEMORY:
                problem = f"the memory grew by {grown >> 20} MiB"
            shutil.rmtree(folder, ignore_errors=True)
            send({"problem": problem})

        def send(message: dict[str, Any]) -> None:
            os.write(writing, json.dumps(message).encode() + b"\n")

        work(report)
        send({"end": True})

    process = FORK.Process(target=child)
    process.start()
    os.close(writing)
    what, ended = "the start", False
    for message in lines(reading, SECONDS):
        what, ended = message.get("what", what), "end" in message
        if "problem" in message:
            yield what, message["problem"]
        if ended:
            break
    hangs = process.is_alive() and not ended
    if hangs:
        process.kill()
    process.join()
    if not ended:
        yield what, f"no answer in {SECONDS} s" if hangs else f"exit code {process.exitcode}"


def lines(reading: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Yields the messages of a pipe until it is closed, or nothing has come for some seconds."""
    rest = b""
    while select.select([reading], [], [], seconds)[0]:
        if not (found := os.read(reading, 1 << 16)):
            break
        *whole, rest = (rest + found).split(b"\n")
        yield from map(json.loads, whole)
    os.close(reading)


def memory(name: str) -> int:
    """Returns a size of this process, in bytes, such as that of its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(name)
