"""Checkpoints survive what a disk and a killed process can do to them."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.checkpoint import CheckpointError, Checkpoints


def state(value):
    return {
        "step": jnp.int32(value),
        "weights": jnp.arange(3000, dtype=jnp.float32) + value,
        "half": jnp.full(3, value, jnp.bfloat16),
    }


def write(directory, scores):
    with Checkpoints(directory) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, state(step), score)


def steps(directory):
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def restored(directory, warnings=None, **options):
    warn = (lambda line: None) if warnings is None else warnings.append
    with Checkpoints(directory, warn=warn) as checkpoints:
        found = checkpoints.restore(state(0), **options)
    if found is not None:
        jax.tree.map(np.testing.assert_array_equal, found[1], state(found[0]))
        assert [leaf.dtype for leaf in jax.tree.leaves(found[1])] == [
            leaf.dtype for leaf in jax.tree.leaves(state(0))
        ]
    return found and found[0]


def test_the_last_two_and_the_best_are_kept(tmp_path):
    write(tmp_path, {1: 0.5, 2: 0.9, 3: 0.6, 4: None, 5: 0.7})
    assert steps(tmp_path) == [2, 4, 5]
    assert restored(tmp_path) == 5
    assert restored(tmp_path, best=True) == 2


def test_the_best_survives_a_nan_and_a_new_process(tmp_path):
    write(tmp_path, {1: 0.5, 2: 0.9})
    write(tmp_path, {3: float("nan"), 4: float("nan"), 5: 0.2, 6: 0.3})
    assert steps(tmp_path) == [2, 5, 6]
    assert restored(tmp_path, best=True) == 2


def test_among_equal_scores_the_later_is_best(tmp_path):
    write(tmp_path, {1: 0.5, 2: 0.5, 3: 0.1, 4: 0.1})
    assert steps(tmp_path) == [2, 3, 4]
    assert restored(tmp_path, best=True) == 2


def test_an_empty_folder_restores_nothing(tmp_path):
    assert restored(tmp_path) is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    write(tmp_path, {1: 0.5})
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError, match="not finite"):
        checkpoints.save(2, state(2) | {"weights": jnp.full(3000, value)})
    assert restored(tmp_path) == 1


def test_a_step_that_would_be_left_out_silently_is_an_error(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, state(2))
        with pytest.raises(CheckpointError, match="not above 2"):
            checkpoints.save(2, state(2))


def array_files(directory, step):
    """The files that hold array data, the largest first."""
    files = [path for path in (directory / str(step) / "state").rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: path.stat().st_size, reverse=True)


def flip_bit(path, position):
    contents = bytearray(path.read_bytes())
    contents[position // 8] ^= 1 << position % 8
    path.write_bytes(contents)


def test_flipped_bits_are_found_and_the_step_before_is_taken(tmp_path):
    write(tmp_path / "original", {1: None, 2: None})
    rng = np.random.default_rng(0)
    for trial in range(12):
        directory = tmp_path / str(trial)
        shutil.copytree(tmp_path / "original", directory)
        largest = array_files(directory, 2)[0]
        flip_bit(largest, int(rng.integers(8 * largest.stat().st_size)))
        warnings = []
        # `restored` checks the values: step 2 if the bit belonged to nothing, else step 1.
        found = restored(directory, warnings)
        assert found == 2 - len(warnings)
        assert all("2 is damaged" in warning for warning in warnings)
        write(directory, {3: None} if found == 2 else {2: None})  # the step can be made again
        assert restored(directory) == (3 if found == 2 else 2)


def test_half_deleted_and_foreign_entries_are_walked_past(tmp_path):
    write(tmp_path, {1: 0.9, 2: 0.5, 3: 0.6})
    shutil.rmtree(tmp_path / "3" / "state")
    (tmp_path / "1" / "digest" / "metadata").write_text("{")
    (tmp_path / "notes.txt").write_text("mine")
    assert restored(tmp_path, warnings := []) == 2
    assert len(warnings) == 1
    assert restored(tmp_path, warnings, best=True) == 2
    write(tmp_path, {4: 0.2, 5: 0.1})
    assert steps(tmp_path) == [2, 4, 5]


def test_all_damaged_restores_nothing(tmp_path):
    write(tmp_path, {1: None, 2: None})
    for step in (1, 2):
        shutil.rmtree(tmp_path / str(step) / "state")
    assert restored(tmp_path, warnings := []) is None
    assert len(warnings) == 2
    write(tmp_path, {1: None})


def test_a_second_writer_is_refused_and_a_reader_is_not(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1))
        with pytest.raises(CheckpointError, match="in use by another process"):
            Checkpoints(tmp_path)
    with Checkpoints(tmp_path), Checkpoints(tmp_path, read_only=True) as reader:
        assert reader.restore(state(0))[0] == 1


def test_a_reader_changes_nothing(tmp_path):
    write(tmp_path, {1: None, 2: None})
    shutil.rmtree(tmp_path / "2" / "state")
    with Checkpoints(tmp_path, read_only=True) as reader:
        assert reader.restore(state(0))[0] == 1
    assert steps(tmp_path) == [1, 2]


def test_the_last_save_survives_an_exception(tmp_path):
    def interrupted():
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(7, state(7))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert restored(tmp_path) == 7


WRITER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_checkpoint import state, Checkpoints
with Checkpoints(Path(sys.argv[2])) as checkpoints:
    found = checkpoints.restore(state(0))
    step = found[0] if found else 0
    print("ready", flush=True)
    while True:
        step += 1
        checkpoints.save(step, state(step), 1 / step)
"""


def test_killed_while_saving_it_goes_on_from_a_good_step(tmp_path):
    rng, last = np.random.default_rng(1), 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(Path(__file__).parent), str(tmp_path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.3, 1.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found = restored(tmp_path) or 0
        assert found >= last
        last = found
    assert last > 0
