"""Training loop, data sets, checkpoints, statistics of runs, and pictures.

    from jaxrnn import training

    trainer = training.Trainer(training.Fixed(model, optax.adam(1e-3)), loss_fn, metric_fn)
    for progress in training.fit(trainer, examples, {"test": test}, steps=1000, batch_size=100):
        print(progress.step, progress.losses.mean(), progress.metrics)

`examples` is a tree of arrays whose leading axis is the example: sequences and labels, or whatever
the loss function and the metric take. docs/variable_length.py and docs/regression.py are complete
scripts. The modules `data`, `tasks`, `checkpoint`, `run`, `compare` and `report` are imported
separately.
"""

from jaxrnn.training.augment import Distortion
from jaxrnn.training.loop import Progress, fit
from jaxrnn.training.losses import (
    AugmentedCrossEntropy,
    Loss,
    Metric,
    accuracy,
    apply,
    cross_entropy,
    scale,
)
from jaxrnn.training.predict import beliefs, predict, probabilities
from jaxrnn.training.train import (
    Factory,
    Fixed,
    Trainer,
    TrainState,
    count_parameters,
    make_mesh,
    optimizer,
)

__all__ = [
    "AugmentedCrossEntropy",
    "Distortion",
    "Factory",
    "Fixed",
    "Loss",
    "Metric",
    "Progress",
    "TrainState",
    "Trainer",
    "accuracy",
    "apply",
    "beliefs",
    "count_parameters",
    "cross_entropy",
    "fit",
    "make_mesh",
    "optimizer",
    "predict",
    "probabilities",
    "scale",
]
