"""IDX files: valid ones are read, others raise a DataError that names them."""

import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from idx_files import (
    FILES,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    assert_original,
    damage,
    encoded,
    forbidden,
    joined,
    originals,
    write,
    zipped,
)

from jaxrnn.training.data import idx


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("validation_size", [0, 5, 39])
def test_idx_folder_gives_its_arrays_with_validation_first(tmp_path, load, packed, validation_size):
    dataset = load("mnist", write(tmp_path / "d", packed), validation_size=validation_size)
    assert len(dataset.validation.labels) == validation_size
    assert len(dataset.train.labels) == 40 - validation_size
    assert_original(dataset)


def test_a_gz_that_was_unpacked_but_kept_its_name_is_read(tmp_path, load):
    folder = write(tmp_path / "d")
    (folder / f"{TRAIN_IMAGES}.gz").write_bytes(encoded(originals()[0]))
    assert_original(load("kmnist", folder))


IMAGES, LABELS, *_ = originals()
BROKEN = {
    "wrong magic number 2052": (TRAIN_IMAGES, zipped(encoded(IMAGES, 2052))),
    "holds labels, expected an IDX file of images": (TRAIN_IMAGES, zipped(encoded(LABELS))),
    "holds images, expected an IDX file of labels": (TEST_LABELS, zipped(encoded(IMAGES))),
    "truncated, 31359 bytes": (TRAIN_IMAGES, zipped(encoded(IMAGES)[:-1])),
    "too long, more than 31360 bytes": (TRAIN_IMAGES, zipped(encoded(IMAGES) + b"x")),
    "less than a header": (TRAIN_LABELS, zipped(b"\0\0\x08\x01\0")),
    "0 bytes are less": (TEST_IMAGES, b""),
    "39 labels for 40 images": (TRAIN_LABELS, zipped(encoded(LABELS[1:]))),
    "label 10 at position 3": (TEST_LABELS, zipped(encoded(np.array([0, 9, 1, 10] * 4, np.uint8)))),
    "images of 27×28": (TEST_IMAGES, zipped(encoded(IMAGES[:, 1:]))),
    "holds no labels": (TEST_LABELS, zipped(encoded(LABELS[:0]))),
    "cannot be read (CRC": (TRAIN_IMAGES, zipped(encoded(IMAGES))[:-8] + bytes(8)),
    "cannot be read (Compressed file ended": (TRAIN_IMAGES, zipped(encoded(IMAGES))[:-20]),
}


@pytest.mark.parametrize("problem", BROKEN)
def test_a_broken_file_is_named_on_one_line(tmp_path, load, problem):
    name, raw = BROKEN[problem]
    path = write(tmp_path / "d") / f"{name}.gz"
    path.write_bytes(raw)
    with pytest.raises(idx.DataError) as error:
        load("mnist", tmp_path / "d")
    assert str(path) in str(error.value)
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_training_and_test_files_swapped(tmp_path, load):
    folder = write(tmp_path / "d")
    for train, test in ((TRAIN_IMAGES, TEST_IMAGES), (TRAIN_LABELS, TEST_LABELS)):
        train, test, spare = folder / f"{train}.gz", folder / f"{test}.gz", folder / "spare"
        train.rename(spare), test.rename(train), spare.rename(test)
    with pytest.raises(idx.DataError, match=f"{TRAIN_IMAGES}.*16 training .* swapped"):
        load("mnist", folder)


def test_an_unreadable_file_is_named(tmp_path, load, monkeypatch):
    folder = write(tmp_path / "d")
    (folder / f"{TEST_LABELS}.gz").rename(folder / "aside")
    (folder / f"{TEST_LABELS}.gz").mkdir()
    with pytest.raises(
        idx.DataError, match=rf"{TEST_LABELS}.gz: cannot be read .*not a regular file"
    ):
        load("mnist", folder)

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(idx.DataError, match=f"{TRAIN_IMAGES}.gz: cannot be read .*denied"):
        load("mnist", folder)


def test_a_file_that_is_not_a_regular_one_is_not_opened(tmp_path, load):
    folder = write(tmp_path / "d")
    path = folder / f"{TRAIN_LABELS}.gz"
    path.unlink()
    os.mkfifo(path)  # which waits for a writer
    with pytest.raises(idx.DataError, match=rf"{path}: cannot be read \(not a regular file\)"):
        load("mnist", folder)
    path.unlink()
    path.symlink_to("/dev/zero")  # which never ends
    for read in (load, lambda *_: idx.read_split(folder / f"{TRAIN_IMAGES}.gz", path)):
        with pytest.raises(idx.DataError, match=rf"{path}: cannot be read \(not a regular file\)"):
            read("mnist", folder)


def test_no_more_is_unpacked_than_the_header_announces(tmp_path):
    path = tmp_path / "bomb.gz"
    path.write_bytes(zipped(encoded(IMAGES[:2]) + bytes(1 << 26)))
    tracemalloc.start()
    with pytest.raises(idx.DataError, match="too long, more than 1568 bytes of data where its"):
        idx.read_split(path, path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1 << 20
    # A header of more than the file can hold does not unpack it.
    path.write_bytes(zipped(struct.pack(">4I", 2051, 2**32 - 1, 28, 28) + bytes(1 << 26)))
    tracemalloc.start()
    with pytest.raises(idx.DataError, match=r"truncated, at most \d+ bytes .* says 336725"):
        idx.read_split(path, path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1 << 20


def test_a_path_with_nul_is_an_error_of_the_data(load):
    with pytest.raises(idx.DataError, match=r"a\\0b: (cannot be read|no such folder)") as error:
        load("mnist", "a\0b")
    assert "\0" not in str(error.value)


@pytest.mark.parametrize("packed", [True, False])
def test_damaged_files_give_a_data_error_or_the_same_arrays(tmp_path, load, packed):
    rng = np.random.default_rng(11)
    folder = write(tmp_path / "d", packed)
    refused = 0
    for _ in range(100):
        path = folder / (FILES[rng.integers(4)] + ".gz" * packed)
        good = path.read_bytes()
        path.write_bytes(damage(rng, good))
        dataset, problem = None, ""
        try:
            dataset = load("mnist", folder)
        except idx.DataError as error:
            problem = str(error)
            refused += 1
        if dataset is None:
            assert str(folder) in problem
            assert "\n" not in problem
        elif packed:
            assert_original(dataset)
        else:  # A plain file has no checksum: only its size and its labels can be checked.
            assert [a.shape for a in joined(dataset)] == [a.shape for a in originals()]
            assert max(a.max() for a in joined(dataset)[1::2]) <= 9
        path.write_bytes(good)
    assert refused > 30
    assert_original(load("mnist", folder))
