"""Times unrolled loops, CUDA graphs, ten seeds at once and the evaluation of 10,000 images.

    OUT=. python experiments/results/accelerator/earlier/more.py

The records go to more.json.
OUT names the folder of the record, by default the current one. On a CPU it runs small.
"""

import json
import os
import statistics
import time
import traceback

import jax
import jax.numpy as jnp
import optax

import jaxrnn

GPU = jax.default_backend() == "gpu"
REPEATS = 20 if GPU else 2
OUT = os.path.join(os.environ.get("OUT", "."), "more.json")
RESULTS, START = [], time.time()
GRAPHS = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,WHILE,CONDITIONAL"
}


def keep(**row):
    RESULTS.append(row)
    print(f"{time.time() - START:5.0f} s", *(f"{k}={v}" for k, v in row.items()), flush=True)
    with open(OUT, "w") as f:
        json.dump(RESULTS, f, indent=1)


def median_ms(f, *args):
    jax.block_until_ready(f(*args))
    times = []
    for _ in range(5 if GPU else 1):
        start = time.perf_counter()
        for _ in range(REPEATS):
            out = f(*args)
        jax.block_until_ready(out)
        times.append((time.perf_counter() - start) / REPEATS)
    return round(statistics.median(times) * 1e3, 4)


def compiled(f, graphs, *args):
    start = time.perf_counter()
    c = jax.jit(f).lower(*args).compile(compiler_options=GRAPHS if GPU and graphs else None)
    return c, round(time.perf_counter() - start, 1)


def attempt(name, f, **row):
    try:
        keep(what=name, **row, **f())
    except Exception as error:
        keep(what=name, **row, failed=f"{type(error).__name__}: {str(error)[:200]}")
        traceback.print_exc(limit=1)


B, H, T, I = (100, 128, 28, 28) if GPU else (4, 8, 5, 3)
key = jax.random.key(0)
x = jax.random.normal(key, (B, T, I))
y = jax.random.randint(key, (B,), 0, 10)
optimizer = optax.adam(1e-3)


def step_fn(outputs, params):
    weights = (params, jax.random.normal(key, (H, 10)) * 0.1)

    def loss(w, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(
            outputs(w[0], x)[:, -1] @ w[1], y
        ).mean()

    def step(w, s, x, y):
        value, g = jax.value_and_grad(loss)(w, x, y)
        u, s = optimizer.update(g, s)
        return optax.apply_updates(w, u), s, value

    return step, weights


def timed(outputs, params, graphs, chunk=None):
    step, w = step_fn(outputs, params)
    s = optimizer.init(w)
    if chunk is None:
        c, seconds = compiled(step, graphs, w, s, x, y)
        return {"compile_s": seconds, "step_ms": median_ms(c, w, s, x, y)}

    def many(w, s, x, y):
        def body(ws, _):
            w, s, v = step(*ws, x, y)
            return (w, s), v

        return jax.lax.scan(body, (w, s), None, length=chunk)

    c, seconds = compiled(many, graphs, w, s, x, y)
    return {"compile_s": seconds, "step_ms": round(median_ms(c, w, s, x, y) / chunk, 4)}


for kind in ("lstm", "gru"):
    cell = getattr(jaxrnn, kind)(H)
    params = cell.init(key, I)
    for impl in ("scan", "fused"):
        for unroll in (1, 4, T):
            for graphs in (False, True):
                if kind == "gru" and unroll == 4:
                    continue
                attempt(
                    "unrolled",
                    lambda: timed(
                        lambda p, x: jaxrnn.unroll(cell, p, x, implementation=impl, unroll=unroll)[
                            0
                        ],
                        params,
                        graphs,
                    ),
                    cell=kind,
                    impl=impl,
                    unroll=unroll,
                    graphs=graphs,
                )
cell = jaxrnn.lstm(H)
params = cell.init(key, I)
for unroll in (1, T):
    for graphs in (False, True):
        attempt(
            "20 steps in one program",
            lambda: timed(
                lambda p, x: jaxrnn.unroll(cell, p, x, implementation="fused", unroll=unroll)[0],
                params,
                graphs,
                chunk=20,
            ),
            cell="lstm",
            impl="fused",
            unroll=unroll,
            graphs=graphs,
        )
attempt(
    "20 steps in one program",
    lambda: timed(
        lambda p, x: jaxrnn.unroll(cell, p, x, implementation="cudnn")[0], params, False, chunk=20
    ),
    cell="lstm",
    impl="cudnn",
)
keys = jax.random.split(key, 10)
seeds = jax.vmap(lambda k: cell.init(k, I))(keys)
for impl in ("scan", "fused"):
    for graphs in (False, True):

        def ten():
            step, _ = step_fn(
                lambda p, x: jaxrnn.unroll(cell, p, x, implementation=impl)[0], params
            )
            w = (seeds, jnp.zeros((10, H, 10)) + 0.1)
            s = jax.vmap(optimizer.init)(w)
            c, seconds = compiled(
                lambda w, s, x, y: jax.vmap(step, (0, 0, None, None))(w, s, x, y),
                graphs,
                w,
                s,
                x,
                y,
            )
            return {"compile_s": seconds, "step_ms": median_ms(c, w, s, x, y)}

        attempt("ten seeds by vmap", ten, impl=impl, graphs=graphs)
images = jax.random.normal(key, (10_000 if GPU else 20, T, I))
for impl in ("scan", "fused", "cudnn"):
    for graphs in (False, True):
        if impl == "cudnn" and graphs:
            continue

        def evaluate():
            c, seconds = compiled(
                lambda p, x: jaxrnn.unroll(cell, p, x, implementation=impl)[0][:, -1],
                graphs,
                params,
                images,
            )
            return {"compile_s": seconds, "ms": median_ms(c, params, images)}

        attempt("evaluate 10,000 at once", evaluate, impl=impl, graphs=graphs)
for name, c, I2 in (("min_gru", jaxrnn.min_gru(64), 64), ("lru", jaxrnn.lru(64), 64)):
    p = c.init(key, I2)
    xs = jax.random.normal(key, (100 if GPU else 2, 784 if GPU else 30, I2))
    for impl in ("scan", "parallel"):

        def linear():
            c2, seconds = compiled(
                jax.grad(lambda p, x: (jaxrnn.unroll(c, p, x, implementation=impl)[0] ** 2).mean()),
                False,
                p,
                xs,
            )
            return {"compile_s": seconds, "ms": median_ms(c2, p, xs)}

        attempt("gradient, 784 steps", linear, cell=name, impl=impl)
