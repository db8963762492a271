"""Cells that discretize an ordinary differential equation of the hidden state.

Shapes: B batch (any number of axes), I input features, H hidden units.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn.arguments import size
from jaxrnn.cell import Cell, affine, along, cached, gated, product, sigmoid, zeros


class LEMParams(NamedTuple):
    """Parameters of `lem`.

    Attributes:
        kernel: V₁, V₂, Vz and Vy, side by side.
        recurrent_kernel: W₁, W₂ and Wz, side by side.
        inner_kernel: Wy.
        bias: b₁, b₂, bz and by, side by side.
    """

    kernel: Float[Array, "I 4*H"]
    recurrent_kernel: Float[Array, "H 3*H"]
    inner_kernel: Float[Array, "H H"]
    bias: Float[Array, " 4*H"]


class LEMState(NamedTuple):
    """State of `lem`.

    Attributes:
        hidden: y, which is also the output.
        memory: z.
    """

    hidden: Float[Array, "*B H"]
    memory: Float[Array, "*B H"]


@cached
def lem(hidden_size: int, *, step_size: float = 1.0) -> Cell[LEMParams, LEMState]:
    """Long expressive memory, LEM (Rusch et al., 2022).

        Δt = step_size·σ(y·W₁ + x·V₁ + b₁)
        Δ̄t = step_size·σ(y·W₂ + x·V₂ + b₂)
        z' = (1 - Δt)∘z + Δt∘tanh(y·Wz + x·Vz + bz)
        y' = (1 - Δ̄t)∘y + Δ̄t∘tanh(z'·Wy + x·Vy + by)

    Rusch et al., "Long expressive memory for sequence modeling". All parameters are initialized
    uniformly in ±1/√H, as in the authors' code.

    Args:
        hidden_size: H, the number of units.
        step_size: The largest time step.

    Returns:
        A cell with `LEMParams` and `LEMState`.

    Raises:
        ValueError: If `hidden_size` is not a positive integer.
    """
    hidden_size = size("hidden_size", hidden_size)

    def init(key, input_size, dtype=jnp.float32):
        shapes = (
            (input_size, 4 * hidden_size),
            (hidden_size, 3 * hidden_size),
            (hidden_size, hidden_size),
            (4 * hidden_size,),
        )
        return LEMParams(*_uniform(key, shapes, hidden_size**-0.5, dtype))

    def initial_state(params, batch_shape=()):
        return LEMState(*(zeros(params, batch_shape, hidden_size) for _ in range(2)))

    def step(params, state, x):
        drive = affine(x, params.kernel, params.bias)
        z_drive, y_drive = jnp.split(drive, [3 * hidden_size], axis=-1)
        total = z_drive + product(state.hidden, params.recurrent_kernel)
        z_step, y_step, new = jnp.split(total, 3, axis=-1)
        z, y = state.memory, state.hidden
        z = z + step_size * sigmoid(z_step) * (jnp.tanh(new) - z)
        new = jnp.tanh(y_drive + product(z, params.inner_kernel))
        y = y + step_size * sigmoid(y_step) * (new - y)
        return LEMState(y, z), y

    return Cell(init, initial_state, step, outputs_state=True)


class CoRNNParams(NamedTuple):
    """Parameters of `cornn`.

    Attributes:
        kernel: V, the input kernel.
        recurrent_kernel: W, the kernel of y, above 𝒲, the kernel of z.
        bias: b, the bias.
    """

    kernel: Float[Array, "I H"]
    recurrent_kernel: Float[Array, "2*H H"]
    bias: Float[Array, " H"]


class OscillatorState(NamedTuple):
    """State of `cornn` and `unicornn`.

    Attributes:
        hidden: y, the positions of the oscillators, which are also the output.
        velocity: z, their velocities.
    """

    hidden: Float[Array, "*B H"]
    velocity: Float[Array, "*B H"]


@cached
def cornn(
    hidden_size: int, *, step_size: float = 0.042, gamma: float = 2.7, epsilon: float = 4.7
) -> Cell[CoRNNParams, OscillatorState]:
    """Coupled oscillatory recurrent network, coRNN (Rusch & Mishra, 2021).

        z' = z + Δt∘(tanh(y·W + z·𝒲 + x·V + b) - γy - εz)
        y' = y + Δt∘z'

    Rusch & Mishra, "Coupled oscillatory recurrent neural network (coRNN): An accurate and
    (gradient) stable architecture for learning long time dependencies". The damping is explicit, as
    in the authors' code. The defaults are the paper's for sequential MNIST; it has 0.076, 0.4 and
    8.0 for the permuted one. All parameters are initialized uniformly in ±1/√(I + 2H).

    Args:
        hidden_size: H, the number of units.
        step_size: Δt.
        gamma: γ, the stiffness of the oscillators.
        epsilon: ε, their damping.

    Returns:
        A cell with `CoRNNParams` and `OscillatorState`.

    Raises:
        ValueError: If `hidden_size` is not a positive integer.
    """
    hidden_size = size("hidden_size", hidden_size)

    def init(key, input_size, dtype=jnp.float32):
        shapes = (input_size, hidden_size), (2 * hidden_size, hidden_size), (hidden_size,)
        bound = (input_size + 2 * hidden_size) ** -0.5
        return CoRNNParams(*_uniform(key, shapes, bound, dtype))

    def initial_state(params, batch_shape=()):
        return OscillatorState(*(zeros(params, batch_shape, hidden_size) for _ in range(2)))

    def step(params, state, x):
        past = product(jnp.concatenate(state, axis=-1), params.recurrent_kernel)
        force = jnp.tanh(affine(x, params.kernel, params.bias) + past)
        y, z = state
        z = z + step_size * (force - gamma * y - epsilon * z)
        y = y + step_size * z
        return OscillatorState(y, z), y

    return Cell(init, initial_state, step, outputs_state=True)


class UnICORNNParams(NamedTuple):
    """Parameters of `unicornn`.

    Attributes:
        kernel: V, the input kernel.
        bias: b, the bias.
        recurrent_weight: w, one recurrent weight per unit.
        time_scale: c, one time scale per unit.
        recurrent_kernel: Always None.
    """

    kernel: Float[Array, "I H"] | None
    bias: Float[Array, " H"] | None
    recurrent_weight: Float[Array, " H"] | None
    time_scale: Float[Array, " H"] | None
    recurrent_kernel: None = None


@cached
def unicornn(
    hidden_size: int, *, step_size: float = 0.19, alpha: float = 30.65
) -> Cell[UnICORNNParams, OscillatorState]:
    """Undamped independent controlled oscillatory network, UnICORNN (Rusch & Mishra, 2021).

        z' = z - Δt·σ(c)∘(tanh(w∘y + x·V + b) + αy)
        y' = y + Δt·σ(c)∘z'

    Rusch & Mishra, "UnICORNN: A recurrent model for learning very long time dependencies". The
    units of a layer do not depend on each other, so at least two layers are usually stacked. The
    step is symplectic and invertible. The defaults are the authors' for permuted sequential MNIST.
    As in their code, V is initialized uniformly in ±√(6/(65·I)), w in [0, 1) and c in ±0.1.

    Args:
        hidden_size: H, the number of units.
        step_size: Δt, twice the time step at c = 0.
        alpha: α, the stiffness of the oscillators.

    Returns:
        A cell with `UnICORNNParams` and `OscillatorState`.

    Raises:
        ValueError: If `hidden_size` is not a positive integer.
    """
    hidden_size = size("hidden_size", hidden_size)

    def init(key, input_size, dtype=jnp.float32):
        keys, bound = jax.random.split(key, 3), (6 / (65 * input_size)) ** 0.5
        uniform = jax.random.uniform
        return UnICORNNParams(
            kernel=uniform(keys[0], (input_size, hidden_size), dtype, -bound, bound),
            bias=jnp.zeros(hidden_size, dtype),
            recurrent_weight=uniform(keys[1], (hidden_size,), dtype),
            time_scale=uniform(keys[2], (hidden_size,), dtype, -0.1, 0.1),
        )

    def initial_state(params, batch_shape=()):
        return OscillatorState(*(zeros(params, batch_shape, hidden_size) for _ in range(2)))

    def gate(params, pre, state):
        y, z = state
        scale = step_size * sigmoid(along(params.time_scale, y))
        z = z - scale * (jnp.tanh(pre.h + along(params.recurrent_weight, y) * y) + alpha * y)
        return OscillatorState(y + scale * z, z)

    return gated(gate, "h", init, initial_state)


def _uniform(key, shapes, bound, dtype):
    """Draws arrays of the given shapes uniformly in ±bound."""
    keys = jax.random.split(key, len(shapes))
    return [
        jax.random.uniform(key, shape, dtype, -bound, bound)
        for key, shape in zip(keys, shapes, strict=True)
    ]
