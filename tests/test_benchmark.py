"""The benchmark's arithmetic; what it measures is no test's business."""

import benchmark


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
