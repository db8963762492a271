"""The training functions: one step by hand, chunks, evaluation, beliefs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick_jit import jit

import jaxrnn
from jaxrnn.linen import Classifier, Stack
from jaxrnn.training import train

MODEL = Classifier(Stack(jaxrnn.lstm(8)), num_classes=3)
OPTIMIZER = train.optimizer(1e-2)
MESH = train.make_mesh(1)


pytestmark = pytest.mark.usefixtures("standard_promotion")


def new_state():
    return train.create_state(MODEL, OPTIMIZER, jax.random.key(0), jnp.zeros((1, 6, 5)))


@pytest.fixture(scope="module")
def examples():
    """A task that can be learned: the label is the brightest of three bands."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90, dtype=np.uint8)
    sequences = rng.integers(0, 80, (90, 6, 5), dtype=np.uint8)
    for sequence, label in zip(sequences, labels, strict=True):
        sequence[2 * label : 2 * label + 2] += 120
    return jnp.asarray(sequences), jnp.asarray(labels)


def test_a_step_is_adam_on_the_mean_cross_entropy(examples):
    sequences, labels = examples[0][:10], examples[1][:10]
    state = new_state()

    def loss(params):
        logits = MODEL.apply({"params": params}, sequences / 255)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(10), labels])

    value, grads = jax.jit(jax.value_and_grad(loss))(state.params)
    # Adam's first step from zero moments is learning_rate * g / (|g| + eps).
    expected = jax.tree.map(lambda p, g: p - 1e-2 * g / (jnp.abs(g) + 1e-8), state.params, grads)
    after, actual = jax.jit(train.train_step, static_argnums=(0, 1))(
        MODEL, OPTIMIZER, state, (sequences, labels)
    )
    assert after.step == 1
    np.testing.assert_allclose(actual, value, rtol=1e-5)
    for a, b, g in zip(*map(jax.tree.leaves, (after.params, expected, grads)), strict=True):
        np.testing.assert_allclose(a, b, atol=float(2e-6 + 1e-2 * (jnp.abs(g) < 1e-6).any()))


@pytest.mark.parametrize("slices", [2, 5])
def test_a_batch_in_slices_makes_the_same_gradient(examples, slices):
    batch, state = (examples[0][:10], examples[1][:10]), new_state()
    optimizer = optax.sgd(1.0)  # whose step is the gradient
    state = state.replace(opt_state=optimizer.init(state.params))
    step = jax.jit(train.train_step, static_argnums=(0, 1), static_argnames="slices")
    whole, loss = step(MODEL, optimizer, state, batch)
    parts, same = step(MODEL, optimizer, state, batch, slices=slices)
    np.testing.assert_allclose(same, loss, rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (parts.params, whole.params)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_slices_draw_their_own_noise():
    model = Classifier(Stack(jaxrnn.lstm(4), num_layers=2, dropout=0.5), num_classes=3)
    one = jnp.full((1, 6, 5), 100, jnp.uint8)
    batch = jnp.concatenate([one, one]), jnp.array([1, 1], jnp.uint8)
    seen = []

    def loss_fn(model, params, batch, key):
        jax.debug.callback(lambda value: seen.append(float(value)), jax.random.uniform(key))
        return train.cross_entropy(model, params, batch, key)

    state = train.create_state(model, OPTIMIZER, jax.random.key(0), jnp.zeros((1, 6, 5)))
    key = jax.random.key(1)
    step = partial(train.train_step, model, OPTIMIZER, loss_fn=loss_fn, slices=2)
    jax.jit(step)(state, batch, key=key)
    jax.effects_barrier()
    assert len(set(seen)) == 2


def test_chunks_cut_anywhere_make_the_same_steps(examples):
    indices = np.arange(60, dtype=np.int32).reshape(6, 10)
    whole, losses = train.train_chunk(MODEL, OPTIMIZER, MESH, new_state(), examples, indices)
    part, first = train.train_chunk(MODEL, OPTIMIZER, MESH, new_state(), examples, indices[:2])
    part, second = train.train_chunk(MODEL, OPTIMIZER, MESH, part, examples, indices[2:])
    assert whole.step == part.step == 6
    np.testing.assert_allclose(losses, np.concatenate([first, second]), rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (whole.params, part.params)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_batch_shared_by_two_devices_makes_the_same_steps(examples):
    indices = np.arange(60, dtype=np.int32).reshape(6, 10)
    one, losses = train.train_chunk(MODEL, OPTIMIZER, MESH, new_state(), examples, indices)
    mesh = train.make_mesh(2)
    assert mesh.size == 2
    arguments = train.replicate((new_state(), examples), mesh)
    two, shared = train.train_chunk(MODEL, OPTIMIZER, mesh, *arguments, indices)
    np.testing.assert_allclose(losses, shared, rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (one.params, two.params)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    for count in (90, 89, 1):  # 89 needs a row of padding
        some = examples[0][:count]
        np.testing.assert_allclose(
            train.logits(MODEL, mesh, two.params, some),
            train.logits(MODEL, MESH, jax.device_get(two.params), some),
            atol=1e-5,
        )


def test_it_learns(examples):
    indices = np.tile(np.arange(90, dtype=np.int32).reshape(9, 10), (12, 1))
    assert train.evaluate(MODEL, MESH, new_state().params, *examples) < 0.7
    state, losses = train.train_chunk(MODEL, OPTIMIZER, MESH, new_state(), examples, indices)
    assert losses[-9:].mean() < 0.2 * losses[:9].mean()
    assert train.evaluate(MODEL, MESH, state.params, *examples) == 1.0


def test_standardized_features_are_taken_as_they_are():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(64, 4, 3))  # float64, as NumPy makes them
    batch = jnp.asarray(features), jnp.asarray(features[:, :2].sum((1, 2)) > 0).astype(jnp.int32)
    model, optimizer = Classifier(Stack(jaxrnn.gru(6)), num_classes=2), train.optimizer(3e-2)
    state = train.create_state(model, optimizer, jax.random.key(0), jnp.zeros((1, 4, 3)))
    step = jit(lambda state: train.train_step(model, optimizer, state, batch))
    losses = []
    for _ in range(60):
        state, loss = step(state)
        losses.append(float(loss))
    assert losses[0] > 0.6
    assert losses[-1] < 0.2
    assert train.evaluate(model, MESH, state.params, features, np.asarray(batch[1])) > 0.9


def test_only_bytes_are_scaled():
    np.testing.assert_allclose(train.scale(np.array([0, 51, 255], np.uint8)), [0, 0.2, 1])
    for dtype in (np.float64, np.float32, jnp.bfloat16, jnp.float16):
        kept = train.scale(np.array([-1.5, 300.0], dtype))
        assert kept.dtype == (jnp.float32 if dtype is np.float64 else dtype)
        np.testing.assert_array_equal(kept.astype(jnp.float32), [-1.5, 300])
    for dtype in (np.int8, np.uint16, np.int32, bool):
        with pytest.raises(ValueError, match=f"sequences: got dtype {np.dtype(dtype)}, expected"):
            train.scale(np.zeros(3, dtype))
    with pytest.raises(ValueError, match="sequences: got dtype int32, expected uint8 or a float"):
        train.evaluate(MODEL, MESH, {}, np.zeros((2, 6, 5), np.int32), np.zeros(2, np.int32))


def test_evaluation_counts_every_example_once(examples, monkeypatch):
    sequences, labels = examples
    params = new_state().params
    predictions = MODEL.apply({"params": params}, train.scale(sequences)).argmax(-1)
    expected = float((predictions == labels).mean())
    for batch in (1, 7, 45, 1000):  # with and without a remainder
        monkeypatch.setattr(train, "EVALUATION_BATCH", batch)
        jax.clear_caches()
        assert train.evaluate(MODEL, MESH, params, sequences, labels) == pytest.approx(expected)


def test_beliefs_end_at_the_probabilities(examples):
    sequences, params = np.asarray(examples[0][:4]), new_state().params
    beliefs = train.beliefs(MODEL, params, sequences)
    assert beliefs.shape == (4, 6, 3)
    np.testing.assert_allclose(beliefs.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(
        beliefs[:, -1], train.probabilities(MODEL, params, sequences), atol=1e-6
    )
    np.testing.assert_allclose(
        beliefs[:, 2], train.probabilities(MODEL, params, sequences[:, :3]), atol=1e-6
    )


def test_schedules():
    with pytest.raises(ValueError, match="schedule must be"):
        train.optimizer(1e-3, schedule="linear")
    with pytest.raises(ValueError, match="steps must be given"):
        train.optimizer(1e-3, schedule="onecycle")
    params = {"w": jnp.ones(3)}
    clipped = train.optimizer(1.0, schedule="onecycle", steps=10, clip_norm=1e-9)
    sizes = []
    state = clipped.init(params)
    for _ in range(10):
        updates, state = clipped.update({"w": jnp.ones(3)}, state, params)
        sizes.append(float(optax.global_norm(updates)))
    # Up, then down; and a gradient clipped to the size of Adam's epsilon moves less than its rate.
    assert 0 < int(np.argmax(sizes)) < 9
    assert max(sizes) < 0.2
