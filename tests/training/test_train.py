"""Compiled functions: one update by hand, slices, shared batches, evaluation, predictions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn
from jaxrnn import training
from jaxrnn.linen import Classifier, Stack
from jaxrnn.training.train import map_batches, replicate, train_step

MODEL = Classifier(Stack(jaxrnn.lstm(8)), num_classes=3)
OPTIMIZER = training.optimizer(1e-2)
FIXED = training.Fixed(MODEL, OPTIMIZER)
ONE, TWO = (training.Trainer(FIXED, mesh=training.make_mesh(batch=count)) for count in (1, 2))
KEY = jax.random.key(0)


pytestmark = pytest.mark.usefixtures("standard_promotion")


def new_state(trainer=ONE):
    return trainer.init(KEY, {}, jnp.zeros((1, 6, 5)))


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
    step = jax.jit(train_step, static_argnums=(0, 1))
    after, actual = step(MODEL, OPTIMIZER, state, (sequences, labels))
    assert after.step == 1
    np.testing.assert_allclose(actual, value, rtol=1e-5)
    for a, b, g in zip(*map(jax.tree.leaves, (after.params, expected, grads)), strict=True):
        np.testing.assert_allclose(a, b, atol=float(2e-6 + 1e-2 * (jnp.abs(g) < 1e-6).any()))


def test_a_batch_in_slices_has_the_same_gradient(examples):
    batch, state = (examples[0][:10], examples[1][:10]), new_state()
    optimizer = optax.sgd(1.0)  # its update is the gradient
    state = state.replace(opt_state=optimizer.init(state.params))
    step = jax.jit(train_step, static_argnums=(0, 1), static_argnames="slices")
    whole, loss = step(MODEL, optimizer, state, batch)
    parts, same = step(MODEL, optimizer, state, batch, slices=5)
    np.testing.assert_allclose(same, loss, rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (parts.params, whole.params)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_each_slice_and_each_device_has_a_key_of_its_own():
    """The loss is a parameter times a number drawn from the key, which is thus the gradient."""

    def loss_fn(model, params, batch, key):
        return params["w"] * jax.random.uniform(key)

    def gradients(trainer, slices):
        optimizer, params = optax.sgd(1.0), {"w": jnp.float32(0)}
        state = training.TrainState(jnp.int32(0), params, optimizer.init(params))
        fixed = training.Fixed(MODEL, optimizer)
        trainer = training.Trainer(fixed, loss_fn, mesh=trainer.mesh, slices=slices)
        indices = np.zeros((1, 4), np.int32)
        state, _ = trainer.advance(
            trainer.place(state), KEY, {}, replicate(jnp.zeros(4), trainer.mesh), indices
        )
        return -float(state.params["w"])

    def draw(*path):
        key = KEY
        for number in (1, 0, *path):  # the noise key, the step, the device, the slice
            key = jax.random.fold_in(key, number)
        return float(jax.random.uniform(key))

    assert gradients(ONE, 1) == pytest.approx(draw())
    assert gradients(ONE, 2) == pytest.approx((draw(0) + draw(1)) / 2)
    of_devices = [draw(device, part) for device in (0, 1) for part in (0, 1)]
    assert gradients(TWO, 2) == pytest.approx(np.mean(of_devices))
    assert len({draw(), draw(0), draw(1), *of_devices}) == 7


def test_a_batch_shared_by_two_devices_makes_the_same_steps(examples):
    indices = np.arange(60, dtype=np.int32).reshape(6, 10)
    (one, losses), (two, shared) = (
        trainer.advance(new_state(trainer), KEY, {}, replicate(examples, trainer.mesh), indices)
        for trainer in (ONE, TWO)
    )
    assert TWO.mesh.size == 2
    assert (int(one.step), int(two.step)) == (6, 6)
    np.testing.assert_allclose(losses, shared, rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (one.params, two.params)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    some = jax.tree.map(lambda leaf: leaf[:89], examples)  # 89 examples need one of padding
    logits = [training.predict(MODEL, one.params, some[0], mesh=t.mesh) for t in (ONE, TWO)]
    np.testing.assert_allclose(*logits, atol=1e-5)
    first = training.predict(MODEL, one.params, some[0][:1], mesh=TWO.mesh)
    np.testing.assert_allclose(first, logits[0][:1], atol=1e-5)
    expected = float((logits[0].argmax(-1) == some[1].astype(int)).mean())
    assert ONE.evaluate(one, {}, some) == pytest.approx(expected)
    assert TWO.evaluate(two, {}, some) == pytest.approx(expected)


def test_an_evaluation_of_no_examples_is_nan(examples, recwarn):
    nothing = jax.tree.map(lambda leaf: leaf[:0], examples)
    assert np.isnan(ONE.evaluate(new_state(), {}, nothing))
    assert not recwarn.list


def test_only_uint8_is_scaled():
    np.testing.assert_allclose(training.scale(np.array([0, 51, 255], np.uint8)), [0, 0.2, 1])
    for dtype in (np.float64, np.float32, jnp.bfloat16, jnp.float16):
        kept = training.scale(np.array([-1.5, 300.0], dtype))
        assert kept.dtype == (jnp.float32 if dtype is np.float64 else dtype)
        np.testing.assert_array_equal(kept.astype(jnp.float32), [-1.5, 300])
    np.testing.assert_array_equal(training.scale(np.array([False, True])), [0, 1])
    for dtype in (np.int8, np.uint16, np.int32):
        with pytest.raises(ValueError, match=f"sequences must be .*, got {np.dtype(dtype)}"):
            training.scale(np.zeros(3, dtype))
    with pytest.raises(
        ValueError, match="sequences must be uint8, bool or floating-point, got int32"
    ):
        training.predict(MODEL, {}, np.zeros((2, 6, 5), np.int32))


@pytest.mark.parametrize("size", [1, 7, 45, 1000])
def test_batches_hold_every_example_once(size):
    seen = []

    def double(batch):
        seen.append(len(batch["x"]))
        return {"y": 2 * batch["x"]}

    examples = {"x": np.arange(90)}
    np.testing.assert_array_equal(map_batches(double, examples, size)["y"], 2 * examples["x"])
    remainder = [90 % size] if 90 % size else []
    assert sorted(set(seen)) == sorted({*([size] if size <= 90 else []), *remainder})
    assert map_batches(double, {"x": np.zeros(0)}, size)["y"].shape == (0,)


def test_beliefs_end_at_the_probabilities(examples):
    sequences, params = np.asarray(examples[0][:4]), new_state().params
    beliefs = training.beliefs(MODEL, params, sequences)
    assert beliefs.shape == (4, 6, 3)
    np.testing.assert_allclose(beliefs.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(
        beliefs[:, -1], training.probabilities(MODEL, params, sequences), atol=1e-6
    )
    np.testing.assert_allclose(
        beliefs[:, 2], training.probabilities(MODEL, params, sequences[:, :3]), atol=1e-6
    )


def updates_of(optimizer, params, steps=1):
    """The updates of several steps on a gradient of ones and constant parameters."""
    grads = jax.tree.map(jnp.ones_like, params)

    def step(state, _):
        updates, state = optimizer.update(grads, state, params)
        return state, updates

    return jax.jit(lambda: jax.lax.scan(step, optimizer.init(params), length=steps))()[1]


def test_the_cosine_warms_up_for_a_tenth_of_the_steps():
    with pytest.raises(ValueError, match="steps must be given if schedule is 'cosine', got None"):
        training.optimizer(1e-3, schedule="cosine")
    optimizer = training.optimizer(0.5, schedule="cosine", steps=40, algorithm=optax.sgd)
    rates = -updates_of(optimizer, {"w": jnp.zeros(())}, 40)["w"]
    np.testing.assert_allclose(rates[:5], 0.5 * np.arange(5) / 4, rtol=1e-6)
    falling = 0.25 * (1 + np.cos(np.pi * np.arange(36) / 36))
    np.testing.assert_allclose(rates[4:], falling, rtol=1e-5, atol=1e-8)


def test_decay_and_the_slower_recurrence_reach_their_parameters_only():
    def params(leaf):
        layer = {"nu": leaf, "input_kernel": leaf, "projection": leaf, "bias": leaf}
        start = {"hidden": leaf, "cell": leaf}
        stack = {"layer_0": {"cell": layer, "initial_state": start}}
        return {"stack": stack, "readout": {"kernel": leaf, "bias": leaf}, "norm": {"scale": leaf}}

    optimizer = training.optimizer(
        0.1,
        schedule="cosine",
        steps=20,
        algorithm=optax.sgd,
        weight_decay=0.5,
        recurrence_rate=0.25,
    )
    updates = updates_of(optimizer, params(jnp.float32(2.0)), 3)
    rates = np.array([0, 0.05, 0.1])
    for path, found in jax.tree_util.tree_leaves_with_path(updates):
        name = path[-1].key
        decayed = name in ("input_kernel", "projection", "kernel")
        expected = rates * (2.0 if decayed else 0.25 if name == "nu" else 1.0)
        np.testing.assert_allclose(-found, expected, atol=1e-7, err_msg=name)


def test_the_rates_may_be_traced_and_adam_is_adamw():
    params = {"kernel": jnp.arange(1.0, 4.0)}

    def ours(rate, decay):
        optimizer = training.optimizer(rate, weight_decay=decay, recurrence_rate=decay)
        return optimizer.update(params, optimizer.init(params), params)[0]

    adamw = optax.adamw(0.01, weight_decay=0.3)
    expected, _ = adamw.update(params, adamw.init(params), params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), jax.jit(ours)(0.01, 0.3), expected
    )


def test_equal_optimizers_are_one_object_also_if_the_first_is_created_in_a_trace():
    params = {"cell": {"kernel": jnp.ones(2), "nu": jnp.ones(2)}}

    def update(create):
        return create().update(params, create().init(params), params)

    for schedule in ("constant", "onecycle", "cosine"):
        create = partial(
            training.optimizer, 0.3, schedule=schedule, steps=7, clip_norm=1.0, recurrence_rate=0.5
        )
        expected = jax.jit(partial(update, create))()
        close = partial(np.testing.assert_allclose, rtol=1e-6)
        jax.tree.map(close, update(create), expected)
        assert create() is create()
    assert training.optimizer(0.3) is not training.optimizer(0.25)
    # Two arrays may be equal, but their values are not known while a program is traced.
    assert training.optimizer(jnp.ones(())) is not training.optimizer(jnp.ones(()))


def test_schedules():
    with pytest.raises(ValueError, match="schedule must be"):
        training.optimizer(1e-3, schedule="linear")
    with pytest.raises(ValueError, match="steps must be given"):
        training.optimizer(1e-3, schedule="onecycle")
    params = {"w": jnp.ones(3)}
    clipped = training.optimizer(1.0, schedule="onecycle", steps=10, clip_norm=1e-9)
    update, sizes = jax.jit(partial(clipped.update, {"w": jnp.ones(3)})), []
    state = clipped.init(params)
    for _ in range(10):
        updates, state = update(state, params)
        sizes.append(float(optax.tree.norm(updates)))
    # Up, then down; and a gradient clipped to the size of Adam's epsilon moves less than its rate.
    assert 0 < int(np.argmax(sizes)) < 9
    assert max(sizes) < 0.2


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan")])
def test_gradients_are_not_clipped_to_nothing(norm):
    with pytest.raises(ValueError, match="clip_norm must be positive or None, got"):
        training.optimizer(1e-3, clip_norm=norm)
