"""Builds the model from the options."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
from baselines import BASELINES
from cells import FLAGS, INITIALIZERS, make_cell
from command_line import flag
from errors import OptionError
from options import Config, parse_cell_options

import jaxrnn
from jaxrnn.linen import Classifier, Stack
from jaxrnn.renet import ReNet
from jaxrnn.residual import ResidualClassifier
from jaxrnn.training.tasks import TASKS

NUM_CLASSES = 10

CELL = ("cell_options", "forget_bias", "chrono", "recurrent_init", "init_scale")
REGULARIZER = ("zoneout", "recurrent_dropout", "tied", "weight_dropout")
STACK = (
    "num_layers",
    "bidirectional",
    "dropout",
    "residual",
    "learn_initial_state",
    "truncate",
    *REGULARIZER,
)


def build_model(config: Config) -> nn.Module:
    """Returns the classifier.

    Raises:
        OptionError: If the options do not go together.
    """
    if config.cell in BASELINES:
        if refused := _changed(config, (*CELL, *STACK, "patch", "blocks", "stride", "stem_states")):
            raise OptionError(
                f"--cell {config.cell} is not a recurrent network and does not take {refused}"
            )
        return BASELINES[config.cell](NUM_CLASSES)
    cell = build_cell(config)
    if config.blocks:
        outputs = _outputs(config)
        if outputs["every_step"]:
            raise OptionError(
                f"--blocks classifies the mean over time, --task {config.task} every time step"
            )
        if refused := _changed(config, sorted({*STACK, "patch"} - {"num_layers", "dropout"})):
            raise OptionError(f"--blocks does not go with {refused}")
        stem = None
        if config.stem_states is not None:
            stem = jaxrnn.s5(
                config.hidden_size, state_size=config.stem_states, stride=config.stride
            )
        return ResidualClassifier(
            cell,
            outputs["num_classes"],
            config.hidden_size,
            config.num_layers,
            config.stride,
            stem,
            config.dropout,
        )
    if config.patch is None:
        return classifier(
            cell,
            **_outputs(config),
            num_layers=config.num_layers,
            bidirectional=config.bidirectional,
            dropout=config.dropout,
            residual=config.residual,
            regularizer=build_regularizer(config),
            learn_initial_state=config.learn_initial_state,
            truncate=config.truncate,
        )
    if refused := _changed(config, sorted(set(STACK) - {"num_layers", "dropout"})):
        raise OptionError(f"--patch does not go with {refused}")
    # Only the first layer reduces the image to patches; the others keep its height and width.
    patches = (config.patch, *[1] * (config.num_layers - 1))
    return ReNet(cell, NUM_CLASSES, patches, config.dropout)


def classifier(
    cell: jaxrnn.Cell, *, num_classes: int = NUM_CLASSES, every_step: bool = False, **stack: Any
) -> Classifier:
    """Returns a classifier, by default of digits, with arguments of `jaxrnn.linen.Stack`."""
    return Classifier(Stack(cell, **stack), num_classes, every_step=every_step)


def _outputs(config: Config) -> dict[str, Any]:
    """Returns the number of outputs, and whether there are outputs after every time step."""
    if config.task is None:
        return {"num_classes": NUM_CLASSES, "every_step": False}
    task = TASKS[config.task]
    return {"num_classes": task.num_outputs, "every_step": task.every_step}


def not_a_classifier(config: Config) -> str:
    """Returns the option for which `build_model` returns another module than a `Classifier`."""
    refused = {"--patch": config.patch, "--blocks": config.blocks}
    return next((flag for flag in refused if refused[flag]), f"--cell {config.cell}")


def build_cell(config: Config) -> jaxrnn.Cell:
    """Returns the cell.

    Raises:
        OptionError: If the cell does not exist, or does not take an option.
    """
    options = {
        "forget_bias": config.forget_bias,
        "chrono": config.chrono,
        "recurrent_kernel_init": INITIALIZERS.get(config.recurrent_init or ""),
    }
    own = parse_cell_options(config.cell_options)
    if twice := [name for name in own if options.get(name) is not None]:
        raise OptionError(f"--cell-options {twice[0]} is also given as {FLAGS[twice[0]]}")
    cell = make_cell(config.cell, config.hidden_size, **{**options, **own})
    return cell if config.init_scale is None else jaxrnn.scaled(cell, config.init_scale)


def build_regularizer(config: Config) -> jaxrnn.Regularizer | None:
    """Returns the recurrent regularization, or None without any."""
    values = [getattr(config, name) for name in REGULARIZER]
    try:
        return None if values == [None] * 4 else jaxrnn.Regularizer(*values)
    except ValueError as error:
        raise OptionError(str(error)) from None


def _changed(config: Config, names: Any) -> str:
    """Returns the flags of those options that are not at their default."""
    defaults = {field.name: field.default for field in dataclasses.fields(Config)}
    return ", ".join(flag(name) for name in names if getattr(config, name) != defaults[name])
