"""Runs that are killed, stopped, resumed, repeated, or whose loss becomes NaN."""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fault_checks.processes import (
    EXPERIMENTS,
    PIPES,
    SCRATCH,
    Script,
    Trial,
    best_step,
    checkpoints_of,
    options,
    run,
    said_badly,
    start,
    state_of,
)

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
    # A process of its own for each, since most of the time is spent on imports.
    command = [sys.executable, str(EXPERIMENTS / "mnist.py"), *map(str, words)]
    before = os.times()
    fresh = subprocess.run(command, check=False, **PIPES)
    assert fresh.returncode == 0, fresh.stderr
    whole, step, slowest = children(os.times()) - children(before), 0, 0.0
    shutil.rmtree(out)
    for number in (signal.SIGTERM, signal.SIGINT):
        made, moment = 0, rng.random() * whole / count
        while made < count:
            process = subprocess.Popen(command, **PIPES)
            # Processor time, since other processes may use the same cores.
            while (spent := processor_time(process.pid)) is not None and spent < moment:
                time.sleep(0.002)
            if spent is None:  # it has ended before
                process.communicate()
                shutil.rmtree(out)
                step, moment = 0, rng.random() * whole
                continue
            seen = max(checkpoints_of(out), default=0)
            before = os.times()
            process.send_signal(number)
            printed, err = process.communicate()
            took = children(os.times()) - children(before) - spent
            slowest = max(took, slowest)
            made += 1
            moment = (made + rng.random()) * whole / count
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


def children(times: os.times_result) -> float:
    """Returns the processor time of the processes that have ended."""
    return times.children_user + times.children_system


def processor_time(process: int) -> float | None:
    """Returns the processor time of a process so far, in seconds, or None if it has ended."""
    state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return None if state == "Z" else sum(map(int, fields[10:12])) / os.sysconf("SC_CLK_TCK")


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
