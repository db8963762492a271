"""Checkpoints survive damaged files and killed processes."""

import errno
import inspect
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxrnn.training.checkpoint import CheckpointError, Checkpoints


def state(value):
    return {
        "step": jnp.asarray(np.int32(value)),
        "weights": jnp.asarray(np.arange(3000, dtype=np.float32) + np.float32(value)),
        "half": jnp.asarray(np.full(3, value, jnp.bfloat16)),
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


def test_a_process_killed_while_it_removes_a_checkpoint_damages_none(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # as if killed before the removal
    write(tmp_path, {1: 0.1, 2: 0.2, 3: 0.3})
    left = next(path for path in tmp_path.rglob("metadata") if "1" in path.parts)
    left.unlink()  # in the middle of the removal
    monkeypatch.undo()
    assert restored(tmp_path, warnings := []) == 3
    assert not warnings
    assert steps(tmp_path) == [2, 3]
    assert {path.name for path in tmp_path.iterdir()} == {"2", "3", "lock"}


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


def test_a_step_that_orbax_would_skip_silently_is_an_error(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, state(2))
        with pytest.raises(CheckpointError, match="not above 2"):
            checkpoints.save(2, state(2))


def array_files(directory, step):
    """Returns the files that hold array data, the largest first."""
    files = [path for path in (directory / str(step) / "state").rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: path.stat().st_size, reverse=True)


def flip_bit(path, position):
    contents = bytearray(path.read_bytes())
    contents[position // 8] ^= 1 << position % 8
    path.write_bytes(contents)


def test_flipped_bits_are_found_and_the_step_before_is_restored(tmp_path):
    write(tmp_path, {1: None, 2: None})
    rng, last = np.random.default_rng(0), 2
    for _ in range(12):
        largest = array_files(tmp_path, last)[0]
        flip_bit(largest, int(rng.integers(8 * largest.stat().st_size)))
        warnings = []
        # `restored` checks the values: of the last step if the bit is unused, else of the one
        # before.
        found = restored(tmp_path, warnings)
        assert found == last - len(warnings)
        assert all(f"{last} is damaged" in warning for warning in warnings)
        last = found + 1
        write(tmp_path, {last: None})  # the step can be saved again
        assert restored(tmp_path) == last


def test_half_deleted_and_foreign_entries_are_ignored(tmp_path):
    write(tmp_path, {1: 0.9, 2: 0.5, 3: 0.6})
    shutil.rmtree(tmp_path / "3" / "state")
    (tmp_path / "1" / "digest" / "metadata").write_text("{")
    (tmp_path / "notes.txt").write_text("mine")
    assert restored(tmp_path, warnings := []) == 2
    assert len(warnings) == 2
    assert restored(tmp_path, warnings, best=True) == 2
    assert len(warnings) == 2
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


def test_restoring_waits_for_the_save_in_progress(tmp_path):
    with Checkpoints(tmp_path, warn=pytest.fail) as checkpoints:
        checkpoints.save(1, state(1))
        assert checkpoints.restore(state(0))[0] == 1


class Pair(NamedTuple):
    w: np.ndarray
    b: np.ndarray


W, B = np.ones((3, 2), np.float32), np.ones(2, np.float32)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Checkpoints 6 and 7 of a tree with two leaves. The first has the higher score."""
    directory = tmp_path_factory.mktemp("pairs")
    with Checkpoints(directory) as checkpoints:
        for step, score in ((6, 0.9), (7, 0.5)):
            checkpoints.save(step, {"w": W, "b": B * np.float32(step)}, score)
    return directory


@pytest.fixture
def pair(pairs, tmp_path):
    return Path(shutil.copytree(pairs, tmp_path / "checkpoints"))


def listing(directory):
    return {
        path.relative_to(directory): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
    }


def restored_pair(directory, **options):
    warnings = []
    with Checkpoints(directory, warn=warnings.append) as checkpoints:
        found = checkpoints.restore({"w": W, "b": B}, **options)
    return found and found[0], warnings


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    ("like", "differences"),
    [
        (
            {"w": W, "bias": B},
            [
                "b: float32[2] in the checkpoint, nothing in the state",
                "bias: nothing in the checkpoint, float32[2] in the state",
            ],
        ),
        (
            {"w": W, "b": B.astype(jnp.bfloat16)},
            ["b: float32[2] in the checkpoint, bfloat16[2] in the state"],
        ),
        (
            {"w": jax.ShapeDtypeStruct((3, 4), np.float32), "b": B},
            ["w: float32[3,2] in the checkpoint, float32[3,4] in the state"],
        ),
        ({"w": W.T, "b": B}, ["w: float32[3,2] in the checkpoint, float32[2,3] in the state"]),
        (
            {"w": W, "b": B, "more": [{"x": np.int32(0)}]},
            ["more/0/x: nothing in the checkpoint, int32[] in the state"],
        ),
        ({"w": W}, ["b: float32[2] in the checkpoint, nothing in the state"]),
    ],
)
def test_another_state_is_refused_by_its_leaves_and_nothing_is_lost(
    pairs, like, differences, read_only
):
    before = listing(pairs)
    options = {"read_only": read_only, "warn": pytest.fail}
    with Checkpoints(pairs, **options) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.restore(like)
    assert f"7 holds another state than the one to restore ({'; '.join(differences)})" in str(
        error.value
    )
    assert listing(pairs) == before


def test_leaves_are_found_by_their_names(pairs):
    with Checkpoints(pairs, read_only=True) as checkpoints:
        step, found = checkpoints.restore(Pair(w=W, b=jax.ShapeDtypeStruct((2,), np.float32)))
    assert step == 7
    np.testing.assert_array_equal(found.w, W)
    np.testing.assert_array_equal(found.b, B * 7)


def test_two_leaves_of_one_name_are_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match="name a/b"):
        checkpoints.save(1, {"a/b": B, "a": {"b": B}})


def test_every_kind_of_leaf_is_restored(tmp_path):
    params = {"cell": Pair(W, B.astype(jnp.bfloat16)), "flag": np.array([True, False])}
    saved = {
        "key": jax.random.wrap_key_data(np.arange(4, dtype=np.uint32).reshape(2, 2)),
        "other": jax.random.wrap_key_data(np.arange(4, dtype=np.uint32), impl="rbg"),
        "opt_state": ((), (np.int32(0), {"mu": Pair(W, B)})),
        "params": params,
        "exact": np.float64(0.1) + np.arange(3),
        "swapped": np.arange(3, dtype=">i2"),
        "count": 3,
        "none": None,
    }
    with Checkpoints(tmp_path, warn=pytest.fail) as checkpoints:
        checkpoints.save(1, saved)
        numbers = {"exact": np.zeros(3), "swapped": np.zeros(3, np.int16), "count": 0}
        like = jax.eval_shape(lambda: saved | numbers) | numbers
        _, found = checkpoints.restore(like)
        with pytest.raises(CheckpointError, match=r"key<fry>\[2\] in .*, uint32\[2,2\]"):
            checkpoints.restore(like | {"key": jax.ShapeDtypeStruct((2, 2), np.uint32)})
    assert jax.tree.structure(found) == jax.tree.structure(saved)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(saved), strict=True):
        if not isinstance(other, jax.Array):
            other = np.asarray(other)
            other = other.astype(other.dtype.newbyteorder("="))
        assert one.dtype == other.dtype
        if jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_array_equal(one, other)


def test_damage_is_set_aside_and_never_removed(pair):
    for score, name in ((0.5, "7"), (0.6, "7-2")):
        contents = array_files(pair, 7)[0].read_bytes()
        flip_bit(array_files(pair, 7)[0], 8 * (len(contents) // 2))
        damaged = listing(pair / "7")
        found, warnings = restored_pair(pair)
        assert found == 6
        assert len(warnings) == 1
        assert f"7 is damaged and moved to {pair / 'damaged' / name}: " in warnings[0]
        assert listing(pair / "damaged" / name) == damaged
        with Checkpoints(pair) as checkpoints:  # ignores the damaged checkpoint that was moved
            checkpoints.save(7, {"w": W, "b": B}, score)
    assert restored_pair(pair) == (7, [])


def edit(record, **changes):
    """Changes a record without its SHA-256."""
    record.write_text(json.dumps(json.loads(record.read_text()) | changes))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda record: edit(record, score=0.1), "does not match its SHA-256"),
        (lambda record: edit(record, leaves={}), "does not match its SHA-256"),
        (lambda record: record.write_bytes(record.read_bytes()[:20]), "cannot be read"),
        (lambda record: record.write_bytes(b"\xff"), "cannot be read"),
        (lambda record: record.write_text("[]"), "does not match its SHA-256"),
        (lambda record: record.unlink(), "cannot be read"),
        (lambda record: shutil.rmtree(record.parent), "cannot be read"),
    ],
)
def test_a_damaged_record_of_the_best_is_reported_and_the_next_best_restored(pair, harm, reason):
    harm(pair / "6" / "digest" / "metadata")
    before, warnings = listing(pair), []
    with Checkpoints(pair, read_only=True, warn=warnings.append) as reader:
        assert reader.restore({"w": W, "b": B}, best=True)[0] == 7
    assert listing(pair) == before
    assert len(warnings) == 1
    assert "\n" not in warnings[0]
    assert f"{pair / '6'} is damaged and ignored: " in warnings[0]
    assert reason in warnings[0]
    found, warnings = restored_pair(pair, best=True)
    assert found == 7
    assert len(warnings) == 1
    assert reason in warnings[0]
    assert (pair / "damaged" / "6").is_dir()


def test_a_renamed_step_is_not_restored_as_another(pair):
    (pair / "7").rename(pair / "1700")
    found, warnings = restored_pair(pair)
    assert found == 6
    assert warnings == [
        f"{pair / '1700'} is damaged and moved to {pair / 'damaged' / '1700'}: "
        "it was saved as step 7"
    ]
    (pair / "damaged" / "1700").rename(pair / "7")
    assert restored_pair(pair) == (7, [])


def test_checkpoints_of_an_earlier_version_are_refused_and_kept(pair):
    (pair / "7" / "digest" / "metadata").write_text('{"sha256": "0", "score": 0.5}')
    before = listing(pair)
    for read_only in (False, True):  # the first has released the lock
        with pytest.raises(CheckpointError, match="7 is from an earlier version"):
            Checkpoints(pair, read_only=read_only, warn=pytest.fail)
    assert listing(pair) == before


TENSORSTORE = (
    "{}: Error opening: Failed to open: \"d/0\" [os_error_code='{}'] [tensorstore_spec='']"
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "x"), PermissionError),
        (OSError(errno.EMFILE, "Too many open files"), OSError),
        (ValueError(TENSORSTORE.format("PERMISSION_DENIED", errno.EACCES)), PermissionError),
        (ValueError(TENSORSTORE.format("RESOURCE_EXHAUSTED", errno.EMFILE)), OSError),
        (MemoryError(), MemoryError),
    ],
)
def test_an_error_of_the_system_is_not_damage(pairs, error, expected, monkeypatch):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(ocp.CheckpointManager, "restore", refuse)
    before = listing(pairs)
    with Checkpoints(pairs, warn=pytest.fail) as checkpoints, pytest.raises(expected) as raised:
        checkpoints.restore({"w": W, "b": B})
    assert getattr(raised.value, "errno", None) in (None, errno.EACCES, errno.EMFILE)
    assert listing(pairs) == before


@pytest.mark.parametrize("part", ["digest", "state"])
def test_a_file_that_may_not_be_opened_is_not_damage(pair, part, monkeypatch):
    """Orbax reports the files of a folder without permission as missing."""
    (pair / "7" / "state" / "manifest.ocdbt").unlink()
    opened = Path.open

    def refuse(path, *arguments, **options):
        if f"7/{part}/" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=f"7/{part}/"):
        restored_pair(pair)
    monkeypatch.undo()
    assert steps(pair) == [6, 7]
    assert restored_pair(pair)[0] == 6  # and the lock was released


@pytest.mark.parametrize(
    ("error", "expected", "match"),
    [
        (ValueError("RESOURCE_EXHAUSTED: no room"), CheckpointError, "step 8 not saved: RESOURCE"),
        (ValueError(TENSORSTORE.format("", errno.ENOSPC)), OSError, "No space left"),
        (OSError(errno.ENOSPC, "No space left on device"), OSError, "No space left"),
    ],
)
def test_a_save_that_fails_later_is_named_by_its_own_step(
    pair, error, expected, match, monkeypatch
):
    def fail():
        monkeypatch.undo()
        raise error

    with Checkpoints(pair) as checkpoints:
        checkpoints.save(8, {"w": W, "b": B})
        monkeypatch.setattr(checkpoints._manager, "wait_until_finished", fail)
        with pytest.raises(expected, match=match):
            checkpoints.save(9, {"w": W, "b": B})


def test_a_refused_save_leaves_the_best_its_score(pair):
    with Checkpoints(pair) as checkpoints:
        checkpoints.save(8, {"w": W, "b": B}, 0.95)
        with pytest.raises(CheckpointError, match="not above 8"):
            checkpoints.save(8, {"w": W, "b": B}, 0.1)
        for step in (9, 10, 11):
            checkpoints.save(step, {"w": W, "b": B})
    assert steps(pair) == [8, 10, 11]


def test_any_score_is_above_none(tmp_path):
    write(tmp_path, {1: -3.0, 2: -5.0, 3: None, 4: float("nan")})
    assert steps(tmp_path) == [1, 3, 4]
    assert restored(tmp_path, best=True) == 1


WRITER = f"""
import os, signal, sys
from pathlib import Path
import jax.numpy as jnp
import numpy as np
from jaxrnn.training.checkpoint import Checkpoints
{inspect.getsource(state)}
def say(word):  # in one write, which a signal cannot cut in two; print may make two of it
    os.write(1, f"{{word}}\\n".encode())
for _ in sys.stdin:
    if child := os.fork():  # JAX has started no thread yet
        os.waitpid(child, 0)
        say("gone")
        continue
    signal.alarm(300)
    say(os.getpid())
    with Checkpoints(Path(sys.argv[1])) as checkpoints:
        found = checkpoints.restore(state(0))
        step = found[0] if found else 0
        while True:
            step += 1
            checkpoints.save(step, state(step), 1 / step)
            say(step)  # so the one before is on disk
"""


def test_a_process_killed_while_saving_leaves_a_good_step(tmp_path):
    rng, last = np.random.default_rng(1), 0
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"},
    )
    with process:
        for _ in range(3):
            process.stdin.write("go\n")
            process.stdin.flush()
            writer, *saved = (int(process.stdout.readline()) for _ in range(4))
            time.sleep(rng.uniform(0, 0.1))
            os.kill(writer, signal.SIGKILL)
            saved += map(int, itertools.takewhile(lambda line: line != "gone\n", process.stdout))
            found = restored(tmp_path)
            assert found >= max(last, saved[-1] - 1)
            last = found
        process.stdin.close()
    assert last > 0
