"""Small image data sets as arrays, and images as sequences.

MNIST, Fashion-MNIST and KMNIST are read from files in any of the usual layouts (`folders.py`) or
through tensorflow-datasets (TFDS), in both cases in the order of the original files. `digits` is
part of scikit-learn. TensorFlow is never imported.

`jaxrnn.training.fit` trains on any arrays and does not need this module. To load another data set
by name, with uint8 images of 28 × 28 pixels and labels 0 to 9, add it to `NAMES` here and to
`_builder_class` in `tfds.py`. Directory names are in `folders.py`, checksums in `idx.py`.

Shapes: N examples, T time, I input features.
"""

import functools
import hashlib
import operator
import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrnn.training.data import folders, idx, tfds
from jaxrnn.training.data.idx import SIDE, DataError, Pair, Split
from jaxrnn.training.files import swept

__all__ = [
    "NAMES",
    "ORDERS",
    "DataError",
    "Dataset",
    "Split",
    "batch_indices",
    "load",
    "load_or_digits",
    "sequences",
]

NAMES = ("mnist", "fashion_mnist", "kmnist", "digits")
ORDERS = ("rows", "columns", "shuffled", "pixels", "permuted")

_DIGITS_TEST, _DIGITS_VALIDATION = 360, 180


class Dataset(NamedTuple):
    """A data set with three splits.

    Attributes:
        name: The name of the published data set with these images, or "other" if there is none.
        train: The training split.
        validation: The validation split.
        test: The test split.
        note: A sentence that says why this is not the requested data set, or "".
    """

    name: str
    train: Split
    validation: Split
    test: Split
    note: str = ""


def load(
    name: str,
    data_dir: str | os.PathLike | None = None,
    validation_size: int = 5000,
    cache_dir: str | os.PathLike | None = None,
) -> Dataset:
    """Loads a data set as uint8 arrays, which must not be modified.

    The validation split is the first `validation_size` examples of the original training file, as
    in TensorFlow 1's `read_data_sets`. The training split is the rest. For MNIST, the splits have
    55,000, 5,000 and 10,000 examples.

    Without `data_dir`, the data set is read from the cache or from `~/tensorflow_datasets`, or it
    is downloaded. A download fails within seconds if there is no network. Decoded arrays are cached
    in `cache_dir` as one verified file.

    The images, labels and their order are compared with those that were published, by checksum. If
    they differ, the data set has another `name` and a `note`. The order is therefore that of the
    original files in every layout. For KMNIST no checksums of the decoded files are known: it is
    only distinguished from the other two.

    `digits` is scikit-learn's 1,797 digits, enlarged and centred as in MNIST, in one fixed shuffled
    order. It has 360 test examples and at most 180 validation examples, even if `validation_size`
    is larger. It needs neither `data_dir` nor a cache.

    Args:
        name: One of `NAMES`.
        data_dir: A directory with the four IDX files (plain or .gz), torchvision's root, a
            directory prepared by TFDS (its data directory or the directory of a version), or one
            with Keras' .npz, Kaggle's .csv or Hugging Face's .parquet files. Nothing is then
            downloaded. None and '' mean no directory.
        validation_size: Number of validation examples. 0 leaves that split empty.
        cache_dir: The directory of the cache. Defaults to `~/.cache/jaxrnn`.

    Returns:
        The data set. Images are uint8 `[N, 28, 28]` and labels uint8 `[N]`.

    Raises:
        DataError: If `name` is unknown, a file is missing or damaged, the download fails, or
            `validation_size` is negative or leaves no training examples.

    Sources:
        LeCun, Cortes and Burges, "The MNIST database of handwritten digits", 1998.
        Xiao, Rasul and Vollgraf, "Fashion-MNIST", arXiv:1708.07747.
        Clanuwat et al., "Deep Learning for Classical Japanese Literature", arXiv:1812.01718.
        Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
    """
    if name not in NAMES:
        raise DataError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    size = operator.index(validation_size)
    if size < 0:
        raise DataError(f"validation_size must not be negative, got {size}")
    found, note = name, ""
    if name == "digits":
        train, test = _digits()
        size = min(size, _DIGITS_VALIDATION)
    else:
        cache = _writable("~/.cache/jaxrnn" if cache_dir is None else cache_dir)
        if data_dir is None or data_dir == "":
            pair, note = _without_folder(name, cache)
        else:
            pair, note = _from_folder(name, Path(data_dir), cache)
        found, note = _identify(name, pair, note)
        train, test = pair
    count = len(train.labels)
    if size >= count:
        raise DataError(
            f"validation_size must be less than {count}, the number of examples in the training "
            f"file, got {size}"
        )
    first, rest = (Split(*(a[part] for a in train)) for part in (slice(size), slice(size, None)))
    return Dataset(found, train=rest, validation=first, test=test, note=note)


def load_or_digits(
    data_dir: str | os.PathLike | None = None,
    validation_size: int = 5000,
    cache_dir: str | os.PathLike | None = None,
) -> Dataset:
    """Loads MNIST, or `digits` if MNIST is neither on this machine nor can be downloaded.

    The `note` of `digits` then gives the reason. See `load` for the arguments.

    Raises:
        DataError: As in `load`, except for a failed download. If `data_dir` is given, `digits` is
            never loaded.
    """
    try:
        return load("mnist", data_dir, validation_size, cache_dir)
    except tfds.Unavailable as error:
        note = f"These are scikit-learn's digits, not MNIST: {error.reason}."
        return load("digits", validation_size=validation_size)._replace(note=note)


def sequences(
    images: np.ndarray,
    order: str = "rows",
    seed: int = 0,
    *,
    delay: int = 0,
    noise: int | Sequence[int] | None = None,
) -> np.ndarray:
    """Converts images to sequences.

    Args:
        images: uint8 `[N, 28, 28]`, or images of any other height and width.
        order: The part of an image that is one time step: with "rows" a row, with "columns" a
            column, with "pixels" a pixel. "shuffled" and "permuted" apply one fixed permutation of
            the pixels to all images, and then read rows or pixels (Le, Jaitly and Hinton,
            arXiv:1504.00941).
        seed: Seed of the permutation in "shuffled" and "permuted". Otherwise unused.
        delay: Number of time steps after the image.
        noise: Seed of the noise in these time steps, drawn uniformly from 0 to 255 for each image.
            With rows, this is the noise-padded task of Chang et al. (arXiv:1902.09689), whose noise
            is normal. Defaults to zeros instead of noise.

    Returns:
        The sequences, uint8 `[N, T, I]`. They are `[N, 28 + delay, 28]` for "rows", "columns" and
        "shuffled", and `[N, 784 + delay, 1]` for "pixels" and "permuted".

    Raises:
        ValueError: If `order` is unknown, or `images` does not have three axes.
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    if images.ndim != 3:
        raise ValueError(f"images must have shape [N, height, width], got {list(images.shape)}")
    read = images.transpose(0, 2, 1) if order == "columns" else images
    if order in ("shuffled", "permuted"):
        pixels = images.reshape(len(images), -1)
        shuffled = np.random.default_rng(seed).permutation(pixels.shape[1])
        read = np.take(pixels, shuffled, axis=1).reshape(images.shape)
    if order in ("pixels", "permuted"):
        read = read.reshape(len(images), -1, 1)
    if delay and noise is None:
        read = np.pad(read, ((0, 0), (0, delay), (0, 0)))
    elif delay:
        shape = (len(read), delay, *read.shape[2:])
        noisy = np.random.default_rng(noise).integers(256, size=shape, dtype=np.uint8)
        read = np.concatenate([read, noisy], axis=1)
    return np.ascontiguousarray(read)


def batch_indices(seed: int, start: int, steps: int, batch_size: int, size: int) -> np.ndarray:
    """Returns the indices of the examples in consecutive batches of an endless stream.

    The stream is a sequence of permutations of all examples, one per epoch. The permutation of
    epoch e depends only on (seed, e). A batch therefore depends only on its number, and not on the
    calls that return the batches before it.

    Args:
        seed: The seed of the permutations, not negative.
        start: Number of the first batch, from 0.
        steps: Number of batches.
        batch_size: Number of examples per batch. A batch may extend over the end of an epoch.
        size: Number of examples in the data set.

    Returns:
        int32 `[steps, batch_size]`, between 0 and size - 1.

    Raises:
        ValueError: If an argument is negative, or `batch_size` or `size` is 0.
    """
    for name, value, least in (
        ("seed", seed, 0),
        ("start", start, 0),
        ("steps", steps, 0),
        ("batch_size", batch_size, 1),
        ("size", size, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    begin, end = start * batch_size, (start + steps) * batch_size
    epochs = range(begin // size, -(-end // size))
    parts = [np.random.default_rng([seed, e]).permutation(size) for e in epochs]
    stream = np.concatenate([np.empty(0, np.int64), *parts])
    begin %= size
    stream = stream[begin : begin + steps * batch_size]
    return stream.reshape(steps, batch_size).astype(np.int32)


def _identify(name: str, pair: Pair, note: str) -> tuple[str, str]:
    """Returns the name under which the images were published, and a note if it is not `name`."""
    found = idx.published(pair)
    if found == name or (found is None and name not in idx.PUBLISHED and not note):
        return name, note
    if found is not None:
        return found, f"The files are named {name}, but their images are those of {found}."
    other = (
        f"By their checksums, these are not the images of {name} as they were published: they are "
        "other images, changed, or in another order."
    )
    return "other", note or other


def _from_folder(name: str, folder: Path, cache: Path | None) -> tuple[Pair, str]:
    """Reads the data set in a directory, and returns it with a note."""
    try:
        folder = folder.expanduser().resolve()
        source = folders.locate(name, folder)
        stats = list(map(os.stat, source.files))
    except DataError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # ValueError if the path has a NUL
        shown = str(folder).replace("\0", "\\0")
        raise DataError(f"{shown}: cannot be read ({idx.one_line(error)})") from error
    for path, each in zip(source.files, stats, strict=True):
        if not (stat.S_ISREG(each.st_mode) or stat.S_ISDIR(each.st_mode)):
            raise DataError(f"{path}: cannot be read (not a regular file)")
    key = hashlib.sha256(b"\0".join(map(os.fsencode, source.files))).hexdigest()
    path = cache and cache / f"{name}-{key[:16]}.npz"
    stamp = np.array([(s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats], np.int64)
    pair = _read_cache(path, stamp)
    if pair is None:
        pair = source.read()
        _write_cache(path, stamp, pair)
    return pair, source.note


def _without_folder(name: str, cache: Path | None) -> tuple[Pair, str]:
    path, source = cache and cache / f"{name}.npz", np.zeros((0, 3), np.int64)
    pair = _read_cache(path, source)
    if pair is None:
        try:
            return _from_folder(name, Path("~/tensorflow_datasets"), cache)
        except DataError:
            pair = tfds.download(name, cache)
        _write_cache(path, source, pair)
    return pair, ""


def _writable(folder: str | os.PathLike) -> Path | None:
    """Returns the directory of the cache, or None if it cannot be written."""
    try:
        path = Path(folder).expanduser()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path if os.access(path, os.W_OK | os.X_OK) else None
    except (OSError, RuntimeError):
        return None


def _read_cache(path: Path | None, source: np.ndarray) -> Pair | None:
    """Returns the cached arrays, or None if they are missing, damaged or from other files."""
    if path is None:
        return None
    try:
        # Each member is read to its end, where zipfile compares its CRC-32.
        with np.load(path, allow_pickle=False) as file:
            if not np.array_equal(file["source"], source):
                return None
            arrays = [file[f"{split}_{field}"] for split in Pair._fields for field in Split._fields]
    # A damaged file may raise almost any error. In each case the source is decoded again.
    except Exception:
        return None
    pair = Pair(Split(*arrays[:2]), Split(*arrays[2:]))
    return pair if all(map(idx.valid, pair)) else None


def _write_cache(path: Path | None, source: np.ndarray, pair: Pair) -> None:
    if path is None:
        return
    temporary = None
    try:
        with swept(path.parent, *tfds.TEMPORARY):
            handle, temporary = tempfile.mkstemp(
                dir=path.parent, prefix=f"{path.stem}-", suffix=".tmp"
            )
            with os.fdopen(handle, "wb") as file:
                arrays = {
                    f"{name}_{field}": array
                    for name, split in pair._asdict().items()
                    for field, array in split._asdict().items()
                }
                np.savez(file, source=source, **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except OSError:
        # The data is already in memory. Without a cache only the next start takes longer.
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


@functools.cache
def _digits() -> Pair:
    """Returns scikit-learn's 8×8 digits at the size of MNIST's: 20×20, centred by mass in 28×28."""
    from scipy import ndimage
    from sklearn.datasets import load_digits

    small, labels = load_digits(return_X_y=True)
    small = small.reshape(-1, 8, 8) * (255 / 16)
    options = {"order": 1, "mode": "grid-constant", "grid_mode": True}
    large: np.ndarray = np.asarray(ndimage.zoom(small, (1, 2.5, 2.5), **options))
    weights = large / large.sum((1, 2), keepdims=True)
    places = np.arange(large.shape[1])
    centres = np.stack([weights.sum(2) @ places, weights.sum(1) @ places], 1)
    corners = np.clip(np.rint(SIDE / 2 - centres), 0, 8).astype(int)
    images = np.zeros((len(large), SIDE, SIDE), np.uint8)
    for image, digit, (top, left) in zip(images, large, corners, strict=True):
        image[top : top + 20, left : left + 20] = np.rint(digit)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = images[order], labels[order].astype(np.uint8)
    return Pair(
        Split(images[_DIGITS_TEST:], labels[_DIGITS_TEST:]),
        Split(images[:_DIGITS_TEST], labels[:_DIGITS_TEST]),
    )
