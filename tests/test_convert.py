"""Conversion of weights: outputs of other libraries (golden/make.py), round trips, errors."""

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
from jax import jit

import jaxrnn
from jaxrnn import convert

GOLDEN = Path(__file__).parent / "golden"
I, H, P = 3, 4, 2  # noqa: E741
KEY = jax.random.key(0)
CELLS = {
    **ALL_CELLS,
    "lstm-peephole-projection": jaxrnn.lstm(H, peephole=True, projection_size=P),
}


def kind_of(name):
    return {"odyssey": "lstm"}.get(family := name.split("-")[0], family)


@functools.cache
def golden(name):
    """Returns the arrays of one file as a tree."""
    tree = {}
    with np.load(GOLDEN / f"{name}.npz") as file:
        for key in file:
            group, _, rest = key.partition("/")
            if rest:
                tree.setdefault(group, {})[rest] = file[key]
            else:
                tree[key] = file[key]
    return tree


@functools.cache
def random(name):
    """Returns parameters of random numbers, none of which is zero."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: CELLS[name].init(KEY, I))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)


def cosines(shape):
    return np.cos(np.arange(np.prod(shape))).reshape(shape).astype(np.float32)


def everything(run):
    """Computes outputs, last states and gradients of the loss of golden/make.py in one program."""

    def compute(params, inputs):
        made, pull = jax.vjp(run, params, inputs)
        return made, pull(jax.tree.map(lambda x: cosines(x.shape), made))

    return jit(compute)


@functools.cache
def one_layer(name):
    """Returns the program, which is cached for all libraries that have this cell."""

    def run(params, inputs):
        outputs, state = jaxrnn.unroll(CELLS[name], params, inputs)
        return outputs, state._asdict()

    return everything(run)


def assert_close(actual, expected):
    compare = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5)  # noqa: E731
    jax.tree.map(compare, actual, expected)


def check_one_layer(file, name, params, back):
    given = golden(file)
    made, (d_params, d_inputs) = one_layer(name)(params, given["inputs"])
    assert_close(made, (given["outputs"], given["states"]))
    assert_close(d_inputs, given["d_inputs"])
    assert_close(back(CELLS[name], d_params), given["d_weights"])


# The cells of each library, with the files that the library's own cells produced.

TF1 = {
    "rnn": "rnn",
    "rnn-relu": "rnn_relu",
    "rnn-sigmoid": "rnn_sigmoid",
    "lstm": "basic_lstm",
    "lstm-softsign": "basic_lstm_softsign",
    "lstm-peephole": "lstm_peephole",
    "lstm-projection": "lstm_projection",
    "lstm-peephole-projection": "lstm",
    "lstm-clip": "lstm_clip",
    "lstm-everything": "lstm_everything",
    "gru-before": "gru",
}
FORGET_BIAS = dict.fromkeys(TF1, 1.0) | {"lstm-peephole-projection": 0.5}
KERAS = {
    "rnn": "rnn",
    "rnn-relu": "rnn_relu",
    "rnn-sigmoid": "rnn_sigmoid",
    "lstm": "lstm",
    "lstm-softsign": "lstm_softsign",
    "gru": "gru",
    "gru-before": "gru_before",
}
TORCH = {
    "rnn": "rnn",
    "rnn-relu": "rnn_relu",
    "lstm": "lstm",
    "lstm-projection": "lstm_projection",
    "gru": "gru",
}
FLAX = {
    "rnn": ["SimpleCell"],
    "rnn-relu": ["SimpleCell"],
    "rnn-sigmoid": ["SimpleCell"],
    "lstm": ["LSTMCell", "OptimizedLSTMCell"],
    "lstm-softsign": ["OptimizedLSTMCell"],
    "gru": ["GRUCell"],
}
ACTIVATIONS = {
    "rnn-relu": jax.nn.relu,
    "rnn-sigmoid": jax.nn.sigmoid,
    "lstm-softsign": jax.nn.soft_sign,
}
EQUINOX = {"lstm": "lstm", "gru": "gru"}
HAIKU = {"rnn-relu": "rnn_relu", "lstm": "lstm", "gru-before": "gru"}
LIBRARIES = {
    **{"tf1": TF1, "keras": KERAS, "torch": TORCH, "linen": FLAX, "nnx": FLAX},
    **{"equinox": EQUINOX, "haiku": HAIKU},
}
# Equal cells under different names, which have the same weights and outputs.
SAME = {"odyssey-V": "lstm-peephole", "odyssey-NP": "lstm"}


@pytest.mark.parametrize("name", TF1)
def test_tf1_computes_the_same(name):
    file, forget_bias = f"tf1_{TF1[name]}", FORGET_BIAS[name]
    params = convert.from_tf1(kind_of(name), golden(file)["weights"], forget_bias=forget_bias)
    # Gradients are converted like weights, except that the forget bias is not added.
    check_one_layer(file, name, params, functools.partial(convert.to_tf1, forget_bias=0.0))


@pytest.mark.parametrize("name", KERAS)
def test_keras_computes_the_same(name):
    def back(cell, d_params):
        weights = convert.to_keras(cell, d_params)
        if name == "gru":
            # Without a reset the two biases are added, so both have the gradient of the sum.
            weights["bias"][1, : 2 * H] = weights["bias"][0, : 2 * H]
        return weights

    file = f"keras_{KERAS[name]}"
    check_one_layer(file, name, convert.from_keras(kind_of(name), golden(file)["weights"]), back)


@pytest.mark.parametrize("name", TORCH)
def test_torch_computes_the_same(name):
    kind, cell, given = kind_of(name), CELLS[name], golden(f"torch_{TORCH[name]}")

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
    made, (d_layers, d_inputs) = everything(run)(layers, given["inputs"])
    assert_close(made, (given["outputs"], given["states"]))
    assert_close(d_inputs, given["d_inputs"])
    for key, value in convert.to_torch(cell, d_layers).items():
        expected = given["d_weights"][key]
        if "bias_hh" in key:  # of which jaxrnn has only the bias that the reset gate multiplies
            value, expected = value[2 * H :], expected[2 * H :] * (kind == "gru")
        assert_close(value, expected)


@pytest.mark.parametrize("name", EQUINOX)
def test_equinox_computes_the_same(name):
    file = f"equinox_{EQUINOX[name]}"
    params = convert.from_equinox(name, golden(file)["weights"])
    check_one_layer(file, name, params, convert.to_equinox)


@pytest.mark.parametrize("name", HAIKU)
def test_haiku_computes_the_same(name):
    def back(cell, d_params):
        written = convert.to_haiku(cell, d_params)
        if name == "lstm":  # nothing is added to a gradient
            written["lstm/linear"]["b"][2 * H : 3 * H] += 1
        if name == "rnn-relu":  # its two biases only add up
            written["vanilla_rnn/linear_1"]["b"] = written["vanilla_rnn/linear"]["b"]
        return traverse_util.flatten_dict(written, sep="/")

    file = f"haiku_{HAIKU[name]}"
    params = convert.from_haiku(kind_of(name), golden(file)["weights"])
    check_one_layer(file, name, params, back)


def test_haikus_core_may_have_any_name():
    written = convert.to_haiku(CELLS["gru-before"], random("gru-before"), name="net/~/core")
    assert list(written) == ["net/~/core"]
    returned = convert.from_haiku("gru", written)
    jax.tree.map(np.testing.assert_array_equal, returned, random("gru-before"))
    written |= convert.to_haiku(CELLS["gru-before"], random("gru-before"))
    words = "params must be those of one core, got ['gru', 'net/~/core']"
    assert complaint(convert.from_haiku, "gru", written) == words


def test_haikus_core_may_have_one_bias():
    weights = golden("haiku_rnn_relu")["weights"]
    params = convert.from_haiku("rnn", without(weights, "linear_1/b"))
    np.testing.assert_array_equal(params.bias, weights["vanilla_rnn/linear/b"])


@pytest.mark.parametrize("kind", EQUINOX)
def test_equinox_without_bias_has_zeros(kind):
    weights = dict(golden(f"equinox_{kind}")["weights"])
    nothing = {name: None for name in weights if name.startswith("bias")}
    zeros = {name: np.zeros_like(weights[name]) for name in nothing}
    one, other = (convert.from_equinox(kind, weights | each) for each in (nothing, zeros))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_equinox_has_no_rnn():
    assert complaint(convert.from_equinox, "rnn", {}) == "Equinox has no rnn"


# The activation changes nothing in the weights, and its own computation is tested by test_cells.
@pytest.mark.parametrize(
    ("name", "make"),
    [
        pytest.param(name, make, marks=pytest.mark.slow if name in ACTIVATIONS else ())
        for name, makes in FLAX.items()
        for make in makes
    ],
)
@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_flax_computes_the_same(library, name, make):
    cell, params, inputs = CELLS[name], random(name), golden("keras_rnn")["inputs"]
    options = {"activation_fn": activation} if (activation := ACTIVATIONS.get(name)) else {}
    if library == "linen":
        theirs = getattr(nn, make)(H, **options)
        layer = nn.RNN(theirs, return_carry=True)
        write, weights = convert.to_linen, convert.to_linen(cell, params)
        carry, x = theirs.initialize_carry(KEY, (2, I)), inputs[:, 0]
        shapes = jax.eval_shape(theirs.init, KEY, carry, x)["params"]
        theirs = lambda weights, inputs: layer.apply({"params": {"cell": weights}}, inputs)  # noqa: E731
    else:
        if name == "gru":
            params = params._replace(recurrent_bias=np.zeros(H, np.float32))
        write = functools.partial(convert.to_nnx, optimized=make != "LSTMCell")
        weights = write(cell, params)
        theirs, shapes = nnx_layer(getattr(nnx, make), options)
    assert jax.tree.map(jnp.shape, weights) == jax.tree.map(jnp.shape, dict(shapes))

    def run(weights, inputs):
        carry, outputs = theirs(weights, inputs)
        fields = ["cell", "hidden"] if isinstance(carry, tuple) else ["hidden"]
        return outputs, dict(zip(fields, jax.tree.leaves(carry), strict=True))

    made, (d_params, d_inputs) = one_layer(name)(params, inputs)
    expected, (d_weights, d_expected) = everything(run)(weights, inputs)
    assert_close(made, expected)
    assert_close(d_inputs, d_expected)
    if library == "nnx" and name == "gru":
        d_params = d_params._replace(recurrent_bias=jnp.zeros(H))
    assert_close(write(cell, d_params), d_weights)


def nnx_layer(make, options):
    """Returns an NNX layer as a function of the weights of its cell, and these weights."""
    zeros = jax.nn.initializers.zeros
    if "LSTM" in make.__name__ or "GRU" in make.__name__:
        options = options | {"recurrent_kernel_init": zeros}
    cell = make(I, H, kernel_init=zeros, rngs=nnx.Rngs(0), **options)
    graph, params, rest = nnx.split(cell, nnx.Param, ...)
    zero = jnp.zeros((2, H))
    carry = (zero, zero) if "LSTM" in make.__name__ else zero

    def run(weights, inputs):
        state = jax.tree.map(lambda leaf: leaf, params)
        nnx.replace_by_pure_dict(state, weights)
        cell = nnx.merge(graph, state, rest)
        return nnx.RNN(cell, return_carry=True)(inputs, initial_carry=carry)

    return run, nnx.to_pure_dict(params)


@pytest.mark.parametrize("name", SAME)
def test_a_cell_of_another_name_is_written_as_what_it_computes(name):
    params = random(name)
    rng = np.random.default_rng(1)
    x, *state = (rng.normal(size=size).astype(np.float32) for size in (I, H, H))
    state = jaxrnn.LSTMState(*state)
    one, other = (jit(CELLS[each].step)(params, state, x) for each in (name, SAME[name]))
    assert_close(one, other)
    for library, has in LIBRARIES.items():
        if SAME[name] in has:
            write = getattr(convert, f"to_{library}")
            one, other = (write(CELLS[each], params) for each in (name, SAME[name]))
            jax.tree.map(np.testing.assert_array_equal, one, other)


# Round trips


TRIPS = {
    "tf1": (
        # Without a forget bias, because adding one rounds.
        functools.partial(convert.to_tf1, forget_bias=0.0),
        functools.partial(convert.from_tf1, forget_bias=0.0),
        TF1,
    ),
    "torch": (
        convert.to_torch,
        lambda kind, weights: convert.from_torch(kind, weights)[0][0],
        TORCH,
    ),
    "keras": (convert.to_keras, convert.from_keras, KERAS),
    "linen": (convert.to_linen, convert.from_linen, FLAX),
    "nnx": (convert.to_nnx, convert.from_nnx, FLAX),
    "nnx-by-gate": (functools.partial(convert.to_nnx, optimized=False), convert.from_nnx, FLAX),
    "equinox": (convert.to_equinox, convert.from_equinox, EQUINOX),
    "haiku": (convert.to_haiku, convert.from_haiku, HAIKU),
}


def fitting(library, name):
    """Returns random parameters that the library can represent."""
    params = random(name)
    if library.startswith("nnx") and name == "gru":
        return params._replace(recurrent_bias=np.zeros(H, np.float32))
    if (library, name) == ("haiku", "lstm"):  # round numbers, as the 1 that is taken off may round
        return params._replace(bias=np.round(8 * params.bias) / 8)
    return params


EVERY_TRIP = [(library, name) for library, trip in TRIPS.items() for name in trip[2]]


@pytest.mark.parametrize(("library", "name"), EVERY_TRIP)
def test_ours_come_back_exactly(library, name):
    there, back, _ = TRIPS[library]
    params = fitting(library, name)
    returned = back(kind_of(name), there(CELLS[name], params))
    assert jax.tree.structure(returned) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, returned, params)


@pytest.mark.parametrize(("library", "name"), EVERY_TRIP)
def test_arrays_written_are_contiguous_copies(library, name):
    there, _, _ = TRIPS[library]
    params = fitting(library, name)
    written = traverse_util.flatten_dict(there(CELLS[name], params))
    for key, array in written.items():
        assert type(array) is np.ndarray, key
        assert array.flags.c_contiguous, key
        assert array.flags.writeable, key
        assert array.flags.owndata, key
        assert not any(np.shares_memory(array, given) for given in jax.tree.leaves(params)), key


@pytest.mark.parametrize(("library", "name"), EVERY_TRIP)
def test_written_by_safetensors_they_come_back_exactly(library, name):
    import safetensors.numpy  # in the extra `test` only

    there, back, _ = TRIPS[library]
    params = fitting(library, name)
    flat = traverse_util.flatten_dict(there(CELLS[name], params), sep="/")
    read = safetensors.numpy.load(safetensors.numpy.save(flat))
    weights = traverse_util.unflatten_dict(read, sep="/") if library in NESTED else read
    returned = back(kind_of(name), weights)
    jax.tree.map(np.testing.assert_array_equal, returned, params)


NESTED = ["linen", "nnx", "nnx-by-gate", "haiku"]


@pytest.mark.parametrize(("library", "name"), EVERY_TRIP)
def test_params_may_be_a_dict(library, name):
    there, _, _ = TRIPS[library]
    params = fitting(library, name)
    arrays = {key: value for key, value in params._asdict().items() if value is not None}
    one, other = there(CELLS[name], arrays), there(CELLS[name], params)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert jax.tree.structure(one) == jax.tree.structure(other)


@pytest.mark.parametrize("name", TF1)
def test_tf1s_come_back_exactly_but_for_a_rounding_of_the_forget_gates_bias(name):
    kind, forget_bias = kind_of(name), FORGET_BIAS[name]
    weights = golden(f"tf1_{TF1[name]}")["weights"]
    params = convert.from_tf1(kind, weights, forget_bias=forget_bias)
    returned = convert.to_tf1(CELLS[name], params, forget_bias=forget_bias)
    assert returned.keys() == weights.keys()
    allowed = {key: np.zeros_like(array) for key, array in weights.items()}
    if kind == "lstm":
        forget = slice(2 * H, 3 * H)
        allowed["bias"][forget] = np.spacing(np.abs(weights["bias"][forget]) + forget_bias)
    for key, array in weights.items():
        assert np.all(np.abs(returned[key] - array) <= allowed[key]), key


@pytest.mark.parametrize("name", TORCH)
def test_torchs_come_back_exactly_with_the_sum_of_the_biases(name):
    kind, weights = kind_of(name), golden(f"torch_{TORCH[name]}")["weights"]
    returned = convert.to_torch(CELLS[name], convert.from_torch(kind, weights))
    assert returned.keys() == weights.keys()
    for key in weights:
        if key.startswith("weight"):
            np.testing.assert_array_equal(returned[key], weights[key])
        elif key.startswith("bias_ih"):
            one, other = (
                [each[key], each[key.replace("ih", "hh")]] for each in (returned, weights)
            )
            assert_same_biases(one, other, kind)


@pytest.mark.parametrize("name", KERAS)
def test_keras_come_back_exactly_with_the_sum_of_the_biases(name):
    kind, weights = kind_of(name), dict(golden(f"keras_{KERAS[name]}")["weights"])
    returned = convert.to_keras(CELLS[name], convert.from_keras(kind, weights))
    assert list(returned) == ["kernel", "recurrent_kernel", "bias"]
    if name == "gru":
        assert_same_biases(returned.pop("bias"), weights.pop("bias"), kind)
    jax.tree.map(np.testing.assert_array_equal, returned, weights)


def assert_same_biases(one, other, kind):
    """Splits a bias into two with this sum, except for the GRU's bias inside the reset."""
    np.testing.assert_array_equal(one[0] + one[1], other[0] + other[1])
    if kind == "gru":
        np.testing.assert_array_equal(one[1][2 * H :], other[1][2 * H :])


# Forms of arrays


FOREIGN = {
    **{f"tf1_{file}": kind_of(name) for name, file in TF1.items()},
    **{f"torch_{file}": kind_of(name) for name, file in TORCH.items()},
    **{f"keras_{file}": kind_of(name) for name, file in KERAS.items()},
    **{f"{flax}_{kind}": kind for flax in ("linen", "nnx") for kind in ("rnn", "lstm", "gru")},
    "nnx-by-gate_lstm": "lstm",
    **{f"equinox_{file}": kind_of(name) for name, file in EQUINOX.items()},
    **{f"haiku_{file}": kind_of(name) for name, file in HAIKU.items()},
}


def foreign(name):
    """Returns a function that reads weights of this kind, and such weights in one mapping."""
    library, kind = name.split("_")[0], FOREIGN[name]
    if library in ("tf1", "torch", "keras", "equinox", "haiku"):
        return functools.partial(getattr(convert, f"from_{library}"), kind), golden(name)["weights"]
    there, back, _ = TRIPS[library]
    weights = traverse_util.flatten_dict(there(CELLS[kind], fitting(library, kind)), sep="/")
    return lambda flat: back(kind, traverse_util.unflatten_dict(flat, sep="/")), weights


@pytest.mark.parametrize(
    "form",
    [
        lambda array: array.astype(np.float64),
        lambda array: array.astype(">f4"),
        lambda array: array.astype(">f8"),
        lambda array: array[..., ::-1].copy()[..., ::-1],
        lambda array: array.tolist(),
        lambda array: list(array),
    ],
    ids=["float64", "big-endian", "big-endian-float64", "strided", "list", "list-of-arrays"],
)
def test_arrays_are_read_in_any_form(form):
    for name in FOREIGN:
        read, weights = foreign(name)
        returned = read({key: form(array) for key, array in weights.items()})
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(returned))
        # Sums in float64 are rounded only once.
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7),
            returned,
            read(weights),
        )


def test_big_endian_parameters_are_written_in_the_machines_order():
    params = random("lstm")
    swapped = jax.tree.map(lambda array: array.astype(">f4"), params)
    written = convert.to_torch(CELLS["lstm"], swapped)
    for key, expected in convert.to_torch(CELLS["lstm"], params).items():
        assert written[key].dtype.isnative, key
        np.testing.assert_array_equal(written[key], expected)


def test_pythons_integers_are_read_as_floats():
    weights = {"kernel": [[1, 0]], "recurrent_kernel": [[0, 1], [1, 0]], "bias": [0, 0]}
    params = convert.from_keras("rnn", weights)
    assert all(leaf.dtype == jnp.float32 for leaf in params)
    np.testing.assert_array_equal(params.recurrent_kernel, [[0, 1], [1, 0]])


def test_what_was_read_does_not_change_with_its_source():
    weights = {key: array.copy() for key, array in golden("keras_rnn")["weights"].items()}
    params = convert.from_keras("rnn", weights)
    for array in weights.values():
        array[...] = 7
    jax.tree.map(
        np.testing.assert_array_equal,
        params._asdict(),
        golden("keras_rnn")["weights"],
    )


# Errors


def complaint(read, *args):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (the tests look at what it says)
        read(*args)
    return str(raised.value)


def without(weights, part):
    return {key: array for key, array in weights.items() if part not in key}


class Attached:
    """Behaves like a PyTorch tensor that requires grad."""

    dtype = "torch.float32"

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Use tensor.detach().numpy() instead.")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 4), np.int8), "kernel must be floating-point, got int8"),
        (np.zeros((3, 4), bool), "kernel must be floating-point, got bool"),
        (np.zeros((3, 4), complex), "kernel must be floating-point, got complex128"),
        (None, "kernel must be floating-point, got object"),
        ([[1.0], [2.0, 3.0]], "kernel must be an array: "),
        (Attached(), "kernel must be an array: Use tensor.detach().numpy() instead."),
    ],
)
def test_what_is_no_array_of_numbers_is_named(array, words):
    weights = golden("keras_rnn")["weights"] | {"kernel": array}
    assert complaint(convert.from_keras, "rnn", weights).startswith(words)


@pytest.mark.parametrize("library", TRIPS)
def test_weights_without_names_are_refused(library):
    read = getattr(convert, f"from_{library.split('-')[0]}")
    read = functools.partial(inspect.unwrap(read), "rnn")
    words = complaint(read, [np.zeros((3, 4))])
    assert words == "weights must be a mapping from names to arrays, got list"


@pytest.mark.parametrize("name", FOREIGN)
def test_complaints_name_the_array(name):
    read, weights = foreign(name)
    read(weights)
    for key, array in weights.items():
        wrong = complaint(read, weights | {key: array[None]})
        assert wrong.startswith(f"{key} must have shape ["), wrong
        if key in ("projection/kernel", "vanilla_rnn/linear_1/b"):
            continue  # the rest is an LSTM with fewer inputs, or a core with one bias
        missing = complaint(read, {other: weights[other] for other in weights if other != key})
        assert missing.startswith(f"{key} is missing"), missing
    surplus = complaint(read, weights | {"surplus": np.zeros(2)})
    assert surplus.startswith("surplus: unexpected, expected only ["), surplus


@pytest.mark.parametrize("name", FOREIGN)
def test_sizes_that_do_not_fit_are_named(name):
    read, weights = foreign(name)
    free = {("kernel", 0), ("i/kernel", 0), ("dense_i/kernel", 0), ("projection/kernel", 1)}
    free |= {("vanilla_rnn/linear/w", 0), ("lstm/linear/w", 0), ("gru/w_i", 0)}
    free |= {("weight_ih", 1)}
    for key, array in weights.items():
        for axis in range(array.ndim):
            longer = weights | {key: np.concatenate([array, array.take([0], axis)], axis)}
            if (key, axis) in free:  # another number of inputs or projected features is valid
                read(longer)
            else:
                words = complaint(read, longer)
                assert words.split(" must have ")[0] in weights, words


@pytest.mark.parametrize(("name", "key"), [("rnn", "kernel"), ("gru", "gates/kernel")])
def test_tf1_kernels_without_rows_for_inputs_are_named(name, key):
    read, weights = foreign(f"tf1_{name}")
    short = {each: array[-H:] if "kernel" in each else array for each, array in weights.items()}
    assert complaint(read, short) == f"{key} must have length > 4 on axis 0, got 4"


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


# The cells that a library does not have: all that are not listed for it above.
NAMES = {
    "tf1": "TF1",
    "torch": "PyTorch",
    "keras": "Keras",
    "linen": "flax.linen",
    "nnx": "flax.nnx",
    "equinox": "Equinox",
    "haiku": "Haiku",
}
LSTM = {
    "lstm-peephole": "{}'s LSTM has no peephole",
    "odyssey-V": "{}'s LSTM has no peephole",
    "lstm-projection": "{}'s LSTM has no projection_size",
    "lstm-clip": "{}'s LSTM has no cell_clip",
    "lstm-everything": "{}'s LSTM has no cell_clip and no peephole and no projection_size",
}
OTHERS = {
    **{
        f"odyssey-{variant}": f"{{}} has no odyssey(variant={variant!r})"
        for variant in ("NIG", "NFG", "NOG", "NIAF", "NOAF", "CIFG", "FGR")
    },
    "lstm-layer-norm": "{} has no layer_norm_lstm",
    "indrnn": "{} has no indrnn",
    "janet": "{} has no janet",
    "mgu": "{} has no mgu",
    "min-gru": "{} has no min_gru",
    "min-lstm": "{} has no min_lstm",
    "lru": "{} has no lru",
    "lru-pairs": "{} has no lru",
    "s5": "{} has no s5",
    "s5-square": "{} has no s5",
    "s5-stride": "{} has no s5",
    "s6": "{} has no s6",
    "rg-lru": "{} has no rg_lru",
    "slstm": "{} has no slstm",
    "slstm-heads": "{} has no slstm",
    "lem": "{} has no lem",
    "cornn": "{} has no cornn",
    "unicornn": "{} has no unicornn",
}
REFUSED = {
    "tf1": OTHERS | {"gru": "{}'s GRU has no reset_after=True"},
    "torch": {
        **OTHERS,
        **LSTM,
        "lstm-everything": "{}'s LSTM has no cell_clip and no peephole",
        "rnn-sigmoid": "{}'s RNN has no activation but tanh or relu, got sigmoid",
        "lstm-softsign": "{}'s LSTM has no activation but tanh, got soft_sign",
        "gru-before": "{}'s GRU has no reset_after=False",
    },
    "keras": OTHERS | LSTM,
    "linen": OTHERS | LSTM | {"gru-before": "{}'s GRU has no reset_after=False"},
    "nnx": OTHERS | LSTM | {"gru-before": "{}'s GRU has no reset_after=False"},
    "equinox": {
        **OTHERS,
        **LSTM,
        **dict.fromkeys(("rnn", "rnn-relu", "rnn-sigmoid"), "{} has no rnn"),
        "lstm-softsign": "{}'s LSTM has no activation but tanh, got soft_sign",
        "gru-before": "{}'s GRU has no reset_after=False",
    },
    "haiku": {
        **OTHERS,
        **LSTM,
        "rnn": "{}'s RNN has no activation but relu, got tanh",
        "rnn-sigmoid": "{}'s RNN has no activation but relu, got sigmoid",
        "lstm-softsign": "{}'s LSTM has no activation but tanh, got soft_sign",
        "gru": "{}'s GRU has no reset_after=True",
    },
}
del REFUSED["torch"]["lstm-projection"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_cell_is_computed_or_refused_by_name(library):
    write, has = getattr(convert, f"to_{library}"), LIBRARIES[library]
    for name, cell in ALL_CELLS.items():
        if SAME.get(name, name) in has:
            write(cell, fitting(library, name))
            assert name not in REFUSED[library]
        else:
            words = complaint(inspect.unwrap(write), cell, random(name))
            assert words == REFUSED[library][name].format(NAMES[library])


def own_gate(params, z, state):
    return jaxrnn.RNNState(jnp.sin(z.h))


OWN = jaxrnn.gated(own_gate, "h", jaxrnn.rnn(H).init, jaxrnn.rnn(H).initial_state)
SEPARATE = CELLS["rnn"].gate._replace(separate=("h",))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (OWN, "own_gate"),
        (CELLS["rnn"]._replace(gate=OWN.gate), "own_gate"),
        (CELLS["gru"]._replace(step=OWN.step), "gru.<locals>.gate"),
        (CELLS["rnn"]._replace(gate=SEPARATE), "rnn.<locals>.gate"),
    ],
    ids=["own", "gate replaced", "step replaced", "rest replaced"],
)
def test_a_cell_of_ones_own_is_refused_by_name(library, cell, words):
    message = complaint(getattr(convert, f"to_{library}"), cell, random("rnn"))
    assert message.startswith(f"{NAMES[library]} has no {words}: cell must be made by")


STARTS = {
    "rnn": jaxrnn.rnn(H, recurrent_kernel_init=jaxrnn.identity()),
    "rnn-relu": jaxrnn.rnn(H, activation=jax.nn.relu, recurrent_kernel_init=jaxrnn.identity()),
    "lstm": jaxrnn.lstm(H, forget_bias=0.5),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_cell_that_only_starts_otherwise_is_written(library):
    name = next(iter(LIBRARIES[library]))
    write, params = getattr(convert, f"to_{library}"), random(name)
    for cell in (
        jaxrnn.scaled(CELLS[name], 0.5),
        STARTS[name],
        CELLS[name]._replace(init=None),
    ):
        jax.tree.map(np.testing.assert_array_equal, write(cell, params), write(CELLS[name], params))


def test_a_traced_start_is_not_kept():
    made = []

    @jax.jit
    def run(forget_bias):
        made.append(jaxrnn.lstm(H, forget_bias=forget_bias))
        return forget_bias

    run(0.5)
    (cell,) = made
    assert "forget_bias" not in cell.origin.options
    assert not any(isinstance(each, jax.core.Tracer) for each in cell.origin.options.values())
    convert.to_torch(cell, random("lstm"))


@pytest.mark.parametrize(
    ("library", "cell", "params", "words"),
    [
        ("keras", "lstm", "gru", "params.recurrent_kernel must have shape [4, 16], got [4, 12]"),
        ("keras", "lstm", "janet", "params.recurrent_kernel must have shape [4, 16], got [4, 8]"),
        ("keras", "rnn", "min-gru", "params.recurrent_kernel is missing"),
        ("tf1", "lstm", "lstm-peephole", "params.peephole: unexpected"),
        ("tf1", "lstm-peephole", "lstm", "params.peephole is missing"),
        ("torch", "lstm-projection", "lstm", "params.recurrent_kernel must have shape [2, 16]"),
        ("torch", "lstm", "lstm-projection", "params.recurrent_kernel must have shape [4, 16]"),
        ("linen", "gru", "gru-before", "params.recurrent_bias is missing"),
        ("nnx", "gru", "gru", "params.recurrent_bias must be zero for flax.nnx"),
    ],
)
def test_parameters_of_another_cell_are_named(library, cell, params, words):
    write = getattr(convert, f"to_{library}")
    assert complaint(write, CELLS[cell], random(params)).startswith(words)


def test_parameters_of_another_size_are_named():
    words = complaint(convert.to_keras, jaxrnn.lstm(H + 1), random("lstm"))
    assert words == "params.recurrent_kernel must have shape [5, 20], got [4, 16]"


@pytest.mark.parametrize("library", LIBRARIES)
def test_arguments_of_other_types_are_named(library):
    write = inspect.unwrap(getattr(convert, f"to_{library}"))
    cell, params = CELLS[next(iter(LIBRARIES[library]))], random("rnn")
    assert complaint(write, params, cell) == "cell must be a jaxrnn.Cell, got RNNParams"
    words = "params must be the cell's named tuple or a dict of its arrays, got int"
    assert complaint(write, cell, 7) == words
    assert complaint(write, cell, {}).startswith("params.recurrent_kernel is missing")


@pytest.mark.parametrize("size", [H, H + 1])
def test_torch_projects_to_fewer_only(size):
    cell = jaxrnn.lstm(H, projection_size=size)
    params = jax.eval_shape(lambda: cell.init(KEY, I))
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), params)
    words = complaint(convert.to_torch, cell, params)
    assert words.endswith(f"needs projection_size < hidden_size, got {size} and 4")


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([], "one direction per layer"),
        ([["lstm"] * 3], "two directions per layer, got \\[3\\]"),
        ([["lstm"] * 2, ["lstm"]], "two directions per layer, got \\[2, 1\\]"),
        (["lstm", "lstm"], "or two directions per layer, got \\['LSTMParams', 'LSTMParams'\\]"),
        ([["lstm"], ["lstm"]], "weight_ih_l1 must have shape \\[16, 4\\], got \\[16, 3\\]"),
        ([["lstm", "gru"]], "params\\[0\\]\\[1\\].recurrent_kernel must have shape"),
    ],
)
def test_layers_that_make_no_torch_module_are_refused(layers, words):
    layers = [
        random(each) if isinstance(each, str) else [random(name) for name in each]
        for each in layers
    ]
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(convert.to_torch)(CELLS["lstm"], layers)
