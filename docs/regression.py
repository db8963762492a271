"""Forecasts the next value of a series at every time step.

    python docs/regression.py

Each series is a sum of two waves. The target at a time step is the next value.
"""

import flax.linen as nn
import numpy as np

import jaxrnn
from jaxrnn import training
from jaxrnn.linen import Stack


def make_examples(rng, count, time=60):
    """Inputs float32 [N, T, 1] and targets float32 [N, T]."""
    amplitude = rng.uniform(0.3, 1, (count, 2, 1))
    phase = rng.uniform(0, 2 * np.pi, (count, 2, 1))
    period = rng.uniform(5, 20, (count, 2, 1))
    waves = amplitude * np.sin(2 * np.pi * np.arange(time + 1) / period + phase)
    series = waves.sum(1).astype(np.float32)
    return series[:, :-1, None], series[:, 1:]


class Forecaster(nn.Module):
    """A recurrent layer and a linear readout of every time step."""

    cell: jaxrnn.Cell

    @nn.compact
    def __call__(self, inputs):
        """Forecasts [B, T] of inputs [B, T, 1]."""
        return nn.Dense(1)(Stack(self.cell)(inputs))[..., 0]


def metric_fn(model, params, batch):
    """The mean squared error of each series, [B]."""
    inputs, targets = batch
    return ((training.apply(model, params, inputs) - targets) ** 2).mean(-1)


def loss_fn(model, params, batch, key):
    """The mean squared error of the batch; the model has no dropout and needs no key."""
    return metric_fn(model, params, batch).mean()


def main(steps=600, hidden_size=32):
    """Trains; returns the test error relative to that of repeating the last value."""
    rng = np.random.default_rng(0)
    train, test = make_examples(rng, 2000), make_examples(rng, 500)
    naive = ((test[0][..., 0] - test[1]) ** 2).mean()
    optimizer = training.optimizer(
        1e-2, schedule="onecycle", steps=steps, clip_norm=1.0
    )
    fixed = training.Fixed(Forecaster(jaxrnn.lstm(hidden_size)), optimizer)
    trainer, relative = training.Trainer(fixed, loss_fn, metric_fn), np.inf
    for progress in training.fit(
        trainer,
        train,
        {"test": test},
        steps=steps,
        batch_size=50,
        eval_every=max(1, steps // 4),
    ):
        if progress.metrics:
            relative = progress.metrics["test"] / naive
            loss = progress.losses.mean()
            print(
                f"step {progress.step:4d}  loss {loss:.4f}  relative test error {relative:.3f}"
            )
    return relative


if __name__ == "__main__":
    main()
