"""Trains and evaluates the five forms of recurrent networks of experiments/forms.py."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from devices import share_batch
from experiment import load_dataset
from generative import ConditionalVAE, EncoderDecoder
from jax.sharding import Mesh
from models import NUM_CLASSES, classifier
from terminal import announce, console

import jaxrnn
from jaxrnn import training
from jaxrnn.training import data, report
from jaxrnn.training.files import write_json

if TYPE_CHECKING:
    from forms import Config

SIDE = data.SIDE
HALF = SIDE // 2
STYLES = 100  # generated images of each label
# Standard deviation of the sampled styles, less than the prior's 1: the rarest look like no digit.
SPREAD = 0.75


class Setup(NamedTuple):
    """The options, and the devices that share each batch."""

    config: Config
    mesh: Mesh

    def train(
        self,
        model: nn.Module,
        examples: tuple[np.ndarray, ...],
        loss_fn: training.Loss = training.cross_entropy,
        steps: int | None = None,
        inputs: tuple[Any, ...] | None = None,
    ) -> Any:
        """Trains a model on examples and returns its parameters; `inputs` as in `training.fit`."""
        config, steps = self.config, steps or self.config.steps
        optimizer = training.optimizer(
            config.learning_rate, schedule="onecycle", steps=steps, clip_norm=1.0
        )
        trainer = training.Trainer(training.Fixed(model, optimizer), loss_fn, mesh=self.mesh)
        started, progress = time.perf_counter(), None
        for progress in training.fit(
            trainer,
            examples,
            steps=steps,
            batch_size=config.batch_size,
            seed=config.seed,
            inputs=inputs,
        ):
            if progress.step % 500 == 0:
                loss, seconds = progress.losses.mean(), time.perf_counter() - started
                console.print(f"step {progress.step:5d}  loss {loss:.4f}  {seconds:.0f} s")
        assert progress is not None  # there is at least one step
        return progress.state.params

    def classify(
        self, sequences: np.ndarray, labels: np.ndarray, steps: int | None = None, **options: Any
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Trains a classifier; returns it as a function from sequences `[N, T, I]` to logits."""
        model = classifier(jaxrnn.lstm(self.config.hidden_size), **options)
        params = self.train(model, (sequences, labels), steps=steps)
        return lambda sequences: np.asarray(training.predict(model, params, sequences))


Result = dict[str, Any]


def one_to_one(setup: Setup, dataset: data.Dataset, out: Path) -> Result:
    """Classifies a sequence of a single time step, the image as 784 features."""

    def flat(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), 1, SIDE * SIDE)

    (images, labels), test = dataset.train, dataset.test
    model = classifier(jaxrnn.rnn(setup.config.hidden_size))
    params = setup.train(model, (flat(images), labels))
    probabilities = training.probabilities(model, params, flat(test.images))
    title = "One to one: the most confident mistakes"
    report.mistakes(test.images, test.labels, probabilities, out / "mistakes.png", title)
    return {"test_accuracy": accuracy(probabilities, test.labels)}


def many_to_one(setup: Setup, dataset: data.Dataset, out: Path) -> Result:
    """Classifies an image after its last row."""
    logits = setup.classify(*dataset.train)(dataset.test.images)
    report.confusion(dataset.test.labels, logits.argmax(-1), out / "confusion.png", "Many to one")
    return {"test_accuracy": accuracy(logits, dataset.test.labels)}


def in_step(setup: Setup, dataset: data.Dataset, out: Path) -> Result:
    """Classifies an image after every row, with a loss at every row."""
    logits = setup.classify(*dataset.train, every_step=True)(dataset.test.images)
    beliefs = np.asarray(jax.nn.softmax(logits))
    after = (beliefs.argmax(-1) == dataset.test.labels[:, None]).mean(0)
    report.accuracies(after, out / "accuracy.png", "In step: accuracy after each row")
    shown = [int(np.argmax(dataset.test.labels == label)) for label in range(NUM_CLASSES)]
    report.beliefs(
        dataset.test.images[shown], beliefs[shown], out / "beliefs.png", dataset.test.labels[shown]
    )
    return {
        "test_accuracy": float(after[-1]),
        "test_accuracy_after_row": [round(float(value), 4) for value in after],
    }


def drawing_loss(logits: jax.Array, images: jax.Array) -> jax.Array:
    """Returns the negative log-likelihood of the pixels of each image in nats, `[B]`."""
    return optax.sigmoid_binary_cross_entropy(logits, training.scale(images)).sum((-2, -1))


def vae_loss(model: nn.Module, params: Any, batch: Any, key: jax.Array | None = None) -> jax.Array:
    """Returns the negative evidence lower bound in nats."""
    images, labels = batch
    logits, nats = training.apply(
        model, params, training.scale(images), labels.astype(jnp.int32), key=key
    )
    return (drawing_loss(logits, images) + nats).mean()


def one_to_many(setup: Setup, dataset: data.Dataset, out: Path) -> Result:
    """Generates 28 rows from a label and a random style."""
    model = ConditionalVAE(jaxrnn.lstm(2 * setup.config.hidden_size), NUM_CLASSES, SIDE, SIDE)
    inputs = np.zeros((1, SIDE, SIDE), np.float32), np.zeros(1, np.int32)
    params = setup.train(model, tuple(dataset.train), vae_loss, inputs=inputs)
    labels = np.repeat(np.arange(NUM_CLASSES), STYLES)
    key = jax.random.key(setup.config.seed)
    styles = SPREAD * jax.random.normal(key, (len(labels), model.style_size))
    logits = jax.jit(partial(model.apply, method="draw"))({"params": params}, labels, styles)
    drawn = to_bytes(logits)
    report.drawings(
        drawn.reshape(NUM_CLASSES, STYLES, SIDE, SIDE)[:, :12],
        out / "drawings.png",
        [str(label) for label in range(NUM_CLASSES)],
        "One to many: a label and a random style, drawn row by row",
    )
    return {"drawn": len(drawn), "named_correctly": judge(setup, dataset, labels, drawn)[0]}


def completion_loss(
    model: nn.Module, params: Any, batch: Any, key: jax.Array | None = None
) -> jax.Array:
    """Returns the negative log-likelihood in nats of the lower half, given the upper."""
    upper, lower = batch
    logits = training.apply(model, params, training.scale(upper), key=key)
    return drawing_loss(logits, lower).mean()


def many_to_many(setup: Setup, dataset: data.Dataset, out: Path) -> Result:
    """Generates the lower 14 rows from the upper 14."""
    model = EncoderDecoder(jaxrnn.lstm(2 * setup.config.hidden_size), SIDE - HALF, SIDE)
    images, labels = dataset.train
    params = setup.train(model, (images[:, :HALF], images[:, HALF:]), completion_loss)
    images, labels = dataset.test
    lower = to_bytes(training.predict(model, params, images[:, :HALF]))
    completed = np.concatenate([images[:, :HALF], lower], axis=1)
    blank = images.copy()
    blank[:, HALF:] = 0
    shown = [np.flatnonzero(labels == label)[0] for label in range(NUM_CLASSES)]
    report.drawings(
        np.stack([images[shown], blank[shown], completed[shown]]),
        out / "drawings.png",
        ["the digit", "read", "completed"],
        "Many to many: the upper half is read, the lower half drawn",
    )
    named, upper_alone = judge(setup, dataset, labels, completed, blank)
    return {
        "drawn": len(completed),
        "named_correctly": named,
        "named_correctly_without_the_drawing": upper_alone,
    }


def judge(
    setup: Setup, dataset: data.Dataset, labels: np.ndarray, *drawn: np.ndarray
) -> list[float]:
    """Returns the accuracies of a classifier trained on real digits on sets of drawings."""
    console.print("training the classifier that judges, on real digits")
    classify = setup.classify(*dataset.train, steps=setup.config.judge_steps)
    console.print(
        f"its test accuracy: {accuracy(classify(dataset.test.images), dataset.test.labels):.2%}"
    )
    return [accuracy(classify(each), labels) for each in drawn]


def accuracy(logits: Any, labels: np.ndarray) -> float:
    """Returns the accuracy."""
    return float((np.asarray(logits).argmax(-1) == labels).mean())


def to_bytes(logits: Any) -> np.ndarray:
    """Returns generated images as uint8, the input of the classifier."""
    return np.asarray(255 * jax.nn.sigmoid(logits)).round().astype(np.uint8)


FORMS = {
    "one-to-one": one_to_one,
    "one-to-many": one_to_many,
    "many-to-one": many_to_one,
    "many-to-many": many_to_many,
    "in-step": in_step,
}


def run(config: Config) -> int:
    """Trains the form and writes its figures and its result; returns the exit code."""
    config.check()
    out = config.out / config.form
    setup = Setup(config, share_batch(config.batch_size, config.devices))
    dataset = load_dataset(config.dataset, config.data_dir, config.validation_size)
    announce(dataset)
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    result = FORMS[config.form](setup, dataset, out)
    result |= {"dataset": dataset.name, "seconds": round(time.perf_counter() - started, 1)}
    write_json(out / "result.json", result)
    console.print(json.dumps(result))
    console.print(f"figures: {out}")
    announce(dataset)
    return 0
