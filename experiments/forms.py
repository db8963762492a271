"""The five forms of recurrent networks, each as a small model that visibly works.

    python experiments/forms.py one-to-one      a single step reads the whole image and names it
    python experiments/forms.py one-to-many     a label is read, a digit drawn row by row
    python experiments/forms.py many-to-one     28 rows are read, the digit is named
    python experiments/forms.py many-to-many    the upper half is read, the lower half drawn
    python experiments/forms.py in-step         after every row the network says what it believes

What is drawn is judged by a classifier (the form many-to-one) that learned from real digits only.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from drawing import ConditionalVAE, EncoderDecoder
from jax.sharding import Mesh
from mnist import NUM_CLASSES, announce, build_mesh, console, load_dataset

import jaxrnn
from jaxrnn.linen import Classifier, Stack
from jaxrnn.training import data, report, train
from jaxrnn.training.run import RunError, write_json

SIDE = data.SIDE
HALF = SIDE // 2
STYLES = 100  # drawings of each label that are judged
# Styles are drawn a little closer together than training saw them: the rarest look like no digit.
SPREAD = 0.75


@dataclass(frozen=True)
class Config:
    """Train one of the five forms on digits and picture what it does."""

    form: tyro.conf.Positional[
        Literal["one-to-one", "one-to-many", "many-to-one", "many-to-many", "in-step"]
    ]
    dataset: Literal["auto", "mnist", "fashion_mnist", "kmnist", "digits"] = "auto"
    data_dir: Path | None = None
    """Folder with the set as IDX, .npz, .csv or .parquet, or prepared by TFDS [JAXRNN_DATA_DIR]."""
    validation_size: int = 5000
    hidden_size: int = 128
    batch_size: int = 100
    steps: int = 5000
    judge_steps: int = 3000
    """Updates of the classifier that judges what is drawn."""
    learning_rate: float = 3e-3
    """Peak of the one-cycle schedule."""
    seed: int = 0
    out: Path = Path("runs/forms")
    """A folder for each form goes in here."""
    devices: int | None = None


@dataclass(frozen=True)
class Trainer:
    """What all forms train with."""

    config: Config
    mesh: Mesh

    def __call__(
        self,
        model: nn.Module,
        examples: tuple[np.ndarray, ...],
        loss_fn: train.Loss = train.cross_entropy,
        steps: int | None = None,
    ) -> Any:
        """Trains the model on the examples and returns its parameters."""
        config, steps = self.config, steps or self.config.steps
        optimizer = train.optimizer(
            config.learning_rate, schedule="onecycle", steps=steps, clip_norm=1.0
        )
        key, noise_key = jax.random.split(jax.random.key(config.seed))
        inputs = train.scale(jnp.asarray(examples[0][:1]))
        arguments = (
            (inputs, jnp.zeros(1, jnp.int32)) if isinstance(model, ConditionalVAE) else (inputs,)
        )
        state = train.create_state(model, optimizer, key, *arguments)
        state, examples = train.replicate((state, examples), self.mesh)
        chunk, started = min(100, steps), time.perf_counter()
        for step in range(0, steps, chunk):
            count = min(chunk, steps - step)
            size = len(jax.tree.leaves(examples)[0])
            indices = data.batch_indices(config.seed, step, count, config.batch_size, size)
            state, losses = train.train_chunk(
                model, optimizer, self.mesh, state, examples, indices, noise_key, loss_fn=loss_fn
            )
            if (step + count) % 500 < count:
                seconds = time.perf_counter() - started
                console.print(f"step {step + count:5d}  loss {losses.mean():.4f}  {seconds:.0f} s")
        return state.params

    def classify(
        self, sequences: np.ndarray, labels: np.ndarray, steps: int | None = None, **options: Any
    ) -> Callable:
        """A trained classifier as a function of sequences `[N, T, I]`; gives logits."""
        stack = Stack(jaxrnn.lstm(self.config.hidden_size))
        model = Classifier(stack, NUM_CLASSES, **options)
        params = self(model, (sequences, labels), steps=steps)
        return partial(train.logits, model, self.mesh, params)


Result = dict[str, Any]


def one_to_one(trainer: Trainer, dataset: data.Dataset, out: Path) -> Result:
    """A sequence of a single step: the image as one row of 784 pixels."""

    def flat(images):
        return images.reshape(len(images), 1, SIDE * SIDE)

    model = Classifier(Stack(jaxrnn.rnn(trainer.config.hidden_size)), NUM_CLASSES)
    params = trainer(model, (flat(dataset.train.images), dataset.train.labels))
    test = flat(dataset.test.images), dataset.test.labels
    report.mistakes(
        dataset.test.images,
        dataset.test.labels,
        train.probabilities(model, params, test[0]),
        out / "mistakes.png",
        "One to one: the most confident mistakes",
    )
    return {"test_accuracy": train.evaluate(model, trainer.mesh, params, *test)}


def many_to_one(trainer: Trainer, dataset: data.Dataset, out: Path) -> Result:
    """The classifier: rows in, one label out."""
    logits = np.asarray(trainer.classify(*dataset.train)(dataset.test.images))
    report.confusion(dataset.test.labels, logits.argmax(-1), out / "confusion.png", "Many to one")
    return {"test_accuracy": accuracy(logits, dataset.test.labels)}


def in_step(trainer: Trainer, dataset: data.Dataset, out: Path) -> Result:
    """A label after every row, and a loss at every row."""
    logits = trainer.classify(*dataset.train, every_step=True)(dataset.test.images)
    beliefs = np.asarray(jax.nn.softmax(logits))
    after = (beliefs.argmax(-1) == dataset.test.labels[:, None]).mean(0)
    report.accuracies(after, out / "accuracy.png", "In step: how many digits are known when")
    shown = [int(np.argmax(dataset.test.labels == label)) for label in range(NUM_CLASSES)]
    report.beliefs(
        dataset.test.images[shown], beliefs[shown], out / "beliefs.png", dataset.test.labels[shown]
    )
    return {
        "test_accuracy": float(after[-1]),
        "test_accuracy_after_row": [round(float(value), 4) for value in after],
    }


def drawing_loss(logits: jax.Array, images: jax.Array) -> jax.Array:
    """Nats that it takes to say each image's pixels, `[B]`."""
    return optax.sigmoid_binary_cross_entropy(logits, train.scale(images)).sum((-2, -1))


def sketch_loss(model, params, batch, key=None):
    """The negative evidence lower bound."""
    images, labels = batch
    logits, nats = train.apply(
        model, params, train.scale(images), labels.astype(jnp.int32), key=key
    )
    return (drawing_loss(logits, images) + nats).mean()


def one_to_many(trainer: Trainer, dataset: data.Dataset, out: Path) -> Result:
    """A label and a random style in, 28 rows out."""
    model = ConditionalVAE(jaxrnn.lstm(2 * trainer.config.hidden_size), NUM_CLASSES, SIDE, SIDE)
    params = trainer(model, tuple(dataset.train), sketch_loss)
    labels = np.repeat(np.arange(NUM_CLASSES), STYLES)
    key = jax.random.key(trainer.config.seed)
    styles = SPREAD * jax.random.normal(key, (len(labels), model.style_size))
    logits = jax.jit(partial(model.apply, method="draw"))({"params": params}, labels, styles)
    drawn = to_bytes(logits)
    report.drawings(
        drawn.reshape(NUM_CLASSES, STYLES, SIDE, SIDE)[:, :12],
        out / "drawings.png",
        [str(label) for label in range(NUM_CLASSES)],
        "One to many: a label and a random style, drawn row by row",
    )
    return {"drawn": len(drawn), "named_correctly": judge(trainer, dataset, labels, drawn)[0]}


def continue_loss(model, params, batch, key=None):
    """Nats of the lower half, given the upper."""
    upper, lower = batch
    return drawing_loss(train.apply(model, params, train.scale(upper), key=key), lower).mean()


def many_to_many(trainer: Trainer, dataset: data.Dataset, out: Path) -> Result:
    """The upper 14 rows in, the lower 14 out."""
    model = EncoderDecoder(jaxrnn.lstm(2 * trainer.config.hidden_size), SIDE - HALF, SIDE)
    images, labels = dataset.train
    params = trainer(model, (images[:, :HALF], images[:, HALF:]), continue_loss)
    images, labels = dataset.test
    lower = to_bytes(train.logits(model, trainer.mesh, params, images[:, :HALF]))
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
    named, upper_alone = judge(trainer, dataset, labels, completed, blank)
    return {
        "drawn": len(completed),
        "named_correctly": named,
        "named_correctly_without_the_drawing": upper_alone,
    }


def judge(
    trainer: Trainer, dataset: data.Dataset, labels: np.ndarray, *drawn: np.ndarray
) -> list[float]:
    """The share of each set of drawings that a classifier of real digits names as meant."""
    console.print("training the judge on real digits")
    classify = trainer.classify(*dataset.train, steps=trainer.config.judge_steps)
    console.print(
        f"it names {accuracy(classify(dataset.test.images), dataset.test.labels):.2%} "
        "of the test images correctly"
    )
    return [accuracy(classify(each), labels) for each in drawn]


def accuracy(logits: Any, labels: np.ndarray) -> float:
    """The share that is named correctly."""
    return float((np.asarray(logits).argmax(-1) == labels).mean())


def to_bytes(logits: Any) -> np.ndarray:
    """Drawings as grey values, as the classifier reads them."""
    return np.asarray(255 * jax.nn.sigmoid(logits)).round().astype(np.uint8)


FORMS = {
    "one-to-one": one_to_one,
    "one-to-many": one_to_many,
    "many-to-one": many_to_one,
    "many-to-many": many_to_many,
    "in-step": in_step,
}


def main(config: Config) -> int:
    """Trains the form and writes its picture and its numbers."""
    out = config.out / config.form
    trainer = Trainer(config, build_mesh(config.batch_size, config.devices))
    dataset = load_dataset(config)
    announce(dataset)
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    result = FORMS[config.form](trainer, dataset, out)
    result |= {"dataset": dataset.name, "seconds": round(time.perf_counter() - started, 1)}
    write_json(out / "result.json", result)
    console.print(json.dumps(result))
    console.print(f"pictures in {out}")
    announce(dataset)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Config, description=__doc__)))
    except (data.DataError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
