"""Times a training step of each backend on a GPU, with and without CUDA graphs.

    OUT=. python experiments/results/accelerator/earlier/first.py

The last record is a forward pass in one kernel beside a scan. Each record is printed and kept in
first.json as soon as it is there; an H100 takes four minutes, compiling included.
OUT names the folder of the record, by default the current one. On a CPU it runs small.
"""

import json
import os
import statistics
import sys
import time
import traceback

import flax.linen as nn
import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import optax

import jaxrnn

GPU = jax.default_backend() == "gpu"
REPEATS = 30 if GPU else 2
OUT = os.path.join(os.environ.get("OUT", "."), "first.json")
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


def attempt(name, f, **row):
    try:
        keep(what=name, **row, **f())
    except Exception as error:
        keep(what=name, **row, failed=f"{type(error).__name__}: {str(error)[:200]}")
        traceback.print_exc(limit=1)


keep(
    what="machine",
    jax=jax.__version__,
    device=str(jax.devices()[0].device_kind),
    python=sys.version.split()[0],
)


def floor():
    n = 8192 if GPU else 256
    a = jnp.ones((n, n))
    ms = median_ms(jax.jit(lambda a: a @ a), a)
    b = jnp.ones(2**28 if GPU else 2**20)
    copy = median_ms(jax.jit(lambda b: b + 1), b)
    return {
        "TFLOPs_float32_default": round(2 * n**3 / ms / 1e9, 2),
        "GB_per_s": round(2 * b.nbytes / copy / 1e6, 1),
    }


attempt("floor", floor)


def step_of(kind, impl, B, H, T, I, options):
    key = jax.random.key(0)
    x = jax.random.normal(key, (B, T, I))
    y = jax.random.randint(key, (B,), 0, 10)
    optimizer = optax.adam(1e-3)
    if impl == "flax":
        model = nn.RNN(nn.OptimizedLSTMCell(H) if kind == "lstm" else nn.GRUCell(H))
        params = model.init(key, x)
        outputs = model.apply
    else:
        cell = getattr(jaxrnn, kind)(H)
        params = cell.init(key, I)

        def outputs(p, x):
            return jaxrnn.unroll(cell, p, x, implementation=impl)[0]

    weights = (params, jax.random.normal(key, (H, 10)) * 0.1)

    def loss(w, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(
            outputs(w[0], x)[:, -1] @ w[1], y
        ).mean()

    def step(w, s, x, y):
        value, gradient = jax.value_and_grad(loss)(w, x, y)
        updates, s = optimizer.update(gradient, s)
        return optax.apply_updates(w, updates), s, value

    start = time.perf_counter()
    compiled = (
        jax.jit(step)
        .lower(weights, optimizer.init(weights), x, y)
        .compile(compiler_options=options if GPU and options else None)
    )
    seconds = time.perf_counter() - start
    return {
        "compile_s": round(seconds, 1),
        "step_ms": median_ms(compiled, weights, optimizer.init(weights), x, y),
    }


shapes = [(100, 128, 28, 28), (1024, 512, 28, 28), (100, 128, 784, 1)] if GPU else [(4, 8, 5, 3)]
for B, H, T, I in shapes:
    for kind in ("lstm", "gru"):
        for impl in (
            ("flax", "scan", "fused", "cudnn") if kind == "lstm" else ("flax", "scan", "fused")
        ):
            for graphs in (False, True):
                if impl != "cudnn" or not graphs:
                    attempt(
                        "step",
                        lambda: step_of(kind, impl, B, H, T, I, GRAPHS if graphs else None),
                        cell=kind,
                        impl=impl,
                        B=B,
                        H=H,
                        T=T,
                        graphs=graphs,
                    )

# One kernel for the whole sequence: the LSTM's forward pass by Mosaic GPU, bfloat16 products,
# checked against a plain scan of the same roundings.

B, T, H, ROWS, COLS = 128, 28 if GPU else 3, 128, 64, 64
f32, bf16 = jnp.float32, jnp.bfloat16


def gate(i, f, g, o, c):
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def body(drive, kernel, hidden, cells):
    def scoped(h_smem, w_smem, c_smem, barrier):
        rows = pl.ds(jax.lax.axis_index("b") * ROWS, ROWS)
        plgpu.copy_gmem_to_smem(kernel, w_smem, barrier)
        plgpu.barrier_wait(barrier)
        for j in range(H // COLS):
            columns = pl.ds(j * COLS, COLS)
            c_smem[:, columns] = jnp.zeros((ROWS, COLS), f32)
            h_smem[0, :, columns] = jnp.zeros((ROWS, COLS), bf16)
        plgpu.commit_smem()

        def step(t, _):
            now = jax.lax.rem(t, 2)
            for j in range(H // COLS):
                columns = pl.ds(j * COLS, COLS)

                def product(g):
                    def multiply(total):
                        plgpu.wgmma(total, h_smem.at[now], w_smem.at[g, :, columns])
                        return total[...]

                    return pl.run_scoped(multiply, plgpu.ACC((ROWS, COLS), f32))

                z = [
                    product(g) + plgpu.load(drive.at[t, rows, g, columns], optimized=False)
                    for g in range(4)
                ]
                h, c = gate(*z, c_smem[:, columns])
                c_smem[:, columns] = c
                h_smem[1 - now, :, columns] = h.astype(bf16)
                hidden[t, rows, columns] = h
                cells[t, rows, columns] = c
            plgpu.commit_smem()

        jax.lax.fori_loop(0, T, step, None)

    pl.run_scoped(
        scoped,
        plgpu.SMEM((2, ROWS, H), bf16),
        plgpu.SMEM((4, H, H), bf16),
        plgpu.SMEM((ROWS, H), f32),
        plgpu.Barrier(),
    )


def one_kernel(drive, kernel):
    return pl.kernel(
        body,
        (jax.ShapeDtypeStruct((T, B, H), f32),) * 2,
        mesh=plgpu.Mesh(grid=(B // ROWS,), grid_names=("b",)),
        interpret=False if GPU else plgpu.InterpretGPUParams(),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )(drive, kernel)


def plain(drive, kernel):
    def step(state, z):
        h, c = state
        h, c = gate(
            *(
                z[:, g] + jnp.dot(h.astype(bf16), kernel[g], preferred_element_type=f32)
                for g in range(4)
            ),
            c,
        )
        return (h, c), h

    return jax.lax.scan(step, (jnp.zeros((B, H)),) * 2, drive)[1]


def mosaic():
    key = jax.random.key(0)
    drive = jax.random.normal(key, (T, B, 4, H))
    kernel = (jax.random.normal(key, (4, H, H)) / H**0.5).astype(bf16)
    f, g = jax.jit(one_kernel), jax.jit(plain)
    wrong = float(abs(f(drive, kernel)[0] - g(drive, kernel)).max())
    return {
        "one_kernel_ms": median_ms(f, drive, kernel),
        "scan_ms": median_ms(g, drive, kernel),
        "largest_difference": wrong,
    }


attempt("LSTM forward, B=128, T=28, H=128, bfloat16 products", mosaic)
