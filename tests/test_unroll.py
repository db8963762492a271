"""`unroll` against plain loops, and the errors it raises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_cells import CELLS, H, I
from jax import jit

import jaxrnn

T = 7


def make(name, batch=(3,), seed=0):
    """Returns a cell, nonzero parameters, inputs and an initial state."""
    cell = CELLS[name]
    random = np.random.default_rng(seed)
    normal = lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32)  # noqa: E731
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), I))
    state = jax.eval_shape(lambda params: cell.initial_state(params, batch), params)
    params, state = jax.tree.map(lambda leaf: 0.5 * normal(leaf), (params, state))
    return cell, params, normal(jax.ShapeDtypeStruct((*batch, T, I), jnp.float32)), state


@functools.cache
def compiled(step):
    """Computes one step of some of the examples, each from its own state."""
    return jit(jax.vmap(step, (None, 0, 0)))


def loop(cell, params, inputs, state, lengths=None, resets=None, reverse=False):
    """Implements the documentation in a Python loop over examples and time steps."""
    inputs, state, fresh = jax.tree.map(
        np.asarray, (inputs, state, cell.initial_state(params, inputs.shape[:1]))
    )
    step, examples, outputs = compiled(cell.step), np.arange(len(inputs)), None

    def choose(which, this, that):
        return jax.tree.map(lambda a, b: np.where(which[:, None], a, b), this, that)

    for i in range(T):
        # The time step that each example reads now, or none past its length.
        now = np.full(len(inputs), i) if lengths is None else np.minimum(i, lengths - 1)
        reads = np.full(len(inputs), True) if lengths is None else i < lengths
        if reverse:
            now = (T if lengths is None else lengths) - 1 - now
        if resets is not None:
            state = choose(resets[examples, now] & reads, fresh, state)
        after, output = jax.tree.map(np.asarray, step(params, state, inputs[examples, now]))
        state = choose(reads, after, state)
        if outputs is None:
            outputs = np.zeros((len(inputs), T, output.shape[-1]), output.dtype)
        outputs[examples[reads], now[reads]] = output[reads]
    return outputs, state


def close(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), actual, expected)


# Lengths and resets know of a cell how it is computed and what its state is made of.
@pytest.mark.parametrize("name", ["lstm-everything", "odyssey-FGR", "gru", "min-lstm", "lru"])
def test_every_example_is_the_plain_loop_within_its_length(name):
    cell, params, inputs, state = make(name, (4,))
    lengths = np.array([0, 3, 1, T])
    resets = np.random.default_rng(5).random((4, T)) < 0.4
    read = jit(
        lambda inputs, state: [
            jaxrnn.unroll(
                cell,
                params,
                inputs,
                initial_state=state,
                lengths=lengths,
                resets=resets,
                reverse=reverse,
            )
            for reverse in (False, True)
        ]
    )
    for reverse, (outputs, final) in enumerate(read(inputs, state)):
        expected = loop(cell, params, inputs, state, lengths, resets, bool(reverse))
        close((outputs, final), expected)


def test_length_zero_gives_back_the_initial_state():
    cell, params, inputs, state = make("lstm")
    outputs, final = jaxrnn.unroll(
        cell, params, inputs, initial_state=state, lengths=jnp.zeros(3, jnp.int32)
    )
    jax.tree.map(np.testing.assert_array_equal, final, state)
    np.testing.assert_array_equal(outputs, 0)


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
def test_any_number_of_batch_axes_and_either_layout(batch):
    cell, params, inputs, state = make("lstm", batch)
    outputs, final = jaxrnn.unroll(cell, params, inputs, initial_state=state)
    assert outputs.shape == (*batch, T, H)
    flat = lambda leaf: leaf.reshape(-1, *leaf.shape[len(batch) :])  # noqa: E731
    expected = loop(cell, params, flat(inputs), jax.tree.map(flat, state))
    close(jax.tree.map(flat, (outputs, final)), expected)
    major, _ = jaxrnn.unroll(
        cell, params, jnp.moveaxis(inputs, -2, 0), initial_state=state, time_major=True
    )
    np.testing.assert_array_equal(jnp.moveaxis(major, 0, -2), outputs)


def test_what_lies_past_the_end_changes_nothing():
    cell, params, inputs, _ = make("gru")
    lengths = jnp.array([2, 5, 7])
    past = jnp.arange(T)[None, :, None] >= lengths[:, None, None]
    for reverse in (False, True):
        clean = jaxrnn.unroll(cell, params, inputs, lengths=lengths, reverse=reverse)
        dirty = jnp.where(past, 1e6, inputs)
        other = jaxrnn.unroll(cell, params, dirty, lengths=lengths, reverse=reverse)
        jax.tree.map(np.testing.assert_array_equal, clean, other)


@pytest.mark.parametrize("implementation", ["scan", "fused"])
def test_a_nan_in_the_padding_reaches_nothing(implementation):
    cell, params, inputs, _ = make("lstm")
    lengths = jnp.array([2, 5, 7])
    past = jnp.arange(T)[None, :, None] >= lengths[:, None, None]

    def loss(params, inputs):
        options = {"lengths": lengths, "implementation": implementation}
        return jaxrnn.unroll(cell, params, inputs, **options)[0].sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    dirty = gradient(params, jnp.where(past, jnp.nan, inputs))
    jax.tree.map(np.testing.assert_array_equal, dirty, gradient(params, inputs))


def test_the_same_options_give_the_same_cell():
    assert jaxrnn.lstm(8) is jaxrnn.lstm(8)
    assert jaxrnn.lstm(8) is not jaxrnn.lstm(8, forget_bias=0.0)


def test_forget_bias_is_in_the_parameters():
    params = jaxrnn.lstm(2, forget_bias=3.0).init(jax.random.key(0), 1)
    np.testing.assert_array_equal(params.bias, [0, 0, 3, 3, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": jnp.zeros(4)}, "inputs must be"),
        ({"inputs": jnp.zeros((3, T, I + 1))}, r"params must be .* for inputs of 4 features"),
        ({"memory": "keep"}, "memory must be"),
        ({"truncate": 0}, "truncate must be a positive integer"),
        ({"inputs": jnp.zeros((3, T, I), jnp.int32)}, "inputs must be floating-point"),
        ({"lengths": jnp.zeros(2, jnp.int32)}, r"lengths must have the batch's shape \(3,\)"),
        ({"lengths": jnp.zeros(3)}, "lengths must be integers"),
        ({"lengths": jnp.array([0, 1, 8])}, "lengths must lie in 0..7"),
        ({"lengths": jnp.array([0, -1, 2])}, "lengths must lie in 0..7"),
        ({"resets": jnp.zeros((3, 2), bool)}, "resets must have shape"),
        ({"resets": jnp.zeros((3, T))}, "resets must be boolean"),
        ({"initial_state": jaxrnn.GRUState(jnp.zeros((3, H)))}, "initial_state must be LSTMState"),
        ({"initial_state": (jnp.zeros((3, H)),) * 2}, "initial_state must be LSTMState"),
        ({"implementation": "fast"}, "implementation must be"),
        ({"unroll": 0}, "unroll must be a positive integer"),
    ],
)
def test_errors_name_the_argument(change, words):
    cell, params, inputs, _ = make("lstm")
    arguments = {"inputs": inputs, **change}
    with pytest.raises(ValueError, match=words):
        jaxrnn.unroll(cell, params, **arguments)


@pytest.mark.parametrize("constructor", [jaxrnn.rnn, jaxrnn.lstm, jaxrnn.gru])
def test_sizes_must_be_positive(constructor):
    with pytest.raises(ValueError, match="hidden_size must be a positive integer, got 0"):
        constructor(0)
    constructor(1)
    with pytest.raises(ValueError, match="hidden_size must be a positive integer, got True"):
        constructor(True)
    with pytest.raises(ValueError, match="cell_clip must be positive"):
        jaxrnn.lstm(3, cell_clip=-1.0)
