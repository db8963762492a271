"""Other numbers of devices, and processes of which one is killed."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fault_checks.interruptions import stop_at
from fault_checks.processes import (
    SCRATCH,
    STUDY,
    Script,
    Trial,
    call,
    checkpoints_of,
    options,
    restore,
    run,
    said_badly,
    start,
)


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
    """One of two hosts of a study is killed: the other goes on or says so, no run is done twice."""
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
        # Until the hosts have read what is done, each ends when another is lost.
        gone = not waits and re.fullmatch(rf"error: process {victim} is gone.*\n", other.err)
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
