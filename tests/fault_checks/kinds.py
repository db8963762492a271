"""The kinds of malformed input that `malformed` tries."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fault_checks import fuzz_data, fuzz_models, fuzz_scripts
from fault_checks.fuzz_data import idx_bytes
from fault_checks.fuzzing import complaint, said

Kind = Callable[[Path], str]
GIB = 1 << 30


def zeros(header: bytes, size: int, pack: Any) -> bytes:
    """Returns the packed bytes of a header and of that many zeros."""
    block = bytes(1 << 20)
    packed = [pack.compress(header)] + [pack.compress(block) for _ in range(size >> 20)]
    return b"".join([*packed, pack.compress(bytes(size % (1 << 20))), pack.flush()])


# ---- IDX files


def idx_kinds() -> dict[str, Kind]:
    """Files of images, and files of labels."""
    images, labels = idx_bytes(2051, 2, 28, 28, data=bytes(1568)), idx_bytes(2049, 2, data=b"\1\2")
    packed = gzip.compress(images)

    def bomb(count: int) -> bytes:
        return zeros(idx_bytes(2051, count, 28, 28, data=b""), GIB, zlib.compressobj(wbits=31))

    contents: dict[str, Callable[[], tuple[bytes, bytes]]] = {
        "empty": lambda: (b"", labels),
        "random bytes": lambda: (b"\x93random", labels),
        "header cut": lambda: (images[:11], labels),
        "labels in place of images": lambda: (labels, labels),
        "wrong magic number": lambda: (idx_bytes(2052, 2, 28, 28, data=bytes(1568)), labels),
        "other byte order": lambda: (struct.pack("<4I", 2051, 2, 28, 28) + bytes(1568), labels),
        "27 rows": lambda: (idx_bytes(2051, 2, 27, 28, data=bytes(1512)), labels),
        "no images": lambda: (idx_bytes(2051, 0, 28, 28, data=b""), labels),
        "fewer images than announced": lambda: (images[:-1], labels),
        "more images than announced": lambda: (images + b"\0", labels),
        "2^32 - 1 images announced": lambda: (
            idx_bytes(2051, 2**32 - 1, 28, 28, data=bytes(784)),
            labels,
        ),
        "sizes whose product overflows": lambda: (
            idx_bytes(2051, 2**31, 2**31, 2**31, data=bytes(784)),
            labels,
        ),
        "label 10": lambda: (images, idx_bytes(2049, 2, data=b"\1\x0a")),
        "one label for two images": lambda: (images, idx_bytes(2049, 1, data=b"\1")),
        "gzip cut": lambda: (packed[:-9], labels),
        "gzip with a wrong checksum": lambda: (packed[:-8] + b"\0\0\0\0" + packed[-4:], labels),
        "text after gzip": lambda: (packed + b"text", labels),
    }
    kinds: dict[str, Kind] = {
        name: lambda folder, make=make: fuzz_data.try_idx(make(), folder)
        for name, make in contents.items()
    }

    def refused(content: Callable[[], bytes], folder: Path) -> str:
        return unreadable(folder, lambda path: path.write_bytes(content()))

    kinds["gzip of 1 GiB behind a header of one image"] = partial(refused, lambda: bomb(1))
    kinds["gzip of 1 GiB behind a header of 3 TiB"] = partial(refused, lambda: bomb(2**32 - 1))
    kinds["pipe"] = lambda folder: unreadable(folder, os.mkfifo)
    kinds["folder"] = lambda folder: unreadable(folder, Path.mkdir)
    kinds["link to /dev/zero"] = lambda folder: unreadable(
        folder, lambda path: path.symlink_to("/dev/zero")
    )
    kinds["link to itself"] = lambda folder: unreadable(folder, lambda path: path.symlink_to(path))
    return kinds


def unreadable(folder: Path, make: Callable[[Path], Any]) -> str:
    """Reads a split whose file of images is not a valid one."""
    from jaxrnn.training.data import idx

    labels = folder / "labels"
    labels.write_bytes(idx_bytes(2049, 1, data=b"\1"))
    make(folder / "images")
    try:
        idx.read_split(folder / "images", labels)
    except Exception as error:
        return complaint(error, idx.DataError, folder / "images")
    return "it is accepted"


# ---- images


def png(width: int, height: int, depth: int, color: int, data: bytes | None = None) -> bytes:
    """Returns a PNG of zeros, or with other data, of any announced size."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    if data is None:
        size = height * (1 + (width * channels * depth + 7) // 8)
        data = zeros(b"", size, zlib.compressobj(1))
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", data), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def chunk(name: bytes, content: bytes) -> bytes:
    """Returns a chunk of a PNG."""
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def tiff(value: float) -> bytes:
    """Returns a TIFF of 60×60 numbers, with one of a given value."""
    from PIL import Image

    array = np.zeros((60, 60), np.float32)
    array[20:40, 28:32], array[0, 0] = 1, value
    file = io.BytesIO()
    Image.fromarray(array).save(file, "TIFF")
    return file.getvalue()


def image_kinds(scripts: fuzz_scripts.Scripts) -> dict[str, Kind]:
    """Images for predict.py, which must refuse them."""
    whole = {name: fuzz_data.picture(name, "RGB") for name in ("PNG", "JPEG", "BMP", "TIFF")}
    text = b"zTXt" + b"k\0\0" + zeros(b"", GIB, zlib.compressobj())
    # A program for Ghostscript without an end.
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\n{ } loop\n"
    contents: dict[str, Callable[[], bytes]] = {
        "empty": lambda: b"",
        "text": lambda: b"not an image",
        "SVG": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "PostScript": lambda: program,
        "PNG cut": lambda: whole["PNG"][:-60],
        "JPEG cut": lambda: whole["JPEG"][:300],
        "BMP cut": lambda: whole["BMP"][:300],
        "TIFF cut": lambda: whole["TIFF"][:300],
        "PNG with a wrong checksum": lambda: whole["PNG"].replace(b"IDATx", b"IDATy"),
        "PNG of 10^10 pixels": lambda: png(100_000, 100_000, 8, 0, zlib.compress(b"")),
        "PNG of 2^62 pixels": lambda: png(2**31 - 1, 2**31 - 1, 8, 0, zlib.compress(b"")),
        "PNG without rows": lambda: png(28, 0, 8, 0),
        "PNG with a palette that is missing": lambda: png(28, 28, 8, 3, b"x"),
        "PNG of a depth of 3 bits": lambda: png(28, 28, 3, 0),
        "PNG with 1 GiB of text": lambda: png(9, 9, 8, 0).replace(
            b"\0\0\0\0IEND", chunk(text[:4], text[4:]) + b"\0\0\0\0IEND"
        ),
        "blank PNG of 89 million pixels, 8 bits": lambda: png(9400, 9400, 8, 0),
        "blank PNG of 89 million pixels, 16 bits": lambda: png(9400, 9400, 16, 0),
        "blank PNG of 89 million pixels, RGBA": lambda: png(9400, 9400, 8, 6),
        "blank PNG of one row of 89 million pixels": lambda: png(89_000_000, 1, 8, 0),
        "TIFF with NaN": lambda: tiff(np.nan),
        "TIFF with infinity": lambda: tiff(np.inf),
    }

    def predicted(*names: Any) -> str:
        import predict

        code, out, _, problem = said(
            lambda: predict.main([*map(str, names), "--run", str(scripts.run)])
        )
        return problem or ("" if code == 2 and not out else f"exit code {code}, {out!r:.100}")

    def of_bytes(make: Callable[[], bytes], folder: Path) -> str:
        (folder / "image.png").write_bytes(make())
        return predicted(folder / "image.png")

    def of_path(name: str, make: Callable[[Path], Any], folder: Path) -> str:
        path = folder / name
        make(path)
        return predicted(path)

    kinds: dict[str, Kind] = {name: partial(of_bytes, make) for name, make in contents.items()}
    kinds |= {
        "folder": partial(of_path, "a.png", Path.mkdir),
        "pipe": partial(of_path, "a.png", os.mkfifo),
        "link to /dev/zero": partial(of_path, "a.png", lambda path: path.symlink_to("/dev/zero")),
        "name with NUL": partial(of_path, "a\0.png", str),
        "name of 5,000 letters": partial(of_path, "a" * 5000, str),
        "name with a line break": partial(of_path, "a\nb.png", Path.mkdir),
        "name that is not UTF-8": partial(
            of_path, "\udce9.png", lambda path: path.write_text("no")
        ),
        "URL": lambda folder: predicted("http://localhost:1/a.png"),
        "no name": lambda folder: predicted(""),
    }

    def good(name: str, folder: Path) -> str:
        import predict

        (folder / name).write_bytes(whole["PNG"])
        code, out, _, problem = said(
            lambda: predict.main([str(folder / name), "--run", str(scripts.run)])
        )
        return problem or ("" if code == 0 and out.count("\n") == 1 else f"prints {out!r:.100}")

    kinds["good PNG whose name is not UTF-8"] = partial(good, "\udce9.png")
    kinds["good PNG whose name has a line break"] = partial(good, "a\nb.png")
    return kinds


# ---- data sets


def npz(**arrays: Any) -> bytes:
    """Returns a data set as Keras stores it, with other arrays."""
    images, labels = fuzz_data.dataset_arrays()
    found = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels} | arrays
    file = io.BytesIO()
    np.savez(file, **{name: array for name, array in found.items() if array is not None})
    return file.getvalue()


def parquet(images: list[bytes], copies: int = 1) -> bytes:
    """Returns a parquet file with images, all of them repeated in groups."""
    import pyarrow
    from pyarrow import parquet

    cells = [{"bytes": each, "path": None} for each in images]
    table = pyarrow.table({"image": cells, "label": [1] * len(cells)})
    file = io.BytesIO()
    with parquet.ParquetWriter(file, table.schema) as writer:
        for _ in range(copies):
            writer.write_table(table)
    return file.getvalue()


def dataset_kinds() -> dict[str, Kind]:
    """Files of data sets, which must be refused."""
    images, _ = fuzz_data.dataset_arrays()
    table = fuzz_data.dataset_file("csv")
    overflow = npz().replace(b"(2, 28, 28), }" + b" " * 5, b"(2" + b"0" * 9 + b", 28, 28), }"[:-4])
    contents: dict[str, tuple[str, Callable[[], bytes]]] = {
        "no zip file": ("npz", lambda: b"PK\3\4"),
        "pickled objects": ("npz", lambda: npz(x_train=np.array([{}, None], object))),
        "missing array": ("npz", lambda: npz(y_test=None)),
        "float images": ("npz", lambda: npz(x_train=images.astype(float))),
        "labels that are text": ("npz", lambda: npz(y_train=np.array(["3", "7"]))),
        "label -1": ("npz", lambda: npz(y_train=np.array([-1, 3]))),
        "damaged header of an array": ("npz", lambda: overflow),
        "empty table": ("csv", lambda: b""),
        "table of a header": ("csv", lambda: b"label,pixel0\n"),
        "pixel 256": ("csv", lambda: table.replace(b",0,", b",256,", 1)),
        "pixel 0.5": ("csv", lambda: table.replace(b",0,", b",0.5,", 1)),
        "pixel that is text": ("csv", lambda: table.replace(b",0,", b",zero,", 1)),
        "lines of different lengths": ("csv", lambda: table + b"1,2,3\n"),
        "table that is not UTF-8": ("csv", lambda: b"\xff\xfe" + table),
        "no parquet": ("parquet", lambda: b"PAR1PAR1"),
        "PNG of 10^8 pixels in parquet": (
            "parquet",
            lambda: parquet([png(10_000, 10_000, 8, 0)]),
        ),
        "text in place of PNGs in parquet": ("parquet", lambda: parquet([b"no image"])),
        "one PNG two million times in parquet": (
            "parquet",
            lambda: parquet([png(28, 28, 8, 0)] * 100_000, 20),
        ),
    }

    def refused(layout: str, make: Callable[[], bytes], folder: Path) -> str:
        return fuzz_data.try_dataset((layout, make()), folder, valid=False)

    return {f"{name} ({each[0]})": partial(refused, *each) for name, each in contents.items()}


# ---- ONNX models


def onnx_kinds() -> dict[str, Kind]:
    """Models that must be refused."""
    from onnx import TensorProto, helper, numpy_helper

    def model(*nodes: Any, **arrays: Any) -> Any:
        """The model with other nodes before its own, and other initializers in place of W."""
        found = fuzz_models.onnx_model("RNN")
        own = list(found.graph.node)
        del found.graph.node[:], found.graph.initializer[0]
        found.graph.node.extend([*nodes, *own])
        found.graph.initializer.extend(
            [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
        )
        return found

    def node(kind: str, names: str, **attributes: Any) -> Any:
        return helper.make_node(kind, names.split(), ["W"], **attributes)

    def changed(change: Callable[[Any], Any]) -> Any:
        found = fuzz_models.onnx_model("RNN")
        change(found)
        return found

    def dims(*values: int) -> Any:
        return changed(lambda m: m.graph.initializer[0].dims.__setitem__(slice(None), values))

    def functions(calls: Callable[[int], list[int]], count: int) -> Any:
        found = model(helper.make_node("f0", ["X"], ["Z"], domain="own"), W=np.ones((1, 4, 3)))
        opsets = [helper.make_opsetid("", 14), helper.make_opsetid("own", 1)]
        for number in range(count):
            body = [
                helper.make_node(f"f{each}", ["a"], [f"b{place}"], domain="own")
                for place, each in enumerate(calls(number))
            ]
            body.append(helper.make_node("Identity", ["a"], ["b"]))
            found.functions.append(
                helper.make_function("own", f"f{number}", ["a"], ["b"], body, opsets)
            )
        found.opset_import.append(opsets[1])
        return found

    def external(**entries: str) -> Any:
        def change(found: Any) -> None:
            tensor = found.graph.initializer[0]
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=value)

        return changed(change)

    def loop() -> Any:
        info = helper.make_tensor_value_info
        inputs = [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, [])]
        nodes = [helper.make_node("Identity", [a], [b]) for a, b in (("go", "on"), ("w", "v"))]
        outputs = [info("on", TensorProto.BOOL, []), info("v", TensorProto.FLOAT, None)]
        body = helper.make_graph(nodes, "body", [*inputs, info("w", 1, None)], outputs)
        w = np.ones((1, 4, 3), np.float32)
        return model(node("Loop", "n yes start", body=body), n=2**60, yes=True, start=w)

    def attribute(**values: Any) -> Any:
        def change(found: Any) -> None:
            for name, value in values.items():
                kept = [each for each in found.graph.node[0].attribute if each.name != name]
                del found.graph.node[0].attribute[:]
                found.graph.node[0].attribute.extend([*kept, helper.make_attribute(name, value)])

        return changed(change)

    big = np.ones((1, 1, 2**15), np.float32)
    scalar = numpy_helper.from_array(np.ones(1, np.float32))
    models: dict[str, Callable[[], Any]] = {
        "empty": lambda: b"",
        "random bytes": lambda: b"\x93random",
        "cut": lambda: fuzz_models.onnx_model("RNN").SerializeToString()[:-9],
        "negative size": lambda: dims(-1, 4, 3),
        "sizes whose product overflows": lambda: dims(2**62, 2, 3),
        "size of 2^63 - 1": lambda: dims(2**63 - 1, 4, 3),
        "size 0": lambda: dims(0, 4, 3),
        "unknown dtype": lambda: changed(
            lambda m: setattr(m.graph.initializer[0], "data_type", 99)
        ),
        "hidden_size of 2^40": lambda: attribute(hidden_size=2**40),
        "hidden_size of -4": lambda: attribute(hidden_size=-4),
        "activations that are not UTF-8": lambda: attribute(activations=[b"\xff"]),
        "clip of NaN": lambda: attribute(clip=float("nan")),
        "layout 2": lambda: attribute(layout=2),
        "opset 999": lambda: changed(lambda m: setattr(m.opset_import[0], "version", 999)),
        "opset -1": lambda: changed(lambda m: setattr(m.opset_import[0], "version", -1)),
        "no weights": model,
        "weights of 2 GiB from a node of a few bytes": lambda: model(
            node("ConstantOfShape", "size", value=scalar), size=[1, 2**14, 2**15]
        ),
        "weights of 1 TiB from a node of a few bytes": lambda: model(
            node("Expand", "one size"), one=np.ones(1, np.float32), size=[1, 2**19, 2**19]
        ),
        "weights of 4 GiB by broadcasting": lambda: model(
            node("Add", "a b"), a=big, b=big.reshape(1, -1, 1)
        ),
        "Range of 2^40": lambda: model(node("Range", "a b c"), a=0, b=2**40, c=1),
        "loop of 2^60 iterations": loop,
        "node that reads its own output": lambda: model(node("Identity", "W")),
        "functions of 2^30 nodes": lambda: functions(
            lambda number: [number + 1] * 2 if number < 29 else [], 30
        ),
        "functions nested 10,000 deep": lambda: functions(
            lambda number: [number + 1] if number < 9_999 else [], 10_000
        ),
        "function that calls itself": lambda: functions(lambda number: [0], 1),
        "weights in ../weights": lambda: external(location="../weights"),
        "weights in /dev/zero": lambda: external(location="/dev/zero"),
        "weights in a link": lambda: external(location="link"),
        "weights in a pipe": lambda: external(location="pipe"),
        "weights in no file": lambda: external(location="none"),
        "weights from byte -5 on": lambda: external(location="weights", offset="-5"),
        "weights of 10^12 bytes": lambda: external(location="weights", length=str(10**12)),
    }

    def refused(make: Callable[[], Any], folder: Path) -> str:
        found = make()
        folder = folder / "model"
        folder.mkdir()
        for place in (folder, folder.parent):
            (place / "weights").write_bytes(bytes(4 * 12))
        (folder / "link").symlink_to("../weights")
        os.mkfifo(folder / "pipe")
        path = folder / "model.onnx"
        path.write_bytes(found if isinstance(found, bytes) else found.SerializeToString())
        return onnx_refused(path)

    kinds: dict[str, Kind] = {name: partial(refused, make) for name, make in models.items()}

    def of_path(make: Callable[[Path], Any], folder: Path) -> str:
        make(folder / "model.onnx")
        return onnx_refused(folder / "model.onnx")

    kinds["pipe"] = partial(of_path, os.mkfifo)
    kinds["folder"] = partial(of_path, Path.mkdir)
    kinds["link to /dev/zero"] = partial(of_path, lambda path: path.symlink_to("/dev/zero"))
    return kinds


def onnx_refused(path: Path) -> str:
    """Reads a model that must be refused."""
    from jaxrnn import convert

    try:
        convert.from_onnx(path)
    except Exception as error:
        return complaint(error, ValueError)
    return "it is accepted"


# ---- JSON files and command lines


def json_kinds(scripts: fuzz_scripts.Scripts) -> dict[str, Kind]:
    """JSON files of a run and of a study."""

    def config(**options: Any) -> Callable[[bytes], bytes]:
        """Other options, without a checksum, which earlier versions did not write."""

        def edit(text: bytes) -> bytes:
            value = json.loads(text)
            value.pop("checksum")
            value["config"] |= options
            return json.dumps(value).encode()

        return edit

    def whole(text: str) -> Callable[[bytes], bytes]:
        return lambda before: text.encode()

    edits: dict[str, Callable[[bytes], bytes]] = {
        "[]": whole("[]"),
        "null": whole("null"),
        "{}": whole("{}"),
        "empty": whole(""),
        "NaN": whole("NaN"),
        "a number of 5,000 digits": whole("1" * 5000),
        "100,000 brackets": whole("[" * 100_000),
        "byte order mark": fuzz_scripts.OF_BYTES["BOM"],
        "UTF-16": fuzz_scripts.OF_BYTES["UTF-16"],
        "not UTF-8": fuzz_scripts.OF_BYTES["not UTF-8"],
        "an entry twice": fuzz_scripts.OF_BYTES["duplicate"],
        "hidden_size 10^9": config(hidden_size=10**9),
        "hidden_size 10^400": config(hidden_size=10**400),
        "hidden_size as text": config(hidden_size="64"),
        "delay 10^9": config(delay=10**9),
        "num_layers 10^9": config(num_layers=10**9),
        "learning_rate NaN": config(learning_rate=float("nan")),
        "unknown cell": config(cell="no"),
        "cell in a file that is not there": config(cell="/none/own.py:cell"),
        "cell in a path with NUL": config(cell="a\0b.py:cell"),
        "unknown option": config(no=1),
        "seed 10^30": config(seed=10**30),
    }

    def refused(edit: Callable[[bytes], bytes], folder: Path) -> str:
        what = "run config.json"
        code, _, _, problem = scripts.edited(what, scripts.copied(what, folder / "run"), edit)
        return problem or ("" if code else "it is accepted")

    kinds = {f"config.json, {name}": partial(refused, edit) for name, edit in edits.items()}

    def of_path(make: Callable[[Path], Any], folder: Path) -> str:
        place = scripts.copied("run config.json", folder / "run")
        (place / "config.json").unlink()
        make(place / "config.json")
        code, _, _, problem = said(scripts.use("run config.json", place))
        return problem or ("" if code else "it is accepted")

    kinds["config.json, pipe"] = partial(of_path, os.mkfifo)
    kinds["config.json, 300 MB"] = partial(
        of_path, lambda path: path.write_bytes(b" " * 300_000_000)
    )

    def answered(change: fuzz_scripts.Change, folder: Path) -> str:
        return scripts.attempt(change, folder)

    for what in fuzz_scripts.USES[1:]:
        for value in ([], {}, None, 5):
            change = fuzz_scripts.Change(what, "whole", 0, 0, value, "keep")
            kinds[f"{what}, {value}"] = partial(answered, change)
        for way in ("nested", "not UTF-8"):
            change = fuzz_scripts.Change(what, way, 0, 0, None, "keep")
            kinds[f"{what}, {way}"] = partial(answered, change)
    return kinds


def command_kinds() -> dict[str, Kind]:
    """Command lines that must be refused."""
    words = {
        "text for a number": ("mnist", "--steps", "many"),
        "NaN": ("mnist", "--learning-rate", "nan"),
        "infinity": ("forms", "in-step", "--learning-rate", "inf"),
        "a fraction for an integer": ("mnist", "--hidden-size", "2.5"),
        "a negative size": ("mnist", "--batch-size", "-1"),
        "a number of 5,000 digits": ("mnist", "--steps", "9" * 5000),
        "an option without its value": ("mnist", "--out"),
        "an unknown option": ("export", "--no-such"),
        "an option twice": ("mnist", "--steps", "1", "--steps", "2"),
        "an unknown cell with a line break": ("mnist", "--cell", "a\nb"),
        "a seed of 10^30": ("mnist", "--seed", "1" + "0" * 30),
        "2^31 seeds": ("ablate", "size", "--seeds", str(2**31)),
        "a name that is not UTF-8": ("mnist", "--cell", "\udce9"),
        "a study outside --out": ("ablate", "../up", "--vary", "seed=1,2"),
        "an empty study": ("ablate", ""),
        "a port of 99999": ("ablate", "size", "--hosts", "2", "--coordinator", "host:99999"),
    }

    def refused(name: str, *words: str) -> str:
        parse, _ = fuzz_scripts.scripts()[name]
        code, out, err, problem = said(lambda: bool(parse(list(words))))
        right = code == 2 and not out and err.count("\n") == 1
        return problem or ("" if right else f"exit code {code}, {err!r:.100}")

    return {name: lambda folder, each=each: refused(*each) for name, each in words.items()}
