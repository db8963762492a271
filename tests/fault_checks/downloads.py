"""A server that misbehaves, and preparations of a data set that are killed."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import random
import shutil
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fault_checks.processes import FORK, SCRATCH, Trial, call, options, said_badly, start

# The small files of the tests.
sys.path.insert(0, str(Path(__file__).parents[1]))
from idx_files import FILES, joined, originals, write

# An error must come within this many seconds.
SOON = 30.0


class Server(http.server.BaseHTTPRequestHandler):
    """Serves the small files; the last path component but one is the name of what goes wrong."""

    folder: Path

    def log_message(self, *_: object) -> None:
        """Prints nothing."""

    def do_GET(self) -> None:
        """Answers a request, as named by the path `/FAULT/FILE`."""
        _, fault, name = self.path.split("/")
        raw = (self.folder / name).read_bytes()
        with contextlib.suppress(OSError):
            getattr(self, fault)(raw)

    def head(self, length: int | None, code: int = 200) -> None:
        """Sends the status and the headers."""
        self.send_response(code)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def slow(self, raw: bytes) -> None:
        """Sends the file in parts, within about 0.2 s."""
        self.head(len(raw))
        for at in range(0, len(raw), len(raw) // 10 + 1):
            self.wfile.write(raw[at : at + len(raw) // 10 + 1])
            time.sleep(0.02)

    def status_404(self, raw: bytes) -> None:
        """Sends that the file does not exist."""
        self.send_error(404)

    def status_503(self, raw: bytes) -> None:
        """Sends that the server is overloaded."""
        self.send_error(503)

    def stalled(self, raw: bytes) -> None:
        """Answers nothing."""
        time.sleep(2 * SOON)

    def stalled_in_the_middle(self, raw: bytes) -> None:
        """Sends half of the file."""
        self.head(len(raw))
        self.wfile.write(raw[: len(raw) // 2])
        time.sleep(2 * SOON)

    def trickle(self, raw: bytes) -> None:
        """Sends five bytes a second."""
        self.head(len(raw))
        for byte in raw[: int(10 * SOON)]:
            self.wfile.write(bytes([byte]))
            time.sleep(0.2)

    def trickle_of_headers(self, raw: bytes) -> None:
        """Sends headers without an end."""
        self.wfile.write(b"HTTP/1.0 200 OK\r\n")
        for number in range(int(10 * SOON)):
            self.wfile.write(b"X-%d: 0\r\n" % number)
            time.sleep(0.2)

    def cut_short(self, raw: bytes) -> None:
        """Closes the connection in the middle of the file."""
        self.head(len(raw))
        self.wfile.write(raw[: len(raw) // 2])

    def reset(self, raw: bytes) -> None:
        """Resets the connection in the middle of the file."""
        self.head(len(raw))
        self.wfile.write(raw[: len(raw) // 2])
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()

    def wrong_checksum(self, raw: bytes) -> None:
        """Sends a file of the same length with a changed byte."""
        self.head(len(raw))
        self.wfile.write(raw[:-1] + bytes([raw[-1] ^ 1]))

    def another_page(self, raw: bytes) -> None:
        """Sends the page of a hotel's network."""
        page = b"<html>Log in to use this network</html>"
        self.head(len(page))
        self.wfile.write(page)

    def endless(self, raw: bytes) -> None:
        """Sends bytes without an end."""
        self.head(None)
        while True:
            self.wfile.write(bytes(1 << 20))

    def redirected(self, raw: bytes) -> None:
        """Redirects to itself."""
        self.send_response(302)
        self.send_header("Location", self.path)
        self.end_headers()

    def redirected_to_a_file(self, raw: bytes) -> None:
        """Redirects to a file of the user's machine."""
        self.send_response(302)
        self.send_header("Location", (self.folder / self.path.rsplit("/", 1)[1]).as_uri())
        self.end_headers()


FAULTS = [
    name
    for name in vars(Server)
    if not name.startswith(("_", "do_", "log")) and name not in ("head", "slow", "folder")
]


FAULTS = (
    "status_404",
    "status_503",
    "stalled",
    "stalled_in_the_middle",
    "trickle",
    "trickle_of_headers",
    "cut_short",
    "reset",
    "wrong_checksum",
    "another_page",
    "endless",
    "redirected",
    "redirected_to_a_file",
)


@contextlib.contextmanager
def served() -> Iterator[str]:
    """Serves the small files from a process of its own; yields the address."""
    Server.folder = write(SCRATCH / "served")
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    process = FORK.Process(target=web.serve_forever)  # this process must have one thread
    process.start()
    try:
        yield f"http://127.0.0.1:{web.server_port}"
    finally:
        process.kill()
        process.join()
        web.server_close()


def home(name: str) -> Path:
    """Creates an empty home directory with a directory for temporary files."""
    folder = SCRATCH / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "tmp").mkdir(parents=True)
    return folder


def pretend(folder: Path, url: str) -> Callable[[], None]:
    """Returns a function after which MNIST is at another address and HOME another directory."""

    def install() -> None:
        import tempfile

        from tensorflow_datasets.core.download import checksums
        from tensorflow_datasets.image_classification import mnist

        infos = {}
        for file in FILES:
            raw = (SCRATCH / "served" / f"{file}.gz").read_bytes()
            infos[f"{url}/{file}.gz"] = checksums.UrlInfo(
                size=len(raw), checksum=hashlib.sha256(raw).hexdigest(), filename=f"{file}.gz"
            )
        checksums.get_all_url_infos = lambda: dict(infos)
        mnist.MNIST.URL = f"{url}/"
        os.environ |= {"HOME": str(folder), "no_proxy": "127.0.0.1"}
        tempfile.tempdir = str(folder / "tmp")

    return install


def quiet() -> None:
    """Hides the progress that TFDS shows."""
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def load(folder: Path, url: str) -> bool:
    """Prepares MNIST; returns whether the images are those of the server."""
    import numpy as np

    from jaxrnn.training import data

    pretend(folder, url)()
    quiet()
    pairs = zip(joined(data.load("mnist", validation_size=5)), originals(), strict=True)
    return all(np.array_equal(*pair) for pair in pairs)


def left(folder: Path) -> list[str]:
    """Returns the files and directories below a home directory, but the data cache."""
    expected = {"tmp", ".cache", ".cache/jaxrnn", ".cache/jaxrnn/mnist.npz"}
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return sorted(found - expected)


def downloads(count: int) -> Iterator[Trial]:
    """Data: a misbehaving server is an error in 30 s, a killed preparation leaves nothing."""
    with served() as base:
        for fault in FAULTS:
            yield misbehaving(fault, f"{base}/{fault}", f"{base}/slow")
        with socket.create_server(("127.0.0.1", 0)) as closed:
            url = f"http://127.0.0.1:{closed.getsockname()[1]}/refused"
        yield misbehaving("refused", url, f"{base}/slow")
        yield misbehaving("unknown host", "http://nowhere.invalid/x", f"{base}/slow")
        yield from killed(count, f"{base}/slow")


def misbehaving(fault: str, url: str, good: str) -> Trial:
    """Trains on MNIST from a server that misbehaves, and prepares it from one that does not."""
    folder = home("home")
    began = time.monotonic()
    words = options(folder.parent / "run", dataset="mnist", steps=1, validation_size=5)
    script = start("mnist", words, pretend(folder, url))
    code = script.end(2 * SOON)
    seconds = time.monotonic() - began
    error = (script.err.splitlines() or [""])[-1]  # after TFDS' progress
    problem = said_badly(code, script.out, f"{error}\n")
    if code == 0:
        problem = "no error"
    elif seconds > SOON:
        problem = problem or f"it took {seconds:.1f} s"
    for part in (url, "--data-dir"):
        if part not in error:
            problem = problem or f"no word of {part}"
    if found := left(folder):
        problem = problem or f"left behind: {found}"
    if not call(load, folder, good):
        problem = problem or "the next run does not recover"
    if found := left(folder):
        problem = problem or f"left behind by the next run: {found}"
    return f"{fault.replace('_', ' ')}, {seconds:.1f} s, {error}", problem


def killed(count: int, url: str) -> Iterator[Trial]:
    """Kills preparations at random moments, and prepares the data set again."""
    rng, seconds = random.Random(0), 0.0
    for number in range(-1, count):  # the first is not killed, but timed
        folder = home("home")
        process: Any = FORK.Process(target=load, args=(folder, url))
        process.start()
        while not left(folder):
            time.sleep(0.001)
        began = time.monotonic()
        if number < 0:
            process.join()
            seconds = time.monotonic() - began
            continue
        time.sleep(seconds * (number + rng.random()) / count)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found = left(folder)
        problem = "" if call(load, folder, url) else "the next run does not recover"
        if after := left(folder):
            problem = problem or f"left behind by the next run: {after}"
        yield f"killed, {len(found)} files and folders left, then none", problem
