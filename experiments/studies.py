"""The studies of experiments/ablate.py: what is compared, and what its paper found."""

from __future__ import annotations

from collections.abc import Sequence
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
    "s5": 252,
    "s6": 528,
    "rg-lru": 192,
    "slstm": 128,
    "lem": 128,
    "cornn": 192,
    "unicornn": 1992,
}
# Cells that do not mix the states of their units within a layer; they need a second layer.
SHALLOW = ("indrnn", "min-gru", "min-lstm", "s6", "rg-lru", "unicornn")
CELLS_BY_NAME = {
    **{name: {"cell": name} for name in ("lstm", *CELLS)},
    **{f"{name}, 2 layers": {"cell": name, "num_layers": 2} for name in SHALLOW},
    **{name: {"cell": name} for name in BASELINES},
}

# Both studies of pixels set the order.
DISTORTED = {name: value for name, value in RECIPES["state-space"].items() if name != "order"}
BY_PIXEL = {
    "lru, 3 layers of 64": PIXELS,
    "s5, 3 blocks of 64": DISTORTED | {"augment": False, "dropout": 0.1, "mixup": 0.2},
    "s5, 3 blocks of 64, distorted images": DISTORTED,
    **{name: {"cell": name, "chrono": 784.0} for name in ("lstm", "janet", "gru")},
    **{name: {"cell": name} for name in ("lru", "lru-long", "min-gru")},
}
JANET_BY_PIXEL = Claim("van der Westhuizen & Lasenby", "janet", "better", "lstm")

# Long enough for an LSTM to learn the shorter tasks.
TASK = LONG | {"hidden_size": 64, "batch_size": 50, "learning_rate": 4e-3}
# The cells of the tasks. Those of `SHALLOW`, and the LRU, which is linear in its inputs, need a
# second layer.
TASK_CELLS = {
    **{name: {"cell": name} for name in ("lstm", "gru", "janet", "rnn", "irnn")},
    **{
        f"{name}, 2 layers": {"cell": name, "num_layers": 2}
        for name in ("indrnn", "min-gru", "lru")
    },
}


def _along(
    option: str, values: Sequence[int], chrono: int | None = None, test: bool = False
) -> dict[str, dict[str, Any]]:
    """Returns the settings of every cell of the tasks at every value of a length.

    Args:
        option: The name of the length.
        values: Its values.
        chrono: The number of other time steps that the gates have to remember. If None, the gates
            start without chrono initialization.
        test: Whether the test sequences are longer than those in training, up to twice as long.
    """
    settings = {}
    for value in values:
        for name, cell in TASK_CELLS.items():
            setting = {**cell, option: value}
            if chrono is not None and cell["cell"] in ("lstm", "gru", "janet"):
                setting["chrono"] = float(value + chrono)
            if test:
                setting["test_length"] = 2 * value
            settings[f"{name}, {option} {value}"] = setting
    return settings


STUDIES = {
    "cells": Study(
        "Which cell is most accurate at 128 hidden units? All settings use the learning rate "
        "that was chosen for the LSTM. The networks without a recurrence, mlp and cnn, are for "
        "comparison. Greff et al. (2017) found no variant of the LSTM significantly better than "
        "the LSTM. Jozefowicz et al. (2015) found cells that are better than the LSTM on some "
        "tasks, but none that is better on all.",
        CELLS_BY_NAME,
        claims=(
            Claim("Zhou et al. (2016, who call them comparable)", "mgu", "no difference", "gru"),
            Claim("Le et al. (2015; here with the LSTM's learning rate)", "irnn", "better", "rnn"),
            Claim("Ba et al. (2016)", "lstm-layer-norm", "better", "lstm"),
        ),
    ),
    "cells-equal": Study(
        "Which cell is most accurate at an equal number of parameters? The number of hidden "
        "units is chosen so that the network has about as many parameters as the LSTM with 128 "
        "units.",
        {
            f"{name}, {size} units": {"cell": name, "hidden_size": size}
            for name, size in EQUAL_SIZES.items()
        },
    ),
    "tutorial": Study(
        "How accurate is the tutorial's configuration, trained for 20,000 steps, and how much do "
        "seeds differ? Tutorials that read MNIST row by row report single runs: Atienza's Keras "
        "experiments about 98.9 % for an LSTM with 256 units and 98.0 % for a simple RNN.",
        {name: {"cell": name} for name in ("lstm", "gru", "rnn")},
        {"steps": 20_000},
    ),
    "fast": Study(
        "How accurate is the `fast` recipe? It aims at 99.0 % in a fraction of the steps of the "
        "tutorial's configuration.",
        {"lstm": {}},
    ),
    "best": Study(
        "How accurate is the `best` recipe, a small ReNet of JANET cells? Visin et al. (2015) "
        "reported 99.55 % for their ReNet, which has no convolution either.",
        {"janet, 2 layers of 64 over patches of 4": {}},
        RECIPES["best"],
    ),
    "odyssey": Study(
        "Which parts of an LSTM matter? Each setting changes one part of the LSTM with "
        "peepholes. Greff et al. (2017, LSTM: A search space odyssey) found no variant clearly "
        "better than this LSTM. The forget gate and the output activation mattered most.",
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
        "With which bias should the forget gate start? Jozefowicz et al. (2015, An empirical "
        "exploration of recurrent network architectures) found that a bias of 1 closes the gap "
        "between the LSTM and the GRU.",
        _settings("forget_bias", (1.0, 0.0, 2.0, 5.0)) | {"gru": {"cell": "gru"}},
        claims=(
            Claim("Jozefowicz et al.", "forget_bias=0.0", "worse", "forget_bias=1.0"),
            Claim("Jozefowicz et al.", "forget_bias=1.0", "no difference", "gru"),
        ),
    ),
    "init": Study(
        "Does the initializer of the recurrent kernel matter? Saxe et al. (2014) found that deep "
        "linear networks learn fast from orthogonal kernels, Le et al. (2015) that recurrent "
        "networks of rectified linear units learn well from the identity.",
        {"lstm": {}}
        | {
            f"{cell} {init}": {"cell": cell, "recurrent_init": init}
            for cell in ("lstm", "rnn", "rnn-relu")
            for init in ("glorot", "orthogonal", "identity")
        }
        | {f"lstm times {scale}": {"init_scale": scale} for scale in (0.5, 2.0)},
        claims=(
            Claim(
                "Saxe et al. (learning speed of deep linear networks)",
                "rnn orthogonal",
                "better",
                "rnn glorot",
            ),
            Claim("Le et al.", "rnn-relu identity", "better", "rnn-relu glorot"),
        ),
    ),
    "size": Study(
        "How does the accuracy depend on the number of hidden units? Greff et al. (2017) found "
        "that more units help, with diminishing returns.",
        _settings("hidden_size", (128, 32, 64, 256)),
        claims=(Claim("Greff et al.", "hidden_size=256", "better", "hidden_size=128"),),
    ),
    "order": Study(
        "Does it matter in which order an image is read? The orders are by rows, by columns, and "
        "by rows after one fixed permutation of all pixels.",
        _settings("order", ("rows", "columns", "shuffled")),
    ),
    "regularisers": Study(
        "Does recurrent regularization improve the accuracy? Gal & Ghahramani (2016), Krueger et "
        "al. (2017) and Merity et al. (2018) found that it improves generalization.",
        {
            "none": {},
            "zoneout 0.1": {"zoneout": 0.1},
            "recurrent dropout 0.25, tied": {"recurrent_dropout": 0.25, "tied": True},
            "recurrent dropout 0.25, per step": {"recurrent_dropout": 0.25, "tied": False},
            "weight dropout 0.25": {"weight_dropout": 0.25},
        },
        claims=(
            Claim("Krueger et al. (on text and permuted pixels)", "zoneout 0.1", "better", "none"),
            Claim(
                "Gal & Ghahramani (on text, with dropout of the inputs too)",
                "recurrent dropout 0.25, tied",
                "better",
                "none",
            ),
            Claim("Merity et al. (on text)", "weight dropout 0.25", "better", "none"),
        ),
    ),
    "optimizers": Study(
        "Which learning rate schedule and which optimizer are best? The settings compare a "
        "one-cycle schedule with a constant rate, with and without gradient clipping, and Adam "
        "with other optimizers. Smith & Topin (2018) found that a one-cycle schedule trains "
        "residual networks in far fewer steps.",
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
                "Smith & Topin (residual networks)",
                "one cycle, peak 8e-3",
                "better",
                "constant 1e-3",
            ),
            Claim(
                "Smith & Topin (residual networks)",
                "one cycle, peak 4e-3",
                "better",
                "constant 4e-3",
            ),
        ),
    ),
    "length-generalisation": Study(
        "Does a cell remember for longer than in training? All settings are tested with 28 blank "
        "time steps after the image. They are trained and validated without blank steps, except "
        "for the last, which is trained with 28. Gers et al. (2000) added the forget gate so "
        "that a cell can reset itself. Tallec & Ollivier (2018) found that an LSTM learns longer "
        "memories if its biases are drawn for the length of the wait (chrono).",
        {
            **{name: {"cell": name} for name in ("lstm", "gru", "rnn", "janet", "lstm-nfg")},
            "lstm, chrono 56": {"chrono": 56.0},
            "lru": {"cell": "lru"},
            "lstm, trained with the wait": {"delay": 28},
        },
        FAST | {"test_delay": 28},
        claims=(
            Claim("Gers et al. (continual input streams)", "lstm-nfg", "worse", "lstm"),
            Claim(
                "Tallec & Ollivier (other lengths of the wait)", "lstm, chrono 56", "better", "lstm"
            ),
        ),
    ),
    "sequential-mnist": Study(
        "How accurate are cells that read one pixel per time step, 784 in all (Le et al., 2015)? "
        "Van der Westhuizen & Lasenby (2018) reported 98.5 % for the LSTM and 99.0 % for JANET, "
        "after many more training steps.",
        {
            "lru-long, 3 layers of 64": RECIPES["sequential-mnist"],
            **BY_PIXEL,
        },
        LONG | {"order": "pixels"},
        claims=(JANET_BY_PIXEL,),
    ),
    "permuted-mnist": Study(
        "How accurate are cells that read one pixel per time step, in an order that is shuffled "
        "once for all images (Le et al., 2015)? Van der Westhuizen & Lasenby (2018) reported "
        "91 % for the LSTM and 92.5 % for JANET, Rusch et al. (2022) 96.6 % for LEM.",
        BY_PIXEL,
        LONG | {"order": "permuted"},
        claims=(JANET_BY_PIXEL,),
    ),
    "adding": Study(
        "Which cells solve the adding problem, and up to which length? The accuracy is the share "
        "of test sequences whose absolute error is below 0.04; 0.5 as a constant answer has "
        "about 15 %. Hochreiter & Schmidhuber (1997) trained an LSTM on 74,000 sequences of 100 to "
        "110 time steps until the last 2,000 were correct; then 1 of 2,560 test sequences was "
        "wrong. A run here reads 150,000 sequences, of 50,000 different ones.",
        _along("length", (30, 60, 120), chrono=0),
        TASK | {"task": "adding"},
    ),
    "copying": Study(
        "Which cells repeat ten symbols, and after which delay? The accuracy is the share of the "
        "ten symbols that are repeated correctly; symbols at random have 12.5 %. Arjovsky et al. "
        "(2016) show the loss during training as curves, for delays of 100 to 500, and no numbers.",
        _along("length", (10, 30, 60), chrono=20),
        TASK | {"task": "copying"},
    ),
    "reber": Study(
        "Which cells learn the embedded Reber grammar, and up to which length? A string counts as "
        "correct if the set of symbols that may follow is predicted at every time step. Short "
        "strings are few: at length 15 all of the test strings are in training too, at length 30 "
        "81 %. Hochreiter & Schmidhuber (1997) count the strings until a network has learnt the "
        "grammar, whose strings are mostly short; there is no published accuracy to compare with.",
        _along("length", (15, 30, 60)),
        TASK | {"task": "reber"},
    ),
    "parity": Study(
        "Which cells learn the parity of a string of bits, and on which lengths? The length is the "
        "largest in training. The test strings are all longer, up to twice as long. Delétang et "
        "al. (2023) trained on up to 40 bits, tested on 41 to 500, and reported 100 % for the best "
        "of their RNNs and of their LSTMs, after many more training steps.",
        _along("length", (10, 20, 40), test=True),
        TASK | {"task": "parity"},
    ),
    "dyck": Study(
        "Which cells count brackets? The length is the largest in training. The test strings are "
        "all longer, up to twice as long. A string counts as correct if the set of brackets that "
        "may follow is predicted at every time step. Suzgun et al. (2019) trained on lengths up to "
        "50, tested up to 100 and found that an LSTM with one hidden unit suffices.",
        _along("length", (12, 24, 50), test=True),
        TASK | {"task": "dyck"},
    ),
    "noisy-rows": Study(
        "Which cells classify an image whose rows are followed by time steps of noise? Chang et "
        "al. (2019) introduced this with CIFAR-10, normal noise and 1,000 time steps. There is no "
        "published accuracy for digits.",
        _along("delay", (28, 72, 172), chrono=28),
        TASK | {"noise": True},
    ),
}
