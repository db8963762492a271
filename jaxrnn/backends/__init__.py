"""Ways to run a cell over a sequence, each a module with the same two functions.

supports(cell, params, state, steps, dtype) -> None, or why the backend cannot compute this
run(cell, params, start, reset_state, steps, *, dtype, unroll) -> (outputs, state)

cell         the cell
params       its parameters
start        the state before the first step, leaves [*B, ...]
reset_state  the state that a reset puts in place, or None if there are no resets
steps        the sequence, time first; see `jaxrnn.backends.steps`
dtype        the dtype of the products' operands; None is that of the kernels
unroll       steps per iteration of the loop
outputs      [T, *B, P]; past an example's length they may be anything
state        the state after the last step
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax

from jaxrnn.backends import cudnn, fused, pallas, parallel, scan
from jaxrnn.backends.steps import Steps
from jaxrnn.cell import Cell, Params, State

BACKENDS: dict[str, ModuleType] = {
    "scan": scan,
    "fused": fused,
    "pallas": pallas,
    "parallel": parallel,
    "cudnn": cudnn,
}


def choose(
    cell: Cell, params: Params, state: State, steps: Steps, dtype: Any, name: str | None
) -> dict[str, str]:
    """The backend asked for, or the default, by the platform that a program is lowered for.

    The default is "parallel" for linear recurrences, "fused" for gated cells and "scan" for all
    others; on a CPU it is "scan" also for gated cells with separate gates, such as the GRU.

    On two cores of an AMD EPYC (H 32 to 512, B 1 to 512, T 28 and 784) "fused" took 0.95 to 1.05 of
    the time of "scan" without a gradient. With one it took 0.7 to 1.0 for the LSTM and the tanh RNN
    (1.2 for an LSTM of 512 units and one example). For the GRU it took 1.01 to 1.13 from 100
    examples on, and 0.8 to 1.25 for one: it writes two gradients of pre-activations a step, and
    there is less to gain by waiting, because a GRU's step has fewer products. For "fused" on a GPU
    see docs/accelerators.md.

    Where a TPU is attached, gated cells take "pallas" on it, by reasoning alone, as none was at
    hand: a loop of XLA launches a dozen operations a step. Without a TPU it is left out, also of
    programs lowered for one, since tracing its kernels takes a quarter of a second a call. On a GPU
    "pallas" and "cudnn" are taken only where they are named: the kernels of "pallas" have been
    compiled for an H100 and interpreted, but not run, and "cudnn" is slower than "fused".

    Args:
        cell: The cell.
        params: Its parameters.
        state: A state of it.
        steps: The sequence.
        dtype: The dtype of the products' operands, or None.
        name: A name of `BACKENDS`, or None for the default.

    Returns:
        Names of `BACKENDS` as `jax.lax.platform_dependent` takes its branches: that of "default"
        is for all platforms that are not named.

    Raises:
        ValueError: If the backend asked for cannot compute this.
    """
    # Without jit a scan is a Python loop, whose pullbacks are different functions and do not stack.
    without_jit = jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]
    if name is not None:
        if reason := BACKENDS[name].supports(cell, params, state, steps, dtype):
            raise ValueError(f"implementation {name!r} cannot compute this: {reason}")
        return {"default": "scan" if name == "fused" and without_jit else name}
    if parallel.supports(cell, params, state, steps, dtype) is None:
        return {"default": "parallel"}
    if without_jit or fused.supports(cell, params, state, steps, dtype) is not None:
        return {"default": "scan"}
    names = {"default": "fused"}
    if cell.gate is not None and cell.gate.separate:
        names["cpu"] = "scan"
    if _tpu_takes_kernels() and pallas.supports(cell, params, state, steps, dtype) is None:
        names["tpu"] = "pallas"
    return names


def _tpu_takes_kernels() -> bool:
    """Whether there is a TPU, and the compiler need not divide a program between several.

    It cannot divide a kernel; under `jax.shard_map` it does not have to.
    """
    try:
        alone = jax.device_count("tpu") == 1
    except RuntimeError:
        return False
    mesh = jax.sharding.get_abstract_mesh()
    return alone or (bool(mesh.axis_names) and {*mesh.manual_axes} == {*mesh.axis_names})
