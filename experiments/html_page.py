"""Writes a trained classifier as a page on which one draws a digit and sees how it is read.

The parts of the page are in the folder `page`. This module inserts them, the weights and some test
images into one file.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from errors import OptionError
from experiment import Trained, load_dataset, load_run
from models import not_a_classifier

from jaxrnn import training
from jaxrnn.convert.common import arrays_of, kind_and_options
from jaxrnn.linen import Classifier
from jaxrnn.training.files import write_text
from jaxrnn.training.run import RunError

PARTS = Path(__file__).parent / "page"
READER = Path(__file__).parent / "read_page.py"
TOLERANCE = 1e-4
LARGEST = 1_000_000  # bytes of the file
NUM_EXAMPLES = 10
DATASETS = {"mnist": "MNIST", "digits": "the digits of scikit-learn"}
# Options of cells that network.js computes, and the activations by their names there.
OPTIONS = ("activation", "peephole", "cell_clip", "reset_after=True", "reset_after=False")
ACTIVATIONS: dict[Any, str] = {
    jnp.tanh: "tanh",
    jax.nn.tanh: "tanh",
    jax.lax.tanh: "tanh",
    jax.nn.relu: "relu",
    jax.nn.sigmoid: "sigmoid",
    jax.lax.logistic: "sigmoid",
    jax.nn.softplus: "softplus",
    jax.nn.soft_sign: "soft_sign",
    jax.nn.elu: "elu",
    jax.nn.leaky_relu: "leaky_relu",
    jax.nn.hard_sigmoid: "hard_sigmoid",
    jax.nn.identity: "identity",
}


def classifier_of(trained: Trained) -> Classifier:
    """Returns the classifier of a run.

    Raises:
        OptionError: If the page cannot show the run.
    """
    config, model, _, _ = trained
    if not isinstance(model, Classifier):
        raise OptionError(f"--format html takes rnn, lstm and gru, not {not_a_classifier(config)}")
    if config.dataset not in DATASETS:
        raise OptionError(f"--format html takes digits, not --dataset {config.dataset}")
    if config.order != "rows" or config.delay:
        named = f"--delay {config.delay}" if config.order == "rows" else f"--order {config.order}"
        raise OptionError(f"--format html takes runs that read row by row, not {named}")
    if config.zoneout:
        raise OptionError("--format html does not take --zoneout")
    return model


def network_of(model: Classifier, params: Mapping[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    """Returns the description of a network that network.js reads, and its weights.

    In the description each array is the pair of its start and end in the weights, which are
    float32.

    Raises:
        OptionError: If network.js does not compute the cell.
    """
    weights: list[np.ndarray] = []

    def place(array: Any) -> list[int]:
        start = sum(each.size for each in weights)
        weights.append(np.asarray(array, np.float32).ravel())
        return [start, start + weights[-1].size]

    stack = model.stack
    try:
        kind, options = kind_and_options(stack.cell, "--format html", OPTIONS)
    except ValueError as error:
        raise OptionError(f"{error}; it takes rnn, lstm and gru") from None
    activation = options.get("activation", jnp.tanh)
    if activation not in ACTIVATIONS:
        name = getattr(activation, "__name__", repr(activation))
        raise OptionError(f"--format html has no activation {name}")

    def direction(params: Mapping[str, Any]) -> dict[str, Any]:
        blank = {name: np.zeros(options["hidden_size"]) for name in ("hidden", "cell")}
        initial = params.get("initial_state", {})
        arrays = arrays_of(kind, options, params["cell"])
        return {
            **jax.tree.map(place, arrays),
            "initial_state": jax.tree.map(place, {**blank, **initial}),
        }

    names = ("", "_reverse") if stack.bidirectional else ("",)
    network = {
        "kind": kind,
        "activation": ACTIVATIONS[activation],
        "cell_clip": options.get("cell_clip"),
        "residual": stack.residual,
        "layers": [
            [direction(params["stack"][f"layer_{number}{name}"]) for name in names]
            for number in range(stack.num_layers)
        ],
        "readout": jax.tree.map(place, dict(params["readout"])),
    }
    return network, np.concatenate(weights)


def describe(trained: Trained) -> str:
    """Returns the network in words, such as "an LSTM with 128 hidden units, trained on MNIST"."""
    config, model = trained.config, classifier_of(trained)
    kind, _ = kind_and_options(model.stack.cell, "--format html", OPTIONS)
    article = "a bidirectional" if config.bidirectional else "a" if kind == "gru" else "an"
    layers = f"{config.num_layers} layers of " if config.num_layers > 1 else ""
    return (
        f"{article} {kind.upper()} with {layers}{config.hidden_size} hidden units, trained on "
        f"{DATASETS[config.dataset]}"
    )


def page_of(model: Mapping[str, Any]) -> str:
    """Returns the page with everything that it needs inserted."""
    page = (PARTS / "page.html").read_text("utf-8")
    style = (PARTS / "page.css").read_text("utf-8")
    inserted = {'<link rel="stylesheet" href="page.css">': f"<style>\n{style}</style>"}
    for name in ("network.js", "page.js"):
        script = (PARTS / name).read_text("utf-8")
        inserted[f'<script src="{name}"></script>'] = f"<script>\n{script}</script>"
    as_json = json.dumps(model).replace("<", "\\u003c")  # so that no text ends the element
    tag = '<script id="model" type="application/json">'
    inserted[tag] = tag + as_json
    for old, new in inserted.items():
        page = page.replace(old, new)
    return page


def export(trained: Trained, examples: np.ndarray) -> tuple[str, str]:
    """Returns the page of a run, and the dtype of the weights in it.

    The weights are in float32, or in float16 if the file would be too large.

    Args:
        trained: The run.
        examples: The test images to choose from, uint8 `[N, 28, 28]`.

    Raises:
        OptionError: If the page cannot show the run, or would be larger than 1 MB.
    """
    network, weights = network_of(classifier_of(trained), trained.params)
    for dtype in ("float32", "float16"):
        stored = weights.astype(f"<{np.dtype(dtype).str[1:]}")
        page = page_of(
            {
                "description": describe(trained),
                "network": network,
                "dtype": dtype,
                "weights": base64.b64encode(stored.tobytes()).decode(),
                "examples": [base64.b64encode(each.tobytes()).decode() for each in examples],
            }
        )
        if len(page.encode()) <= LARGEST and np.isfinite(stored).all():
            return page, dtype
    raise OptionError(
        f"--format html takes networks of about 360,000 parameters, and not {weights.size:,}"
    )


def check(trained: Trained, page: str, dtype: str, examples: np.ndarray) -> float:
    """Compares the page, read by a process without JAX and jaxrnn, with the run.

    Args:
        trained: The run.
        page: The page.
        dtype: The dtype of the weights in the page, to which those of the run are rounded.
        examples: The images of the page, uint8 `[N, 28, 28]`.

    Returns:
        The largest difference between class probabilities after the rows of the images.

    Raises:
        RunError: If it is more than 1e-4, or the page cannot be read.
    """
    rounded = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(leaf.dtype), trained.params)
    expected = training.beliefs(trained.model, rounded, examples)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(page, "utf-8")
        command = [sys.executable, READER, path]
        process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise RunError(f"the page cannot be read:\n{process.stderr}")
    difference = float(np.abs(np.array(json.loads(process.stdout)) - expected).max())
    if not difference <= TOLERANCE:
        raise RunError(f"the page does not compute what the run does: they differ by {difference}")
    return difference


def write(run: Path, out: Path, data_dir: Path | None = None) -> int:
    """Checks and writes the page; returns the exit code."""
    trained = load_run(run)
    config = trained.config
    classifier_of(trained)  # refuses the run before the data set is loaded
    dataset = load_dataset(config.dataset, data_dir, config.validation_size)
    examples = dataset.test.images[:NUM_EXAMPLES]
    page, dtype = export(trained, examples)
    difference = check(trained, page, dtype, examples)
    write_text(out, page)
    print(
        f"{out}: {out.stat().st_size:,} bytes, with {dtype} weights; a process without jaxrnn "
        f"computes the same probabilities with them, to {difference:.1e}, after each row of "
        f"{len(examples)} test images; open it in any browser"
    )
    return 0
