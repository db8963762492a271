"""Many runs as one program."""

import ablate
import jax
import mnist
import numpy as np
import pytest

import jaxrnn
from jaxrnn.linen import Classifier, Stack
from jaxrnn.training import data, sweep, train
from jaxrnn.training.data.idx import Split

# All chunks are as long, so that they are one program.
OPTIONS = {"steps": 24, "batch_size": 10, "eval_every": 16, "chunk": 8}


pytestmark = pytest.mark.usefixtures("standard_promotion")


def build(numbers):
    cell = jaxrnn.lstm(8, forget_bias=numbers.get("forget_bias", 1.0))
    return Classifier(Stack(cell), 3), train.optimizer(numbers["learning_rate"])


def noisy(numbers):
    model = Classifier(Stack(jaxrnn.lstm(8), num_layers=2, dropout=0.5), 3)
    return model, train.optimizer(numbers["learning_rate"])


@pytest.fixture(scope="module")
def splits():
    """A task that can be learned: the label is the brightest of three bands."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90, dtype=np.uint8)
    images = rng.integers(0, 80, (90, 6, 5), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 120
    return tuple(Split(images[i::3], labels[i::3]) for i in range(3))


def last(splits, seeds, **numbers):
    numbers = {name: np.array(values) for name, values in numbers.items()}
    *_, look = sweep.train_runs(build, np.array(seeds), numbers, splits, **OPTIONS)
    return look


@pytest.mark.parametrize("seeds", [(7,), (7, 3), (1, 7, 3), (1, 3, 7), (7, 1, 2, 3)])
def test_a_run_does_not_see_those_beside_it(splits, seeds):
    """Alone on a device, or vectorised with others: to rounding the same."""
    rates = [1e-2 if seed == 7 else 3e-3 for seed in seeds]
    look = last(splits, seeds, learning_rate=rates)
    alone = last(splits, (7,), learning_rate=[1e-2])
    place = seeds.index(7)
    assert look.step == 24
    np.testing.assert_allclose(look.loss[place], alone.loss[0], rtol=1e-4)
    assert abs(look.test_accuracy[place] - alone.test_accuracy[0]) <= 1 / 30
    assert len(set(look.loss.tolist())) == len(seeds)


@pytest.mark.parametrize("runs", [1, 2, 3, 7, 10])
def test_runs_use_all_devices_that_they_can(runs):
    assert sweep.make_mesh(runs).size == min(runs, jax.local_device_count())


@pytest.mark.parametrize("make", [build, noisy])
def test_one_run_is_what_the_experiment_trains(splits, make):
    numbers, cut = {"learning_rate": np.array([1e-2])}, {"eval_every": 6, "chunk": 4, "steps": 10}
    *_, look = sweep.train_runs(make, np.array([5]), numbers, splits, **OPTIONS | cut)
    model, optimizer = make({"learning_rate": 1e-2})
    key, mesh = jax.random.key(5), train.make_mesh(1)
    state = train.create_state(model, optimizer, key, np.zeros((1, 6, 5), np.float32))
    indices = data.batch_indices(5, 0, 10, 10, 30)
    state, losses = train.train_chunk(
        model, optimizer, mesh, state, tuple(splits[0]), indices, train.noise_key(key)
    )
    np.testing.assert_allclose(look.loss[0], losses[6:].mean(), rtol=1e-4)
    accuracy = train.evaluate(model, mesh, state.params, *splits[2])
    assert look.test_accuracy[0] == pytest.approx(accuracy, abs=1 / 30)


def test_a_run_that_diverges_leaves_those_beside_it(splits):
    alone = last(splits, (7,), learning_rate=[1e-2])
    rates = [1e38, 1e-2, 1e38, 1e38]
    look = last(splits, (3, 7, 1, 2), learning_rate=rates)
    assert np.isfinite(look.loss).tolist() == [False, True, False, False]
    assert look.loss[1] == pytest.approx(alone.loss[0], rel=1e-3)


def test_numbers_differ_from_run_to_run_in_one_program(splits):
    look = last(splits, (0, 0), learning_rate=[1e-2, 1e-2], forget_bias=[0.0, 5.0])
    assert look.loss[0] != look.loss[1]
    before = sweep._advance._cache_size()
    last(splits, (0, 0), learning_rate=[2e-2, 2e-2], forget_bias=[1.0, 2.0])
    assert sweep._advance._cache_size() == before
    still = last(splits, (0, 0), learning_rate=[1e-2, 0.0])
    assert still.loss[0] < still.loss[1]


def test_every_number_of_an_ablation_may_differ_within_a_program(splits):
    """One run for each number that another value has, and one without: all learn differently."""
    names = [name for name in ablate.NUMBERS if name != "learning_rate"]
    config = mnist.Config(hidden_size=8, num_layers=2, tied=True, **dict.fromkeys(names, 0.5))
    count = len(names) + 1
    numbers = {name: np.full(count, 0.5) for name in names} | {"learning_rate": np.full(count, 0.1)}
    for place, name in enumerate(names):
        numbers[name][place] = 0.2
    seeds = np.zeros(count, int)
    brief = OPTIONS | {"steps": 8}
    (look,) = sweep.train_runs(ablate.Build(config), seeds, numbers, splits, **brief)
    assert np.isfinite(look.loss).all()
    assert len(set(look.loss.tolist())) == count
