"""The five forms of recurrent networks, each as a small model.

    python experiments/forms.py one-to-one      a single step reads the whole image and classifies
    python experiments/forms.py one-to-many     a label is read, a digit drawn row by row
    python experiments/forms.py many-to-one     28 rows are read, the digit is classified
    python experiments/forms.py many-to-many    the upper half is read, the lower half drawn
    python experiments/forms.py in-step         the digit is classified after every row

Drawings are judged by a classifier (the form many-to-one) that learned from real digits only.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from devices import share_batch
from experiment import load_dataset
from generative import ConditionalVAE, EncoderDecoder
from jax.sharding import Mesh
from models import NUM_CLASSES, classifier
from options import DatasetName
from terminal import announce, console, run_script

import jaxrnn
from jaxrnn import training
from jaxrnn.training import data, report
from jaxrnn.training.files import write_json

SIDE = data.SIDE
HALF = SIDE // 2
STYLES = 100  # drawings of each label that are judged
# Styles are drawn a little closer together than in training: the rarest look like no digit.
SPREAD = 0.75


@dataclass(frozen=True)
class Config:
    """Train one of the five forms on digits and draw what it does."""

    form: tyro.conf.Positional[
        Literal["one-to-one", "one-to-many", "many-to-one", "many-to-many", "in-step"]
    ]
    dataset: DatasetName = "auto"
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


class Setup(NamedTuple):
    """What all forms train with."""

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
        """A trained classifier as a function from sequences `[N, T, I]` to logits."""
        model = classifier(jaxrnn.lstm(self.config.hidden_size), **options)
        params = self.train(model, (sequences, labels), steps=steps)
        return lambda sequences: np.asarray(training.predict(model, params, sequences))


Result = dict[str, Any]


def one_to_one(setup: Setup, dataset: data.Dataset, out: Path) -> Result:
    """A sequence of a single step: the image as 784 features."""

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
    """The classifier: rows in, one label out."""
    logits = setup.classify(*dataset.train)(dataset.test.images)
    report.confusion(dataset.test.labels, logits.argmax(-1), out / "confusion.png", "Many to one")
    return {"test_accuracy": accuracy(logits, dataset.test.labels)}


def in_step(setup: Setup, dataset: data.Dataset, out: Path) -> Result:
    """A label after every row, and a loss at every row."""
    logits = setup.classify(*dataset.train, every_step=True)(dataset.test.images)
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
    """Nats of each image's pixels, `[B]`: their negative log-likelihood."""
    return optax.sigmoid_binary_cross_entropy(logits, training.scale(images)).sum((-2, -1))


def vae_loss(model: nn.Module, params: Any, batch: Any, key: jax.Array | None = None) -> jax.Array:
    """The negative evidence lower bound."""
    images, labels = batch
    logits, nats = training.apply(
        model, params, training.scale(images), labels.astype(jnp.int32), key=key
    )
    return (drawing_loss(logits, images) + nats).mean()


def one_to_many(setup: Setup, dataset: data.Dataset, out: Path) -> Result:
    """A label and a random style in, 28 rows out."""
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
    """Nats of the lower half, given the upper."""
    upper, lower = batch
    logits = training.apply(model, params, training.scale(upper), key=key)
    return drawing_loss(logits, lower).mean()


def many_to_many(setup: Setup, dataset: data.Dataset, out: Path) -> Result:
    """The upper 14 rows in, the lower 14 out."""
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
    """The share of each set of drawings that a classifier of real digits names as intended."""
    console.print("training the judge on real digits")
    classify = setup.classify(*dataset.train, steps=setup.config.judge_steps)
    console.print(
        f"it names {accuracy(classify(dataset.test.images), dataset.test.labels):.2%} "
        "of the test images correctly"
    )
    return [accuracy(classify(each), labels) for each in drawn]


def accuracy(logits: Any, labels: np.ndarray) -> float:
    """The share that is classified correctly."""
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
    """Trains the form and writes its picture and its results."""
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
    console.print(f"pictures in {out}")
    announce(dataset)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(lambda: main(tyro.cli(Config, description=__doc__))))
