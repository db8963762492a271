"""Computes what a page of export.py --format html shows, from the file alone, in NumPy.

    python experiments/read_page.py digit.html

It prints the class probabilities after each row of the page's images as JSON, `[N, 28, C]`. The
functions have the names of those in page/network.js and compute the same.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Returns the logistic function."""
    return 0.5 * (1 + np.tanh(x / 2))


ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": sigmoid,
    "softplus": lambda x: np.logaddexp(x, 0),
    "soft_sign": lambda x: x / (1 + abs(x)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "identity": lambda x: x,
}


def step(network: dict, layer: dict, state: dict, x: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the state after a row `[N, I]` of each image."""
    hidden, activation = state["hidden"], ACTIVATIONS[network["activation"]]
    size = hidden.shape[-1]
    recurrent_kernel = layer["recurrent_kernel"].reshape(size, -1)
    drive = x @ layer["kernel"].reshape(x.shape[-1], -1) + layer["bias"]
    if network["kind"] == "rnn":
        return {"hidden": activation(drive + hidden @ recurrent_kernel)}
    if network["kind"] == "lstm":
        i, f, g, o = np.split(drive + hidden @ recurrent_kernel, 4, axis=-1)
        peephole = np.split(layer.get("peephole", np.zeros(3 * size)), 3)
        clip = np.inf if network["cell_clip"] is None else network["cell_clip"]
        cell = sigmoid(f + peephole[1] * state["cell"]) * state["cell"]
        cell = cell + sigmoid(i + peephole[0] * state["cell"]) * activation(g)
        cell = np.clip(cell, -clip, clip)
        return {"hidden": sigmoid(o + peephole[2] * cell) * activation(cell), "cell": cell}
    past = hidden @ recurrent_kernel[:, : 2 * size]
    r, z = np.split(sigmoid(drive[:, : 2 * size] + past), 2, axis=-1)
    of_n = recurrent_kernel[:, 2 * size :]
    if "recurrent_bias" in layer:
        recurrent = r * (hidden @ of_n + layer["recurrent_bias"])
    else:
        recurrent = (r * hidden) @ of_n
    n = np.tanh(drive[:, 2 * size :] + recurrent)
    return {"hidden": (1 - z) * n + z * hidden}


def run_layer(network: dict, layer: dict, rows: np.ndarray) -> np.ndarray:
    """Returns the outputs `[T, N, H]` of a layer that reads rows `[T, N, I]`."""
    shape = rows.shape[1], 1
    state = {name: np.tile(leaf, shape) for name, leaf in layer["initial_state"].items()}
    outputs = []
    for x in rows:
        state = step(network, layer, state, x)
        outputs.append(state["hidden"])
    return np.stack(outputs)


def run_stack(network: dict, rows: np.ndarray) -> np.ndarray:
    """Returns the outputs of the last layer."""
    for forward, *backward in network["layers"]:
        outputs = run_layer(network, forward, rows)
        for layer in backward:
            reverse = run_layer(network, layer, rows[::-1])[::-1]
            outputs = np.concatenate([outputs, reverse], axis=-1)
        if network["residual"] and outputs.shape == rows.shape:
            outputs = outputs + rows
        rows = outputs
    return rows


def beliefs(network: dict, images: np.ndarray) -> np.ndarray:
    """Returns the class probabilities `[N, T, C]` after each row of images uint8 `[N, T, I]`."""
    rows = images.swapaxes(0, 1) / 255
    outputs = run_stack(network, rows)
    if len(network["layers"][0]) == 2:
        # The backward direction starts at the last row that was read.
        half = outputs.shape[-1] // 2
        read = [run_stack(network, rows[: t + 1]) for t in range(len(rows))]
        outputs = np.stack(
            [np.concatenate([each[-1, :, :half], each[0, :, half:]], -1) for each in read]
        )
    readout = network["readout"]
    logits = outputs @ readout["kernel"].reshape(outputs.shape[-1], -1) + readout["bias"]
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return (powers / powers.sum(-1, keepdims=True)).swapaxes(0, 1)


def unpack(part: Any, weights: np.ndarray) -> Any:
    """Replaces each [start, end] in the description of a network by that part of its weights."""
    if isinstance(part, dict):
        return {name: unpack(each, weights) for name, each in part.items()}
    if isinstance(part, list) and all(isinstance(each, int) for each in part):
        return weights[slice(*part)]
    return [unpack(each, weights) for each in part] if isinstance(part, list) else part


def read(page: str) -> tuple[dict, np.ndarray]:
    """Returns the network of a page, with its weights, and the images uint8 `[N, 28, 28]`."""
    [text] = re.findall(r'<script id="model" type="application/json">(.*?)</script>', page, re.S)
    model = json.loads(text)
    dtype = np.dtype(model["dtype"]).newbyteorder("<")
    weights = np.frombuffer(base64.b64decode(model["weights"]), dtype).astype(np.float64)
    images = [np.frombuffer(base64.b64decode(each), np.uint8) for each in model["examples"]]
    return unpack(model["network"], weights), np.reshape(images, (-1, 28, 28))


if __name__ == "__main__":
    found = beliefs(*read(Path(sys.argv[1]).read_text("utf-8")))
    assert not {"jax", "jaxrnn"} & sys.modules.keys()
    print(json.dumps(found.tolist()))
