"""Small image data sets as arrays, and images as sequences.

MNIST, Fashion-MNIST and KMNIST come from files in any of the usual layouts (`folders.py`) or
through tensorflow-datasets (TFDS), in the order of the original files either way; `digits` lies
inside scikit-learn. TensorFlow is never imported.

`jaxrnn.training.fit` (`loop.py`) trains on any arrays, without an entry here. To load another set
of uint8 images of 28 × 28 pixels and labels 0 to 9 by name, add it to `NAMES` here and to
`_builder_class` in `tfds.py`; `folders.py` and `idx.py` hold the folder names and checksums of the
sets that have them.

Shapes: N examples, T time, I input features.
"""

import functools
import hashlib
import operator
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrnn.training.data import folders, idx, tfds
from jaxrnn.training.data.idx import SIDE, DataError, Pair, Split

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
    """Three splits.

    Attributes:
        name: The published set, or "other" if the images are those of none that is known.
        train: The training split.
        validation: The validation split.
        test: The test split.
        note: A sentence on why this is not the set that was asked for, or "".
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
    """Loads a data set as uint8 arrays, to be treated as read-only.

    Validation is the first `validation_size` examples of the original training file, as in
    TensorFlow 1's `read_data_sets`; train is the rest. MNIST: 55,000 / 5,000 / 10,000.

    Without `data_dir` the set is taken from the cache, else from `~/tensorflow_datasets`, else
    downloaded (it fails within seconds where there is no network). What had to be decoded is kept
    in `cache_dir` as one verified file.

    Nothing is claimed of files by their names: if the images, their labels and their order are not
    those that were published, by checksum, the data set has another `name` and a `note`. So also
    its first examples are the original's, whatever the layout. Of KMNIST no checksums of the
    decoded files are known; it is only told from the other two.

    `digits` is scikit-learn's 1,797 digits, enlarged and centred as MNIST's are, in one fixed
    shuffled order: 360 test examples, and at most 180 for validation whatever is asked for. It
    needs neither `data_dir` nor a cache.

    Args:
        name: One of `NAMES`.
        data_dir: A folder with the four IDX files (plain or .gz), torchvision's root, one prepared
            by TFDS (its data directory, or the version folder itself), or one with Keras' .npz,
            Kaggle's .csv or Hugging Face's .parquet files. The network is then never asked. None
            or '' is none.
        validation_size: Number of validation examples; 0 leaves that split empty.
        cache_dir: Where decoded arrays are kept; `~/.cache/jaxrnn` by default.

    Returns:
        The three splits, images uint8 [N, 28, 28] and labels uint8 [N].

    Raises:
        DataError: The name is unknown, a file is missing or broken, the set cannot be downloaded,
            or `validation_size` is negative or leaves nothing to train on.

    Sources:
        LeCun, Cortes and Burges, "The MNIST database of handwritten digits", 1998.
        Xiao, Rasul and Vollgraf, "Fashion-MNIST", arXiv:1708.07747.
        Clanuwat et al., "Deep Learning for Classical Japanese Literature", arXiv:1812.01718.
        Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
    """
    if name not in NAMES:
        raise DataError(f"name: unknown data set {name!r}, expected one of {', '.join(NAMES)}")
    size = operator.index(validation_size)
    if size < 0:
        raise DataError(f"validation_size: must not be negative, got {size}")
    found, note = name, ""
    if name == "digits":
        train, test = _digits()
        size = min(size, _DIGITS_VALIDATION)
    else:
        cache = _writable(Path.home() / ".cache" / "jaxrnn" if cache_dir is None else cache_dir)
        if data_dir is None or data_dir == "":
            pair, note = _without_folder(name, cache)
        else:
            pair, note = _from_folder(name, Path(data_dir), cache)
        found, note = _identify(name, pair, note)
        train, test = pair
    count = len(train.labels)
    if size >= count:
        raise DataError(f"validation_size: {size} leaves nothing of {name}'s {count} to train on")
    first, rest = (Split(*(a[part] for a in train)) for part in (slice(size), slice(size, None)))
    return Dataset(found, train=rest, validation=first, test=test, note=note)


def load_or_digits(
    data_dir: str | os.PathLike | None = None,
    validation_size: int = 5000,
    cache_dir: str | os.PathLike | None = None,
) -> Dataset:
    """Loads MNIST, or `digits` with a `note` that says why MNIST could not be had.

    With `data_dir` given nothing is replaced: errors are errors. Arguments as in `load`.

    Raises:
        DataError: As in `load`, except that a failed search or download ends in `digits`.
    """
    try:
        return load("mnist", data_dir, validation_size, cache_dir)
    except tfds.Unavailable as error:
        note = f"These are scikit-learn's small digits, not MNIST: {error.reason}."
        return load("digits", validation_size=validation_size)._replace(note=note)


def sequences(
    images: np.ndarray, order: str = "rows", seed: int = 0, *, delay: int = 0
) -> np.ndarray:
    """Images as sequences.

    Args:
        images: uint8 [N, 28, 28] (any height and width will do).
        order: `rows` reads a row per step, `columns` a column, `shuffled` rows of an image whose
            pixels were shuffled, once for all images; `pixels` one pixel, and `permuted` one pixel
            in a shuffled order (Le, Jaitly and Hinton, arXiv:1504.00941).
        seed: Draws the order of `shuffled` and `permuted`; unused otherwise.
        delay: Steps of zeros after the image.

    Returns:
        uint8 [N, T, I]: [N, 28 + delay, 28] for rows, columns and shuffled, [N, 784 + delay, 1]
        for pixels and permuted.

    Raises:
        ValueError: `order` is unknown or `images` is not of rank 3.
    """
    if order not in ORDERS:
        raise ValueError(f"order: got {order!r}, expected one of {', '.join(ORDERS)}")
    if images.ndim != 3:
        raise ValueError(f"images: got shape {images.shape}, expected [N, height, width]")
    read = images.transpose(0, 2, 1) if order == "columns" else images
    if order in ("shuffled", "permuted"):
        pixels = images.reshape(len(images), -1)
        shuffled = np.random.default_rng(seed).permutation(pixels.shape[1])
        read = np.take(pixels, shuffled, axis=1).reshape(images.shape)
    if order in ("pixels", "permuted"):
        read = read.reshape(len(images), -1, 1)
    if delay:
        read = np.pad(read, ((0, 0), (0, delay), (0, 0)))
    return np.ascontiguousarray(read)


def batch_indices(seed: int, start: int, steps: int, batch_size: int, size: int) -> np.ndarray:
    """Indices of the examples in the batches `start` to `start + steps` of an endless stream.

    The stream is one permutation of all examples after the other, and the one of epoch e follows
    from (seed, e) alone: a batch depends only on its number, not on how the stream is cut up.

    Args:
        seed: Not negative.
        start: Number of the first batch.
        steps: How many batches.
        batch_size: Examples per batch; a batch may run over the end of an epoch.
        size: Number of examples.

    Returns:
        int32 [steps, batch_size], each in 0 to size - 1.

    Raises:
        ValueError: A negative argument, or a batch or set without examples.
    """
    for name, value, least in (
        ("seed", seed, 0),
        ("start", start, 0),
        ("steps", steps, 0),
        ("batch_size", batch_size, 1),
        ("size", size, 1),
    ):
        if value < least:
            raise ValueError(f"{name}: got {value}, expected at least {least}")
    begin, end = start * batch_size, (start + steps) * batch_size
    epochs = range(begin // size, -(-end // size))
    parts = [np.random.default_rng([seed, e]).permutation(size) for e in epochs]
    stream = np.concatenate([np.empty(0, np.int64), *parts])
    begin %= size
    stream = stream[begin : begin + steps * batch_size]
    return stream.reshape(steps, batch_size).astype(np.int32)


def _identify(name: str, pair: Pair, note: str) -> tuple[str, str]:
    """The name under which the set was published and, if it is not `name`, a note that says so."""
    found = idx.published(pair)
    if found == name or (found is None and name not in idx.PUBLISHED and not note):
        return name, note
    if found is not None:
        return found, f"These files are named as {name}, but their images are those of {found}."
    other = (
        f"These are not {name}'s images as they were published, by their checksums: they are "
        "others, changed, or in another order."
    )
    return "other", note or other


def _from_folder(name: str, folder: Path, cache: Path | None) -> tuple[Pair, str]:
    """The set in a folder, and a note on it."""
    try:
        folder = folder.expanduser().resolve()
        source = folders.locate(name, folder)
        stats = [(s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in map(os.stat, source.files)]
    except (OSError, RuntimeError) as error:
        raise DataError(f"{folder}: cannot be read ({idx.one_line(error)})") from error
    key = hashlib.sha256(b"\0".join(map(os.fsencode, source.files))).hexdigest()
    path = cache and cache / f"{name}-{key[:16]}.npz"
    stamp = np.array(stats, np.int64)
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
    """The cache folder, or None if nothing can be kept there."""
    try:
        path = Path(folder).expanduser()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path if os.access(path, os.W_OK | os.X_OK) else None
    except (OSError, RuntimeError):
        return None


def _read_cache(path: Path | None, source: np.ndarray) -> Pair | None:
    """Cached arrays, or None if they are absent, damaged or made from other files."""
    if path is None:
        return None
    try:
        # Each member is read to its end, where zipfile compares its CRC-32.
        with np.load(path, allow_pickle=False) as file:
            if not np.array_equal(file["source"], source):
                return None
            arrays = [file[f"{split}_{field}"] for split in Pair._fields for field in Split._fields]
    # Damage shows as almost any error; each means the same: decode the source again.
    except Exception:
        return None
    pair = Pair(Split(*arrays[:2]), Split(*arrays[2:]))
    return pair if all(map(idx.valid, pair)) else None


def _write_cache(path: Path | None, source: np.ndarray, pair: Pair) -> None:
    if path is None:
        return
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}-", suffix=".tmp")
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
        # The data is in memory already: a full disk costs the next start time, nothing else.
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


@functools.cache
def _digits() -> Pair:
    """scikit-learn's 8×8 digits, drawn as MNIST draws: 20×20, centred by mass in 28×28."""
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
