"""Times steps per loop iteration (`unroll=`), and prototypes of one kernel for a whole sequence.

    OUT=. python kernels.py [grid longs mosaics bigs forwards]

Programs are traced in this thread and compiled by WORKERS threads, one group at a time; a group is
timed when all of it is compiled, so nothing else runs then. Each record is printed and kept in
kernels.json as soon as it is there. No new work starts after BUDGET seconds. ONLY names a part of
the names of the prototypes to run. `launches` counts the instructions that are launches, in the
entry and in each loop body of the compiled program.
OUT names the folder of the record, by default the current one. On a CPU it runs small.
"""

import collections
import functools
import json
import os
import re
import statistics
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import optax

import jaxrnn

GPU = jax.default_backend() == "gpu"
INTERPRET = not GPU
BUDGET = float(os.environ.get("BUDGET", 200))
WORKERS = int(os.environ.get("WORKERS", 8 if GPU else 2))
FOLDER = os.environ.get("OUT", ".")
RESULTS, START = [], time.time()


def elapsed():
    return time.time() - START


def keep(**row):
    RESULTS.append(row)
    print(f"{elapsed():5.0f} s", *(f"{k}={v}" for k, v in row.items()), flush=True)
    with open(os.path.join(FOLDER, "kernels.json"), "w") as f:
        json.dump(RESULTS, f, indent=1)


def median_ms(f, *args):
    jax.block_until_ready(f(*args))
    start = time.perf_counter()
    jax.block_until_ready(f(*args))
    once = time.perf_counter() - start
    runs = max(4, min(20, int(0.15 / once))) if GPU else 1
    times = []
    for _ in range(5 if GPU else 1):
        start = time.perf_counter()
        for _ in range(runs):
            out = f(*args)
        jax.block_until_ready(out)
        times.append((time.perf_counter() - start) / runs)
    return {
        "ms": round(statistics.median(times) * 1e3, 4),
        "ms_min": round(min(times) * 1e3, 4),
        "ms_max": round(max(times) * 1e3, 4),
        "runs": runs,
    }


def failure(error):
    traceback.print_exc(limit=2)
    return f"{type(error).__name__}: {str(error)[:300]}"


def launches(text):
    """Counts the instructions of a compiled module that are launches: {computation: count}."""
    counts, name, fused = {}, None, set(re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", text))
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            name = "entry" if head[1] else head[2]
        elif (
            name
            and name not in fused
            and re.search(
                r" (fusion|custom-call|copy|dot|reduce|sort|convolution|"
                r"dynamic-update-slice|scatter|gather)\(",
                line,
            )
        ):
            counts[name] = counts.get(name, 0) + 1
    return {
        k if k == "entry" else f"loop{n}": v
        for n, (k, v) in enumerate(sorted(counts.items()))
        if v > 2 or k == "entry"
    }


def group(jobs):
    """Lowers here, compiles in threads, then times in order.

    Args:
        jobs: Pairs (row, make); make() returns (function, arguments, check or None).
    """
    with ThreadPoolExecutor(WORKERS) as pool:
        waiting = collections.deque()
        for row, make in jobs:
            if elapsed() > BUDGET:
                keep(**row, skipped="out of time")
                continue
            try:
                start = time.perf_counter()
                f, args, check = make()
                lowered = jax.jit(f).lower(*args)
                trace = round(time.perf_counter() - start, 2)

                def build(lowered=lowered):
                    start = time.perf_counter()
                    return lowered.compile(), round(time.perf_counter() - start, 2)

                waiting.append((row, trace, args, check, pool.submit(build)))
            except Exception as error:
                keep(**row, failed=failure(error))
    while waiting:  # all compiled, or failed
        row, trace, args, check, future = waiting.popleft()
        if elapsed() > BUDGET:
            keep(**row, skipped="out of time")
            continue
        try:
            compiled, seconds = future.result()
            row = {**row, "trace_s": trace, "compile_s": seconds}
            if check is not None:
                row["largest_difference"] = check(compiled, args)
            row.update(median_ms(compiled, *args))
            try:
                text = compiled.as_text()
                if "mosaic" not in row["what"]:
                    row["launches"] = launches(text)
                if row.get("dump"):
                    name = f"{row['cell']}_{row['impl']}_{row['unroll']}.hlo.txt"
                    with open(os.path.join(FOLDER, name), "w") as f:
                        f.write(text)
            except Exception as error:
                row["launches"] = failure(error)
            keep(**row)
        except Exception as error:
            keep(**row, failed=failure(error))


# (1) Steps per iteration of the loop.
key = jax.random.key(0)
optimizer = optax.adam(1e-3)


@functools.lru_cache
def data(B, T, I):
    return (
        jax.random.normal(key, (B, T, I)),
        jax.random.randint(key, (B,), 0, 10),
        jax.random.randint(key, (B,), 1, T + 1),
        jax.random.bernoulli(key, 0.05, (B, T)),
    )


@functools.lru_cache
def model(kind, H, I):
    cell = (
        jaxrnn.lstm(H, peephole=True)
        if kind == "peephole lstm, lengths, resets"
        else getattr(jaxrnn, kind)(H)
    )
    return cell, (cell.init(key, I), jax.random.normal(key, (H, 10)) * 0.1)


def training(kind, impl, B, H, T, I, unroll, memory=None, forward=False):
    cell, weights = model(kind, H, I)
    x, y, lengths, resets = data(B, T, I)
    more = (lengths, resets) if "lengths" in kind else ()

    def outputs(p, x, *more):
        return jaxrnn.unroll(
            cell,
            p,
            x,
            implementation=impl,
            unroll=unroll,
            memory=memory,
            **dict(zip(("lengths", "resets"), more, strict=False)),
        )[0]

    if forward:
        return outputs, (weights[0], x, *more), None

    def loss(w, x, y, *more):
        return optax.softmax_cross_entropy_with_integer_labels(
            outputs(w[0], x, *more)[:, -1] @ w[1], y
        ).mean()

    def step(w, s, x, y, *more):
        value, g = jax.value_and_grad(loss)(w, x, y, *more)
        u, s = optimizer.update(g, s)
        return optax.apply_updates(w, u), s, value

    return step, (weights, optimizer.init(weights), x, y, *more), None


def job(what, kind, impl, B, H, T, I, unroll, memory=None, dump=False):
    row = (
        {"what": what, "cell": kind, "impl": impl, "B": B, "H": H, "T": T, "unroll": unroll}
        | ({} if memory is None and T < 100 else {"memory": str(memory)})
        | ({"dump": True} if dump else {})
    )
    return row, lambda: training(kind, impl, B, H, T, I, unroll, memory, what == "forward")


PEEP = "peephole lstm, lengths, resets"
if GPU:
    SMALL, LONG, BIG, US, LU, BU = (
        (100, 128, 28, 28),
        (100, 128, 784, 1),
        (1024, 512, 28, 28),
        (1, 2, 4, 7, 14, 28),
        (1, 4, 8, 14, 28),
        (1, 4, 14),
    )
else:
    SMALL, LONG, BIG, US, LU, BU = (
        (4, 8, 6, 3),
        (2, 8, 56, 1),
        (8, 16, 6, 3),
        (1, 3),
        (1, 14),
        (1, 3),
    )
KINDS = ("lstm", "fused"), ("gru", "fused"), (PEEP, "fused"), ("lstm", "scan")


def grid():
    for kind, impl in KINDS:
        group(
            [
                job(
                    "step",
                    kind,
                    impl,
                    *SMALL,
                    u,
                    dump=GPU and (kind, u) in (("gru", 14), ("gru", 28), ("lstm", 28)),
                )
                for u in US[::-1]
            ]
        )  # the slowest to compile first


def forwards():
    group([job("forward", kind, impl, *SMALL, u) for kind, impl in KINDS for u in US[::-1]])


def longs():
    for kind in ("lstm", "gru"):
        group(
            [
                job("step", kind, "fused", *LONG, u, memory)
                for u in LU[::-1]
                for memory in (None, "save")
            ]
        )


def bigs():
    group([job("step", kind, "fused", *BIG, u) for kind in ("lstm", "gru") for u in BU])


# (2) One Mosaic-GPU kernel for the LSTM's forward pass, bfloat16 products; each against a plain
# scan of the same roundings.
B, T, H, ROWS = 128, 28 if GPU else 3, 128, 64
f32, bf16 = jnp.float32, jnp.bfloat16


def real(i, f, g, o, c):
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def sums(i, f, g, o, c):
    c = 0.25 * (i + f + g) + 0.5 * c
    return 0.25 * o + 0.5 * c, c


def tanhs(i, f, g, o, c):  # a sigmoid as a tanh: one approximate instruction under approx_math
    def s(x):
        return 0.5 * jnp.tanh(0.5 * x) + 0.5

    c = s(f) * c + s(i) * jnp.tanh(g)
    return s(o) * jnp.tanh(c), c


GATES = {"real": real, "sums": sums, "tanhs": tanhs}


def call(body, operands, stores, shape, mesh, approx, T_):
    out = pl.kernel(
        body,
        tuple(jax.ShapeDtypeStruct((T_, *shape), f32) for _ in stores),
        mesh=mesh,
        interpret=plgpu.InterpretGPUParams() if INTERPRET else False,
        compiler_params=plgpu.CompilerParams(
            approx_math=approx, lowering_semantics=plgpu.LoweringSemantics.Warpgroup
        ),
    )(*operands)
    return out[0]


def one_warpgroup(gate, approx, stores, T_=T, COLS=64):
    """As in first.py: 64 examples a block, columns in blocks of 64, product after product."""

    def body(drive, kernel, *outs):
        outs = dict(zip(stores, outs, strict=True))

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
                    for name, value in (("hidden", h), ("cells", c)):
                        if name in outs:
                            outs[name][t, rows, columns] = value
                plgpu.commit_smem()

            jax.lax.fori_loop(0, T_, step, None)

        pl.run_scoped(
            scoped,
            plgpu.SMEM((2, ROWS, H), bf16),
            plgpu.SMEM((4, H, H), bf16),
            plgpu.SMEM((ROWS, H), f32),
            plgpu.Barrier(),
        )

    return lambda drive, kernel: call(
        body,
        (drive, kernel),
        stores,
        (B, H),
        plgpu.Mesh(grid=(B // ROWS,), grid_names=("b",)),
        approx,
        T_,
    )


def warpgroups(WGS, gate, approx, stores, T_=T, four=True, rows_n=None):
    """WGS warpgroups a block, each with H/WGS columns of the state; a barrier a step.

    Args:
        WGS: Warpgroups a block; the cells stay in their registers.
        gate: The gate.
        approx: Approximate transcendental functions.
        stores: Which of "hidden" and "cells" are written out.
        T_: Time steps.
        four: All products are in flight, then the drives are loaded, then the products awaited.
        rows_n: Examples a block of the transposed product, kernelᵀ·hᵀ: the 64 of `wgmma` are
            columns of the state there, so that a block may hold few examples. The drive is loaded
            a step ahead. None multiplies h·kernel with 64 examples a block.
    """
    COLS = H // WGS
    turned = rows_n is not None
    N = rows_n or ROWS
    tile = (COLS, N) if turned else (N, COLS)
    smem_w = (WGS * 4, COLS, H) if turned else (WGS * 4, H, COLS)

    def body(drive, kernel, *outs):
        outs = dict(zip(stores, outs, strict=True))

        def scoped(h_smem, w_smem, loaded, ready):
            me = jax.lax.axis_index("wg")
            rows, columns = pl.ds(jax.lax.axis_index("b") * N, N), pl.ds(me * COLS, COLS)

            @pl.when(me == 0)
            def _():
                plgpu.copy_gmem_to_smem(kernel, w_smem, loaded)

            h_smem[0, me] = jnp.zeros(tile, bf16)
            plgpu.commit_smem()
            plgpu.barrier_wait(loaded)
            plgpu.barrier_arrive(ready)
            plgpu.barrier_wait(ready)

            def driven(t, g):
                return plgpu.load(
                    drive.at[t, g, columns, rows] if turned else drive.at[t, rows, g, columns],
                    optimized=False,
                )

            def multiply(total, now, g):
                for k in range(WGS):
                    ks = pl.ds(k * COLS, COLS)
                    if turned:
                        plgpu.wgmma(total, w_smem.at[me * 4 + g, :, ks], h_smem.at[now, k])
                    else:
                        plgpu.wgmma(total, h_smem.at[now, k], w_smem.at[me * 4 + g, ks, :])

            def step(t, carry):
                now = jax.lax.rem(t, 2)
                c, ahead = carry if turned else (carry, None)
                if four:

                    def products(*totals):
                        for g in range(4):
                            multiply(totals[g], now, g)
                        x = ahead if turned else [driven(t, g) for g in range(4)]
                        plgpu.wgmma_wait(0)
                        return [totals[g][...] + x[g] for g in range(4)]

                    z = pl.run_scoped(products, *(plgpu.ACC(tile, f32) for _ in range(4)))
                else:

                    def product(g):
                        def one(total):
                            multiply(total, now, g)
                            return total[...]

                        return pl.run_scoped(one, plgpu.ACC(tile, f32)) + (
                            ahead[g] if turned else driven(t, g)
                        )

                    z = [product(g) for g in range(4)]
                if turned:
                    ahead = tuple(driven(jax.lax.min(t + 1, T_ - 1), g) for g in range(4))
                h, c = gate(*z, c)
                h_smem[1 - now, me] = h.astype(bf16)
                plgpu.commit_smem()
                plgpu.barrier_arrive(ready)
                for name, value in (("hidden", h), ("cells", c)):
                    if name in outs and turned:
                        outs[name][t, columns, rows] = value
                    elif name in outs:
                        outs[name][t, rows, columns] = value
                plgpu.barrier_wait(ready)
                return (c, ahead) if turned else c

            c = jnp.zeros(tile, f32)
            jax.lax.fori_loop(
                0, T_, step, (c, tuple(driven(0, g) for g in range(4))) if turned else c
            )

        pl.run_scoped(
            scoped,
            plgpu.SMEM((2, WGS, *tile), bf16),
            plgpu.SMEM(smem_w, bf16),
            plgpu.Barrier(),
            plgpu.Barrier(num_arrivals=WGS),
            collective_axes="wg",
        )

    def run(drive, kernel):  # kernel [4, H in, H out]
        blocks = kernel.reshape(4, H, WGS, COLS)
        mesh = plgpu.Mesh(grid=(B // N,), grid_names=("b",), num_threads=WGS, thread_name="wg")
        return call(
            body,
            (
                drive,
                (blocks.transpose(2, 0, 3, 1) if turned else blocks.transpose(2, 0, 1, 3)).reshape(
                    smem_w
                ),
            ),
            stores,
            (H, B) if turned else (B, H),
            mesh,
            approx,
            T_,
        )

    return run


def plain(gate, drive, kernel, unroll=1):
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

    return jax.lax.scan(step, (jnp.zeros((B, H)),) * 2, drive, unroll=unroll)[1]


BOTH, HIDDEN = ("hidden", "cells"), ("hidden",)
VARIANTS = {}  # name: (function of T, gate, turned)


def variant(name, make, gate="real", turned=False):
    VARIANTS[name] = (make, gate, turned)


for approx in (False, True):
    a = ", approx" if approx else ""
    variant("1 warpgroup" + a, lambda T_, approx=approx: one_warpgroup(real, approx, BOTH, T_))
    variant(
        "1 warpgroup, tanhs" + a,
        lambda T_, approx=approx: one_warpgroup(tanhs, approx, BOTH, T_),
        "tanhs",
    )
    for n in (2, 4):
        variant(
            f"{n} warpgroups" + a,
            lambda T_, n=n, approx=approx: warpgroups(n, real, approx, BOTH, T_, four=False),
        )
        variant(
            f"{n} warpgroups, products together" + a,
            lambda T_, n=n, approx=approx: warpgroups(n, real, approx, BOTH, T_),
        )
    variant(
        "2 warpgroups, transposed, 16 rows a block" + a,
        lambda T_, approx=approx: warpgroups(2, real, approx, BOTH, T_, rows_n=16),
        turned=True,
    )
    variant(
        "2 warpgroups, transposed, 32 rows a block" + a,
        lambda T_, approx=approx: warpgroups(2, real, approx, BOTH, T_, rows_n=32),
        turned=True,
    )
variant("1 warpgroup, no cells stored", lambda T_: one_warpgroup(real, False, HIDDEN, T_))
variant("1 warpgroup, sums", lambda T_: one_warpgroup(sums, False, BOTH, T_), "sums")
variant(
    "1 warpgroup, sums, no cells stored", lambda T_: one_warpgroup(sums, False, HIDDEN, T_), "sums"
)
variant(
    "4 warpgroups, products together, no cells stored",
    lambda T_: warpgroups(4, real, False, HIDDEN, T_),
)
variant(
    "4 warpgroups, products together, sums", lambda T_: warpgroups(4, sums, False, BOTH, T_), "sums"
)
variant(
    "2 warpgroups, transposed, 16 rows a block, tanhs, approx",
    lambda T_: warpgroups(2, tanhs, True, BOTH, T_, rows_n=16),
    "tanhs",
    True,
)
variant(
    "2 warpgroups, transposed, 16 rows a block, sums",
    lambda T_: warpgroups(2, sums, False, BOTH, T_, rows_n=16),
    "sums",
    True,
)


def mosaics():
    drive = jax.random.normal(key, (T, B, 4, H))
    kernel = (jax.random.normal(key, (4, H, H)) / H**0.5).astype(bf16)
    turned_drive = jnp.asarray(drive.transpose(0, 2, 3, 1))
    reference = {
        name: jax.jit(functools.partial(plain, gate))(drive, kernel) for name, gate in GATES.items()
    }
    jobs = [
        (
            {"what": "plain scan, bfloat16 products", "unroll": u},
            lambda u=u: (lambda d, k: plain(real, d, k, u), (drive, kernel), None),
        )
        for u in ((1, 4, 28) if GPU else (1,))
    ]
    for name, (make, gate, turned) in VARIANTS.items():
        if os.environ.get("ONLY", "") not in name:
            continue

        def ready(make=make, gate=gate, turned=turned):
            def check(compiled, args):
                got = compiled(*args)
                return float(
                    abs((got.transpose(0, 2, 1) if turned else got) - reference[gate]).max()
                )

            return make(T), (turned_drive if turned else drive, kernel), check

        jobs.append(({"what": "mosaic", "variant": name}, ready))
    group(jobs)


if __name__ == "__main__":
    keep(
        what="machine",
        jax=jax.__version__,
        device=str(jax.devices()[0].device_kind),
        python=sys.version.split()[0],
        workers=WORKERS,
    )
    for part in (
        (grid, longs, mosaics, bigs, forwards)
        if len(sys.argv) < 2
        else [globals()[n] for n in sys.argv[1:]]
    ):
        try:
            part()
        except Exception as error:
            keep(what=part.__name__, failed=failure(error))
    keep(what="done", seconds=round(elapsed()))
