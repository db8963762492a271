"""Trains and evaluates the classifier of experiments/mnist.py, and draws its figures."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from typing import Any

import hosts
import numpy as np
from devices import chunk_size, share_batch, slices
from event_file import EventFile
from experiment import (
    Dataset,
    Experiment,
    Trained,
    blank_example,
    dataset_of,
    digest,
    identity,
    known_identity,
    load_dataset,
    load_run,
    resolve,
)
from jax.sharding import Mesh
from models import NUM_CLASSES
from options import Config
from schemas import Evaluation, Result
from terminal import announce, console, progress_bar

from jaxrnn import training
from jaxrnn.training import data, report
from jaxrnn.training.checkpoint import Checkpoints, NotFiniteError
from jaxrnn.training.run import Run, RunError, Stop, peak_memory
from jaxrnn.training.train import run_keys


def main(config: Config) -> int:
    """Trains, or resumes training; returns the exit code."""
    config.check()
    # The run is locked until its figures are drawn.
    with hosts.join(config) as processes, Run(config.out) as run:
        return train_and_report(config, processes, run)


def train_and_report(config: Config, processes: int, run: Run) -> int:
    """Trains, or resumes training, together with the other processes; returns the exit code."""
    mesh = share_batch(config.batch_size, config.devices, processes)
    hosts.decide(lambda: run.check(known_identity(config) if config.resume else {}))
    images = None
    if config.task is None:
        images = load_dataset(config.dataset, config.data_dir, config.validation_size)
    dataset = dataset_of(config, images)
    experiment = resolve(config, dataset)
    announce(dataset)
    console.print(f"device: {mesh.size} × {mesh.devices.flat[0].device_kind}")
    identified = identity(experiment.config, digest(dataset))
    hosts.check_same(experiment.config, identified)
    hosts.decide(lambda: run.check(identified if config.resume else {}))
    warn = console.print
    if result := hosts.decide(lambda: run.result(Result, warn) if config.resume else None):
        console.print(f"{config.out} is finished:")
        if hosts.first():
            with event_file(config, run) as events:
                if events is not None and images is not None:
                    events.add_pictures(result["selected_step"])
            conclude(result, run)
        console.print("To start over: --no-resume. To keep it: another folder with --out.")
        return 0
    hosts.decide(run.lock)
    for change in hosts.decide(lambda: run.open(identified, start_over=not config.resume)):
        console.print(f"note: since this run began, {change}")
    with Checkpoints(run.checkpoints, locked=True, warn=warn) as checkpoints:
        seconds, code = train(experiment, mesh, run, checkpoints)
    if code or not hosts.first():
        return code
    trained = load_run(config.out, warn=warn, of_images=images is not None)
    if images is None:
        report.curves(run.metrics(), run.directory / "curves.png")
    else:
        draw(trained, images, (experiment.test[0], experiment.test[1]), run)
    with event_file(config, run) as events:
        if events is not None and images is not None:
            events.add_pictures(trained.step)
    run.finish(outcome(run.metrics(), dataset, trained.params, seconds))
    conclude(run.read("result.json"), run)
    announce(dataset)
    return 0


def train(
    experiment: Experiment, mesh: Mesh, run: Run, checkpoints: Checkpoints
) -> tuple[dict[str, float], int]:
    """Trains to the last step; returns the seconds spent in each phase and an exit code."""
    config = experiment.config
    trainer = training.Trainer(
        training.Fixed(experiment.model, experiment.optimizer),
        experiment.loss_fn,
        experiment.metric_fn,
        mesh=mesh,
        slices=slices(config.batch_size // mesh.size, patched=config.patch is not None),
    )
    step, start = 0, trainer.init(run_keys(config.seed), {}, blank_example(config))
    if (restored := checkpoints.restore(start)) is not None:
        step, start = restored
        console.print(f"resuming from step {step} of {config.out}")
    best, seconds_before = hosts.decide(lambda: rewind(run, step, experiment))
    evaluations = {"test": experiment.test}
    if len(experiment.validation[0]):
        evaluations["validation"] = experiment.validation
    seconds = {"compile": 0.0, "train": 0.0, "evaluate": 0.0}
    signal = None

    with (
        Stop() as stop,
        progress_bar(step, experiment.steps) as advance,
        event_file(config, run) as events,
    ):
        for progress in training.fit(
            trainer,
            experiment.train,
            evaluations,
            steps=experiment.steps,
            batch_size=config.batch_size,
            seed=config.seed,
            eval_every=config.eval_every,
            chunk=chunk_size(experiment.train[0].shape[1]),
            state=start,
        ):
            step, losses, metrics, seconds, state = progress
            first = step - len(losses) + 1
            if not np.isfinite(losses).all():
                bad = int(np.argmin(np.isfinite(losses)))
                console.print(
                    f"stopped: the loss is {losses[bad]} at step {first + bad}; "
                    f"{replay(np.isnan(losses[bad]))}"
                )
                return seconds, 1
            score = metrics.get("validation")
            if metrics:
                loss, accuracy = float(losses.mean()), metrics["test"]
                console.print(f"step {step:5d}  loss {loss:.4f}  test accuracy {accuracy:.4f}")
                record = {
                    "step": step,
                    "loss": loss,
                    "test_accuracy": accuracy,
                    "validation_accuracy": score,
                    "seconds": round(seconds_before + sum(seconds.values()), 3),
                }
                if hosts.first():
                    run.append_metrics(record)
                if events is not None:
                    events.add(record)
            signal = hosts.stopped_by(stop.signal)
            due = step // config.checkpoint_every > (first - 1) // config.checkpoint_every
            improved = score is not None and score >= best
            if due or improved or step == experiment.steps or signal is not None:
                try:
                    checkpoints.save(step, state, score)
                except NotFiniteError as error:
                    console.print(f"stopped: {error}; {replay(error.nan)}")
                    return seconds, 1
            best = max(best, score or 0)
            advance(len(losses))
            if signal is not None:
                break
        signal = signal or hosts.stopped_by(stop.signal)  # which may come during the last save
        if signal is not None:
            checkpoints.wait()
            console.print(
                f"interrupted at step {step}, which is saved; the same command resumes there"
            )
            return seconds, 128 + signal
    return seconds, 0


def replay(nan: bool) -> str:
    """Returns how to find the operation whose result is not finite."""
    variable = "JAX_DEBUG_NANS" if nan else "JAX_DEBUG_INFS"
    return (
        "to resume from the last checkpoint and find the operation: "
        f"{variable}=1 python {shlex.join(sys.argv)}"
    )


@contextlib.contextmanager
def event_file(config: Config, run: Run) -> Iterator[EventFile | None]:
    """Opens the event file of --tensorboard, with the records so far, in the first process."""
    if not config.tensorboard or not hosts.first():
        yield None
        return
    with contextlib.closing(EventFile(run.directory, run.metrics())) as events:
        yield events


def rewind(run: Run, step: int, experiment: Experiment) -> tuple[float, float]:
    """Drops later records than a step; returns the best validation accuracy and the seconds.

    Raises:
        RunError: If the evaluation of the last step is lost, which the result contains.
    """
    records = run.rewind_metrics(step, Evaluation, console.print)
    evaluated = {*range(0, step + 1, experiment.config.eval_every), experiment.steps}
    known = {record["step"] for record in records}
    if lost := sorted(each for each in evaluated - known if 0 < each <= step):
        path = run.directory / "metrics.jsonl"
        if experiment.steps in lost:
            raise RunError(
                f"{path} has lost the evaluation of step {experiment.steps}, the last one; "
                "--no-resume deletes the run and starts over"
            )
        console.print(
            f"{path} has lost {len(lost)} evaluations, of steps {lost[0]} to {lost[-1]}; "
            "the result and the figures are without them"
        )
    best = max((record["validation_accuracy"] or 0 for record in records), default=0)
    return best, records[-1]["seconds"] if records else 0.0


def draw(
    trained: Trained, dataset: data.Dataset, test: tuple[np.ndarray, np.ndarray], run: Run
) -> None:
    """Draws the learning curves, the confusion matrix, mistakes, and probabilities by time step."""
    config, model, params, step = trained
    records, images, (sequences, labels) = run.metrics(), dataset.test.images, test
    probabilities = training.probabilities(model, params, sequences)
    correct = (probabilities.argmax(-1) == labels).mean()
    title = f"{dataset.name}, {config.cell} at step {step}: test {correct:.2%}"
    report.curves(records, run.directory / "curves.png")
    report.confusion(labels, probabilities.argmax(-1), run.directory / "confusion.png", title)
    report.mistakes(images, labels, probabilities, run.directory / "mistakes.png", title)
    # The first digit of every class, so that the selection does not depend on the results.
    shown = [int(np.argmax(labels == label)) for label in range(NUM_CLASSES)]
    report.beliefs(
        images[shown],
        training.beliefs(model, params, data.sequences(images[shown], config.order)),
        run.directory / "beliefs.png",
        labels[shown],
        order=config.order,
    )


def selected(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the record with the best validation accuracy, the latest among equals."""
    return max(records, key=lambda record: (record["validation_accuracy"] or 0, record["step"]))


def outcome(
    records: list[dict[str, Any]], dataset: Dataset, params: Any, seconds: dict[str, float]
) -> dict[str, Any]:
    """Returns the contents of result.json."""
    best, last = selected(records), records[-1]
    return {
        "dataset": dataset.name,
        "note": dataset.note,
        "parameters": training.count_parameters(params),
        "steps": last["step"],
        "final_test_accuracy": last["test_accuracy"],
        "selected_step": best["step"],
        "selected_validation_accuracy": best["validation_accuracy"],
        "selected_test_accuracy": best["test_accuracy"],
        "best_test_accuracy": max(record["test_accuracy"] for record in records),
        "evaluations": len(records),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "seconds_with_interruptions": last["seconds"],
        "peak_memory_bytes": peak_memory(),
    }


def conclude(result: dict[str, Any], run: Run) -> None:
    """Prints the result of a finished run, and the names of its files."""
    accuracies = {"test accuracy at the last step": f"{result['final_test_accuracy']:.4f}"}
    if result["selected_validation_accuracy"] is not None:
        selected = f"test accuracy at the step best on validation (step {result['selected_step']})"
        accuracies[selected] = f"{result['selected_test_accuracy']:.4f}"
    accuracies[f"best of {result['evaluations']} test accuracies"] = (
        f"{result['best_test_accuracy']:.4f} "
        "(optimistic: chosen on the test images; TensorFlow tutorials quote this figure)"
    )
    width = max(map(len, accuracies))
    for name, accuracy in accuracies.items():
        console.print(f"{name:{width}}  {accuracy}")
    spent = ", ".join(f"{name} {value:.1f} s" for name, value in result["seconds"].items())
    console.print(f"{result['parameters']:,} parameters; {spent}")
    files = sorted(run.directory.iterdir(), key=lambda path: (path.suffix, path.name))
    console.print(f"{run.directory}: {', '.join(path.name for path in files)}")
