"""Layouts of other libraries: each yields the original arrays, or an error with the reason."""

import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from idx_files import FILES, assert_original, encoded, forbidden, joined, originals, write, zipped

from jaxrnn.training import data
from jaxrnn.training.data import folders
from jaxrnn.training.data.tfds import _png

IMAGES, LABELS, FEW_IMAGES, FEW_LABELS = originals()
PIXELS = ",".join(f"pixel{number}" for number in range(784))
# Keras' names of the arrays.
ARRAYS = dict(zip(("x_train", "y_train", "x_test", "y_test"), originals(), strict=True))


def write_csv(path, images, labels=None, header=None):
    table = images.reshape(len(images), -1)
    if labels is not None:
        table = np.concatenate([labels[:, None], table], 1)
    lines = [",".join(map(str, row)) for row in table.tolist()]
    path.write_text("\n".join(([header] if header else []) + lines) + "\n")


def write_parquet(path, images, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": _png(image), "path": None} for image in images]
    pyarrow.parquet.write_table(pyarrow.table({"image": cells, "label": labels}), path)


@pytest.mark.parametrize(
    ("name", "below"),
    [
        ("mnist", "MNIST/raw"),
        ("fashion_mnist", "FashionMNIST/raw"),
        ("fashion_mnist", "fashion-mnist"),
        ("kmnist", "KMNIST/raw"),
    ],
)
def test_torchvision_and_keras_keep_idx_files_in_folders_of_their_own(tmp_path, load, name, below):
    write(tmp_path / "root" / below, packed=below == "fashion-mnist")
    assert_original(load(name, tmp_path / "root"))
    assert_original(
        load(name, (tmp_path / "root" / below).parent if "/" in below else tmp_path / "root")
    )
    other = "mnist" if name == "kmnist" else "kmnist"
    with pytest.raises(data.DataError, match=rf"holds {Path(below).parts[0]}, but no {other} as"):
        load(other, tmp_path / "root")


@pytest.mark.parametrize("nested", [False, True])
def test_kaggle_has_idx_files_under_other_names(tmp_path, load, nested):
    for name, array in zip(FILES, originals(), strict=True):
        (tmp_path / name.replace("-idx", ".idx")).write_bytes(encoded(array))
        if nested:
            (tmp_path / name).mkdir()
            (tmp_path / name / name).write_bytes(encoded(array))
    assert_original(load("mnist", tmp_path))
    (tmp_path / FILES[0].replace("-idx", ".idx")).write_bytes(zipped(encoded(IMAGES)))
    assert_original(load("mnist", tmp_path))


def test_keras_npz(tmp_path, load):
    path = tmp_path / "mnist.npz"
    np.savez_compressed(path, **ARRAYS)
    assert_original(load("mnist", tmp_path))
    np.savez(path, **ARRAYS | {"y_train": LABELS.astype(np.int64)})
    assert_original(load("mnist", tmp_path))
    for problem, arrays in {
        "cannot be read .*y_test is not a file": {k: v for k, v in ARRAYS.items() if k != "y_test"},
        r"holds float64 \[40, 28, 28\]": ARRAYS | {"x_train": IMAGES / 255},
        r"holds uint8 \[40, 28, 28\] and uint8 \[39\], ": ARRAYS | {"y_train": LABELS[1:]},
        ".* expected uint8 images .* of 0 to 9": ARRAYS | {"y_test": FEW_LABELS.astype(int) - 10},
        "cannot be read .*pickle": ARRAYS | {"x_test": np.array([None])},
    }.items():
        np.savez(path, **arrays)
        with pytest.raises(data.DataError, match=rf"mnist\.npz: {problem}"):
            load("mnist", tmp_path)
    path.write_bytes(b"PK")
    with pytest.raises(data.DataError, match=r"mnist\.npz: cannot be read"):
        load("mnist", tmp_path)


@pytest.mark.parametrize("header", [None, f"label,{PIXELS}"])
@pytest.mark.parametrize("stem", ["mnist_", "fashion-mnist_", ""])
def test_csv_with_labels(tmp_path, load, header, stem):
    write_csv(tmp_path / f"{stem}train.csv", IMAGES, LABELS, header)
    write_csv(tmp_path / f"{stem}test.csv", FEW_IMAGES, FEW_LABELS, header)
    assert_original(load("fashion_mnist" if "fashion" in stem else "mnist", tmp_path))


def test_a_note_says_that_kaggles_test_set_has_no_labels(tmp_path, load):
    write_csv(tmp_path / "train.csv", IMAGES, LABELS, f"label,{PIXELS}")
    write_csv(tmp_path / "test.csv", FEW_IMAGES, header=PIXELS)
    dataset = load("mnist", tmp_path)
    images, labels, test_images, test_labels = joined(dataset)
    assert len(test_labels) == 6
    np.testing.assert_array_equal(np.concatenate([images, test_images]), IMAGES)
    np.testing.assert_array_equal(np.concatenate([labels, test_labels]), LABELS)
    assert dataset.name == "other"
    assert "test.csv has no labels and cannot be evaluated" in dataset.note
    assert load("mnist", tmp_path).note == dataset.note  # from the cache as well


def test_a_broken_csv_is_named(tmp_path, load):
    write_csv(tmp_path / "train.csv", IMAGES, LABELS)
    with pytest.raises(data.DataError, match=r"test\.csv: cannot be read .*No such file"):
        load("mnist", tmp_path)
    write_csv(tmp_path / "test.csv", FEW_IMAGES, FEW_LABELS)
    lines = (tmp_path / "train.csv").read_text()
    for problem, text in {
        "785 columns|785 to 3|columns changed": lines + "1,2,3\n",
        "could not convert string '0.5' to uint8": "0.5" + lines[1:].replace("\n", "\n0.5", 1),
        "3 columns, expected a label and 784 pixels": "1,2,3\n4,5,6\n",
        "expected uint8 images .* of 0 to 9": "10" + lines[1:],
    }.items():
        (tmp_path / "train.csv").write_text(text)
        with pytest.raises(data.DataError, match=rf"train.csv: .*({problem})") as error:
            load("mnist", tmp_path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("below", ["mnist", "data", "."])
def test_parquet_of_hugging_face(tmp_path, load, below):
    folder = tmp_path / "hub" / below
    write_parquet(tmp_path / "hub" / "unused" / "a", IMAGES[:1], LABELS[:1])
    for part, at in enumerate((slice(30), slice(30, None))):  # in two shards
        write_parquet(folder / f"train-0000{part}-of-00002.parquet", IMAGES[at], LABELS[at])
    with pytest.raises(data.DataError, match=r"train-00000-of-00002\.parquet has no test file"):
        load("mnist", tmp_path / "hub")
    write_parquet(folder / "test-00000-of-00001.parquet", FEW_IMAGES, FEW_LABELS)
    assert_original(load("mnist", tmp_path / "hub"))


def test_files_that_unpack_to_too_much_are_not_read(tmp_path, load, monkeypatch):
    for split, images, labels in (("train", IMAGES, LABELS), ("test", FEW_IMAGES, FEW_LABELS)):
        write_parquet(tmp_path / "arrow" / split / "0000.parquet", images, labels)
    bomb = np.zeros((1000, 28, 28), np.uint8)
    (tmp_path / "keras").mkdir()
    path = tmp_path / "keras" / "mnist.npz"
    np.savez_compressed(path, x_train=bomb, y_train=bomb, x_test=bomb, y_test=bomb)
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(folders, "LARGEST_NPZ", 20_000)
    monkeypatch.setattr(folders, "LARGEST", 10)
    monkeypatch.setattr(np.lib.format, "read_array", forbidden)
    with pytest.raises(data.DataError, match=r"mnist.npz: unpacks to 3,136,\d+ bytes, more than"):
        load("mnist", tmp_path / "keras")
    with pytest.raises(data.DataError, match=r"0000.parquet: 40 examples, more than 10"):
        load("mnist", tmp_path / "arrow")


def test_parquet_that_cannot_be_read_is_named(tmp_path, load, monkeypatch):
    for split, images, labels in (("train", IMAGES, LABELS), ("test", FEW_IMAGES, FEW_LABELS)):
        write_parquet(tmp_path / split / "0000.parquet", images, labels)
    assert_original(load("mnist", tmp_path))
    write_parquet(tmp_path / "test" / "0000.parquet", FEW_IMAGES[:, 1:], FEW_LABELS)
    with pytest.raises(
        data.DataError, match=r"0000.parquet: .* \(images of 27×28, expected 28×28\)"
    ):
        load("mnist", tmp_path)
    (tmp_path / "test" / "0000.parquet").write_bytes(b"PAR1")
    with pytest.raises(data.DataError, match=r"0000\.parquet: cannot be read"):
        load("mnist", tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        data.DataError, match=r"0000\.parquet: to read parquet, pip install pyarrow"
    ):
        load("mnist", tmp_path)
