"""jaxrnn: recurrent networks for JAX as pure functions."""

from jaxrnn.cell import Cell, gated, identity, product, scaled
from jaxrnn.cells import (
    GRUParams,
    GRUState,
    IndRNNParams,
    RNNParams,
    RNNState,
    gru,
    indrnn,
    mgu,
    rnn,
)
from jaxrnn.linear import LRUParams, LRUState, lru, min_gru, min_lstm
from jaxrnn.lstm import (
    LayerNormLSTMParams,
    LSTMParams,
    LSTMState,
    janet,
    layer_norm_lstm,
    lstm,
    odyssey,
)
from jaxrnn.regularize import Regularizer
from jaxrnn.unroll import unroll

__version__ = "0.1.0"

__all__ = [
    "Cell",
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
    "Regularizer",
    "gated",
    "gru",
    "identity",
    "indrnn",
    "janet",
    "layer_norm_lstm",
    "lru",
    "lstm",
    "mgu",
    "min_gru",
    "min_lstm",
    "odyssey",
    "product",
    "rnn",
    "scaled",
    "unroll",
]
