"""Malformed data sets and images."""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import math
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fault_checks.fuzzing import EDGES, Target, complaint, damaged


def idx_bytes(*header: int, data: bytes) -> bytes:
    """Returns an IDX file with this header."""
    return struct.pack(f">{len(header)}I", *header) + data


@st.composite
def _idx_files(draw: Any) -> tuple[bytes, bytes]:
    """The files of the images and of the labels of a split."""
    n = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    whole = [
        idx_bytes(2051, n, 28, 28, data=rng.bytes(784 * n)),
        idx_bytes(2049, n, data=bytes(rng.integers(0, 10, n, np.uint8))),
    ]
    for number in range(2):
        kind = draw(st.sampled_from(["whole", "header", "damaged", "random"]))
        if kind == "header":
            words = draw(st.lists(st.sampled_from(EDGES), min_size=1, max_size=4))
            whole[number] = idx_bytes(*words, data=whole[number][4 * len(words) :])
        elif kind == "damaged":
            whole[number] = draw(damaged(whole[number]))
        elif kind == "random":
            whole[number] = draw(st.binary(max_size=40))
        if draw(st.booleans()):
            whole[number] = gzip.compress(whole[number], 1, mtime=0)
            if draw(st.booleans()):
                whole[number] = draw(damaged(whole[number]))
    return whole[0], whole[1]


def idx_array(raw: bytes, axes: int) -> np.ndarray | None:
    """Returns the array of an IDX file, or None if it is not a valid one."""
    with contextlib.suppress(OSError, EOFError, zlib.error, struct.error):
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        magic, *shape = struct.unpack_from(f">{1 + axes}I", raw)
        data = np.frombuffer(raw, np.uint8, offset=4 * (1 + axes))
        if magic != 2048 + axes or math.prod(shape) != data.size or not data.size:
            return None
        if (data.max() > 9) if axes == 1 else (shape[1:] != [28, 28]):
            return None
        return data.reshape(shape)
    return None


def try_idx(files: tuple[bytes, bytes], folder: Path) -> str:
    """Reads a split: the arrays of the files, or a DataError that names one of them."""
    from jaxrnn.training.data import idx

    paths = [folder / "images-idx3-ubyte", folder / "labels-idx1-ubyte.gz"]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    expected = [idx_array(content, axes) for content, axes in zip(files, (3, 1), strict=True)]
    images, labels = expected
    right = images is not None and labels is not None and len(images) == len(labels)
    try:
        found = idx.read_split(*paths)
    except Exception as error:
        return "a valid file is refused" if right else complaint(error, idx.DataError, *paths)
    same = right and all(map(np.array_equal, found, expected))
    return "" if same else "other arrays than those of the files"


@functools.cache
def digit() -> Any:
    """A picture of a seven, as dark ink on a white square of 60 pixels."""
    from PIL import Image, ImageDraw

    image = Image.new("L", (60, 60), 255)
    ImageDraw.Draw(image).line([(16, 14), (42, 14), (26, 47)], fill=0, width=5)
    return image


@functools.cache
def expected_pixels() -> np.ndarray:
    """Returns what predict.py makes of the seven."""
    import predict

    return predict.mnist_style(digit())


# The formats of images with the modes that they store.
STORED = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "GIF": ("L", "P"),
    "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "P", "RGB", "RGBA", "CMYK", "I", "F", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "PPM": ("1", "L", "RGB"),
}


def picture(file_format: str, mode: str, orientation: int = 1) -> bytes:
    """Returns a file with the seven, stored rotated if the orientation of its EXIF data says so."""
    from PIL import Image

    turned = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}.get(orientation)
    turned = Image.Transpose.ROTATE_270 if orientation == 8 else turned
    image = digit() if turned is None else digit().transpose(turned)
    image = image.convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    options = {}
    if orientation != 1:
        options["exif"] = image.getexif()
        options["exif"][0x0112] = orientation
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


@st.composite
def _pictures(draw: Any) -> tuple[str, bytes, bool]:
    """The suffix and the bytes of an image, and whether it is undamaged."""
    file_format = draw(st.sampled_from([*STORED]))
    mode = draw(st.sampled_from(STORED[file_format]))
    orientation = 1
    if file_format in ("PNG", "JPEG", "WEBP"):
        orientation = draw(st.sampled_from([1, 3, 6, 8]))
    content = picture(file_format, mode, orientation)
    whole = draw(st.integers(0, 3)) == 0
    if not whole:
        content = draw(st.one_of(damaged(content), st.binary(max_size=200)))
    suffix = draw(st.sampled_from([file_format.lower(), "png", "txt"]))
    return suffix, content, whole


def try_image(example: tuple[str, bytes, bool], folder: Path) -> str:
    """Reads an image: the seven if it is undamaged, otherwise any image, or an error in a line."""
    import predict

    suffix, content, whole = example
    path = folder / f"image.{suffix}"
    path.write_bytes(content)
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown), warnings.catch_warnings():
        warnings.simplefilter("always")
        images, errors, _ = predict.read_all([path])
    if shown.getvalue():
        return f"on stderr: {shown.getvalue()[:200]!r}"
    if errors:
        (message,) = errors.values()
        problem = "" if message and "\n" not in message else f"not a line: {message!r}"
        return f"an undamaged image is refused: {message}" if whole else problem
    (found,) = images.values()
    if found.shape != (28, 28) or found.dtype != np.uint8:
        return f"{found.dtype} {found.shape}"
    if not whole:
        return ""
    # The artifacts of JPEG may move the center of mass to another pixel.
    moved = [np.roll(found, by, (0, 1)) for by in ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))]
    distance = min(np.abs(each - expected_pixels().astype(float)).mean() for each in moved)
    return "" if distance < 10 else f"another image: mean difference {distance:.1f} of 255"


@functools.cache
def dataset_file(layout: str) -> bytes:
    """Returns a valid file of two examples."""
    from PIL import Image

    images, labels = dataset_arrays()
    file = io.BytesIO()
    if layout == "npz":
        np.savez_compressed(file, x_train=images, y_train=labels, x_test=images, y_test=labels)
    elif layout == "csv":
        table = np.concatenate([labels[:, None], images.reshape(2, -1)], axis=1)
        np.savetxt(file, table, fmt="%d", delimiter=",")
    else:
        import pyarrow
        from pyarrow import parquet

        cells = []
        for array in images:
            png = io.BytesIO()
            Image.fromarray(array).save(png, "PNG")
            cells.append({"bytes": png.getvalue(), "path": None})
        parquet.write_table(pyarrow.table({"image": cells, "label": labels}), file)
    return file.getvalue()


@functools.cache
def dataset_arrays() -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels of two examples."""
    rng = np.random.default_rng(5)
    images = np.where(rng.random((2, 28, 28)) < 0.2, 200, 0).astype(np.uint8)
    return images, np.array([3, 7], np.uint8)


@st.composite
def _dataset_files(draw: Any) -> tuple[str, bytes]:
    """A layout of a data set, and the bytes of its training set."""
    layout = draw(st.sampled_from(["npz", "csv", "parquet"]))
    content = dataset_file(layout)
    if layout == "csv" and draw(st.booleans()):
        cells = content.split(b",")
        words = (b"-1", b"256", b"1e3", b"nan", b"0x1F", b"", b"\xff", b"1\n2", b"9" * 40, b'"')
        cells[draw(st.integers(0, len(cells) - 1))] = draw(st.sampled_from(words))
        return layout, b",".join(cells)
    kinds = st.one_of(st.just(content), damaged(content), st.binary(max_size=100))
    return layout, draw(kinds)


def try_dataset(example: tuple[str, bytes], folder: Path, valid: bool = True) -> str:
    """Reads a data set: its arrays, unless it must be refused, or a DataError that names a file."""
    from jaxrnn.training.data import folders, idx

    layout, content = example
    train, test = {
        "npz": ("mnist.npz", ""),
        "csv": ("mnist_train.csv", "mnist_test.csv"),
        "parquet": ("train-0.parquet", "test-0.parquet"),
    }[layout]
    if test:
        (folder / test).write_bytes(dataset_file(layout))
    (folder / train).write_bytes(content)
    whole = content == dataset_file(layout)
    try:
        pair = folders.locate("mnist", folder).read()
    except Exception as error:
        return "a valid file is refused" if whole else complaint(error, idx.DataError, folder)
    if not valid:
        return "it is accepted"
    if not all(map(idx.valid, pair)):
        return "no valid arrays"
    same = all(map(np.array_equal, pair.train, dataset_arrays()))
    # A zip file has checksums of the arrays, and so has a PNG of its pixels.
    return "other arrays" if not same and (whole or layout == "npz") else ""


TARGETS = {
    "idx": Target(_idx_files(), try_idx),
    "images": Target(_pictures(), try_image),
    "data sets": Target(_dataset_files(), try_dataset),
}
