"""Compares settings of experiments/mnist.py over several seeds.

    python experiments/ablate.py forget-bias --seeds 10
    python experiments/ablate.py mine --vary cell=lstm,gru --vary learning_rate=1e-3,3e-3

A study has several settings, and each setting a run for each seed. Runs that differ only in hparams
share a compiled program: on a CPU each core trains one run, on a GPU all train at once. The record
of a run is written as soon as the run is finished, so an interrupted study resumes, and a study
that has changed trains only the runs that are new. Select settings by validation accuracy; the
table and the learning curves show the test accuracy.
"""

from __future__ import annotations

import sys

from command_line import parse
from study_options import HEADINGS, Config


def main(config: Config) -> int:
    """Runs the study; returns the exit code."""
    import run_study  # and with it JAX, which takes seconds

    return run_study.main(config)


if __name__ == "__main__":
    config = parse(Config, __doc__, headings=HEADINGS, check=Config.check)
    from terminal import run_script

    sys.exit(run_script(lambda: main(config)))
