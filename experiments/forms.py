"""Trains one of the five forms of recurrent networks on digits, and draws what it does.

    python experiments/forms.py one-to-one      one time step reads the whole image; one label
    python experiments/forms.py one-to-many     a label is read; an image is generated row by row
    python experiments/forms.py many-to-one     28 rows are read; one label
    python experiments/forms.py many-to-many    the upper half is read; the lower half is generated
    python experiments/forms.py in-step         28 rows are read; a label after each

Generated images are judged by a classifier, the form many-to-one, trained on real digits only.
"""

from __future__ import annotations

import sys
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from command_line import flag, parse
from errors import OptionError
from options import DatasetName, check_folder, check_integers


@dataclass(frozen=True)
class Config:
    """The options."""

    form: Literal["one-to-one", "one-to-many", "many-to-one", "many-to-many", "in-step"]
    """Form of the network: one-to-one, one-to-many, many-to-one, many-to-many or in-step."""
    _: KW_ONLY
    dataset: DatasetName = "auto"
    """Data set. auto is MNIST if it is found or can be downloaded, and otherwise the 1,797 small
    digits of scikit-learn."""
    data_dir: Path | None = None
    """Folder with the data set as IDX, .npz, .csv or .parquet files, or as prepared by TFDS.
    Defaults to the environment variable JAXRNN_DATA_DIR."""
    validation_size: int = 5000
    """Number of training examples that are left out, as experiments/mnist.py does for
    validation."""
    hidden_size: int = 128
    """Number of hidden units. one-to-many and many-to-many have twice as many."""
    batch_size: int = 100
    """Number of examples in a batch."""
    steps: int = 5000
    """Number of train steps."""
    judge_steps: int = 3000
    """Number of train steps of the classifier that judges generated images."""
    learning_rate: float = 3e-3
    """Peak of the learning rate, which follows a one-cycle schedule."""
    seed: int = 0
    """Seed of the initial parameters, the order of the batches and all noise."""
    out: Path = Path("runs/forms")
    """Folder with a folder for each form."""
    devices: int | None = None
    """Number of devices (GPUs, TPU cores or CPU cores) that share each batch. Defaults to the most
    that divide it evenly."""

    def check(self) -> None:
        """Raises OptionError if a value is out of range."""
        check_integers(self)
        check_folder(self.out / self.form)
        for name in ("hidden_size", "batch_size", "steps", "judge_steps", "devices"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise OptionError(f"{flag(name)} must be at least 1")
        for name in ("validation_size", "seed"):
            if getattr(self, name) < 0:
                raise OptionError(f"{flag(name)} must not be negative")
        if not 0 < self.learning_rate < float("inf"):
            raise OptionError("--learning-rate must be positive and finite")


HEADINGS = {"dataset": "data", "hidden_size": "training", "out": "run"}


def main(config: Config) -> int:
    """Trains the form and draws figures; returns the exit code."""
    import five_forms  # and with it JAX, which takes seconds

    return five_forms.run(config)


if __name__ == "__main__":
    config = parse(Config, __doc__, headings=HEADINGS, check=Config.check)
    from terminal import run_script

    sys.exit(run_script(lambda: main(config)))
