"""Networks that read a sequence as an image."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from baselines import CNN, MLP, convolve
from random_variables import random_variables

import jaxrnn
from jaxrnn.renet import ReNet, ReNetLayer

KEY = jax.random.key(0)


def test_an_image_that_is_too_narrow_is_an_error():
    with pytest.raises(ValueError, match="at least 4 time steps of 4 features, got 784 of 1"):
        jax.eval_shape(CNN(3).init, KEY, jnp.zeros((2, 784, 1)))


@pytest.mark.parametrize("model", [MLP(3), CNN(3), ReNet(jaxrnn.gru(4), 3)])
def test_networks_of_images_classify_and_read_no_further_than_the_length(model):
    inputs = jax.random.normal(KEY, (2, 28, 28))
    variables = random_variables(model, inputs)
    lengths = jnp.array([28, 10])
    read = jax.jit(model.apply)
    logits = read(variables, inputs, lengths)
    assert logits.shape == (2, 3)
    changed = read(variables, inputs.at[:, 10:].add(1.0), lengths)
    assert np.all(changed[0] != logits[0])
    np.testing.assert_array_equal(changed[1], logits[1])
    blank = read(variables, inputs.at[1, 10:].set(0.0), jnp.array([28, 28]))
    np.testing.assert_array_equal(blank, logits)


@pytest.mark.parametrize("window", [(3, 3), (1, 4)])
def test_the_cnns_convolution_is_flaxs(window):
    images = jax.random.normal(KEY, (2, 7, 6, 3))
    theirs, ours = (
        nn.Conv(5, window, conv_general_dilated=function) for function in (None, convolve)
    )
    variables = random_variables(theirs, images)

    def curved(layer):
        function = lambda variables, images: jnp.sin(layer.apply(variables, images)).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(function, (0, 1)))(variables, images)

    expected, actual = curved(theirs), curved(ours)
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_sweep_reads_columns_of_patches_and_then_rows():
    """Against steps of the cell, place by place."""
    cell, image = jaxrnn.gru(3), jax.random.normal(KEY, (2, 6, 4, 2))
    layer = ReNetLayer(cell, patch=2)
    variables = random_variables(layer, image)
    params = {
        name + layer.removeprefix("layer_0"): jaxrnn.GRUParams(**own["cell"])
        for name, stack in variables["params"].items()
        for layer, own in stack.items()
    }

    def read(name, line):
        state, outputs = cell.initial_state(params[name], (2,)), []
        for place in line:
            state, output = cell.step(params[name], state, place)
            outputs.append(output)
        return outputs

    def both_ways(name, line):
        backward = read(f"{name}_reverse", line[::-1])[::-1]
        return [jnp.concatenate(pair, -1) for pair in zip(read(name, line), backward, strict=True)]

    patches = [
        [image[:, top : top + 2, left : left + 2].reshape(2, -1) for top in (0, 2, 4)]
        for left in (0, 2)
    ]
    columns = [both_ways("column", line) for line in patches]
    rows = [both_ways("row", list(line)) for line in zip(*columns, strict=True)]
    found = layer.apply(variables, image)
    assert found.shape == (2, 3, 2, 6)
    np.testing.assert_allclose(found, jnp.array(rows).transpose(2, 0, 1, 3), atol=1e-5)


def test_every_place_has_seen_the_whole_image():
    layer, image = ReNetLayer(jaxrnn.lstm(3), patch=2), jax.random.normal(KEY, (6, 6, 1))
    variables = random_variables(layer, image)
    seen = jax.jit(jax.jacobian(lambda image: layer.apply(variables, image).sum(-1)))(image)
    assert seen.shape == (3, 3, 6, 6, 1)
    assert np.all(seen != 0)


def test_renets_noise_is_for_training():
    image = jax.random.normal(KEY, (2, 8, 8))
    model = ReNet(jaxrnn.gru(4), 3, patches=(4, 1), dropout=0.5)
    variables = random_variables(model, image)
    read = jax.jit(model.apply)
    quiet = jax.jit(ReNet(jaxrnn.gru(4), 3, patches=(4, 1)).apply)(variables, image)
    np.testing.assert_array_equal(read(variables, image), quiet)
    assert np.all(read(variables, image, rngs={"dropout": KEY}) != quiet)


def test_patches_fill_the_image():
    model = ReNet(jaxrnn.gru(4), 3, patches=(2, 4))
    with pytest.raises(ValueError, match="patch must divide height 3 and width 4, got 4"):
        jax.eval_shape(model.init, KEY, jnp.zeros((1, 6, 8)))
