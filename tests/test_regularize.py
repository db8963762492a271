"""Recurrent regularization, truncated backpropagation and streaming."""

import functools

import all_cells
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit
from test_fused import assert_close, assert_same, problem, run

import jaxrnn
from jaxrnn import Regularizer
from jaxrnn.backends.blocks import BLOCK
from jaxrnn.regularize import regularize

KEY = jax.random.key(3)
H = all_cells.H
NOISY = {
    "zoneout": Regularizer(zoneout=0.4),
    "dropout-tied": Regularizer(recurrent_dropout=0.4, tied=True),
    "dropout-per-step": Regularizer(recurrent_dropout=0.4, tied=False),
    "weights": Regularizer(weight_dropout=0.4),
    "all": Regularizer(0.4, 0.4, False, 0.4),
}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", NOISY)
def test_every_gradient_is_that_of_the_scan(name):
    cell = all_cells.CELLS["lstm-peephole" if name == "all" else "rnn"]
    given = problem(cell, time=2 * BLOCK, lengths=True, resets=name == "all")
    options = {"regularizer": NOISY[name], "key": KEY}
    scan = run(cell, implementation="scan", **options)
    others = [run(cell, implementation="fused", memory="save", **options)]
    if name == "all":
        others.append(run(cell, implementation="fused", memory="recompute", **options))
    assert_same(given, scan, *others)


def loop(cell, params, inputs, state, *, drop=None, mix=None):
    """Implements the documentation in a Python loop over time steps."""
    outputs = []
    for t in range(inputs.shape[1]):
        seen = state if drop is None else state._replace(hidden=state.hidden * drop[t])
        after, _ = cell.step(params, seen, inputs[:, t])
        if mix is not None:
            after = jax.tree.map(
                lambda old, new, m, t=t: jnp.where(m[t] > 0, new, old), state, after, mix
            )
        state = after
        outputs.append(state.hidden)
    return jnp.stack(outputs, axis=1), state


@pytest.mark.parametrize("tied", [True, False])
def test_recurrent_dropout_is_what_the_product_does_not_see(tied):
    cell = jaxrnn.lstm(H)  # its hidden state is used only in the recurrent product
    params, inputs, state, _ = problem(cell, time=6)
    regularizer = Regularizer(recurrent_dropout=0.5, tied=tied)
    _, drop, mix = regularize(KEY, regularizer, cell, params, state, 6)
    assert mix is None
    assert set(np.unique(drop)) == {0.0, 2.0}
    same = np.all(drop == drop[:1], axis=0)
    assert same.all() if tied else not same.all()
    actual = jaxrnn.unroll(
        cell, params, inputs, initial_state=state, regularizer=regularizer, key=KEY
    )
    assert_close(actual, loop(cell, params, inputs, state, drop=drop))


def test_zoneout_keeps_old_values():
    cell = jaxrnn.lstm(H)
    params, inputs, state, _ = problem(cell, time=6)
    regularizer = Regularizer(zoneout=(0.2, 0.7))
    _, drop, mix = regularize(KEY, regularizer, cell, params, state, 6)
    assert drop is None
    actual = jaxrnn.unroll(
        cell, params, inputs, initial_state=state, regularizer=regularizer, key=KEY
    )
    assert_close(actual, loop(cell, params, inputs, state, mix=mix))
    many = jax.tree.map(lambda leaf: jnp.zeros((500, H)), state)
    *_, mix = regularize(KEY, regularizer, cell, params, many, 6)
    np.testing.assert_allclose([leaf.mean() for leaf in mix], [0.8, 0.3], atol=0.02)
    # Without a key, one step is the expectation over the masks.
    one = jaxrnn.unroll(cell, params, inputs[:, :1], initial_state=state, regularizer=regularizer)[
        1
    ]
    new = jaxrnn.unroll(cell, params, inputs[:, :1], initial_state=state)[1]
    expected = jaxrnn.LSTMState(
        0.8 * new.hidden + 0.2 * state.hidden, 0.3 * new.cell + 0.7 * state.cell
    )
    assert_close(one, expected)


def test_zoneout_of_a_cell_with_its_own_step_keeps_its_outputs_too():
    cell = jaxrnn.mgu(H)
    params, inputs, state, _ = problem(cell, time=6)
    regularizer = Regularizer(zoneout=0.5)
    *_, mix = regularize(KEY, regularizer, cell, params, state, 6)
    actual = jaxrnn.unroll(
        cell, params, inputs, initial_state=state, regularizer=regularizer, key=KEY
    )
    assert_close(actual, loop(cell, params, inputs, state, mix=mix))


def test_weight_dropout_is_a_kernel_with_holes():
    cell = jaxrnn.gru(40)
    params = cell.init(KEY, 3, jnp.float64)
    regularizer = Regularizer(weight_dropout=0.25)
    dropped, *_ = regularize(KEY, regularizer, cell, params, cell.initial_state(params), 6)
    zero = dropped.recurrent_kernel == 0
    np.testing.assert_allclose(zero.mean(), 0.25, atol=0.02)
    np.testing.assert_allclose(
        dropped.recurrent_kernel, jnp.where(zero, 0, params.recurrent_kernel / 0.75)
    )
    np.testing.assert_array_equal(dropped.kernel, params.kernel)


@pytest.mark.parametrize("name", NOISY)
def test_no_key_is_evaluation_and_keys_are_all_there_is_of_chance(name):
    cell = jaxrnn.gru(H)
    params, inputs, *_ = problem(cell)
    function = jit(
        lambda key: jaxrnn.unroll(cell, params, inputs, regularizer=NOISY[name], key=key)[0]
    )
    one, same, other, still = (function(key) for key in (KEY, KEY, jax.random.key(4), None))
    np.testing.assert_array_equal(one, same)
    assert np.any(one != other)
    assert np.any(one != still)
    if "zoneout" not in name and name != "all":
        assert_close(still, jit(run(cell))(params, inputs, None, {})[0])


@pytest.mark.parametrize(
    ("cell", "regularizer", "words"),
    [
        (jaxrnn.gru(H), Regularizer(recurrent_dropout=0.5), "tied must be True"),
        (jaxrnn.mgu(H), Regularizer(recurrent_dropout=0.5, tied=True), "needs a cell made by"),
        (jaxrnn.indrnn(H), Regularizer(recurrent_dropout=0.5, tied=True), "recurrent kernel"),
        (jaxrnn.min_gru(H), Regularizer(weight_dropout=0.5), "needs params with a recurrent"),
        (jaxrnn.lru(H), Regularizer(zoneout=0.5), "zoneout must be None"),
        (jaxrnn.gru(H), Regularizer(zoneout=(0.5, 0.5)), "a number or a tuple of length 1"),
    ],
)
def test_errors_say_what_does_not_fit(cell, regularizer, words):
    params, inputs, *_ = problem(cell)
    with pytest.raises(ValueError, match=words):
        jaxrnn.unroll(cell, params, inputs, regularizer=regularizer, key=KEY)


# Truncated backpropagation


@pytest.mark.parametrize("name", ["lstm", "lru"])
def test_truncation_cuts_the_gradient_and_nothing_else(name):
    cell, size = all_cells.CELLS[name], 3
    params, inputs, state, _ = problem(cell, (), time=8)

    def outputs(inputs, state, truncate):
        run = jaxrnn.unroll(cell, params, inputs, initial_state=state, truncate=truncate)[0]
        return run, run

    jacobian = jax.jacrev(functools.partial(outputs, truncate=size), (0, 1), has_aux=True)
    whole, found = jit(
        lambda inputs, state: (
            outputs(inputs, state, None)[0],
            [
                (jacobian(inputs[:time], state), outputs(inputs[:time], state, size)[0])
                for time in (2, 6, 8)
            ],
        )
    )(inputs, state)
    for ((d_inputs, d_state), under_gradient), alone in found:
        time = len(alone)
        assert_close(alone, whole[:time])
        assert_close(under_gradient, whole[:time])
        reaches = np.abs(d_inputs).sum((1, 3)) > 0
        t, s = np.ogrid[:time, :time]
        np.testing.assert_array_equal(reaches, (s <= t) & (s // size == t // size))
        start = np.abs(jax.tree.leaves(d_state)[0]).sum((1, 2)) > 0
        np.testing.assert_array_equal(start, np.arange(time) < size)
    assert [len(alone) for _, alone in found] == [2, 6, 8]


def test_the_last_state_keeps_its_gradient():
    cell = jaxrnn.gru(H)
    params, inputs, *_ = problem(cell, (), time=6)
    final = lambda inputs: jaxrnn.unroll(cell, params, inputs, truncate=3)[1].hidden.sum()  # noqa: E731
    reaches = np.abs(jit(jax.grad(final))(inputs)).sum(-1) > 0
    np.testing.assert_array_equal(reaches, [False] * 3 + [True] * 3)


def test_a_row_that_ended_blocks_ago_keeps_the_gradient_of_its_last_state():
    cell, lengths = jaxrnn.gru(H), np.array([2, 3, 4, 6, 9, 0])
    params, inputs, *_ = problem(cell, (6,), time=9)

    def final(inputs, state):
        return jaxrnn.unroll(
            cell, params, inputs, initial_state=state, lengths=lengths, truncate=3
        )[1].hidden.sum()

    state = cell.initial_state(params, (6,))
    d_inputs, d_state = jit(jax.grad(final, (0, 1)))(inputs, state)
    t, lengths = np.arange(9), lengths[:, None]
    start = (lengths - 1) // 3 * 3
    np.testing.assert_array_equal(np.abs(d_inputs).sum(-1) > 0, (start <= t) & (t < lengths))
    np.testing.assert_array_equal((np.abs(d_state.hidden) > 0).all(-1), lengths[:, 0] <= 3)


# Streaming


@pytest.mark.parametrize("name", ["lstm-everything", "mgu", "lru", "the tutorial's"])
def test_steps_as_they_arrive_are_the_whole(name):
    """The programs of many steps and of a single step may differ by rounding."""
    with jax.enable_x64(False):
        cell = all_cells.CELLS.get(name)
        # All steps of the tutorial's cell, and a few of the others, enough to detect a lost state.
        cell, time, size = (jaxrnn.lstm(128), 28, 28) if cell is None else (cell, 8, all_cells.I)
        shapes = jax.eval_shape(lambda: cell.init(KEY, size))
        random = np.random.default_rng(3)
        normal = lambda leaf: random.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
        params = jax.tree.map(lambda leaf: normal(leaf) * len(leaf) ** -0.5, shapes)
        inputs = normal(np.zeros((5, time, size)))
        read = jit(lambda state, inputs: jaxrnn.unroll(cell, params, inputs, initial_state=state))
        start = cell.initial_state(params, (5,))
        whole, end = jax.tree.map(np.asarray, read(start, inputs))
        state, outputs = start, []
        for t in range(time):
            output, state = read(state, inputs[:, t : t + 1])
            outputs.append(output)
        np.testing.assert_allclose(np.concatenate(outputs, axis=1), whole, atol=2e-5)
        assert_close(state, end, 2e-5)
