r"""Synthetic tasks that test the memory of recurrent networks: adding, copying, formal languages.

    from jaxrnn.training import tasks

    splits = tasks.make("adding", length=100)
    task = tasks.TASKS["adding"]
    model = Classifier(Stack(jaxrnn.lstm(64)), task.num_outputs, every_step=task.every_step)
    trainer = training.Trainer(training.Fixed(model, optimizer), task.loss_fn, task.metric_fn)
    training.fit(trainer, splits.train, {"test": splits.test}, ...)

The examples are generated from a seed and need no download. A function such as `adding` returns the
examples of one stream of random numbers, `make` those of three independent streams.

The losses and metrics call a model with the sequences and their lengths. Each loss is a mean over
the examples of the batch, and over the time steps of each example. Each metric is one value per
example, so that the metric of a data set is a fraction of 1.

Shapes: N examples, B examples of a batch, T time, I input features or symbols, P outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from jaxrnn.linen import within
from jaxrnn.training.losses import Loss, Metric, apply, scale

__all__ = [
    "REBER",
    "TASKS",
    "Examples",
    "Splits",
    "Task",
    "accuracy",
    "adding",
    "copying",
    "cross_entropy",
    "dyck",
    "make",
    "parity",
    "reber",
    "recall",
    "sets_accuracy",
    "sets_cross_entropy",
    "squared_error",
    "step_cross_entropy",
    "within_tolerance",
]

Seed = int | Sequence[int]


class Examples(NamedTuple):
    """Sequences of a task.

    Attributes:
        inputs: The sequences: numbers, float32 `[N, T, I]`, or one-hot symbols, bool `[N, T, I]`.
            They are zeros past their length.
        lengths: The lengths, int32 `[N]` in 1..T.
        targets: What is to be computed from each sequence; see the function that returns them.
    """

    inputs: np.ndarray
    lengths: np.ndarray
    targets: np.ndarray


def adding(seed: Seed, count: int, length: int) -> Examples:
    """The adding problem: the sum of two marked numbers of a sequence.

    A time step is a pair of a number, uniform in [-1, 1], and a marker. Two pairs are marked with
    1: one of the first ten, and one of the first `length // 2 - 1` pairs that are then not marked.
    The markers of the first and of the last pair are -1, all others 0. If the first pair is chosen,
    its number is 0 and its marker stays -1. The target is 0.5 + (x₁ + x₂)/4, where x₁ and x₂ are
    the numbers of the two chosen pairs. As a constant answer, 0.5 has a mean squared error of about
    1/24.

    Hochreiter and Schmidhuber, "Long short-term memory", 1997, experiment 4.

    Args:
        seed: The seed, or several numbers that are a seed together.
        count: N, the number of examples.
        length: The smallest length. Lengths are uniform in `length` .. `length + length // 10`.

    Returns:
        Inputs float32 `[N, T, 2]` with T = `length + length // 10`, and targets float32 `[N]`.

    Raises:
        ValueError: If `length` is less than 22.
    """
    _check_length(length, 22)
    rng = np.random.default_rng(seed)
    lengths = rng.integers(length, length + length // 10, count, endpoint=True)
    every, time = np.arange(count), length + length // 10
    numbers = rng.uniform(-1, 1, (count, time))
    first = rng.integers(10, size=count)
    second = rng.integers(length // 2 - 1, size=count)
    second += second >= first  # the position among the pairs that are not marked yet
    chosen = np.stack([first, second])
    numbers[:, 0] *= (chosen != 0).all(0)
    markers = np.zeros((count, time))
    markers[every, chosen] = 1
    markers[:, 0] = -1
    markers[every, lengths - 1] = -1
    inputs = np.stack([numbers, markers], -1)
    targets = 0.5 + numbers[every, chosen].sum(0) / 4
    return _examples(inputs.astype(np.float32), lengths, targets.astype(np.float32))


COPIED, SYMBOLS = 10, 8
BLANK, DELIMITER = SYMBOLS, SYMBOLS + 1


def copying(seed: Seed, count: int, length: int) -> Examples:
    """The copying memory problem: ten symbols are to be repeated after a delay.

    The sequence is ten symbols drawn uniformly from 0..7, `length - 1` blanks (8), a delimiter (9)
    and ten blanks. The targets are `length + 10` blanks and then the ten symbols. The answer
    without a memory, blanks and then symbols at random, has a cross-entropy of
    10·log(8)/(`length` + 20) nats.

    Arjovsky, Shah and Bengio, "Unitary evolution recurrent neural networks", 2016.

    Args:
        seed: The seed, or several numbers that are a seed together.
        count: N, the number of examples.
        length: The delay in time steps, from the last symbol to the delimiter.

    Returns:
        Inputs bool `[N, T, 10]` with T = `length + 20`, which is every length, and targets uint8
        `[N, T]`.

    Raises:
        ValueError: If `length` is less than 1.
    """
    _check_length(length, 1)
    rng = np.random.default_rng(seed)
    symbols = rng.integers(SYMBOLS, size=(count, COPIED), dtype=np.uint8)
    time = length + 2 * COPIED
    read = np.full((count, time), BLANK, np.uint8)
    read[:, :COPIED] = symbols
    read[:, -COPIED - 1] = DELIMITER
    targets = np.full((count, time), BLANK, np.uint8)
    targets[:, -COPIED:] = symbols
    return _examples(_one_hot(read, SYMBOLS + 2), np.full(count, time), targets)


def parity(seed: Seed, count: int, length: int, shortest: int = 1) -> Examples:
    """Whether the number of ones in a string of bits is odd.

    Delétang et al., "Neural networks and the Chomsky hierarchy", 2023, who train on lengths 1 to 40
    and test on lengths 41 to 500.

    Args:
        seed: The seed, or several numbers that are a seed together.
        count: N, the number of examples.
        length: T, the largest length.
        shortest: The smallest length. Lengths are uniform in between, and bits are fair.

    Returns:
        Inputs bool `[N, T, 2]` and targets uint8 `[N]`, 1 for an odd number.

    Raises:
        ValueError: If `shortest` is less than 1 or more than `length`.
    """
    _check_length(length, 1, shortest)
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, length, count, endpoint=True)
    bits = rng.integers(2, size=(count, length), dtype=np.uint8)
    bits *= np.arange(length) < lengths[:, None]
    return _examples(_one_hot(bits, 2), lengths, bits.sum(1, dtype=np.int64).astype(np.uint8) % 2)


def dyck(seed: Seed, count: int, length: int, shortest: int = 2) -> Examples:
    """Dyck-1, the language of balanced brackets: which symbols may follow at each time step.

    Suzgun et al., "LSTM networks can perform dynamic counting", 2019, whose strings have lengths 2
    to 50 in training and 52 to 100 in the test. Theirs are drawn from a probabilistic grammar,
    these uniformly from all balanced strings of a length.

    Args:
        seed: The seed, or several numbers that are a seed together.
        count: N, the number of examples.
        length: T, the largest length.
        shortest: The smallest length. Lengths are uniform among the even numbers in between.

    Returns:
        Inputs bool `[N, T, 2]`, opening and closing brackets, and targets bool `[N, T, 2]`: an
        opening bracket may follow always, a closing one if a bracket is open.

    Raises:
        ValueError: If `shortest` is less than 1 or more than the largest even number in `length`.
    """
    _check_length(length, 2)
    _check_length(length - length % 2, 2, shortest)
    rng = np.random.default_rng(seed)
    lengths = 2 * rng.integers((shortest + 1) // 2, length // 2, count, endpoint=True)
    closing = np.zeros((count, length), np.uint8)
    depths = np.zeros((count, length), np.int64)
    depth = np.zeros(count, np.int64)
    for time in range(length):
        # The share of balanced continuations that begin with an opening bracket (ballot numbers).
        left = np.maximum(lengths - time, 1)
        opening = (depth + 2) * (left - depth) / (2 * left * (depth + 1))
        closing[:, time] = rng.random(count) >= opening
        depth = depth + 1 - 2 * closing[:, time].astype(np.int64)
        depths[:, time] = depth
    targets = np.stack([np.ones_like(depths, bool), depths > 0], -1)
    return _examples(_one_hot(closing, 2), lengths, targets)


# The Reber grammar: the symbols that may follow at each node, with the nodes that they lead to.
REBER = (
    {"B": 1},
    {"T": 2, "P": 3},
    {"S": 2, "X": 4},
    {"T": 3, "V": 5},
    {"X": 3, "S": 6},
    {"P": 4, "V": 6},
    {"E": 7},
)
LETTERS = "BTPSXVE"


def reber(seed: Seed, count: int, length: int, shortest: int = 9) -> Examples:
    """The embedded Reber grammar: which symbols may follow at each time step.

    A string of the embedded grammar is B, a T or P, a string of the Reber grammar, the same T or P
    again, and E. The network has to remember the second symbol until the second to last. The last
    symbol is predicted, but not read.

    Cleeremans, Servan-Schreiber and McClelland, "Finite state automata and simple recurrent
    networks", 1989; Hochreiter and Schmidhuber, "Long short-term memory", 1997, experiment 1. In
    both, each of two possible symbols has probability 1/2, and the targets are the symbols that
    follow rather than the set of those that may. Here the lengths are uniform, and a string has
    its probability given its length.

    Args:
        seed: The seed, or several numbers that are a seed together.
        count: N, the number of examples.
        length: The largest length of a string, with its last symbol.
        shortest: The smallest length of a string, with its last symbol.

    Returns:
        Inputs bool `[N, T, 7]`, the symbols BTPSXVE, with T = `length - 1`; lengths, those of the
        strings minus 1; and targets bool `[N, T, 7]`.

    Raises:
        ValueError: If `shortest` is less than 9 or more than `length`.
    """
    _check_length(length, 9, shortest, least_shortest=9)
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, length, count, endpoint=True)
    shares, node = _reber_shares(length - 4), np.zeros(count, np.int64)
    outer = rng.choice([LETTERS.index("T"), LETTERS.index("P")], count)
    symbols = np.zeros((count, length), np.int64)
    targets = np.zeros((count, length, len(LETTERS)), bool)
    targets[:, 0, np.unique(_REBER_SYMBOLS[1])] = True
    targets[:, 1, LETTERS.index("B")] = True
    for time in range(2, length - 2):
        left = np.maximum(lengths - 2 - time, 0)
        odds = shares[left - 1, _REBER_NODES[node].T]
        choice = (rng.random(count) * odds.sum(0) >= odds[0]).astype(np.int64)
        symbols[:, time] = _REBER_SYMBOLS[node, choice]
        node = np.where(left > 0, _REBER_NODES[node, choice], len(REBER))
        targets[np.arange(count)[:, None], time, _REBER_SYMBOLS[node]] = True
    every = np.arange(count)
    targets[every, lengths - 3] = outer[:, None] == np.arange(len(LETTERS))
    targets[every, lengths - 2] = np.arange(len(LETTERS)) == LETTERS.index("E")
    symbols[:, 1] = symbols[every, lengths - 2] = outer
    return _examples(
        _one_hot(symbols[:, :-1], len(LETTERS)), lengths - 1, np.ascontiguousarray(targets[:, :-1])
    )


def _reber_tables() -> tuple[np.ndarray, np.ndarray]:
    """Returns the symbols that may follow each node, and the nodes that they lead to, `[8, 2]`.

    A node that only one symbol may follow has it twice, and the last node leads to itself.
    """
    edges = [list(following.items()) for following in (*REBER, {"E": len(REBER)})]
    pairs = [each * (2 // len(each)) for each in edges]
    symbols = [[LETTERS.index(symbol) for symbol, _ in each] for each in pairs]
    return np.array(symbols), np.array([[node for _, node in each] for each in pairs])


_REBER_SYMBOLS, _REBER_NODES = _reber_tables()


def _reber_shares(longest: int) -> np.ndarray:
    """Returns the odds to end after exactly n more symbols, `[longest + 1, 8]` by node.

    They are the probabilities, times a power of 2 for each n that keeps them from being rounded to
    zero.
    """
    shares = np.zeros((longest + 1, len(REBER) + 1))
    shares[0, -1] = 1
    for left in range(1, longest + 1):
        odds = shares[left - 1, _REBER_NODES[:-1]].mean(1)
        shares[left, :-1] = np.ldexp(odds, -np.frexp(odds.max())[1])
    return shares


def _check_length(
    length: int, least: int, shortest: int | None = None, least_shortest: int = 1
) -> None:
    if length < least:
        raise ValueError(f"length must be at least {least}, got {length}")
    if shortest is not None and not least_shortest <= shortest <= length:
        raise ValueError(f"shortest must be in {least_shortest}..{length}, got {shortest}")


def _one_hot(symbols: np.ndarray, count: int) -> np.ndarray:
    return symbols[..., None] == np.arange(count, dtype=symbols.dtype)


def _examples(inputs: np.ndarray, lengths: np.ndarray, targets: np.ndarray) -> Examples:
    """Returns the examples, with zeros past the lengths of the inputs and of targets by step."""
    read = np.arange(inputs.shape[1]) < lengths[:, None]
    if targets.ndim > 1:
        targets = targets * read.reshape(*read.shape, *[1] * (targets.ndim - 2))
    return Examples(inputs * read[..., None], lengths.astype(np.int32), targets)


def _outputs(model: nn.Module, params: Any, batch: Any, key: Array | None = None) -> Array:
    return apply(model, params, scale(batch[0]), batch[1], key=key)


def _mean_over_steps(values: Float[Array, "B T"], lengths: Array) -> Float[Array, " B"]:
    total = jnp.where(within(lengths, values.shape[1]), values, 0).sum(1)
    return total / jnp.maximum(lengths, 1).astype(values.dtype)


def squared_error(
    model: nn.Module, params: Any, batch: Any, key: Array | None = None
) -> Float[Array, ""]:
    """Computes the mean squared error of one number per sequence.

    Args:
        model: A model from sequences and lengths to `[B, 1]`.
        params: Its parameters.
        batch: `Examples` with targets float32 `[B]`.
        key: As in `jaxrnn.training.apply`.

    Returns:
        A scalar.
    """
    return ((_outputs(model, params, batch, key)[:, 0] - batch[2]) ** 2).mean()


TOLERANCE = 0.04


def within_tolerance(model: nn.Module, params: Any, batch: Any) -> Bool[Array, " B"]:
    """Returns whether the absolute error of each sequence is less than 0.04.

    This is when Hochreiter and Schmidhuber (1997) call a sequence of the adding problem processed
    correctly. The arguments are those of `squared_error`.

    Returns:
        Booleans `[B]`.
    """
    return jnp.abs(_outputs(model, params, batch)[:, 0] - batch[2]) < TOLERANCE


def cross_entropy(
    model: nn.Module, params: Any, batch: Any, key: Array | None = None
) -> Float[Array, ""]:
    """Computes the mean softmax cross-entropy of one class per sequence, in nats.

    Args:
        model: A model from sequences and lengths to logits `[B, P]`.
        params: Its parameters.
        batch: `Examples` with targets integers `[B]`.
        key: As in `jaxrnn.training.apply`.

    Returns:
        A scalar.
    """
    logits = _outputs(model, params, batch, key)
    labels = batch[2].astype(jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def accuracy(model: nn.Module, params: Any, batch: Any) -> Bool[Array, " B"]:
    """Returns whether each sequence is classified correctly.

    The arguments are those of `cross_entropy`.

    Returns:
        Booleans `[B]`.
    """
    predictions = _outputs(model, params, batch).argmax(-1)
    return predictions == batch[2].astype(predictions.dtype)


def step_cross_entropy(
    model: nn.Module, params: Any, batch: Any, key: Array | None = None
) -> Float[Array, ""]:
    """Computes the mean softmax cross-entropy of one class per time step, in nats.

    Args:
        model: A model from sequences and lengths to logits `[B, T, P]`.
        params: Its parameters.
        batch: `Examples` with targets integers `[B, T]`.
        key: As in `jaxrnn.training.apply`.

    Returns:
        A scalar.
    """
    logits = _outputs(model, params, batch, key)
    labels = batch[2].astype(jnp.int32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return _mean_over_steps(losses, batch[1]).mean()


def recall(model: nn.Module, params: Any, batch: Any) -> Float[Array, " B"]:
    """Returns the fraction of the ten symbols of `copying` that are repeated correctly.

    The arguments are those of `step_cross_entropy`. Symbols at random have a recall of 1/8.

    Returns:
        Fractions float32 `[B]`.
    """
    predictions = _outputs(model, params, batch)[:, -COPIED:].argmax(-1)
    return (predictions == batch[2][:, -COPIED:].astype(predictions.dtype)).mean(1)


def sets_cross_entropy(
    model: nn.Module, params: Any, batch: Any, key: Array | None = None
) -> Float[Array, ""]:
    """Computes the mean binary cross-entropy of a set of symbols per time step, in nats.

    Args:
        model: A model from sequences and lengths to logits `[B, T, P]`; the logit of a symbol is
            positive if the model predicts it.
        params: Its parameters.
        batch: `Examples` with targets bool `[B, T, P]`.
        key: As in `jaxrnn.training.apply`.

    Returns:
        A scalar.
    """
    logits = _outputs(model, params, batch, key)
    losses = optax.sigmoid_binary_cross_entropy(logits, batch[2].astype(logits.dtype)).mean(-1)
    return _mean_over_steps(losses, batch[1]).mean()


def sets_accuracy(model: nn.Module, params: Any, batch: Any) -> Bool[Array, " B"]:
    """Returns whether the predicted set is correct at every time step of each sequence.

    This is when Suzgun et al. (2019) call a string accepted. The arguments are those of
    `sets_cross_entropy`.

    Returns:
        Booleans `[B]`.
    """
    correct = ((_outputs(model, params, batch) > 0) == batch[2]).all(-1)
    return (correct | ~within(batch[1], correct.shape[1])).all(1)


class Task(NamedTuple):
    """A synthetic task: its examples, the sizes of a model, and its loss function and metric.

    Attributes:
        generate: The function from a seed, a number of examples and a length to `Examples`.
        num_features: I, the number of input features.
        num_outputs: P, the number of outputs of the model.
        every_step: Whether the model has outputs after every time step, or only after the last.
        loss_fn: The loss function.
        metric_fn: The metric, a value in [0, 1] for each example.
        has_shortest: Whether `generate` also takes `shortest`, the smallest length.
    """

    generate: Callable[..., Examples]
    num_features: int
    num_outputs: int
    every_step: bool
    loss_fn: Loss
    metric_fn: Metric
    has_shortest: bool = True


TASKS: dict[str, Task] = {
    "adding": Task(adding, 2, 1, False, squared_error, within_tolerance, has_shortest=False),
    "copying": Task(copying, 10, 10, True, step_cross_entropy, recall, has_shortest=False),
    "reber": Task(reber, 7, 7, True, sets_cross_entropy, sets_accuracy),
    "parity": Task(parity, 2, 2, False, cross_entropy, accuracy),
    "dyck": Task(dyck, 2, 2, True, sets_cross_entropy, sets_accuracy),
}


class Splits(NamedTuple):
    """A task with three splits.

    Attributes:
        name: The name of the task.
        train: The training split.
        validation: The validation split.
        test: The test split.
        note: Always "", as for a data set that is the one that was asked for.
    """

    name: str
    train: Examples
    validation: Examples
    test: Examples
    note: str = ""


# The numbers of training, validation and test examples.
SIZES = (50_000, 1000, 2000)


def make(
    name: str,
    length: int,
    test_length: int | None = None,
    sizes: tuple[int, int, int] = SIZES,
    seed: int = 0,
) -> Splits:
    """Generates a task, its splits from independent streams of random numbers.

    Short strings of `parity`, `dyck` and `reber` are few, so most of those in validation and test
    may also be in training. With a `test_length` none of the test is.

    Args:
        name: One of `TASKS`.
        length: The length of the training and validation sequences, as in the task's function.
        test_length: The length of the test sequences. If the task has sequences of all lengths up
            to `length`, the test sequences are longer than those, up to `test_length`. Defaults to
            the same lengths as in training.
        sizes: Number of training, validation and test examples.
        seed: The seed.

    Returns:
        The splits.

    Raises:
        ValueError: If there is no such task, or it does not have such a length.
    """
    if name not in TASKS:
        raise ValueError(f"name must be one of {', '.join(TASKS)}, got {name!r}")
    task = TASKS[name]
    train, validation = (
        task.generate([seed, stream], size, length=length) for stream, size in enumerate(sizes[:2])
    )
    test = {"length": length}
    if test_length is not None:
        test = {"length": test_length}
        if task.has_shortest:
            # The lengths of balanced brackets are even.
            least = length - length % 2 + 2 if name == "dyck" else length + 1
            if test_length < least:
                raise ValueError(f"test_length must be at least {least}, got {test_length}")
            test["shortest"] = length + 1
    try:
        held_out = task.generate([seed, 2], sizes[2], **test)
    except ValueError as error:
        raise ValueError(f"test_length: {error}") from None
    return Splits(name, train, validation, held_out)
