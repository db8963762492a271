"""Long short-term memory and its variants.

Kernels and their initialization are as in `jaxrnn.cells.rnn`.

Shapes: B batch (any number of axes), I input features, H memory cells, P output features (H without
a projection), G gates, N peepholes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import glorot_uniform
from jaxtyping import Array, Float

from jaxrnn.arguments import size
from jaxrnn.cell import Cell, affine, along, cached, gated, pointwise, product, sigmoid, zeros
from jaxrnn.cells.rnn import RNNParams, RNNState
from jaxrnn.initializers import Initializer, chrono_bias, kernels


class LSTMParams(NamedTuple):
    """Parameters of `lstm` and `odyssey`.

    The gates are in the order i, f, g, o and the peepholes in the order i, f, o. A variant without
    one of the gates has no block for it.

    Attributes:
        kernel: U, the input kernel.
        recurrent_kernel: W, the recurrent kernel.
        bias: b, the bias.
        peephole: p, the peepholes, or None.
        projection: The projection of the output, or None.
        gate_kernel: The recurrent kernel of the gates in the variant "FGR" of `odyssey`, else None.
    """

    kernel: Float[Array, "I G*H"] | None
    recurrent_kernel: Float[Array, "P G*H"] | None
    bias: Float[Array, " G*H"] | None
    peephole: Float[Array, "N H"] | None = None
    projection: Float[Array, "H P"] | None = None
    gate_kernel: Float[Array, "3H 3H"] | None = None


class LSTMState(NamedTuple):
    """State of `lstm`, `layer_norm_lstm` and `odyssey`.

    The order is (h, c). The carry of a Flax cell is (c, h).

    Attributes:
        hidden: h, the hidden state, which is also the output.
        cell: c, the memory cells.
    """

    hidden: Float[Array, "*B P"]
    cell: Float[Array, "*B H"]


class FullGateState(NamedTuple):
    """State of the LSTM with full gate recurrence, the variant "FGR" of `odyssey`.

    Attributes:
        hidden: h, the hidden state, which is also the output.
        cell: c, the memory cells.
        gates: The gates i, f and o of the previous step, side by side.
    """

    hidden: Float[Array, "*B H"]
    cell: Float[Array, "*B H"]
    gates: Float[Array, "*B 3H"]


class LayerNormLSTMParams(NamedTuple):
    """Parameters of `layer_norm_lstm`, with the gates in the order i, f, g, o.

    Attributes:
        kernel: U, the input kernel.
        recurrent_kernel: W, the recurrent kernel.
        bias: b, the bias.
        scale: The scale of the normalized x·U.
        recurrent_scale: The scale of the normalized h·W.
        cell_scale: The scale of the normalized memory cells.
        cell_bias: The bias of the normalized memory cells.
    """

    kernel: Float[Array, "I 4H"]
    recurrent_kernel: Float[Array, "H 4H"]
    bias: Float[Array, " 4H"]
    scale: Float[Array, " 4H"]
    recurrent_scale: Float[Array, " 4H"]
    cell_scale: Float[Array, " H"]
    cell_bias: Float[Array, " H"]


@cached
def lstm(
    hidden_size: int,
    *,
    forget_bias: float | Array = 1.0,
    activation: Callable[[Array], Array] = jnp.tanh,
    peephole: bool = False,
    projection_size: int | None = None,
    cell_clip: float | None = None,
    chrono: float | None = None,
    kernel_init: Initializer | None = None,
    recurrent_kernel_init: Initializer | None = None,
) -> Cell[LSTMParams, LSTMState]:
    """Long short-term memory (Hochreiter & Schmidhuber, 1997; forget gate: Gers et al., 2000).

        i = σ(x·Ui + h·Wi + bi [+ pi∘c])      input gate: what to write
        f = σ(x·Uf + h·Wf + bf [+ pf∘c])      forget gate: what to keep
        g = tanh(x·Ug + h·Wg + bg)            candidate
        c' = f∘c + i∘g                        memory cell
        o = σ(x·Uo + h·Wo + bo [+ po∘c'])     output gate: what to output
        h' = o∘tanh(c') [·projection]         hidden state and output

    The terms in brackets are optional. `activation` replaces tanh in g and h'.

    Args:
        hidden_size: H, the number of memory cells.
        forget_bias: The initial bias of the forget gate (Jozefowicz et al., 2015). It is part of
            the parameters and is not added in the forward pass.
        activation: The elementwise nonlinearity of the candidate and of the output.
        peephole: Whether the gates receive the memory cell (Gers & Schmidhuber, 2000).
        projection_size: P, the size of a linear projection of the output (Sak et al., 2014). If
            None, there is no projection and P = H.
        cell_clip: The bound of the memory cell, which is clipped to ±cell_clip. If None, it is not
            clipped.
        chrono: If given, the forget bias is initialized for time scales of up to this many steps,
            instead of to `forget_bias`, and the input bias to its negative (Tallec & Ollivier,
            2018).
        kernel_init: Initializer of the kernel; see `jaxrnn.initializers.kernels`. Defaults to
            glorot-uniform.
        recurrent_kernel_init: Initializer of the recurrent kernel. Defaults to glorot-uniform.

    Returns:
        A cell with `LSTMParams` and `LSTMState`.

    Raises:
        ValueError: If `hidden_size` or `projection_size` is not a positive integer, or `cell_clip`
            is not positive, or in the cell's `init` if `chrono` is not greater than 2.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxrnn
        >>> cell = jaxrnn.lstm(64, peephole=True)
        >>> params = cell.init(jax.random.key(0), 28)
        >>> params.kernel.shape, params.recurrent_kernel.shape, params.peephole.shape
        ((28, 256), (64, 256), (3, 64))
        >>> state = cell.initial_state(params, batch_shape=(8,))
        >>> state, output = cell.step(params, state, jnp.ones((8, 28)))
        >>> output.shape, state.cell.shape
        ((8, 64), (8, 64))
    """
    hidden_size = size("hidden_size", hidden_size)
    if projection_size is not None:
        projection_size = size("projection_size", projection_size)
    if cell_clip is not None and not cell_clip > 0:
        raise ValueError(f"cell_clip must be positive, got {cell_clip}")
    output_size = projection_size or hidden_size

    def init(key, input_size, dtype=jnp.float32):
        key, projection_key = jax.random.split(key)
        sizes = input_size, output_size, hidden_size, 4
        i, f, g, o = jnp.zeros((4, hidden_size), dtype)
        f = f + jnp.asarray(forget_bias, dtype)
        if chrono is not None:
            key, bias_key = jax.random.split(key)
            f = chrono_bias(bias_key, hidden_size, chrono, dtype)
            i = -f
        return LSTMParams(
            *kernels(key, *sizes, dtype, kernel_init, recurrent_kernel_init),
            jnp.concatenate([i, f, g, o]),
            peephole=jnp.zeros((3, hidden_size), dtype) if peephole else None,
            projection=glorot_uniform()(projection_key, (hidden_size, output_size), dtype)
            if projection_size
            else None,
        )

    def initial_state(params, batch_shape=()):
        return LSTMState(
            zeros(params, batch_shape, output_size), zeros(params, batch_shape, hidden_size)
        )

    gate = _gate(activation, activation, cell_clip=cell_clip)
    cell = gated(gate, "i f g o", init, initial_state)
    if projection_size is None:
        return cell

    def projected_step(params, state, x):
        # The projection is a second product in the step, which `gated` cannot express.
        state, hidden = cell.step(params, state, x)
        state = LSTMState(product(hidden, params.projection), state.cell)
        return state, state.hidden

    return Cell(init, initial_state, projected_step, outputs_state=True)


class LSTMGates(NamedTuple):
    """One array per gate of an LSTM, or None for a gate that the variant does not have."""

    i: Array | None = None
    f: Array | None = None
    g: Array | None = None
    o: Array | None = None


def _gate(activation, output_activation, *, cell_clip=None, coupled=False):
    """Returns the gate of `lstm` and of all variants of `odyssey` but "FGR".

    Args:
        activation: The nonlinearity of the candidate.
        output_activation: The nonlinearity of the output.
        cell_clip: The bound of the memory cell, or None.
        coupled: Whether i = 1 - f.

    Returns:
        A gate over `LSTMState`. A gate that the variant does not have is 1. With `coupled`, the
        missing i is 1 - f.
    """

    @pointwise
    def new_cell(i, f, g, c):
        i, f = _opening(i), _opening(f)
        return f * c + (1 - f if coupled else i) * activation(g)

    @pointwise
    def new_hidden(o, c):
        return _opening(o) * output_activation(c)

    def gate(params, z, state):
        i, f, g, o = LSTMGates(**z._asdict())
        p, c = _peepholes(params.peephole, z._fields), state.cell
        c = new_cell(_peep(i, p.i, c), _peep(f, p.f, c), g, c)
        c = c if cell_clip is None else jnp.clip(c, -cell_clip, cell_clip)
        h = new_hidden(_peep(o, p.o, c), c)
        return LSTMState(h, c)

    return gate


def _opening(z):
    """Returns the activation of a gate, or 1 for a gate that the variant does not have."""
    return 1 if z is None else sigmoid(z)


def _peep(z, peephole, cell):
    """Adds the peephole, if there is one, to the pre-activation of a gate."""
    return z if peephole is None else z + along(peephole, cell) * cell


def _peepholes(peephole, gates):
    """Returns the peepholes `[N, H]` by name, one per gate except g, or all None without them."""
    names = [name for name in gates if name != "g"]
    return LSTMGates() if peephole is None else LSTMGates(**dict(zip(names, peephole, strict=True)))


VARIANTS = ("V", "NIG", "NFG", "NOG", "NIAF", "NOAF", "CIFG", "NP", "FGR")


@cached
def odyssey(
    hidden_size: int,
    variant: str = "V",
    *,
    forget_bias: float | Array = 1.0,
    kernel_init: Initializer | None = None,
    recurrent_kernel_init: Initializer | None = None,
) -> Cell[LSTMParams, LSTMState | FullGateState]:
    """A variant of the LSTM with peepholes (Greff et al., "LSTM: A search space odyssey", 2017).

    "V" is the vanilla LSTM of the paper, `lstm(hidden_size, peephole=True)`. Each of the other
    variants changes one part of it:

        NIG   no input gate, i = 1
        NFG   no forget gate, f = 1
        NOG   no output gate, o = 1
        NIAF  no input activation, g = x·Ug + h·Wg + bg
        NOAF  no output activation, h' = o∘c'
        CIFG  coupled input and forget gate, i = 1 - f (the paper: f = 1 - i)
        NP    no peepholes
        FGR   full gate recurrence: the pre-activations of i, f and o also contain
              [i, f, o]·gate_kernel, with the gates of the previous step

    Args:
        hidden_size: H, the number of memory cells.
        variant: The name of the variant: "V", "NIG", "NFG", "NOG", "NIAF", "NOAF", "CIFG", "NP" or
            "FGR".
        forget_bias: The initial bias of the forget gate; ignored by "NFG".
        kernel_init: Initializer of the kernel; see `jaxrnn.initializers.kernels`. Defaults to
            glorot-uniform.
        recurrent_kernel_init: Initializer of the recurrent kernel. Defaults to glorot-uniform.

    Returns:
        A cell with `LSTMParams` and `LSTMState`, or `FullGateState` for "FGR".

    Raises:
        ValueError: If `hidden_size` is not a positive integer, or `variant` is unknown.
    """
    hidden_size = size("hidden_size", hidden_size)
    without = {"NIG": "i", "CIFG": "i", "NFG": "f", "NOG": "o"}
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {VARIANTS}, got {variant!r}")
    names = [name for name in "ifgo" if name != without.get(variant)]
    peephole = variant != "NP"

    def init(key, input_size, dtype=jnp.float32):
        key, gate_key = jax.random.split(key)
        sizes = input_size, hidden_size, hidden_size, len(names)
        bias = {"f": jnp.full(hidden_size, forget_bias, dtype)}
        gate_kernel = None
        if variant == "FGR":
            gate_kernel = glorot_uniform()(gate_key, (3 * hidden_size, 3 * hidden_size), dtype)
        return LSTMParams(
            *kernels(key, *sizes, dtype, kernel_init, recurrent_kernel_init),
            jnp.concatenate([bias.get(name, jnp.zeros(hidden_size, dtype)) for name in names]),
            peephole=jnp.zeros((len(names) - 1, hidden_size), dtype) if peephole else None,
            gate_kernel=gate_kernel,
        )

    def initial_state(params, batch_shape=()):
        # The leaves are different arrays, because a state can be donated.
        hidden, cell = (zeros(params, batch_shape, hidden_size) for _ in range(2))
        if variant != "FGR":
            return LSTMState(hidden, cell)
        return FullGateState(hidden, cell, zeros(params, batch_shape, 3 * hidden_size))

    def full_gate_step(params, state: Any, x):
        total = affine(x, params.kernel, params.bias) + product(
            state.hidden, params.recurrent_kernel
        )
        i, f, g, o = jnp.split(total, 4, axis=-1)
        seen = jnp.split(product(state.gates, params.gate_kernel), 3, axis=-1)
        p, c = _peepholes(params.peephole, names), state.cell
        i = sigmoid(_peep(i, p.i, c) + seen[0])
        f = sigmoid(_peep(f, p.f, c) + seen[1])
        cell = f * c + i * jnp.tanh(g)
        o = sigmoid(_peep(o, p.o, cell) + seen[2])
        state = FullGateState(o * jnp.tanh(cell), cell, jnp.concatenate([i, f, o], axis=-1))
        return state, state.hidden

    if variant == "FGR":
        return Cell(init, initial_state, full_gate_step, outputs_state=True)
    gate = _gate(
        _linear if variant == "NIAF" else jnp.tanh,
        _linear if variant == "NOAF" else jnp.tanh,
        coupled=variant == "CIFG",
    )
    return gated(gate, names, init, initial_state)


def _linear(x: Array) -> Array:
    return x


@cached
def janet(
    hidden_size: int,
    *,
    beta: float = 1.0,
    forget_bias: float | Array = 1.0,
    chrono: float | None = None,
    kernel_init: Initializer | None = None,
    recurrent_kernel_init: Initializer | None = None,
) -> Cell[RNNParams, RNNState]:
    """JANET, an LSTM with only the forget gate (van der Westhuizen & Lasenby, 2018).

        s = x·Uf + h·Wf + bf
        h' = σ(s)∘h + (1 - σ(s - beta))∘tanh(x·Ug + h·Wg + bg)

    van der Westhuizen & Lasenby, "The unreasonable effectiveness of the forget gate".

    Args:
        hidden_size: H, the number of units.
        beta: Subtracted from the pre-activation of the weight of the new values. A larger beta
            gives them more weight.
        forget_bias: The initial bias of the forget gate.
        chrono: If given, the forget bias is initialized for time scales of up to this many steps,
            instead of to `forget_bias`, as in the paper.
        kernel_init: Initializer of the kernel; see `jaxrnn.initializers.kernels`. Defaults to
            glorot-uniform.
        recurrent_kernel_init: Initializer of the recurrent kernel. Defaults to glorot-uniform.

    Returns:
        A cell with `RNNParams` (gates f, g) and `RNNState`.

    Raises:
        ValueError: If `hidden_size` is not a positive integer, or in the cell's `init` if `chrono`
            is not greater than 2.
    """
    hidden_size = size("hidden_size", hidden_size)

    def init(key, input_size, dtype=jnp.float32):
        key, bias_key = jax.random.split(key)
        forget = jnp.full(hidden_size, forget_bias, dtype)
        if chrono is not None:
            forget = chrono_bias(bias_key, hidden_size, chrono, dtype)
        return RNNParams(
            *kernels(
                key,
                input_size,
                hidden_size,
                hidden_size,
                2,
                dtype,
                kernel_init,
                recurrent_kernel_init,
            ),
            jnp.concatenate([forget, jnp.zeros(hidden_size, dtype)]),
        )

    def initial_state(params, batch_shape=()):
        return RNNState(zeros(params, batch_shape, hidden_size))

    @pointwise
    def new_hidden(s, g, h):
        return sigmoid(s) * h + (1 - sigmoid(s - beta)) * jnp.tanh(g)

    def gate(params, z, state):
        return RNNState(new_hidden(z.f, z.g, state.hidden))

    return gated(gate, "f g", init, initial_state)


@cached
def layer_norm_lstm(
    hidden_size: int,
    *,
    forget_bias: float | Array = 1.0,
    epsilon: float = 1e-3,
    kernel_init: Initializer | None = None,
    recurrent_kernel_init: Initializer | None = None,
) -> Cell[LayerNormLSTMParams, LSTMState]:
    """The LSTM with layer normalization (Ba et al., "Layer normalization", 2016, equations 20–22).

        i, f, g, o = LN(h·W)∘recurrent_scale + LN(x·U)∘scale + b
        c' = σ(f)∘c + σ(i)∘tanh(g)
        h' = σ(o)∘tanh(LN(c')∘cell_scale + cell_bias)

    LN subtracts the mean and divides by the standard deviation, over all 4H features of a product
    or over the H memory cells.

    Args:
        hidden_size: H, the number of memory cells.
        forget_bias: The initial bias of the forget gate.
        epsilon: Added to the variance. If inputs and state are zero, the variance is zero, and
            each such step multiplies the gradient by up to 1/√epsilon. With 1e-5 the gradient
            overflows on the blank rows of MNIST images.
        kernel_init: Initializer of the kernel; see `jaxrnn.initializers.kernels`. Defaults to
            glorot-uniform.
        recurrent_kernel_init: Initializer of the recurrent kernel. Defaults to glorot-uniform.

    Returns:
        A cell with `LayerNormLSTMParams` and `LSTMState`.

    Raises:
        ValueError: If `hidden_size` is not a positive integer.
    """
    hidden_size = size("hidden_size", hidden_size)

    def init(key, input_size, dtype=jnp.float32):
        bias = jnp.zeros(4 * hidden_size, dtype).at[hidden_size : 2 * hidden_size].set(forget_bias)
        sizes = input_size, hidden_size, hidden_size, 4
        return LayerNormLSTMParams(
            *kernels(key, *sizes, dtype, kernel_init, recurrent_kernel_init),
            bias,
            scale=jnp.ones(4 * hidden_size, dtype),
            recurrent_scale=jnp.ones(4 * hidden_size, dtype),
            cell_scale=jnp.ones(hidden_size, dtype),
            cell_bias=jnp.zeros(hidden_size, dtype),
        )

    def initial_state(params, batch_shape=()):
        return LSTMState(
            zeros(params, batch_shape, hidden_size), zeros(params, batch_shape, hidden_size)
        )

    def normalize(x, scale):
        return along(scale, x) * jax.nn.standardize(x, epsilon=epsilon)

    def step(params, state, x):
        past = normalize(product(state.hidden, params.recurrent_kernel), params.recurrent_scale)
        total = past + normalize(product(x, params.kernel), params.scale) + along(params.bias, past)
        i, f, g, o = jnp.split(total, 4, axis=-1)
        cell = sigmoid(f) * state.cell + sigmoid(i) * jnp.tanh(g)
        shown = normalize(cell, params.cell_scale) + along(params.cell_bias, cell)
        state = LSTMState(sigmoid(o) * jnp.tanh(shown), cell)
        return state, state.hidden

    return Cell(init, initial_state, step, outputs_state=True)
