"""Backends of `jaxrnn.unroll`: modules that run a cell over a sequence.

Each backend has the same two functions:

    supports(cell, params, state, steps, dtype) -> reason
    run(cell, params, start, reset_state, steps, *, dtype, unroll) -> (outputs, state)

- `reason`: None if the backend supports these arguments, otherwise a sentence that says why not.
- `cell`, `params`: The cell and its parameters.
- `start`: The state before the first step, leaves `[*B, ...]`.
- `reset_state`: The state after a reset, or None if there are no resets.
- `steps`: The inputs and masks, time first; see `jaxrnn.backends.steps`.
- `dtype`: The dtype of the operands of the matrix products, or None for that of the kernels.
- `unroll`: The number of steps per iteration of the loop.
- `outputs`: `[T, *B, P]`. The values past the length of an example are unspecified.
- `state`: The state after the last step.
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
    """Chooses the backend for each platform that a program may be lowered for.

    The default is "parallel" for linear recurrences and "scan" for cells with their own step. For
    gated cells it depends on the platform:

    - on a CPU "fused", or "scan" if some gates are separate, as in the GRU, or "states" if there is
      no recurrent kernel, as in IndRNN;
    - on an attached GPU "states", on an attached TPU "pallas";
    - on all other platforms "fused". These include accelerators that are not attached, because
      tracing the other backends as well takes up to 0.25 s per call.

    The choice for a CPU was measured on two cores of an AMD EPYC with H from 32 to 512, B from 1 to
    512, and T of 28 and 784. Without a gradient, "fused" took 0.95 to 1.05 times as long as "scan".
    With a gradient, it took 0.7 to 1.0 times as long for the LSTM and the tanh RNN (1.2 times for
    an LSTM of 512 units with one example). For the GRU it took 1.01 to 1.13 times as long from 100
    examples, and 0.8 to 1.25 times for one example. A GRU step has fewer matrix products to defer,
    and it must store two gradients of pre-activations. Without a recurrent kernel, with H = 128,
    "states" took 0.5 to 0.9 times as long as "fused" (IndRNN and UnICORNN; T = 28 and 784).

    The choice for a GPU was measured on an H100 with B = 100 and H = 128, in ms per train step:

    - LSTM, T = 28: "states" 0.38, "fused" 0.44, "pallas" 0.46, "scan" 0.56 (all but "pallas" with 4
      steps per iteration). With bfloat16 products "states" 0.39 and "pallas" 0.31.
    - GRU, T = 28: "pallas" 0.34, "states" 0.35, "fused" 0.47. With lengths and resets 0.36, 0.36
      and 0.52.
    - LSTM, T = 784: "states" 9.7, "pallas" 11.7, "fused" 19.6.

    So "pallas" is used on a GPU only on request. So is "cudnn", which took 1.30 and 74.7 ms. The
    choice for a TPU was not measured. It follows from the number of launches within the sequence,
    of which "pallas" has none.

    Args:
        cell: The cell.
        params: The parameters of the cell.
        state: A state of the cell.
        steps: The inputs and masks.
        dtype: The dtype of the operands of the matrix products, or None.
        name: A name in `BACKENDS`, or None for the default.

    Returns:
        The names of the backends by platform. The key "default" applies to all platforms that are
        not listed, as in `jax.lax.platform_dependent`.

    Raises:
        ValueError: If the backend `name` does not support the other arguments.
    """
    # Without jit a scan is a Python loop, and its pullbacks are different functions, which cannot
    # be stacked.
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
    without_kernel = getattr(params, "recurrent_kernel", None) is None
    better = [*attached, "cpu"] if without_kernel else attached
    if better and states.supports(cell, params, state, steps, dtype) is None:
        names |= dict.fromkeys(better, "states")
        kernels = "tpu" in attached and _tpu_runs_kernels()
        if kernels and pallas.supports(cell, params, state, steps, dtype) is None:
            names["tpu"] = "pallas"
    return names


def choose_unroll(backend: str) -> int:
    """Chooses the number of steps per iteration of the loop of a backend.

    Each iteration launches kernels, which XLA merges across the steps of an iteration. On an H100 a
    train step with "states" took 0.38 ms with 4 steps and 0.54 ms with 1 (LSTM, B = 100, H = 128,
    T = 28). On a CPU there are no launches, and one step is as fast.
    """
    return 4 if backend == "states" and (_attached("cuda") or _attached("rocm")) else 1


def _attached(platform: str) -> int:
    """Returns the number of attached devices of a platform."""
    try:
        return jax.device_count(platform)
    except RuntimeError:
        return 0


def _tpu_runs_kernels() -> bool:
    """Whether a program runs on a single TPU, or in a `jax.shard_map` over all axes of the mesh.

    Otherwise the compiler may partition the program, and it cannot partition a Pallas kernel.
    """
    mesh = jax.sharding.get_abstract_mesh()
    whole = bool(mesh.axis_names) and {*mesh.manual_axes} == {*mesh.axis_names}
    return whole or _attached("tpu") == 1
