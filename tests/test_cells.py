"""Compares the cells with the equations of the papers in NumPy, and with Flax."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_cells import CELLS, H, I, P
from jax import jit

import jaxrnn

T = 6
LENGTHS = jnp.array([T, 1, 4])


# The equations of the papers for one example in float64, with separate matrices per gate.


def σ(x):
    return 1 / (1 + np.exp(-x))


def gates(matrix, names):
    """Splits the last axis of a matrix or vector into the blocks of the gates."""
    return dict(zip(names, np.split(matrix, len(names), axis=-1), strict=True))


def elman(p, xs, h, *, activation=np.tanh):
    ys = []
    for x in xs:
        h = activation(p.kernel.T @ x + p.recurrent_kernel.T @ h + p.bias)
        ys.append(h)
    return ys, (h,)


def lstm(p, xs, h, c, *, clip=np.inf, activation=np.tanh):
    U, W, b = (gates(each, "ifgo") for each in (p.kernel, p.recurrent_kernel, p.bias))
    zero = np.zeros(len(c))
    pi, pf, po = (zero, zero, zero) if p.peephole is None else p.peephole
    ys = []
    for x in xs:
        i = σ(x @ U["i"] + h @ W["i"] + pi * c + b["i"])
        f = σ(x @ U["f"] + h @ W["f"] + pf * c + b["f"])
        g = activation(x @ U["g"] + h @ W["g"] + b["g"])
        c = np.minimum(np.maximum(f * c + i * g, -clip), clip)
        o = σ(x @ U["o"] + h @ W["o"] + po * c + b["o"])
        m = o * activation(c)
        h = m if p.projection is None else m @ p.projection
        ys.append(h)
    return ys, (h, c)


# The gates in the kernels of each variant, and the gates with peepholes.
ODYSSEY = {
    "V": ("ifgo", "ifo"),
    "NIG": ("fgo", "fo"),
    "NFG": ("igo", "io"),
    "NOG": ("ifg", "if"),
    "NIAF": ("ifgo", "ifo"),
    "NOAF": ("ifgo", "ifo"),
    "CIFG": ("fgo", "fo"),
    "NP": ("ifgo", ""),
    "FGR": ("ifgo", "ifo"),
}


def odyssey(p, xs, h, c, *last_gates, variant):
    """The vanilla LSTM of Greff et al. (2017), section II, and the variants of section IV.B."""
    names, peeping = ODYSSEY[variant]
    U, W, b = (gates(each, names) for each in (p.kernel, p.recurrent_kernel, p.bias))
    peep = dict(zip(peeping, p.peephole, strict=True)) if peeping else dict.fromkeys("ifo", 0)
    ys = []
    for x in xs:
        z = {name: x @ U[name] + h @ W[name] + b[name] for name in names}
        if variant == "FGR":  # the gates receive i, f and o of the previous step
            for name, seen in zip("ifo", np.split(last_gates[0] @ p.gate_kernel, 3), strict=True):
                z[name] = z[name] + seen
        f = 1 if variant == "NFG" else σ(z["f"] + peep["f"] * c)
        if variant == "NIG":
            i = 1
        elif variant == "CIFG":
            i = 1 - f
        else:
            i = σ(z["i"] + peep["i"] * c)
        c = f * c + i * (z["g"] if variant == "NIAF" else np.tanh(z["g"]))
        o = 1 if variant == "NOG" else σ(z["o"] + peep["o"] * c)
        h = o * (c if variant == "NOAF" else np.tanh(c))
        if variant == "FGR":
            last_gates = (np.concatenate([i, f, o]),)
        ys.append(h)
    return ys, (h, c, *last_gates)


def layer_norm_lstm(p, xs, h, c):
    def norm(x):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-3)

    ys = []
    for x in xs:
        total = norm(h @ p.recurrent_kernel) * p.recurrent_scale + norm(x @ p.kernel) * p.scale
        i, f, g, o = np.split(total + p.bias, 4)
        c = σ(f) * c + σ(i) * np.tanh(g)
        h = σ(o) * np.tanh(norm(c) * p.cell_scale + p.cell_bias)
        ys.append(h)
    return ys, (h, c)


def janet(p, xs, h):
    U, W, b = (gates(each, "fg") for each in (p.kernel, p.recurrent_kernel, p.bias))
    ys = []
    for x in xs:
        s = x @ U["f"] + h @ W["f"] + b["f"]
        h = σ(s) * h + (1 - σ(s - 1)) * np.tanh(x @ U["g"] + h @ W["g"] + b["g"])
        ys.append(h)
    return ys, (h,)


def indrnn(p, xs, h):
    ys = []
    for x in xs:
        h = relu(p.kernel.T @ x + p.recurrent_weight * h + p.bias)
        ys.append(h)
    return ys, (h,)


def mgu(p, xs, h):
    U, W, b = (gates(each, "fn") for each in (p.kernel, p.recurrent_kernel, p.bias))
    ys = []
    for x in xs:
        f = σ(x @ U["f"] + h @ W["f"] + b["f"])
        n = np.tanh(x @ U["n"] + (f * h) @ W["n"] + b["n"])
        h = (1 - f) * h + f * n
        ys.append(h)
    return ys, (h,)


def min_gru(p, xs, h):
    U, b = (gates(each, "zn") for each in (p.kernel, p.bias))
    ys = []
    for x in xs:
        z = σ(x @ U["z"] + b["z"])
        h = (1 - z) * h + z * (x @ U["n"] + b["n"])
        ys.append(h)
    return ys, (h,)


def min_lstm(p, xs, h):
    U, b = (gates(each, "ifg") for each in (p.kernel, p.bias))
    ys = []
    for x in xs:
        i, f = σ(x @ U["i"] + b["i"]), σ(x @ U["f"] + b["f"])
        h = (f * h + i * (x @ U["g"] + b["g"])) / (f + i)
        ys.append(h)
    return ys, (h,)


def lru(p, xs, real, imaginary):
    s = real + 1j * imaginary
    λ = np.exp(-np.exp(p.nu) + 1j * np.exp(p.theta))
    B, C = (each[0] + 1j * each[1] for each in (p.input_kernel, p.output_kernel))
    ys = []
    for x in xs:
        s = λ * s + np.exp(p.gamma) * (x @ B)
        ys.append(gelu(np.real(s @ C) + x @ p.skip_kernel))
    return ys, (s.real, s.imag)


def s5(p, xs, real, imaginary, stride=1):
    s = real + 1j * imaginary
    Λ, B, C = (each[0] + 1j * each[1] for each in (p.eigenvalues, p.input_kernel, p.output_kernel))
    Λ = np.minimum(Λ.real, -1e-4) + 1j * Λ.imag
    Λ_bar = np.exp(Λ * np.exp(p.log_step))
    D = p.skip_kernel if p.skip_kernel.ndim == 2 else np.diag(p.skip_kernel)
    ys = []
    for x in xs.reshape(len(xs) * stride, -1):
        s = Λ_bar * s + (Λ_bar - 1) / Λ * (x @ B)
        ys.append(gelu(2 * np.real(s @ C) + x @ D))
    return ys[stride - 1 :: stride], (s.real, s.imag)


def s6(p, xs, s):
    ranks, states = p.step_kernel.shape[0], s.shape[-1]
    ys = []
    for x in xs:
        u = x @ p.kernel + p.bias
        δ, B, C = np.split(u @ p.selection_kernel, [ranks, ranks + states])
        Δ = np.log1p(np.exp(δ @ p.step_kernel + p.step_bias))
        s = np.exp(-np.exp(p.log_decay) * Δ[:, None]) * s + np.outer(Δ * u, B)
        ys.append(s @ C + p.skip * u)
    return ys, (s,)


def block_diagonal(blocks):
    """The matrix `[H, G·H]` of the blocks `[heads, K, G·K]`, with gates side by side."""
    heads, width, columns = blocks.shape
    matrix = np.zeros((heads, width, columns // width, heads, width))
    for head, block in enumerate(blocks):
        matrix[head, :, :, head] = block.reshape(width, -1, width)
    return matrix.reshape(heads * width, -1)


def rg_lru(p, xs, h):
    Wa, Wx = np.split(block_diagonal(p.gate_kernel), 2, axis=-1)
    ys = []
    for x in xs:
        u = x @ p.kernel + p.bias
        a = σ(p.decay) ** (8 * σ(u @ Wa + p.gate_bias[0]))
        h = a * h + np.sqrt(1 - a**2) * σ(u @ Wx + p.gate_bias[1]) * u
        ys.append(h)
    return ys, (h,)


def slstm(p, xs, h, c, n, m):
    R = p.recurrent_kernel if p.recurrent_kernel.ndim == 2 else block_diagonal(p.recurrent_kernel)
    ys = []
    for x in xs:
        i, f, z, o = np.split(x @ p.kernel + h @ R + p.bias, 4)
        before, m = m, np.maximum(np.log(σ(f)) + m, i)
        i, f = np.exp(i - m), σ(f) * np.exp(before - m)
        c, n = f * c + i * np.tanh(z), f * n + i
        h = σ(o) * c / n
        ys.append(h)
    return ys, (h, c, n, m)


def lem(p, xs, y, z):
    V, b = np.split(p.kernel, 4, axis=-1), np.split(p.bias, 4)
    W = np.split(p.recurrent_kernel, 3, axis=-1)
    ys = []
    for x in xs:
        Δt, Δt_bar = (0.7 * σ(y @ W[k] + x @ V[k] + b[k]) for k in range(2))
        z = (1 - Δt) * z + Δt * np.tanh(y @ W[2] + x @ V[2] + b[2])
        y = (1 - Δt_bar) * y + Δt_bar * np.tanh(z @ p.inner_kernel + x @ V[3] + b[3])
        ys.append(y)
    return ys, (y, z)


def cornn(p, xs, y, z, *, Δt=0.042, γ=2.7, ε=4.7):
    W_y, W_z = np.split(p.recurrent_kernel, 2)
    ys = []
    for x in xs:
        z = z + Δt * (np.tanh(y @ W_y + z @ W_z + x @ p.kernel + p.bias) - γ * y - ε * z)
        y = y + Δt * z
        ys.append(y)
    return ys, (y, z)


def unicornn(p, xs, y, z, *, Δt=0.19, α=30.65):
    ys = []
    for x in xs:
        force = np.tanh(p.recurrent_weight * y + x @ p.kernel + p.bias) + α * y
        z = z - Δt * σ(p.time_scale) * force
        y = y + Δt * σ(p.time_scale) * z
        ys.append(y)
    return ys, (y, z)


def gelu(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def gru(p, xs, h, *, reset_after=True):
    U, W, b = (gates(each, "rzn") for each in (p.kernel, p.recurrent_kernel, p.bias))
    ys = []
    for x in xs:
        r = σ(x @ U["r"] + h @ W["r"] + b["r"])
        z = σ(x @ U["z"] + h @ W["z"] + b["z"])
        past = r * (h @ W["n"] + p.recurrent_bias) if reset_after else (r * h) @ W["n"]
        n = np.tanh(x @ U["n"] + b["n"] + past)
        h = (1 - z) * n + z * h
        ys.append(h)
    return ys, (h,)


def softsign(x):
    return x / (1 + abs(x))


def relu(x):
    return np.where(x > 0, x, 0)


# By name: the equations of the cell, and their options.
EQUATIONS = {
    "rnn": (elman, {}),
    "rnn-relu": (elman, {"activation": relu}),
    "rnn-sigmoid": (elman, {"activation": σ}),
    "indrnn": (indrnn, {}),
    "lstm": (lstm, {}),
    "lstm-peephole": (lstm, {}),
    "lstm-projection": (lstm, {}),
    "lstm-clip": (lstm, {"clip": 0.3}),
    "lstm-softsign": (lstm, {"activation": softsign}),
    "lstm-everything": (lstm, {"clip": 0.5}),
    **{name: (odyssey, {"variant": name[8:]}) for name in CELLS if name.startswith("odyssey")},
    "lstm-layer-norm": (layer_norm_lstm, {}),
    "janet": (janet, {}),
    "gru": (gru, {}),
    "gru-before": (gru, {"reset_after": False}),
    "mgu": (mgu, {}),
    "min-gru": (min_gru, {}),
    "min-lstm": (min_lstm, {}),
    "lru": (lru, {}),
    "lru-pairs": (lru, {}),
    "s5": (s5, {}),
    "s5-square": (s5, {}),
    "s5-stride": (s5, {"stride": I}),
    "s6": (s6, {}),
    "rg-lru": (rg_lru, {}),
    "slstm": (slstm, {}),
    "slstm-heads": (slstm, {}),
    "lem": (lem, {}),
    "cornn": (cornn, {}),
    "unicornn": (unicornn, {}),
}


def numbers(name, dtype):
    """Returns random nonzero parameters, inputs and state."""
    cell = CELLS[name]
    random = np.random.default_rng(0)
    normal = lambda leaf: jnp.asarray(random.normal(size=leaf.shape), dtype)  # noqa: E731
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), I, dtype))
    state = jax.eval_shape(lambda params: cell.initial_state(params, (3,)), params)
    inputs = jax.ShapeDtypeStruct((3, T, I), dtype)
    return cell, *jax.tree.map(normal, (params, inputs, state))


def assert_close(actual, expected, tolerance):
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)  # noqa: E731
    jax.tree.map(compare, actual, expected)


def run(cell, params, inputs, state):
    """Checks the outputs of `unroll`, and of `step` for the first step of every example."""
    return (
        jaxrnn.unroll(cell, params, inputs, initial_state=state),
        cell.step(params, state, inputs[:, 0]),
    )


@pytest.mark.parametrize("name", CELLS)
def test_is_its_papers_equations(name):
    equations, options = EQUATIONS[name]
    with jax.enable_x64(True):
        cell, *arguments = numbers(name, jnp.float64)
        (outputs, final), (one_state, one_output) = jit(partial(run, cell))(*arguments)
    params, inputs, state = jax.tree.map(np.asarray, arguments)
    for row in range(3):
        start = [leaf[row] for leaf in state]
        ys, end = equations(params, inputs[row], *start, **options)
        assert_close(outputs[row], np.stack(ys), 1e-12)
        assert_close([leaf[row] for leaf in final], list(end), 1e-12)
        ys, end = equations(params, inputs[row, :1], *start, **options)
        assert_close(one_output[row], ys[0], 1e-12)
        assert_close([leaf[row] for leaf in one_state], list(end), 1e-12)


def test_the_clip_clips():
    cell, *arguments = numbers("lstm-clip", jnp.float32)
    (_, final), _ = jit(partial(run, cell))(*arguments)
    np.testing.assert_allclose(abs(final.cell).max(), 0.3)
    assert np.any(abs(final.cell) < 0.29)


# Flax, with the same weights


def dense(names, kernel, bias=None):
    """Converts kernels with gates side by side to Flax's dense layers of the given names."""
    kernels = np.split(np.asarray(kernel), len(names), axis=-1)
    layers = {name: {"kernel": each} for name, each in zip(names, kernels, strict=True)}
    if bias is not None:
        for name, each in zip(names, np.split(np.asarray(bias), len(names)), strict=True):
            layers[name]["bias"] = each
    return layers


def flax_lstm(p):
    recurrent = dense(["hi", "hf", "hg", "ho"], p.recurrent_kernel, p.bias)
    return dense(["ii", "if", "ig", "io"], p.kernel) | recurrent


def flax_gru(p):
    layers = dense(["ir", "iz", "in"], p.kernel, p.bias)
    layers |= dense(["hr", "hz", "hn"], p.recurrent_kernel)
    layers["hn"]["bias"] = p.recurrent_bias
    return layers


def flax_rnn(p):
    return dense(["i"], p.kernel, p.bias) | dense(["h"], p.recurrent_kernel)


@pytest.mark.parametrize(
    ("name", "flax_cell", "layers", "carry", "reverse"),
    [
        ("lstm", nn.LSTMCell, flax_lstm, lambda state: (state.cell, state.hidden), False),
        ("lstm", nn.OptimizedLSTMCell, flax_lstm, lambda state: (state.cell, state.hidden), False),
        ("lstm", nn.OptimizedLSTMCell, flax_lstm, lambda state: (state.cell, state.hidden), True),
        ("gru", nn.GRUCell, flax_gru, lambda state: state.hidden, False),
        ("gru", nn.GRUCell, flax_gru, lambda state: state.hidden, True),
        ("rnn", nn.SimpleCell, flax_rnn, lambda state: state.hidden, False),
    ],
)
def test_equals_flax(name, flax_cell, layers, carry, reverse):
    cell, params, inputs, state = numbers(name, jnp.float32)
    theirs = nn.RNN(flax_cell(H), return_carry=True, reverse=reverse, keep_order=True)

    @jit
    def both(inputs):
        final, outputs = theirs.apply(
            {"params": {"cell": layers(params)}},
            inputs,
            initial_carry=carry(state),
            seq_lengths=LENGTHS,
        )
        ours = jaxrnn.unroll(
            cell, params, inputs, initial_state=state, lengths=LENGTHS, reverse=reverse
        )
        return (outputs, final), (ours[0], carry(ours[1]))

    (outputs, final), (our_outputs, our_final) = both(inputs)
    for row, length in enumerate(LENGTHS):  # Flax's outputs past the length are not zero
        assert_close(our_outputs[row, :length], outputs[row, :length], 1e-5)
    assert_close(our_final, final, 1e-5)


# Initialization


SHAPES = {
    "rnn": {"kernel": (I, H), "recurrent_kernel": (H, H), "bias": (H,)},
    "lstm": {
        "kernel": (I, 4 * H),
        "recurrent_kernel": (H, 4 * H),
        "bias": (4 * H,),
        "peephole": None,
        "projection": None,
        "gate_kernel": None,
    },
    "lstm-everything": {
        "kernel": (I, 4 * H),
        "recurrent_kernel": (P, 4 * H),
        "bias": (4 * H,),
        "peephole": (3, H),
        "projection": (H, P),
        "gate_kernel": None,
    },
    "gru": {
        "kernel": (I, 3 * H),
        "recurrent_kernel": (H, 3 * H),
        "bias": (3 * H,),
        "recurrent_bias": (H,),
    },
    "gru-before": {
        "kernel": (I, 3 * H),
        "recurrent_kernel": (H, 3 * H),
        "bias": (3 * H,),
        "recurrent_bias": None,
    },
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_parameters_and_states(name):
    cell = CELLS[name]
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), I))
    shapes = {k: None if v is None else v.shape for k, v in params._asdict().items()}
    assert shapes == SHAPES[name]
    sizes = {"hidden": P if name == "lstm-everything" else H}
    if name.startswith("lstm"):
        sizes["cell"] = H
    for batch in ((), (5,), (2, 3)):
        state = jax.eval_shape(lambda params: cell.initial_state(params, batch), params)  # noqa: B023
        assert {k: v.shape for k, v in state._asdict().items()} == {
            k: (*batch, size) for k, size in sizes.items()
        }
    assert jax.eval_shape(cell.initial_state, params).hidden.shape == (sizes["hidden"],)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
@pytest.mark.parametrize("name", SHAPES)
def test_the_dtype_asked_for_is_that_of_parameters_and_states(name, dtype):
    cell = CELLS[name]
    with jax.enable_x64(dtype == jnp.float64):
        params = jax.eval_shape(lambda: cell.init(jax.random.key(0), I, dtype))
        state = jax.eval_shape(lambda params: cell.initial_state(params, (2,)), params)
        default = jax.eval_shape(lambda: cell.init(jax.random.key(0), I))
    assert {leaf.dtype for leaf in jax.tree.leaves((params, state))} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(default)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("cell", "leaf", "fans"),
    [
        (jaxrnn.rnn(40), "kernel", 30 + 40),
        (jaxrnn.rnn(40), "recurrent_kernel", 40 + 40),
        (jaxrnn.lstm(40), "kernel", 30 + 160),
        (jaxrnn.lstm(40), "recurrent_kernel", 40 + 160),
        (jaxrnn.lstm(40, projection_size=20), "recurrent_kernel", 20 + 160),
        (jaxrnn.lstm(40, projection_size=20), "projection", 40 + 20),
        (jaxrnn.gru(40), "kernel", 30 + 120),
        (jaxrnn.gru(40), "recurrent_kernel", 40 + 120),
    ],
)
def test_kernels_start_glorot_uniform(cell, leaf, fans):
    kernel = np.asarray(jit(lambda: getattr(cell.init(jax.random.key(1), 30), leaf))())
    limit = np.sqrt(6 / fans)
    assert 0.98 * limit < abs(kernel).max() <= limit
    assert abs(kernel.mean()) < 0.1 * limit
    np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.1)


def test_each_kernel_and_each_key_has_its_own_numbers():
    cell = jaxrnn.gru(3 * H)  # with 3·H inputs, both kernels have the same shape
    init = jit(lambda seed: cell.init(jax.random.key(seed), 3 * H))
    one, same, other = init(0), init(0), init(1)
    jax.tree.map(np.testing.assert_array_equal, one, same)
    kernels = one.kernel, one.recurrent_kernel, other.kernel, other.recurrent_kernel
    assert len(np.unique(np.stack(kernels))) > 0.99 * sum(kernel.size for kernel in kernels)


def test_all_else_starts_at_zero_but_the_forget_bias():
    started = jit(lambda: {name: CELLS[name].init(jax.random.key(0), I) for name in SHAPES})()
    for name, params in started.items():
        cell = CELLS[name]
        bias = np.asarray(params.bias)
        if name.startswith("lstm"):
            np.testing.assert_array_equal(bias[H : 2 * H], 1)
            bias = np.delete(bias, np.s_[H : 2 * H])
        assert not bias.any()
        others = [getattr(params, leaf, None) for leaf in ("peephole", "recurrent_bias")]
        others += cell.initial_state(params, (2,))
        assert not any(np.any(leaf) for leaf in others if leaf is not None)
    params = jaxrnn.lstm(H, forget_bias=2.5).init(jax.random.key(0), I)
    np.testing.assert_array_equal(params.bias, np.repeat([0, 2.5, 0, 0], H))


def test_odyssey_without_a_gate_has_fewer_parameters():
    sizes = {}
    for name in CELLS:
        if name.startswith("odyssey"):
            params = jax.eval_shape(lambda: CELLS[name].init(jax.random.key(0), I))  # noqa: B023
            sizes[name[8:]] = sum(leaf.size for leaf in jax.tree.leaves(params))
    block = (I + H + 1) * H
    whole = 4 * block + 3 * H
    one_less = dict.fromkeys(("NIG", "NFG", "NOG", "CIFG"), 3 * block + 2 * H)
    assert sizes == one_less | {
        "V": whole,
        "NIAF": whole,
        "NOAF": whole,
        "NP": 4 * block,
        "FGR": whole + 9 * H * H,
    }


def test_initializers_make_each_gate_by_itself():
    orthogonal = jax.nn.initializers.orthogonal()
    for cell, count in ((jaxrnn.lstm, 4), (jaxrnn.gru, 3), (jaxrnn.mgu, 2), (jaxrnn.janet, 2)):
        params = cell(8, recurrent_kernel_init=orthogonal).init(jax.random.key(0), I)
        for block in np.split(np.asarray(params.recurrent_kernel), count, axis=-1):
            np.testing.assert_allclose(block @ block.T, np.eye(8), atol=1e-5)
    irnn = jaxrnn.rnn(8, recurrent_kernel_init=jaxrnn.identity(0.5)).init(jax.random.key(0), I)
    np.testing.assert_array_equal(irnn.recurrent_kernel, np.eye(8) / 2)


@pytest.mark.parametrize("name", ["lstm", "indrnn", "min-gru"])
def test_scaled_kernels_start_so_many_times_as_large(name):
    cell, key = CELLS[name], jax.random.key(0)
    plain, large = cell.init(key, I), jaxrnn.scaled(cell, 3.0).init(key, I)
    for field, before in plain._asdict().items():
        factor = 3.0 if field in ("kernel", "recurrent_kernel") else 1.0
        if before is not None:
            np.testing.assert_allclose(getattr(large, field), factor * before, rtol=1e-6)


def test_a_cell_without_a_kernel_cannot_be_scaled():
    with pytest.raises(ValueError, match=r"cell must have params with a kernel.* got LRUParams"):
        jaxrnn.scaled(CELLS["lru"], 2.0).init(jax.random.key(0), I)


def test_chrono_biases_span_the_lengths_asked_for():
    def bias(cell):  # returns the bias only, without the large kernels
        return np.asarray(jit(lambda: cell.init(jax.random.key(0), 1).bias)())

    i, f, g, o = np.split(bias(jaxrnn.lstm(2000, chrono=784.0)), 4)
    np.testing.assert_array_equal(i, -f)
    assert not g.any()
    assert not o.any()
    spans = np.exp(f)
    assert 1 <= spans.min() < 5
    assert 770 < spans.max() <= 783.01
    np.testing.assert_allclose(spans.mean(), 392, rtol=0.05)
    assert 770 < np.exp(bias(jaxrnn.janet(2000, chrono=784.0))[:2000]).max() <= 783.01
    assert 770 < np.exp(bias(jaxrnn.gru(2000, chrono=784.0))[2000:4000]).max() <= 783.01
    with pytest.raises(ValueError, match="chrono must be more than 2"):
        jaxrnn.lstm(3, chrono=1.0).init(jax.random.key(0), 1)


def test_s5_starts_with_the_eigenvalues_of_hippo():
    """Those of its normal part: the rest of HiPPO-LegS is of rank one."""
    order = 6
    n = np.arange(order)
    root = np.sqrt(2 * n + 1)
    legs = -np.tril(np.outer(root, root), -1) - np.diag(n + 1)  # Gu et al. (2020), theorem 2
    normal = legs + np.outer(root, root) / 2
    np.testing.assert_allclose(normal @ normal.T, normal.T @ normal, atol=1e-9)
    expected = np.linalg.eigvals(normal)
    with jax.enable_x64(True):
        params = jaxrnn.s5(3, state_size=order // 2).init(jax.random.key(0), 2, jnp.float64)
    half = np.asarray(params.eigenvalues[0]) + 1j * np.asarray(params.eigenvalues[1])
    found = np.concatenate([half, half.conj()])
    by_phase = lambda values: values[np.argsort(values.imag)]  # noqa: E731
    np.testing.assert_allclose(by_phase(found), by_phase(expected), atol=1e-9)
    np.testing.assert_allclose(found.real, -0.5)


def test_s5_starts_as_the_discretized_real_system():
    """B and C are real matrices in the basis of the eigenvectors."""
    cell, states = jaxrnn.s5(20, state_size=30, step_range=(0.01, 0.5)), 30
    params = jax.tree.map(np.asarray, jit(lambda: cell.init(jax.random.key(0), 30))())
    steps = np.exp(params.log_step)
    assert 0.01 <= steps.min() < 0.03
    assert 0.2 < steps.max() <= 0.5
    B, C = (each[0] + 1j * each[1] for each in (params.input_kernel, params.output_kernel))
    # A unitary basis keeps the variance, and each of two conjugates has the same part of it.
    np.testing.assert_allclose((abs(B) ** 2).mean(), 1 / 30, rtol=0.1)
    np.testing.assert_allclose((abs(C) ** 2).mean(), 1 / (2 * states), rtol=0.1)
    assert params.skip_kernel.shape == (30, 20)
    square = jax.eval_shape(lambda: cell.init(jax.random.key(0), 20))
    assert square.skip_kernel.shape == (20,)


@pytest.mark.parametrize("step_range", [(0.0, 0.1), (0.1, 0.1), (0.2, 0.1)])
def test_s5_refuses_a_range_of_steps(step_range):
    with pytest.raises(ValueError, match=r"step_range must be \(low, high\) with 0 < low < high"):
        jaxrnn.s5(4, step_range=step_range)


@pytest.mark.parametrize("name", ["s6", "rg-lru"])
def test_parameters_other_than_kernels_are_at_least_float32(name):
    params = jax.eval_shape(lambda: CELLS[name].init(jax.random.key(0), I, jnp.bfloat16))
    for field, leaf in params._asdict().items():
        assert leaf.dtype == (jnp.bfloat16 if field.endswith("kernel") else jnp.float32)


def test_s5_refuses_inputs_that_its_stride_does_not_divide():
    with pytest.raises(ValueError, match="must be a multiple of stride=3, got 4"):
        jax.eval_shape(lambda: jaxrnn.s5(4, stride=3).init(jax.random.key(0), 4))


@pytest.mark.parametrize("cell", [jaxrnn.lru(24), jaxrnn.s5(24)])
def test_eigenvalues_are_in_float32_with_kernels_in_bfloat16(cell):
    """In bfloat16 a phase of 6 has an error of 0.02 radians, and that at every step."""
    inputs = np.random.default_rng(0).normal(size=(2, 300, 5)).astype(np.float32)

    @jit
    def outputs():
        key = jax.random.key(0)
        narrow, wide = cell.init(key, 5, jnp.bfloat16), cell.init(key, 5)
        return (
            narrow,
            jaxrnn.unroll(cell, narrow, inputs)[0],
            jaxrnn.unroll(cell, wide, inputs, dtype=jnp.bfloat16)[0],
            jaxrnn.unroll(cell, wide, inputs)[0],
        )

    params, *found, expected = outputs()
    for name, leaf in params._asdict().items():
        assert leaf.dtype == (jnp.bfloat16 if name.endswith("kernel") else jnp.float32)
    for each in found:  # the error of the LSTM and the GRU is 0.01 as well
        assert abs(each - expected).max() < 0.01 * abs(expected).max()


def test_rg_lru_starts_within_its_ring():
    params = jaxrnn.rg_lru(500, radius=(0.5, 0.9)).init(jax.random.key(0), I)
    size = np.asarray(jax.nn.sigmoid(params.decay)) ** 8
    assert 0.5 <= size.min() < 0.55
    assert 0.88 < size.max() <= 0.9
    with pytest.raises(ValueError, match=r"radius must be \(low, high\) with 0 < low < high < 1"):
        jaxrnn.rg_lru(5, radius=(0.0, 0.9))


def test_s6_starts_with_steps_in_their_range_and_reads_its_state_at_a_zero_input():
    cell = jaxrnn.s6(500, state_size=3, step_range=(0.01, 0.5))
    params = cell.init(jax.random.key(0), I)
    _, y = cell.step(params, jaxrnn.S6State(jnp.ones((500, 3))), jnp.zeros(I))
    _, again = cell.step(params, jaxrnn.S6State(jnp.zeros((500, 3))), jnp.zeros(I))
    assert abs(y - again).max() > 0.1
    assert 0.45 < abs(params.bias).max() <= 0.5
    steps = np.asarray(jax.nn.softplus(params.step_bias))
    assert 0.01 <= steps.min() < 0.011
    assert 0.45 < steps.max() <= 0.5
    np.testing.assert_allclose(np.exp(params.log_decay), np.tile([1, 2, 3], (500, 1)), rtol=1e-6)
    with pytest.raises(ValueError, match="step_range must be"):
        jaxrnn.s6(4, step_range=(0.1, 0.1))


@pytest.mark.parametrize("cell", [jaxrnn.rg_lru, jaxrnn.slstm])
def test_heads_divide_the_units(cell):
    with pytest.raises(ValueError, match="heads must divide hidden_size, got 3 and 8"):
        cell(8, heads=3)
    with pytest.raises(ValueError, match="heads must be a positive integer, got 0"):
        cell(8, heads=0)


@pytest.mark.parametrize("size", [-300.0, 300.0])
@pytest.mark.parametrize("name", ["rg-lru", "slstm"])
def test_saturated_gates_have_finite_gradients(name, size):
    """In float32 exp(±300) is 0 or infinite, and the root of 1 - a² has an infinite slope at 0."""
    cell, params, inputs, _ = numbers(name, jnp.float32)
    if name == "rg-lru":
        params = params._replace(gate_bias=params.gate_bias + size)
    else:  # the input gate, which is the exponential one
        params = params._replace(bias=params.bias.at[:H].add(size))

    @jit
    def run(params):
        def loss(params):
            outputs, final = jaxrnn.unroll(cell, params, inputs)
            return outputs.sum(), (outputs, final)

        return jax.grad(loss, has_aux=True)(params)

    gradient, (outputs, final) = run(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradient, outputs, final)))
    if name == "slstm":
        assert np.all(outputs)
        assert final.normalizer.min() >= 1


def test_slstm_without_a_forget_bias_remembers_and_forgets():
    bias = jaxrnn.slstm(8, heads=2).init(jax.random.key(0), I).bias[8:16]
    np.testing.assert_allclose(bias, np.tile(5 - 12 * (np.arange(4) / 3) ** 0.3, 2), rtol=1e-5)
    bias = jaxrnn.slstm(2, forget_bias=3.0).init(jax.random.key(0), I).bias
    np.testing.assert_array_equal(bias, [0, 0, 3, 3, 0, 0, 0, 0])


def test_unicornn_is_undamped():
    """Without a force but that of the springs, the energy stays near that of the start."""
    cell = jaxrnn.unicornn(1, step_size=0.1, alpha=2.0)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 1))
    start = jaxrnn.OscillatorState(jnp.ones(1), jnp.zeros(1))
    y, _ = jaxrnn.unroll(cell, params, jnp.zeros((400, 1)), initial_state=start)
    # Half the time step at c = 0, and a frequency of √α.
    time = 0.05 * np.arange(1, 401)
    np.testing.assert_allclose(y[:, 0], np.cos(np.sqrt(2) * time), atol=0.06)


def test_the_lru_starts_within_its_ring():
    params = jaxrnn.lru(500, radius=(0.5, 0.9)).init(jax.random.key(0), I)
    size = np.exp(-np.exp(params.nu))
    assert 0.5 <= size.min() < 0.55
    assert 0.88 < size.max() <= 0.9
    np.testing.assert_allclose(np.exp(2 * params.gamma), 1 - size**2, atol=1e-5)
    with pytest.raises(ValueError, match="radius must be"):
        jaxrnn.lru(5, radius=(0.9, 1.5))
    with pytest.raises(ValueError, match="variant must be one of"):
        jaxrnn.odyssey(5, "NXX")
