"""Exports a trained classifier as StableHLO, which JAX runs without jaxrnn.

    python experiments/export.py --run runs/mnist --out mnist.stablehlo

    import jax
    classify = jax.export.deserialize(open("mnist.stablehlo", "rb").read()).call
    classify(images)            # uint8 [N, T, I], any N -> probabilities float32 [N, C]

A process that does not import jaxrnn then reads the file and compares the probabilities.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from command_line import parse


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options."""

    run: Path = Path("runs/mnist")
    """Folder of the trained run."""
    out: Path = Path("mnist.stablehlo")
    """File to write."""


def main(config: Config) -> int:
    """Exports and checks the classifier; returns the exit code."""
    import stablehlo  # and with it JAX, which takes seconds

    return stablehlo.write(config.run, config.out)


if __name__ == "__main__":
    config = parse(Config, __doc__)
    from terminal import run_script

    sys.exit(run_script(lambda: main(config)))
