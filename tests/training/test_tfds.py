"""TFDS: prepared and downloaded data sets yield the arrays of the original files."""

import contextlib
import hashlib
import http.server
import json
import socket
import struct
import sys
import tempfile
import threading
import time
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from idx_files import (
    FILES,
    TEST_LABELS,
    assert_original,
    encoded,
    forbidden,
    originals,
    write,
    zipped,
)

from jaxrnn.training import data
from jaxrnn.training.data import tfds
from jaxrnn.training.data.idx import Pair, Split
from jaxrnn.training.files import swept

pytestmark = pytest.mark.usefixtures("home")
_, LABELS, *SMALL = originals()
FEW_LABELS = SMALL[1]


def prepare(tmp_path, name="mnist"):
    """Returns the data directory of a data set that TFDS prepared from the small files."""
    import tensorflow_datasets

    files = write(tmp_path / "small")
    builder = tfds._builder_class(name)(data_dir=tmp_path / "tfds", file_format="array_record")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tensorflow_datasets.download.DownloadManager,
            "download",
            lambda self, urls: [files / url.rsplit("/", 1)[1] for url in urls],
        )
        builder.download_and_prepare(download_dir=tmp_path / "downloads")
    return tmp_path / "tfds"


def tfrecord_from(version):
    """Rewrites a prepared data set as TFDS with TensorFlow would: tfrecord, other PNGs."""
    from array_record.python.array_record_module import ArrayRecordReader
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    for path in version.glob("*.array_record*"):
        raw = b""
        for record in ArrayRecordReader(str(path)).read_all():
            example = tf_example_pb2.Example.FromString(record)
            png, buffer = example.features.feature["image"].bytes_list, BytesIO()
            Image.open(BytesIO(png.value[0])).save(buffer, "PNG", optimize=True)
            png.value[0] = buffer.getvalue()
            record = example.SerializeToString()
            raw += struct.pack("<QI", len(record), 0) + record + bytes(4)
        (version / path.name.replace("array_record", "tfrecord")).write_bytes(raw)
        path.unlink()
    info = version / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))


def test_a_tfds_folder_gives_the_same_arrays_in_the_same_order(tmp_path, load, monkeypatch):
    import tensorflow_datasets

    folder = prepare(tmp_path)
    version = folder / "mnist" / "3.0.1"
    labels = [
        int(x["label"])
        for x in tensorflow_datasets.builder_from_directory(version).as_data_source("train")
    ]
    assert labels != LABELS.tolist()  # TFDS stores them in another order.
    assert sorted(labels) == sorted(LABELS.tolist())
    assert_original(load("mnist", folder))
    assert_original(load("mnist", version))
    tfrecord_from(version)
    assert_original(load("mnist", folder))
    monkeypatch.setattr(tfds, "read", forbidden)
    assert_original(load("mnist", folder))


def test_a_broken_or_foreign_tfds_folder_is_named(tmp_path, load):
    folder = prepare(tmp_path, "kmnist")
    version = folder / "kmnist" / "3.0.1"
    assert_original(load("kmnist", folder))
    with pytest.raises(tfds.DataError, match=r"3.0.1: holds kmnist, expected mnist"):
        load("mnist", version)
    tfrecord_from(version)
    path = next(version.glob("kmnist-train*"))
    good = path.read_bytes()
    for raw in (good[:-9], good[:100], b"", good + b"x", good + good, bytes(len(good))):
        path.write_bytes(raw)
        with pytest.raises(tfds.DataError) as error:
            load("kmnist", folder)
        assert str(version) in str(error.value)
        assert "\n" not in str(error.value)
    (version / "dataset_info.json").write_text("{")
    with pytest.raises(tfds.DataError, match="not a readable TFDS data set"):
        load("kmnist", folder)


def test_the_files_of_a_tfds_folder_name_neither_modules_nor_files_elsewhere(tmp_path, load):
    folder = prepare(tmp_path)
    version = folder / "mnist" / "3.0.1"
    (version / "features.json").write_text('{"pythonClassName": "antigravity.Feature"}')
    assert_original(load("mnist", folder))
    assert "antigravity" not in sys.modules
    path = version / "dataset_info.json"
    info = json.loads(path.read_text())
    for template in ("../{DATASET}-{SPLIT}.x", "/etc/{DATASET}-{SPLIT}.x", "deeper/{SPLIT}"):
        for split in info["splits"]:
            split["filepathTemplate"] = template
        path.write_text(json.dumps(info))
        with pytest.raises(tfds.DataError, match=r"3.0.1: names .*, which is not in it"):
            load("mnist", folder)
    info["splits"][0]["shardLengths"] = [str(10**12)]
    path.write_text(json.dumps(info))
    with pytest.raises(tfds.DataError, match="1000000000000 examples, expected at most 1000000"):
        load("mnist", folder)


def test_an_image_of_another_size_is_not_decoded(monkeypatch):
    from PIL import Image

    large = BytesIO()
    Image.new("L", (29, 28)).save(large, "PNG")
    monkeypatch.setattr(Image.Image, "load", forbidden)
    with pytest.raises(ValueError, match="images of 28×29, expected 28×28"):
        tfds.decode(large.getvalue())


def test_the_users_own_tfds_folder_is_found(home, tmp_path, load, no_network):
    prepare(tmp_path)
    (tmp_path / "tfds").rename(home / "tensorflow_datasets")
    assert_original(load("mnist"))
    with pytest.raises(tfds.DataError, match="no route to host"):
        load("kmnist")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves the small files as MNIST, with checksums that TFDS takes for the registered ones."""
    from tensorflow_datasets.core.download import checksums
    from tensorflow_datasets.image_classification import mnist

    folder = write(tmp_path / "served")
    asked, faults = [], []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def log_message(self, *args):
            asked.append(self.path)

        def do_GET(self):
            if not faults:
                super().do_GET()
                return
            self.send_response(200)
            if "short" in faults:
                self.send_header("Content-Length", "9")
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(1 if "short" in faults else 20):
                    self.wfile.write(b"bytes")
                    time.sleep(0.1 * ("trickle" in faults))

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
    base = f"http://127.0.0.1:{web.server_port}/"
    infos = {}
    for name in FILES:
        raw = (folder / f"{name}.gz").read_bytes()
        infos[f"{base}{name}.gz"] = checksums.UrlInfo(
            size=len(raw), checksum=hashlib.sha256(raw).hexdigest(), filename=f"{name}.gz"
        )
    monkeypatch.setattr(checksums, "get_all_url_infos", lambda: dict(infos))
    monkeypatch.setattr(mnist.MNIST, "URL", base)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield SimpleNamespace(folder=folder, asked=asked, faults=faults)
    assert list((tmp_path / "tmp").iterdir()) == []
    web.shutdown()
    web.server_close()


def test_download_prepares_through_tfds_once(tmp_path, load, server):
    assert_original(load("mnist"))
    assert len(server.asked) == 4
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["mnist.npz"]
    assert_original(load("mnist"))
    assert len(server.asked) == 4
    (tmp_path / "cache" / "mnist.npz").write_bytes(b"damaged")
    assert_original(load("mnist"))
    assert len(server.asked) == 8
    assert "tensorflow" not in sys.modules


def test_what_killed_processes_left_is_removed(tmp_path, load, server):
    cache = tmp_path / "cache"
    left = [cache / "jaxrnn-prepare-abc" / "files", cache / "mnist-abc.tmp"]
    left[0].mkdir(parents=True)
    left[1].touch()
    with swept(cache, "nothing"):  # another process may still be writing
        load("mnist")
        assert all(path.exists() for path in left)
    (cache / "mnist.npz").unlink()
    load("mnist")
    assert [path.name for path in cache.iterdir()] == ["mnist.npz"]
    # Also if another process has prepared the data set meanwhile.
    left[0].mkdir(parents=True)
    data._write_cache(cache / "mnist.npz", np.zeros((0, 3), np.int64), Pair(*[Split(*SMALL)] * 2))
    assert [path.name for path in cache.iterdir()] == ["mnist.npz"]


def test_download_without_a_cache_folder(tmp_path, load, server):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "tmp" / "jaxrnn-prepare-abc").mkdir()
    (tmp_path / "tmp" / "jaxrnn-prepare-link").symlink_to(server.folder)
    assert_original(load("mnist", cache_dir=tmp_path / "file"))
    assert len(list(server.folder.iterdir())) == 4


def test_download_without_a_home_directory(tmp_path, server, monkeypatch):
    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    assert_original(data.load("mnist", validation_size=5))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("short", "the connection ended 4 bytes too early"),
        ("long", "more than 64 bytes"),
        ("trickle", "less than 64 KiB came in 0.3 s, the server or the network is too slow"),
    ],
)
def test_a_server_that_misbehaves_is_named(fault, message, tmp_path, load, server, monkeypatch):
    monkeypatch.setattr(tfds, "_LARGEST", 64)
    monkeypatch.setattr(tfds, "_STALL_SECONDS", 0.3 if fault == "trickle" else 5.0)
    server.faults.append(fault)
    with pytest.raises(tfds.DataError, match=rf"http://127.0.0.1:\d+/{FILES[0]}.gz: {message}"):
        load("mnist")
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(server.asked) == 1


def test_a_download_with_another_checksum_is_refused(tmp_path, load, server):
    path = server.folder / f"{TEST_LABELS}.gz"
    path.write_bytes(zipped(encoded((FEW_LABELS + 1) % 10)))
    with pytest.raises(tfds.DataError, match="wrong checksum"):
        load("mnist")
    path.unlink()
    with pytest.raises(tfds.DataError, match=f"{TEST_LABELS}.gz: HTTP Error 404"):
        load("mnist")
    assert list((tmp_path / "cache").iterdir()) == []


def test_no_network_names_the_two_ways_out(load, no_network):
    with pytest.raises(tfds.DataError) as error:
        load("fashion_mnist")
    message = str(error.value)
    assert "fashion_mnist could not be downloaded" in message
    assert "no route to host" in message
    assert "data_dir" in message
    assert "'digits'" in message
    assert "--" not in message
    assert "\n" not in message


def test_a_silent_server_or_name_lookup_ends_in_digits_soon(tmp_path, monkeypatch):
    from tensorflow_datasets.image_classification import mnist

    assert tfds._STALL_SECONDS <= 6
    monkeypatch.setattr(tfds, "_STALL_SECONDS", 0.5)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(mnist.MNIST, "URL", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        start = time.monotonic()
        dataset = data.load_or_digits(cache_dir=tmp_path / "cache")
        assert time.monotonic() - start < 60  # on a busy machine
    assert dataset.name == "digits"
    assert "not MNIST" in dataset.note
    monkeypatch.setattr(tfds.urllib.request, "urlopen", lambda *_, **__: time.sleep(600))
    start = time.monotonic()
    dataset = data.load_or_digits(cache_dir=tmp_path / "cache")
    assert time.monotonic() - start < 60  # on a busy machine
    assert "less than 64 KiB came in 0.5 s" in dataset.note
