"""The arguments that `unroll` and the layers accept, and the errors for all others."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_cells import CELLS, H, I

import jaxrnn
from jaxrnn import Regularizer
from jaxrnn.arguments import as_dict
from jaxrnn.linen import RNN, Classifier, Stack

KEY = jax.random.key(0)
B, T = 3, 7
LSTM = jaxrnn.lstm(H)
# Filled by NumPy, which compiles nothing in the processes that only collect this.
SHAPES = jax.eval_shape(lambda: (LSTM.init(KEY, I), jnp.zeros((B, T, I))))
random = np.random.default_rng(0)
PARAMS, INPUTS = jax.tree.map(
    lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype), SHAPES
)
STATE = LSTM.initial_state(PARAMS, (B,))


def unroll(cell=LSTM, params=PARAMS, inputs=INPUTS, **options):
    # Without the checks of the annotations, which are active only in tests.
    return inspect.unwrap(jaxrnn.unroll)(cell, params, inputs, **options)


WRONG = [
    ("cell must be a jaxrnn.Cell", {"cell": PARAMS, "params": LSTM}),
    ("cell must be a jaxrnn.Cell, .*, got NoneType", {"cell": None}),
    *[
        ("params must be LSTMParams", {"params": params})
        for params in (
            None,
            {},
            [],
            list(PARAMS),
            jaxrnn.gru(H).init(KEY, I),
            LSTM.init(KEY, I + 1),
            PARAMS._replace(kernel=None),
            as_dict(PARAMS) | {"gain": 1.0},
            PARAMS._replace(bias="zero"),
            PARAMS._replace(bias=jnp.zeros(4 * H, jnp.int32)),
        )
    ],
    ("params must be LRUParams.* for inputs of 3", {"cell": CELLS["lru"], "params": PARAMS}),
    ("inputs must be an array, got a NoneType", {"inputs": None}),
    ("inputs must be an array, got 'rows'", {"inputs": "rows"}),
    ("inputs must be floating-point, got int32", {"inputs": jnp.zeros((B, T, I), jnp.int32)}),
    ("inputs must be floating-point, got complex64", {"inputs": INPUTS.astype(jnp.complex64)}),
    (r"inputs must be \[..., T, I\]", {"inputs": jnp.zeros(4)}),
    (r"inputs must be \[T, ..., I\]", {"inputs": jnp.zeros(4), "time_major": True}),
    ("lengths must be integers, got float", {"lengths": [2.9, 1.0, 0.0]}),
    ("lengths must be integers", {"lengths": "all"}),
    (r"lengths must have the batch's shape \(3,\)", {"lengths": [1, 2]}),
    # In int32 these would become 3, 0 and 0.
    ("lengths must lie in 0..7", {"lengths": np.array([2**32 + 3, 2, 1])}),
    ("lengths must lie in 0..7", {"lengths": np.array([2**63, 2, 1], np.uint64)}),
    ("lengths must lie in 0..7", {"lengths": np.array([2**32, 2, 1], np.int64)}),
    ("resets must be boolean", {"resets": np.zeros((B, T))}),
    (r"resets must have shape \(3, 7\)", {"resets": True}),
    (r"resets must have shape \(3, 7\)", {"resets": [True, False]}),
    ("resets must be an array, got 'never'", {"resets": "never"}),
    ("initial_state must be LSTMState", {"initial_state": 0.0}),
    ("initial_state must be LSTMState", {"initial_state": tuple(STATE)}),
    ("initial_state must be LSTMState", {"initial_state": STATE._replace(cell=0.0)}),
    ("initial_state must be LSTMState", {"initial_state": STATE._replace(cell=None)}),
    (
        "initial_state must be LSTMState",
        {"initial_state": STATE._replace(cell=jnp.zeros((B, H), jnp.bfloat16))},
    ),
    (
        "reset_state must be LSTMState",
        {"resets": np.zeros((B, T), bool), "reset_state": jaxrnn.GRUState(STATE.hidden)},
    ),
    ("regularizer must be a jaxrnn.Regularizer or None, got a dict", {"regularizer": {}}),
    ("regularizer must be a jaxrnn.Regularizer or None, got a float", {"regularizer": 0.5}),
    *[
        (r"regularizer.zoneout must be a number in \[0, 1\)", {"regularizer": Regularizer(rate)})
        for rate in (
            1.0,
            -0.5,
            float("nan"),
            np.float32(2.0),
            np.array(-1.0),
            jnp.array(1.5),
            [0.1, 0.2],
            "0.1",
            True,
            (0.1, 2),
            (0.1, None),
        )
    ],
    *[
        (f"{name} must be True or False", {name: value})
        for name in ("reverse", "time_major")
        for value in ("no", 0, None, np.ones(2, bool))
    ],
    *[
        (f"{name} must be None or one of", {name: value})
        for name in ("implementation", "memory")
        for value in ("fast", 1, np.ones(2), ["scan"])
    ],
    *[
        (f"{name} must be a positive integer", {name: value})
        for name in ("unroll", "truncate")
        for value in (0, -1, 2.0, "all", True)
    ],
    ("dtype must be None or a floating-point dtype", {"dtype": jnp.int8}),
    ("dtype must be None or a floating-point dtype", {"dtype": "half a byte"}),
    *[
        ("key must be one key", {"key": key})
        for key in (3, "seed", jnp.zeros(7, jnp.uint32), jax.random.split(KEY, 2))
    ],
    ("inputs must have at least one feature", {"inputs": INPUTS[..., :0]}),
    ("lengths must be an array", {"lengths": [[1], [1, 2]]}),
    ("reset_state must be LSTMState", {"reset_state": "junk"}),
    (
        "params must be LSTMParams",
        {"params": jax.tree.map(lambda leaf: leaf.astype(jnp.complex64), PARAMS)},
    ),
]


@pytest.mark.parametrize(("words", "arguments"), WRONG)
def test_an_error_names_the_argument(words, arguments):
    with pytest.raises(ValueError, match=words):
        unroll(**arguments)


def test_lists_and_numpy_values_are_taken_where_arrays_and_numbers_are():
    with jax.disable_jit():  # nothing to compile
        expected = unroll(
            lengths=jnp.array([7, 0, 3]), resets=jnp.zeros((B, T), bool).at[:, 2].set(True)
        )
        found = unroll(
            params=jax.tree.map(np.asarray, PARAMS),
            inputs=np.asarray(INPUTS, np.float64),
            lengths=[7, 0, 3],
            resets=[[t == 2 for t in range(T)]] * B,
            initial_state=jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), STATE),
            reverse=np.False_,
            unroll=np.int64(1),
        )
        nested = unroll(
            params=as_dict(PARAMS),
            lengths=np.array([7, 0, 3], np.uint64),
            resets=np.arange(T)[None].repeat(B, 0) == 2,
            initial_state=STATE._replace(cell=STATE.cell.tolist()),
        )
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    jax.tree.map(np.testing.assert_array_equal, nested, expected)


def test_options_of_numpy_make_the_same_cell():
    assert jaxrnn.lstm(np.int64(H)) is LSTM
    assert jaxrnn.lstm(H, forget_bias=np.float32(2.0)) is jaxrnn.lstm(H, forget_bias=2.0)
    assert jaxrnn.lstm(H, forget_bias=jnp.full(1, 2.0)) is jaxrnn.lstm(H, forget_bias=2.0)


# User-defined cells


def own_cell(*, width=2, state=jaxrnn.RNNState, dtype=jnp.float32, bias=True):
    """Returns a gated cell with kernels for `width` gates, of which its gate uses two."""

    def init(key, input_size, param_dtype=jnp.float32):
        zeros = functools.partial(jnp.zeros, dtype=param_dtype)
        kernels = zeros((input_size, width * H)), zeros((H, width * H))
        return jaxrnn.RNNParams(*kernels, zeros(width * H) if bias else None)

    def initial_state(params, batch_shape=()):
        return state(jnp.zeros((*batch_shape, H)))

    def gate(params, z, before):
        return state((jax.nn.sigmoid(z.f) * before[0] + z.n).astype(dtype))

    return jaxrnn.gated(gate, "f n", init, initial_state)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 4}, r"kernel .* gates f n and 4 units must have shape \(3, 8\), got \(3, 16\)"),
        ({"state": lambda hidden: (hidden,)}, "must return a named tuple"),
        ({"dtype": jnp.bfloat16}, r"gate must return a state .*float32\[3,4\].*bfloat16\[3,4\]"),
        ({"bias": False}, "init of a gated cell must return a bias"),
    ],
)
def test_a_gate_that_returns_what_it_must_not_is_named(options, words):
    cell = own_cell(**options)
    with pytest.raises(ValueError, match=words):
        unroll(cell, cell.init(KEY, I))


@pytest.mark.parametrize(
    ("gates", "separate", "words"),
    [
        ("", "", "gates must name at least one"),
        ("f f", "", "gates must be distinct names, got 'f f'"),
        ("f n", "q", r"separate must be among the gates \('f', 'n'\), got 'q'"),
        ("fn", "", r"the kernel of a cell with the gates fn and 4 units must have shape \(3, 4\)"),
        ("f n", "n", r"gate\(params, z, product, state\) with z of f, n fails"),
        ("a b", "", r"gate\(params, z, state\) with z of a, b fails"),
    ],
)
def test_gates_are_names(gates, separate, words):
    own = own_cell()

    def run():
        cell = jaxrnn.gated(
            own.gate.function, gates, own.init, own.initial_state, separate=separate
        )
        unroll(cell, cell.init(KEY, I))

    with pytest.raises(ValueError, match=words):
        run()


def test_a_step_that_returns_what_it_must_not_is_named():
    def cell(step):
        return jaxrnn.Cell(LSTM.init, LSTM.initial_state, step)

    def no_batch(params, state, x):
        return state, jnp.zeros(())

    def one_result(params, state, x):
        return state

    def other_state(params, state, x):
        return tuple(state), state.hidden

    for step, words in (
        (no_batch, "step must return an output"),
        (one_result, "step must return a state"),
        (other_state, r"step must return a state .*LSTMState\(.*, got \("),
    ):
        with pytest.raises(ValueError, match=words):
            unroll(cell(step))


# Layers


@pytest.mark.parametrize("rate", [1.0, -0.5, 50, float("nan"), "half"])
def test_dropout_is_a_rate(rate):
    for model in (Stack(LSTM, 2, dropout=rate), Classifier(Stack(LSTM, 2, dropout=rate), 2)):
        with pytest.raises(ValueError, match=r"dropout must be a number in \[0, 1\)"):
            jax.eval_shape(model.init, KEY, INPUTS)


def test_a_classifier_is_made_of_a_stack():
    with pytest.raises(ValueError, match="stack must be a Stack, got Cell"):
        jax.eval_shape(Classifier(LSTM, 2).init, KEY, INPUTS)


def test_layers_refuse_lengths_that_are_no_integers():
    for model in (RNN(LSTM), Stack(LSTM, residual=True), Classifier(Stack(LSTM), 2)):
        with pytest.raises(ValueError, match="lengths must be integers"):
            model.init(KEY, INPUTS, seq_lengths=jnp.array([2.9, 1.0, 0.0]))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_carry_is_one_state_a_layer_and_direction(bidirectional):
    model = Stack(LSTM, 2, bidirectional)
    for carry in (STATE, (STATE,), (STATE, STATE, STATE), ((STATE,), (STATE,))):
        with pytest.raises(ValueError, match=r"initial_(carry|state) must be"):
            jax.eval_shape(functools.partial(model.init, initial_carry=carry), KEY, INPUTS)
