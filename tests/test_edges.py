"""Resets, debugging without jit, donation, empty axes, symbolic sizes, NaN and bfloat16."""

import copy
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_cells import CELLS, H, I
from baselines import MLP
from jax import jit
from random_variables import random_variables

import jaxrnn
from jaxrnn.arguments import as_dict
from jaxrnn.backends import parallel
from jaxrnn.linen import RNN, Classifier, Stack, last_output
from jaxrnn.renet import ReNet

KEY = jax.random.key(0)
B, T = 2, 8
OF_EVERY_KIND = ["rnn", "lstm-projection", "gru", "mgu", "lru"]
# Those that compute products of their own too; of the others only the elementwise gate is.
OF_EVERY_CODE = [*OF_EVERY_KIND, "lstm-layer-norm", "gru-before", "odyssey-FGR", "min-lstm"]
OF_EVERY_CODE += ["s5", "s6", "rg-lru", "slstm-heads"]


def make(name, *shape, seed=0):
    """Returns a cell, nonzero parameters and inputs of this shape."""
    cell = CELLS[name]
    random = np.random.default_rng(seed)
    normal = lambda shape: jnp.asarray(random.normal(size=shape), jnp.float32)  # noqa: E731
    params = jax.eval_shape(lambda: cell.init(KEY, I))
    params = jax.tree.map(lambda leaf: 0.5 * normal(leaf.shape), params)
    return cell, params, normal((*shape, I))


def close(actual, expected, tolerance=1e-5):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    compare = functools.partial(np.testing.assert_allclose, atol=tolerance)
    jax.tree.map(compare, actual, expected)


# Resets


@pytest.mark.parametrize(
    ("name", "implementation"),
    [("lstm", None), ("lstm", "scan"), ("gru-before", None), ("lru", None)],
)
def test_chunks_with_resets_that_carry_the_state_are_the_whole(name, implementation):
    """In recurrent reinforcement learning, a reset starts from the initial state of the cell."""
    cell, params, inputs = make(name, B, T)
    resets = np.zeros((B, T), bool)
    resets[0, 5] = resets[1, 4] = True  # within the second chunk, and at its start
    read = jit(
        lambda inputs, resets, state: jaxrnn.unroll(
            cell,
            params,
            inputs,
            resets=resets,
            initial_state=state,
            implementation=implementation,
        )
    )
    start = jax.tree.map(lambda leaf: leaf + 0.5, cell.initial_state(params, (B,)))
    whole, end = read(inputs, resets, start)
    first, state = read(inputs[:, :4], resets[:, :4], start)
    second, state = read(inputs[:, 4:], resets[:, 4:], state)
    close((jnp.concatenate([first, second], 1), state), (whole, end))
    # After the reset, the outputs equal those of a sequence that starts there.
    alone, _ = read(inputs[:, 4:], np.zeros((B, 4), bool), cell.initial_state(params, (B,)))
    close(second[1], alone[1])


@pytest.mark.parametrize(
    ("name", "implementation"),
    [("lstm", None), ("lstm", "scan"), ("mgu", None), ("min-gru", None)],
)
def test_no_gradient_passes_a_reset(name, implementation):
    cell, params, inputs = make(name, B, 4)
    resets = np.array([[False, True, False, False], [True, False, False, False]])

    def loss(start, fresh, inputs):
        outputs, _ = jaxrnn.unroll(
            cell,
            params,
            inputs,
            initial_state=start,
            resets=resets,
            reset_state=fresh,
            implementation=implementation,
        )
        return jnp.sum(outputs[:, 1:] ** 2)

    state = jax.tree.map(lambda leaf: leaf + 0.5, cell.initial_state(params, (B,)))
    d_start, d_fresh, d_inputs = jit(jax.grad(loss, (0, 1, 2)))(state, state, inputs)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(d_start))
    assert all(np.all(leaf[:, 0] != 0) for leaf in jax.tree.leaves(d_fresh))
    assert not np.any(d_inputs[0, 0])
    assert np.all(d_inputs[1, 0] != 0)


@pytest.mark.parametrize("learn", [False, True])
def test_layers_reset_too(learn):
    cell, params, inputs = make("lstm", B, T)
    resets = np.zeros((B, T), bool)
    resets[:, 3] = True
    layer = RNN(cell, learn_initial_state=learn)
    variables = {"params": {"cell": as_dict(params)}}
    start = cell.initial_state(params)
    if learn:  # a reset starts from the learned state
        start = jax.tree.map(lambda leaf: leaf + 0.5, start)
        variables["params"]["initial_state"] = as_dict(start)
    states = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (B, H)), start)
    carried = jax.tree.map(lambda leaf: leaf + 1.0, states)
    expected, _ = jaxrnn.unroll(
        cell, params, inputs, initial_state=carried, resets=resets, reset_state=states
    )
    found = layer.apply(variables, inputs, resets=resets, initial_carry=carried)
    close(found, expected)
    for model in (Stack(cell, 2, bidirectional=True), Classifier(Stack(cell), 2, every_step=True)):
        read = functools.partial(model.apply, random_variables(model, inputs), inputs)
        outputs = jax.tree.leaves(read(resets=resets))[0]
        plain = jax.tree.leaves(read())[0]
        assert np.all(np.abs(outputs - plain)[:, 3:].max(-1) > 1e-4)


# Debugging


@pytest.mark.parametrize("name", ["lstm", "mgu", "lru"])
def test_the_gradient_without_jit_is_the_gradient(name):
    cell, params, inputs = make(name, B, 2)

    def gradient(**options):
        def loss(params):
            outputs, state = jaxrnn.unroll(cell, params, inputs, **options)
            return jnp.sum(outputs**2) + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(state))

        return jax.grad(loss)

    expected = jit(gradient())(params)
    many = [
        {"memory": "recompute", "lengths": [2, 2]},
        {"truncate": 2},
        {"truncate": 9, "resets": np.zeros((B, 2), bool)},
    ]
    for options in [{}, *many] if name == "lstm" else [{}]:
        with jax.disable_jit():
            close(gradient(**options)(params), expected)


# Donation


@pytest.mark.parametrize("name", CELLS)
def test_every_leaf_is_an_array_of_its_own(name):
    cell = CELLS[name]

    def pointers(tree):
        return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)]

    params = cell.init(KEY, I)
    for tree in (params, cell.initial_state(params, (B,)), cell.initial_state(params)):
        assert len(set(pointers(tree))) == len(pointers(tree))


def test_a_state_and_learned_parameters_can_be_donated():
    cell, params, inputs = make("odyssey-V", B, 3)
    read = jax.jit(lambda state, x: jaxrnn.unroll(cell, params, x, initial_state=state)[1])
    donating = jax.jit(read, donate_argnums=0)
    expected = read(cell.initial_state(params, (B,)), inputs)
    close(donating(cell.initial_state(params, (B,)), inputs), expected)
    variables = RNN(cell, learn_initial_state=True).init(KEY, inputs)
    halved = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf / 2, tree), donate_argnums=0)
    halved(variables)


# Empty axes


@pytest.mark.parametrize("name", CELLS)
def test_no_steps_give_no_outputs_and_the_state_that_came_in(name):
    cell, params, inputs = make(name, B, 0)
    state = jax.tree.map(lambda leaf: leaf + 0.5, cell.initial_state(params, (B,)))
    outputs, end = jaxrnn.unroll(cell, params, inputs, initial_state=state, lengths=[0, 0])
    one, _ = jax.eval_shape(
        lambda x: jaxrnn.unroll(cell, params, x, initial_state=state), jnp.zeros((B, 1, I))
    )
    assert outputs.shape == (B, 0, one.shape[-1])
    jax.tree.map(np.testing.assert_array_equal, end, state)


@pytest.mark.parametrize("shape", [(B, 0, 4), (0, 4, 4), (0, 0, 4)])
def test_layers_take_no_steps_and_no_examples(shape):
    inputs, cell = jnp.zeros(shape), jaxrnn.rnn(4)
    for bidirectional in (False, True):
        stack = Stack(cell, 1, bidirectional, residual=True)
        outputs = jit(stack.apply)(random_variables(stack, inputs), inputs)
        last = last_output(outputs, bidirectional=bidirectional)
        assert outputs.shape == (*shape[:2], 4 * (1 + bidirectional))
        assert last.shape == (shape[0], 4 * (1 + bidirectional))
        assert not np.any(last)
    model = Classifier(Stack(cell), 3)
    logits = jit(model.apply)(random_variables(model, inputs), inputs)
    assert logits.shape == (shape[0], 3)


# Symbolic sizes


@pytest.mark.parametrize("name", OF_EVERY_CODE)
def test_programs_of_any_batch_and_any_number_of_steps(name):
    cell, params, inputs = make(name, B, T)

    def read(inputs, lengths):
        outputs, state = jaxrnn.unroll(cell, params, inputs, lengths=lengths, reverse=True)
        return outputs, jax.tree.leaves(state)

    batch, time = jax.export.symbolic_shape("b, t")
    exported = jax.export.export(jit(read))(
        jax.ShapeDtypeStruct((batch, time, I), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    )
    if name not in ("rnn", "mgu", "lru"):  # the others are only lowered
        return
    lengths = jnp.array([T + 5, 3])  # one length is too large
    close(exported.call(inputs, lengths), jit(read)(inputs, jnp.array([T, 3])))


# Lengths


@pytest.mark.parametrize(
    ("dtype", "reverse"), [(jnp.int8, False), (jnp.int32, True), (jnp.uint32, True)]
)
def test_traced_lengths_beyond_the_end_count_as_the_end(dtype, reverse):
    cell, params, inputs = make("gru", 3, T)
    most = jnp.iinfo(dtype).max

    def read(lengths):
        def loss(inputs):
            outputs, _ = jaxrnn.unroll(cell, params, inputs, lengths=lengths, reverse=reverse)
            return jnp.sum(outputs**2), outputs

        return jax.value_and_grad(loss, has_aux=True)(inputs)

    found = jit(read)(jnp.array([most, 3, T + 1], dtype))
    close(found, jit(read)(jnp.array([T, 3, T], dtype)))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))


def test_models_of_images_clamp_lengths_too():
    inputs = jax.random.normal(KEY, (2, 4, 4))
    for model in (MLP(3, (5,)), ReNet(jaxrnn.gru(2), 3, patches=(2,))):
        read = jit(functools.partial(model.apply, random_variables(model, inputs), inputs))
        close(read(jnp.array([9, 2])), read(jnp.array([4, 2])))


# NaN


@pytest.mark.parametrize("name", ["lstm", "mgu", "lru"])
def test_a_nan_before_a_reset_does_not_outlive_it(name):
    cell, params, inputs = make(name, B, T)
    resets = np.zeros((B, T), bool)
    resets[:, 5] = True

    def later(inputs):
        outputs, state = jaxrnn.unroll(cell, params, inputs, resets=resets)
        return jnp.sum(outputs[:, 5:] ** 2), (outputs[:, 5:], state)

    gradient = jit(jax.value_and_grad(later, has_aux=True))
    value, d_inputs = gradient(inputs)
    dirty_value, d_dirty = gradient(inputs.at[:, 2].set(jnp.nan))
    close(dirty_value, value)
    close(d_dirty[:, 5:], d_inputs[:, 5:])
    if cell.recurrence is None:
        return
    # Also in log₂ T rounds, as on an accelerator.
    a, b = (jnp.full((T, B, H), value) for value in (0.5, 1.0))
    a, b = a.at[5].set(0.0), b.at[2].set(jnp.nan)
    for way in (parallel._at_once, parallel._in_turn):
        states = way(a, b, jnp.asarray(resets.T))
        assert np.isnan(states[2:5]).all()
        assert np.isfinite(states[5:]).all()


def test_a_nan_carried_in_ends_at_a_reset():
    for name in ("lstm", "lru"):
        cell, params, inputs = make(name, B, 3)
        state = jax.tree.map(lambda leaf: leaf + jnp.nan, cell.initial_state(params, (B,)))
        resets = np.array([[True, False, False]] * B)
        found = jaxrnn.unroll(cell, params, inputs, resets=resets, initial_state=state)
        close(found, jaxrnn.unroll(cell, params, inputs))


# bfloat16


@pytest.mark.parametrize("name", OF_EVERY_CODE)
def test_products_in_bfloat16_are_near_those_in_float32(name):
    cell, params, inputs = make(name, B, T)
    # At a zero state the gradient of layer normalization is too large to compare.
    state = jax.tree.map(
        lambda leaf: jax.random.normal(KEY, leaf.shape), cell.initial_state(params, (B,))
    )

    def outputs(params, **options):
        return jaxrnn.unroll(cell, params, inputs, initial_state=state, **options)[0]

    def everything(**options):
        if name not in OF_EVERY_KIND:
            return outputs(params, **options), ()
        loss = lambda params: jnp.sum(outputs(params, **options) ** 2)  # noqa: E731
        return outputs(params, **options), jax.grad(loss)(params)

    low = functools.partial(everything, dtype=jnp.bfloat16)
    ways = [None, "scan"]
    if cell.gate is None and cell.recurrence is None:  # their default is "scan"
        ways = [None]
    expected, *found = jit(lambda: (everything(), *(low(implementation=way) for way in ways)))()
    for each in found:
        assert {leaf.dtype for leaf in jax.tree.leaves(each)} == {jnp.dtype(jnp.float32)}
        for a, b in zip(jax.tree.leaves(each), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, atol=0.03 * (1 + np.abs(b).max()))
        assert np.any(each[0] != expected[0])


@pytest.mark.parametrize("name", ["lstm", "lru"])
def test_parameters_in_bfloat16_are_near_those_in_float32(name):
    cell, params, inputs = make(name, B, T)
    low = jax.tree.map(
        lambda leaf, like: leaf.astype(like.dtype), params, cell.init(KEY, I, jnp.bfloat16)
    )
    outputs, state = jaxrnn.unroll(cell, low, inputs.astype(jnp.bfloat16))
    expected, _ = jaxrnn.unroll(cell, params, inputs)
    assert jax.tree.leaves(state)[0].dtype == outputs.dtype
    np.testing.assert_allclose(outputs.astype(jnp.float32), expected, atol=0.05)


def test_layers_keep_parameters_in_float32_whatever_is_read():
    inputs = jax.random.normal(KEY, (B, T, I))
    for make_model in (
        functools.partial(Stack, jaxrnn.lstm(H), 2, bidirectional=True, residual=True),
        lambda dtype: Classifier(Stack(jaxrnn.lstm(H), dtype=dtype), 3),
        functools.partial(ReNet, jaxrnn.gru(2), 3, patches=(1,)),
    ):
        model = make_model(dtype=jnp.bfloat16)
        variables = random_variables(model, inputs.astype(jnp.bfloat16))
        outputs = jit(model.apply)(variables, inputs.astype(jnp.bfloat16))
        leaves = jax.tree.leaves((outputs, variables))
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
        exact = jax.tree.leaves(jit(make_model(dtype=None).apply)(variables, inputs))
        for a, b in zip(jax.tree.leaves(outputs), exact, strict=True):
            assert 0 < np.abs(a - b).max() < 0.05


# User-defined cells


def test_coefficients_of_a_linear_recurrence_may_lack_axes():
    recurrence = jaxrnn.Recurrence(
        lambda params, x: (params["decay"], jaxrnn.product(x, params["kernel"])),
        lambda packed, dtype: jaxrnn.RNNState(packed),
    )

    def init(key, input_size, dtype=jnp.float32):
        kernel = jax.random.normal(key, (input_size, 3), dtype)
        return {"kernel": kernel, "decay": jnp.linspace(0.1, 0.9, 3, dtype=dtype)}

    cell = jaxrnn.linear(
        recurrence, init, lambda params, batch=(): jaxrnn.RNNState(jnp.zeros((*batch, 3)))
    )
    params, inputs = cell.init(KEY, 3), jax.random.normal(KEY, (3, 3, 3))
    start = jaxrnn.RNNState(jnp.ones((3, 3)))
    resets = np.eye(3, dtype=bool)
    with jax.numpy_rank_promotion("allow"):
        for options in ({}, {"resets": resets}, {"lengths": [3, 1, 0]}):
            read = functools.partial(
                jaxrnn.unroll, cell, params, inputs, initial_state=start, **options
            )
            close(read(), read(implementation="scan"))


class Counting(NamedTuple):
    hidden: Any
    count: Any


def test_a_gated_cell_may_count_in_integers():
    plain = jaxrnn.rnn(H)
    cell = jaxrnn.gated(
        lambda params, z, state: Counting(jnp.tanh(z.h), state.count + 1),
        "h",
        plain.init,
        lambda params, batch=(): Counting(
            jnp.zeros((*batch, H)), jnp.zeros((*batch, 1), jnp.int32)
        ),
    )
    params, inputs = plain.init(KEY, I), jax.random.normal(KEY, (B, 3, I))
    options = {"lengths": [3, 2], "resets": np.zeros((B, 3), bool)}

    def gradient(cell):
        return jax.grad(lambda params: jaxrnn.unroll(cell, params, inputs, **options)[0].sum())

    close(gradient(cell)(params), gradient(plain)(params))
    _, state = jaxrnn.unroll(cell, params, inputs, **options)
    np.testing.assert_array_equal(state.count[:, 0], [3, 2])
    with pytest.raises(ValueError, match="'fused' cannot compute this: the state must be"):
        jaxrnn.unroll(cell, params, inputs, implementation="fused")


def test_a_copied_cell_is_the_same():
    cell = jaxrnn.lstm(H, peephole=True)
    assert copy.deepcopy(cell) == cell
    assert hash(copy.deepcopy(cell)) == hash(cell)


@pytest.mark.parametrize("implementation", ["fused", "scan"])
def test_no_gradient_reaches_a_probability(implementation):
    cell, params, inputs = make("gru", B, 3)

    def loss(rate, key):
        regularizer = jaxrnn.Regularizer(rate, rate, True, rate)
        return jaxrnn.unroll(
            cell, params, inputs, regularizer=regularizer, key=key, implementation=implementation
        )[0].sum()

    for key in (None, KEY):
        assert jit(jax.grad(loss))(0.3, key) == 0


# Forward mode through the layers


def test_layers_have_forward_mode_by_scan():
    inputs = jax.random.normal(KEY, (1, 2, 2))
    model = ReNet(jaxrnn.gru(2), 2, patches=(1,), implementation="scan")  # of stacks
    read = functools.partial(model.apply, random_variables(model, inputs))
    close(*jit(lambda x: (jax.jacfwd(read)(x), jax.jacrev(read)(x)))(inputs))
