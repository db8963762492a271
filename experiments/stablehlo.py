"""Writes a trained classifier as a StableHLO program, and checks the program."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from experiment import blank_example, load_run

from jaxrnn import training
from jaxrnn.training.files import write_bytes
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


def export(run: Path) -> jax.export.Exported:
    """Returns the classifier of a run as a program of `uint8 [batch, T, I]`, for any batch.

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


def check(run: Path, program: bytes) -> None:
    """Compares the probabilities of the program, run by another process, with those of the run.

    Raises:
        RunError: If they differ or the program fails.
    """
    config, model, params, _ = load_run(run)
    _, time, features = blank_example(config).shape
    arrays, random = {}, np.random.default_rng(0)
    for batch in BATCHES:
        sequences = random.integers(0, 256, (batch, time, features), np.uint8)
        arrays[f"sequences_{batch}"] = sequences
        arrays[f"expected_{batch}"] = training.probabilities(model, params, sequences)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "expected.npz", **arrays)
        (Path(folder) / "program").write_bytes(program)
        command = [sys.executable, "-c", CHECK, "program", "expected.npz"]
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if found.returncode:
        raise RunError(f"the program does not compute what the run does:\n{found.stderr}")


def write(run: Path, out: Path) -> int:
    """Checks and writes the program; returns the exit code."""
    program = bytes(export(run).serialize())
    check(run, program)
    write_bytes(out, program)
    print(
        f"{out}: {len(program):,} bytes for {', '.join(PLATFORMS)}; a process "
        f"without jaxrnn computes the same probabilities for batches of {BATCHES}"
    )
    return 0
