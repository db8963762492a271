"""Data sets: loading, the cache, splits, sequences and batches."""

import hashlib
import os
import stat
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from idx_files import (
    FILES,
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
)

from jaxrnn.training import data
from jaxrnn.training.data import idx

pytestmark = pytest.mark.usefixtures("home")
IMAGES, LABELS, _, FEW_LABELS = originals()


def test_a_missing_or_unreadable_folder_is_named(tmp_path, load, monkeypatch):
    folder = write(tmp_path / "d")
    with pytest.raises(data.DataError, match="nowhere: no such folder"):
        load("mnist", tmp_path / "nowhere")
    with pytest.raises(data.DataError, match="is not a folder"):
        load("mnist", folder / f"{TRAIN_IMAGES}.gz")
    with pytest.raises(
        data.DataError, match="holds cache, d, home, but no mnist as any of: four IDX files"
    ):
        load("mnist", tmp_path)
    (folder / f"{TEST_LABELS}.gz").rename(folder / "aside")
    with pytest.raises(data.DataError, match=rf"{TEST_LABELS} \(or .gz\) is missing"):
        load("mnist", folder)

    monkeypatch.setattr(Path, "is_dir", forbidden)
    with pytest.raises(data.DataError, match=f"{folder}: cannot be read .*denied"):
        load("mnist", folder)


def test_bad_arguments_are_named(tmp_path, load):
    folder = write(tmp_path / "d")
    with pytest.raises(data.DataError, match=r"name must be one of mnist, .*, got 'cifar'"):
        load("cifar")
    for name in ("mnist", "digits"):
        with pytest.raises(data.DataError, match="validation_size must not be negative, got -1"):
            load(name, folder, validation_size=-1)
    with pytest.raises(data.DataError, match="validation_size must be less than 40, the number"):
        load("mnist", folder, validation_size=40)


def forbid_decoding(monkeypatch):
    def fail(*args):
        raise AssertionError("the source was read although the cache holds it")

    monkeypatch.setattr(idx, "_read_idx", fail)


def cached(tmp_path):
    (path,) = (tmp_path / "cache").glob("*.npz")
    return path


def test_the_second_load_reads_only_the_cache(tmp_path, load, monkeypatch):
    folder = write(tmp_path / "d")
    first = load("mnist", folder)
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    assert stat.S_IMODE(cached(tmp_path).stat().st_mode) == 0o600
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npz"]
    forbid_decoding(monkeypatch)
    assert_original(load("mnist", folder))
    monkeypatch.chdir(tmp_path)
    assert_original(load("mnist", "d"))
    with pytest.raises(AssertionError):  # The cache must not serve another name.
        load("kmnist", folder)
    assert_original(first)


def test_a_replaced_file_is_never_served_from_the_cache(tmp_path, load):
    path = write(tmp_path / "d", packed=False) / TEST_LABELS
    load("mnist", tmp_path / "d")
    before = path.stat()
    changed = (FEW_LABELS + 1) % 10
    path.write_bytes(encoded(changed))  # The same size, and below the same modification time.
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    np.testing.assert_array_equal(load("mnist", tmp_path / "d").test.labels, changed)


def test_a_damaged_cache_is_rebuilt(tmp_path, load, monkeypatch):
    folder = write(tmp_path / "d")
    load("mnist", folder)
    path = cached(tmp_path)
    good = path.read_bytes()
    rng = np.random.default_rng(5)
    for _ in range(60):
        path.write_bytes(damage(rng, good))
        assert_original(load("mnist", folder))
    bad = data.Split(IMAGES, LABELS + 10)
    with np.load(BytesIO(good)) as file:
        source = file["source"]
    data._write_cache(path, source, data.Pair(bad, bad))
    assert_original(load("mnist", folder))
    forbid_decoding(monkeypatch)
    assert_original(load("mnist", folder))


def test_an_unusable_cache_folder_does_no_harm(tmp_path, load, monkeypatch):
    folder = write(tmp_path / "d")
    (tmp_path / "file").write_text("in the way")
    assert_original(load("mnist", folder, cache_dir=tmp_path / "file" / "cache"))

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data.os, "fsync", full)
    assert_original(load("mnist", folder))
    assert list((tmp_path / "cache").iterdir()) == []


def test_load_or_digits_replaces_nothing_that_was_named(tmp_path, no_network):
    dataset = data.load_or_digits(validation_size=20, cache_dir=tmp_path / "cache")
    assert dataset.name == "digits"
    assert len(dataset.validation.labels) == 20
    assert "no route to host" in dataset.note
    assert "--" not in dataset.note
    with pytest.raises(data.DataError, match="no such folder"):
        data.load_or_digits(tmp_path / "nowhere", cache_dir=tmp_path / "cache")
    with pytest.raises(data.DataError, match="validation_size"):
        data.load_or_digits(validation_size=-1, cache_dir=tmp_path / "cache")
    dataset = data.load_or_digits(write(tmp_path / "d"), 5, tmp_path / "cache")
    assert dataset.name == "other"
    assert_original(dataset)
    assert data.load_or_digits("", 20, tmp_path / "cache").name == "digits"  # '' is unset


def test_a_set_is_named_by_its_checksums(tmp_path, load, monkeypatch):
    folder = write(tmp_path / "d", packed=False)
    dataset = load("mnist", folder)
    assert dataset.name == "other"
    assert "not the images of mnist as they were published" in dataset.note
    assert "\n" not in dataset.note
    dataset = load("kmnist", folder)  # no checksums of its decoded files are known
    assert (dataset.name, dataset.note) == ("kmnist", "")
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setitem(idx.PUBLISHED, "fashion_mnist", tuple(sums[file] for file in FILES))
    dataset = load("fashion_mnist", folder)
    assert (dataset.name, dataset.note) == ("fashion_mnist", "")
    for name in ("mnist", "kmnist"):
        dataset = load(name, folder)
        assert dataset.name == "fashion_mnist"
        assert f"named {name}, but their images are those of fashion_mnist" in dataset.note
    (folder / TRAIN_LABELS).write_bytes(encoded(LABELS[::-1]))
    assert load("fashion_mnist", folder).name == "other"


def test_digits_look_like_mnist():
    dataset = data.load("digits")
    sizes = [len(split.labels) for split in (dataset.train, dataset.validation, dataset.test)]
    assert sizes == [1257, 180, 360]
    images, labels = (np.concatenate(pair) for pair in zip(*dataset[1:4], strict=True))
    assert images.dtype == labels.dtype == np.uint8
    assert images.shape == (1797, 28, 28)
    assert len(np.unique(images, axis=0)) == 1797
    assert images.min() == 0
    assert images.max() == 255
    for split in dataset[1:4]:
        assert set(split.labels) == set(range(10))
    mass = images.sum((1, 2))
    for axis in (1, 2):
        centre = images.sum(axis) @ np.arange(28) / mass
        np.testing.assert_allclose(centre, 14, atol=0.55)
    # Images and labels belong together: the nearest class mean recognises most test digits.
    train, test = dataset.train, dataset.test
    means = np.stack([train.images[train.labels == k].mean(0) for k in range(10)])
    distances = ((test.images[:, None] - means) ** 2).sum((2, 3))
    assert (distances.argmin(1) == test.labels).mean() > 0.85


def test_digits_are_the_same_every_time():
    small, large = data.load("digits", validation_size=7), data.load("digits", data_dir="ignored")
    assert len(small.validation.labels) == 7
    for first, second in zip(joined(small), joined(large), strict=True):
        np.testing.assert_array_equal(first, second)


def test_sequences_follow_their_definitions():
    images = originals()[0]
    rows, columns, pixels = (data.sequences(images, x) for x in ("rows", "columns", "pixels"))
    assert rows.shape == columns.shape == (40, 28, 28)
    assert pixels.shape == (40, 784, 1)
    n, y, x = 3, 5, 21
    assert rows[n, y, x] == columns[n, x, y] == pixels[n, 28 * y + x, 0] == images[n, y, x]
    np.testing.assert_array_equal(columns, images.swapaxes(1, 2))
    np.testing.assert_array_equal(pixels.reshape(images.shape), images)
    permuted = data.sequences(images, "permuted", seed=4)
    assert {a.dtype for a in (rows, columns, pixels, permuted)} == {np.dtype(np.uint8)}
    # The same permutation for every image of every data set.
    marks = np.arange(784, dtype=np.uint16).reshape(1, 28, 28)
    places = data.sequences(marks, "permuted", seed=4)[0, :, 0]
    assert sorted(places) == list(range(784))
    assert not np.array_equal(places, np.arange(784))
    np.testing.assert_array_equal(permuted, pixels[:, places])
    assert permuted.flags.c_contiguous
    assert not np.array_equal(places, data.sequences(marks, "permuted", seed=5)[0, :, 0])
    shuffled = data.sequences(images, "shuffled", seed=4)
    np.testing.assert_array_equal(shuffled, permuted.reshape(images.shape))
    noisy = data.sequences(images, "columns", delay=2, noise=[1, 2])
    np.testing.assert_array_equal(noisy[:, :-2], columns)
    assert noisy.dtype == np.uint8
    assert noisy[:, -2:].std() > 50
    again, other = (data.sequences(images, delay=2, noise=seed) for seed in ([1, 2], 3))
    np.testing.assert_array_equal(again[:, -2:], noisy[:, -2:])
    assert (other[:, -2:] != noisy[:, -2:]).any()
    late = data.sequences(images, "columns", delay=2)
    np.testing.assert_array_equal(late[:, :28], columns)
    assert late.shape == (40, 30, 28)
    assert not late[:, 28:].any()
    with pytest.raises(ValueError, match=r"order must be .*, got 'diagonal'"):
        data.sequences(images, "diagonal")
    with pytest.raises(ValueError, match=r"images must have shape \[N, height, width\], got \["):
        data.sequences(images[0])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_batches_do_not_depend_on_how_the_stream_is_cut(draw):
    seed, size = draw.draw(st.integers(0, 2**32)), draw.draw(st.integers(1, 50))
    batch, steps = draw.draw(st.integers(1, 70)), draw.draw(st.integers(0, 12))
    start = draw.draw(st.integers(0, 30))
    cut = draw.draw(st.integers(0, steps))
    whole = data.batch_indices(seed, 0, start + steps, batch, size)
    parts = [
        data.batch_indices(seed, start, cut, batch, size),
        data.batch_indices(seed, start + cut, steps - cut, batch, size),
    ]
    assert whole.dtype == np.int32
    assert whole.shape == (start + steps, batch)
    np.testing.assert_array_equal(np.concatenate(parts), whole[start:])
    stream = whole.ravel()
    for epoch in range(len(stream) // size):
        part = stream[epoch * size : (epoch + 1) * size]
        expected = np.random.default_rng([seed, epoch]).permutation(size)
        assert sorted(part) == list(range(size))
        np.testing.assert_array_equal(part, expected)


def test_batches_differ_by_seed_and_epoch_and_are_cheap(monkeypatch):
    first, second = data.batch_indices(0, 0, 20, 50, 500).reshape(2, 500)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, data.batch_indices(1, 0, 10, 50, 500).ravel())
    drawn, default_rng = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda s: drawn.append(s) or default_rng(s))
    data.batch_indices(0, 100_050, 100, 100, 55_000)
    assert drawn == [[0, 181], [0, 182]]  # only the two epochs of the batch, however late they are


@pytest.mark.parametrize("name", ["seed", "start", "steps", "batch_size", "size"])
def test_batches_refuse_impossible_numbers(name):
    arguments = {"seed": 0, "start": 0, "steps": 1, "batch_size": 1, "size": 1}
    with pytest.raises(ValueError, match=rf"{name} must be at least \d, got -1"):
        data.batch_indices(**(arguments | {name: -1}))


def test_real_mnist(tmp_path, monkeypatch):
    folder = os.environ.get("JAXRNN_DATA_DIR")
    if not folder:
        pytest.skip("set JAXRNN_DATA_DIR to a folder with the real MNIST to run this test")
    dataset = data.load("mnist", folder, cache_dir=tmp_path / "cache")
    assert (dataset.name, dataset.note) == ("mnist", "")
    sizes = [len(split.labels) for split in (dataset.train, dataset.validation, dataset.test)]
    assert sizes == [55_000, 5_000, 10_000]
    # The first labels of each original file and the mean of all training pixels are known.
    assert dataset.validation.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert dataset.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert round(joined(dataset)[0].mean() / 255, 4) == 0.1307
    forbid_decoding(monkeypatch)
    again = data.load("mnist", folder, cache_dir=tmp_path / "cache")
    for first, second in zip(joined(dataset), joined(again), strict=True):
        np.testing.assert_array_equal(first, second)
