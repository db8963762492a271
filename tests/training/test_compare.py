"""Statistics against hand-made numbers."""

import numpy as np
import pytest
from scipy import stats

from jaxrnn.training import compare


def record(setting, seed, test, status="ok", validation=0.5):
    return {
        "setting": setting,
        "seed": seed,
        "status": status,
        "test_accuracy": test,
        "validation_accuracy": validation,
        "parameters": 1000,
        "seconds": 2.0,
    }


RECORDS = [
    record("a", 0, 0.90),
    record("a", 1, 0.92),
    record("a", 2, 0.94),
    record("b", 2, 0.95, validation=0.7),
    record("b", 0, 0.92, validation=0.7),
    record("b", 1, 0.91, validation=0.7),
    record("c", 0, np.nan, status="diverged"),
    record("c", 1, 0.93),
]


def test_means_deviations_and_paired_differences():
    a, b, c = compare.summarise(RECORDS)
    assert (a.setting, a.n, a.pairs, a.difference) == ("a", 3, 3, 0)
    assert a.test == pytest.approx(0.92)
    assert a.deviation == pytest.approx(0.02)
    differences = [0.02, -0.01, 0.01]  # by seed, not by place
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert b.difference == pytest.approx(np.mean(differences))
    assert b.difference + b.interval == pytest.approx(expected.high)
    assert (c.n, c.diverged, c.pairs) == (1, 1, 1)
    assert c.difference == pytest.approx(0.01)
    assert np.isnan(c.deviation)
    assert np.isnan(c.interval)


def test_the_table_says_it_all_and_chooses_on_validation():
    lines = compare.markdown(compare.summarise(RECORDS, ["a", "b", "c", "not run"])).splitlines()
    assert len(lines) == 5
    assert "92.00 ± 2.00 | 3 |" in lines[2]
    assert lines[3].startswith("| **b** | 92.67 ± 2.08 | 3 | +0.67 ± 3.79 | 70.00 | 1,000 | 2.0 |")
    assert "1 (1 diverged)" in lines[4]
    assert "+1.00" in lines[4]


def test_the_verdict_goes_by_the_intervals():
    tests = {"first": (0.5, 0.6, 0.7), "up": (0.6, 0.71, 0.8), "same": (0.52, 0.57, 0.71)}
    records = [
        record(setting, seed, x) for setting, each in tests.items() for seed, x in enumerate(each)
    ]
    said = compare.verdict(compare.summarise(records))
    assert said == "Better than `first`: `up`. No difference from `first` seen: `same`."
    said = compare.verdict(compare.summarise(records[:3]))
    assert said == "There is nothing to compare `first` with."
    assert compare.verdict([]) == "Nothing has been run."


def test_a_setting_that_only_diverged_has_no_accuracy():
    (only,) = compare.summarise([record("x", 0, 0.1, status="diverged")])
    assert np.isnan(only.test)
    assert compare.markdown([only]).splitlines()[2] == (
        "| x | – | 0 (1 diverged) | – | – | 1,000 | 2.0 |"
    )


def test_a_difference_has_as_many_digits_as_tell_whether_it_was_seen():
    records = [record("a", seed, 0.9) for seed in range(3)]
    tests = (0.0002, 0.0004, 0.00055)
    records += [record("b", seed, 0.9 + test) for seed, test in enumerate(tests)]
    assert "| +0.038 ± 0.044 |" in compare.markdown(compare.summarise(records))


def test_a_setting_of_which_a_run_diverged_is_not_chosen():
    lucky = record("c", 1, 0.99, validation=0.9)
    table = compare.markdown(compare.summarise([*RECORDS[:7], lucky]))
    assert "| **b** |" in table
    assert "| c | 99.00 | 1 (1 diverged) |" in table
    level = [*RECORDS[:3], RECORDS[6], record("c", 1, 0.99, validation=0.5)]
    assert "| c | 99.00 |" in compare.markdown(compare.summarise(level))
    records = [*RECORDS, record("c", 2, 0.95)]
    claim = compare.check_claim(records, compare.Claim("A (2000)", "c", "better", "a"))
    assert claim.endswith("(n = 2, 1 diverged).")


def test_other_seeds_of_a_setting_fall_within_their_interval():
    """Of normal seeds, 95 of 100 means of two others, within what Monte Carlo can tell."""
    rng = np.random.default_rng(0)

    def summary(seeds):
        return compare.summarise([record("a", seed, rng.normal()) for seed in range(seeds)])[0]

    pairs = [(summary(5), summary(2)) for _ in range(2000)]
    hits = [
        abs(new.test - kept.test) <= compare.prediction_interval(kept, new) for kept, new in pairs
    ]
    assert 0.935 < np.mean(hits) < 0.965
    assert np.isnan(compare.prediction_interval(summary(1), summary(2)))


@pytest.mark.parametrize(
    ("tests", "outcomes"),
    [
        ((0.951, 0.96, 0.97), ("Seen", "Contradicted", "Different", "Contradicted")),
        ((0.849, 0.86, 0.87), ("Contradicted", "Seen", "Different", "Seen")),
        ((0.89, 0.91, 0.93), ("Not seen", "Not seen", "Not contradicted", "Not contradicted")),
    ],
)
def test_a_claim_is_held_against_the_paired_interval(tests, outcomes):
    records = [record("a", seed, 0.90 + seed / 100) for seed in range(3)]
    records += [record("b", seed, test) for seed, test in enumerate(tests)]
    for relation, outcome in zip(
        ("better", "worse", "no difference", "not better"), outcomes, strict=True
    ):
        line = compare.check_claim(records, compare.Claim("A (2000)", "b", relation, "a"))
        assert line.startswith(f"- A (2000): `b` {relation} ")
        assert f"`a`. {outcome} here: " in line
    paired = stats.ttest_1samp(np.subtract(tests, (0.90, 0.91, 0.92)), 0).confidence_interval(0.95)
    assert f"± {50 * (paired.high - paired.low):.2f} (n = 3)." in line


def test_of_one_seed_or_none_no_claim_is_checked():
    claim = compare.Claim("A (2000)", "b", "better", "a")
    records = [record("a", 0, 0.9), record("a", 1, 0.91), record("b", 0, 0.95)]
    assert not compare.check_claim(records, claim)
    assert not compare.check_claim(records[:2], claim)
