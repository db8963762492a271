"""Writes a trained classifier as StableHLO, which any JAX can run without jaxrnn.

    python experiments/export.py --run runs/mnist --out mnist.stablehlo

    import jax
    classify = jax.export.deserialize(open("mnist.stablehlo", "rb").read()).call
    classify(images)            # uint8 [N, T, I], any N -> probabilities float32 [N, C]

What was written is read back by another process, which never imports jaxrnn, and compared.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import tyro
from experiment import blank_example, load_run
from terminal import run_script

from jaxrnn import training
from jaxrnn.training.run import RunError

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
BATCHES = (1, 3, 8)
CHECK = """
import sys
import jax.export, numpy as np
program, arrays = sys.argv[1:]
call = jax.export.deserialize(open(program, "rb").read()).call
arrays = np.load(arrays)
for name in [name for name in arrays if name.startswith("sequences")]:
    made, expected = call(arrays[name]), arrays[name.replace("sequences", "expected")]
    np.testing.assert_allclose(made, expected, atol=1e-5)
assert "jaxrnn" not in sys.modules
"""


@dataclass(frozen=True)
class Config:
    """Write a trained classifier as a StableHLO program."""

    run: Path = Path("runs/mnist")
    """The folder of the trained run."""
    out: Path = Path("mnist.stablehlo")


def export(run: Path) -> jax.export.Exported:
    """The run's classifier as a program of `uint8 [batch, T, I]`, whatever the batch.

    Raises:
        RunError: If the folder holds no trained run.
    """
    config, model, params, _ = load_run(run)

    @jax.jit
    def classify(sequences):
        return jax.nn.softmax(training.apply(model, params, training.scale(sequences)))

    _, time, features = blank_example(config).shape
    shape = jax.export.symbolic_shape(f"batch, {time}, {features}")
    return jax.export.export(classify, platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, jnp.uint8))


def check(run: Path, program: Path) -> None:
    """Compares what the program says in another process with what the run says here.

    Raises:
        RunError: If they differ or it does not run.
    """
    config, model, params, _ = load_run(run)
    _, time, features = blank_example(config).shape
    arrays, random = {}, np.random.default_rng(0)
    for batch in BATCHES:
        sequences = random.integers(0, 256, (batch, time, features), np.uint8)
        arrays[f"sequences_{batch}"] = sequences
        arrays[f"expected_{batch}"] = training.probabilities(model, params, sequences)
    with tempfile.TemporaryDirectory() as folder:
        expected = Path(folder) / "expected.npz"
        np.savez(expected, **arrays)
        command = [sys.executable, "-c", CHECK, program.resolve(), expected]
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if found.returncode:
        raise RunError(f"{program} does not do what the run does:\n{found.stderr}")


def main(config: Config) -> int:
    """Exports and checks."""
    config.out.write_bytes(export(config.run).serialize())
    check(config.run, config.out)
    print(
        f"{config.out}: {config.out.stat().st_size:,} bytes for {', '.join(PLATFORMS)}; "
        f"a process without jaxrnn says the same for batches of {BATCHES}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_script(lambda: main(tyro.cli(Config, description=__doc__))))
