"""Checkpoints that are verified when read; the only module that imports orbax.

Each step holds the leaves of the state and a SHA-256 over them, because orbax reads array data
with a flipped bit as if nothing were wrong. The last two steps and the best one are kept.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    LatestN,
    PreservationPolicy,
)

# Below every accuracy, so that a step without a (finite) score never displaces the best one.
NO_SCORE = -1.0


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or another process holds the folder."""


class Checkpoints:
    """The checkpoints of one run; a context manager, since the last save is asynchronous.

    Attributes:
        directory: The folder that holds them.
    """

    def __init__(
        self,
        directory: Path,
        *,
        read_only: bool = False,
        warn: Callable[[str], None] = lambda line: None,
    ):
        """Opens a folder of checkpoints and, for writing, creates and locks it.

        Args:
            directory: The folder.
            read_only: Only restore; takes no lock.
            warn: Called with one line for every damaged checkpoint.

        Raises:
            CheckpointError: If another process has the folder open for writing.
        """
        self.directory = directory.absolute()
        self._read_only = read_only
        self._warn = warn
        self._lock = None if read_only else lock(self.directory)
        self._scores: dict[int, float] = {}
        policy = AnyPreservationPolicy([LatestN(2), KeepBest(self._scores)])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=None if read_only else policy,
            read_only=read_only,
            save_interval_steps=0 if read_only else 1,
            create=not read_only,
            enable_async_checkpointing=not read_only,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        for step in self._manager.all_steps():
            self._scores[step] = self._read_score(step)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._manager.close()  # waits for the last save
        finally:
            if self._lock is not None:
                self._lock.close()

    def save(self, step: int, state: Any, score: float | None = None) -> None:
        """Starts an asynchronous save; the state may be donated as soon as this returns.

        Args:
            step: Larger than every step saved before.
            state: A tree of arrays.
            score: What the best checkpoint has most of; None if it was not evaluated.

        Raises:
            CheckpointError: If the state is not finite or the step could not be saved.
        """
        leaves = _leaves(jax.device_get(state))
        if not all(np.isfinite(leaf).all() for leaf in leaves.values()):
            raise CheckpointError(f"step {step}: the state is not finite, so it is not saved")
        score = NO_SCORE if score is None or math.isnan(score) else score
        contents = ocp.args.Composite(
            state=ocp.args.StandardSave(leaves),
            digest=ocp.args.JsonSave({"sha256": _digest(leaves), "score": score}),
        )
        self._scores[step] = score
        try:
            saved = self._manager.save(step, args=contents)
        except Exception as error:
            raise CheckpointError(f"{self.directory}: step {step} not saved: {error}") from error
        if not saved:
            raise CheckpointError(
                f"{self.directory}: step {step} not saved: not above {self._manager.latest_step()}"
            )

    def restore(self, like: Any, *, best: bool = False) -> tuple[int, Any] | None:
        """Restores the latest (or best) checkpoint whose contents are as they were saved.

        Damaged ones are named through `warn` and, when writing, removed, so that their steps can
        be saved again.

        Args:
            like: A tree of arrays with the structure, shapes and dtypes of the state.
            best: Whether to take the highest score (the later step among equals) first.

        Returns:
            The step and the state with NumPy leaves, or None if no good checkpoint is there.
        """
        shapes = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
        for step in self._candidates(best):
            try:
                restored = self._read(step, _leaves(shapes))
            except Exception as error:  # whatever a damaged file makes orbax raise
                reason = str(error).strip().splitlines() or [type(error).__name__]
                self._warn(f"{self.directory}/{step} is damaged and left out: {reason[0]}")
                if not self._read_only:
                    shutil.rmtree(self.directory / str(step), ignore_errors=True)
                    self._manager.reload()
                continue
            return step, jax.tree.unflatten(jax.tree.structure(like), list(restored.values()))
        return None

    def _candidates(self, best: bool) -> list[int]:
        steps = sorted(self._manager.all_steps(), reverse=True)
        return sorted(steps, key=self._scores.__getitem__, reverse=True) if best else steps

    def _read_score(self, step: int) -> float:
        try:
            contents = ocp.args.Composite(digest=ocp.args.JsonRestore())
            return float(self._manager.restore(step, args=contents)["digest"]["score"])
        except Exception:  # a damaged step: restore will find out and say so
            return NO_SCORE

    def _read(self, step: int, like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        contents = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(like), digest=ocp.args.JsonRestore()
            ),
        )
        leaves = {name: np.asarray(contents["state"][name]) for name in like}
        if _digest(leaves) != contents["digest"]["sha256"]:
            raise ValueError("the SHA-256 of its arrays is not the recorded one")
        return leaves


class KeepBest(PreservationPolicy):
    """Keeps the step of the highest score, the later among equals.

    Orbax's own BestN reads the scores that it stores itself, and cannot open a folder in which one
    of them is damaged.
    """

    def __init__(self, scores: Mapping[int, float]):
        self._scores = scores

    def should_preserve(self, checkpoints, *, context):
        """One boolean for each checkpoint, as orbax asks."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = max(steps, key=lambda step: (self._scores.get(step, NO_SCORE), step), default=None)
        return [step == best for step in steps]


def _leaves(state: Any) -> dict[str, np.ndarray]:
    """The state as a flat dictionary, in the order of `jax.tree.leaves`."""
    paths = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in paths}


def _digest(leaves: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, leaf in leaves.items():
        digest.update(f"{name} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def lock(directory: Path) -> IO[str]:
    """Holds the folder against other writers for as long as the returned file is open.

    Raises:
        CheckpointError: If another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = (directory / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise CheckpointError(f"{directory} is in use by another process") from None
    return file
