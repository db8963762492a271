"""The studies of experiments/ablate.py: what is compared, and what its paper found."""

from __future__ import annotations

from typing import Any, NamedTuple

from baselines import BASELINES
from cells import CELLS
from options import PIXELS, RECIPES

from jaxrnn.training.compare import Claim

# Options of experiments/mnist.py that the studies share: long enough for the LSTM to converge.
FAST = RECIPES["fast"]
LONG = FAST | {"learning_rate": 2e-3}


class Study(NamedTuple):
    """Named settings, each some options of experiments/mnist.py; the first is compared with.

    Attributes:
        about: The paper, and what it found.
        settings: Their options.
        base: Options of all of them.
        claims: The findings that can be compared with what is seen here.
    """

    about: str
    settings: dict[str, dict[str, Any]]
    base: dict[str, Any] = FAST
    claims: tuple[Claim, ...] = ()


def _settings(option: str, values: Any) -> dict[str, dict[str, Any]]:
    return {f"{option}={value}": {option: value} for value in values}


# Units, in steps of four, with which a classifier of 28 rows has as nearly as possible as many
# parameters as an LSTM of 128 units.
EQUAL_SIZES = {
    "lstm": 128,
    "rnn": 268,
    "rnn-relu": 268,
    "rnn-sigmoid": 268,
    "irnn": 268,
    "indrnn": 2040,
    "lstm-peephole": 128,
    "lstm-projection": 184,
    "lstm-chrono": 128,
    "lstm-nig": 148,
    "lstm-nfg": 148,
    "lstm-nog": 148,
    "lstm-niaf": 128,
    "lstm-noaf": 128,
    "lstm-cifg": 148,
    "lstm-np": 128,
    "lstm-fgr": 76,
    "lstm-layer-norm": 128,
    "janet": 184,
    "gru": 148,
    "gru-before": 148,
    "mgu": 184,
    "min-gru": 1200,
    "min-lstm": 840,
    "lru": 180,
    "lru-long": 180,
}
# Cells whose units are independent of each other within a layer; they need a second one.
SHALLOW = ("indrnn", "min-gru", "min-lstm")
CELLS_BY_NAME = {
    **{name: {"cell": name} for name in ("lstm", *CELLS)},
    **{f"{name}, 2 layers": {"cell": name, "num_layers": 2} for name in SHALLOW},
    **{name: {"cell": name} for name in BASELINES},
}

BY_PIXEL = {
    "lru, 3 layers of 64": PIXELS,
    **{name: {"cell": name, "chrono": 784.0} for name in ("lstm", "janet", "gru")},
    **{name: {"cell": name} for name in ("lru", "lru-long", "min-gru")},
}
JANET_BY_PIXEL = Claim("van der Westhuizen & Lasenby", "janet", "better", "lstm")

STUDIES = {
    "cells": Study(
        "Every cell of the library at 128 units, and the networks without a recurrence, all with "
        "the rate that was chosen for the LSTM. Greff et al. (2017) found no variant of the LSTM "
        "significantly better; Jozefowicz et al. (2015) cells that beat it on some tasks but not "
        "on all.",
        CELLS_BY_NAME,
        claims=(
            Claim("Zhou et al. (2016), who call them comparable", "mgu", "no difference", "gru"),
            Claim("Le et al. (2015), here at the LSTM's rate", "irnn", "better", "rnn"),
            Claim("Ba et al. (2016)", "lstm-layer-norm", "better", "lstm"),
        ),
    ),
    "cells-equal": Study(
        "The same cells, each with as many units as make it as large as the LSTM of 128.",
        {
            f"{name}, {size} units": {"cell": name, "hidden_size": size}
            for name, size in EQUAL_SIZES.items()
        },
    ),
    "tutorial": Study(
        "The tutorial's configuration, 20,000 steps. Of MNIST read row by row, tutorials print "
        "single figures (Atienza's Keras experiments: about 98.9 % for an LSTM of 256 units and "
        "98.0 % for a simple RNN); this is a reference with its deviation over seeds.",
        {name: {"cell": name} for name in ("lstm", "gru", "rnn")},
        {"steps": 20_000},
    ),
    "fast": Study(
        "The fast recipe: 99.0 % in a fraction of the steps.",
        {"lstm": {}},
    ),
    "best": Study(
        "The best recipe, a small ReNet of JANET cells. Visin et al. (2015) reported 99.55 % for "
        "theirs, also without convolution.",
        {"janet, 2 layers of 64 over patches of 4": {}},
        RECIPES["best"],
    ),
    "odyssey": Study(
        "Greff et al., LSTM: A search space odyssey, 2017. Found no variant clearly better than "
        "the vanilla LSTM with peepholes; the forget gate and the output activation matter most.",
        {
            name: {"cell": f"lstm-{name}"}
            for name in (
                "peephole",
                "nig",
                "nfg",
                "nog",
                "niaf",
                "noaf",
                "cifg",
                "np",
                "fgr",
            )
        },
        claims=(
            *(Claim("Greff et al.", name, "worse", "peephole") for name in ("nfg", "noaf")),
            *(Claim("Greff et al.", name, "no difference", "peephole") for name in ("cifg", "np")),
            *(Claim("Greff et al.", name, "not better", "peephole") for name in ("nig", "nog")),
            *(Claim("Greff et al.", name, "not better", "peephole") for name in ("niaf", "fgr")),
        ),
    ),
    "forget-bias": Study(
        "Jozefowicz et al., An empirical exploration of recurrent network architectures, 2015. "
        "Found that a bias of 1 closes the gap between the LSTM and the GRU.",
        _settings("forget_bias", (1.0, 0.0, 2.0, 5.0)) | {"gru": {"cell": "gru"}},
        claims=(
            Claim("Jozefowicz et al.", "forget_bias=0.0", "worse", "forget_bias=1.0"),
            Claim("Jozefowicz et al.", "forget_bias=1.0", "no difference", "gru"),
        ),
    ),
    "init": Study(
        "Saxe et al. (2014) found deep linear networks to learn fast from orthogonal kernels, Le "
        "et al. (2015) recurrent networks of rectified linear units from the identity.",
        {"lstm": {}}
        | {
            f"{cell} {init}": {"cell": cell, "recurrent_init": init}
            for cell in ("lstm", "rnn", "rnn-relu")
            for init in ("glorot", "orthogonal", "identity")
        }
        | {f"lstm times {scale}": {"init_scale": scale} for scale in (0.5, 2.0)},
        claims=(
            Claim(
                "Saxe et al., of how fast deep linear networks learn",
                "rnn orthogonal",
                "better",
                "rnn glorot",
            ),
            Claim("Le et al.", "rnn-relu identity", "better", "rnn-relu glorot"),
        ),
    ),
    "size": Study(
        "Greff et al. (2017): more units help, with less and less gain.",
        _settings("hidden_size", (128, 32, 64, 256)),
        claims=(Claim("Greff et al.", "hidden_size=256", "better", "hidden_size=128"),),
    ),
    "order": Study(
        "Whether it matters in which order an image is read: by rows, by columns, or by rows of "
        "pixels that were shuffled.",
        _settings("order", ("rows", "columns", "shuffled")),
    ),
    "regularisers": Study(
        "Gal & Ghahramani (2016), Krueger et al. (2017), Merity et al. (2018): recurrent "
        "regularization improves generalization.",
        {
            "none": {},
            "zoneout 0.1": {"zoneout": 0.1},
            "recurrent dropout 0.25, tied": {"recurrent_dropout": 0.25, "tied": True},
            "recurrent dropout 0.25, per step": {"recurrent_dropout": 0.25, "tied": False},
            "weight dropout 0.25": {"weight_dropout": 0.25},
        },
        claims=(
            Claim("Krueger et al., of text and permuted pixels", "zoneout 0.1", "better", "none"),
            Claim(
                "Gal & Ghahramani, of text and with the inputs dropped too",
                "recurrent dropout 0.25, tied",
                "better",
                "none",
            ),
            Claim("Merity et al., of text", "weight dropout 0.25", "better", "none"),
        ),
    ),
    "optimizers": Study(
        "Schedules and algorithms: a one-cycle rate against a constant one, clipped or not; Adam "
        "against others. Smith & Topin (2018) found one cycle to train residual networks "
        "in far fewer steps.",
        {
            "one cycle, peak 8e-3": {},
            "one cycle, not clipped": {"clip_norm": None},
            "one cycle, peak 2e-3": {"learning_rate": 2e-3},
            "one cycle, peak 4e-3": {"learning_rate": 4e-3},
            "constant 1e-3": {"schedule": "constant", "learning_rate": 1e-3},
            "constant 4e-3": {"schedule": "constant", "learning_rate": 4e-3},
            "AdamW": {"optimizer": "adamw"},
            "Nadam": {"optimizer": "nadam"},
            "RMSprop": {"optimizer": "rmsprop"},
            "momentum 0.9, peak 0.2": {"optimizer": "momentum", "learning_rate": 0.2},
        },
        claims=(
            Claim(
                "Smith & Topin, of residual networks",
                "one cycle, peak 8e-3",
                "better",
                "constant 1e-3",
            ),
            Claim(
                "Smith & Topin, of residual networks",
                "one cycle, peak 4e-3",
                "better",
                "constant 4e-3",
            ),
        ),
    ),
    "length-generalisation": Study(
        "Trained and validated with no blank step after the image (the last setting with 28), "
        "tested with 28: does the memory outlast what it was trained for? Gers et al. (2000) added "
        "the forget gate so that a cell can empty itself; Tallec & Ollivier (2018) found biases "
        "drawn for the length of the wait to learn longer memories.",
        {
            **{name: {"cell": name} for name in ("lstm", "gru", "rnn", "janet", "lstm-nfg")},
            "lstm, chrono 56": {"chrono": 56.0},
            "lru": {"cell": "lru"},
            "lstm, trained with the wait": {"delay": 28},
        },
        FAST | {"test_delay": 28},
        claims=(
            Claim("Gers et al., of streams without an end", "lstm-nfg", "worse", "lstm"),
            Claim("Tallec & Ollivier, of other waits", "lstm, chrono 56", "better", "lstm"),
        ),
    ),
    "sequential-mnist": Study(
        "784 steps of one pixel (Le et al., 2015). LSTM 98.5 %, JANET 99.0 % in van der Westhuizen "
        "& Lasenby (2018), after many more steps.",
        {"lru-long, 3 layers of 64": RECIPES["sequential-mnist"], **BY_PIXEL},
        LONG | {"order": "pixels"},
        claims=(JANET_BY_PIXEL,),
    ),
    "permuted-mnist": Study(
        "784 steps of one pixel in an order shuffled once (Le et al., 2015). LSTM 91 %, JANET "
        "92.5 % in van der Westhuizen & Lasenby (2018); LEM 96.6 % in Rusch et al. (2022).",
        BY_PIXEL,
        LONG | {"order": "permuted"},
        claims=(JANET_BY_PIXEL,),
    ),
}
