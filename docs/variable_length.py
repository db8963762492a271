"""Classifies sequences of different lengths.

    python docs/variable_length.py

Each sequence is a noisy wave with one of three periods. Its label is the period. Past
its length a sequence is padded, and the model does not read the padding.
"""

import numpy as np
import optax

import jaxrnn
from jaxrnn import training
from jaxrnn.linen import Classifier, Stack

PERIODS = np.array([4.0, 6.0, 9.0])


def make_examples(rng, count, longest=40):
    """Sequences float32 [N, T, 1], lengths int32 [N] and labels int32 [N]."""
    labels = rng.integers(0, len(PERIODS), count).astype(np.int32)
    lengths = rng.integers(10, longest + 1, count).astype(np.int32)
    phase = rng.uniform(0, 2 * np.pi, (count, 1))
    waves = np.sin(2 * np.pi * np.arange(longest) / PERIODS[labels][:, None] + phase)
    waves += rng.normal(0, 0.3, waves.shape)
    return waves[..., None].astype(np.float32), lengths, labels


# A batch has the structure of the examples that are passed to `fit`: here three arrays.
def loss_fn(model, params, batch, key):
    """Mean cross-entropy."""
    sequences, lengths, labels = batch
    logits = training.apply(model, params, sequences, lengths, key=key)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def metric_fn(model, params, batch):
    """Whether each sequence is classified correctly, [B]."""
    sequences, lengths, labels = batch
    return training.apply(model, params, sequences, lengths).argmax(-1) == labels


def main(steps=600, hidden_size=32):
    """Trains and returns the test accuracy."""
    rng = np.random.default_rng(0)
    train, test = make_examples(rng, 2000), make_examples(rng, 500)
    model = Classifier(Stack(jaxrnn.gru(hidden_size)), len(PERIODS))
    trainer = training.Trainer(
        training.Fixed(model, optax.adam(3e-3)), loss_fn, metric_fn
    )
    evaluations, accuracy = {"test": test}, 0.0
    for progress in training.fit(
        trainer,
        train,
        evaluations,
        steps=steps,
        batch_size=50,
        eval_every=max(1, steps // 4),
    ):
        if progress.metrics:
            accuracy = progress.metrics["test"]
            loss = progress.losses.mean()
            print(
                f"step {progress.step:4d}  loss {loss:.3f}  test accuracy {accuracy:.3f}"
            )
    return accuracy


if __name__ == "__main__":
    main()
