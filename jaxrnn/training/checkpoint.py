"""Checkpoints that are verified when they are read. Only this module imports orbax.

A checkpoint consists of the leaves of the state and a record: the step, the score, and the SHA-256
of every leaf, because orbax does not notice a flipped bit in array data. The record contains its
own SHA-256. The last two checkpoints and the best one are kept.

Several processes of `jax.distributed` save and restore together, in a directory that all of them
can access. Their states are the same. Process 0 holds the lock and moves damaged checkpoints.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    LatestN,
    PreservationPolicy,
)

__all__ = ["CheckpointError", "Checkpoints", "NotFiniteError"]

# The subdirectory of damaged checkpoints. Orbax ignores it, because its name is not a number.
DAMAGED = "damaged"
# The subdirectory of checkpoints that are being removed. A checkpoint is first moved there, so that
# what a killed process leaves of it is not taken for a damaged checkpoint.
REMOVED = "removed"
# The file that a writer locks.
LOCK = "lock"
# Errors that mean that a part of a checkpoint is missing. Other OSErrors are raised as they are.
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be saved or does not fit the state, or the directory is locked."""


class NotFiniteError(CheckpointError):
    """A state with NaN or infinite values is not saved.

    Attributes:
        nan: Whether some of the values are NaN.
    """

    def __init__(self, step: int, nan: bool):
        super().__init__(f"step {step}: the state is not finite, so it is not saved")
        self.nan = nan


class _Damage(Exception):
    """A checkpoint differs from what was saved."""


class Checkpoints:
    """The checkpoints of one run, as a context manager.

    Saves are asynchronous, and leaving the context waits for the last one. If there are several
    processes, all of them must open the directory for writing, save and restore, in the same order.
    Any one of them may open it for reading.

    Attributes:
        directory: The directory of the checkpoints.
    """

    def __init__(
        self,
        directory: Path,
        *,
        read_only: bool = False,
        locked: bool = False,
        warn: Callable[[str], None] = lambda line: None,
    ):
        """Opens a directory of checkpoints. For writing, it is created if necessary, and locked.

        All records are read. A checkpoint whose record is damaged is ignored.

        Args:
            directory: The directory.
            read_only: Whether the checkpoints are only restored. The directory is then not locked,
                and nothing in it changes.
            locked: Whether the caller holds the lock of the directory.
            warn: A function that is called with one line for every damaged checkpoint. If
                `read_only` is false, the checkpoint is moved to the subdirectory `damaged`, so that
                its step can be saved again.

        Raises:
            CheckpointError: If another process has opened the directory for writing, or an earlier
                version of this module has written its checkpoints.
            OSError: If the system does not allow reading it.
        """
        self.directory = directory.absolute()
        self._read_only = read_only
        self._warn = warn
        self._records: dict[int, dict[str, Any]] = {}
        self._step: int | None = None  # of the last save, which may still be in progress
        self._first = jax.process_index() == 0
        policy = AnyPreservationPolicy([LatestN(2), KeepBest(self._score)])
        options = ocp.CheckpointManagerOptions(
            multiprocessing_options=_alone() if read_only else ocp.options.MultiprocessingOptions(),
            preservation_policy=None if read_only else policy,
            read_only=read_only,
            save_interval_steps=0 if read_only else 1,
            create=not read_only,
            enable_async_checkpointing=not read_only,
            todelete_subdir=None if read_only else REMOVED,
        )
        with contextlib.ExitStack() as stack:
            if not (read_only or locked) and self._first:
                stack.enter_context(lock(self.directory))
            self._remove()
            self._manager = ocp.CheckpointManager(self.directory, options=options)
            stack.callback(self._close)
            for step in self._manager.all_steps():
                try:
                    self._records[step] = self._read_record(step)
                except _Damage as damage:
                    self._set_aside(step, damage)
            self._stack = stack.pop_all()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            self.wait()

    def save(self, step: int, state: Any, score: float | None = None) -> None:
        """Starts an asynchronous save. The state may be donated as soon as this returns.

        Args:
            step: The step, which must be larger than every step that was saved before.
            state: A tree of arrays, which may include typed keys.
            score: The best checkpoint is the one with the highest score. None if the state was not
                evaluated.

        Raises:
            NotFiniteError: If the state is not finite.
            CheckpointError: If this save or the one before it failed.
            OSError: If the system does not allow writing it.
        """
        types = {name: _type(leaf) for name, leaf in _named(state).items()}
        leaves = jax.device_get({name: _data(leaf) for name, leaf in _named(state).items()})
        leaves = {name: np.asarray(leaf) for name, leaf in leaves.items()}
        if not all(np.isfinite(leaf).all() for leaf in leaves.values()):
            raise NotFiniteError(step, any(np.isnan(leaf).any() for leaf in leaves.values()))
        self.wait()
        latest = self._manager.latest_step()
        if latest is not None and step <= latest:
            raise CheckpointError(f"{self.directory}: step {step} not saved: not above {latest}")
        record = {
            "step": int(step),
            "score": None if score is None or math.isnan(score) else float(score),
            "leaves": {
                name: {"type": types[name], "sha256": _digest(leaf)}
                for name, leaf in leaves.items()
            },
        }
        contents = ocp.args.Composite(
            state=ocp.args.StandardSave(leaves),
            digest=ocp.args.JsonSave(record | {"sha256": _seal(record)}),
        )
        self._step, self._records[step] = step, record
        with self._saving():
            if not self._manager.save(step, args=contents):
                raise RuntimeError("the folder is open for reading only")

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
            CheckpointError: If it failed.
            OSError: If the system did not allow writing it.
        """
        with self._saving():
            self._manager.wait_until_finished()
        self._remove()

    def restore(self, like: Any, *, best: bool = False) -> tuple[int, Any] | None:
        """Restores the latest or the best checkpoint that is not damaged.

        A checkpoint is compared with `like`, not with a model. Two models whose states have equal
        names, shapes and dtypes need a directory each.

        Args:
            like: A tree of arrays, or of `jax.ShapeDtypeStruct`, with the structure, shapes and
                dtypes of the state.
            best: Whether to restore the checkpoint with the highest score, and the latest of equal
                ones, instead of the latest.

        Returns:
            The step and the state, whose leaves are NumPy arrays and typed keys. None if there is
            no undamaged checkpoint.

        Raises:
            CheckpointError: If the leaves of the checkpoint are not those of `like`, or the save in
                progress failed.
            OSError: If the system does not allow reading it.
        """
        self.wait()
        wanted = _named(like)
        types = {name: _type(leaf) for name, leaf in wanted.items()}
        for step in self._candidates(best):
            record = self._records[step]
            saved = {name: leaf["type"] for name, leaf in record["leaves"].items()}
            if changes := _differences(saved, types):
                raise CheckpointError(
                    f"{self.directory / str(step)} holds another state than the one to restore "
                    f"({'; '.join(changes)})"
                )
            try:
                found = self._read(step, wanted)
            except _Damage as damage:
                self._set_aside(step, damage)
                continue
            leaves = [_like(leaf, found[name]) for name, leaf in wanted.items()]
            return step, jax.tree.unflatten(jax.tree.structure(like), leaves)
        return None

    def _candidates(self, best: bool) -> list[int]:
        steps = sorted(set(self._manager.all_steps()) & self._records.keys(), reverse=True)
        return sorted(steps, key=self._score, reverse=True) if best else steps

    def _score(self, step: int) -> float:
        """Returns the score of a step, or minus infinity if it has none."""
        score = self._records[step]["score"] if step in self._records else None
        return -math.inf if score is None else score

    def _read_record(self, step: int) -> dict[str, Any]:
        # Orbax would report a directory without read permission as missing.
        folder = self.directory / str(step)
        try:
            record = json.loads((folder / "digest" / "metadata").read_text(encoding="utf-8"))
        except (*MISSING, ValueError) as error:
            raise _Damage(f"its record cannot be read: {_line(error)}") from error
        if isinstance(record, dict) and record.keys() == {"sha256", "score"}:
            raise CheckpointError(
                f"{folder} is from an earlier version of jaxrnn, which did not record its leaves"
            )
        if not isinstance(record, dict) or record.get("sha256") != _seal(record):
            raise _Damage("its record does not match its SHA-256")
        if record["step"] != step:
            raise _Damage(f"it was saved as step {record['step']}")
        return record

    def _read(self, step: int, wanted: dict[str, Any]) -> dict[str, np.ndarray]:
        targets = {name: _target(leaf) for name, leaf in wanted.items()}
        contents = ocp.args.Composite(state=ocp.args.StandardRestore(targets))
        try:
            found = self._manager.restore(step, args=contents)["state"]
            leaves = {name: np.asarray(found[name]) for name in targets}
        except Exception as error:  # a damaged file makes orbax raise errors of many types
            with contextlib.suppress(*MISSING):
                _open_all(self.directory / str(step))
            _raise_os_error(error)
            raise _Damage(_line(error)) from error
        for name, leaf in leaves.items():
            if _digest(leaf) != self._records[step]["leaves"][name]["sha256"]:
                raise _Damage(f"{name} does not match its SHA-256")
        return leaves

    def _set_aside(self, step: int, damage: _Damage) -> None:
        """Warns of a damaged checkpoint, and moves it to `damaged` if the directory is writable."""
        folder = self.directory / str(step)
        self._records.pop(step, None)
        if self._read_only:
            if folder.exists():  # otherwise a writer has removed it in the meantime
                self._warn(f"{folder} is damaged and ignored: {damage}")
            return
        names = itertools.chain([str(step)], (f"{step}-{n}" for n in itertools.count(2)))
        target = next(
            path for name in names if not (path := self.directory / DAMAGED / name).exists()
        )
        _meet(f"all have read step {step}")
        if self._first:
            (self.directory / DAMAGED).mkdir(exist_ok=True)
            folder.rename(target)
        _meet(f"step {step} is set aside")
        self._manager.reload()
        self._warn(f"{folder} is damaged and moved to {target}: {damage}")

    def _close(self) -> None:
        """Closes orbax' manager, which raises the error of a failed save once more."""
        with self._saving():
            self._manager.close()

    def _remove(self) -> None:
        """Removes the checkpoints that are not kept."""
        if self._first and not self._read_only:
            shutil.rmtree(self.directory / REMOVED, ignore_errors=True)

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """Raises a `CheckpointError` that names the step for every error but an OSError."""
        try:
            yield
        except Exception as error:
            if system := _os_error(error):
                reason = os.strerror(system.errno) if system.errno else _line(system)
                text = f"step {self._step} not saved: {reason}"
                raise OSError(system.errno, text, str(self.directory)) from error
            raise CheckpointError(
                f"{self.directory}: step {self._step} not saved: {_line(error)}"
            ) from error


class KeepBest(PreservationPolicy):
    """Keeps the checkpoint with the highest score, and the latest of equal ones.

    Orbax's BestN reads the scores that orbax stores, and fails if one of them is damaged.
    """

    def __init__(self, score: Callable[[int], float]):
        self._score = score

    def should_preserve(self, checkpoints, *, context):
        """Returns one boolean for each checkpoint, as orbax requires."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = max(steps, key=lambda step: (self._score(step), step), default=None)
        return [step == best for step in steps]


def _named(tree: Any) -> dict[str, Any]:
    """Returns the leaves by names like `params/cell/kernel`, in the order of `jax.tree.leaves`."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two leaves of the state have the name {min(twice)}")
    return dict(zip(names, (_array(leaf) for _, leaf in paths), strict=True))


def _array(leaf: Any) -> Any:
    """Returns the leaf as an array in the native byte order, the one that orbax restores."""
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    if isinstance(leaf, np.ndarray):
        leaf = leaf.astype(leaf.dtype.newbyteorder("="), copy=False)
    return leaf


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _data(leaf: Any) -> Any:
    """Returns the array to store for a leaf: the data of a typed key, or the leaf itself."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _target(like: Any) -> np.ndarray:
    """Returns an array with the shape and dtype of `_data(like)`."""
    data = jax.eval_shape(jax.random.key_data, like) if _is_key(like) else like
    return np.zeros(data.shape, data.dtype)


def _like(like: Any, data: np.ndarray) -> Any:
    """Returns the leaf of which `_data` returned `data`."""
    if not _is_key(like):
        return data
    return jax.random.wrap_key_data(
        jnp.asarray(data), impl=jax.random.key_impl(jnp.empty((), like.dtype))
    )


def _type(leaf: Any) -> str:
    """Returns the dtype and shape of a leaf, such as `float32[3,2]`."""
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _differences(saved: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """Returns one line for each leaf that is missing, unexpected or of another shape or dtype."""
    return [
        f"{name}: {saved.get(name, 'nothing')} in the checkpoint, {wanted.get(name, 'nothing')} "
        "in the state"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]


def _digest(leaf: np.ndarray) -> str:
    return hashlib.sha256(_type(leaf).encode() + leaf.tobytes()).hexdigest()


def _seal(record: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a record without its own entry `sha256`."""
    entries = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _line(error: Exception) -> str:
    """Returns the message of an error in one line of at most 300 characters."""
    return textwrap.shorten(str(error), 300) or type(error).__name__


def _raise_os_error(error: Exception) -> None:
    """Raises an error of the system, even if tensorstore has wrapped it in a ValueError."""
    if isinstance(error, MemoryError):
        raise error
    if system := _os_error(error):
        raise system from (None if system is error else error)


def _os_error(error: Exception) -> OSError | None:
    """Returns an OSError of the system, also one that tensorstore has wrapped, or None."""
    system = error if isinstance(error, OSError) else None
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
        system = OSError(int(found[1]), f"{os.strerror(int(found[1]))}: {_line(error)}")
    return None if isinstance(system, MISSING) else system


def _open_all(folder: Path) -> None:
    """Opens every file, because orbax reports a file without read permission as missing.

    Raises:
        OSError: If a file cannot be opened.
    """

    def fail(error: OSError) -> None:
        raise error

    for root, _, files in os.walk(folder, onerror=fail):
        for file in files:
            (Path(root) / file).open("rb").close()


def _alone() -> ocp.options.MultiprocessingOptions:
    """Returns orbax's options for a directory that this process reads without the others."""
    process = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=process, active_processes={process})


def _meet(name: str) -> None:
    """Waits until all processes have called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def lock(directory: Path) -> IO[str]:
    """Locks a directory against other writers until the returned file is closed.

    Raises:
        CheckpointError: If another process holds the lock.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = (directory / LOCK).open("a")  # which empties no file that a link may point to
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if isinstance(error, BlockingIOError):
            raise CheckpointError(f"{directory} is in use by another process") from None
        raise
    return file
