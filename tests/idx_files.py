"""Small sets of images: written as IDX files, damaged, and compared with the loaded arrays."""

import functools
import gzip
import struct

import numpy as np

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)


def encoded(array, magic=None):
    magic = magic or {3: 2051, 1: 2049}[array.ndim]
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


def forbidden(path, *_, **__):
    """Replaces a method of Path by one that fails for lack of permission."""
    raise PermissionError(13, "Permission denied", str(path))


def zipped(raw):
    return gzip.compress(raw, mtime=0)


@functools.cache
def originals():
    rng = np.random.default_rng(7)
    arrays = []
    for n in (40, 16):
        arrays.append(rng.integers(0, 256, (n, 28, 28), dtype=np.uint8))
        arrays.append(rng.integers(0, 10, n, dtype=np.uint8))
    return arrays


def write(folder, packed=True):
    """Writes the four small files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(FILES, originals(), strict=True):
        raw = encoded(array)
        (folder / (name + ".gz" * packed)).write_bytes(zipped(raw) if packed else raw)
    return folder


def joined(dataset):
    """Returns the four original arrays, joined from the three splits."""
    train = [np.concatenate(pair) for pair in zip(dataset.validation, dataset.train, strict=True)]
    return [*train, *dataset.test]


def assert_original(dataset):
    for got, expected in zip(joined(dataset), originals(), strict=True):
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, expected)


def damage(rng, raw):
    at = int(rng.integers(len(raw)))
    kind = rng.integers(4)
    if kind == 0:
        return raw[:at]
    if kind == 1:
        return raw + rng.bytes(int(rng.integers(1, 20)))
    flipped = bytearray(raw)
    flipped[at if kind == 2 else at % 32] ^= 1 << int(rng.integers(8))
    return bytes(flipped)
