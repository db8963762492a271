"""Recurrent networks for JAX as pure functions.

`unroll` runs a `Cell` over a sequence. Cells are made by constructors such as `lstm`, `gru` and
`lru`, or from a user's own functions by `gated`, `linear` and `Cell`. Flax layers are in
`jaxrnn.linen` and `jaxrnn.nnx`, classifiers of images in `jaxrnn.renet` and of long sequences in
`jaxrnn.residual`, conversions of weights in `jaxrnn.convert`, and data sets and training loops in
`jaxrnn.training`.
"""

from jaxrnn.cell import Cell, Recurrence, gated, linear, product
from jaxrnn.cells.gru import GRUParams, GRUState, gru, mgu
from jaxrnn.cells.linear import RGLRUParams, min_gru, min_lstm, rg_lru
from jaxrnn.cells.lstm import (
    FullGateState,
    LayerNormLSTMParams,
    LSTMParams,
    LSTMState,
    janet,
    layer_norm_lstm,
    lstm,
    odyssey,
)
from jaxrnn.cells.ode import (
    CoRNNParams,
    LEMParams,
    LEMState,
    OscillatorState,
    UnICORNNParams,
    cornn,
    lem,
    unicornn,
)
from jaxrnn.cells.rnn import IndRNNParams, RNNParams, RNNState, indrnn, rnn
from jaxrnn.cells.slstm import SLSTMParams, SLSTMState, slstm
from jaxrnn.cells.state_space import (
    LRUParams,
    LRUState,
    S5Params,
    S6Params,
    S6State,
    lru,
    s5,
    s6,
)
from jaxrnn.initializers import identity, scaled
from jaxrnn.regularize import Regularizer
from jaxrnn.unroll import unroll

__version__ = "0.2.0"

__all__ = [
    "Cell",
    "CoRNNParams",
    "FullGateState",
    "GRUParams",
    "GRUState",
    "IndRNNParams",
    "LEMParams",
    "LEMState",
    "LRUParams",
    "LRUState",
    "LSTMParams",
    "LSTMState",
    "LayerNormLSTMParams",
    "OscillatorState",
    "RGLRUParams",
    "RNNParams",
    "RNNState",
    "Recurrence",
    "Regularizer",
    "S5Params",
    "S6Params",
    "S6State",
    "SLSTMParams",
    "SLSTMState",
    "UnICORNNParams",
    "cornn",
    "gated",
    "gru",
    "identity",
    "indrnn",
    "janet",
    "layer_norm_lstm",
    "lem",
    "linear",
    "lru",
    "lstm",
    "mgu",
    "min_gru",
    "min_lstm",
    "odyssey",
    "product",
    "rg_lru",
    "rnn",
    "s5",
    "s6",
    "scaled",
    "slstm",
    "unicornn",
    "unroll",
]
