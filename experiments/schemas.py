"""What the files of runs and studies contain."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict


class Evaluation(TypedDict):
    """A record of metrics.jsonl."""

    step: int
    loss: float
    test_accuracy: float
    validation_accuracy: float | None
    seconds: float


class Result(TypedDict):
    """The contents of result.json."""

    dataset: str
    note: str
    parameters: int
    steps: int
    final_test_accuracy: float
    selected_step: int
    selected_validation_accuracy: float | None
    selected_test_accuracy: float
    best_test_accuracy: float
    evaluations: int
    seconds: dict[str, float]
    seconds_with_interruptions: float
    peak_memory_bytes: int


class Point(TypedDict):
    """A point of a learning curve."""

    step: int
    loss: float | None
    validation_accuracy: float
    test_accuracy: float


class Record(TypedDict):
    """A record of results.jsonl, of one run of a study."""

    setting: str
    seed: int
    identity: str
    parameters: int
    seconds: float
    ms_per_step: float
    machine: str
    revision: NotRequired[str | None]
    jax: NotRequired[str]
    together: int
    dataset: str
    status: Literal["ok", "diverged"]
    test_accuracy: float
    validation_accuracy: float
    curve: list[Point]


class Setting(TypedDict):
    """A setting in the config.json of a study."""

    options: dict[str, Any]
    data_sha256: str
    set: list[str]
    runs: list[str]


class Study(TypedDict):
    """The contents of the config.json of a study."""

    study: str
    about: str
    baseline: NotRequired[str | None]
    commands: list[str]
    settings: dict[str, Setting]
    environment: dict[str, Any]
