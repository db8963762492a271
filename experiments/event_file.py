"""Writes the metrics and pictures of a run as an event file, which TensorBoard shows."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PICTURES = ("confusion", "beliefs")


class EventFile:
    """The event file of a run, which is written anew.

    It starts with the records so far, so that a resumed run has each step once, and a run that was
    started without an event file has all of them.

    Args:
        folder: The folder of the run. Its earlier event files are removed.
        records: The records of the evaluations so far, see `add`.
    """

    def __init__(self, folder: Path, records: Sequence[Mapping[str, Any]] = ()):
        from tensorboardX import SummaryWriter

        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        # A TensorBoard that has read the earlier file drops everything from step 0 on.
        self._writer = SummaryWriter(str(folder), purge_step=0, flush_secs=5)
        self._folder = folder
        # So that TensorBoard's relative time is that of the records.
        self._start = time.time() - (records[-1].get("seconds", 0.0) if records else 0.0)
        for record in records:
            self.add(record)

    def add(self, record: Mapping[str, Any]) -> None:
        """Adds the scalars of a record.

        Args:
            record: A record of metrics.jsonl or of a study's learning curve: scalars or None by
                name, with "step" and perhaps "seconds".
        """
        walltime = self._start + record.get("seconds", 0.0)
        for name, value in record.items():
            if name != "step" and value is not None:
                self._writer.add_scalar(name, value, record["step"], walltime=walltime)

    def add_pictures(self, step: int) -> None:
        """Adds the confusion matrix and the beliefs, from the pictures in the folder.

        Args:
            step: The train step of the parameters that the pictures show.
        """
        for name in PICTURES:
            with Image.open(self._folder / f"{name}.png") as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is not yet written."""
        self._writer.close()


def write_study(runs: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Writes the learning curve of each run of a study as an event file.

    Args:
        runs: The records of the runs, with `setting`, `seed` and `curve`.
        folder: The folder, which is replaced. The runs are in SETTING/seed-SEED.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for run in runs:
        own = folder / run["setting"].replace("/", "_") / f"seed-{run['seed']}"
        own.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(EventFile(own, run["curve"])):
            pass
