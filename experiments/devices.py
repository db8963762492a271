"""The devices that a script computes with, and how much work each is given at once."""

from __future__ import annotations

import contextlib
import os

import jax
from errors import OptionError
from jax.sharding import Mesh

from jaxrnn.training.run import cores
from jaxrnn.training.train import make_mesh

# A program on the device cannot be interrupted, so a chunk of steps is kept to about a second.
TIME_STEPS_PER_CHUNK = 2800
# Examples whose arrays stay in a CPU core's caches, also while its neighbour works. A ReNet reads
# as many sequences for each as the image has rows of patches.
SLICE, PATCHED_SLICE = 50, 20


def share_batch(batch_size: int, devices: int | None, processes: int = 1) -> Mesh:
    """The devices that share each batch: of every process the same number.

    Args:
        batch_size: Examples of a batch.
        devices: Devices of each process, by default all that divide the batch evenly.
        processes: Number of processes.

    Raises:
        OptionError: If there are fewer devices than asked for, or they cannot share the batch.
    """
    if batch_size % processes:
        raise OptionError(f"{processes} processes cannot share --batch-size {batch_size}")
    part = batch_size // processes
    divide_cpu(largest_share(part, devices or cores()))
    owned = [
        [device for device in jax.devices() if device.process_index == process]
        for process in range(processes)
    ]
    fewest = min(map(len, owned))
    share = largest_share(part, devices or fewest)
    if devices not in (None, share):
        raise OptionError(f"--devices {devices} cannot share --batch-size {batch_size}")
    if share > fewest:
        raise OptionError(f"--devices must be at most {fewest} here")
    return make_mesh(devices=[device for own in owned for device in own[:share]])


def divide_cpu(devices: int) -> None:
    """Makes the CPU so many devices, single-threaded if there are several.

    XLA does not speed up a cell's small products with a second thread, so that a CPU is used best
    with one device a core. Must be called before JAX starts its backend.
    """
    if devices > 1:
        flags, flag = os.environ.get("XLA_FLAGS", ""), "--xla_cpu_multi_thread_eigen=false"
        if flag not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()
    with contextlib.suppress(RuntimeError):  # the backend runs already, with the devices it has
        jax.config.update("jax_num_cpu_devices", devices)


def largest_share(batch_size: int, available: int) -> int:
    """The most devices, of those available, that divide a batch evenly."""
    return max(n for n in range(1, available + 1) if batch_size % n == 0)


def chunk_size(time_steps: int) -> int:
    """Training steps in one program."""
    return max(1, TIME_STEPS_PER_CHUNK // time_steps)


def slices(share: int, *, patched: bool) -> int:
    """Number of parts into which a CPU core cuts its share of a batch, to keep them in its caches.

    Args:
        share: Examples of a batch that one device has.
        patched: Whether the model is a ReNet.
    """
    parts = share // (PATCHED_SLICE if patched else SLICE)
    on_cpu = jax.default_backend() == "cpu"
    return parts if on_cpu and parts and share % parts == 0 else 1
