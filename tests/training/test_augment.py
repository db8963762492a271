"""Random distortions of images."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import training
from jaxrnn.training import data
from jaxrnn.training.augment import Distortion

STILL = Distortion(rotation=0, scale=0, shear=0, shift=0, elastic=0)
COUNT, SIDE = 300, 28
MIDDLE = (SIDE - 1) / 2


@pytest.fixture(autouse=True)
def _promotion():
    """Optax and map_coordinates need the standard dtype promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def blobs(row, column):
    """Images that all show the same round blob."""
    rows, columns = np.indices((SIDE, SIDE))
    one = np.exp(-((rows - MIDDLE - row) ** 2 + (columns - MIDDLE - column) ** 2) / 4)
    return jnp.broadcast_to(jnp.asarray(one, jnp.float32), (COUNT, SIDE, SIDE))


def centres(images):
    """Returns the centres of mass relative to the middle, [N, 2]."""
    images, places = np.asarray(images), np.arange(SIDE) - MIDDLE
    mass = images.sum((1, 2))
    return np.stack([images.sum(2) @ places, images.sum(1) @ places], 1) / mass[:, None]


def test_without_amounts_images_are_unchanged():
    images = blobs(3, -2)
    np.testing.assert_allclose(STILL(jax.random.key(0), images), images, atol=1e-5)


def test_rotation_is_about_the_middle_and_by_the_given_angle():
    turned = centres(STILL._replace(rotation=7.0)(jax.random.key(0), blobs(0, 8)))
    np.testing.assert_allclose(np.hypot(*turned.T), 8, atol=0.1)
    angles = np.rad2deg(np.arctan2(*turned.T))
    assert abs(angles.mean()) < 1.5
    assert 6 < angles.std() < 8


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"shift": 1.5}, (1.5, 1.5)),
        ({"scale": 0.1}, (0.8, 0.4)),  # of the distances 8 and 4
        ({"shear": 0.1}, (0.4, 0.0)),  # rows move with their column
        ({"elastic": 1.0, "grid": 1}, (1.0, 1.0)),
    ],
)
def test_amounts_are_standard_deviations(change, expected):
    moved = centres(STILL._replace(**change)(jax.random.key(1), blobs(8, 4)))
    np.testing.assert_allclose(moved.std(0), expected, rtol=0.2, atol=0.02)


def test_elastic_maps_move_neighbours_alike_and_distant_pixels_apart():
    bent = STILL._replace(elastic=1.0)
    key = jax.random.key(2)
    here, near, far = (centres(bent(key, blobs(8, c)))[:, 0] for c in (8, 7, -8))
    assert np.corrcoef(here, near)[0, 1] > 0.9
    assert abs(np.corrcoef(here, far)[0, 1]) < 0.3


@pytest.mark.parametrize("order", ["columns", "permuted"])
def test_sequences_are_distorted_as_the_images_that_they_read(order):
    images = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE), np.uint8)
    key = jax.random.key(0)
    expected = data.sequences(np.asarray(Distortion()(key, training.scale(images))), order)
    found = Distortion(order=order)(key, training.scale(data.sequences(images, order)))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("order", "shape"),
    [("rows", (14, 56)), ("rows", (784, 1)), ("pixels", (28, 28)), ("pixels", (785, 1))],
)
def test_what_does_not_read_square_images_is_refused(order, shape):
    with pytest.raises(ValueError, match=f"square images by {order}, got"):
        Distortion(order=order)(jax.random.key(0), jnp.zeros((2, *shape)))


def test_the_loss_distorts_only_with_a_key_and_smooths_labels():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, images):
            return nn.Dense(3)(images.reshape(len(images), -1))

    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE), np.uint8))
    batch = images, jnp.array([0, 1, 2, 0], jnp.uint8)
    model, key = Model(), jax.random.key(0)
    params = model.init(key, training.scale(images))["params"]
    plain = training.cross_entropy(model, params, batch)
    loss = training.AugmentedCrossEntropy(Distortion())
    np.testing.assert_allclose(loss(model, params, batch), plain, rtol=1e-5)
    assert loss(model, params, batch, key) != pytest.approx(float(plain), rel=1e-3)
    logits = np.asarray(model.apply({"params": params}, training.scale(images)))
    targets = 0.9 * np.eye(3)[batch[1]] + 0.1 / 3
    expected = -(targets * np.asarray(jax.nn.log_softmax(logits))).sum(-1).mean()
    smooth = training.AugmentedCrossEntropy(smoothing=0.1)(model, params, batch)
    np.testing.assert_allclose(smooth, expected, rtol=1e-5)


def test_mixup_is_a_mixture_of_two_images_and_of_their_labels():
    random = np.random.default_rng(0)
    kernel = jnp.asarray(random.normal(size=(3, 4)), jnp.float32)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, sequences):
            return sequences[:, 0] @ kernel

    inputs = jnp.asarray(random.normal(size=(5, 1, 3)), jnp.float32)
    batch = inputs, jnp.array([0, 1, 2, 3, 0])
    one_hot = np.eye(4)[batch[1]]

    def loss(mixup, key=None):
        return float(training.AugmentedCrossEntropy(mixup=mixup)(Model(), {}, batch, key))

    def expected(share):
        mix = lambda values: share * values + (1 - share) * np.roll(values, 1, axis=0)  # noqa: E731
        log_probabilities = jax.nn.log_softmax(mix(np.asarray(inputs)[:, 0]) @ np.asarray(kernel))
        return -(mix(one_hot) * np.asarray(log_probabilities)).sum(-1).mean()

    assert loss(0.2) == pytest.approx(expected(1.0), rel=1e-5)
    keys = jax.random.split(jax.random.key(0), 20)
    # The share has the standard deviation 1 / √(8·α + 4) about a half.
    for key in keys[:3]:
        assert loss(1e6, key) == pytest.approx(expected(0.5), rel=1e-2)
    assert np.std([loss(0.2, key) for key in keys]) > 0.01
