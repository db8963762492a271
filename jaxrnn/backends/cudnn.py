"""The LSTM of NVIDIA's cuDNN, through `jax.experimental.rnn`; float32, no resets.

Shapes: B batch (any number of axes), T time, I input features, H hidden units, R = all of B.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import rnn
from jaxtyping import Array, Float

from jaxrnn.backends.fused import Steps, where
from jaxrnn.cell import Cell, Params, State


def why_not(cell: Cell, steps: Steps, dtype: Any = None) -> str | None:
    """Why cuDNN cannot compute this, or None if it can."""
    if not cell.is_cudnn_lstm:
        return "its cell is not jaxrnn.lstm without options"
    if steps.inputs.dtype != jnp.float32:
        return f"its inputs are {steps.inputs.dtype}, not float32"
    if dtype not in (None, jnp.float32):
        return f"its products are to be in {dtype}, not float32"
    if not isinstance(steps.inputs.shape[0], int):
        return "its number of steps is symbolic"
    if 0 in steps.inputs.shape[:-1]:
        return "it has no steps or no examples"
    if steps.resets is not None:
        return "it has resets"
    if steps.drop is not None or steps.mix is not None:
        return "it has a regularizer"
    if jax.default_backend() not in ("gpu", "cuda"):
        return f"the backend is {jax.default_backend()}, not an NVIDIA GPU"
    if "rocm" in jax.devices()[0].client.platform_version.lower():
        return "the backend is ROCm, not an NVIDIA GPU"
    return None


def cudnn(
    params: Params, start: State, steps: Steps, *, lstm: Any = rnn.lstm
) -> tuple[Float[Array, "T *B H"], State]:
    """Runs `jaxrnn.lstm` with cuDNN.

    Args:
        params: `LSTMParams` without peepholes or projection.
        start: The state before the first step.
        steps: The sequence, time first, without resets.
        lstm: `jax.experimental.rnn.lstm` or a function of the same signature.

    Returns:
        The outputs, zero past each example's length, and the state after its last step.
    """
    time, *batch_shape, input_size = steps.inputs.shape
    hidden_size = params.recurrent_kernel.shape[0]
    inputs = steps.inputs.reshape(time, -1, input_size).swapaxes(0, 1)
    lengths = jnp.full(len(inputs), time, jnp.int32)
    if steps.alive is not None:
        lengths = steps.alive.sum(0, dtype=jnp.int32).reshape(-1)
    outputs, hidden, cell = lstm(
        inputs,
        start.hidden.reshape(1, -1, hidden_size),
        start.cell.reshape(1, -1, hidden_size),
        pack(params),
        jnp.maximum(lengths, 1),  # cuDNN takes no empty examples; they are put right below
        input_size,
        hidden_size,
        1,
        0.0,
        False,
    )
    outputs = outputs.swapaxes(0, 1).reshape(time, *batch_shape, hidden_size)
    state = start._replace(
        hidden=hidden.reshape(start.hidden.shape), cell=cell.reshape(start.cell.shape)
    )
    if steps.alive is not None:
        outputs = where(steps.alive, outputs, jnp.zeros_like(outputs))
        state = where(steps.alive[0], state, start)
    return outputs, state


def pack(params: Params) -> Float[Array, " N"]:
    """The flat weights of cuDNN: output-first kernels, gates i, f, g, o, and two biases."""
    kernels = params.kernel.T.ravel(), params.recurrent_kernel.T.ravel()
    return jnp.concatenate([*kernels, params.bias, jnp.zeros_like(params.bias)])
