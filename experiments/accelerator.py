"""Measures the library on a GPU or TPU, in one run that writes all figures.

    python experiments/accelerator.py --seconds 540 --out runs/accelerator

Needs no installation and only jax, flax, optax, orbax, cyclopts, numpy, jaxtyping and typeguard.
Uses one device. Each part writes a file to the folder after every record, so an interrupted run
keeps its measurements:

    correct.json    every backend against "scan" in float64 on the host
    profile.json    the time of every kernel of a train step
    speed.json      train steps and evaluations of every backend and of other libraries
    seeds.json      the fast recipe, with one seed and with ten together
    tutorial.json   the tutorial's 20,000 steps and 200 evaluations
    pixels.json     permuted and sequential MNIST, three seeds

A record without figures says why: the case failed, its backend does not support it, a library is
missing, or no time was left. The last three parts read MNIST from the folder JAXRNN_DATA_DIR, or
else the digits of scikit-learn. On a CPU all sizes are small.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from command_line import parse
from errors import OptionError
from options import check_folder

# The parts, in order, and the fraction of the time that each may take.
SHARES = {
    "correct": 0.2,
    "profile": 0.1,
    "speed": 0.45,
    "seeds": 0.07,
    "tutorial": 0.1,
    "pixels": 0.08,
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options."""

    out: Path = Path("runs/accelerator")
    """Folder for the files."""
    seconds: float = 600.0
    """Time after which no new case is started. Time that a part leaves goes to the next."""
    parts: tuple[Literal[tuple(SHARES)], ...] = tuple(SHARES)
    """Parts to run."""
    small: bool = False
    """Use tiny sizes, as on a CPU, to try the script."""

    def check(self) -> None:
        """Raises OptionError if a value is out of range."""
        if not self.seconds >= 0:
            raise OptionError("--seconds must not be negative")
        check_folder(self.out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts and prints a summary of each; returns the exit code."""
    started = time.perf_counter()
    config = parse(Config, __doc__, arguments, check=Config.check)
    sys.path.insert(0, str(Path(__file__).parents[1]))  # this copy of the library, installed or not
    # Imported after the options are parsed, since JAX takes seconds.
    import jax
    import numerics
    import profiles
    import timings
    import whole_runs
    from measurements import Measurements

    from jaxrnn.training.run import environment

    small = config.small or jax.default_backend() == "cpu"
    parts: dict[str, tuple[Callable[..., Any], Callable[..., str]]] = {
        "correct": (numerics.compare, numerics.summary),
        "profile": (profiles.compare, profiles.summary),
        "speed": (timings.compare, timings.summary),
        "seeds": (whole_runs.seeds, whole_runs.summary),
        "tutorial": (whole_runs.tutorial, whole_runs.summary),
        "pixels": (whole_runs.pixels, whole_runs.summary),
    }
    config.out.mkdir(parents=True, exist_ok=True)
    about = {"platform": jax.default_backend(), "small": small, "environment": environment()}
    print(*(f"{name}={value}" for name, value in about.items()))
    shares = {name: share for name, share in SHARES.items() if name in config.parts}
    spent, tables = 0.0, []
    for name, share in shares.items():
        spent += share
        deadline = started + config.seconds * spent / sum(shares.values())
        print(f"{name}: until {deadline - started:.0f} s, at {time.perf_counter() - started:.0f} s")
        measurements = Measurements(config.out / f"{name}.json", about, deadline)
        run, summary = parts[name]
        # A part may fail as a whole, for instance if its data is missing.
        failure = measurements.outcome(
            lambda run=run, measurements=measurements: run(measurements, small) or {}
        )
        if failure:
            measurements.add({"what": name} | failure)
        tables.append(summary(measurements.records))
    print("", *tables, sep="\n\n")
    print(f"written to {config.out} in {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves memory for torch
    # The host computes the reference. An empty JAX_PLATFORMS means all platforms.
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms and "cpu" not in platforms:
        os.environ["JAX_PLATFORMS"] = f"{platforms},cpu"
    sys.exit(main())
