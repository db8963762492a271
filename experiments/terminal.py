"""The console, the progress bar and the exit codes of the scripts."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

from errors import OptionError, fail
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jaxrnn.training import data, tasks
from jaxrnn.training.checkpoint import CheckpointError
from jaxrnn.training.data.tfds import Unavailable
from jaxrnn.training.files import FileError
from jaxrnn.training.run import OtherConfiguration, RunError

console = Console(highlight=False, soft_wrap=True, markup=False)


def run_script(main: Callable[[], int]) -> int:
    """Calls the main function of a script; expected errors become one line and an exit code."""
    quieten_orbax()
    try:
        return main()
    except Unavailable as error:
        return fail(
            f"{error.reason}; name a folder that holds it with --data-dir FOLDER, "
            "or train on what needs no download with --dataset digits"
        )
    except OtherConfiguration as error:
        return fail(f"{error} with --out, or --no-resume deletes the run and starts over")
    except (data.DataError, RunError, OptionError, FileError) as error:
        return fail(error)
    except (CheckpointError, OSError) as error:
        return fail(error, 1)
    except KeyboardInterrupt:
        return 130


def quieten_orbax() -> None:
    """Leaves it to the scripts to report what orbax logs, and errors in its callbacks."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs steps, and errors twice
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = show_unraisable


def show_unraisable(found: Any) -> None:
    """Prints an error in a callback, but for those after a save or restore that failed."""
    if str(found.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(found)


def sizes(dataset: data.Dataset | tasks.Splits) -> str:
    """Returns the sizes of the splits of a data set in words."""
    counts = [len(split[0]) for split in (dataset.train, dataset.validation, dataset.test)]
    kind = "images" if isinstance(dataset, data.Dataset) else "sequences"
    return "{:,} training, {:,} validation and {:,} test {}".format(*counts, kind)


def announce(dataset: data.Dataset | tasks.Splits) -> None:
    """Prints name and sizes of a data set, and in a frame why it is not the requested one."""
    console.print(f"data: {dataset.name}, {sizes(dataset)}")
    if dataset.note:
        title = "NOT WHAT WAS ASKED FOR" if dataset.name == "mnist" else "NOT MNIST"
        panel = Panel(dataset.note, title=title, border_style="bold red")
        console.print(panel, soft_wrap=False)  # soft wrapping would cut off the note at the border


@contextlib.contextmanager
def progress_bar(step: int, steps: int) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar on a terminal; yields a function `advance(count)`."""
    columns = (
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[speed]:.0f} steps/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=steps, completed=step, speed=0.0)

        def advance(count: int) -> None:
            progress.update(task, advance=count, speed=progress.tasks[0].speed or 0.0)

        yield advance
