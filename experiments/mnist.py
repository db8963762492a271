"""Trains a recurrent network to classify MNIST digits that it reads row by row.

    python experiments/mnist.py
    python experiments/mnist.py --recipe fast --cell gru --out runs/gru

Each digit is a sequence of 28 rows of 28 pixels. The cell reads one row a time step, and a linear
layer on its last output classifies the digit. The folder of the run holds the checkpoints, from
which an interrupted run resumes, the metrics, and the figures.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from command_line import parse
from options import HEADINGS, RECIPES, Config


def command_line(arguments: Sequence[str] | None = None) -> Config:
    """Returns the options: those given, then those of the recipe, then the defaults."""
    return parse(
        Config,
        __doc__,
        arguments,
        headings=HEADINGS,
        presets=lambda given: RECIPES[given.get("recipe", Config.recipe)],
        check=Config.check,
    )


def main(config: Config) -> int:
    """Trains, or resumes training; returns the exit code."""
    import train  # and with it JAX, which takes seconds

    return train.main(config)


if __name__ == "__main__":
    config = command_line()
    from hosts import end
    from terminal import run_script

    sys.exit(end(lambda: run_script(lambda: main(config))))
