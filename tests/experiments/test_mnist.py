"""The experiment as a user runs it, on digits: trains, resumes bit for bit, refuses, explains."""

import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import mnist
import numpy as np
import pytest
from conftest import MNIST_DIR

SCRIPT = Path(__file__).parents[2] / "experiments" / "mnist.py"
# The script without pictures, which sends itself a signal, or none if that is 0, after every line.
WITH_SIGNAL = """
import os, sys
number = int(sys.argv.pop(1))
sys.path.insert(0, os.path.dirname(sys.argv[1]))
del sys.argv[0]
import mnist
append = mnist.Run.append_metrics
mnist.Run.append_metrics = lambda run, row: (append(run, row), os.kill(os.getpid(), number))
mnist.draw = lambda *_: None
sys.exit(mnist.entry())
"""
SMALL = mnist.Config(
    dataset="digits",
    hidden_size=16,
    batch_size=50,
    learning_rate=1e-2,
    steps=120,
    eval_every=20,
    checkpoint_every=40,
)


pytestmark = pytest.mark.usefixtures("standard_promotion")


def arguments(out, config=SMALL):
    words = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default and field.name != "out":
            words += [f"--{field.name.replace('_', '-')}", str(value)]
    return [sys.executable, str(SCRIPT), *words, "--out", str(out)]


def environment():
    """No data folder, no hints from the test runner's own environment."""
    return {name: os.environ[name] for name in os.environ if name != "JAXRNN_DATA_DIR"}


def launch(out, config=SMALL, signal=None, **options):
    """The script in a process, whole or `WITH_SIGNAL`."""
    python, *words = arguments(out, config)
    if signal is not None:
        words = ["-c", WITH_SIGNAL, str(int(signal)), *words]
    return subprocess.Popen(
        [python, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        **options,
    )


def contents(out):
    """What must be equal, bit for bit: parameters, optimizer, step and metrics less the times."""
    config = mnist.load_run(out)[0]
    like = jax.eval_shape(lambda: mnist.initial_state(config))
    with mnist.Checkpoints(Path(out) / "checkpoints", read_only=True) as checkpoints:
        step, state = checkpoints.restore(like)
    rows = [dict(row, seconds=None) for row in mnist.Run(Path(out)).metrics()]
    return step, jax.tree.leaves(state), rows


def assert_same(one, other):
    assert one[0] == other[0]
    assert one[2] == other[2]
    for a, b in zip(one[1], other[1], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run left alone, in its own process as the interrupted ones are."""
    out = tmp_path_factory.mktemp("whole") / "run"
    process = launch(out)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return out, output


def test_a_run_prints_and_writes_what_it_promises(whole):
    out, output = whole
    lines = re.findall(r"^step ([ \d]{5})  loss \d\.\d{4}  accuracy 0\.\d{4}$", output, re.M)
    assert [int(step) for step in lines] == list(range(20, 121, 20))
    assert "data: digits" in output
    result = json.loads((out / "result.json").read_text())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert result["dataset"] == "digits"
    assert result["final_test_accuracy"] == rows[-1]["test_accuracy"] > 0.3
    best = max(rows, key=lambda row: (row["validation_accuracy"], row["step"]))
    assert result["selected_step"] == best["step"]
    assert result["selected_test_accuracy"] == best["test_accuracy"]
    assert set(result["seconds"]) == {"compile", "train", "evaluate"}
    for picture in ("curves", "confusion", "mistakes", "beliefs"):
        assert (out / f"{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_compiled_after_the_first_look(tmp_path, monkeypatch):
    compiled, looks = [], []

    def heard(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    append = mnist.Run.append_metrics

    def look(run, row):
        looks.append(len(compiled))
        append(run, row)

    monkeypatch.setattr(mnist.Run, "append_metrics", look)
    monkeypatch.setattr(mnist, "draw", lambda *_: None)
    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        assert mnist.main(dataclasses.replace(SMALL, steps=100, out=tmp_path / "run")) == 0
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    assert len(looks) == 5
    assert looks[0] > 0
    # A checkpoint's first save may still compile a copy; no step and no evaluation does.
    assert len(set(looks[1:])) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"augment": True, "label_smoothing": 0.1},
        {"num_layers": 2, "bidirectional": True, "dropout": 0.2},
        {"patch": 7, "num_layers": 2, "dropout": 0.1, "cell": "janet"},
        {"order": "shuffled", "delay": 3, "test_delay": 5},
    ],
)
def test_what_the_recipes_ask_for_trains(options, tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "draw", lambda *_: None)
    common = {"steps": 120, "eval_every": 60, "batch_size": 20, "out": tmp_path / "run"}
    config = dataclasses.replace(SMALL, **common, **options)
    assert mnist.main(config) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["final_test_accuracy"] > 0.4


SIZES = {
    "tutorial": 81_674,
    "fast": 81_674,
    "best": 231_690,
    "sequential-mnist": 50_570,
    "permuted-mnist": 50_570,
}


@pytest.mark.parametrize("recipe", mnist.RECIPES)
def test_every_recipe_is_of_options_that_go_together(recipe):
    config = mnist.Config(**mnist.RECIPES[recipe])
    config.check()
    state = jax.eval_shape(lambda: mnist.initial_state(dataclasses.replace(config, steps=100)))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == SIZES[recipe]


def test_a_finished_run_shows_its_result_and_another_is_refused(whole, capsys):
    out, _ = whole
    before = (out / "result.json").stat().st_mtime_ns
    config = dataclasses.replace(SMALL, out=out)
    assert mnist.main(config) == 0
    assert "--no-resume" in capsys.readouterr().out
    with pytest.raises(mnist.RunError, match="seed: 0 -> 1"):
        mnist.main(dataclasses.replace(config, seed=1))
    assert (out / "result.json").stat().st_mtime_ns == before


def test_interrupted_and_started_again_it_ends_the_same(whole, tmp_path):
    for number in (signal.SIGINT, signal.SIGTERM):
        process = launch(tmp_path / "run", signal=number)
        output, errors = process.communicate()
        assert process.returncode == 128 + number, errors
        assert "\nstep " in output
        assert "the same command goes on from there" in output
        assert not (tmp_path / "run" / "result.json").exists()
    output, errors = launch(tmp_path / "run", signal=0).communicate()
    assert "going on from step" in output, errors
    assert "\nstep    20 " not in output
    assert_same(contents(tmp_path / "run"), contents(whole[0]))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
    config = dataclasses.replace(SMALL, learning_rate=1e38, out=tmp_path / "run")
    assert mnist.main(config) == 1
    assert re.search(r"stopped: the loss is (nan|inf) at step \d", capsys.readouterr().out)
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--hidden-size", "0"], "--hidden-size must be at least 1"),
        (["--batch-size", "99999"], "--batch-size must be at most"),
        (["--learning-rate", "nan"], "--learning-rate must be positive"),
        (["--clip-norm", "-1"], "--clip-norm must be positive"),
        (["--seed", "-1"], "must not be negative"),
        (["--patch", "5"], "patch must divide height 28 and width 28, got 5"),
        (["--patch", "4", "--bidirectional"], "--patch does not go with bidirectional"),
        (["--patch", "4", "--order", "pixels"], "--patch go with --order rows"),
        (["--cell", "mlp", "--delay", "28"], "mlp has no memory to test with --delay"),
        (["--cell", "cnn", "--test-delay", "28"], "cnn has no memory to test with --delay"),
        (["--cell", "mlp", "--patch", "4"], "mlp is no recurrent network and does not take patch"),
        (["--data-dir", "/nowhere/at/all", "--dataset", "mnist"], "/nowhere/at/all"),
    ],
)
def test_what_cannot_work_is_one_line_and_code_2(options, words, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("JAXRNN_DATA_DIR", raising=False)
    out = tmp_path / "run"
    defaults = [] if "--dataset" in options else ["--dataset", "digits"]
    monkeypatch.setattr(sys, "argv", ["mnist.py", *defaults, *options, "--out", str(out)])
    assert mnist.entry() == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_recipe_gives_defaults_that_options_override(monkeypatch, capsys):
    def parsed(*words):
        monkeypatch.setattr(sys, "argv", ["mnist.py", *words])
        return mnist.command_line()

    assert parsed() == mnist.Config()
    fast = parsed("--recipe", "fast", "--steps", "7")
    assert fast == mnist.Config(**{**mnist.RECIPES["fast"], "recipe": "fast", "steps": 7})
    assert parsed("--recipe=fast").schedule == "onecycle"
    with pytest.raises(SystemExit):
        parsed("--recipe", "slow")
    for recipe, options in mnist.RECIPES.items():
        mnist.Config(recipe=recipe, **options).check()


def test_a_core_cuts_its_share_so_that_it_fits_its_caches(monkeypatch):
    rows, patches = mnist.Config(), mnist.Config(patch=4)
    assert [mnist.slices(rows, share) for share in (50, 100, 150, 125, 20)] == [1, 2, 3, 1, 1]
    assert [mnist.slices(patches, share) for share in (50, 100, 10)] == [2, 5, 1]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert mnist.slices(patches, 100) == 1


def test_chunks_are_cut_by_the_step_alone():
    config = dataclasses.replace(SMALL, eval_every=250, steps=600)
    whole, step = [0], 0
    while step < 600:
        step += mnist.chunk_size(step, config, 28)
        whole.append(step)
    assert whole == [0, 100, 200, 250, 350, 450, 500, 600]
    assert mnist.chunk_size(0, config, 784) == 3


def kill_until_done(out, config, kills, rng, seconds):
    """Kills a run at random moments of training, starting it again each time, then lets it end."""
    for _ in range(kills):
        process = launch(out, config)
        next(line for line in process.stdout if line.startswith("step "))
        time.sleep(rng.uniform(*seconds))
        process.kill()
        process.communicate()
        assert not (out / "result.json").exists(), "it ended before it was killed"
    process = launch(out, config)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output


def test_a_run_of_another_version_is_refused_and_left_alone(tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(SMALL, out=tmp_path / "run")
    run = mnist.Run(config.out)
    run.open(mnist.identity(config, mnist.digest(mnist.load_dataset(config))))
    run.append_metrics({"step": 40})
    shapes = jax.eval_shape(lambda: mnist.initial_state(config))
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    adam, rest = state.opt_state[1]
    older = state.replace(opt_state=(None, (adam._replace(count=None), rest)))
    with mnist.Checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(40, older)
    monkeypatch.setattr(mnist, "command_line", lambda: config)
    monkeypatch.setattr(mnist, "initial_state", lambda _: shapes)
    before = {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()}
    assert mnist.entry() == 1
    assert capsys.readouterr().err == (
        f"error: {run.checkpoints / '40'} holds another state than the one to restore "
        "(opt_state/1/0/count: nothing in the checkpoint, int32[] in the state)\n"
    )
    assert {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_killed_ten_times_it_ends_as_one_left_alone(tmp_path):
    config = dataclasses.replace(
        SMALL, steps=10_000, hidden_size=64, eval_every=20, checkpoint_every=20
    )
    alone = launch(tmp_path / "alone", config)
    _, errors = alone.communicate()
    assert alone.returncode == 0, errors
    output = kill_until_done(tmp_path / "killed", config, 10, random.Random(0), (0.0, 2.0))
    assert "going on from step" in output
    assert_same(contents(tmp_path / "killed"), contents(tmp_path / "alone"))


@pytest.mark.slow
@pytest.mark.skipif(MNIST_DIR is None, reason="real MNIST: set JAXRNN_DATA_DIR to its folder")
def test_real_mnist_is_learned(tmp_path):
    config = mnist.Config(dataset="mnist", data_dir=Path(MNIST_DIR), steps=1000, out=tmp_path)
    process = launch(tmp_path / "run", config)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["final_test_accuracy"] > 0.95
