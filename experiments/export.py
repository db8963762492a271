"""Exports a trained classifier to a format that runs without jaxrnn.

    python experiments/export.py --run runs/mnist --out mnist.stablehlo
    python experiments/export.py --run runs/mnist --out mnist.onnx
    python experiments/export.py --run runs/mnist --out digit.html

stablehlo is a program for JAX, onnx a model for ONNX Runtime. Both compute the probabilities
float32 [N, C] of sequences uint8 [N, T, I] for any N:

    classify = jax.export.deserialize(open("mnist.stablehlo", "rb").read()).call
    probabilities = classify(sequences)

    session = onnxruntime.InferenceSession("mnist.onnx")
    [probabilities] = session.run(None, {"sequences": sequences})

html is a page for any browser, on which one draws a digit and sees how the network reads it. It is
one file, which loads nothing else.

Before the file is written, a process that does not import jaxrnn reads it, and its probabilities
are compared with those of the run.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from command_line import parse
from errors import OptionError, listed
from options import check_file

Format = Literal["stablehlo", "onnx", "html"]
FORMATS: tuple[Format, ...] = get_args(Format)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options."""

    run: Path = Path("runs/mnist")
    """Folder of the trained run."""
    format: Format | None = None
    """Format of the file. Defaults to the suffix of --out, and without --out to stablehlo."""
    out: Path | None = None
    """File to write. Defaults to mnist.FORMAT."""
    data_dir: Path | None = None
    """Folder with the data set, from which the test images come. Defaults to the environment
    variable JAXRNN_DATA_DIR. stablehlo does not read the data set."""

    def check(self) -> None:
        """Raises OptionError if nothing names the format, or the file cannot be written."""
        check_file("--out", self.target()[1])

    def target(self) -> tuple[Format, Path]:
        """Returns the format and the file.

        Raises:
            OptionError: If neither --format nor the suffix of --out names a format.
        """
        if self.out is None:
            chosen = self.format or "stablehlo"
            return chosen, Path(f"mnist.{chosen}")
        if self.format is not None:
            return self.format, self.out
        for each in FORMATS:
            if self.out.suffix.lower() == f".{each}":
                return each, self.out
        raise OptionError(
            f"--format is missing, and {self.out} has none of the suffixes "
            f"{listed(f'.{each}' for each in FORMATS)}"
        )


def main(config: Config) -> int:
    """Exports and checks the classifier; returns the exit code."""
    chosen, out = config.target()
    # The modules import JAX, which takes seconds.
    if chosen == "stablehlo":
        import stablehlo

        return stablehlo.write(config.run, out)
    if chosen == "html":
        import html_page

        return html_page.write(config.run, out, config.data_dir)
    import onnx_file

    return onnx_file.write(config.run, out, config.data_dir)


if __name__ == "__main__":
    config = parse(Config, __doc__, check=Config.check)
    from terminal import run_script

    sys.exit(run_script(lambda: main(config)))
