"""Measures the error of every backend on this device against "scan" in float64 on the host's CPU.

The error of an array is the largest difference relative to the largest entry of the array. Compared
are the outputs, the final states, and the gradients of the parameters, the inputs, the initial
state and the reset state.

Shapes: B batch, T time, I input features, H hidden units.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from cells import CELLS
from measurements import Measurements, compile_threads, outcome

import jaxrnn
from jaxrnn.backends import BACKENDS, pallas
from jaxrnn.backends.pallas import gpu, tpu
from jaxrnn.backends.pallas.products import card_of

# By name: whether there are lengths, whether there are resets, and options of `jaxrnn.unroll`.
VARIANTS: dict[str, tuple[bool, bool, dict[str, Any]]] = {
    "plain": (False, False, {}),
    "lengths": (True, False, {}),
    "lengths and resets": (True, True, {}),
    "reversed": (True, True, {"reverse": True}),
    "recomputed": (True, True, {"memory": "recompute"}),
    "truncated": (True, True, {"truncate": 4}),
    "two seeds": (True, True, {}),
    "bfloat16": (True, True, {"dtype": jnp.bfloat16}),
}
MASKED = "lengths and resets"
FIGURES = ("outputs", "state", "gradients")
INTERPRETED, AMPERE = "pallas, interpreted", "pallas, mma"


class Case(NamedTuple):
    """A comparison of all backends.

    Attributes:
        name: The name of the cell in `cells`.
        variant: One of `VARIANTS`.
        precision: The `jax_default_matmul_precision`. None is the default of the device.
        shape: B, T, I and H.
    """

    name: str
    variant: str = MASKED
    precision: str | None = "highest"
    shape: tuple[int, int, int, int] = (6, 9, 5, 20)


def cells(hidden_size: int) -> dict[str, jaxrnn.Cell]:
    """Returns every cell of --cell, and cells with options that --cell does not name."""
    every = {name: constructor(hidden_size) for name, constructor in CELLS.items()}
    return every | {
        "lstm-clip": jaxrnn.lstm(hidden_size, cell_clip=0.3),
        "lstm-softsign": jaxrnn.lstm(hidden_size, activation=jax.nn.soft_sign),
        "lstm-everything": jaxrnn.lstm(
            hidden_size, peephole=True, projection_size=max(2, hidden_size // 2), cell_clip=0.5
        ),
    }


def cases(small: bool) -> list[Case]:
    """Returns the comparisons, the most valuable first."""
    if small:
        shape = 3, 4, 2, 3
        found = [Case(name, shape=shape) for name in ("lstm", "lru")]
        return [*found, Case("gru", "two seeds", None, shape)]
    real, wide = (100, 28, 28, 128), (100, 28, 28, 512)
    most = ("lstm", "gru", "lstm-peephole")
    found = [
        *(Case(name, MASKED, None, real) for name in most),
        *(Case(name, "plain", None, real) for name in most),
        *(Case(name, "bfloat16", None, real) for name in most),
        *(Case(name, variant, None) for variant in VARIANTS for name in most),
        *(Case(name, MASKED, None) for name in cells(1)),
        *(Case(name, "two seeds", None, real) for name in most),
        *(Case(name, shape=real) for name in most),
        *(Case(name) for name in cells(1)),
        Case("lstm", "plain", "highest", real),
        *(Case("lru", variant, None, (20, 784, 8, 64)) for variant in (MASKED, "recomputed")),
        *(Case(name, MASKED, None, wide) for name in most),
    ]
    return list(dict.fromkeys(found))


def compare(measurements: Measurements, small: bool) -> None:
    """Adds a record for each case and backend.

    Most of the time is spent in tracing and lowering, which threads of a process cannot do at once.
    A GPU can be used by several processes, a TPU cannot.
    """
    compared = partial(compare_case, deadline=measurements.deadline)
    workers = compile_threads(small)
    if jax.default_backend() == "gpu":
        context = multiprocessing.get_context("spawn")  # a forked process could not use the GPU
        pool = ProcessPoolExecutor(workers, context, start_process)
    else:
        pool = ThreadPoolExecutor(workers, initializer=add_backends)
    with pool:
        for records in as_completed([pool.submit(compared, case) for case in cases(small)]):
            for record in records.result():
                measurements.add(record)


def start_process() -> None:
    """Turns autotuning off, which takes most of the time of a compilation, and adds backends."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
    add_backends()


def add_backends() -> None:
    """Adds the kernels for other devices to `BACKENDS`, where this device can run them.

    A CPU interprets the kernels for TPUs. Hopper GPUs also have the instructions of the kernels for
    Ampere, which JAX has from 0.11.
    """
    device = jax.devices()[0]
    if device.platform == "cpu":
        BACKENDS[INTERPRETED] = pallas.with_kernels(tpu, interpret=True)
    elif getattr(device, "compute_capability", None) == "9.0" and card_of("8.0"):
        BACKENDS[AMPERE] = pallas.with_kernels(gpu, card=card_of("8.0"))


def compare_case(case: Case, deadline: float) -> list[dict[str, Any]]:
    """Returns a record for each backend."""
    about = case._asdict() | {"precision": case.precision or "default"}
    want: list[Any] = []

    def reference():
        arguments = draw(case)
        with jax.enable_x64(True):  # pyright: ignore[reportArgumentType]
            want[:] = (
                arguments,
                *compute(case, arguments, "scan", jax.devices("cpu")[0], np.float64),
            )
        return {}

    if failed := outcome(reference, deadline):
        return [about | {"implementation": "the reference"} | failed]
    records = []
    for name in BACKENDS:

        def difference(name=name):
            arguments, *exact = want
            got = compute(case, arguments, name, jax.devices()[0], np.float32)
            pairs = zip(FIGURES, got, exact, strict=True)
            return {what: largest_difference(*each) for what, *each in pairs}

        records.append(about | {"implementation": name} | outcome(difference, deadline))
    return records


def draw(case: Case) -> tuple[Any, ...]:
    """Returns parameters, inputs, initial state and reset state, in float64 and nonzero."""
    batch, time, features, hidden = case.shape
    rng, cell = np.random.default_rng(0), cells(hidden)[case.name]

    def drawn(leaf, scale):
        return np.asarray(leaf, np.result_type(leaf.dtype, np.float64)) + scale * rng.normal(
            size=leaf.shape
        )

    with jax.default_device(jax.devices("cpu")[0]):
        seeds = [cell.init(jax.random.key(seed), features) for seed in (3, 4)]
        state = cell.initial_state(seeds[0], (batch,))
    seeds = [jax.tree.map(lambda leaf: drawn(leaf, 0.1), params) for params in seeds]
    params = jax.tree.map(lambda *leaves: np.stack(leaves), *seeds)
    if case.variant != "two seeds":
        params = seeds[0]
    start, again = (jax.tree.map(lambda leaf: drawn(leaf, 0.5), state) for _ in range(2))
    return params, rng.normal(size=(batch, time, features)), start, again


def compute(
    case: Case, arguments: tuple[Any, ...], implementation: str, device: jax.Device, dtype: Any
) -> Iterable[Any]:
    """Returns outputs, final state and gradients of the arguments, as NumPy arrays."""
    with_lengths, with_resets, options = VARIANTS[case.variant]
    batch, time, _, hidden = case.shape
    rng, cell = np.random.default_rng(1), cells(hidden)[case.name]
    lengths = np.resize([time, 0, time // 2, 1, time - 1], batch) if with_lengths else None
    resets = rng.random((batch, time)) < 0.2 if with_resets else None
    if dtype == np.float64:
        options = {name: value for name, value in options.items() if name != "dtype"}

    def one(params, x, start, again):
        return jaxrnn.unroll(
            cell,
            params,
            x,
            initial_state=start,
            reset_state=again,
            lengths=lengths,
            resets=resets,
            implementation=implementation,
            **options,
        )

    def loss(arguments):
        several = case.variant == "two seeds"
        run = jax.vmap(one, (0, None, None, None)) if several else one
        found = run(*arguments)
        return sum(jnp.sin(leaf).real.sum() for leaf in jax.tree.leaves(found)), found

    def cast(leaf):
        return jnp.asarray(leaf, np.result_type(dtype, 1j) if np.iscomplexobj(leaf) else dtype)

    with jax.default_device(device), jax.default_matmul_precision(case.precision):
        gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (_, (outputs, state)), gradients = gradient(jax.tree.map(cast, arguments))
        return jax.tree.map(np.asarray, (outputs, state, gradients))


def largest_difference(got: Any, want: Any) -> float:
    """Returns the largest difference of any array, relative to its largest entry.

    Raises:
        ArithmeticError: If an entry is not finite. The message names the array.
    """
    largest = 0.0
    for (path, one), exact in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        if not np.isfinite(one).all():
            raise ArithmeticError(f"{jax.tree_util.keystr(path) or 'an output'} is not finite")
        if one.size:
            largest = max(largest, float(abs(one - exact).max() / (abs(exact).max() + 1e-9)))
    return largest


def summary(records: list[dict[str, Any]]) -> str:
    """Returns a table of the largest errors of each backend at each precision, and the failures."""
    head = ("implementation", "precision", "cases", "outputs", "states", "gradients")
    lines = [head, ["---"] * len(head)]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each in records:
        if "outputs" in each:
            precision = "bfloat16" if each["variant"] == "bfloat16" else each["precision"]
            groups.setdefault((each["implementation"], precision), []).append(each)
    for key, found in sorted(groups.items()):
        largest = (max(each[what] for each in found) for what in FIGURES)
        lines.append([*key, str(len(found)), *(f"{each:.1e}" for each in largest)])
    failed = [f"failed: {each}" for each in records if "failed" in each]
    return "\n".join([f"| {' | '.join(line)} |" for line in lines] + failed)
