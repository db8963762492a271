"""Conversion of weights to and from other libraries, and of models to and from ONNX.

The libraries are TensorFlow 1, PyTorch, Keras 3, Flax Linen, Flax NNX, Equinox and Haiku. For ONNX
see `jaxrnn.convert.onnx`; this page is about the others.

All functions are pure functions of arrays; none of these libraries is imported. Each `from_…` takes
the kind of cell ("rnn", "lstm" or "gru") and the arrays under the library's own names, and returns
the parameters of `jaxrnn.rnn`, `jaxrnn.lstm` or `jaxrnn.gru`. Each `to_…` takes a cell and its
parameters and does the reverse. The libraries store weights differently:

    TF1         one kernel [I+H, ·] for both products; gates i, j, f, o, the forget bias added at
                run time; the GRU resets before its product, gates r, u
    PyTorch     output-first kernels, two biases; gates i, f, g, o and r, z, n
    Keras 3     gates i, f, c, o and z, r, h; the GRU of either kind
    Linen, NNX  one dense layer per gate, or one for all gates
    Equinox     output-first kernels, one bias; gates i, f, g, o and r, z, n
    Haiku       one kernel [I+H, 4H] for both products of an LSTM; gates i, g, f, o, 1 added to f at
                run time; the GRU resets before its product, gates z, r, n, z with opposite sign

Weights alone do not determine what a cell computes. A `to_…` raises ValueError for an option that
the library cannot compute (marked –); the other options must be passed to the library's cell:

    option of the cell        TF1                 PyTorch            Keras 3       Linen, NNX
    rnn(activation=…)         activation=         nonlinearity=,     activation=   activation_fn=
                                                  "tanh" or "relu"
    lstm(activation=…)        activation=         –                  activation=   activation_fn=
    lstm(peephole=True)       use_peepholes=True  –                  –             –
    lstm(projection_size=P)   num_proj=P          proj_size=P < H    –             –
    lstm(cell_clip=…)         cell_clip=          –                  –             –
    gru(reset_after=True)     –                   the only one       reset_after=  the only one
    gru(reset_after=False)    the only one        –                  reset_after=  –

    option of the cell        Equinox             Haiku
    rnn(activation=…)         –                   relu, the only one
    gru(reset_after=True)     the only one        –
    gru(reset_after=False)    –                   the only one

Equinox has no simple recurrent cell, and neither it nor Haiku has an option of an LSTM.

The variants "V" and "NP" of `jaxrnn.odyssey` are LSTMs with and without peepholes. The other cells
of jaxrnn exist in none of these libraries.

All arrays are copies. Those of a `to_…` are NumPy arrays, contiguous and writable, so that
`safetensors.numpy.save_file` and the like can write them. Weights may be given as anything that
NumPy converts to an array of floating-point numbers, in any byte order, also as nested lists. The
dtype is kept where JAX has it: float64 becomes float32 unless `jax_enable_x64` is set.

Shapes: I input features, H hidden units, P output features of an LSTM, G gates, R = I + P.
"""

from jaxrnn.convert.equinox import from_equinox, to_equinox
from jaxrnn.convert.flax import from_linen, from_nnx, to_linen, to_nnx
from jaxrnn.convert.haiku import from_haiku, to_haiku
from jaxrnn.convert.keras import from_keras, to_keras
from jaxrnn.convert.onnx import from_onnx, to_onnx
from jaxrnn.convert.tf1 import from_tf1, to_tf1
from jaxrnn.convert.torch import from_torch, to_torch

__all__ = [
    "from_equinox",
    "from_haiku",
    "from_keras",
    "from_linen",
    "from_nnx",
    "from_onnx",
    "from_tf1",
    "from_torch",
    "to_equinox",
    "to_haiku",
    "to_keras",
    "to_linen",
    "to_nnx",
    "to_onnx",
    "to_tf1",
    "to_torch",
]
