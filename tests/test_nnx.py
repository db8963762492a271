"""The NNX layer against flax.nnx.RNN with the same weights, and its training."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import convert
from jaxrnn.nnx import RNN

KEY = jax.random.key(0)
INPUTS = jax.random.normal(KEY, (3, 5, 2))
ZERO = jnp.zeros((3, 4))


def twins(**options):
    theirs = nnx.RNN(nnx.GRUCell(2, 4, rngs=nnx.Rngs(0)), **options)
    ours = RNN(jaxrnn.gru(4), 2, rngs=nnx.Rngs(1), **options)
    weights = nnx.to_pure_dict(nnx.state(theirs.cell, nnx.Param))
    for name, value in convert.from_nnx("gru", weights)._asdict().items():
        getattr(ours.weights, name)[...] = value
    return theirs, ours


@pytest.mark.parametrize(
    ("attributes", "call"),
    [
        ({}, {}),
        ({"reverse": True}, {"return_carry": True}),
        ({"keep_order": True, "return_carry": True}, {"reverse": True}),
        ({"time_major": True}, {}),
    ],
)
def test_rnn_goes_where_flaxs_goes(attributes, call):
    theirs, ours = twins(**attributes)
    inputs = INPUTS.swapaxes(0, 1) if attributes.get("time_major") else INPUTS
    expected = theirs(inputs, initial_carry=ZERO, **call)
    actual = ours(inputs, **call)
    if isinstance(expected, tuple):
        (carry, expected), (state, actual) = expected, actual
        np.testing.assert_allclose(state.hidden, carry, atol=1e-6)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_rnn_goes_into_flaxs_bidirectional():
    one, other = (RNN(jaxrnn.gru(4), 2, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    lengths = jnp.array([5, 2, 0])
    outputs = nnx.Bidirectional(one, other)(INPUTS, seq_lengths=lengths)
    cell = jaxrnn.gru(4)
    forward, _ = jaxrnn.unroll(cell, one.weights(), INPUTS, lengths=lengths)
    backward, _ = jaxrnn.unroll(cell, other.weights(), INPUTS, lengths=lengths, reverse=True)
    np.testing.assert_allclose(outputs, jnp.concatenate([forward, backward], -1), atol=1e-6)


def test_it_learns_under_nnx_jit():
    layer = RNN(jaxrnn.lstm(4, peephole=True), 2, rngs=nnx.Rngs(0))
    assert set(nnx.to_pure_dict(nnx.state(layer, nnx.Param))["weights"]) == {
        "kernel",
        "recurrent_kernel",
        "bias",
        "peephole",
    }
    optimizer = nnx.Optimizer(layer, optax.adam(0.03), wrt=nnx.Param)

    @nnx.jit
    def step(layer, optimizer):
        loss, gradient = nnx.value_and_grad(lambda layer: jnp.mean((layer(INPUTS) - 0.5) ** 2))(
            layer
        )
        optimizer.update(layer, gradient)
        return loss

    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        losses = [float(step(layer, optimizer)) for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]


def test_noise_until_evaluation():
    noise = jaxrnn.Regularizer(zoneout=0.5)
    layer = RNN(jaxrnn.gru(4), 2, rngs=nnx.Rngs(0), regularizer=noise)
    assert np.any(layer(INPUTS) != layer(INPUTS))
    one, same, other = (layer(INPUTS, rngs=nnx.Rngs(dropout=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.any(one != other)
    both = nnx.Bidirectional(layer, RNN(jaxrnn.gru(4), 2, rngs=nnx.Rngs(1)))
    assert np.any(both(INPUTS)[..., :4] != both(INPUTS)[..., :4])
    viewed = nnx.view(both, deterministic=True)
    still = viewed(INPUTS)
    np.testing.assert_array_equal(still, viewed(INPUTS))
    assert np.any(both(INPUTS) != still)  # the model itself is unchanged
    assert np.any(nnx.view(viewed, deterministic=False)(INPUTS) != still)
    layer.eval()
    np.testing.assert_array_equal(layer(INPUTS), still[..., :4])
    always = RNN(jaxrnn.gru(4), 2, rngs=nnx.Rngs(0), regularizer=noise, deterministic=True)
    np.testing.assert_array_equal(always(INPUTS), still[..., :4])


def test_parameters_stay_in_float32_and_resets_and_forward_mode_pass():
    layer = RNN(jaxrnn.gru(4), 2, rngs=nnx.Rngs(0), dtype=jnp.bfloat16, implementation="scan")
    low, high = INPUTS.astype(jnp.bfloat16), INPUTS
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(layer))} == {jnp.dtype(jnp.float32)}
    assert layer(low).dtype == jnp.float32
    exact = RNN(jaxrnn.gru(4), 2, rngs=nnx.Rngs(0))(high)
    assert 0 < np.abs(layer(low) - exact).max() < 0.03
    resets = np.zeros((3, 5), bool)
    resets[:, 2] = True
    np.testing.assert_allclose(layer(high, resets=resets)[:, 2:], layer(high[:, 2:]), atol=1e-6)
    fresh = jaxrnn.GRUState(ZERO + 0.5)
    np.testing.assert_allclose(
        layer(high, resets=resets, reset_state=fresh)[:, 2:],
        layer(high[:, 2:], initial_carry=fresh),
        atol=1e-6,
    )
    tangent = jax.jvp(layer, (high,), (high,))[1]
    assert tangent.shape == (3, 5, 4)


def test_a_learned_initial_state_and_parameters_of_any_tree():
    plain = jaxrnn.gru(4)

    def init(key, input_size, dtype=jnp.float32):
        return {"inner": plain.init(key, input_size, dtype)}

    cell = jaxrnn.Cell(
        init,
        lambda params, batch=(): plain.initial_state(params["inner"], batch),
        lambda params, state, x: plain.step(params["inner"], state, x),
    )
    layer = RNN(cell, 2, rngs=nnx.Rngs(0), learn_initial_state=True)
    layer.initial_state.hidden[...] = jnp.arange(4.0)
    start = jaxrnn.GRUState(jnp.broadcast_to(jnp.arange(4.0), (3, 4)))
    expected, _ = jaxrnn.unroll(plain, layer.weights()["inner"], INPUTS, initial_state=start)
    np.testing.assert_allclose(layer(INPUTS), expected, atol=1e-6)
    gradient = nnx.grad(lambda layer: layer(INPUTS).sum())(layer)
    assert np.all(nnx.to_pure_dict(gradient)["initial_state"]["hidden"] != 0)


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("^initial_carry must be GRUState", {"initial_carry": ZERO}),
        ("^seq_lengths must lie in 0..5", {"seq_lengths": [5, 6, 1]}),
        ("^inputs must be", {"inputs": jnp.zeros(2)}),
        ("^time_major must be True or False", {"time_major": "no"}),
    ],
)
def test_an_error_has_the_layers_name_of_the_argument(words, arguments):
    layer = RNN(jaxrnn.gru(4), 2, rngs=nnx.Rngs(0))
    # Without the checks of the annotations, which are active only in tests.
    call = inspect.unwrap(RNN.__call__)
    with pytest.raises(ValueError, match=words):
        call(layer, **{"inputs": INPUTS} | arguments)


def test_a_cell_of_flax_is_refused():
    cell = nnx.OptimizedLSTMCell(2, 4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"a jaxrnn.Cell, .* got OptimizedLSTMCell"):
        inspect.unwrap(RNN.__init__)(RNN.__new__(RNN), cell, 2, rngs=nnx.Rngs(0))
