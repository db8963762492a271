"""Connects several processes, on one host or on many, that train one network together.

The coordination service of `jax.distributed`, which runs in process 0, connects the processes and
detects when one is lost. Process 0 alone prints and writes files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from errors import OptionError
from jax._src import distributed  # its client has no public name
from jax.experimental import multihost_utils
from options import Config, check_address

# Time that the first processes wait for the last.
MEETING_SECONDS = 300
# Time without a heartbeat after which a process is taken for dead.
HEARTBEAT_SECONDS = 20
# Time that a process waits for the others at the end, or for a decision of process 0.
PATIENCE_SECONDS = 3600
# Options that may differ between the processes.
OWN = ("data_dir", "process_id")
# Words in the errors of JAX and orbax that come from the loss of another process.
FROM_OUTSIDE = re.compile("gloo|nccl|coordination|barrier|unavailable|heartbeat", re.IGNORECASE)

_decisions = itertools.count()


@contextlib.contextmanager
def join(config: Config) -> Iterator[int]:
    """Connects to the other processes if the options ask for it; yields their number.

    Must be entered before JAX starts its backend.

    Raises:
        OptionError: If the others are not named, or do not connect.
    """
    named = (config.coordinator, config.num_processes, config.process_id)
    if not config.distributed and named == (None, None, None):
        yield 1
        return
    _check(config)
    filter_stderr()
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs a save that another left
    # The service would catch SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            *named,
            initialization_timeout=MEETING_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=PATIENCE_SECONDS,
        )
    except ValueError as error:
        raise OptionError(
            "neither --coordinator, --num-processes and --process-id nor a cluster name the "
            f"processes: {error}"
        ) from None
    except RuntimeError as error:
        raise OptionError(f"the processes did not meet: {str(error).splitlines()[0]}") from None
    if distributed.global_state.process_id:  # Gloo prints there
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        yield distributed.global_state.num_processes
    except Exception as error:
        if FROM_OUTSIDE.search(str(error)):
            # Gives the service time to detect the lost process, and to end this one.
            time.sleep(2 * HEARTBEAT_SECONDS)
        raise
    jax.distributed.shutdown()


def end(script: Callable[[], int]) -> int:
    """Calls a script, and exits at once if this process is still connected to others, or failed.

    At a normal exit JAX would wait for the others, which in turn wait for a process that failed.
    Python would wait for the threads of orbax, which wait for minutes after a save that failed.
    """
    code = 1
    try:
        code = script()
    except Exception:
        if not joined():
            raise
        traceback.print_exc()
    if joined() or (code and waiting()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def waiting() -> bool:
    """Returns whether Python would wait for another thread at its exit."""
    return any(
        not thread.daemon
        for thread in threading.enumerate()
        if thread is not threading.main_thread()
    )


def joined() -> bool:
    """Returns whether this process is connected to others."""
    return distributed.global_state.client is not None


def first() -> bool:
    """Returns whether this is process 0, or the only process."""
    return jax.process_index() == 0


def decide(function: Callable[[], Any]) -> Any:
    """Calls a function in process 0, and returns its result in all processes, through JSON.

    All processes must make the same calls in the same order.
    """
    client: Any = distributed.global_state.client
    if client is None:
        return function()
    key = f"jaxrnn/decision/{next(_decisions)}"
    if first():
        client.key_value_set(key, json.dumps(function()))
    return json.loads(client.blocking_key_value_get(key, 1000 * PATIENCE_SECONDS))


def check_same(config: Config, identity: Mapping[str, Any]) -> None:
    """Checks that all processes have the same options and data.

    Raises:
        OptionError: In process 0 and in the process that differs from it.
    """
    client: Any = distributed.global_state.client
    if client is None:
        return
    shared = {name: str(value) for name, value in dataclasses.asdict(config).items()}
    shared = {name: value for name, value in shared.items() if name not in OWN}
    words = json.dumps([shared, identity], sort_keys=True, default=str)
    own = hashlib.sha256(words.encode()).hexdigest()
    client.key_value_set(f"jaxrnn/same/{jax.process_index()}", own)
    for process in range(jax.process_count()) if first() else (0,):
        other = client.blocking_key_value_get(f"jaxrnn/same/{process}", 1000 * PATIENCE_SECONDS)
        if other != own:
            different = process or jax.process_index()
            raise OptionError(f"process {different} has other options or other data than process 0")


def stopped_by(number: int | None) -> int | None:
    """Returns the largest signal that any process has caught, which stops all, or None."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number or 0)).max()) or None


def _check(config: Config) -> None:
    """Raises OptionError for an address with which JAX would fail in a traceback, or crash."""
    if config.coordinator is None:
        return
    check_address(config.coordinator)
    if config.process_id == 0:
        port = config.coordinator.rpartition(":")[2]
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise OptionError(f"--coordinator {config.coordinator}: {error}") from None


def filter_stderr() -> None:
    """Passes stderr through coordination_errors.py."""
    filtering = subprocess.Popen(
        [sys.executable, "-S", str(Path(__file__).with_name("coordination_errors.py"))],
        stdin=subprocess.PIPE,
        stdout=sys.stderr.fileno(),
        start_new_session=True,  # Ctrl-C is for this process
    )
    assert filtering.stdin is not None
    os.dup2(filtering.stdin.fileno(), 2)
    filtering.stdin.close()
