"""jaxrnn: recurrent networks for JAX as pure functions."""

from jaxrnn.cell import Cell, gated
from jaxrnn.cells import (
    GRUParams,
    GRUState,
    LSTMParams,
    LSTMState,
    RNNParams,
    RNNState,
    gru,
    lstm,
    rnn,
)
from jaxrnn.unroll import unroll

__version__ = "0.1.0"

__all__ = [
    "Cell",
    "GRUParams",
    "GRUState",
    "LSTMParams",
    "LSTMState",
    "RNNParams",
    "RNNState",
    "gated",
    "gru",
    "lstm",
    "rnn",
    "unroll",
]
