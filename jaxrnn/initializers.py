"""Initial values of parameters.

An initializer is `(key, shape, dtype) -> array`, as in `jax.nn.initializers`, which has
glorot_uniform, orthogonal(scale) and many more.

Shapes: I input features, H hidden units, P output features, G gates, N = G·H.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import glorot_uniform
from jaxtyping import Array, Float

from jaxrnn.cell import Cell, P, S

__all__ = ["chrono_bias", "identity", "kernels", "scaled"]

Initializer = Callable[..., Array]


def kernels(
    key,
    input_size: int,
    output_size: int,
    hidden_size: int,
    gates: int,
    dtype,
    kernel_init: Initializer | None = None,
    recurrent_kernel_init: Initializer | None = None,
) -> tuple[Float[Array, "I N"], Float[Array, "P N"]]:
    """The kernel and the recurrent kernel of a cell, gates side by side.

    Args:
        key: The random key.
        input_size: I, the number of input features.
        output_size: P, the number of features that the recurrent product reads.
        hidden_size: H, the number of units of each gate.
        gates: G, the number of gates.
        dtype: Of the kernels.
        kernel_init: Initializer, applied per gate, because orthogonal and identity initializers
            are defined for one matrix; None is glorot-uniform over all gates at once, with the
            fans that TF1 and Keras count.
        recurrent_kernel_init: The same for the recurrent kernel.
    """

    def make(key, rows, init):
        if init is None:
            return glorot_uniform()(key, (rows, gates * hidden_size), dtype)
        each = [init(key, (rows, hidden_size), dtype) for key in jax.random.split(key, gates)]
        return jnp.concatenate(each, axis=-1)

    input_key, recurrent_key = jax.random.split(key)
    return make(input_key, input_size, kernel_init), make(
        recurrent_key, output_size, recurrent_kernel_init
    )


@functools.cache
def identity(scale: float = 1.0) -> Initializer:
    """The identity matrix times `scale`, as the IRNN is initialized (Le et al., 2015)."""

    def init(key, shape, dtype=jnp.float32):
        return scale * jnp.eye(*shape, dtype=dtype)

    return init


def scaled(cell: Cell[P, S], scale: float | Array) -> Cell[P, S]:
    """The cell with initial kernels `scale` times as large.

    Its `init` raises ValueError if the cell has no kernel of that name to scale.
    """

    def init(key, input_size, dtype=jnp.float32):
        params: Any = cell.init(key, input_size, dtype)
        names = [name for name in ("kernel", "recurrent_kernel") if hasattr(params, name)]
        if not names:
            raise ValueError(f"scale needs params with a kernel, got {type(params).__name__}")
        found = {name: getattr(params, name) for name in names}
        return params._replace(
            **jax.tree.map(lambda kernel: jnp.asarray(scale, dtype) * kernel, found)
        )

    return cell._replace(init=init)


def chrono_bias(key, hidden_size: int, longest: float, dtype) -> Float[Array, " H"]:
    """log(u), u uniform in 1..longest - 1: biases for time scales of up to `longest` steps.

    Tallec & Ollivier, "Can recurrent neural networks warp time?", 2018.

    Raises:
        ValueError: If `longest` is not more than 2 steps.
    """
    if not longest > 2:
        raise ValueError(f"chrono must be more than 2 steps, got {longest}")
    spans = jax.random.uniform(key, (hidden_size,), jnp.float32, 1, longest - 1)
    return jnp.log(spans).astype(dtype)
