"""Writes a trained classifier as an ONNX model, and checks the model with ONNX Runtime."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from errors import OptionError
from experiment import as_sequences, load_dataset, load_run
from models import not_a_classifier

from jaxrnn import training
from jaxrnn.convert import to_onnx
from jaxrnn.linen import Classifier
from jaxrnn.training.files import write_bytes
from jaxrnn.training.run import RunError

TOLERANCE = 1e-5
CHECK = """
import sys, time
import numpy as np, onnxruntime
model, sequences, found = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
sequences, batches = np.load(sequences), []
start = time.perf_counter()
for begin in range(0, len(sequences), 1000):
    batches += session.run(None, {"sequences": sequences[begin : begin + 1000]})
seconds = time.perf_counter() - start
np.savez(found, probabilities=np.concatenate(batches), seconds=seconds)
assert not {"jax", "jaxrnn"} & set(sys.modules)
"""


def export(run: Path) -> Any:
    """Returns the classifier of a run as an `onnx.ModelProto`.

    Its input is `sequences`, uint8 `[batch, time, I]`, and its output `probabilities`, float32
    `[batch, C]`.

    Raises:
        RunError: If the folder holds no trained run, or the package onnx is not installed.
        OptionError: If ONNX cannot express the classifier.
    """
    config, module, params, _ = load_run(run)
    if not isinstance(module, Classifier):
        raise OptionError(f"--format onnx takes recurrent layers, not {not_a_classifier(config)}")
    try:
        model = to_onnx(module, params)
    except ImportError as error:
        raise RunError(f"--format onnx: {error}") from None
    except ValueError as error:
        raise OptionError(f"--format onnx cannot write {config.cell}: {error}") from None
    from onnx import TensorProto, checker, helper

    # The model reads floats `inputs` and computes `logits`; scale and softmax are added around it.
    graph, [inputs], [logits] = model.graph, model.graph.input, model.graph.output
    scale = [
        helper.make_node("Cast", ["sequences"], ["pixels"], "pixels", to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "white"], [inputs.name], "scale"),
    ]
    softmax = helper.make_node("Softmax", [logits.name], ["probabilities"], "softmax", axis=-1)
    nodes = [*scale, *graph.node, softmax]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.append(helper.make_tensor("white", TensorProto.FLOAT, [], [255.0]))
    inputs.name, inputs.type.tensor_type.elem_type = "sequences", TensorProto.UINT8
    logits.name = "probabilities"
    checker.check_model(model)
    return model


def check(run: Path, model: bytes, data_dir: Path | None = None) -> str:
    """Compares the model, run by ONNX Runtime in another process, with the run on its test set.

    Args:
        run: The folder of the run.
        model: The content of the ONNX file.
        data_dir: The folder with the data set, as in `load_dataset`.

    Returns:
        A sentence on the largest difference and the times.

    Raises:
        RunError: If the probabilities differ by more than 1e-5, or the model fails.
    """
    config, module, params, _ = load_run(run)
    dataset = load_dataset(config.dataset, data_dir, config.validation_size)
    _, _, (sequences, *_) = as_sequences(dataset, config)
    training.probabilities(module, params, sequences)  # compiles
    start = time.perf_counter()
    expected = training.probabilities(module, params, sequences)
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "sequences.npy", sequences)
        (folder / "model.onnx").write_bytes(model)
        command = [sys.executable, "-c", CHECK, "model.onnx", "sequences.npy", "found.npz"]
        process = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if process.returncode:
            raise RunError(f"ONNX Runtime cannot run the model:\n{process.stderr}")
        found = np.load(folder / "found.npz")
        difference = np.abs(found["probabilities"] - expected).max()
    if not difference <= TOLERANCE:
        raise RunError(f"the model does not compute what the run does: they differ by {difference}")
    return (
        f"the probabilities of {len(sequences):,} test images differ by at most {difference:.1e} "
        f"({found['seconds']:.2f} s, with jaxrnn {seconds:.2f} s)"
    )


def write(run: Path, out: Path, data_dir: Path | None = None) -> int:
    """Checks and writes the model; returns the exit code."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise RunError("--format onnx needs the package onnxruntime: pip install 'jaxrnn[onnx]'")
    model = export(run).SerializeToString()
    checked = check(run, model, data_dir)
    write_bytes(out, model)
    print(f"{out}: {len(model):,} bytes; {checked}")
    return 0
