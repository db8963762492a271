"""Selects the devices that share a batch, and the amount of work that each does at once."""

from __future__ import annotations

import contextlib
import os
import re

import jax
from errors import OptionError
from jax.sharding import Mesh

from jaxrnn.training.run import cores
from jaxrnn.training.train import make_mesh

# A running program cannot be interrupted, so a chunk of train steps takes about a second.
TIME_STEPS_PER_CHUNK = 2800
# Numbers of examples whose arrays fit in the caches of a CPU core while the other cores work. A
# ReNet reads several sequences for each example, one for each row of patches.
SLICE, PATCHED_SLICE = 50, 20


def share_batch(batch_size: int, devices: int | None, processes: int = 1) -> Mesh:
    """Returns a mesh of the devices that share each batch, the same number from every process.

    Args:
        batch_size: The number of examples in a batch.
        devices: The number of devices of each process. Defaults to the most that divide the batch
            evenly.
        processes: The number of processes.

    Raises:
        OptionError: If there are too few devices, or they do not divide the batch evenly.
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
    """Divides the CPU into a number of devices, which are single-threaded if there are several.

    A number of devices that the user has set in XLA_FLAGS or JAX_NUM_CPU_DEVICES is kept.

    A second thread does not speed up the small matrix products of a cell, so a CPU is fastest with
    one device per core. Must be called before JAX starts its backend.
    """
    flags, threads = os.environ.get("XLA_FLAGS", ""), "--xla_cpu_multi_thread_eigen"
    forced = re.findall(r"--xla_force_host_platform_device_count=(\d+)", flags)
    forced = forced or re.findall(r"^\d+$", os.environ.get("JAX_NUM_CPU_DEVICES", ""))
    devices = int(forced[-1]) if forced else devices
    if devices > 1 and threads not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {threads}=false".strip()
    if forced:
        return
    with contextlib.suppress(RuntimeError):  # the backend is running and keeps its devices
        jax.config.update("jax_num_cpu_devices", devices)


def largest_share(batch_size: int, available: int) -> int:
    """Returns the largest number of the available devices that divides a batch evenly."""
    return max(n for n in range(1, available + 1) if batch_size % n == 0)


def chunk_size(time_steps: int) -> int:
    """Returns the number of train steps in one program."""
    return max(1, TIME_STEPS_PER_CHUNK // time_steps)


def slices(share: int, *, patched: bool) -> int:
    """Returns the number of parts in which a device computes its share of a batch.

    A CPU core computes parts that fit in its caches one after the other.

    Args:
        share: The number of examples of a batch that one device has.
        patched: Whether the model is a ReNet.
    """
    parts = share // (PATCHED_SLICE if patched else SLICE)
    on_cpu = jax.default_backend() == "cpu"
    return parts if on_cpu and parts and share % parts == 0 else 1
