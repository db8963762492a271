"""Compares every cell and backend on this device with "scan" in float64 on the host.

    PYTHONPATH=tests OUT=. python experiments/results/accelerator/correct.py

`value` and `gradient` are the largest differences of the outputs and of the gradients (parameters
and inputs), each relative to the largest entry of its array. `dressed` means with lengths and
resets. ONLY names the beginning of the cells' names to check. The records go to correct.json.
OUT names the folder of the record, by default the current one. On a CPU it runs small.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import all_cells
import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn

GPU = jax.default_backend() == "gpu"
HOST = jax.devices("cpu")[0]
B, T = 6, 9
OUT = os.path.join(os.environ.get("OUT", "."), "correct.json")
CELLS = {k: v for k, v in all_cells.CELLS.items() if k.startswith(os.environ.get("ONLY", ""))}
rng = np.random.default_rng(0)
X = rng.normal(size=(B, T, all_cells.I))
LENGTHS = np.array([9, 5, 0, 7, 9, 1])
RESETS = rng.random((B, T)) < 0.2
results = []
with jax.default_device(HOST):
    PARAMS = {n: c.init(jax.random.key(3), all_cells.I) for n, c in CELLS.items()}


def run(name, impl, dressed, precision):
    cell = CELLS[name]

    def make(dtype, implementation, device):
        with jax.default_device(device):
            p = jax.tree.map(
                lambda a: jnp.asarray(
                    np.asarray(a, np.result_type(dtype, 1j) if np.iscomplexobj(a) else dtype)
                ),
                PARAMS[name],
            )
            x = jnp.asarray(X, dtype)
            kw = {"lengths": jnp.asarray(LENGTHS), "resets": jnp.asarray(RESETS)} if dressed else {}

            def loss(p, x):
                y, s = jaxrnn.unroll(cell, p, x, implementation=implementation, **kw)
                return (
                    jnp.sin(y).sum() + sum(jnp.cos(leaf).sum() for leaf in jax.tree.leaves(s))
                ), y

            with jax.default_matmul_precision(precision):
                (_, y), g = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(p, x)
            return jax.tree.map(np.asarray, (y, g))

    row = {"cell": name, "impl": impl, "dressed": dressed, "precision": precision}
    try:
        with jax.enable_x64(True):
            want = make(np.float64, "scan", HOST)
        got = make(np.float32, impl, jax.devices()[0])

        def off(a, b):
            la, lb = jax.tree.leaves(a), jax.tree.leaves(b)
            return max(
                (
                    float(np.abs(x - y).max() / (np.abs(y).max() + 1e-9))
                    if np.isfinite(x).all()
                    else float("nan")
                )
                for x, y in zip(la, lb, strict=True)
                if x.size
            )

        row.update(value=off(got[0], want[0]), gradient=off(got[1], want[1]))
    except Exception as e:
        row.update(failed=f"{type(e).__name__}: {str(e)[:300]}")
    results.append(row)
    print(
        *(f"{k}={v:.1e}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()),
        flush=True,
    )
    with open(OUT, "w") as f:
        json.dump(results, f, indent=1)


jobs = []
for name, cell in CELLS.items():
    impls = (
        ["scan"]
        + (["fused"] if cell.gate is not None else [])
        + (["parallel"] if cell.recurrence is not None else [])
    )
    for impl in impls:
        jobs.append((name, impl, True, "highest"))
for impl in ("scan", "fused", "cudnn") if "lstm" in CELLS else ():
    jobs.append(("lstm", impl, False, "highest"))
    jobs.append(("lstm", impl, False, "default"))
with ThreadPoolExecutor(12 if GPU else 2) as pool:
    list(pool.map(lambda j: run(*j), jobs))
print(
    len(results),
    "checked;",
    sum("failed" in r for r in results),
    "failed; largest at highest precision:",
    max(
        (
            max(r["value"], r["gradient"])
            for r in results
            if "failed" not in r and r["precision"] == "highest"
        ),
        default=None,
    ),
)
