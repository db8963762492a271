"""Opens a page on which you draw a digit and see how a trained network reads it, row by row.

    python experiments/draw.py
    python experiments/draw.py --run runs/gru

The network is that of the last run in `runs` that the page can show. If there is none, an LSTM is
trained first, which takes about a minute. The page is the file digit.html in the folder of the run;
see `export.py`.
"""

from __future__ import annotations

import dataclasses
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path

from command_line import parse
from errors import OptionError, fail
from options import RECIPES
from options import Config as Training

RUNS = Path("runs")
PAGE = "digit.html"
# The network that is trained if there is none: the recipe "fast", with a fifth of the steps.
SHORT = Training(recipe="fast", out=RUNS / "draw", **{**RECIPES["fast"], "steps": 600})


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options."""

    run: Path | None = None
    """Folder of the trained run. Defaults to the last one in runs."""
    data_dir: Path | None = None
    """Folder with the data set, from which the test images come. Defaults to the environment
    variable JAXRNN_DATA_DIR."""
    browser: bool = True
    """Open the page; --no-browser only writes it."""


def last_runs() -> list[Path]:
    """Returns the folders of the runs with checkpoints, the last first."""
    found = {each.parent: each.stat().st_mtime for each in RUNS.glob("*/checkpoints")}
    if not (SHORT.out / "result.json").exists():
        found.pop(SHORT.out, None)  # was interrupted, and will be resumed
    return sorted(found, key=found.__getitem__, reverse=True)


def main(config: Config) -> int:
    """Writes and opens the page; returns the exit code."""
    import html_page  # and with it JAX, which takes seconds

    from jaxrnn.training.checkpoint import CheckpointError
    from jaxrnn.training.run import RunError

    for run in last_runs() if config.run is None else [config.run]:
        try:
            html_page.write(run, run / PAGE, config.data_dir)
            return show(run / PAGE, config.browser)
        except (OptionError, RunError, CheckpointError) as error:
            if config.run is not None:
                raise
            fail(f"{run} is skipped: {error}")
    import train

    new = dataclasses.replace(SHORT, data_dir=config.data_dir)
    if code := train.main(new):
        return code
    html_page.write(new.out, new.out / PAGE, config.data_dir)
    return show(new.out / PAGE, config.browser)


def show(page: Path, browser: bool) -> int:
    """Opens the page in the browser, if asked to; returns the exit code."""
    if browser and not webbrowser.open(page.resolve().as_uri()):
        return fail(f"no browser was found; open {page} in one", 1)
    return 0


if __name__ == "__main__":
    config = parse(Config, __doc__)
    from terminal import run_script

    sys.exit(run_script(lambda: main(config)))
