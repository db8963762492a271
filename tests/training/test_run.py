"""The directory of a run: configurations are never mixed, files are complete or absent."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from jaxrnn.training import run as run_module
from jaxrnn.training.checkpoint import CheckpointError, lock
from jaxrnn.training.files import FileError, append_record, read_records
from jaxrnn.training.run import (
    OtherConfiguration,
    Run,
    RunError,
    Stop,
    differences,
    git_revision,
)


def test_a_new_folder_records_configuration_and_environment(tmp_path):
    run = Run(tmp_path / "deep" / "run")
    assert run.open({"seed": 0, "order": "rows"}) == []
    stored = run.read("config.json")
    assert stored["config"] == {"seed": 0, "order": "rows"}
    assert {"jax", "python", "cores", "device", "git_revision"} <= stored["environment"].keys()


def test_a_revision_is_dirty_by_changed_code_only(tmp_path, monkeypatch):
    code = tmp_path / "jaxrnn" / "training" / "run.py"
    monkeypatch.setattr(run_module, "__file__", str(code))
    code.parent.mkdir(parents=True)
    code.write_text("1\n")
    (tmp_path / "results.jsonl").write_text("")
    assert git_revision() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    clean = git_revision()
    assert clean
    (tmp_path / "results.jsonl").write_text("a run\n")
    assert git_revision() == clean
    code.write_text("2\n")
    assert git_revision() == f"{clean}-dirty"


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    run = Run(tmp_path)
    run.open({"seed": 0, "order": "rows"})
    with pytest.raises(RunError) as error:
        run.open({"seed": 1, "order": "rows", "size": 3})
    assert str(error.value) == (
        f"{tmp_path} holds a run with other options (seed: 0, now 1; size: None, now 3); "
        "choose another folder"
    )
    with pytest.raises(RunError, match="order: rows, now None"):
        run.open({"seed": 0})
    assert run.open({"seed": 0, "order": "rows"}) == []


def test_a_part_of_the_configuration_is_checked_and_nothing_is_written(tmp_path):
    run = Run(tmp_path / "run")
    run.check({"seed": 1})
    assert not run.directory.exists()
    run.open({"seed": 0, "order": "rows", "sizes": (1, 2)})
    before = run.read("config.json")
    run.check({"seed": 0, "sizes": (1, 2)})
    with pytest.raises(OtherConfiguration, match=r"other options \(seed: 0, now 1\); choose"):
        run.check({"seed": 1})
    assert run.read("config.json") == before
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="is not empty and holds no run"):
        Run(tmp_path).check({})


def test_the_difference_of_a_hash_is_what_has_changed():
    one, two = {"cell": "a.py:lstm", "cell_sha256": "1"}, {"cell": "a.py:lstm", "cell_sha256": "2"}
    assert differences(one, two) == ["a.py:lstm has changed"]
    assert differences({"data_sha256": "1"}, {"data_sha256": "2"}) == ["data has changed"]
    one, two = {"a.py": "1", "b.py": "1", "c.py": "1"}, {"a.py": "1", "b.py": "2", "d.py": "1"}
    lines = [f"{name}.py has changed" for name in "bcd"]
    assert differences({"cell_sha256": one}, {"cell_sha256": two}) == lines


@pytest.mark.parametrize("name", ["thesis.tex", "thesis.tmp"])
def test_a_folder_of_something_else_is_left_alone(name, tmp_path):
    (tmp_path / name).write_text("years of work")
    with pytest.raises(RunError, match="holds no run"):
        Run(tmp_path).open({"seed": 0}, start_over=True)
    assert (tmp_path / name).read_text() == "years of work"


def test_starting_over_removes_what_was_there(tmp_path):
    run = Run(tmp_path / "run")
    run.open({"seed": 0})
    run.append_metrics({"step": 100})
    run.finish({"accuracy": 1.0})
    assert run.finished
    run.open({"seed": 1}, start_over=True)
    assert not run.finished
    assert run.metrics() == []
    assert {path.name for path in run.directory.rglob("*")} == {
        "config.json",
        "checkpoints",
        "lock",
    }
    assert run.read("config.json")["config"] == {"seed": 1}


def test_symbolic_links_in_a_run_change_nothing_elsewhere(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("years of work")
    run = Run(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    (run.checkpoints / "lock").symlink_to(elsewhere / "file")
    (run.directory / "config.json.tmp").symlink_to(elsewhere / "file")
    run.open({"seed": 0})
    (run.directory / "folder").symlink_to(elsewhere)
    (run.checkpoints / "100").symlink_to(elsewhere)
    run.open({"seed": 1}, start_over=True)
    assert {path.name for path in run.directory.rglob("*")} == {
        "config.json",
        "checkpoints",
        "lock",
    }
    (run.checkpoints / "lock").unlink()
    run.checkpoints.rmdir()
    run.checkpoints.symlink_to(elsewhere)
    with pytest.raises(RunError, match="checkpoints is a symbolic link, whose contents are not"):
        run.open({"seed": 0}, start_over=True)
    assert (elsewhere / "file").read_text() == "years of work"


def test_killed_while_it_starts_or_starts_over_it_can_be_started_again(tmp_path, monkeypatch):
    (tmp_path / "config.json.tmp").write_text('{"conf')
    run = Run(tmp_path)
    assert run.open({"seed": 0}) == []
    run.append_metrics({"step": 100})
    run.finish({"accuracy": 1.0})
    (run.checkpoints / "100").mkdir(parents=True)

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        run.open({"seed": 0}, start_over=True)
    assert run.open({"seed": 0}) == []
    assert not run.finished


def test_a_run_in_progress_is_not_started_over(tmp_path):
    run = Run(tmp_path / "run")
    run.open({"seed": 0})
    with lock(run.checkpoints):
        for start in (run.lock, lambda: run.open({"seed": 0}, start_over=True)):
            with pytest.raises(CheckpointError, match="in use"):
                start()
    assert run.read("config.json")
    with run:
        run.lock()
        with pytest.raises(CheckpointError, match="in use"):
            Run(run.directory).open({"seed": 0}, start_over=True)
        run.open({"seed": 1}, start_over=True)  # and stays locked
        with pytest.raises(CheckpointError, match="in use"):
            Run(run.directory).lock()
    Run(run.directory).open({"seed": 0}, start_over=True)


def test_killed_after_the_lock_is_created_it_can_be_started_again(tmp_path):
    with Run(tmp_path) as run:
        run.lock()
    assert Run(tmp_path).open({"seed": 0}) == []
    # But a run whose configuration is lost is not taken for a new one.
    (tmp_path / "config.json").unlink()
    (tmp_path / "checkpoints" / "100").mkdir()
    with pytest.raises(RunError, match="is not empty and holds no run"):
        Run(tmp_path).open({"seed": 0})


def test_another_environment_is_reported(tmp_path):
    run = Run(tmp_path)
    run.open({"seed": 0})
    stored = run.read("config.json")
    stored["environment"]["jax"] = "0.1"
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert [line.split(", now ")[0] for line in run.open({"seed": 0})] == ["jax: 0.1"]


def test_metrics_lose_a_torn_line_and_what_comes_after_a_step(tmp_path):
    run = Run(tmp_path)
    for step in (100, 200, 300):
        run.append_metrics({"step": step, "loss": step / 7})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 400, "lo')
    assert [record["step"] for record in run.metrics()] == [100, 200, 300]
    assert run.rewind_metrics(200) == run.metrics()
    run.append_metrics({"step": 300, "loss": 1.0})
    assert [record["step"] for record in run.metrics()] == [100, 200, 300]


def test_a_file_of_records_loses_only_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "records.jsonl"
    assert read_records(path) == []
    for number in range(2):
        append_record(path, {"é": number})
    with path.open("a") as file:
        file.write('{"é": 2, "é')
    assert read_records(path) == [{"é": 0}, {"é": 1}]
    append_record(path, {"é": 3})
    assert [record["é"] for record in read_records(path)] == [0, 1, 3]
    assert path.read_text().count("\n") == 3


def test_an_unusable_folder_is_reported_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for file in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match="cannot be used"):
            Run(file).open({})
    with pytest.raises(RunError, match=r"config\.json is missing"):
        Run(tmp_path).read("config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(OtherConfiguration, match=r"config\.json is damaged: not JSON"):
        Run(tmp_path).open({})
    Run(tmp_path).check({})


FOREIGN = {
    "not JSON: ": [b"", b"{", b"[" * 100_000, b"\xff"],
    "is not a dict": [b"[]", b"null", b"3"],
    'missing required key(s): "config"': [b'{"environment": {}}'],
    "value of key 'config' of dict is not a dict": [b'{"config": [], "environment": {}}'],
}


@pytest.mark.parametrize("problem", FOREIGN)
def test_json_that_is_not_ours_is_refused(problem, tmp_path):
    run = Run(tmp_path)
    for text in FOREIGN[problem]:
        (tmp_path / "config.json").write_bytes(text)
        with pytest.raises(OtherConfiguration) as error:
            run.open({"seed": 0})
        assert re.search(rf"config\.json is damaged: .*{re.escape(problem)}", str(error.value))
        assert "\n" not in str(error.value)
    assert run.open({"seed": 0}, start_over=True) == []


def test_a_flipped_bit_is_found(tmp_path):
    run = Run(tmp_path)
    run.open({"seed": 0, "rate": 0.1})
    run.finish({"accuracy": 0.25})
    run.append_metrics({"step": 1, "loss": 0.5})
    warnings = []
    for name, read in (
        ("config.json", run.configuration),
        ("result.json", lambda: run.result(dict[str, float], warnings.append)),
        ("metrics.jsonl", lambda: run.metrics(dict[str, float], warnings.append)),
    ):
        path, before = tmp_path / name, read()
        written = path.read_bytes()
        for bit in random.Random(0).sample(range(8 * len(written)), 40):
            flipped = bytearray(written)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            warnings.clear()
            try:
                found = read()
            except OtherConfiguration:
                continue
            assert found == before or warnings or not flipped.endswith(b"\n")
        path.write_bytes(written)
        assert read() == before


def test_of_the_metrics_what_is_damaged_is_left_out_with_a_line(tmp_path):
    run, path, warnings = Run(tmp_path), tmp_path / "metrics.jsonl", []
    for step in (100, 200, 300):
        run.append_metrics({"step": step})
    one, two, three = path.read_bytes().splitlines(keepends=True)
    for bad in (b"[]\n", b"3\n", b"null\n", b"\n", b"\xff\n"):
        path.write_bytes(one + bad + bad + three + two + three)
        with pytest.raises(RunError, match=r"metrics\.jsonl has damaged lines: 2, first line 2: "):
            run.metrics()
        assert [each["step"] for each in run.rewind_metrics(300, warn=warnings.append)] == [
            100,
            200,
            300,
        ]
        assert path.read_bytes() == one + two + three
    assert len(warnings) == 5
    assert all("\n" not in line for line in warnings)


@pytest.mark.parametrize("kind", [Path.mkdir, os.mkfifo])
def test_what_is_not_a_file_is_not_read(kind, tmp_path):
    kind(tmp_path / "result.json")
    assert Run(tmp_path).result(warn=(warnings := []).append) is None
    assert "not a regular file" in warnings[0]


class _FullDisk:
    """A file that takes ten bytes."""

    def __init__(self, file):
        self._file = file

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, text):
        self._file.write(text[:10])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_on_a_full_disk_files_stay_as_they_are_and_are_named(tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.append_metrics({"step": 100})
    run.finish({"accuracy": 0.5})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda *words, **named: _FullDisk(opened(*words, **named)))
    with pytest.raises(OSError, match=r"No space left on device: .*metrics\.jsonl"):
        run.append_metrics({"step": 200})
    with pytest.raises(OSError, match=r"No space left on device: .*result\.json"):
        run.finish({"accuracy": 0.7})
    monkeypatch.undo()
    assert [record["step"] for record in run.metrics()] == [100]
    run.append_metrics({"step": 200})
    assert [record["step"] for record in run.metrics()] == [100, 200]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()}.keys() == before.keys()
    assert run.result() == {"accuracy": 0.5}


def test_a_record_is_read_with_and_without_a_checksum(tmp_path):
    path = tmp_path / "records.jsonl"
    append_record(path, {"a": (1, 0.1), "b": {"2": None}})
    path.write_text(path.read_text() + '{"a": 1}\n')
    assert read_records(path) == [{"a": [1, 0.1], "b": {"2": None}}, {"a": 1}]
    path.write_text(path.read_text().replace("0.1", "0.2"))
    with pytest.raises(FileError, match="differs from its checksum"):
        read_records(path)


def test_differences():
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == [
        "b: 2, now 3",
        "c: None, now 4",
    ]


def test_a_second_signal_is_handled_as_before():
    handled = []
    before = signal.signal(signal.SIGTERM, lambda number, _: handled.append(number))
    try:
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert (stop.signal, handled) == (signal.SIGTERM, [])
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
            assert handled == [signal.SIGTERM]
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)
