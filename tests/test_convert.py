"""Weights of other libraries: what they compute (golden/make.py), round trips, complaints."""

import functools
import inspect
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_cells import CELLS as ALL_CELLS
from flax import nnx, traverse_util
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


FLAX = {"SimpleCell": "rnn", "LSTMCell": "lstm", "OptimizedLSTMCell": "lstm", "GRUCell": "gru"}


@pytest.mark.parametrize("name", FLAX)
@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_flax_computes_the_same(library, name):
    inputs = jax.random.normal(KEY, (2, 5, I))
    kind = FLAX[name]
    if library == "linen":
        layer = nn.RNN(getattr(nn, name)(H))
        variables = layer.init(KEY, inputs)
        theirs = lambda weights: layer.apply({"params": {"cell": weights}}, inputs)  # noqa: E731
        weights = jax.tree.map(lambda leaf: leaf + 0.1, variables["params"]["cell"])
        read, write = convert.from_linen, convert.to_linen
    else:
        theirs, weights = nnx_layer(getattr(nnx, name), inputs)
        read = convert.from_nnx
        write = functools.partial(convert.to_nnx, optimized=name != "LSTMCell")
    cell = {"rnn": jaxrnn.rnn, "lstm": jaxrnn.lstm, "gru": jaxrnn.gru}[kind](H)
    params = read(kind, weights)
    jax.tree.map(np.testing.assert_array_equal, write(params), dict(weights))

    def loss(outputs):
        return jnp.sum(outputs * cosines(outputs.shape)), outputs

    ours = lambda params: loss(jaxrnn.unroll(cell, params, inputs)[0])  # noqa: E731
    (_, outputs), d_params = jax.value_and_grad(ours, has_aux=True)(params)
    (_, expected), d_weights = jax.value_and_grad(lambda w: loss(theirs(w)), has_aux=True)(weights)
    assert_close(outputs, expected)
    if library == "nnx" and kind == "gru":
        d_params = d_params._replace(recurrent_bias=jnp.zeros(H))
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
        # Without a forget bias: adding one rounds.
        functools.partial(convert.to_tf1, forget_bias=0.0),
        functools.partial(convert.from_tf1, forget_bias=0.0),
        ["rnn", "lstm", "lstm-peephole-projection", "gru-before"],
    ),
    "torch": (
        lambda params: convert.to_torch([[params]]),
        lambda kind, weights: convert.from_torch(kind, weights)[0][0],
        ["rnn", "lstm", "lstm-projection", "gru"],
    ),
    "keras": (convert.to_keras, convert.from_keras, ["rnn", "lstm", "gru", "gru-before"]),
    "linen": (convert.to_linen, convert.from_linen, ["rnn", "lstm", "gru"]),
    "nnx": (convert.to_nnx, convert.from_nnx, ["rnn", "lstm", "gru"]),
    "nnx-by-gate": (
        functools.partial(convert.to_nnx, optimized=False),
        convert.from_nnx,
        ["rnn", "lstm", "gru"],
    ),
}


def random(name):
    """Parameters that are random all over: none is zero or a round number."""
    rng = np.random.default_rng(0)
    params = CELLS[name].init(KEY, I)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), params)


@pytest.mark.parametrize(
    ("library", "name"), [(library, name) for library, trip in TRIPS.items() for name in trip[2]]
)
def test_ours_come_back_exactly(library, name):
    there, back, _ = TRIPS[library]
    params = random(name)
    if library.startswith("nnx") and name == "gru":
        params = params._replace(recurrent_bias=jnp.zeros(H))
    returned = back(name.split("-")[0], there(params))
    assert jax.tree.structure(returned) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, returned, params)


@pytest.mark.parametrize("name", TF1)
def test_tf1s_come_back_exactly_but_for_a_rounding_of_the_forget_gates_bias(name):
    kind, _, forget_bias = TF1[name]
    weights = golden(f"tf1_{name}")["weights"]
    params = convert.from_tf1(kind, weights, forget_bias=forget_bias)
    returned = convert.to_tf1(params, forget_bias=forget_bias)
    assert returned.keys() == weights.keys()
    allowed = {key: np.zeros_like(array) for key, array in weights.items()}
    if kind == "lstm":
        forget = slice(2 * H, 3 * H)
        allowed["bias"][forget] = np.spacing(np.abs(weights["bias"][forget]) + forget_bias)
    for key, array in weights.items():
        assert np.all(np.abs(returned[key] - array) <= allowed[key]), key


@pytest.mark.parametrize("name", TORCH)
def test_torchs_come_back_exactly_with_the_sum_of_the_biases(name):
    kind, _ = TORCH[name]
    weights = golden(f"torch_{name}")["weights"]
    returned = convert.to_torch(convert.from_torch(kind, weights))
    assert returned.keys() == weights.keys()
    for key in weights:
        if key.startswith("weight"):
            np.testing.assert_array_equal(returned[key], weights[key])
        elif key.startswith("bias_ih"):
            one, other = (
                [each[key], each[key.replace("ih", "hh")]] for each in (returned, weights)
            )
            assert_same_biases(one, other, kind)


@pytest.mark.parametrize("name", [*KERAS, "gru"])
def test_keras_come_back_exactly_with_the_sum_of_the_biases(name):
    kind = name.split("_")[0]
    weights = golden(f"keras_{name}")["weights"]
    returned = convert.to_keras(convert.from_keras(kind, weights))
    assert list(returned) == ["kernel", "recurrent_kernel", "bias"]
    if name == "gru":
        assert_same_biases(returned.pop("bias"), weights.pop("bias"), kind)
    jax.tree.map(np.testing.assert_array_equal, returned, weights)


def assert_same_biases(one, other, kind):
    """Pairs with the same sum; a GRU's second stays apart inside the reset, its last part."""
    np.testing.assert_array_equal(one[0] + one[1], other[0] + other[1])
    if kind == "gru":
        np.testing.assert_array_equal(one[1][2 * H :], other[1][2 * H :])


# Complaints


FOREIGN = {
    **{f"tf1_{name}": kind for name, (kind, *_) in TF1.items()},
    **{f"torch_{name}": kind for name, (kind, *_) in TORCH.items()},
    **{f"keras_{name}": kind for name, (kind, *_) in KERAS.items()},
    "keras_gru": "gru",
    **{f"{flax}_{kind}": kind for flax in ("linen", "nnx") for kind in ("rnn", "lstm", "gru")},
    "nnx-by-gate_lstm": "lstm",
}


def foreign(name):
    """Reads weights of this kind, and such weights, all in one mapping."""
    library, kind = name.split("_")[0], FOREIGN[name]
    if library in ("tf1", "torch", "keras"):
        return functools.partial(getattr(convert, f"from_{library}"), kind), golden(name)["weights"]
    there, back, _ = TRIPS[library]
    weights = traverse_util.flatten_dict(there(CELLS[kind].init(KEY, I)), sep="/")
    return lambda flat: back(kind, traverse_util.unflatten_dict(flat, sep="/")), weights


def complaint(read, weights):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (the tests look at what it says)
        read(weights)
    return str(raised.value)


def without(weights, part):
    return {key: array for key, array in weights.items() if part not in key}


@pytest.mark.parametrize("name", FOREIGN)
def test_complaints_name_the_array(name):
    read, weights = foreign(name)
    read(weights)
    for key, array in weights.items():
        wrong = complaint(read, weights | {key: array[None]})
        assert wrong.startswith(f"{key} must have shape ["), wrong
        if key == "projection/kernel":
            continue  # what is left is an LSTM of fewer inputs
        missing = complaint(read, {other: weights[other] for other in weights if other != key})
        assert missing.startswith(f"{key} is missing"), missing
    assert complaint(read, weights | {"surplus": np.zeros(2)}) == "surplus: not expected here"


@pytest.mark.parametrize("name", FOREIGN)
def test_sizes_that_do_not_fit_are_named(name):
    read, weights = foreign(name)
    free = {("kernel", 0), ("i/kernel", 0), ("dense_i/kernel", 0), ("projection/kernel", 1)}
    for key, array in weights.items():
        for axis in range(array.ndim):
            longer = weights | {key: np.concatenate([array, array.take([0], axis)], axis)}
            if (key, axis) in free:  # more inputs, or less projected
                read(longer)
            else:
                words = complaint(read, longer)
                assert words.split(" must have ")[0] in weights, words


@pytest.mark.parametrize(("name", "key"), [("rnn", "kernel"), ("gru", "gates/kernel")])
def test_tf1_kernels_without_rows_for_inputs_are_named(name, key):
    read, weights = foreign(f"tf1_{name}")
    short = {each: array[-H:] if "kernel" in each else array for each, array in weights.items()}
    assert complaint(read, short) == f"{key} must have more than 4 rows, got 4"


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("l0", "weight_ih_l0 is missing"),
        ("l0_reverse", "weight_ih_l0_reverse is missing"),
        ("l1_reverse", "weight_ih_l1_reverse is missing"),
        ("reverse", "weight_ih_l1 must have shape [16, 4], got [16, 8]"),
        ("bias_hh", "bias_hh_l0 is missing"),
    ],
)
def test_parts_of_a_torch_module_are_missed_by_name(part, words):
    read, weights = foreign("torch_lstm")
    assert complaint(read, without(weights, part)).startswith(words)


def test_a_torch_projection_is_missed_by_name():
    read, weights = foreign("torch_lstm_projection")
    assert complaint(read, without(weights, "weight_hr")).startswith("weight_hr_l0 is missing")


def test_a_torch_module_without_bias_has_zeros():
    read, weights = foreign("torch_lstm")
    for params in jax.tree.leaves(read(without(weights, "bias")), is_leaf=is_params):
        assert not np.any(params.bias)


def is_params(node):
    return hasattr(node, "_fields")


@pytest.mark.parametrize("library", TRIPS)
def test_unknown_kinds_are_refused(library):
    with pytest.raises(ValueError, match="kind must be one of"):
        TRIPS[library][1]("lstn", {})


@pytest.mark.parametrize(
    ("library", "name", "words"),
    [
        ("tf1", "gru", "gru\\(reset_after=False\\) for TF1"),
        ("torch", "gru-before", "gru\\(reset_after=True\\) for torch"),
        ("torch", "lstm-peephole-projection", "no peephole for torch"),
        ("keras", "lstm-peephole-projection", "no peephole and no projection for keras"),
        ("linen", "gru-before", "gru\\(reset_after=True\\) for flax.linen"),
        ("nnx", "lstm-projection", "no projection for flax.nnx"),
        ("nnx", "gru", "params.recurrent_bias must be zero"),
    ],
)
def test_what_a_library_cannot_hold_is_refused(library, name, words):
    with pytest.raises(ValueError, match=words):
        TRIPS[library][0](random(name))


# Cells that share their parameters' types with rnn and lstm, and some that do not.
OTHERS = {
    **dict.fromkeys(["janet", "mgu"], "params.recurrent_kernel must have shape \\[H, H\\]"),
    **dict.fromkeys(["min-gru", "min-lstm"], "params.recurrent_kernel is missing"),
    **dict.fromkeys(
        ["odyssey-NIG", "odyssey-NFG", "odyssey-NOG", "odyssey-CIFG"],
        "params.recurrent_kernel must have shape \\[H, 4H\\]|no peephole",
    ),
    "odyssey-FGR": "no gate_kernel",
    **dict.fromkeys(["indrnn", "lru", "lstm-layer-norm"], "params must not be .*Params for"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("library", ["tf1", "torch", "keras", "linen", "nnx"])
def test_parameters_of_other_cells_are_refused(library, name):
    params = ALL_CELLS[name].init(KEY, I)
    # Without the annotations, which the tests check, and which know only three types.
    write = inspect.unwrap(getattr(convert, f"to_{library}"))
    with pytest.raises(ValueError, match=OTHERS[name]):
        write([[params]] if library == "torch" else params)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([], "one direction each"),
        ([["lstm"] * 3], "one direction each, or two each, got \\[3\\]"),
        ([["lstm"] * 2, ["lstm"]], "one direction each, or two each, got \\[2, 1\\]"),
        ([["lstm"], ["lstm"]], "weight_ih_l1 must have shape \\[16, 4\\], got \\[16, 3\\]"),
        ([["lstm", "gru"]], "weight_ih_l0 must have shape"),
    ],
)
def test_layers_that_make_no_torch_module_are_refused(layers, words):
    with pytest.raises(ValueError, match=words):
        convert.to_torch([[random(name) for name in directions] for directions in layers])
