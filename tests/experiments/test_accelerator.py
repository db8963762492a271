"""The measurement of an accelerator runs here, small; how long it takes is no test's business."""

import importlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import accelerator
import all_cells
import jax
import measurements
import numerics
import numpy as np
import profiles
import pytest
import timings
import whole_runs

from jaxrnn import training
from jaxrnn.backends import BACKENDS

PARTS = tuple(accelerator.SHARES)


def fail(*_, **__):
    raise RuntimeError("it broke")


def read(folder, part):
    return json.loads((folder / f"{part}.json").read_text())["records"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a whole run leaves, in which one backend and one peer fail."""
    folder = tmp_path_factory.mktemp("accelerator")
    broken = SimpleNamespace(supports=lambda *_: None, run=fail)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("JAXRNN_DATA_DIR", raising=False)
        patch.setitem(BACKENDS, "broken", broken)
        patch.setitem(BACKENDS, numerics.INTERPRETED, None)  # what the run puts there
        patch.setitem(timings.MODELS, "flax", fail)
        # Without the first of each, which does nothing that the others do not, and with the cell
        # that compiles fastest.
        cases, tasks = numerics.cases(small=True)[1:], timings.tasks(small=True)[1:]
        cases[1], tasks[0] = cases[1]._replace(name="rnn"), tasks[0]._replace(cell="rnn")
        patch.setattr(numerics, "cases", lambda small: cases)
        patch.setattr(timings, "tasks", lambda small: tasks)
        # Optax needs it, also in the threads that compile, which a context does not reach.
        jax.config.update("jax_numpy_dtype_promotion", "standard")
        try:
            assert accelerator.main(["--small", "--out", str(folder)]) == 0
        finally:
            jax.config.update("jax_numpy_dtype_promotion", "strict")
    return folder


def test_every_backend_is_compared_or_says_why_not(folder):
    records = read(folder, "correct")
    names = {
        name: {each["implementation"] for each in records if each["name"] == name}
        for name in ("rnn", "lru")
    }
    assert all(found == {*BACKENDS, "broken", numerics.INTERPRETED} for found in names.values())
    for each in records:
        if each["implementation"] == "broken":
            assert each["failed"] == "RuntimeError: it broke"
        elif each["implementation"] == "scan" or "refused" not in each:
            assert max(each[figure] for figure in numerics.FIGURES) < 1e-4, each
    supported = {(each["name"], each["implementation"]) for each in records if "outputs" in each}
    gated = {("rnn", name) for name in ("fused", "states", "pallas", numerics.INTERPRETED)}
    assert gated | {("lru", "parallel")} <= supported


def test_every_way_is_timed_or_says_why_not(folder):
    records = read(folder, "speed")
    assert all(records[0][rate] > 0 for rate in ("TFLOPs_float32", "TFLOPs_bfloat16", "GB_per_s"))
    timed = {each["way"] for each in records if "ms" in each}
    assert timed >= {"fused", "scan"}
    for each in records[1:]:
        assert sum(name in each for name in ("ms", "absent", "refused", "failed")) == 1, each
        assert each["products_ms"] > 0 < each["bytes_ms"]
        if "ms" in each:
            assert each["ms"] == np.median(each["rounds_ms"]) > 0
        if each["way"] == "flax":
            assert each["failed"] == "RuntimeError: it broke"
        if each["way"] in ("states", "pallas"):
            assert "ms" in each
    tasks = {(each["what"], each["cell"], each["masked"]) for each in records if "ms" in each}
    assert tasks == {("step", "rnn", True), ("evaluation", "lstm", False)}


def test_kernels_are_counted_by_the_profiler(folder):
    records = read(folder, "profile")
    assert {(each["cell"], each["way"]) for each in records} == {
        ("rnn", way) for way in profiles.WAYS
    }
    for each in records:
        assert each["ms"] > 0 < each["busy_ms"]
        assert sum(count for *_, count in each["kernels"]) <= each["launches"]
        assert all(ms >= 0 for _, ms, _ in each["kernels"])


def test_an_error_in_another_process_is_that_of_its_program_alone():
    task = timings.tasks(small=True)[2]
    with ThreadPoolExecutor(1) as others:
        timer = timings.build_elsewhere(others, task, "scan")
        assert timer(2) > 0
        with pytest.raises(AttributeError):
            timings.build_elsewhere(others, task._replace(cell="none"), "scan")


def test_cases_are_compared_in_processes_on_a_gpu(tmp_path, monkeypatch):
    """The processes are threads here, since a process would start JAX anew."""
    pool = lambda workers, context, start: ThreadPoolExecutor(workers)  # noqa: E731
    monkeypatch.setattr(numerics, "ProcessPoolExecutor", pool)
    monkeypatch.setattr(numerics.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(numerics, "compare_case", lambda case, deadline: [{"name": case.name}])
    kept = measurements.Measurements(tmp_path / "part.json", {}, deadline=float("inf"))
    numerics.compare(kept, small=True)
    assert sorted(each["name"] for each in kept.records) == ["gru", "lru", "lstm"]


def test_whole_runs_are_timed_and_their_accuracies_kept(folder):
    parts = "seeds", "tutorial", "pixels"
    runs = {each["what"]: each for part in parts for each in read(folder, part)}
    assert list(runs) == ["one", "together", "tutorial", "permuted"]
    for each in runs.values():
        assert each["data"] == "digits"
        assert each["seconds"]["train"] > 0
        assert [step for step, *_ in each["curve"]] == [3, 6]
        assert 0 <= each["test_accuracy"] == each["curve"][-1][-1] <= 1
        assert len(each["each"]) == each["seeds"]
    assert runs["together"]["seeds"] == 2
    with np.load(folder / "together.npz") as params:
        assert params["stack/layer_0/cell/bias"].shape == (2, 4 * 2)
    np.testing.assert_allclose(runs["together"]["each"][0], runs["one"]["each"][0], atol=0.21)


def test_a_run_without_time_leaves_whole_files(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXRNN_DATA_DIR", raising=False)
    assert accelerator.main(["--small", "--seconds", "0", "--out", str(tmp_path)]) == 0
    for part in PARTS:
        records = read(tmp_path, part)
        assert records
        assert all("skipped" in each for each in records)


def test_the_file_is_whole_after_every_record(tmp_path):
    kept = measurements.Measurements(
        tmp_path / "part.json", {"device": "none"}, deadline=float("inf")
    )
    assert read(tmp_path, "part") == []
    for number in range(3):
        kept.add({"number": number} | kept.outcome(fail))
        assert [each["number"] for each in read(tmp_path, "part")] == list(range(number + 1))


def test_a_run_that_would_not_end_in_time_is_given_up(tmp_path, monkeypatch):
    def fit(*_, steps, **__):
        for step in (100, 200, *range(300, steps + 1, 100)):
            ticks.append(step)
            yield training.Progress(step, np.zeros(100), {}, {"train": 1.0}, None)

    ticks = []
    monkeypatch.delenv("JAXRNN_DATA_DIR", raising=False)
    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(whole_runs.time, "perf_counter", lambda: float(len(ticks)))
    kept = measurements.Measurements(tmp_path / "part.json", {}, deadline=20.0)
    whole_runs.tutorial(kept, small=False)  # 200 chunks of a second
    (record,) = read(tmp_path, "part")
    assert record["skipped"] == "would take 198 s more (10.00 ms a step), 18 s were left"


def test_the_floor_counts_what_no_implementation_can_leave_out():
    task = timings.tasks(small=False)[0]
    rows, parameters = 100 * 28, 157 * 512
    assert task.flops == 2 * rows * 512 * (156 + 156 + 128)
    assert task.least_bytes == 4 * (rows * 2 * (28 + 2 * 128) + 6 * parameters)
    evaluation = task._replace(train=False)
    assert evaluation.least_bytes == 4 * (rows * 28 + parameters)


def test_the_table_compares_with_flax_and_with_nvidia():
    about = {"what": "step", "cell": "lstm", "B": 100, "H": 128, "T": 28, "masked": False}
    about |= {"products": "float32", "products_ms": 0.1, "bytes_ms": 0.2}
    times = {"fused": 0.5, "scan": 1.0, "cudnn": 0.4, "flax": 2.0}
    records = [about | {"way": way, "ms": ms} for way, ms in times.items()]
    _, _, row = timings.summary([*records, about | {"way": "torch", "absent": "it"}]).split("\n")
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:] == ["0.500 (4.00)", "1.000 (2.00)", "0.400 (5.00)", "2.000", "0.200", "1.25"]


def test_every_kind_of_cell_is_compared_and_every_size_timed():
    compared = numerics.cells(4).values()
    constructors = {cell.origin.constructor for cell in compared}
    assert {cell.origin.constructor for cell in all_cells.CELLS.values()} <= constructors
    tasks = timings.tasks(small=False)
    sizes = {
        (each.cell, each.examples, each.hidden, each.time, each.train, each.products)
        for each in tasks
    }
    assert len(sizes) == len({each._replace(masked=False) for each in tasks})
    for cell in ("lstm", "gru"):
        for products in (None, "bfloat16"):
            assert sum(each[0] == cell and each[5] == products for each in sizes) >= 16


def test_on_a_gpu_cuda_graphs_and_torch_join(monkeypatch):
    monkeypatch.setattr(timings.jax, "default_backend", lambda: "gpu")
    first, masked = timings.tasks(small=False)[:2]
    ours = list(timings.OURS)
    graphs = ["pallas, CUDA graph", "states, CUDA graph"]
    peers = ["cudnn", "flax", "equinox", "torch", "torch, CUDA graph"]
    assert timings.ways(first, True, False) == ours + graphs + peers
    others = [name for name in ours if name not in timings.FIRST]
    assert timings.ways(masked, False, False) == others
    wide = masked._replace(hidden=512)
    assert timings.ways(wide, False, False) == [name for name in others if name != timings.AMPERE]
    assert "equinox" not in timings.ways(first._replace(products="bfloat16"), False, False)


def test_it_needs_no_matplotlib_and_no_tensorflow_datasets(monkeypatch):
    folder = Path(accelerator.__file__).parent
    for name in [
        name
        for name, module in sys.modules.items()
        if str(getattr(module, "__file__", "")).startswith(str(folder))
    ]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("rich", "tensorflow_datasets", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    for module in (accelerator, numerics, timings, whole_runs):
        assert importlib.import_module(module.__name__) is not module
