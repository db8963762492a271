"""The training loop, for one run and for several in one program."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn
from jaxrnn import training
from jaxrnn.linen import Classifier, Stack
from jaxrnn.training import data
from jaxrnn.training.loop import Clock
from jaxrnn.training.train import noise_key, train_step

# All chunks have the same length, so that they share one program.
OPTIONS = {"steps": 24, "batch_size": 10, "eval_every": 16, "chunk": 8}


pytestmark = pytest.mark.usefixtures("standard_promotion")


def factory(hparams):
    cell = jaxrnn.lstm(8, forget_bias=hparams.get("forget_bias", 1.0))
    return Classifier(Stack(cell), 3), training.optimizer(hparams["learning_rate"])


def noisy(hparams):
    stack = Stack(jaxrnn.rnn(8), regularizer=jaxrnn.Regularizer(zoneout=0.5))
    return Classifier(stack, 3), training.optimizer(hparams["learning_rate"])


@pytest.fixture(scope="module")
def splits():
    """A task that can be learned: the label is the brightest of three bands."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90, dtype=np.uint8)
    images = rng.integers(0, 80, (90, 6, 5), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 120
    return tuple((images[i::3], labels[i::3]) for i in range(3))


def fit(splits, seed, factory=factory, devices=None, **options):
    runs = min(len(seed), 2) if np.ndim(seed) else 1
    mesh = training.make_mesh(runs, 1) if devices is None else training.make_mesh(batch=devices)
    train, validation, test = splits
    trainer = training.Trainer(factory, mesh=mesh)
    evaluations = {"validation": validation, "test": test}
    return training.fit(trainer, train, evaluations, seed=seed, **{**OPTIONS, **options})


def last(splits, seed, **hparams):
    """Returns the progress after the last chunk."""
    *_, progress = fit(splits, seed, hparams=hparams)
    return progress


@pytest.fixture(scope="module")
def alone(splits):
    with jax.numpy_dtype_promotion("standard"):
        return list(fit(splits, 7, hparams={"learning_rate": 1e-2}))


def test_a_run_yields_its_progress(alone):
    assert [progress.step for progress in alone] == [8, 16, 24]
    assert [progress.losses.shape for progress in alone] == [(8,)] * 3
    assert [list(progress.metrics) for progress in alone] == [
        [],
        ["validation", "test"],
        ["validation", "test"],
    ]
    assert alone[-1].state.step == 24
    assert isinstance(alone[-1].metrics["test"], float)
    for phase in ("compile", "train", "evaluate"):
        seconds = [progress.seconds[phase] for progress in alone]
        assert seconds == sorted(seconds)
        assert seconds[-1] > 0


@pytest.mark.parametrize("seeds", [(7,), (1, 7, 3)])
def test_a_run_does_not_depend_on_those_beside_it(splits, alone, seeds):
    """Alone on a device or vectorized with others, it has the same results to rounding."""
    rates = [1e-2 if seed == 7 else 3e-3 for seed in seeds]
    progress, place = last(splits, seeds, learning_rate=rates), seeds.index(7)
    assert progress.losses.shape == (len(seeds), 8)
    np.testing.assert_allclose(progress.losses[place], alone[-1].losses, rtol=1e-3)
    for name, value in alone[-1].metrics.items():
        assert progress.metrics[name].shape == (len(seeds),)
        assert abs(progress.metrics[name][place] - value) <= 1 / 30
    assert len(set(progress.losses.mean(1).tolist())) == len(seeds)


def test_a_run_is_the_steps_of_its_seed(splits):
    """Computed by hand: parameters, noise and batches depend on the seed."""
    hparams = {"learning_rate": 1e-2}
    *_, progress = fit(splits, 5, noisy, hparams=hparams, steps=4, chunk=2, eval_every=4)
    model, optimizer = noisy(hparams)
    key, (sequences, labels) = jax.random.key(5), splits[0]
    params = jax.jit(model.init)(key, jnp.zeros((1, 6, 5)))["params"]
    state = training.TrainState(jnp.int32(0), params, optimizer.init(params))
    step = jax.jit(lambda state, *batch: train_step(model, optimizer, state, batch, key=noise))
    losses, noise = [], noise_key(key)
    for batch in data.batch_indices(5, 0, 4, 10, 30):
        state, loss = step(state, sequences[batch], labels[batch])
        losses.append(float(loss))
    np.testing.assert_allclose(progress.losses, losses[2:], rtol=1e-4)
    for a, b in zip(*map(jax.tree.leaves, (progress.state.params, state.params)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("stop", [8, 16])
def test_a_resumed_run_ends_with_the_same_bits(splits, alone, stop):
    hparams = {"learning_rate": 1e-2}
    state = next(
        jax.device_get(progress.state)
        for progress in fit(splits, 7, hparams=hparams)
        if progress.step == stop
    )
    rest = list(fit(splits, 7, hparams=hparams, state=state))
    assert [progress.step for progress in rest] == list(range(stop + 8, 25, 8))
    np.testing.assert_array_equal(rest[-1].losses, alone[-1].losses)
    jax.tree.map(np.testing.assert_array_equal, rest[-1].state, alone[-1].state)
    assert rest[-1].metrics == alone[-1].metrics
    assert list(fit(splits, 7, hparams=hparams, state=alone[-1].state)) == []


def test_chunks_end_where_the_step_says():
    """At evaluations, at the last step and after `chunk` steps, wherever a run is resumed."""
    model = Classifier(Stack(jaxrnn.rnn(2)), 2)
    trainer = training.Trainer(training.Fixed(model, optax.sgd(0.1)), mesh=training.make_mesh(1, 1))
    examples = np.zeros((4, 1, 1), np.float32), np.zeros(4, np.uint8)
    options = {"steps": 60, "batch_size": 2, "eval_every": 25, "chunk": 10}
    ends = {p.step: jax.device_get(p.state) for p in training.fit(trainer, examples, **options)}
    assert list(ends) == [10, 20, 25, 35, 45, 50, 60]
    again = training.fit(trainer, examples, **options, state=ends[35])
    assert [progress.step for progress in again] == [45, 50, 60]


def test_a_run_that_diverges_leaves_those_beside_it(splits, alone):
    rates = [1e38, 1e-2, 1e38, 1e38]
    losses = last(splits, (3, 7, 1, 2), learning_rate=rates).losses
    assert np.isfinite(losses[:, -1]).tolist() == [False, True, False, False]
    np.testing.assert_allclose(losses[1], alone[-1].losses, rtol=1e-3)


def test_hyperparameters_differ_from_run_to_run_in_one_program(splits):
    losses = last(splits, (0, 0), learning_rate=[1e-2, 1e-2], forget_bias=[0.0, 5.0]).losses
    assert losses[0, -1] != losses[1, -1]
    before = training.Trainer.advance._cache_size()
    losses = last(splits, (0, 0), learning_rate=[1e-2, 0.0], forget_bias=[1.0, 1.0]).losses
    assert training.Trainer.advance._cache_size() == before
    assert losses[0].mean() < losses[1].mean()


def test_standardized_features_are_learned():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(64, 4, 3))  # float64, NumPy's default
    labels = (features[:, :2].sum((1, 2)) > 0).astype(np.int32)
    model = Classifier(Stack(jaxrnn.gru(6)), num_classes=2)
    trainer = training.Trainer(
        training.Fixed(model, training.optimizer(3e-2)), mesh=training.make_mesh(1, 1)
    )
    (progress,) = training.fit(
        trainer, (features, labels), {"same": (features, labels)}, steps=60, batch_size=64
    )
    assert progress.losses[0] > 0.6
    assert progress.losses[-1] < 0.2
    assert progress.metrics["same"] > 0.9


@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize("batch", [1, None])
def test_a_mesh_has_the_devices_asked_for(runs, batch):
    mesh = training.make_mesh(runs, batch)
    assert mesh.axis_names == ("run", "batch")
    assert mesh.shape["run"] == runs
    assert mesh.size <= jax.local_device_count()
    if batch is None:
        assert mesh.size == jax.local_device_count() // runs * runs


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"eval_every": 0}, "eval_every must be at least 1, got 0"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"batch_size": 3}, "batch_size must be a multiple of the 2 devices"),
    ],
)
def test_bad_arguments_are_named(options, words, splits):
    with pytest.raises(ValueError, match=words):
        next(fit(splits, 0, devices=2, **options))


def diverging(hparams):
    def update(updates, state, params=None):
        factor = jnp.sqrt(jnp.where(state == 1, -1.0, 1.0))  # NaN in the second step
        return jax.tree.map(lambda leaf: leaf * factor, updates), state + 1

    diverge = optax.GradientTransformation(lambda _: jnp.int32(0), update)
    return Classifier(Stack(jaxrnn.rnn(2)), 3), optax.chain(optax.sgd(0.1), diverge)


def test_with_debug_nans_the_operation_is_named(splits):
    short = [(images[:, :1], labels) for images, labels in splits]
    with jax.debug_nans(True):
        progress = fit(short, 0, diverging, devices=1)
        assert next(progress).step == 1
        with pytest.raises(FloatingPointError) as raised:
            next(progress)
    assert "factor = jnp.sqrt(" in str(raised.getrepr())


def test_a_clock_counts_what_is_compiled_within_a_phase():
    clock = Clock()
    jax.monitoring.record_event_duration_secs("/jax/core/compile/test", 0.5)
    with clock.phase("train"):
        time.sleep(0.02)
        jax.monitoring.record_event_duration_secs("/jax/core/compile/inner", 0.005)
        jax.monitoring.record_event_duration_secs("/jax/core/compile/outer", 0.01)
    jax.monitoring.record_event_duration_secs("/jax/core/compile/test", 0.5)
    assert clock.seconds["compile"] == pytest.approx(0.01)
    assert clock.seconds["train"] > 0.009
    assert clock.seconds["evaluate"] == 0
