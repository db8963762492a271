"""Initializers of parameters.

An initializer is a function `(key, shape, dtype) -> array`, as in `jax.nn.initializers`, which
provides `glorot_uniform`, `orthogonal` and many more.

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
    """Initializes the kernel and the recurrent kernel of a cell, with the gates side by side.

    Args:
        key: The random key.
        input_size: I, the number of input features.
        output_size: P, the number of features that the recurrent product reads.
        hidden_size: H, the number of units per gate.
        gates: G, the number of gates.
        dtype: The dtype of the kernels.
        kernel_init: The initializer of the kernel. It is applied to each gate separately, because
            orthogonal and identity initializers are defined for a single matrix. Defaults to
            glorot-uniform over all gates together, with the same fan-in and fan-out as in TF1 and
            Keras.
        recurrent_kernel_init: The initializer of the recurrent kernel; see `kernel_init`.

    Returns:
        The kernel `[I, G·H]` and the recurrent kernel `[P, G·H]`.
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
    """Returns an initializer to the identity matrix times `scale`, as for the IRNN.

    Le et al., "A simple way to initialize recurrent networks of rectified linear units", 2015.

    Args:
        scale: The factor of the identity matrix.

    Returns:
        The initializer.
    """

    def init(key, shape, dtype=jnp.float32):
        return scale * jnp.eye(*shape, dtype=dtype)

    return init


def scaled(cell: Cell[P, S], scale: float | Array) -> Cell[P, S]:
    """Returns a cell whose initial kernels are multiplied by `scale`.

    Args:
        cell: The cell. Its parameters must be a named tuple.
        scale: The factor of `kernel` and `recurrent_kernel`.

    Returns:
        The same cell with another `init`, which raises ValueError if the parameters have neither a
        `kernel` nor a `recurrent_kernel`.
    """

    def init(key, input_size, dtype=jnp.float32):
        params: Any = cell.init(key, input_size, dtype)
        names = [name for name in ("kernel", "recurrent_kernel") if hasattr(params, name)]
        if not names:
            raise ValueError(
                "cell must have params with a kernel or recurrent_kernel to scale, "
                f"got {type(params).__name__}"
            )
        found = {name: getattr(params, name) for name in names}
        return params._replace(
            **jax.tree.map(lambda kernel: jnp.asarray(scale, dtype) * kernel, found)
        )

    return cell._replace(init=init)


def chrono_bias(key, hidden_size: int, longest: float, dtype) -> Float[Array, " H"]:
    """Draws gate biases log(u) with u uniform in [1, longest - 1), the chrono initialization.

    The gates then have time scales of up to `longest` steps (Tallec & Ollivier, "Can recurrent
    neural networks warp time?", 2018).

    Raises:
        ValueError: If `longest` is not greater than 2.
    """
    if not longest > 2:
        raise ValueError(f"chrono must be more than 2 steps, got {longest}")
    spans = jax.random.uniform(key, (hidden_size,), jnp.float32, 1, longest - 1)
    return jnp.log(spans).astype(dtype)
