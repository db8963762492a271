"""The benchmark's arithmetic, and that every task runs; how long it takes is no test's business."""

import functools

import benchmark
import jax
import peers
import pytest

from jaxrnn.training import train

OTHER_CELLS = ("jaxrnn", "jaxrnn, peepholes and lengths", "jaxrnn, cudnn")
OURS = [library for library in peers.LIBRARIES if library.startswith(("jaxrnn", peers.FLOOR))]


@pytest.fixture
def small(monkeypatch):
    """The same tasks on small arrays, run a few times each."""
    sizes = {"BATCH": 4, "PRODUCT": 8}
    for module in (peers, benchmark):
        for name in sizes.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, sizes[name])
    sizes = {"time": 3, "features": 2, "examples": 4, "hidden": 3, "evaluation_batch": 2}
    tasks = {name: task._replace(**sizes, repeats=1) for name, task in benchmark.TASKS.items()}
    monkeypatch.setattr(benchmark, "TASKS", tasks)
    monkeypatch.setattr(train, "EVALUATION_BATCH", 2)

    ticks = iter(range(1000))
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(ticks))


@pytest.mark.usefixtures("small", "standard_promotion")
def test_every_task_runs_in_each_of_our_ways_or_says_why_not():
    tasks = {name: task._replace(title="") for name, task in benchmark.TASKS.items()}
    measure = functools.cache(lambda library, task: benchmark.measure(library, task, "float32"))
    found = {
        # Tasks that differ in their sizes alone are the same here.
        (name, library): measure(library, next(each for each in tasks if tasks[each] == task))
        for name, task in tasks.items()
        for library in OURS
        # What takes the LSTM takes the other cells, in the same way.
        if task.cell == "lstm" or library in OTHER_CELLS
    }
    cannot = {key: one["cannot"] for key, one in found.items() if "ms" not in one}
    ours = {key: said for key, said in cannot.items() if key[1] != "jaxrnn, cudnn"}
    assert ours == {
        ("evaluate", peers.SEEDS): "NotImplementedError:",
        ("gru", "jaxrnn, peepholes and lengths"): "NotImplementedError:",
        ("rnn", "jaxrnn, peepholes and lengths"): "NotImplementedError:",
    }
    # cuDNN has the LSTM, and only on a GPU.
    names = ("gru", "rnn") if jax.default_backend() == "gpu" else benchmark.TASKS
    assert cannot.keys() - ours.keys() == {(name, "jaxrnn, cudnn") for name in names}
    assert all("'cudnn' cannot" in cannot[name, "jaxrnn, cudnn"] for name in names)


def test_the_table_gives_medians_ratios_floor_and_what_is_missing():
    found = {
        "jaxrnn": {"step": [{"ms": ms, "compile_s": 2.0, "peak_bytes": 2**20} for ms in (5, 9, 4)]},
        "peer": {"step": [{"ms": 10.0, "compile_s": 1.0, "peak_bytes": 2**21}]},
        "absent": {"step": [{"missing": "absent"}]},
        "failing": {"step": [{"cannot": "RuntimeError: no"}]},
        benchmark.FLOOR: {"step": [{"ms": 10.0}]},
    }
    table = benchmark.table(found, ("step",))
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert rows[0] == ("jaxrnn", "5.00 ms (1.00×)", "2.0 s", "1 MiB")
    assert rows[1] == ("peer", "10.00 ms (2.00×)", "1.0 s", "2 MiB")
    assert rows[2] == ("absent", "missing", "–", "–")
    assert rows[3] == ("failing", "–", "–", "–")
    share = benchmark.TASKS["step"].flops / (2 * 2048**3)
    assert rows[4][:2] == (benchmark.FLOOR, f"{10 * share:.2f} ms ({2 * share:.2f}×)")


def test_the_floor_counts_the_products_of_a_step():
    # [100 × 28, 156] × [156, 512] forward and for the kernels, [100 × 28, 512] × [512, 128] back.
    rows = 100 * 28
    assert benchmark.TASKS["step"].flops == 2 * rows * 512 * (156 + 156 + 128)
    assert benchmark.TASKS["evaluate"].flops == 2 * 100 * rows * 512 * 156
