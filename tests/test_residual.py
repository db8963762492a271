"""Residual blocks and the classifier of their mean over time."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, jit
from random_variables import random_variables

import jaxrnn
from jaxrnn.residual import ResidualBlock, ResidualClassifier

T, D, C = 5, 4, 3
KEY = jax.random.key(0)
INPUTS = np.random.default_rng(0).normal(size=(4, T, 2)).astype(np.float32)
LENGTHS = np.array([T, 3, 1, 0])
MODEL = ResidualClassifier(jaxrnn.s5(D), num_classes=C, features=D, num_layers=2)
VARIABLES = random_variables(MODEL, INPUTS)
# Five steps become two of three and two steps.
STRIDED = MODEL.copy(stride=3, stem=jaxrnn.s5(D, stride=3))


def test_a_block_is_its_equations():
    block = ResidualBlock(jaxrnn.min_gru(D))
    inputs = jnp.asarray(np.random.default_rng(1).normal(size=(T, 2, D)), jnp.float32)
    variables = random_variables(block, inputs)
    params = variables["params"]
    x = np.asarray(inputs)
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    normal = normal * np.asarray(params["norm"]["scale"]) + np.asarray(params["norm"]["bias"])
    cell = params["layer"]["cell"] | {"recurrent_kernel": None}
    y, _ = jaxrnn.unroll(block.cell, jaxrnn.RNNParams(**cell), normal, time_major=True)
    z = np.asarray(y) @ np.asarray(params["gate"]["kernel"]) + np.asarray(params["gate"]["bias"])
    expected = x + np.asarray(y) / (1 + np.exp(-z))
    np.testing.assert_allclose(jit(block.apply)(variables, inputs), expected, atol=1e-5)


@pytest.mark.parametrize(
    "model", [MODEL, STRIDED, MODEL.copy(stride=3)], ids=["blocks", "stem", "strided"]
)
def test_each_example_is_classified_as_if_alone(model):
    """So is one without steps. A NaN in the padding changes neither logits nor gradient."""
    variables = random_variables(model, INPUTS)

    @jit
    def run(variables, inputs, lengths):
        def loss(variables):
            logits = model.apply(variables, inputs, lengths)
            return (logits**2).sum(), logits

        return jax.grad(loss, has_aux=True)(variables)

    past = np.arange(T) >= LENGTHS[:, None]
    gradient, logits = run(variables, np.where(past[..., None], np.nan, INPUTS), LENGTHS)
    for length, inputs, found in zip(LENGTHS, INPUTS, logits, strict=True):
        if length:
            alone = jit(model.apply)(variables, inputs[:length])
            np.testing.assert_allclose(found, alone, atol=1e-5)
    np.testing.assert_allclose(logits[-1], variables["params"]["readout"]["bias"], atol=1e-6)
    clean, _ = run(variables, INPUTS, LENGTHS)
    compare = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)  # noqa: E731
    jax.tree.map(compare, gradient, clean)


def test_the_stem_reads_every_time_step():
    """The blocks take its outputs after every third step; zeros complete the last three."""
    variables = random_variables(STRIDED, INPUTS)
    params = variables["params"]
    inputs = jnp.pad(INPUTS, ((0, 0), (0, 1), (0, 0)))
    stem = jaxrnn.S5Params(**params["stem"]["cell"])
    outputs, _ = jaxrnn.unroll(jaxrnn.s5(D), stem, inputs)
    hidden = outputs[:, 2::3].transpose(1, 0, 2)
    for number in range(2):
        hidden = ResidualBlock(MODEL.cell).apply({"params": params[f"block_{number}"]}, hidden)
    readout = nn.Dense(C).bind({"params": params["readout"]})
    found = STRIDED.apply(variables, INPUTS)
    np.testing.assert_allclose(found, readout(hidden.mean(0)), atol=1e-5)


def test_the_dropout_mask_is_that_of_all_steps():
    block = ResidualBlock(jaxrnn.min_gru(D), dropout=0.5)
    inputs = jnp.asarray(np.random.default_rng(1).normal(size=(T, 8, D)), jnp.float32)
    variables = random_variables(block, inputs)
    plain, dropped = jit(
        lambda key: (
            block.apply(variables, inputs),
            block.apply(variables, inputs, rngs={"dropout": key}),
        )
    )(KEY)
    ratio = (dropped - inputs) / (plain - inputs)
    np.testing.assert_allclose(ratio, np.broadcast_to(np.round(ratio[:1]), ratio.shape), atol=1e-2)
    assert set(np.unique(np.round(ratio))) == {0, 2}


@pytest.mark.parametrize("model", [MODEL, STRIDED], ids=["dense", "strided"])
def test_sizes_may_be_zero_or_symbolic(model):
    variables = random_variables(model, INPUTS)
    bias = variables["params"]["readout"]["bias"]
    for batch, time in ((0, T), (2, 0), (0, 0)):
        logits = model.apply(variables, jnp.zeros((batch, time, 2)))
        np.testing.assert_array_equal(logits, np.broadcast_to(bias, (batch, C)))
    shape = jax.ShapeDtypeStruct(export.symbolic_shape("b, t, 2"), jnp.float32)
    exported = export.export(jit(model.apply))(variables, shape)
    expected = jit(model.apply)(variables, INPUTS)
    np.testing.assert_allclose(exported.call(variables, INPUTS), expected, atol=1e-5)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="stem must have features=4 output features, got 5"):
        jax.eval_shape(MODEL.copy(stem=jaxrnn.s5(5)).init, KEY, INPUTS)
    with pytest.raises(ValueError, match="cell must have 3 output features like the inputs, got 4"):
        jax.eval_shape(MODEL.copy(features=3).init, KEY, INPUTS)
    with pytest.raises(ValueError, match=r"dropout must be a number in"):
        jax.eval_shape(MODEL.copy(dropout=1.5).init, KEY, INPUTS)
    with pytest.raises(ValueError, match="stride must be a positive integer, got 0"):
        jax.eval_shape(MODEL.copy(stride=0).init, KEY, INPUTS)
    with pytest.raises(ValueError, match="a multiple of stride=4, got 6"):
        jax.eval_shape(STRIDED.copy(stem=jaxrnn.s5(D, stride=4)).init, KEY, INPUTS)
    with pytest.raises(ValueError, match="seq_lengths must"):
        jax.eval_shape(lambda: MODEL.init(KEY, INPUTS, LENGTHS[:2]))


def test_products_in_bfloat16_keep_the_dtype_of_the_parameters():
    logits = jax.eval_shape(MODEL.copy(dtype=jnp.bfloat16).apply, VARIABLES, INPUTS)
    assert (logits.shape, logits.dtype) == ((4, C), jnp.float32)
    block = ResidualBlock(MODEL.cell, dtype=jnp.bfloat16)
    inputs = jax.ShapeDtypeStruct((T, 2, D), jnp.float32)
    outputs, _ = jax.eval_shape(block.init_with_output, KEY, inputs)
    assert outputs.dtype == jnp.float32
