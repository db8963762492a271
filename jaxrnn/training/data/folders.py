"""The layouts in which other libraries store MNIST and its relatives, and how to read them.

Every problem with a file raises a `DataError` that names the file. pyarrow is imported only to read
parquet files, Pillow only to decode their images.

Shapes: N examples.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrnn.training.data import idx, tfds
from jaxrnn.training.data.idx import CLASSES, FILES, SIDE, DataError, Pair, Split, one_line

LARGEST = 1_000_000  # number of examples in a parquet file
LARGEST_NPZ = 1 << 30  # bytes of a .npz file when it is unpacked; the arrays of MNIST have 55 MB
# Subdirectories in torchvision's root and in Keras' directory of data sets.
_OWN_FOLDERS = {
    "mnist": ("MNIST/raw",),
    "fashion_mnist": ("FashionMNIST/raw", "fashion-mnist"),
    "kmnist": ("KMNIST/raw",),
}


class Source(NamedTuple):
    """A data set that was found in a directory.

    Attributes:
        files: The files that are read.
        read: A function that reads and validates the data set.
        note: A sentence that says how it differs from the published data set, or "".
    """

    files: list[Path]
    read: Callable[[], Pair]
    note: str = ""


def locate(name: str, folder: Path) -> Source:
    """Finds a data set in a directory, in the first of `LAYOUTS` that fits.

    Raises:
        DataError: If `folder` is not a directory, has none of the layouts, or lacks a file.
    """
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {problem}")
    for layout in LAYOUTS.values():
        if (source := layout(name, folder)) is not None:
            return source
    entries = sorted(path.name for path in folder.iterdir())
    found = ", ".join(entries[:5]) + ", ..." * (len(entries) > 5)
    known = "; ".join(LAYOUTS).replace("NAME", name)
    raise DataError(f"{folder}: holds {found or 'nothing'}, but no {name} as any of: {known}")


def _idx(name: str, folder: Path) -> Source | None:
    for place in (folder, *(folder / own for own in _OWN_FOLDERS[name]), folder / "raw"):
        found = [next(filter(Path.exists, _spellings(place, file)), None) for file in FILES]
        files = [path for path in found if path]
        if len(files) == len(FILES):
            return Source(files, partial(idx.read, files))
        if files:
            raise DataError(f"{place}: {FILES[found.index(None)]} (or .gz) is missing")
    return None


def _spellings(place: Path, file: str) -> list[Path]:
    """Returns the possible paths of an IDX file. On Kaggle it is in a directory of its own name."""
    dotted = file.replace("-idx", ".idx")
    return [place / each for each in (f"{file}/{file}", file, f"{file}.gz", dotted, f"{dotted}.gz")]


def _tfds(name: str, folder: Path) -> Source | None:
    for version in (folder, *sorted(folder.glob(f"{name}/*"), reverse=True)):
        if (version / "dataset_info.json").is_file():
            return Source(sorted(version.iterdir()), partial(tfds.read, name, version))
    return None


def _npz(name: str, folder: Path) -> Source | None:
    path = folder / f"{name}.npz"
    return Source([path], partial(_read_npz, path)) if path.is_file() else None


def _read_npz(path: Path) -> Pair:
    with _named(path), np.load(path, allow_pickle=False) as file:
        size = sum(member.file_size for member in file.zip.infolist())
        if size > LARGEST_NPZ:
            raise DataError(f"{path}: unpacks to {size:,} bytes, more than {LARGEST_NPZ:,}")
        splits = [(file[f"x_{split}"], file[f"y_{split}"]) for split in Pair._fields]
    return Pair(*(_split(path, *split) for split in splits))


def _csv(name: str, folder: Path) -> Source | None:
    for prefix in (f"{name}_", f"{name.replace('_', '-')}_", ""):
        train, test = (folder / f"{prefix}{split}.csv" for split in Pair._fields)
        if not train.is_file():
            continue
        with _named(test), open(test, encoding="utf-8-sig") as file:
            columns = file.readline().count(",") + 1
        if columns != SIDE**2:
            return Source([train, test], partial(_both, _read_csv, train, test))
        note = (
            f"{test.name} has no labels and cannot be evaluated. The test set is the last sixth of "
            f"{train.name}."
        )
        return Source([train], partial(_read_labelled, train), note)
    return None


def _read_labelled(path: Path) -> Pair:
    """Splits the training set of Kaggle's digit-recognizer, whose test set has no labels."""
    whole = _read_csv(path)
    rest = len(whole.labels) - len(whole.labels) // 6
    return Pair(Split(*(a[:rest] for a in whole)), Split(*(a[rest:] for a in whole)))


def _read_csv(path: Path) -> Split:
    """Reads lines of a label and 784 pixels, with or without a header."""
    with _named(path):
        with open(path, encoding="utf-8-sig") as file:
            header = not file.readline()[:1].isdigit()
        with warnings.catch_warnings():
            # NumPy only warns of a file without lines, and older versions of a fraction, which they
            # truncate.
            warnings.simplefilter("error", UserWarning)
            warnings.simplefilter("error", DeprecationWarning)
            table = np.loadtxt(
                path, np.uint8, delimiter=",", skiprows=int(header), ndmin=2, encoding="utf-8-sig"
            )
    if table.shape[1] != 1 + SIDE**2:
        raise DataError(f"{path}: {table.shape[1]} columns, expected a label and {SIDE**2} pixels")
    return _split(path, table[:, 1:].reshape(-1, SIDE, SIDE), table[:, 0])


def _parquet(name: str, folder: Path) -> Source | None:
    for place in (folder, folder / name, folder / "data"):
        train, test = (
            sorted([*place.glob(f"{split}-*.parquet"), *place.glob(f"{split}/*.parquet")])
            for split in Pair._fields
        )
        if train and test:
            return Source([*train, *test], partial(_both, _read_parquet, train, test))
        if train:
            raise DataError(f"{place}: {train[0].name} has no test file beside it")
    return None


def _read_parquet(files: list[Path]) -> Split:
    """Reads the columns `image`, a struct with the `bytes` of a PNG, and `label`."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{files[0]}: to read parquet, pip install pyarrow") from None

    images, labels = [], []
    for path in files:
        with _named(path):
            # A value that repeats takes no space in the file.
            if (rows := parquet.read_metadata(path).num_rows) > LARGEST:
                raise DataError(f"{path}: {rows:,} examples, more than {LARGEST:,}")
            table = parquet.read_table(path, columns=["image", "label"])
            images += [tfds.decode(cell["bytes"]) for cell in table["image"].to_pylist()]
            labels += table["label"].to_pylist()
    with _named(files[0]):
        return _split(files[0], np.stack(images), np.array(labels))


def _both(read: Callable[[Any], Split], train: Any, test: Any) -> Pair:
    return Pair(read(train), read(test))


def _split(path: Path, images: np.ndarray, labels: np.ndarray) -> Split:
    """Validates the arrays of a split. Labels may have any integer dtype."""
    integers = labels.dtype.kind in "iu" and labels.size > 0
    if integers and labels.min() >= 0 and labels.max() < CLASSES:
        labels = labels.astype(np.uint8)
    split = Split(images, labels)
    if not idx.valid(split):
        found = " and ".join(f"{array.dtype} {list(array.shape)}" for array in split)
        raise DataError(
            f"{path}: holds {found}, expected uint8 images [N, {SIDE}, {SIDE}] and labels [N] of "
            f"0 to {CLASSES - 1}"
        )
    return split


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Converts every error of a reader (zipfile, NumPy, Arrow) to a `DataError` with the file."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: cannot be read (not a regular file)")
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)})") from error


# The layouts of a data set in a directory, and the functions that look for them, in this order.
LAYOUTS: dict[str, Callable[[str, Path], Source | None]] = {
    f"four IDX files ({FILES[0]}[.gz] or {FILES[0].replace('-idx', '.idx')}, ...), also below "
    "torchvision's root": _idx,
    "a set prepared by TFDS (NAME/3.0.1)": _tfds,
    "Keras' NAME.npz": _npz,
    "Kaggle's NAME_train.csv and NAME_test.csv, or train.csv and test.csv": _csv,
    "Hugging Face's train-*.parquet and test-*.parquet": _parquet,
}
