"""Conversion of weights to and from other libraries, and of models to and from ONNX.

The libraries are TensorFlow 1, PyTorch, Keras 3, Flax Linen, Flax NNX, Equinox and Haiku. For ONNX
see `jaxrnn.convert.onnx`. The rest of this page is about the others.

All functions are pure functions of arrays. None of these libraries is imported. Each `from_…`
function takes the kind of cell ("rnn", "lstm" or "gru") and the arrays under the names that the
library gives them, and returns the parameters of `jaxrnn.rnn`, `jaxrnn.lstm` or `jaxrnn.gru`. Each
`to_…` function takes a cell and its parameters and does the reverse. The libraries store weights
differently:

- TF1: one kernel `[I+H, G·H]` for both products, gates i, j, f, o, and a forget bias that is added
  at run time. The GRU resets before its product and has the gates r, u.
- PyTorch: output-first kernels, two biases, gates i, f, g, o and r, z, n.
- Keras 3: gates i, f, c, o and z, r, h. The GRU resets before or after its product.
- Linen and NNX: one dense layer per gate, or one for all gates.
- Equinox: output-first kernels, one bias, gates i, f, g, o and r, z, n. There is no simple RNN.
- Haiku: one kernel `[I+H, 4H]` for both products of an LSTM, gates i, g, f, o, and a forget bias of
  1 that is added at run time. The GRU resets before its product and has the gates z, r, n. Its z
  has the opposite sign.

The weights do not determine the whole computation of a cell. A `to_…` function raises ValueError
for an option that the library's cell does not have (marked –). The other options must be passed to
the library's cell:

| jaxrnn | TF1 | PyTorch | Keras 3 | Linen, NNX |
|---|---|---|---|---|
| `rnn(activation=…)` | `activation` | `nonlinearity` | `activation` | `activation_fn` |
| `lstm(activation=…)` | `activation` | – | `activation` | `activation_fn` |
| `lstm(peephole=True)` | `use_peepholes=True` | – | – | – |
| `lstm(projection_size=P)` | `num_proj=P` | `proj_size=P`, P < H | – | – |
| `lstm(cell_clip=…)` | `cell_clip` | – | – | – |
| `gru(reset_after=True)` | – | always | `reset_after=True` | always |
| `gru(reset_after=False)` | always | – | `reset_after=False` | – |

| jaxrnn | Equinox | Haiku |
|---|---|---|
| `rnn(activation=…)` | – | always relu |
| `gru(reset_after=True)` | always | – |
| `gru(reset_after=False)` | – | always |

The LSTMs of Equinox and Haiku have no options.

PyTorch's `nonlinearity` is "tanh" or "relu". The variants "V" and "NP" of `jaxrnn.odyssey` are
LSTMs with and without peepholes. The other cells of jaxrnn do not exist in these libraries.

All returned arrays are copies. The `to_…` functions return contiguous, writable NumPy arrays, as
`safetensors.numpy.save_file` requires. The `from_…` functions accept everything that NumPy converts
to an array of floating-point numbers, in any byte order, including nested lists. The dtype is kept,
except that float64 becomes float32 unless `jax_enable_x64` is set.

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
