"""Times a deep stack over a long sequence, with and without blocks of time.

taskset -c 1 python docs/blocks_of_time.py lstm --batch 8 --hidden 64 --layers 2
"""

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

import jaxrnn
from jaxrnn.linen import Classifier, Stack

parser = argparse.ArgumentParser()
parser.add_argument("cell", choices=["lstm", "gru", "min_gru", "lru", "s5"])
for name, default in {"batch": 25, "hidden": 64, "layers": 2, "time": 784}.items():
    parser.add_argument(f"--{name}", type=int, default=default)
options = parser.parse_args()

cell = getattr(jaxrnn, options.cell)(options.hidden)
inputs = jax.random.uniform(jax.random.key(0), (options.batch, options.time, 1))
gradients, times = {}, {}
for block in (None, 14, 28, 56):
    model = Classifier(
        Stack(cell, num_layers=options.layers, block=block), num_classes=10
    )
    params = model.init(jax.random.key(0), inputs)

    def loss(params, model=model):
        """Returns a scalar that depends on all parameters."""
        logits: Any = model.apply(params, inputs)
        return jnp.square(logits).sum()

    gradients[block] = jax.jit(jax.grad(loss)).lower(params).compile()
    times[block] = []
for _ in range(5):  # in turn, so that all see the same load
    for block, gradient in gradients.items():
        started = time.perf_counter()
        jax.block_until_ready(gradient(params))
        times[block].append(1e3 * (time.perf_counter() - started))
for block, each in times.items():
    print(f"block={block}: {statistics.median(each):.0f} ms a gradient")
