"""Compiles a train step for TPUs and reads what XLA counts in the program."""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter
from typing import Any

# Set before JAX is imported: this machine is no TPU host.
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn
from jaxrnn import training
from jaxrnn.linen import RNN
from jaxrnn.training.train import BATCH

TIME, FEATURES, HIDDEN, CLASSES = 28, 28, 128, 10
# Few, since XLA counts a copy of all images, which a program of many steps makes only once.
IMAGES = 1000
# The smallest topology with this many chips.
TOPOLOGIES = {1: "v5e:2x2", 4: "v5e:2x2", 64: "v5e:8x8", 256: "v5e:16x16"}
SHARE, FIXED = 100, 1024
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Classifier(nn.Module):
    """The tutorial's model with its loop over time unrolled."""

    @nn.compact
    def __call__(self, inputs: jax.Array, **_: Any) -> jax.Array:
        """Returns the logits `[B, CLASSES]` of sequences `[B, T, I]`."""
        outputs: Any = RNN(jaxrnn.lstm(HIDDEN), unroll=TIME)(inputs)
        return nn.Dense(CLASSES)(outputs[:, -1])


def compile_step(chips: int, batch: int) -> jax.stages.Compiled:
    """Compiles one step of `Trainer.advance` for a number of chips."""
    found = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chips])
    mesh = training.make_mesh(devices=found.devices[:chips])
    trainer = training.Trainer(training.Fixed(Classifier(), training.optimizer(1e-3)), mesh=mesh)
    replicated = NamedSharding(mesh, P())

    def on_chips(tree: Any) -> Any:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated), tree
        )

    def initial(key: jax.Array) -> training.TrainState:
        model, optimizer = trainer.factory({})
        params = model.init(key, jnp.zeros((1, TIME, FEATURES)))["params"]
        return training.TrainState(jnp.int32(0), params, optimizer.init(params))

    key = jax.eval_shape(lambda: jax.random.key(0))
    examples = (
        jax.ShapeDtypeStruct((IMAGES, TIME, FEATURES), np.uint8),
        jax.ShapeDtypeStruct((IMAGES,), np.uint8),
    )
    indices = jax.ShapeDtypeStruct(
        (1, batch), np.int32, sharding=NamedSharding(mesh, P(None, BATCH))
    )
    state = on_chips(jax.eval_shape(initial, key))
    arguments = state, on_chips(key), {}, on_chips(examples), indices
    return type(trainer).advance.lower(trainer, *arguments).compile()


def collectives(text: str) -> tuple[str, int]:
    """Returns the collectives of a program, as "1 all-reduce", and the bytes of their results."""
    kinds, size = Counter(), 0
    pattern = rf"= (\S.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\("
    for shapes, kind in re.findall(pattern, text):
        kinds[kind] += 1
        for dtype, dims in re.findall(r"([a-z]+\d+)\[([\d,]*)\]", shapes):
            item = int(re.sub(r"\D", "", dtype)) // 8
            size += item * int(np.prod([int(dim) for dim in dims.split(",") if dim]))
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none", size


def print_table() -> None:
    """Prints a table with a line for each number of chips and batch size."""
    print(
        "| chips | batch | a chip's share | GFLOP a chip | MB accessed a chip | collectives | MB |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    cases = [(chips, SHARE * chips) for chips in TOPOLOGIES]
    cases += [(chips, FIXED) for chips in TOPOLOGIES]
    for chips, batch in cases:
        started = time.perf_counter()
        compiled = compile_step(chips, batch)
        cost: Any = compiled.cost_analysis()
        kinds, size = collectives(compiled.as_text() or "")
        print(
            f"| {chips} | {batch:,} | {batch // chips} | {cost['flops'] / 1e9:.4f} "
            f"| {cost['bytes accessed'] / 1e6:.1f} | {kinds} | {size / 1e6:.3f} |",
            flush=True,
        )
        print(f"{time.perf_counter() - started:.0f} s to compile", file=sys.stderr)
