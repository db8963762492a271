"""Synthetic tasks, against their definitions in plain Python."""

import collections
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn
from jaxrnn import training
from jaxrnn.linen import Classifier, Stack
from jaxrnn.training import tasks

COUNT = 2000
LENGTH = {"adding": 40, "copying": 5, "reber": 20, "parity": 12, "dyck": 14}


def strings(examples, letters):
    """Yields each sequence of symbols as a string, with the targets at its time steps."""
    for inputs, length, targets in zip(*examples, strict=True):
        assert (inputs[:length].sum(-1) == 1).all()
        text = "".join(letters[symbol] for symbol in inputs[:length].argmax(-1))
        yield text, targets[:length]


def sets(targets, letters):
    """The targets [T, P] as sets of letters."""
    return [{letters[n] for n in np.flatnonzero(each)} for each in targets]


def assert_uniform(values, expected):
    """Checks that the values are those expected, each about as often: 5 standard errors."""
    counts = collections.Counter(np.asarray(values).tolist())
    assert set(counts) == set(expected)
    share = len(values) / len(expected)
    assert max(abs(count - share) for count in counts.values()) < 5 * np.sqrt(share)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_task_follows_from_its_seed_and_its_streams_differ(name):
    task, length = tasks.TASKS[name], LENGTH[name]
    first, again, other = (task.generate([0, n], 50, length) for n in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert any((a != b).any() for a, b in zip(first, other, strict=True))
    assert first.inputs.shape[0] == first.targets.shape[0] == 50
    assert first.inputs.shape[2] == task.num_features
    assert first.inputs.dtype in (bool, np.float32)
    assert first.lengths.dtype == np.int32
    assert first.lengths.min() >= 1
    assert first.lengths.max() <= first.inputs.shape[1]
    past = np.arange(first.inputs.shape[1]) >= first.lengths[:, None]
    assert not first.inputs[past].any()
    if first.targets.ndim > 1:
        assert not first.targets[past].any()


def test_adding_is_the_experiment_of_the_paper():
    length = LENGTH["adding"]
    inputs, lengths, targets = examples = tasks.adding(1, COUNT, length)
    assert inputs.shape == (COUNT, 44, 2)
    assert_uniform(lengths, range(40, 45))
    first_chosen, positions = 0, []
    for (numbers, markers), own, target in zip(
        inputs.transpose(0, 2, 1), lengths, targets, strict=True
    ):
        marked = [time for time in range(own) if markers[time] == 1]
        assert [markers[0], markers[own - 1]] == [-1, -1]
        assert sum(markers[:own] != 0) == 2 + len(marked)
        if len(marked) == 1:  # the first pair was chosen too
            assert numbers[0] == 0
            first_chosen += 1
        else:
            assert len(marked) == 2
        assert marked[0] < 10 or len(marked) == 1
        assert marked[-1] < length // 2
        assert target == pytest.approx(0.5 + sum(float(numbers[t]) for t in marked) / 4, abs=1e-6)
        positions += marked
    # The first choice is the first pair with 1/10, the second with 9/10 · 1/19.
    assert first_chosen / COUNT == pytest.approx(0.1 + 0.9 / 19, abs=0.04)
    assert set(positions) == set(range(1, 20))
    assert np.abs(inputs[..., 0]).max() <= 1
    assert inputs[..., 0].std() == pytest.approx(np.sqrt(1 / 3 * lengths.mean() / 44), abs=0.01)
    # Without the pairs set to 0 the variance of the target is 1/24.
    assert examples.targets.var() == pytest.approx((1 - 0.15 / 2) / 24, abs=0.003)


def test_copying_repeats_ten_symbols_after_the_delimiter():
    inputs, lengths, targets = tasks.copying(0, 200, 5)
    assert inputs.shape == (200, 25, 10)
    assert (lengths == 25).all()
    for (read, answer), copied in zip(
        zip(inputs.argmax(-1).tolist(), targets.tolist(), strict=True),
        inputs[:, :10].argmax(-1).tolist(),
        strict=True,
    ):
        assert read == copied + 4 * [8] + [9] + 10 * [8]
        assert answer == 15 * [8] + copied
    assert_uniform(targets[:, -10:].ravel(), range(8))


def test_parity_is_that_of_the_bits():
    examples = tasks.parity(0, COUNT, 12, 3)
    for text, target in zip(
        (text for text, _ in strings(examples._replace(targets=examples.inputs), "01")),
        examples.targets,
        strict=True,
    ):
        assert target == text.count("1") % 2
    assert_uniform(examples.lengths, range(3, 13))
    assert_uniform(examples.targets, (0, 1))


def test_dyck_is_uniform_among_the_balanced_strings():
    def balanced(text):
        depths = list(itertools.accumulate(1 if each == "(" else -1 for each in text))
        return min(depths) >= 0 and depths[-1] == 0

    found = list(strings(tasks.dyck(0, COUNT, 9, 3), "()"))
    for text, targets in found:
        assert sets(targets, "()") == [
            {"(", ")"} if text[: n + 1].count("(") > text[: n + 1].count(")") else {"("}
            for n in range(len(text))
        ]
    for length in (4, 6, 8):
        language = ["".join(each) for each in itertools.product("()", repeat=length)]
        own = [text for text, _ in found if len(text) == length]
        assert_uniform(own, [text for text in language if balanced(text)])
    assert_uniform([len(text) for text, _ in found], (4, 6, 8))


def reber_strings(node, length):
    """Yields the strings of a length from a node of the Reber grammar, with their probability."""
    if node == len(tasks.REBER):
        if length == 0:
            yield "", 1.0
    elif length:
        for symbol, following in tasks.REBER[node].items():
            for rest, odds in reber_strings(following, length - 1):
                yield symbol + rest, odds / len(tasks.REBER[node])


def test_reber_has_the_probabilities_of_the_grammar_given_the_length():
    assert {text for text, _ in reber_strings(0, 6)} == {"BTSXSE", "BPTVVE", "BPVPSE"}
    length = 12
    expected = {
        f"B{outer}{inner}{outer}": odds / 2
        for inner, odds in reber_strings(0, length - 4)
        for outer in "TP"
    }
    total = sum(expected.values())
    examples = tasks.reber(0, COUNT, length, length)
    found = list(strings(examples, tasks.LETTERS))
    counts = collections.Counter(text for text, _ in found)
    assert set(counts) == set(expected)
    for text, odds in expected.items():
        share = COUNT * odds / total
        assert abs(counts[text] - share) < 5 * np.sqrt(share)
    for text, targets in found[:100]:
        node, legal = 0, [{"T", "P"}, {"B"}]
        for symbol in text[2:-2]:
            node = tasks.REBER[node][symbol]
            legal.append(set(tasks.REBER[node]))
        legal += [{text[1]}, {"E"}]
        assert sets(targets, tasks.LETTERS) == legal
    assert_uniform(tasks.reber(1, COUNT, 20).lengths, range(8, 20))


def test_long_strings_of_reber_are_in_the_grammar():
    # Their probabilities are less than the smallest float64.
    for text, _ in strings(tasks.reber(0, 3, 3000, 2990), tasks.LETTERS):
        node = 0
        for symbol in text[2:-1]:
            node = tasks.REBER[node][symbol]
        assert node == len(tasks.REBER)


def test_the_splits_are_of_independent_streams():
    splits = tasks.make("parity", 40, sizes=(300, 200, 200))
    assert [len(split.lengths) for split in splits[1:4]] == [300, 200, 200]
    seen = [
        {text for text, _ in strings(split._replace(targets=split.inputs), "01") if len(text) > 30}
        for split in splits[1:4]
    ]
    assert all(seen)
    assert not any(a & b for a, b in itertools.combinations(seen, 2))


@pytest.mark.parametrize("name", tasks.TASKS)
def test_test_sequences_may_be_longer(name):
    length = LENGTH[name]
    splits = tasks.make(name, length, 2 * length, (20, 20, 20))
    assert splits.test.lengths.min() > splits.train.lengths.max() - (name == "dyck")
    assert splits.validation.lengths.max() <= splits.train.inputs.shape[1]


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("length must be at least 22, got 21", lambda: tasks.adding(0, 1, 21)),
        ("length must be at least 1, got 0", lambda: tasks.copying(0, 1, 0)),
        (r"shortest must be in 1\.\.3, got 4", lambda: tasks.parity(0, 1, 3, 4)),
        (r"shortest must be in 1\.\.4, got 5", lambda: tasks.dyck(0, 1, 5, 5)),
        ("length must be at least 9, got 8", lambda: tasks.reber(0, 1, 8)),
        (r"shortest must be in 9\.\.12, got 8", lambda: tasks.reber(0, 1, 12, 8)),
        ("length must be at least 2, got 1", lambda: tasks.dyck(0, 1, 1)),
        ("test_length must be at least 13, got 12", lambda: tasks.make("parity", 12, 12)),
        ("test_length must be at least 14, got 13", lambda: tasks.make("dyck", 12, 13)),
        ("test_length: length must be at least 22, got 9", lambda: tasks.make("adding", 22, 9)),
        ("name must be one of adding, .*, got 'sum'", lambda: tasks.make("sum", 12)),
    ],
)
def test_what_cannot_be_is_refused(words, call):
    with pytest.raises(ValueError, match=words):
        call()


class Table(nn.Module):
    """Outputs that are parameters, whatever it reads."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, inputs, seq_lengths=None):
        return self.param("outputs", nn.initializers.zeros, self.shape)


def of_table(function, outputs, batch):
    outputs, batch = jnp.asarray(outputs, jnp.float32), jax.tree.map(jnp.asarray, batch)
    return np.asarray(function(Table(outputs.shape), {"outputs": outputs}, batch))


def test_losses_and_metrics_are_means_over_the_steps_of_a_sequence(standard_promotion):
    rng = np.random.default_rng(0)
    inputs, lengths = np.zeros((3, 4, 2), bool), np.array([4, 1, 3], np.int32)

    numbers = np.array([0.5, 0.2, 0.9], np.float32)
    batch = tasks.Examples(inputs, lengths, numbers)
    outputs = numbers[:, None] + np.array([[0.03], [0.05], [-0.039]], np.float32)
    squares = np.mean(np.square([0.03, 0.05, 0.039]))
    np.testing.assert_allclose(of_table(tasks.squared_error, outputs, batch), squares, rtol=1e-4)
    assert of_table(tasks.within_tolerance, outputs, batch).tolist() == [True, False, True]

    logits, labels = rng.normal(size=(3, 5)), np.array([0, 4, 2], np.uint8)
    batch = tasks.Examples(inputs, lengths, labels)
    nats = [
        np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, labels, strict=True)
    ]
    np.testing.assert_allclose(
        of_table(tasks.cross_entropy, logits, batch), np.mean(nats), rtol=1e-5
    )
    assert of_table(tasks.accuracy, logits, batch).tolist() == (logits.argmax(1) == labels).tolist()

    logits, labels = rng.normal(size=(3, 4, 5)), rng.integers(5, size=(3, 4), dtype=np.uint8)
    batch = tasks.Examples(inputs, lengths, labels)
    nats = (
        np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    )
    expected = np.mean([own[:length].mean() for own, length in zip(nats, lengths, strict=True)])
    found = of_table(tasks.step_cross_entropy, logits, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-5)

    wanted = rng.integers(2, size=(3, 4, 5)).astype(bool)
    batch = tasks.Examples(inputs, lengths, wanted)
    nats = np.log1p(np.exp(np.where(wanted, -logits, logits))).mean(-1)
    expected = np.mean([own[:length].mean() for own, length in zip(nats, lengths, strict=True)])
    found = of_table(tasks.sets_cross_entropy, logits, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    right = np.where(wanted, 1.0, -1.0)
    right[1, 1:] *= -1  # past its length
    right[2, 2, 3] *= -1  # the last step of the third
    assert of_table(tasks.sets_accuracy, right, batch).tolist() == [True, True, False]


def test_recall_is_of_the_repeated_symbols_alone(standard_promotion):
    batch = tasks.copying(0, 2, 3)
    logits = np.array(batch.targets[..., None] == np.arange(10), np.float32)
    logits[:, :13] = 0
    logits[1, -4:] = -logits[1, -4:]
    assert of_table(tasks.recall, logits, batch) == pytest.approx([1.0, 0.6])


def test_a_model_of_the_sizes_of_a_task_learns_it(standard_promotion):
    splits, task = tasks.make("reber", 10, sizes=(200, 1, 200)), tasks.TASKS["reber"]
    model = Classifier(Stack(jaxrnn.gru(16)), task.num_outputs, every_step=task.every_step)
    trainer = training.Trainer(
        training.Fixed(model, optax.adam(2e-2)),
        task.loss_fn,
        task.metric_fn,
        mesh=training.make_mesh(devices=jax.devices()[:1]),
    )
    *_, last = training.fit(
        trainer, splits.train, {"test": splits.test}, steps=200, batch_size=20, chunk=200
    )
    assert last.metrics["test"] > 0.9
