"""The Flax modules: parameter counts, lengths, directions."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax import jit
from random_variables import random_variables

import jaxrnn
from jaxrnn import convert
from jaxrnn.arguments import as_dict
from jaxrnn.linen import RNN, Classifier, Stack, last_output

KEY = jax.random.key(0)


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_the_tutorials_model_has_its_number_of_parameters():
    model = Classifier(Stack(jaxrnn.lstm(128)), num_classes=10)
    params = jax.eval_shape(model.init, KEY, jnp.zeros((1, 28, 28)))["params"]
    assert count(params) == 4 * 128 * (28 + 128 + 1) + 128 * 10 + 10 == 81_674


def test_the_forget_gate_starts_open_and_the_readout_without_a_bias():
    model = Classifier(Stack(jaxrnn.lstm(2)), num_classes=3)
    params = jit(model.init)(KEY, jnp.zeros((1, 2, 3)))["params"]
    np.testing.assert_array_equal(
        params["stack"]["layer_0"]["cell"]["bias"], [0, 0, 1, 1] + 4 * [0]
    )
    np.testing.assert_array_equal(params["readout"]["bias"], 0)
    limit = (6 / (2 + 3)) ** 0.5  # Glorot & Bengio, 2010
    assert 0 < np.abs(params["readout"]["kernel"]).max() < limit


def test_rnn_is_unroll_with_the_parameters_held_by_flax():
    cell = jaxrnn.gru(6)
    inputs = jax.random.normal(KEY, (2, 5, 3))
    lengths = jnp.array([2, 5])
    layer = RNN(cell, reverse=True, keep_order=True, return_carry=True)
    variables = random_variables(layer, inputs)
    carry, outputs = layer.apply(variables, inputs, seq_lengths=lengths)
    params = variables["params"]["cell"]
    expected = jaxrnn.unroll(cell, params, inputs, lengths=lengths, reverse=True)
    jax.tree.map(np.testing.assert_array_equal, (outputs, carry), expected)


def flax_twin(**options):
    """Returns flax.linen.RNN and our layer with the same weights, as functions of the arguments."""
    inputs = jax.random.normal(KEY, (3, 5, 2))
    theirs = nn.RNN(nn.GRUCell(4), **options)
    variables = random_variables(theirs, inputs)
    params = convert.from_linen("gru", variables["params"]["cell"])
    ours = RNN(jaxrnn.gru(4), **options)
    cell = as_dict(params)
    return partial(theirs.apply, variables), partial(ours.apply, {"params": {"cell": cell}})


@pytest.mark.parametrize(
    ("attributes", "call"),
    [
        ({}, {}),
        ({"reverse": True}, {}),
        ({"reverse": True, "keep_order": True, "return_carry": True}, {}),
        ({"return_carry": True}, {"reverse": True, "return_carry": False}),
        ({"time_major": True, "unroll": 2}, {}),
        ({}, {"time_major": True, "reverse": True, "return_carry": True}),
        ({}, {"initial_carry": True, "return_carry": True}),
        ({"reverse": True}, {"seq_lengths": jnp.array([5, 2, 3]), "return_carry": True}),
    ],
)
def test_rnn_goes_where_flaxs_goes(attributes, call):
    theirs, ours = flax_twin(**attributes)
    inputs = jax.random.normal(jax.random.key(1), (3, 5, 2))
    if call.get("time_major", attributes.get("time_major")):
        inputs = inputs.swapaxes(0, 1)
    if call.get("initial_carry"):
        carry = jax.random.normal(KEY, (3, 4))
        expected = theirs(inputs, **call | {"initial_carry": carry})
        actual = ours(inputs, **call | {"initial_carry": jaxrnn.GRUState(carry)})
    else:
        expected, actual = theirs(inputs, **call), ours(inputs, **call)
    if isinstance(expected, tuple):
        (carry, expected), (state, actual) = expected, actual
        np.testing.assert_allclose(state.hidden, carry, atol=1e-6)
    if "seq_lengths" in call:  # Flax's outputs past the length are not zero
        read = np.arange(5) < np.asarray(call["seq_lengths"])[:, None]
        assert not np.any(actual[~read])
        actual, expected = actual[read], expected[read]
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_rnn_goes_into_flaxs_bidirectional():
    inputs = jax.random.normal(KEY, (3, 5, 2))
    lengths = jnp.array([5, 2, 0])
    layer = nn.Bidirectional(RNN(jaxrnn.gru(4)), RNN(jaxrnn.gru(4)))
    variables = random_variables(layer, inputs)
    outputs = layer.apply(variables, inputs, seq_lengths=lengths)
    forward, backward = (
        variables["params"][name]["cell"] for name in ("forward_rnn", "backward_rnn")
    )
    one, _ = jaxrnn.unroll(jaxrnn.gru(4), forward, inputs, lengths=lengths)
    other, _ = jaxrnn.unroll(jaxrnn.gru(4), backward, inputs, lengths=lengths, reverse=True)
    np.testing.assert_allclose(outputs, jnp.concatenate([one, other], axis=-1), atol=1e-6)


def test_rnn_goes_into_flaxs_vmap():
    inputs = jax.random.normal(KEY, (2, 3, 5, 2))
    several = nn.vmap(RNN, variable_axes={"params": 0}, split_rngs={"params": True})
    layer = several(jaxrnn.gru(4))
    variables = random_variables(layer, inputs)
    outputs = layer.apply(variables, inputs)
    for number in range(2):
        own = jax.tree.map(lambda leaf, number=number: leaf[number], variables["params"]["cell"])
        expected, _ = jaxrnn.unroll(jaxrnn.gru(4), own, inputs[number])
        np.testing.assert_allclose(outputs[number], expected, atol=1e-6)


def test_a_learned_initial_state_is_a_parameter_that_learns():
    layer = RNN(jaxrnn.lstm(4), learn_initial_state=True)
    inputs = jax.random.normal(KEY, (3, 5, 2))
    variables = random_variables(layer, inputs)
    start = variables["params"]["initial_state"]
    assert jax.tree.map(jnp.shape, start) == {"hidden": (4,), "cell": (4,)}
    gradient = jit(jax.grad(lambda params: layer.apply({"params": params}, inputs).sum()))
    assert all(np.all(leaf) for leaf in gradient(variables["params"])["initial_state"].values())
    changed = jax.tree.map(lambda leaf: leaf + 0.5, start)
    cell, params = jaxrnn.lstm(4), variables["params"]["cell"]
    state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (3, 4)), jaxrnn.LSTMState(**changed))
    np.testing.assert_array_equal(
        layer.apply({"params": {"cell": params, "initial_state": changed}}, inputs),
        jaxrnn.unroll(cell, params, inputs, initial_state=state)[0],
    )


def test_dropout_and_noise_only_with_a_key():
    inputs = jax.random.normal(KEY, (3, 5, 4))
    noise = jaxrnn.Regularizer(recurrent_dropout=0.5, tied=True)
    plain = Classifier(Stack(jaxrnn.gru(4), num_layers=2), 3)
    variables = random_variables(plain, inputs)
    expected = plain.apply(variables, inputs)
    for options in ({"dropout": 0.5}, {"regularizer": noise}):
        model = Classifier(Stack(jaxrnn.gru(4), num_layers=2, **options), 3)
        still = model.apply(variables, inputs)
        np.testing.assert_array_equal(still, expected)
        one, same, other = (
            model.apply(variables, inputs, rngs={"dropout": jax.random.key(seed)})
            for seed in (1, 1, 2)
        )
        np.testing.assert_array_equal(one, same)
        assert np.all(one != other)
        assert np.all(one != still)


def test_residual_layers_add_their_inputs_up_to_the_length():
    lengths = jnp.array([5, 1, 0])
    read = (jnp.arange(5)[None] < lengths[:, None])[..., None]
    inputs = jnp.where(read, jax.random.normal(KEY, (3, 5, 4)), jnp.nan)
    stack = Stack(jaxrnn.gru(4), residual=True)
    variables = random_variables(stack, inputs)
    outputs = stack.apply(variables, inputs, lengths)
    last = last_output(outputs, lengths)
    plain = Stack(jaxrnn.gru(4)).apply(variables, inputs, lengths)
    np.testing.assert_allclose(outputs, plain + jnp.where(read, inputs, 0.0), atol=1e-6)
    np.testing.assert_array_equal(last[:2], outputs[np.arange(2), np.asarray(lengths[:2]) - 1])
    np.testing.assert_array_equal(last[2], jnp.zeros(4))


def test_residual_layers_in_both_directions_add_them_where_each_ends():
    inputs, lengths = jax.random.normal(KEY, (3, 5, 4)), jnp.array([5, 2, 0])
    stack = Stack(jaxrnn.gru(2), num_layers=2, bidirectional=True, residual=True)
    outputs = stack.apply(random_variables(stack, inputs), inputs, lengths)
    last = last_output(outputs, lengths, bidirectional=True)
    for example, length in enumerate([5, 2]):
        np.testing.assert_array_equal(last[example, :2], outputs[example, length - 1, :2])
        np.testing.assert_array_equal(last[example, 2:], outputs[example, 0, 2:])
    assert not np.any(last[2])


def test_the_last_output_is_where_each_direction_ends():
    lengths = np.array([[4, 1, 2], [3, 4, 0]])
    outputs = np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32)
    outputs[1, 2] = 0  # as for an example of length 0
    forward, backward = np.zeros((2, 3, 6)), outputs[:, :, 0]
    for example, length in np.ndenumerate(lengths):
        forward[example] = outputs[example][length - 1]
    both = np.concatenate([forward[..., :3], backward[..., 3:]], -1)
    read = partial(last_output, jnp.array(outputs))
    np.testing.assert_array_equal(read(lengths), forward)
    np.testing.assert_array_equal(jit(read)(jnp.array(lengths)), forward)
    np.testing.assert_array_equal(read(lengths, bidirectional=True), both)
    np.testing.assert_array_equal(read(), outputs[:, :, -1])
    both = np.concatenate([outputs[:, :, -1, :3], backward[..., 3:]], -1)
    np.testing.assert_array_equal(read(bidirectional=True), both)


@pytest.mark.parametrize("learn", [False, True])
def test_a_stack_reads_on_where_it_stopped(learn):
    stack = Stack(jaxrnn.lstm(8), num_layers=2, residual=True, learn_initial_state=learn)
    model = Classifier(stack, 3)
    inputs = jax.random.normal(KEY, (3, 6, 8))
    variables = random_variables(model, inputs)
    read = jit(partial(model.apply, return_carry=True))
    carry = None
    for step in range(6):
        carry, logits = read(variables, inputs[:, step : step + 1], initial_carry=carry)
    whole = jit(model.apply)(variables, inputs)
    np.testing.assert_allclose(logits, whole, atol=1e-5)


def test_parameters_take_the_dtype_asked_for_and_inputs_are_cast():
    images = np.ones((2, 4, 5), np.uint8)
    low = {"cell": jaxrnn.gru(3), "param_dtype": jnp.bfloat16}
    for layer in (RNN(**low), Stack(**low), Classifier(Stack(**low), num_classes=2)):
        leaves = jax.tree.leaves(jax.eval_shape(layer.init_with_output, KEY, images))
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}
    layer = RNN(jaxrnn.gru(3))
    variables = random_variables(layer, images)
    np.testing.assert_array_equal(
        layer.apply(variables, images), layer.apply(variables, images.astype(np.float32))
    )


def test_flaxs_tools_know_their_way_in_the_parameters():
    model = Classifier(Stack(jaxrnn.lstm(3), 1, True, learn_initial_state=True), 2)
    params = random_variables(model, jnp.zeros((1, 2, 4)))["params"]
    flat = traverse_util.flatten_dict(params, sep="/")
    layers = [f"stack/layer_0{side}" for side in ("", "_reverse")]
    assert flat.keys() == {
        *[f"{at}/cell/{name}" for at in layers for name in ("kernel", "recurrent_kernel", "bias")],
        *[f"{at}/initial_state/{name}" for at in layers for name in ("hidden", "cell")],
        "readout/kernel",
        "readout/bias",
    }
    assert all(isinstance(leaf, jax.Array) for leaf in flat.values())
    decayed = traverse_util.path_aware_map(lambda path, _: path[-1].endswith("kernel"), params)
    assert not decayed["stack"]["layer_0"]["cell"]["bias"]
    assert decayed["stack"]["layer_0"]["cell"]["recurrent_kernel"]


@pytest.mark.parametrize("residual", [False, True])
def test_both_directions_give_and_take_their_carry(residual):
    """As in flax.linen.Bidirectional, one pair per layer of the last states of both directions."""
    cell, inputs = jaxrnn.gru(3), jax.random.normal(KEY, (2, 5, 6))
    model = Stack(cell, 2, bidirectional=True, residual=residual)
    variables = random_variables(model, inputs)
    read = partial(model.apply, variables, inputs, [5, 2], return_carry=True)
    carry, outputs = read()
    assert jax.tree.map(jnp.shape, carry) == ((jaxrnn.GRUState((2, 3)),) * 2,) * 2
    params = variables["params"]["layer_0"]["cell"], variables["params"]["layer_0_reverse"]["cell"]
    for own, found, reverse in zip(params, carry[0], (False, True), strict=True):
        _, expected = jaxrnn.unroll(cell, own, inputs, lengths=[5, 2], reverse=reverse)
        np.testing.assert_allclose(found.hidden, expected.hidden, atol=1e-6)
    _, other = read(initial_carry=carry)
    assert np.any(other[0] != outputs[0])
    zero = jax.tree.map(jnp.zeros_like, carry)
    np.testing.assert_array_equal(read(initial_carry=zero)[1], outputs)


def test_every_step_says_what_a_prefix_would():
    inputs = jax.random.normal(KEY, (3, 3, 4))
    in_step = Classifier(Stack(jaxrnn.lstm(6)), 3, every_step=True)
    at_the_end = Classifier(Stack(jaxrnn.lstm(6)), 3)
    variables = random_variables(in_step, inputs)
    logits = in_step.apply(variables, inputs)
    assert logits.shape == (3, 3, 3)
    for t in range(3):
        expected = at_the_end.apply(variables, inputs[:, : t + 1])
        np.testing.assert_allclose(logits[:, t], expected, atol=1e-5)


@pytest.mark.parametrize(("num_layers", "bidirectional"), [(1, False), (2, True)])
def test_a_prefix_is_classified_as_if_it_were_the_whole(num_layers, bidirectional):
    model = Classifier(Stack(jaxrnn.lstm(6), num_layers, bidirectional), 4)
    inputs = jax.random.normal(KEY, (3, 4, 5))
    variables = random_variables(model, inputs)
    read = jit(model.apply)
    for length in (1, 3):
        expected = read(variables, inputs[:, :length])
        actual = read(variables, inputs, jnp.full(3, length))
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_bidirectional_reads_the_whole_sequence_in_both_directions():
    model = Classifier(Stack(jaxrnn.lstm(6), bidirectional=True), 4)
    inputs = jax.random.normal(KEY, (7, 5))
    variables = random_variables(model, inputs)
    jacobian = jit(jax.jacobian(model.apply, argnums=1))

    def sensitivity(variables):
        return jnp.abs(jacobian(variables, inputs)).sum(axis=(0, 2))

    assert sensitivity(variables).min() > 0
    # Without the readout of the forward half, the logits still depend on the last step, through the
    # backward direction.
    readout = variables["params"]["readout"]["kernel"].at[:6].set(0)
    variables["params"]["readout"]["kernel"] = readout
    steps = sensitivity(variables)
    assert steps[0] > steps[-1] > 0


def test_the_readout_has_dtypes_of_its_own():
    inputs = jnp.ones((1, 2, 3))
    low = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}

    def dtype(model):
        variables = jax.eval_shape(model.init, KEY, inputs)
        return variables["params"]["readout"]["kernel"].dtype

    assert dtype(Classifier(Stack(jaxrnn.gru(2), **low), 2)) == jnp.bfloat16
    assert dtype(Classifier(Stack(jaxrnn.gru(2), **low), 2, param_dtype=jnp.float32)) == jnp.float32
    exact = Classifier(Stack(jaxrnn.gru(2)), 2)
    variables = random_variables(exact, inputs)
    expected = jit(exact.apply)(variables, inputs)
    for model in (
        Classifier(Stack(jaxrnn.gru(2)), 2, dtype=jnp.bfloat16),
        Classifier(Stack(jaxrnn.gru(2), dtype=jnp.bfloat16), 2, dtype=jnp.float32),
    ):
        actual = jit(model.apply)(variables, inputs)
        assert 0 < np.abs(actual - expected).max() < 0.05


def test_a_reset_separates_episodes_in_both_directions():
    """A stack reads the episodes of one sequence as it reads each of them alone."""
    # An example, the start and the end of each episode. The reset at the end of the second example
    # is in its padding.
    episodes = np.array([[0, 0, 2], [0, 2, 3], [0, 3, 6], [1, 0, 3], [1, 3, 4]])
    example, start, end = episodes.T
    resets = np.zeros((2, 6), bool)
    resets[example, start] = resets[1, 4] = True
    resets[:, 0] = [True, False]
    lengths = np.array([6, 4])
    cell = jaxrnn.lstm(3)
    stack = Stack(cell, num_layers=2, bidirectional=True)
    inputs = jax.random.normal(KEY, (2, 6, 2))
    variables = random_variables(stack, inputs)
    # The forward direction of the second example continues from its initial carry, and the backward
    # direction of both does.
    ones = jaxrnn.LSTMState(jnp.ones((2, 3)), jnp.ones((2, 3)))
    carry = ((ones, ones), (ones, ones))
    kept = (example == 1) & (start == 0), end == lengths[example]
    alone = tuple(
        jax.tree.map(lambda leaf, keep=keep: jnp.zeros((5, 3)) + 1.0 * keep[:, None], ones)
        for keep in kept
    )
    position = np.minimum(start[:, None] + np.arange(6), 5)
    taken = np.arange(6) < (end - start)[:, None]

    def together(variables, inputs):
        return stack.apply(variables, inputs, lengths, resets=resets, initial_carry=carry)

    def apart(variables, inputs):
        each = inputs[example[:, None], position]
        outputs = stack.apply(variables, each, end - start, initial_carry=(alone, alone))
        at = example[:, None].repeat(6, 1)[taken], position[taken]
        return jnp.zeros((2, 6, 6)).at[at].set(outputs[taken])

    def loss_of(read):
        weights = jax.random.normal(jax.random.key(1), (2, 6, 6))

        def loss(*arguments):
            outputs = read(*arguments)
            return jnp.sum(outputs * weights), outputs

        return jit(jax.grad(loss, (0, 1), has_aux=True))

    found, expected = (loss_of(read)(variables, inputs) for read in (together, apart))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), found, expected)


def test_named_tuples_are_taken_as_parameters():
    inputs = jax.random.normal(KEY, (3, 5, 2))
    layer = RNN(jaxrnn.lstm(4, projection_size=3), learn_initial_state=True)
    variables = random_variables(layer, inputs)
    named = {
        "cell": jaxrnn.LSTMParams(**variables["params"]["cell"]),
        "initial_state": jaxrnn.LSTMState(**variables["params"]["initial_state"]),
    }
    found = layer.apply({"params": named}, inputs)
    np.testing.assert_array_equal(found, layer.apply(variables, inputs))


LSTM = jaxrnn.lstm(4)


@pytest.mark.parametrize(
    ("layer", "words", "arguments"),
    [
        (RNN(LSTM), r"inputs must be \[..., T, I\]", {"inputs": jnp.zeros(2)}),
        (RNN(LSTM), "initial_carry must be LSTMState", {"initial_carry": (jnp.zeros((3, 4)),) * 2}),
        (Stack(LSTM), "initial_carry must be LSTMState", {"initial_carry": (jnp.zeros((3, 4)),)}),
        *[
            (layer, words, arguments)
            for layer in (RNN(LSTM), Stack(LSTM), Classifier(Stack(LSTM), 2))
            for words, arguments in (
                (r"^seq_lengths must lie in 0..5", {"seq_lengths": [5, 6, 1]}),
                (r"^seq_lengths must have the batch's shape \(3,\)", {"seq_lengths": [5]}),
                (r"^resets must have shape \(3, 5\)", {"resets": [True]}),
            )
        ],
        *[
            (layer(nn.OptimizedLSTMCell(4)), r"jaxrnn.lstm\(64\), got OptimizedLSTMCell", {})
            for layer in (RNN, Stack)
        ],
    ],
)
def test_an_error_has_the_layers_name_of_the_argument(layer, words, arguments):
    arguments = {"inputs": jnp.zeros((3, 5, 2))} | arguments
    with pytest.raises(ValueError, match=words):
        layer.init(KEY, **arguments)


def test_blocks_of_time_are_the_whole_sequence():
    """With a first block of another size, lengths, resets, a learned start and residuals."""
    time, block = 11, 4
    stack = Stack(jaxrnn.rnn(3), num_layers=2, residual=True, learn_initial_state=True)
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(2, 3, time, 3)), jnp.float32)
    lengths = jnp.array([[time, 0, 5], [4, 9, 7]])
    resets = jnp.asarray(rng.random((2, 3, time)) < 0.2)
    variables = random_variables(stack, inputs)

    def run(stack):
        def loss(variables, inputs):
            carry, outputs = stack.apply(
                variables, inputs, lengths, resets=resets, return_carry=True
            )
            return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves((carry, outputs))), outputs

        return jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables, inputs)

    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5),
        run(stack.clone(block=block)),
        run(stack),
    )


def test_blocks_of_time_draw_new_masks_in_each_block():
    stack = Stack(jaxrnn.rnn(8), num_layers=2, dropout=0.5, block=2)
    inputs = jnp.ones((1, 6, 8))
    variables = stack.init(KEY, inputs)
    # The second layer adds up what the first lets through, as nothing else depends on time.
    kernels = {"kernel": jnp.eye(8), "recurrent_kernel": jnp.zeros((8, 8)), "bias": jnp.zeros(8)}
    variables = {"params": {layer: {"cell": kernels} for layer in variables["params"]}}
    (outputs,) = stack.apply(variables, inputs, rngs={"dropout": KEY})
    kept = {tuple(np.asarray(step) > 0) for step in outputs}
    assert len(kept) == 6


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("block must be a positive integer", {"block": 0}),
        ("block must be None with bidirectional", {"block": 2, "bidirectional": True}),
        ("block must be None with bidirectional", {"block": 2, "truncate": 2}),
        (
            "block must be None with bidirectional",
            {"block": 2, "regularizer": jaxrnn.Regularizer(zoneout=0.1)},
        ),
    ],
)
def test_blocks_of_time_are_refused(words, options):
    with pytest.raises(ValueError, match=words):
        Stack(LSTM, **options).init(KEY, jnp.ones((1, 4, 3)))
