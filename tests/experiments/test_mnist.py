"""The experiment as a user runs it, on digits: trains, resumes bit for bit, refuses, explains."""

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import devices
import experiment
import jax
import mnist
import numpy as np
import pytest
import train
from conftest import MNIST_DIR
from errors import OptionError
from idx_files import write
from options import Config
from terminal import run_script
from test_event_file import scalars

from jaxrnn.training.checkpoint import CheckpointError, Checkpoints
from jaxrnn.training.run import OtherConfiguration, Run, RunError

SCRIPT = Path(mnist.__file__)
# The script without pictures; it sends itself a signal, or none if that is 0, after every record.
WITH_SIGNAL = """
import os, sys
number = int(sys.argv.pop(1))
sys.path.insert(0, os.path.dirname(sys.argv[1]))
del sys.argv[0]
import mnist, terminal, train
append = train.Run.append_metrics
train.Run.append_metrics = lambda run, record: (append(run, record), os.kill(os.getpid(), number))
train.draw = lambda *_: None
config = mnist.command_line()
sys.exit(terminal.run_script(lambda: mnist.main(config)))
"""
SMALL = Config(
    dataset="digits",
    hidden_size=16,
    batch_size=50,
    learning_rate=1e-2,
    steps=120,
    eval_every=20,
    checkpoint_every=40,
)


pytestmark = pytest.mark.usefixtures("standard_promotion")


def launch(out, config=SMALL, signal=None, **options):
    """The script in a process, whole or `WITH_SIGNAL`; without the test runner's data folder."""
    words = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default and field.name != "out":
            words += [f"--{field.name.replace('_', '-')}", str(value)]
    start = [] if signal is None else ["-c", WITH_SIGNAL, str(int(signal))]
    environment = {name: os.environ[name] for name in os.environ if name != "JAXRNN_DATA_DIR"}
    return subprocess.Popen(
        [sys.executable, *start, str(SCRIPT), *words, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def contents(out):
    """What must be equal, bit for bit: parameters, optimizer, step and metrics less the times."""
    config, model, _, _ = experiment.load_run(out)
    optimizer = experiment.build_optimizer(config)
    like = jax.eval_shape(lambda: experiment.initial_state(config, model, optimizer))
    with Checkpoints(Path(out) / "checkpoints", read_only=True) as checkpoints:
        step, state = checkpoints.restore(like)
    records = [dict(record, seconds=None) for record in Run(Path(out)).metrics()]
    return step, jax.tree.leaves(state), records


def assert_same(one, other):
    assert one[0] == other[0]
    assert one[2] == other[2]
    for a, b in zip(one[1], other[1], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run left alone."""
    out = tmp_path_factory.mktemp("whole") / "run"
    output = io.StringIO()
    with contextlib.redirect_stdout(output), jax.numpy_dtype_promotion("standard"):
        assert mnist.main(dataclasses.replace(SMALL, out=out)) == 0
    return out, output.getvalue()


def test_a_run_prints_and_writes_what_it_promises(whole):
    out, output = whole
    lines = re.findall(r"^step ([ \d]{5})  loss \d\.\d{4}  test accuracy 0\.\d{4}$", output, re.M)
    assert [int(step) for step in lines] == list(range(20, 121, 20))
    assert output.count("data: digits, 1,257 training, 180 validation and 360 test images") == 2
    assert "device: 2 × cpu" in output
    result = json.loads((out / "result.json").read_text())
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert result["dataset"] == "digits"
    assert result["final_test_accuracy"] == records[-1]["test_accuracy"] > 0.3
    best = max(records, key=lambda record: (record["validation_accuracy"], record["step"]))
    best_step = best["step"]
    assert result["selected_step"] == best_step
    assert result["selected_test_accuracy"] == best["test_accuracy"]
    assert result["best_test_accuracy"] == max(record["test_accuracy"] for record in records)
    assert result["evaluations"] == 6
    assert result["parameters"] == 4 * 16 * (28 + 16 + 1) + 10 * (16 + 1)
    assert set(result["seconds"]) == {"compile", "train", "evaluate"}
    *_, last, chosen, best, _, files, _ = output.splitlines()
    assert last.startswith("test accuracy at the last step  ")
    assert chosen.startswith(f"test accuracy at the step best on validation (step {best_step})  ")
    assert best.startswith("best of 6 test accuracies  ")
    assert best.endswith(
        "(optimistic: chosen on the test images; TensorFlow tutorials quote this figure)"
    )
    assert len({line.rindex("  0.") for line in (last, chosen, best)}) == 1
    assert [float(re.findall(r"  (0\.\d{4})", line)[0]) for line in (last, chosen, best)] == [
        round(result[f"{name}_test_accuracy"], 4) for name in ("final", "selected", "best")
    ]
    folder, names = files.split(": ")
    assert folder == str(out)
    assert set(names.split(", ")) == {path.name for path in out.iterdir()}
    for picture in ("curves", "confusion", "mistakes", "beliefs"):
        assert (out / f"{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_the_guide_shows_what_is_printed(tmp_path, monkeypatch, capsys):
    guide = (SCRIPT.parents[1] / "docs" / "guides" / "experiments.md").read_text()
    shown = next(block for block in guide.split("```") if "\ntest accuracy at" in block)
    monkeypatch.chdir(tmp_path)
    folder = Path("runs", "mnist")
    (folder / "checkpoints").mkdir(parents=True)
    names = [f"{name}.png" for name in ("curves", "confusion", "mistakes", "beliefs")]
    for name in ("config.json", "metrics.jsonl", "result.json", *names):
        (folder / name).touch()
    result = {
        "final_test_accuracy": 0.9873,
        "selected_step": 11_700,
        "selected_validation_accuracy": 0.99,
        "selected_test_accuracy": 0.9871,
        "best_test_accuracy": 0.9892,
        "evaluations": 200,
        "parameters": 81_674,
        "seconds": {"compile": 1.5, "train": 132.5, "evaluate": 62.9},
    }
    train.conclude(result, Run(folder))
    assert capsys.readouterr().out in shown
    lines = re.findall(r"^step ([ \d]{5})  loss \d\.\d{4}  test accuracy 0\.\d{4}$", shown, re.M)
    assert len(lines) == shown.count("\nstep")


def test_nothing_is_compiled_after_the_first_evaluation(tmp_path, monkeypatch):
    compiled, evaluations = [], []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    append = Run.append_metrics

    def append_metrics(run, record):
        evaluations.append(len(compiled))
        append(run, record)

    monkeypatch.setattr(Run, "append_metrics", append_metrics)
    monkeypatch.setattr(train, "draw", lambda *_: None)
    jax.monitoring.register_event_duration_secs_listener(listen)
    config = dataclasses.replace(SMALL, hidden_size=7, steps=100, out=tmp_path / "run")
    try:
        assert mnist.main(config) == 0
        total = len(compiled)
        again = dataclasses.replace(config, seed=1, steps=20, out=tmp_path / "again")
        assert mnist.main(again) == 0
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(evaluations) == 6
    assert evaluations[0] > 0
    # A checkpoint's first save may still compile a copy; no step and no evaluation does.
    assert len(set(evaluations[1:5])) == 1
    assert len(compiled) == total  # another run of the same network uses the same programs


def test_a_renet_trains_on_distorted_images(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "draw", lambda *_: None)
    config = dataclasses.replace(
        SMALL,
        cell="janet",
        hidden_size=4,
        patch=14,
        num_layers=1,
        dropout=0.1,
        augment=True,
        label_smoothing=0.1,
        batch_size=40,
        steps=4,
        eval_every=2,
        validation_size=0,
        out=tmp_path / "run",
    )
    assert mnist.main(config) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["selected_validation_accuracy"] is None
    assert result["selected_step"] == 4


def test_pictures_are_of_the_step_that_was_restored(whole, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole[0], out)
    steps = sorted(
        int(path.name) for path in (out / "checkpoints").iterdir() if path.name[0] in "1234567890"
    )
    best = experiment.load_run(out).step
    assert best == json.loads((out / "result.json").read_text())["selected_step"]
    (out / "checkpoints" / str(best) / "digest" / "metadata").write_text("{")
    trained = experiment.load_run(out)
    assert trained.step == max(step for step in steps if step != best)
    assert "is damaged" in capsys.readouterr().out
    titles = []
    for name in ("curves", "mistakes", "beliefs"):
        monkeypatch.setattr(train.report, name, lambda *_, **__: None)
    monkeypatch.setattr(train.report, "confusion", lambda *words: titles.append(words[-1]))
    dataset = experiment.load_dataset("digits")
    sequences, labels = dataset.test
    train.draw(trained, dataset, (sequences[:40], labels[:40]), Run(out))
    assert f"at step {trained.step}: test" in titles[0]


def test_a_finished_run_shows_its_result_and_another_is_refused(whole, monkeypatch, capsys):
    out, _ = whole
    before = (out / "result.json").stat().st_mtime_ns
    config = dataclasses.replace(SMALL, out=out)
    assert mnist.main(config) == 0
    assert "--no-resume" in capsys.readouterr().out
    other = dataclasses.replace(config, seed=1, steps=800)
    # Before the data is loaded.
    monkeypatch.setattr(train, "load_dataset", lambda *_: pytest.fail("the data is loaded"))
    assert run_script(lambda: mnist.main(other)) == 2
    assert capsys.readouterr().err == (
        f"error: {out} holds a run with other options (seed: 0, now 1; steps: 120, now 800); "
        "choose another folder with --out, or --no-resume deletes the run and starts over\n"
    )
    assert (out / "result.json").stat().st_mtime_ns == before


def test_interrupted_and_started_again_it_ends_the_same(whole, tmp_path, monkeypatch, capsys):
    tensorboard = importlib.util.find_spec("tensorboardX") is not None
    config = dataclasses.replace(SMALL, out=tmp_path / "run", tensorboard=tensorboard)
    monkeypatch.setattr(train, "draw", lambda *_: None)
    monkeypatch.setattr(train.EventFile, "add_pictures", lambda *_: None)
    append = Run.append_metrics
    for number, step in ((signal.SIGINT, 20), (signal.SIGTERM, 40)):

        def append_metrics(run, record, number=number):
            append(run, record)
            os.kill(os.getpid(), number)

        monkeypatch.setattr(Run, "append_metrics", append_metrics)
        assert mnist.main(config) == 128 + number
        output = capsys.readouterr().out
        assert f"interrupted at step {step}, which is saved; the same command resumes" in output
        assert not (tmp_path / "run" / "result.json").exists()
        if tensorboard:
            assert list(scalars(config.out)["loss"]) == list(range(20, step + 1, 20))
    monkeypatch.setattr(Run, "append_metrics", append)
    assert mnist.main(config) == 0
    output = capsys.readouterr().out
    assert "resuming from step 40" in output
    assert "\nstep    40 " not in output
    if tensorboard:
        assert list(scalars(config.out)["loss"]) == list(range(20, 121, 20))
    assert_same(contents(tmp_path / "run"), contents(whole[0]))


def test_a_signal_during_the_last_save_stops_the_run(tmp_path, monkeypatch, capsys):
    save = train.Checkpoints.save

    def save_and_stop(*words):
        save(*words)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train.Checkpoints, "save", save_and_stop)
    out = tmp_path / "run"
    assert mnist.main(dataclasses.replace(SMALL, out=out, steps=20)) == 128 + signal.SIGTERM
    assert "interrupted at step 20, which is saved" in capsys.readouterr().out
    assert not (out / "result.json").exists()


@pytest.mark.slow
def test_a_process_ends_with_the_signals_code(tmp_path):
    config = dataclasses.replace(SMALL, steps=40)
    process = launch(tmp_path / "run", config, signal.SIGTERM)
    output, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "\nstep    20 " in output
    assert "interrupted at step 20" in output
    assert experiment.load_run(tmp_path / "run").step == 20


@pytest.mark.parametrize(
    ("rate", "steps", "words"),
    [
        (1e38, 120, r"the loss is (nan|inf) at step \d"),
        (1e39, 1, "step 1: the state is not finite, so it is not saved"),
    ],
)
def test_what_is_not_finite_stops_the_run(rate, steps, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["experiments/mnist.py", "--out", "a folder"])
    config = dataclasses.replace(SMALL, learning_rate=rate, steps=steps, out=tmp_path / "run")
    assert mnist.main(config) == 1
    advice = (
        "to resume from the last checkpoint and find the operation: JAX_DEBUG_(NAN|INF)S=1 "
        "python experiments/mnist.py --out 'a folder'"
    )
    assert re.search(f"stopped: {words}; {advice}\n", capsys.readouterr().out)
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hidden_size": 0}, "--hidden-size must be at least 1"),
        ({"patch": 0}, "--patch must be at least 1"),
        ({"batch_size": 99999}, "--batch-size must be at most"),
        ({"learning_rate": np.nan}, "--learning-rate must be positive"),
        ({"clip_norm": -1.0}, "--clip-norm must be positive"),
        ({"seed": -1}, "--seed must not be negative"),
        ({"dropout": 1.0}, r"--dropout must be in \[0, 1\)"),
        ({"recurrent_dropout": 0.1}, "needs --tied True or --tied False"),
        ({"tied": True}, "--tied needs --recurrent-dropout"),
        ({"stride": 2}, "--stride needs --blocks"),
        ({"stem_states": 4}, "--stem-states needs --blocks"),
        ({"stride": 0, "blocks": True}, "--stride must be at least 1"),
        ({"dropout": 0.3}, "--dropout needs --num-layers of at least 2, --patch or --blocks: it"),
        ({"chrono": 28.0, "forget_bias": 1.0}, "--forget-bias does not go with --chrono"),
        ({"cell": "lstm-chrono", "forget_bias": 1.0}, "--forget-bias does not go with --chrono"),
        ({"data_dir": Path("d")}, "--data-dir does not go with --dataset digits"),
        ({"patch": 5}, "patch must divide height 28 and width 28, got 5"),
        ({"patch": 4, "bidirectional": True}, "--patch does not go with --bidirectional"),
        ({"patch": 4, "order": "pixels"}, "--patch goes with --order rows"),
        ({"augment": True, "delay": 1}, "--augment and --patch go with no --delay"),
        ({"cell": "mlp", "delay": 28}, "mlp has no memory to test with --delay"),
        ({"cell": "cnn", "test_delay": 28}, "cnn has no memory to test with --delay"),
        ({"cell": "mlp", "patch": 4}, "mlp is not a recurrent network and does not take --patch"),
        ({"devices": 3, "batch_size": 50}, "--devices 3 cannot share --batch-size 50"),
        ({"devices": 50, "batch_size": 50}, "--devices must be at most"),
    ],
)
def test_what_cannot_work_is_an_error_that_names_the_option(options, words, tmp_path):
    config = Config(**{"dataset": "digits", "out": tmp_path / "run", **options})
    with pytest.raises(OptionError, match=words) as error:
        mnist.main(config)
    assert "\n" not in str(error.value)
    assert not config.out.exists()


def test_an_error_is_one_line_and_a_code(tmp_path, monkeypatch, capsys, no_network, home):
    words = ["mnist.py", "--dataset", "mnist", "--data-dir", "/nowhere/at/all"]
    monkeypatch.setattr(sys, "argv", words)
    assert run_script(lambda: mnist.main(mnist.command_line())) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: /nowhere/at/all")
    assert error.count("\n") == 1
    config = Config(dataset="kmnist", out=tmp_path / "run")
    assert run_script(lambda: mnist.main(config)) == 2
    error = capsys.readouterr().err
    assert "--data-dir FOLDER" in error
    assert "--dataset digits" in error


def test_a_core_cuts_its_share_so_that_it_fits_its_caches(monkeypatch):
    parts = [devices.slices(share, patched=False) for share in (50, 100, 150, 125, 20)]
    assert parts == [1, 2, 3, 1, 1]
    assert [devices.slices(share, patched=True) for share in (50, 100, 10)] == [2, 5, 1]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert devices.slices(100, patched=True) == 1
    assert [devices.chunk_size(time) for time in (28, 784, 10_000)] == [100, 3, 1]


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


def test_a_run_of_another_version_is_refused_and_left_alone(tmp_path, capsys):
    config = dataclasses.replace(SMALL, out=tmp_path / "run")
    dataset = experiment.load_dataset("digits")
    resolved = experiment.resolve(config, dataset)
    run = Run(config.out)
    run.open(experiment.identity(resolved.config, experiment.digest(dataset)))
    run.append_metrics({"step": 40})
    shapes = jax.eval_shape(
        lambda: experiment.initial_state(config, resolved.model, resolved.optimizer)
    )
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    adam, rest = state.opt_state[1]
    older = state.replace(opt_state=(None, (adam._replace(count=None), rest)))
    with Checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(40, older)
    before = {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()}
    assert run_script(lambda: mnist.main(config)) == 1
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
    assert "resuming from step" in output
    assert_same(contents(tmp_path / "killed"), contents(tmp_path / "alone"))


@pytest.mark.slow
@pytest.mark.skipif(MNIST_DIR is None, reason="real MNIST: set JAXRNN_DATA_DIR to its folder")
def test_real_mnist_is_learned(tmp_path):
    config = Config(dataset="mnist", data_dir=Path(MNIST_DIR), steps=1000, out=tmp_path)
    process = launch(tmp_path / "run", config)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["final_test_accuracy"] > 0.95


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_cpu_multi_thread_eigen=true"),
        ("JAX_NUM_CPU_DEVICES", "8"),
    ],
)
def test_a_number_of_devices_that_the_user_has_set_is_kept(name, value, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv(name, value)
    updated = []
    monkeypatch.setattr(jax.config, "update", lambda *words: updated.append(words))
    devices.divide_cpu(2)
    assert updated == []
    assert os.environ[name] == value
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp")
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    devices.divide_cpu(2)
    assert updated == [("jax_num_cpu_devices", 2)]
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=/tmp --xla_cpu_multi_thread_eigen=false"


@pytest.fixture
def again(whole, tmp_path, monkeypatch):
    """A copy of the finished run, and a function that runs its command again without figures."""
    monkeypatch.setattr(train, "draw", lambda *_: None)
    out = Path(shutil.copytree(whole[0], tmp_path / "run"))
    return out, lambda **options: run_script(
        lambda: mnist.main(dataclasses.replace(SMALL, out=out, **options))
    )


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"steps": 120}', "[" * 100_000])
def test_a_damaged_result_is_written_again(again, text, whole, capsys):
    out, run = again
    (out / "result.json").write_text(text)
    assert run() == 0
    shown = capsys.readouterr().out
    assert shown.count("result.json is damaged and written again from the checkpoints: ") == 1
    before, now = (Run(folder).read("result.json") for folder in (whole[0], out))
    measured = ("seconds", "peak_memory_bytes")
    assert all(now[name] == before[name] for name in before if name not in measured)


def test_lost_evaluations_are_named_and_without_the_last_there_is_no_result(again, capsys):
    out, run = again
    (out / "result.json").unlink()
    path = out / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    path.write_bytes(lines[0] + b"null\n" + lines[2] + lines[2] + b"".join(lines[4:]))
    assert run() == 0
    shown = capsys.readouterr().out
    assert f"{path} is read without damaged lines: 1, first line 2: None is not a dict\n" in shown
    assert f"{path} has lost 2 evaluations, of steps 40 to 80; the result and the fig" in shown
    assert Run(out).read("result.json")["evaluations"] == 4
    (out / "result.json").unlink()
    for text in (None, b"", b"[]\n3\n", b"".join(lines)[:-1], b"\xff\n\n"):
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_bytes(text)
        assert run() == 2
        error = capsys.readouterr().err
        assert f"{path} has lost the evaluation of step 120, the last one; --no-resume" in error
        assert error.count("\n") == 1


STORED = {
    "[]": "is damaged: list is not a dict",
    "{}": "is damaged: dict is missing required key",
    "null": "is damaged: None is not a dict",
    "[" * 100_000: "is damaged: not JSON",
}


@pytest.mark.parametrize("text", STORED)
def test_a_damaged_configuration_is_refused(again, text, capsys):
    out, run = again
    (out / "config.json").write_text(text)
    assert run() == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {out / 'config.json'} {STORED[text]}")
    assert error.endswith(
        "choose another folder with --out, or --no-resume deletes the run and starts over\n"
    )
    assert error.count("\n") == 1
    assert run(resume=False, steps=1, eval_every=1) == 0
    assert Run(out).configuration()["config"]["steps"] == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cell": "lsmt"}, "does not hold options of this version: --cell does not take 'lsmt'"),
        ({"optimizer": "sgd"}, "does not hold options of this version: optimizer: "),
        ({"hidden_size": "16"}, "does not hold options of this version: hidden_size: str is not"),
        ({"delay": 10**9}, "does not hold options of this version: --delay needs "),
        ({"num_layers": 10**9}, "does not hold options of this version: --num-layers must be at"),
        ({"colour": "red"}, "does not hold options of this version: there is no option colour"),
        ({"num_layers": 2}, "120 holds another state than the one to restore"),
        ({"hidden_size": 10**9}, "120 holds another state than the one to restore"),
    ],
)
def test_a_configuration_that_is_not_that_of_the_checkpoints_is_refused(again, changes, words):
    out, _ = again
    stored = json.loads((out / "config.json").read_text())
    stored["config"] |= changes
    (out / "config.json").write_text(json.dumps(stored))
    with pytest.raises(OtherConfiguration, match="differs from its checksum"):
        experiment.load_run(out)
    del stored["checksum"]
    (out / "config.json").write_text(json.dumps(stored))
    with pytest.raises((RunError, CheckpointError), match=words) as error:
        experiment.load_run(out)
    assert "\n" not in str(error.value)


def test_a_run_of_images_that_are_not_published_ones_is_loaded(tmp_path, home):
    images = write(tmp_path / "images")
    config = dataclasses.replace(SMALL, dataset="mnist", validation_size=5, batch_size=10)
    dataset = experiment.load_dataset("mnist", images, config.validation_size)
    resolved = experiment.resolve(config, dataset).config
    run = Run(tmp_path / "run")
    run.open(experiment.identity(resolved, experiment.digest(dataset)))
    stored, _ = experiment.stored_config(run)
    assert stored.dataset == "other"
    again = experiment.load_dataset(stored.dataset, images, stored.validation_size)
    assert experiment.digest(again) == experiment.digest(dataset)


def test_a_run_is_locked_until_its_figures_are_drawn(again, monkeypatch, capsys):
    out, run = again
    codes = []

    def draw(*_):
        monkeypatch.setattr(train, "draw", lambda *_: None)
        codes.append(run(resume=False))

    monkeypatch.setattr(train, "draw", draw)
    (out / "result.json").unlink()
    assert run() == 0
    assert codes == [1]
    assert f"error: {out / 'checkpoints'} is in use by another process" in capsys.readouterr().err
    assert Run(out).result()["steps"] == 120
    monkeypatch.setattr(Run, "lock", lambda _: pytest.fail("a finished run is locked"))
    assert run() == 0


def test_what_does_not_fit_into_the_memory_is_an_error(tmp_path):
    for options, words in (
        ({"hidden_size": 10**6}, "--hidden-size 1000000: training 4,000,126,000,010 parameters"),
        ({"hidden_size": 10**9}, "--hidden-size 1000000000: training 4,000,000,126,"),
        ({"delay": 10**9}, "--delay 1000000000 needs 46,"),
    ):
        with pytest.raises(OptionError, match=f"{words}.* GiB of memory; there are "):
            mnist.main(dataclasses.replace(SMALL, out=tmp_path, **options))
