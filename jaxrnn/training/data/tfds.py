"""tensorflow-datasets (TFDS) without TensorFlow: reads prepared data sets and downloads others.

TFDS has the URLs and the checksums of the files. Its readers, its image encoder and its file access
import TensorFlow and are replaced here. Examples are in the order of the original files.
"""

import itertools
import queue
import struct
import tempfile
import threading
import urllib.request
import warnings
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxrnn.training.data.idx import (
    FILES,
    SIDE,
    DataError,
    Pair,
    Split,
    one_line,
    read_split,
    valid,
)
from jaxrnn.training.files import swept

_STALL_SECONDS = 5.0
_LARGEST = 1 << 26  # bytes of a downloaded file; the largest one has 26 MB
_MOST_EXAMPLES = 1_000_000  # of a split; the data sets have 60,000
_PREPARE = "jaxrnn-prepare-"  # the start of the names of temporary directories
# Temporary files and directories in the cache.
TEMPORARY = ("*.tmp", f"{_PREPARE}*")


class Unavailable(DataError):
    """The data set is not on this machine and cannot be downloaded.

    Attributes:
        reason: The reason, without the advice that the message adds.
    """

    def __init__(self, reason: str):
        super().__init__(
            f"{reason}; pass a directory that holds it as data_dir, "
            "or load 'digits', which needs no download"
        )
        self.reason = reason


def read(name: str, folder: Path) -> Pair:
    """Reads a prepared data set, array_record or tfrecord, in the order of the original files.

    Raises:
        DataError: If it is another data set, or cannot be read.
    """
    try:
        from etils import epath
        from tensorflow_datasets.core import dataset_info, naming, splits

        # TFDS' own builder of a directory imports the modules that features.json names.
        info = dataset_info.read_proto_from_builder_dir(folder)
        if info.name != name:
            raise DataError(f"{folder}: holds {info.name}, expected {name}")
        template = naming.ShardedFileTemplate(
            data_dir=epath.Path(folder),
            dataset_name=name,
            filetype_suffix=info.file_format or "tfrecord",
        )
        found = splits.SplitDict.from_proto(info.splits, template)
        pair = Pair(*(_read_examples(folder, found[split]) for split in Pair._fields))
    except DataError:
        raise
    # TFDS, array_record, protobuf and Pillow each have their own errors for a damaged file.
    except Exception as error:
        raise DataError(f"{folder}: not a readable TFDS data set ({one_line(error)})") from error
    if not all(map(valid, pair)):
        raise DataError(f"{folder}: holds other data than 28×28 images with labels 0 to 9")
    return pair


def _read_examples(folder: Path, info: Any) -> Split:
    from tensorflow_datasets.core.hashing import Hasher
    from tensorflow_datasets.proto import tf_example_pb2

    if info.num_examples > _MOST_EXAMPLES:
        raise DataError(
            f"{folder}: holds {info.num_examples} examples, expected at most {_MOST_EXAMPLES}"
        )
    paths = [Path(path) for path in info.filepaths]
    for path in paths:
        if path.parent != folder:
            raise DataError(f"{folder}: names {path}, which is not in it")
    images = np.empty((info.num_examples, SIDE, SIDE), np.uint8)
    labels = np.empty(info.num_examples, np.uint8)
    # TFDS sorts the examples by the hash of their number in the original file.
    order = sorted(range(info.num_examples), key=Hasher(info.name).hash_key)
    records = itertools.chain.from_iterable(map(_records, paths))
    for at, record in zip(order, records, strict=True):
        example = tf_example_pb2.Example.FromString(record)  # pyright: ignore[reportAttributeAccessIssue]
        feature = example.features.feature
        images[at] = decode(feature["image"].bytes_list.value[0])
        labels[at] = feature["label"].int64_list.value[0]
    return Split(images, labels)


def decode(raw: bytes) -> np.ndarray:
    """Decodes a greyscale PNG, uint8 [28, 28].

    Raises:
        ValueError: If it has another size, which is found before it is decoded, or another mode.
        OSError: If it is not a PNG.
    """
    from PIL import Image

    with warnings.catch_warnings():
        # Its size is compared below.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        opened = Image.open(BytesIO(raw), formats=["PNG"])
    with opened as image:
        if image.size != (SIDE, SIDE):
            width, height = image.size
            raise ValueError(f"images of {height}×{width}, expected {SIDE}×{SIDE}")
        return np.asarray(image).reshape(SIDE, SIDE)


def _records(path: Path) -> Iterator[bytes]:
    """Yields the records of an array_record or a tfrecord file."""
    if ".array_record" in path.name:
        from array_record.python.array_record_module import ArrayRecordReader

        yield from ArrayRecordReader(str(path)).read_all()
        return
    raw, at = path.read_bytes(), 0
    while at < len(raw):
        # A record is its length (8 bytes), that length's checksum (4), the data, its checksum (4).
        (length,) = struct.unpack_from("<Q", raw, at)
        if at + length + 16 > len(raw):
            raise DataError(f"{path}: truncated")
        yield raw[at + 12 : at + 12 + length]
        at += length + 16


def download(name: str, cache: Path | None) -> Pair:
    """Downloads a data set, lets TFDS check and prepare it in a temporary directory, and reads it.

    The directory is in the cache, or in the system's directory of temporary files if there is no
    cache. Directories of killed processes are removed.

    Raises:
        Unavailable: If the download or the preparation fails.
    """
    try:
        import tensorflow_datasets as tfds

        builder_class = _builder_class(name)
        place = Path(tempfile.gettempdir()) if cache is None else cache
        with (
            swept(place, f"{_PREPARE}*"),
            tempfile.TemporaryDirectory(
                dir=place, prefix=_PREPARE, ignore_cleanup_errors=True
            ) as scratch,
        ):
            _fetch(builder_class.urls(), Path(scratch, "files"))
            builder = builder_class(data_dir=scratch, file_format="array_record")
            config = tfds.download.DownloadConfig(
                manual_dir=Path(scratch, "files"), try_download_gcs=False
            )
            builder.download_and_prepare(
                download_dir=Path(scratch, "downloads"), download_config=config
            )
            # download_and_prepare does not always raise an error if the preparation is incomplete.
            if not builder.is_prepared():
                raise DataError("TFDS did not prepare it")
            return read(name, Path(builder.data_dir))
    except Exception as error:
        raise Unavailable(f"{name} could not be downloaded ({one_line(error)})") from error


def _builder_class(name: str) -> Any:
    """Returns TFDS' builder without its three uses of TensorFlow: files, gunzip, PNG."""
    from tensorflow_datasets.image_classification import mnist

    classes: dict[str, Any] = {c.name: c for c in (mnist.MNIST, mnist.FashionMNIST, mnist.KMNIST)}
    base = classes[name]

    class Builder(base, skip_registration=True):  # pyright: ignore
        name = base.name
        # TFDS merges these into its checksums of all data sets, which already include this one's.
        url_infos: ClassVar = {}

        def _info(self):
            info = super()._info()
            # It creates a directory in the system's directory of temporary files, and leaves it.
            info.initialize_from_bucket = lambda: None
            return info

        @classmethod
        def urls(cls):
            return [f"{cls.URL}{file}.gz" for file in FILES]

        def _split_generators(self, dl_manager):
            paths = [Path(path) for path in dl_manager.download(self.urls())]
            return {
                "train": self._generate_examples(*paths[:2]),
                "test": self._generate_examples(*paths[2:]),
            }

        def _generate_examples(self, images_path, labels_path):
            examples = zip(*read_split(images_path, labels_path), strict=True)
            for i, (image, label) in enumerate(examples):
                yield i, {"image": _png(image), "label": int(label)}

    return Builder


def _png(image: np.ndarray) -> bytes:
    """Encodes a greyscale image, uint8 [height, width]."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    height, width = image.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    # Each row starts with the number of its filter. 0 is no filter.
    rows = np.zeros((height, width + 1), np.uint8)
    rows[:, 1:] = image
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 1)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks)


def _fetch(urls: list[str], folder: Path) -> None:
    """Downloads files, in place of TFDS, which has no timeout and repeats a failed request.

    A thread downloads them, because urllib's timeout does not apply to the look-up of the host.

    Raises:
        DataError: If a request fails, a file is incomplete or has more than `_LARGEST` bytes, or
            `_STALL_SECONDS` pass without another 64 KiB.
    """
    news: queue.Queue[Exception | str | None] = queue.Queue()
    stop = threading.Event()

    def work() -> None:
        url = urls[0]
        try:
            for url in urls:
                news.put(url)
                _fetch_one(url, folder / url.rsplit("/", 1)[1], lambda url=url: news.put(url), stop)
            news.put(None)
        except Exception as error:
            news.put(DataError(f"{url}: {one_line(error)}"))

    folder.mkdir()
    threading.Thread(target=work, daemon=True).start()
    url: Exception | str | None = urls[0]
    try:
        while url is not None:
            try:
                url = news.get(timeout=_STALL_SECONDS)
            except queue.Empty:
                raise DataError(
                    f"{url}: less than 64 KiB came in {_STALL_SECONDS:g} s, the server or the "
                    "network is too slow"
                ) from None
            if isinstance(url, Exception):
                raise url
    finally:
        stop.set()  # or else the thread goes on after an error


def _fetch_one(url: str, path: Path, progress: Callable[[], None], stop: threading.Event) -> None:
    """Downloads a file; calls a function after each 64 KiB, and ends early if `stop` is set."""
    size = 0
    with (
        # The URLs are those of TFDS, and urllib follows no redirection to a file.
        urllib.request.urlopen(url, timeout=_STALL_SECONDS) as response,  # noqa: S310
        open(path, "wb") as file,
    ):
        while not stop.is_set() and (block := response.read(1 << 16)):
            size += len(block)
            if size > _LARGEST:
                raise DataError(f"more than {_LARGEST:,} bytes")
            file.write(block)
            progress()
        # urllib reports no error if a connection ends before the last byte.
        if response.length and not stop.is_set():
            raise DataError(f"the connection ended {response.length:,} bytes too early")
