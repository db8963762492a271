"""Reads and validates IDX files, the format of MNIST and its relatives.

A data set consists of four files: images and labels for training and for testing. Every problem
with a file raises a `DataError` that names the file.

Shapes: N examples.
"""

import contextlib
import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import NamedTuple

import numpy as np

CLASSES = 10
SIDE = 28
# Images and labels of the training set, then those of the test set.
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_LARGEST_RATIO = 1032  # to which gzip can pack
_MAGIC = {2051: "images", 2049: "labels"}
# The SHA-256 of each unpacked file, in the order of `FILES`.
PUBLISHED = {
    "mnist": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "fashion_mnist": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}


class DataError(ValueError):
    """Data cannot be used. The message is one line that names the file and the problem."""


class Split(NamedTuple):
    """The examples of a split.

    Attributes:
        images: uint8 `[N, 28, 28]`.
        labels: uint8 `[N]`, from 0 to 9.
    """

    images: np.ndarray
    labels: np.ndarray


class Pair(NamedTuple):
    """A data set as it was published.

    Attributes:
        train: The training split.
        test: The test split.
    """

    train: Split
    test: Split


def read(files: list[Path]) -> Pair:
    """Reads and validates the four files of a data set, in the order of `FILES`.

    Raises:
        DataError: If a file cannot be read or is not valid.
    """
    pair = Pair(read_split(*files[:2]), read_split(*files[2:]))
    train, test = (len(split.labels) for split in pair)
    if train < test:
        raise DataError(
            f"{files[0]}: {train} training images for {test} test images, are the files swapped?"
        )
    return pair


def read_split(images_path: Path, labels_path: Path) -> Split:
    """Reads and validates the images and the labels of one split.

    Raises:
        DataError: If a file cannot be read or is not valid.
    """
    split = Split(_read_idx(images_path, "images"), _read_idx(labels_path, "labels"))
    images, labels = (len(array) for array in split)
    if images != labels:
        raise DataError(f"{labels_path}: {labels} labels for {images} images in {images_path.name}")
    return split


def _read_idx(path: Path, kind: str) -> np.ndarray:
    """Reads and validates an IDX file, plain or gzipped: uint8 `[N, 28, 28]` or `[N]`."""
    words = 4 if kind == "images" else 2
    try:
        with _unpacked(path) as file:
            header = file.read(4 * words)
            if len(header) < 4 * words:
                raise DataError(f"{path}: truncated, {len(header)} bytes are less than a header")
            shape = _shape(path, kind, header)
            size, most = math.prod(shape), _LARGEST_RATIO * path.stat().st_size
            if size > most:
                raise DataError(
                    f"{path}: truncated, at most {most} bytes of data where its header says {size}"
                )
            # The header bounds what is read, since a few bytes can unpack to any number of them.
            raw = file.read(size + 1)
    except (OSError, EOFError, zlib.error, struct.error, MemoryError, OverflowError) as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)})") from error
    if len(raw) != size:
        problem = f"truncated, {len(raw)}" if len(raw) < size else f"too long, more than {size}"
        raise DataError(f"{path}: {problem} bytes of data where its header says {size}")
    array = np.frombuffer(raw, np.uint8).reshape(shape)
    if not array.size:
        raise DataError(f"{path}: holds no {kind}")
    if kind == "labels" and array.max() >= CLASSES:
        at = int(np.argmax(array >= CLASSES))
        raise DataError(f"{path}: label {array[at]} at position {at}, expected 0 to 9")
    return array


@contextlib.contextmanager
def _unpacked(path: Path) -> Iterator[BufferedIOBase]:
    """Opens a regular file, and unpacks it if it is gzipped.

    Whether it is gzipped does not follow from its name, because some browsers unpack a .gz file and
    keep its name.
    """
    if not path.is_file():  # a pipe would wait for a writer, and a device may never end
        raise OSError("not a regular file" if path.exists() else "no such file")
    with path.open("rb") as file:
        if file.peek(2).startswith(b"\x1f\x8b"):
            with gzip.open(file) as unpacked:
                yield unpacked
        else:
            yield file


def _shape(path: Path, kind: str, header: bytes) -> list[int]:
    """Returns the shape in the header of an IDX file."""
    magic, *shape = np.frombuffer(header, ">u4").tolist()
    if _MAGIC.get(magic) != kind:
        what = f"holds {_MAGIC[magic]}, " if magic in _MAGIC else f"wrong magic number {magic}, "
        raise DataError(f"{path}: {what}expected an IDX file of {kind}")
    if kind == "images" and shape[1:] != [SIDE, SIDE]:
        raise DataError(f"{path}: images of {shape[1]}×{shape[2]}, expected {SIDE}×{SIDE}")
    return shape


def valid(split: Split) -> bool:
    """Returns whether the arrays have the shapes, dtypes and values of a `Split`, not empty."""
    images, labels = split
    return bool(
        images.dtype == labels.dtype == np.uint8
        and images.shape == (*labels.shape, SIDE, SIDE)
        and labels.size > 0
        and labels.max() < CLASSES
    )


def published(pair: Pair) -> str | None:
    """Returns the name in `PUBLISHED` of the data set with exactly these arrays, or None."""
    found = tuple(checksum(array) for split in pair for array in split)
    return next((name for name, sums in PUBLISHED.items() if sums == found), None)


def checksum(array: np.ndarray) -> str:
    """Returns the SHA-256 of the IDX file of an array, uint8 `[N, 28, 28]` or `[N]`."""
    magic = 2051 if array.ndim == 3 else 2049
    found = hashlib.sha256(struct.pack(f">{1 + array.ndim}I", magic, *array.shape))
    found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def one_line(error: BaseException) -> str:
    """Returns the message of an error in one line of at most 300 characters."""
    return " ".join(str(error).strip("<>").split())[:300] or type(error).__name__
