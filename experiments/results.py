r"""Writes docs/results.md and its pictures from the runs kept in experiments/results.

    python experiments/results.py

Each study is a folder of experiments/results, written by ablate.py STUDY --out experiments/results.
Studies on another data set are in a folder of their own there, as written by --out
experiments/results/fashion_mnist. Settings that were run again with other seeds are in
experiments/results/again:

    python experiments/ablate.py STUDY --settings SETTING --seeds 2 --first-seed 100 \
        --out experiments/results/again

Every number on the page is computed from the records.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from command_line import parse

FOLDER = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "results.md"


@dataclass(frozen=True, kw_only=True)
class Config:
    """There are no options."""


def main(folder: Path = FOLDER, path: Path = PAGE) -> int:
    """Writes the page to `path`, and its pictures to the folder of that name without the suffix."""
    import results_page  # and with it JAX, which takes seconds

    results_page.write(folder, path)
    return 0


if __name__ == "__main__":
    parse(Config, __doc__)
    from terminal import run_script

    sys.exit(run_script(main))
