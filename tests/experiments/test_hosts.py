"""Several processes train as one does, stop and resume together, and end when one is gone."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import coordination_errors
import devices
import hosts
import mnist
import numpy as np
import pytest
import train
from errors import OptionError
from options import Config
from terminal import run_script
from test_mnist import assert_same, contents

SCRIPT = Path(mnist.__file__)
# The script without pictures; it sends itself a signal, or none if that is 0, after every chunk.
WITHOUT_PICTURES = """
import os, sys
number = int(sys.argv.pop(1))
sys.path.insert(0, os.path.dirname(sys.argv[1]))
del sys.argv[0]
import hosts, mnist, terminal, train
train.draw = lambda *_: None
fit = train.training.fit

def fit_with_signal(*words, **options):
    for progress in fit(*words, **options):
        os.kill(os.getpid(), number)
        yield progress

train.training.fit = fit_with_signal
config = mnist.command_line()
sys.exit(hosts.end(lambda: terminal.run_script(lambda: mnist.main(config))))
"""
SMALL = Config(
    dataset="digits",
    cell="rnn",
    hidden_size=8,
    batch_size=40,
    learning_rate=1e-2,
    steps=60,
    eval_every=20,
    checkpoint_every=20,
)
# Seconds within which the processes end when one is killed, doubled for a busy machine.
ENDS_WITHIN = 60

pytestmark = pytest.mark.usefixtures("standard_promotion")


def launch(out, count, each=1, config=SMALL, last_signal=0, last_options=(), slurm=False):
    """`count` processes with `each` devices; the last has a signal and options of its own."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    words = ["--out", str(out), "--devices", str(each)]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default and field.name not in ("out", "devices"):
            words += [f"--{field.name.replace('_', '-')}", str(value)]
    environment = {name: os.environ[name] for name in os.environ if name != "JAXRNN_DATA_DIR"}
    processes = []
    for process in range(count):
        last = process == count - 1
        start = [sys.executable, "-c", WITHOUT_PICTURES, str(int(last_signal) if last else 0)]
        if slurm:
            own = ["--distributed"]
            environment |= {
                "SLURM_JOB_ID": "1",
                "SLURM_STEP_NODELIST": "localhost",
                "SLURM_NTASKS": str(count),
                "SLURM_PROCID": str(process),
                "SLURM_LOCALID": str(process),
                "JAX_COORDINATOR_PORT": port,
            }
        else:
            own = ["--coordinator", f"localhost:{port}", "--num-processes", str(count)]
            own += ["--process-id", str(process)]
        own += last_options if last else []
        processes.append(
            subprocess.Popen(
                [*start, str(SCRIPT), *words, *own],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        )
    return processes


def ends(processes):
    """Codes, what was printed, and the errors, of all processes."""
    try:
        found = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], *zip(*found, strict=True)


def assert_close(some, others):
    """The same run but for the order in which sums over the devices were made."""
    assert some[0] == others[0]
    for one, other in zip(some[2], others[2], strict=True):
        assert one["step"] == other["step"]
        assert abs(one["loss"] - other["loss"]) < 1e-4
        for name in ("test_accuracy", "validation_accuracy"):
            assert abs(one[name] - other[name]) < 0.01
    for one, other in zip(some[1], others[1], strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)


def alone(out, count, monkeypatch):
    """What one process with so many devices ends with."""
    if count == 2:  # as this one has
        monkeypatch.setattr(train, "draw", lambda *_: None)
        assert mnist.main(dataclasses.replace(SMALL, out=out, devices=count)) == 0
    else:
        (code,), _, errors = ends(launch(out, 1, count))
        assert code == 0, errors
    return contents(out)


def test_two_processes_train_as_one_with_two_devices(tmp_path, monkeypatch):
    codes, output, errors = ends(launch(tmp_path / "two", 2))
    assert codes == [0, 0], errors
    assert errors == ("", "")
    assert "device: 2 × cpu" in output[0]
    assert "step    60" in output[0]
    assert output[1] == ""
    records = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(record)["step"] for record in records] == [20, 40, 60]
    assert json.loads((tmp_path / "two" / "result.json").read_text())["evaluations"] == 3
    assert_close(contents(tmp_path / "two"), alone(tmp_path / "one", 2, monkeypatch))


@pytest.mark.slow
@pytest.mark.parametrize(("count", "each"), [(2, 1), (2, 2), (4, 1)])
def test_stopped_together_they_resume_bit_for_bit(count, each, tmp_path, monkeypatch):
    codes, _, errors = ends(launch(tmp_path / "whole", count, each))
    assert codes == [0] * count, errors
    number = signal.SIGTERM
    stopped = launch(tmp_path / "run", count, each, last_signal=number)
    codes, output, errors = ends(stopped)
    assert codes == [128 + number] * count, errors
    assert "interrupted at step 20, which is saved" in output[0]
    codes, output, errors = ends(launch(tmp_path / "run", count, each))
    assert codes == [0] * count, errors
    assert "resuming from step 20" in output[0]
    assert_same(contents(tmp_path / "run"), contents(tmp_path / "whole"))
    assert_close(contents(tmp_path / "run"), alone(tmp_path / "one", count * each, monkeypatch))


@pytest.mark.slow
def test_slurm_names_the_processes(tmp_path):
    config = dataclasses.replace(SMALL, steps=20)
    codes, output, errors = ends(launch(tmp_path / "run", 2, config=config, slurm=True))
    assert codes == [0, 0], errors
    assert "device: 2 × cpu" in output[0]
    assert output[1] == ""


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
def test_a_process_that_is_killed_ends_the_others_with_one_line(victim, tmp_path):
    config = dataclasses.replace(SMALL, batch_size=60, steps=1_000_000)
    processes = launch(tmp_path / "run", 3, config=config)
    line = next(line for line in processes[0].stdout if line.startswith("step "))
    assert line
    killed = time.monotonic()
    processes[victim].kill()
    codes, _, errors = ends(processes)
    assert time.monotonic() - killed < ENDS_WITHIN
    assert codes[victim] == -signal.SIGKILL
    for process in {0, 1, 2} - {victim}:
        assert codes[process] != 0
        assert errors[process].startswith(f"error: process {victim} is gone")
        assert errors[process].count("\n") == 1, errors[process]
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.slow
def test_a_process_with_other_options_ends_all(tmp_path):
    codes, _, errors = ends(launch(tmp_path / "run", 2, last_options=["--seed", "1"]))
    assert errors[0] == "error: process 1 has other options or other data than process 0\n"
    assert codes[0] == 2
    assert codes[1] != 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("stopped sending heartbeats):\n2\nThe tasks have crashed.", "error: process 2 is gone; "),
        ("stopped sending heartbeats):\n3\n10\nThe tasks", "error: processes 3, 10 are gone; "),
        ("Failed to send RPC to coordination service. Either", "error: process 0 is gone, or "),
        ("RPC: /xla.coordination.CoordinationService/RegisterTask", "error: not all processes "),
    ],
)
def test_the_last_words_of_jax_are_one_line(words, line, capsys):
    before = "E1127 15:54:01.970 8155 coordination_service_agent.cc:289] Polled an error\n"
    said = ["a warning\n", before, words, "\n", "    @     0x7fc172040634  SendToLog()\n"]
    coordination_errors.main(said, sys.stdout)
    warning, explained = capsys.readouterr().out.splitlines()
    assert warning == "a warning"
    assert explained.startswith(line)


def test_the_line_is_there_before_the_process_ends(capsys):
    def lines():
        yield "F1127 15:54:01.970 8155 client.h:80] the JAX distributed service: UNAVAILABLE: ("
        yield "stopped sending heartbeats):\n"
        yield "1\n"
        assert capsys.readouterr().out == ""
        yield "12\n"
        yield "The tasks have crashed.\n"
        assert capsys.readouterr().out.startswith("error: processes 1, 12 are gone; ")
        yield "*** Check failure stack trace: ***\n"

    coordination_errors.main(lines(), sys.stdout)
    assert capsys.readouterr().out == ""


def test_other_words_of_jax_are_passed_on(capsys):
    said = ["E1127 15:54:01.970 8155 coordination_service.cc:28] Something else\n", "more\n"]
    coordination_errors.main(said, sys.stdout)
    assert capsys.readouterr().out == "".join(said)


@pytest.mark.parametrize("address", ["here", ":1234", "localhost:", "localhost:99999"])
def test_a_coordinator_that_cannot_be_is_an_error(address):
    words = f"--coordinator must be HOST:PORT, got {address}"
    with pytest.raises(OptionError, match=words), hosts.join(Config(coordinator=address)):
        pass


def test_a_port_in_use_is_an_error(capsys):
    with socket.create_server(("", 0)) as used:
        config = Config(coordinator=f"localhost:{used.getsockname()[1]}", process_id=0)
        assert run_script(lambda: mnist.main(config)) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_alone_a_process_decides_for_itself():
    with hosts.join(SMALL) as processes:
        assert processes == 1
        assert hosts.first()
        assert not hosts.joined()
        assert hosts.decide(lambda: [1]) == [1]
        assert hosts.stopped_by(None) is None
        assert hosts.stopped_by(signal.SIGINT) == signal.SIGINT
        assert hosts.end(lambda: 3) == 3


def test_a_script_that_failed_does_not_wait_for_a_thread(monkeypatch):
    ended, codes = threading.Event(), []
    monkeypatch.setattr(os, "_exit", codes.append)
    thread = threading.Thread(target=ended.wait)  # as orbax has after a save that failed
    thread.start()
    hosts.end(lambda: 1)
    hosts.end(lambda: 0)
    ended.set()
    thread.join()
    assert codes == [1]


def test_processes_that_cannot_share_a_batch_are_an_error():
    with pytest.raises(OptionError, match="3 processes cannot share --batch-size 40"):
        devices.share_batch(40, None, 3)
