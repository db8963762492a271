"""The networks that the experiments' options ask for: names of cells, initializers, baselines."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from jax.nn.initializers import glorot_uniform, orthogonal
from networks import CNN, MLP

import jaxrnn
from jaxrnn.linen import Classifier, Stack
from jaxrnn.renet import ReNet

CELLS = {
    "rnn": jaxrnn.rnn,
    "rnn-relu": partial(jaxrnn.rnn, activation=jax.nn.relu),
    "rnn-sigmoid": partial(jaxrnn.rnn, activation=jax.nn.sigmoid),
    "irnn": partial(jaxrnn.rnn, activation=jax.nn.relu, recurrent_kernel_init=jaxrnn.identity()),
    "indrnn": jaxrnn.indrnn,
    "lstm": jaxrnn.lstm,
    "lstm-peephole": partial(jaxrnn.lstm, peephole=True),
    "lstm-projection": partial(jaxrnn.lstm, projection_size=64),
    "lstm-chrono": partial(jaxrnn.lstm, chrono=28.0),
    "lstm-nig": partial(jaxrnn.odyssey, variant="NIG"),
    "lstm-nfg": partial(jaxrnn.odyssey, variant="NFG"),
    "lstm-nog": partial(jaxrnn.odyssey, variant="NOG"),
    "lstm-niaf": partial(jaxrnn.odyssey, variant="NIAF"),
    "lstm-noaf": partial(jaxrnn.odyssey, variant="NOAF"),
    "lstm-cifg": partial(jaxrnn.odyssey, variant="CIFG"),
    "lstm-np": partial(jaxrnn.odyssey, variant="NP"),
    "lstm-fgr": partial(jaxrnn.odyssey, variant="FGR"),
    "lstm-layer-norm": jaxrnn.layer_norm_lstm,
    "janet": jaxrnn.janet,
    "gru": jaxrnn.gru,
    "gru-before": partial(jaxrnn.gru, reset_after=False),
    "mgu": jaxrnn.mgu,
    "min-gru": jaxrnn.min_gru,
    "min-lstm": jaxrnn.min_lstm,
    "lru": jaxrnn.lru,
    # As the paper starts it on long sequences whose neighbours are alike.
    "lru-long": partial(jaxrnn.lru, radius=(0.99, 0.9999), max_phase=math.pi / 10),
}
# Networks without a recurrence, to compare with.
BASELINES = {"mlp": MLP, "cnn": CNN}
INITIALIZERS = {
    "glorot": glorot_uniform(),
    "orthogonal": orthogonal(),
    "identity": jaxrnn.identity(),
}


def make_cell(name: str, hidden_size: int, **options: Any) -> jaxrnn.Cell:
    """The cell of this name; options that are None are left at the cell's default.

    Raises:
        ValueError: If the cell has no such option.
    """
    given = {key: value for key, value in options.items() if value is not None}
    try:
        return CELLS[name](hidden_size, **given)
    except TypeError:
        asked = ", ".join(f"--{key.replace('_', '-')}" for key in given)
        raise ValueError(f"--cell {name} does not take all of {asked}") from None


def make_model(
    name: str,
    num_classes: int,
    hidden_size: int,
    cell: dict,
    init_scale=None,
    patch: int | None = None,
    **options,
) -> nn.Module:
    """The classifier of this name.

    Args:
        name: A cell or a baseline.
        num_classes: The number of classes.
        hidden_size: Units of a layer; a baseline has its own sizes.
        cell: Options of the cell.
        init_scale: How many times as large the cell's kernels start, or None.
        patch: The side of the patches over which a ReNet sweeps, or None for a `Classifier`.
        **options: Those of `Stack`; a ReNet takes `num_layers` and `dropout`.

    Raises:
        ValueError: If the cell, the baseline or the ReNet has no such option.
    """
    plain = Stack(CELLS["lstm"](hidden_size))

    def changed(names):
        return [key for key in names if options[key] != getattr(plain, key)]

    if name in BASELINES:
        refused = changed(options) + [key for key, value in cell.items() if value is not None]
        refused += ["init_scale"] * (init_scale is not None) + ["patch"] * (patch is not None)
        if refused:
            asked = ", ".join(refused)
            raise ValueError(f"--cell {name} is no recurrent network and does not take {asked}")
        return BASELINES[name](num_classes)
    made = make_cell(name, hidden_size, **cell)
    if init_scale is not None:
        made = jaxrnn.scaled(made, init_scale)
    if patch is None:
        return Classifier(Stack(made, **options), num_classes)
    if refused := changed(sorted(options.keys() - {"num_layers", "dropout"})):
        raise ValueError(f"--patch does not go with {', '.join(refused)}")
    # What a layer found stays as fine as it is, so that every layer reads as many places.
    patches = (patch, *[1] * (options["num_layers"] - 1))
    return ReNet(made, num_classes, patches, options["dropout"])
