"""Networks that draw a sequence."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from generative import ConditionalVAE, EncoderDecoder
from random_variables import random_variables

import jaxrnn

KEY = jax.random.key(0)


def test_the_autoencoder_draws_what_its_style_says():
    model = ConditionalVAE(jaxrnn.lstm(6), 10, num_steps=5, num_features=4, style_size=2)
    inputs, labels = jax.random.uniform(KEY, (3, 5, 4)), jnp.array([1, 1, 2])
    variables = random_variables(model, inputs, labels)
    rows, nats = model.apply(variables, inputs, labels)
    assert rows.shape == inputs.shape
    assert np.all(nats > 0)
    draw = partial(model.apply, variables, method="draw")
    style = jnp.zeros((3, 2))
    drawn = draw(labels, style)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.all(drawn[0] != drawn[2])
    assert np.all(draw(labels, style + 1) != drawn)


def test_the_encoder_decoder_continues_what_it_read():
    model = EncoderDecoder(jaxrnn.lstm(6), num_steps=3, num_features=4)
    inputs = jax.random.normal(KEY, (2, 5, 4))
    variables = random_variables(model, inputs)
    sensitivity = jax.jit(jax.jacobian(model.apply, argnums=1))(variables, inputs)
    assert sensitivity.shape == (2, 3, 4, 2, 5, 4)
    depends = np.abs(sensitivity).sum((2, 5)) > 0  # [example, step drawn, example, step read]
    assert depends[0, :, 0].all()
    assert depends[1, :, 1].all()
    assert not depends[0, :, 1].any()
