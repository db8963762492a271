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

from typing import Any

import jax

from jaxrnn.backends import cudnn, fused, pallas, parallel, scan, states
from jaxrnn.backends.steps import Steps
from jaxrnn.cell import Cell, Params, State

BACKENDS: dict[str, Any] = {
    "scan": scan,
    "fused": fused,
    "states": states,
    "pallas": pallas,
    "parallel": parallel,
    "cudnn": cudnn,
}


def choose(
    cell: Cell, params: Params, state: State, steps: Steps, dtype: Any, name: str | None
) -> dict[str, str]:
    """The backend asked for, or the default, by the platform that a program is lowered for.

    The default is "parallel" for linear recurrences and "scan" for cells with a step of their own.
    Gated cells take

    - on a CPU "fused", or "scan" if some gates are separate, as in the GRU;
    - on a GPU that is attached "states", on a TPU that is attached "pallas";
    - elsewhere, as in a program lowered for an accelerator that is not attached, "fused": tracing
      the others too takes up to a quarter of a second a call.

    On two cores of an AMD EPYC (H 32 to 512, B 1 to 512, T 28 and 784) "fused" took 0.95 to 1.05 of
    the time of "scan" without a gradient. With one it took 0.7 to 1.0 for the LSTM and the tanh RNN
    (1.2 for an LSTM of 512 units and one example). For the GRU it took 1.01 to 1.13 from 100
    examples on, and 0.8 to 1.25 for one: it writes two gradients of pre-activations a step, and
    there is less to gain by waiting, because a GRU's step has fewer products.

    For accelerators the rule is reasoning. At B 100, H 128 a launch takes longer than what it
    computes, and compiled for an H100 a step of an LSTM has 5 launches forward and 6 backward in
    "states", 13 and 6 in "fused", 13 and 11 in "scan" (of a GRU 4 and 7, 11 and 7, 13 and 14). On a
    TPU "pallas" has none. Its kernels for a GPU have been compiled and interpreted, but not run,
    and are taken only where they are named, as is "cudnn", which was slower than "fused".

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
    attached = [platform for platform in ("cuda", "rocm", "tpu") if _attached(platform)]
    if attached and states.supports(cell, params, state, steps, dtype) is None:
        names |= dict.fromkeys(attached, "states")
        kernels = "tpu" in attached and _tpu_runs_kernels()
        if kernels and pallas.supports(cell, params, state, steps, dtype) is None:
            names["tpu"] = "pallas"
    return names


def _attached(platform: str) -> int:
    """The number of devices of a platform."""
    try:
        return jax.device_count(platform)
    except RuntimeError:
        return 0


def _tpu_runs_kernels() -> bool:
    """Whether the compiler need not divide a program between devices, as it cannot a kernel.

    Under `jax.shard_map` over all axes of the mesh it does not have to.
    """
    mesh = jax.sharding.get_abstract_mesh()
    whole = bool(mesh.axis_names) and {*mesh.manual_axes} == {*mesh.axis_names}
    return whole or _attached("tpu") == 1
