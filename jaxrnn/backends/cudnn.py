"""NVIDIA's cuDNN LSTM, through `jax.experimental.rnn`.

Shapes: B batch (any number of axes), T time, I input features, H hidden units, N weights.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import rnn
from jaxtyping import Array, Float

from jaxrnn.backends import fused
from jaxrnn.backends.steps import Steps, select
from jaxrnn.cell import Cell, Params, State
from jaxrnn.cells.lstm import lstm


def supports(cell: Cell, params: Params, state: State, steps: Steps, dtype: Any) -> str | None:
    """Returns None if cuDNN supports these arguments, else the reason."""
    if not _is_plain_lstm(cell):
        return "cell must be jaxrnn.lstm with default options"
    if steps.inputs.dtype != jnp.float32:
        return f"params must be float32, got {steps.inputs.dtype}"
    if dtype not in (None, jnp.float32):
        return f"dtype must be None or float32, got {dtype}"
    if not isinstance(steps.inputs.shape[0], int):
        return f"inputs must have a fixed number of steps, got {steps.inputs.shape[0]}"
    if 0 in steps.inputs.shape[:-1]:
        return "inputs must have at least one step and one example, got none"
    if steps.resets is not None:
        return "resets must be None"
    if steps.dropout_mask is not None or steps.zoneout_mask is not None:
        return "regularizer must be None"
    if not _has_gpu():
        return "there is no NVIDIA GPU"
    return None


def _has_gpu() -> bool:
    """Whether there is an NVIDIA GPU. JAX queries it during tracing, for any platform."""
    try:
        return bool(jax.devices("cuda"))
    except RuntimeError:
        return False


def _is_plain_lstm(cell: Cell) -> bool:
    """Whether the cell is `jaxrnn.lstm` with default options."""
    origin = cell.origin
    if origin is None or origin.constructor is not lstm or not origin.describes(cell):
        return False
    plain = lstm(origin.options["hidden_size"]).origin
    return plain is not None and plain.options == origin.options


def run(
    cell: Cell,
    params: Params,
    start: State,
    reset_state: State | None,
    steps: Steps,
    *,
    dtype: Any = None,
    unroll: int = 1,
) -> tuple[Float[Array, "T *B H"], State]:
    """Runs `jaxrnn.lstm`; see `jaxrnn.backends`.

    A program that is lowered for another platform runs "fused" instead.
    """
    other = partial(fused.run, cell, dtype=dtype, unroll=unroll)
    return lax.platform_dependent(
        params, start, reset_state, steps, cuda=_run_on_cuda, default=other
    )


def _run_on_cuda(params, start, reset_state, steps, *, lstm: Any = rnn.lstm):
    """Runs the LSTM with `lstm`, by default that of cuDNN; tests pass another function."""
    time, *batch_shape, input_size = steps.inputs.shape
    hidden_size = params.recurrent_kernel.shape[0]
    inputs = steps.inputs.reshape(time, -1, input_size).swapaxes(0, 1)
    lengths = jnp.full(len(inputs), time, jnp.int32)
    if steps.mask is not None:
        lengths = steps.mask.sum(0, dtype=jnp.int32).reshape(-1)
    outputs, hidden, cell = lstm(
        inputs,
        start.hidden.reshape(1, -1, hidden_size),
        start.cell.reshape(1, -1, hidden_size),
        pack(params),
        jnp.maximum(lengths, 1),  # cuDNN rejects length 0, which is handled below
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
    if steps.mask is not None:
        state = select(steps.mask[0], state, start)
    return outputs, state


def pack(params: Params) -> Float[Array, " N"]:
    """Packs the weights as cuDNN does: output-first kernels with gates i, f, g, o, two biases."""
    kernels = params.kernel.T.ravel(), params.recurrent_kernel.T.ravel()
    return jnp.concatenate([*kernels, params.bias, jnp.zeros_like(params.bias)])
