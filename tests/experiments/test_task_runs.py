"""Synthetic tasks in a run and in a study, and the tables and figures along a length."""

import dataclasses
import functools
import json
import re
from types import SimpleNamespace

import ablate
import experiment
import mnist
import numpy as np
import options
import pytest
import records
import results
import run_study
import train
from errors import OptionError

from jaxrnn import training
from jaxrnn.training import report, tasks
from jaxrnn.training.run import RunError

pytestmark = pytest.mark.usefixtures("standard_promotion")
SMALL = options.Config(
    task="parity", length=3, hidden_size=4, batch_size=10, steps=4, eval_every=2, devices=1
)


@pytest.fixture(autouse=True)
def _few_examples(monkeypatch):
    monkeypatch.setattr(tasks, "make", functools.partial(tasks.make, sizes=(30, 10, 20)))
    experiment.make_task.cache_clear()
    yield
    experiment.make_task.cache_clear()


def test_the_names_are_those_of_the_tasks():
    assert set(options.TASKS) == set(tasks.TASKS)


def test_a_run_of_a_task_needs_no_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "load_dataset", lambda *_: pytest.fail("images are loaded"))
    config = dataclasses.replace(SMALL, out=tmp_path / "run")
    assert mnist.main(config) == 0
    assert (
        "data: parity, 30 training, 10 validation and 20 test sequences" in capsys.readouterr().out
    )
    result = json.loads((config.out / "result.json").read_text())
    assert (result["dataset"], result["steps"]) == ("parity", 4)
    assert [path.name for path in config.out.glob("*.png")] == ["curves.png"]
    assert mnist.main(config) == 0
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(RunError, match="holds a run of the task parity, not of images"):
        experiment.load_run(config.out)
    assert experiment.load_run(config.out, of_images=False).config.length == 3


def fit(trainer, examples, evaluations, *, steps, seed, **_):
    """Ends at once, with made-up results that depend on the data."""
    state = SimpleNamespace(step=np.zeros(len(seed)), params=np.zeros((len(seed), 5)))
    metrics = {name: np.full(len(seed), data[0].mean()) for name, data in evaluations.items()}
    yield training.Progress(steps, np.ones((len(seed), steps)), metrics, {"train": 1.0}, state)


def test_a_study_along_a_length_compares_settings_of_equal_length(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(run_study, "load_dataset", lambda *_: pytest.fail("images are loaded"))
    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(report, "learning_bands", lambda *_: None)
    monkeypatch.setattr(report, "heat_map", lambda *_: None)
    monkeypatch.setattr(report, "lengths", lambda lines, path, *_: drawn.update({path: lines}))
    words = ("task=parity", "hidden_size=2", "steps=2", "batch_size=10", "schedule=constant")
    config = ablate.Config(
        "mine",
        vary=("length=3,4", "cell=rnn,irnn"),
        set=words,
        seeds=1,
        evaluations=1,
        out=tmp_path / "kept",
    )
    assert ablate.main(config) == 0
    folder = tmp_path / "kept" / "mine"
    kept = records.Records(folder)
    assert kept.groups() == [
        ["length=3 cell=rnn", "length=3 cell=irnn"],
        ["length=4 cell=rnn", "length=4 cell=irnn"],
    ]
    found = {run["setting"]: [run["test_accuracy"]] for run in kept.of_settings()}
    assert drawn[folder / "lengths.png"] == {
        f"cell={cell}": {length: found[f"length={length} cell={cell}"] for length in (3, 4)}
        for cell in ("rnn", "irnn")
    }
    assert len({s["data_sha256"] for s in kept.config()["settings"].values()}) == 2
    table = (folder / "table.md").read_text()
    assert table.count("| setting ") == 2
    assert "parity (30 training, 10 validation and 20 test sequences)" in table
    (folder / "heat.png").touch()
    assert results.main(tmp_path / "kept", tmp_path / "results.md") == 0
    page = (tmp_path / "results.md").read_text()
    assert page.count("| setting ") == 2
    assert "![Accuracy by length of mine](results/mine/lengths.png)" in page
    for length in (3, 4):
        assert re.search(rf"compare with `length={length} cell=rnn`: `length={length} cell=i", page)


def keep_settings(kept, name, study, **common):
    """Writes the settings of a study of which nothing has been run."""
    settings = {
        each: {"options": study.base | common | own, "data_sha256": "", "set": [], "runs": []}
        for each, own in study.settings.items()
    }
    about = {"study": name, "about": "", "commands": [], "environment": {}}
    kept.config_path.write_text(json.dumps(about | {"settings": settings}))


@pytest.mark.parametrize("name", [*options.TASKS, "noisy-rows"])
def test_the_settings_of_a_study_are_lines_along_its_length(name, tmp_path):
    kept = records.Records(tmp_path)
    keep_settings(kept, name, run_study.STUDIES[name])
    assert list(map(len, kept.groups())) == [8, 8, 8]
    # There are no tables of what has not been run.
    assert kept.compared(None) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"order": "columns"}, "--order: for images, not for --task parity"),
        ({"dataset": "digits", "delay": 2}, "--dataset and --delay: for images, not for --task"),
        ({"cell_options": ("chrono=9.0",), "forget_bias": 1.0}, "--forget-bias does not go with"),
        ({"cell": "cnn"}, "--cell cnn classifies images and has no --task"),
        ({"task": None}, "--length and --test-length need --task"),
        ({"task": None, "length": 100, "noise": True}, "--noise needs --delay or --test-delay"),
        ({"length": 0}, "--length must be at least 1"),
        ({"test_length": 2}, "--task parity: test_length must be at least 4, got 2"),
        ({"length": 10**9}, r"--length 1000000000 needs .* GiB of memory; there are "),
        ({"test_length": 10**9}, r"--test-length 1000000000 needs .* GiB of memory; there are "),
        ({"task": "adding"}, "--task adding: length must be at least 22, got 3"),
        ({"task": "dyck", "blocks": True}, "--blocks classifies the mean over time, --task dyck"),
    ],
)
def test_what_cannot_be_is_refused(changed, words, tmp_path):
    config = dataclasses.replace(SMALL, out=tmp_path / "run", **changed)
    with pytest.raises(OptionError, match=words):
        mnist.main(config)


def test_a_study_is_of_one_task():
    config = ablate.Config("mine", vary=("task=parity,dyck",), set=("length=4",))
    with pytest.raises(OptionError, match="the settings of a study must have the same task"):
        run_study.resolve(config)


def test_data_that_do_not_fit_into_the_memory_are_an_error(monkeypatch):
    def make(*_, sizes=tasks.SIZES):
        if sizes != (0, 0, 0):
            raise MemoryError

    monkeypatch.setattr(tasks, "make", make)
    with pytest.raises(OptionError, match="--length 10000 needs more memory than there is"):
        experiment.make_task("parity", 10_000, None)


def test_a_grid_leaves_out_lengths_that_cannot_be(monkeypatch):
    config = ablate.Config(
        "mine", vary=("length=3,9",), set=("task=parity", "test_length=5", "hidden_size=4")
    )
    found = run_study.resolve(config)
    assert list(found.settings) == ["length=3"]
    assert "test_length must be at least 10, got 5" in str(found.left_out["length=9"])
    asked = dataclasses.replace(config, settings=("length=9",))
    with pytest.raises(OptionError, match="test_length must be at least 10, got 5"):
        run_study.resolve(asked)
    asked = dataclasses.replace(config, settings=("length=3",))
    assert list(run_study.resolve(asked).settings) == ["length=3"]
    monkeypatch.setattr(experiment, "os", SimpleNamespace(sysconf=lambda _: 2**15))  # 1 GiB
    vast = ablate.Config("mine", vary=("delay=28,2000000000",), dataset="digits")
    found = run_study.resolve(vast)
    assert list(found.settings) == ["delay=28"]
    assert "GiB of memory; there are" in str(found.left_out["delay=2000000000"])


def test_a_test_length_of_none_is_that_of_training(tmp_path):
    config = ablate.Config("mine", vary=("cell=rnn,irnn", "test_length=None,6"))
    kept, study = records.Records(tmp_path), run_study.grid(config)
    keep_settings(kept, "mine", study, length=3)
    along = kept.along()
    assert along is not None
    assert along.lines["cell=rnn"] == {
        3: "cell=rnn test_length=None",
        6: "cell=rnn test_length=6",
    }
    assert [len(group) for group in kept.groups()] == [2, 2]
    assert kept.draw_lengths(tmp_path / "lengths.png")
