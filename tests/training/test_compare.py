"""Statistics of runs, against SciPy and values computed by hand."""

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
    differences = [0.02, -0.01, 0.01]  # paired by seed, not by position
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert b.difference == pytest.approx(np.mean(differences))
    assert b.difference + b.interval == pytest.approx(expected.high)
    assert (c.n, c.diverged, c.pairs) == (1, 1, 1)
    assert c.difference == pytest.approx(0.01)
    assert np.isnan(c.deviation)
    assert np.isnan(c.interval)


def cells(summaries):
    """Returns the cells of each line of the table, without its head."""
    lines = compare.markdown(summaries).splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_has_all_statistics_and_chooses_on_validation():
    assert cells(compare.summarise(RECORDS, ["a", "b", "c", "not run"])) == [
        ["a", "92.00 ± 2.00", "3", "–", "50.00", "1,000", "2.0"],
        ["**b**", "92.67 ± 2.08", "3", "+0.67 ± 3.79", "70.00", "1,000", "2.0"],
        ["c", "93.00", "1 (1 diverged)", "+1.00", "50.00", "1,000", "2.0"],
    ]


def test_the_columns_of_a_table_are_aligned():
    shown = compare.table(["name", "n"], [["a", "1,000"], ["longer", "7"]])
    assert shown.splitlines() == [
        "| name   |     n |",
        "| ------ | ----: |",
        "| a      | 1,000 |",
        "| longer |     7 |",
    ]
    assert compare.table(["n"], []) == "| n   |\n| --- |\n"


@pytest.mark.parametrize(
    ("seeds", "test", "difference"),
    [(1, "90.00", "+1.00"), (2, "90.50 ± 0.71", "+1.50"), (3, "91.00 ± 1.00", "+2.00 ± 2.48")],
)
def test_a_deviation_needs_two_seeds_and_an_interval_three(seeds, test, difference):
    records = [record("a", seed, 0.90 + 0.01 * seed) for seed in range(seeds)]
    records += [record("b", seed, 0.91 + 0.02 * seed) for seed in range(seeds)]
    first, second = compare.summarise(records)
    assert np.isnan(second.interval) == (seeds < compare.MIN_SEEDS == 3)
    shown = cells([first, second])
    assert (shown[0][1], shown[1][3]) == (test, difference)
    found = compare.relation(second)
    assert found == ("unknown" if seeds < 3 else "no difference seen")


def test_the_legend_names_the_columns_and_how_many_seeds_an_interval_needs():
    head, *_ = compare.markdown(compare.summarise(RECORDS)).splitlines()
    explained = [line[2:].split(":")[0] for line in compare.LEGEND.splitlines() if line[0] == "-"]
    columns = ["test, %", "difference ± 95 % CI, points", "parameters", "s per run"]
    assert explained == [*columns, "bold"]
    assert all(f" {name} |" in head for name in columns)
    words = " ".join(compare.LEGEND.split())
    assert f"needs at least {compare.MIN_SEEDS} common seeds" in words
    assert f"two extends {stats.t.ppf(0.975, 1):.1f} standard errors" in words


def test_the_latex_table_has_the_cells_of_the_markdown_one():
    records = [{**each, "setting": each["setting"] + "_1"} for each in RECORDS]
    records += [record("50 % {c}^2\\x", seed, 0.9 - seed / 100) for seed in range(3)]
    summaries = compare.summarise(records)
    written = compare.latex(summaries, "one % note\n\nanother")
    assert written.startswith("% one % note\n%\n% another\n\\begin{tabular}{lrrrrrr}\n\\toprule\n")
    assert written.endswith("\\bottomrule\n\\end{tabular}\n")
    head, _, *lines = written.splitlines()[5:-2]
    assert head.startswith(
        r"setting & test, \% & n & difference $\pm$ 95 \% CI, points & validation"
    )
    assert lines[1] == (
        r"\textbf{b\_1} & 92.67 $\pm$ 2.08 & 3 & +0.67 $\pm$ 3.79 & 70.00 & 1,000 & 2.0 \\"
    )
    assert lines[0].split(" & ")[3] == "--"
    assert lines[3].startswith(
        r"50 \% \{c\}\textasciicircum{}2\textbackslash{}x & 89.00 $\pm$ 1.00 & "
    )
    assert lines[3].split(" & ")[3] == r"$-$3.00 $\pm$ 7.45"
    plain = [[cell.replace("**", "") for cell in line] for line in cells(summaries)]
    for line, expected in zip(lines[:3], plain[:3], strict=True):
        found = line.removesuffix(r" \\").replace(r"$\pm$", "±").replace("--", "–").split(" & ")
        assert found[1:] == expected[1:]


def test_settings_that_are_equally_good_are_all_bold():
    tied = [record(name, 0, 0.9, validation=0.7) for name in "ab"]
    assert [line[0] for line in cells(compare.summarise(tied))] == ["**a**", "**b**"]
    assert compare.latex(compare.summarise(tied)).count(r"\textbf{") == 2


def test_the_verdict_goes_by_the_intervals():
    tests = {"first": (0.5, 0.6, 0.7), "up": (0.6, 0.71, 0.8), "same": (0.52, 0.57, 0.71)}
    records = [
        record(setting, seed, x) for setting, each in tests.items() for seed, x in enumerate(each)
    ]
    said = compare.verdict(compare.summarise(records))
    assert said == "Better than `first`: `up`. No difference from `first` seen: `same`."
    said = compare.verdict(compare.summarise([*records[:3], *records[3:5]]))
    assert said == "Too few seeds to compare with `first`: `up`."
    said = compare.verdict(compare.summarise(records[:3]))
    assert said == "There is nothing to compare `first` with."
    assert compare.verdict([]) == "Nothing has been run."


def test_a_setting_that_only_diverged_has_no_accuracy():
    (only,) = compare.summarise([record("x", 0, 0.1, status="diverged")])
    assert np.isnan(only.test)
    assert cells([only]) == [["x", "–", "0 (1 diverged)", "–", "–", "1,000", "2.0"]]


def test_a_difference_has_enough_digits_to_show_whether_it_was_seen():
    records = [record("a", seed, 0.9) for seed in range(3)]
    tests = (0.0002, 0.0004, 0.00055)
    records += [record("b", seed, 0.9 + test) for seed, test in enumerate(tests)]
    assert cells(compare.summarise(records))[1][3] == "+0.038 ± 0.044"


def test_a_setting_with_a_diverged_run_is_not_chosen():
    lucky = record("c", 1, 0.99, validation=0.9)
    _, b, c = cells(compare.summarise([*RECORDS[:7], lucky]))
    assert b[0] == "**b**"
    assert c[:3] == ["c", "99.00", "1 (1 diverged)"]
    level = [*RECORDS[:3], RECORDS[6], record("c", 1, 0.99, validation=0.5)]
    assert [line[0] for line in cells(compare.summarise(level))] == ["**a**", "c"]
    records = [*RECORDS, record("c", 2, 0.95)]
    claim = compare.check_claim(records, compare.Claim("A (2000)", "c", "better", "a"))
    assert claim.endswith("(n = 2, 1 diverged).")


def test_other_seeds_of_a_setting_fall_within_their_interval():
    """If accuracies are normal, 95 of 100 means of two other seeds, within Monte Carlo error."""
    rng = np.random.default_rng(0)

    def summary(seeds):
        return compare.summarise([record("a", seed, rng.normal()) for seed in range(seeds)])[0]

    pairs = [(summary(5), summary(2)) for _ in range(2000)]
    hits = [
        abs(new.test - kept.test) <= compare.prediction_interval(kept, new) for kept, new in pairs
    ]
    assert 0.935 < np.mean(hits) < 0.965
    assert np.isnan(compare.prediction_interval(summary(2), summary(2)))


@pytest.mark.parametrize(
    ("tests", "outcomes"),
    [
        ((0.951, 0.96, 0.97), ("Seen", "Contradicted", "Different", "Contradicted")),
        ((0.849, 0.86, 0.87), ("Contradicted", "Seen", "Different", "Seen")),
        ((0.89, 0.91, 0.93), ("Not seen", "Not seen", "Not contradicted", "Not contradicted")),
    ],
)
def test_a_claim_is_compared_with_the_paired_interval(tests, outcomes):
    records = [record("a", seed, 0.90 + seed / 100) for seed in range(3)]
    records += [record("b", seed, test) for seed, test in enumerate(tests)]
    phrases = {
        "better": "is better than",
        "worse": "is worse than",
        "no difference": "does not differ from",
        "not better": "is not better than",
    }
    for (relation, phrase), outcome in zip(phrases.items(), outcomes, strict=True):
        line = compare.check_claim(records, compare.Claim("A (2000)", "b", relation, "a"))
        assert line.startswith(f"- A (2000): `b` {phrase} `a`. {outcome} here: ")
    paired = stats.ttest_1samp(np.subtract(tests, (0.90, 0.91, 0.92)), 0).confidence_interval(0.95)
    assert f"± {50 * (paired.high - paired.low):.2f} (n = 3)." in line


def test_a_claim_is_not_decided_by_too_few_seeds():
    claim = compare.Claim("A (2000)", "b", "better", "a")
    records = [record("a", 0, 0.9), record("a", 1, 0.9), record("b", 0, 0.95)]
    line = "- A (2000): `b` is better than `a`. Too few seeds here: +5.00 (n = {})."
    assert compare.check_claim(records, claim) == line.format(1)
    assert compare.check_claim([*records, record("b", 1, 0.95)], claim) == line.format(2)
    assert compare.check_claim(records[:2], claim) == ""
    assert compare.check_claim(records[1:], claim) == ""
