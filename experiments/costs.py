"""Prints what a train step costs on 1 to 256 TPU chips, according to XLA.

    pip install libtpu
    python experiments/costs.py

No TPU is needed, since libtpu compiles for a described topology. XLA counts the body of a loop
once, so the loop over time is unrolled. Otherwise the model is the tutorial's, an LSTM with 128
hidden units on 28 rows, and the step that of `Trainer.advance`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from command_line import parse
from errors import fail


@dataclass(frozen=True, kw_only=True)
class Config:
    """There are no options."""


def main() -> int:
    """Prints the table; returns the exit code."""
    import tpu_costs  # and with it JAX, which takes seconds

    try:
        tpu_costs.print_table()
    except RuntimeError as error:
        if "TPU support not installed" not in str(error):
            raise
        return fail("libtpu is not installed: pip install libtpu", 1)
    return 0


if __name__ == "__main__":
    parse(Config, __doc__)
    sys.exit(main())
