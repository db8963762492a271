"""Recurrent networks for JAX as pure functions.

`unroll` runs a `Cell` over a sequence. Cells are made by constructors such as `lstm`, `gru` and
`lru`, or from a user's own functions by `gated`, `linear` and `Cell`. Flax layers are in
`jaxrnn.linen` and `jaxrnn.nnx`, an image classifier is in `jaxrnn.renet`, conversions of weights
are in `jaxrnn.convert`, and data sets and training loops are in `jaxrnn.training`.
"""

from jaxrnn.cell import Cell, Recurrence, gated, linear, product
from jaxrnn.cells.gru import GRUParams, GRUState, gru, mgu
from jaxrnn.cells.linear import LRUParams, LRUState, S5Params, lru, min_gru, min_lstm, s5
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
from jaxrnn.cells.rnn import IndRNNParams, RNNParams, RNNState, indrnn, rnn
from jaxrnn.initializers import identity, scaled
from jaxrnn.regularize import Regularizer
from jaxrnn.unroll import unroll

__version__ = "0.2.0"

__all__ = [
    "Cell",
    "FullGateState",
    "GRUParams",
    "GRUState",
    "IndRNNParams",
    "LRUParams",
    "LRUState",
    "LSTMParams",
    "LSTMState",
    "LayerNormLSTMParams",
    "RNNParams",
    "RNNState",
    "Recurrence",
    "Regularizer",
    "S5Params",
    "gated",
    "gru",
    "identity",
    "indrnn",
    "janet",
    "layer_norm_lstm",
    "linear",
    "lru",
    "lstm",
    "mgu",
    "min_gru",
    "min_lstm",
    "odyssey",
    "product",
    "rnn",
    "s5",
    "scaled",
    "unroll",
]
