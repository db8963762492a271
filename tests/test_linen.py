"""The Flax modules: parameter counts, lengths, directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.linen import RNN, Classifier

KEY = jax.random.key(0)


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_the_tutorials_model_has_its_number_of_parameters():
    model = Classifier(jaxrnn.lstm(128), num_classes=10)
    params = model.init(KEY, jnp.zeros((1, 28, 28)))["params"]
    assert count(params) == 4 * 128 * (28 + 128 + 1) + 128 * 10 + 10 == 81_674
    np.testing.assert_array_equal(params["layer_0"]["cell"].bias[128:256], 1)
    np.testing.assert_array_equal(params["readout"]["bias"], 0)


def test_rnn_is_unroll_with_the_parameters_held_by_flax():
    cell = jaxrnn.gru(6)
    inputs = jax.random.normal(KEY, (2, 5, 3))
    lengths = jnp.array([2, 5])
    layer = RNN(cell, reverse=True)
    variables = layer.init(KEY, inputs)
    actual = layer.apply(variables, inputs, lengths=lengths)
    params = variables["params"]["cell"]
    expected = jaxrnn.unroll(cell, params, inputs, lengths=lengths, reverse=True)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_prefix_is_classified_as_if_it_were_the_whole(num_layers, bidirectional):
    model = Classifier(jaxrnn.lstm(6), 4, num_layers, bidirectional)
    inputs = jax.random.normal(KEY, (3, 7, 5))
    variables = model.init(KEY, inputs)
    for length in (1, 4, 7):
        expected = model.apply(variables, inputs[:, :length])
        actual = model.apply(variables, inputs, jnp.full(3, length))
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_bidirectional_reads_the_whole_row_in_both_directions():
    model = Classifier(jaxrnn.lstm(6), 4, bidirectional=True)
    inputs = jax.random.normal(KEY, (7, 5))
    variables = model.init(KEY, inputs)
    sensitivity = jax.jacobian(lambda x: model.apply(variables, x))(inputs)
    assert jnp.abs(sensitivity).sum(axis=(0, 2)).min() > 0
    # With the readout of the forward half taken away, the last step still matters: backward's own.
    readout = variables["params"]["readout"]["kernel"].at[:6].set(0)
    variables["params"]["readout"]["kernel"] = readout
    sensitivity = jax.jacobian(lambda x: model.apply(variables, x))(inputs)
    steps = jnp.abs(sensitivity).sum(axis=(0, 2))
    assert steps[0] > steps[-1] > 0
