"""Weights of other libraries: what they compute (golden/make.py), round trips, complaints."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quick_jit import jit

import jaxrnn
from jaxrnn import convert

GOLDEN = Path(__file__).parent / "golden"
I, H = 3, 4  # noqa: E741
KEY = jax.random.key(0)


def golden(name):
    """The arrays of one file, as a tree."""
    tree = {}
    with np.load(GOLDEN / f"{name}.npz") as file:
        for key in file:
            group, _, rest = key.partition("/")
            if rest:
                tree.setdefault(group, {})[rest] = file[key]
            else:
                tree[key] = file[key]
    return tree


def cosines(shape):
    return np.cos(np.arange(np.prod(shape))).reshape(shape).astype(np.float32)


def everything(run, params, inputs):
    """Outputs, last states and the gradients of the loss of golden/make.py."""

    def loss(params, inputs):
        outputs, states = run(params, inputs)
        each = [outputs, *states.values()]
        return sum(jnp.sum(x * cosines(x.shape)) for x in each), (outputs, states)

    gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)
    (_, made), gradients = jit(gradient)(params, inputs)
    return made, gradients


def assert_close(actual, expected):
    compare = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5)  # noqa: E731
    jax.tree.map(compare, actual, expected)


def one_layer(cell):
    def run(params, inputs):
        outputs, state = jaxrnn.unroll(cell, params, inputs)
        return outputs, state._asdict()

    return run


def check_one_layer(name, cell, params, back):
    given = golden(name)
    made, (d_params, d_inputs) = everything(one_layer(cell), params, given["inputs"])
    assert_close(made, (given["outputs"], given["states"]))
    assert_close(d_inputs, given["d_inputs"])
    assert_close(back(d_params), given["d_weights"])


TF1 = {
    "rnn": ("rnn", jaxrnn.rnn(H), 0.0),
    "basic_lstm": ("lstm", jaxrnn.lstm(H), 1.0),
    "lstm": ("lstm", jaxrnn.lstm(H, peephole=True, projection_size=2), 0.5),
    "gru": ("gru", jaxrnn.gru(H, reset_after=False), 0.0),
}


@pytest.mark.parametrize("name", TF1)
def test_tf1_computes_the_same(name):
    kind, cell, forget_bias = TF1[name]
    params = convert.from_tf1(kind, golden(f"tf1_{name}")["weights"], forget_bias=forget_bias)
    # Gradients go the way of the weights, but nothing is added to them.
    check_one_layer(f"tf1_{name}", cell, params, lambda d: convert.to_tf1(d, forget_bias=0.0))


KERAS = {
    "rnn": ("rnn", jaxrnn.rnn(H)),
    "lstm": ("lstm", jaxrnn.lstm(H)),
    "gru_before": ("gru", jaxrnn.gru(H, reset_after=False)),
}


@pytest.mark.parametrize("name", KERAS)
def test_keras_computes_the_same(name):
    kind, cell = KERAS[name]
    params = convert.from_keras(kind, golden(f"keras_{name}")["weights"])
    check_one_layer(f"keras_{name}", cell, params, convert.to_keras)


def test_keras_gru_with_two_biases_computes_the_same():
    def back(d_params):
        weights = convert.to_keras(d_params)
        # Outside the reset its two biases only add up, so both have the gradient of the sum.
        weights["bias"][1, : 2 * H] = weights["bias"][0, : 2 * H]
        return weights

    params = convert.from_keras("gru", golden("keras_gru")["weights"])
    check_one_layer("keras_gru", jaxrnn.gru(H), params, back)


TORCH = {
    "rnn": ("rnn", jaxrnn.rnn(H)),
    "lstm": ("lstm", jaxrnn.lstm(H)),
    "lstm_projection": ("lstm", jaxrnn.lstm(H, projection_size=2)),
    "gru": ("gru", jaxrnn.gru(H)),
}


@pytest.mark.parametrize("name", TORCH)
def test_torch_computes_the_same(name):
    kind, cell = TORCH[name]
    given = golden(f"torch_{name}")

    def run(layers, inputs):
        hidden, states = inputs, []
        for forward, backward in layers:
            one, first = jaxrnn.unroll(cell, forward, hidden)
            other, second = jaxrnn.unroll(cell, backward, hidden, reverse=True)
            hidden, states = jnp.concatenate([one, other], axis=-1), [*states, first, second]
        stacked = {
            field: jnp.stack([getattr(state, field) for state in states])
            for field in states[0]._fields
        }
        return hidden, stacked

    layers = convert.from_torch(kind, given["weights"])
    made, (d_layers, d_inputs) = everything(run, layers, given["inputs"])
    assert_close(made, (given["outputs"], given["states"]))
    assert_close(d_inputs, given["d_inputs"])
    for key, value in convert.to_torch(d_layers).items():
        expected = given["d_weights"][key]
        if "bias_hh" in key:  # of which only what stands inside the GRU's reset is ours
            value, expected = value[2 * H :], expected[2 * H :] * (kind == "gru")
        assert_close(value, expected)


@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_flax_computes_the_same(library, kind, optimized):
    inputs = jax.random.normal(KEY, (2, 5, I))
    name = {"rnn": "SimpleCell", "gru": "GRUCell"}.get(
        kind, "OptimizedLSTMCell" if optimized else "LSTMCell"
    )
    if library == "linen":
        layer = nn.RNN(getattr(nn, name)(H))
        variables = layer.init(KEY, inputs)
        theirs = lambda weights: layer.apply({"params": {"cell": weights}}, inputs)  # noqa: E731
        weights = jax.tree.map(lambda leaf: leaf + 0.1, variables["params"]["cell"])
        read, write = convert.from_linen, convert.to_linen
    else:
        theirs, weights = nnx_layer(getattr(nnx, name), inputs)
        read, write = convert.from_nnx, convert.to_nnx
    cell = {"rnn": jaxrnn.rnn, "lstm": jaxrnn.lstm, "gru": jaxrnn.gru}[kind](H)
    params = read(kind, weights)

    def loss(outputs):
        return jnp.sum(outputs * cosines(outputs.shape)), outputs

    ours = lambda params: loss(jaxrnn.unroll(cell, params, inputs)[0])  # noqa: E731
    (_, outputs), d_params = jax.value_and_grad(ours, has_aux=True)(params)
    (_, expected), d_weights = jax.value_and_grad(lambda w: loss(theirs(w)), has_aux=True)(weights)
    assert_close(outputs, expected)
    if library == "nnx" and kind == "gru":
        d_params = d_params._replace(recurrent_bias=jnp.zeros(H))
    if library == "nnx" and name == "LSTMCell":
        d_weights = convert.to_nnx(convert.from_nnx(kind, d_weights))
    assert_close(write(d_params), dict(d_weights))


def nnx_layer(make, inputs):
    """An NNX layer as a function of its cell's weights, and these."""
    cell = make(I, H, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(cell, nnx.Param, ...)
    zero = jnp.zeros((2, H))
    carry = (zero, zero) if "LSTM" in make.__name__ else zero

    def run(weights):
        state = jax.tree.map(lambda leaf: leaf, params)
        nnx.replace_by_pure_dict(state, weights)
        cell = nnx.merge(graph, state, rest)
        return nnx.RNN(cell)(inputs, initial_carry=carry)

    return run, jax.tree.map(lambda leaf: leaf + 0.1, nnx.to_pure_dict(params))


# Round trips


CELLS = {
    "rnn": jaxrnn.rnn(H),
    "lstm": jaxrnn.lstm(H),
    "lstm-peephole-projection": jaxrnn.lstm(H, peephole=True, projection_size=2),
    "lstm-projection": jaxrnn.lstm(H, projection_size=2),
    "gru": jaxrnn.gru(H),
    "gru-before": jaxrnn.gru(H, reset_after=False),
}
TRIPS = {
    "tf1": (
        convert.to_tf1,
        convert.from_tf1,
        ["rnn", "lstm", "lstm-peephole-projection", "gru-before"],
    ),
    "torch": (
        lambda params: convert.to_torch([[params]]),
        lambda kind, weights: convert.from_torch(kind, weights)[0][0],
        ["rnn", "lstm", "lstm-projection", "gru"],
    ),
    "keras": (convert.to_keras, convert.from_keras, ["rnn", "lstm", "gru", "gru-before"]),
    "linen": (convert.to_linen, convert.from_linen, ["rnn", "lstm", "gru"]),
    "nnx": (convert.to_nnx, convert.from_nnx, ["rnn", "lstm"]),
}


@pytest.mark.parametrize(
    ("library", "name"), [(library, name) for library, trip in TRIPS.items() for name in trip[2]]
)
def test_there_and_back_is_exact(library, name):
    there, back, _ = TRIPS[library]
    params = CELLS[name].init(KEY, I)
    params = jax.tree.map(lambda leaf: leaf + jnp.arange(leaf.size).reshape(leaf.shape) / 8, params)
    returned = back(name.split("-")[0], there(params))
    assert jax.tree.structure(returned) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, returned, params)


# Complaints


@pytest.mark.parametrize("library", TRIPS)
def test_complaints_name_the_array(library):
    there, back, _ = TRIPS[library]
    weights = there(CELLS["lstm"].init(KEY, I))
    name = next(iter(weights))
    first = weights[name]
    nested = isinstance(first, dict)
    with pytest.raises(ValueError, match=f"{name}.* is missing"):
        back("lstm", {key: weights[key] for key in weights if key != name})
    with pytest.raises(ValueError, match=r"surplus.*: not expected here"):
        back("lstm", weights | {"surplus": {"kernel": np.zeros(2)} if nested else np.zeros(2)})
    wrong = {**first, "kernel": first["kernel"][:, 1:]} if nested else first[..., 1:, :1]
    with pytest.raises(ValueError, match=r"must (have shape|be) \[|must have more than"):
        back("lstm", weights | {name: wrong})
    with pytest.raises(ValueError, match="kind must be one of"):
        back("lstn", weights)


@pytest.mark.parametrize(
    ("there", "name", "words"),
    [
        (convert.to_tf1, "gru", "gru\\(reset_after=False\\)"),
        (lambda params: convert.to_torch([[params]]), "gru-before", "gru\\(reset_after=True\\)"),
        (
            lambda params: convert.to_torch([[params]]),
            "lstm-peephole-projection",
            "no peephole",
        ),
        (convert.to_keras, "lstm-projection", "no peephole and no projection"),
        (convert.to_linen, "gru-before", "gru\\(reset_after=True\\)"),
        (convert.to_nnx, "lstm-projection", "no peephole and no projection"),
    ],
)
def test_what_a_library_cannot_hold_is_refused(there, name, words):
    with pytest.raises(ValueError, match=words):
        there(CELLS[name].init(KEY, I))
