"""Statistics of runs with several settings and seeds: means, deviations, paired differences.

A record is one finished run: a mapping with `setting` (its name), `seed`, `status` ("ok" or
"diverged"), `test_accuracy`, `validation_accuracy`, `parameters` and `seconds`. Accuracies are
fractions between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit  # scipy.stats takes seconds to import

__all__ = [
    "Claim",
    "Summary",
    "check_claim",
    "latex",
    "markdown",
    "prediction_interval",
    "relation",
    "summarise",
    "verdict",
]

Record = Mapping[str, Any]

# An interval needs this many values. By Student's t the 95 % interval of a mean extends 12.7
# standard errors to either side with two values, 4.3 with three and 2.8 with five.
MIN_SEEDS = 3

LEGEND = f"""\
- test, %: mean ± standard deviation (n − 1 in the denominator) of the test accuracy over n seeds,
  after the last step. A single seed has no deviation. A diverged run, whose loss became NaN or
  infinite, does not count.
- difference ± 95 % CI, points: the setting's test accuracy minus that of the first setting with the
  same seed, in percentage points: mean over the common seeds ± half the width of its 95 %
  confidence interval (Student's t). If the interval includes 0, no difference was seen. The
  intervals are not corrected for the number of settings. An interval needs at least {MIN_SEEDS}
  common seeds: that of two extends 12.7 standard errors to either side, and even a large difference
  would go unseen.
- parameters: number of parameters of the whole model.
- s per run: mean duration of a run, with compilation, training and evaluations. Runs side by side
  share the machine, and each counts an equal part of their time. It does not compare the speed of
  settings, since it depends on what else the machine did.
- bold: the setting with the highest mean validation accuracy, among those without a diverged run.
"""


class Summary(NamedTuple):
    """Statistics of one setting, over its seeds.

    Attributes:
        setting: The name of the setting.
        n: Number of runs that did not diverge.
        diverged: Number of runs whose loss became NaN or infinite.
        parameters: Number of parameters of the model.
        seconds: Mean duration of a run, in seconds.
        validation: Mean validation accuracy; NaN if n is 0.
        test: Mean test accuracy; NaN if n is 0.
        deviation: Standard deviation of the test accuracy, with n - 1 in the denominator; NaN if n
            is below 2.
        difference: Mean over the common seeds of this setting's test accuracy minus that of the
            first setting with the same seed; NaN if there is no common seed.
        interval: Half the width of the 95 % confidence interval of `difference`, by Student's t;
            NaN if `pairs` is below `MIN_SEEDS`.
        pairs: Number of seeds with which neither setting diverged.
    """

    setting: str
    n: int
    diverged: int
    parameters: int
    seconds: float
    validation: float
    test: float
    deviation: float
    difference: float
    interval: float
    pairs: int


def summarise(records: Sequence[Record], settings: Sequence[str] | None = None) -> list[Summary]:
    """Computes the statistics of each setting.

    Args:
        records: The runs.
        settings: The names of the settings, in the order of the result. The first that has a
            record is the one to which the others are compared. Defaults to the order in which the
            settings appear in `records`.

    Returns:
        One summary for each setting that has a record.
    """
    if settings is None:
        settings = list(dict.fromkeys(record["setting"] for record in records))
    runs = {name: [each for each in records if each["setting"] == name] for name in settings}
    runs = {name: own for name, own in runs.items() if own}
    return [_summary(name, own, next(iter(runs.values()))) for name, own in runs.items()]


def _summary(setting: str, records: Sequence[Record], reference: Sequence[Record]) -> Summary:
    first = _tests_by_seed(reference)
    own = _tests_by_seed(records)
    tests = np.array(list(own.values()))
    pairs = np.array([own[seed] - first[seed] for seed in own if seed in first])
    interval = np.nan
    if len(pairs) >= MIN_SEEDS:
        interval = _t_quantile(len(pairs)) * pairs.std(ddof=1) / np.sqrt(len(pairs))
    ok = [record for record in records if record["status"] == "ok"]
    return Summary(
        setting,
        n=len(tests),
        diverged=len(records) - len(ok),
        parameters=records[0]["parameters"],
        seconds=float(np.mean([record["seconds"] for record in records])),
        validation=float(np.mean([record["validation_accuracy"] for record in ok] or [np.nan])),
        test=float(tests.mean()) if len(tests) else np.nan,
        deviation=float(tests.std(ddof=1)) if len(tests) > 1 else np.nan,
        difference=float(pairs.mean()) if len(pairs) else np.nan,
        interval=float(interval),
        pairs=len(pairs),
    )


def _tests_by_seed(records: Sequence[Record]) -> dict[int, float]:
    return {r["seed"]: r["test_accuracy"] for r in records if r["status"] == "ok"}


def _t_quantile(n: int) -> float:
    """The 97.5 % quantile of Student's t for the mean of n values."""
    return float(stdtrit(n - 1, 0.975))


def relation(summary: Summary) -> str:
    """Whether a setting is better than the one it is compared with, by its confidence interval.

    Returns:
        "better", "worse", "no difference seen", or "unknown" if there are fewer than `MIN_SEEDS`
        common seeds.
    """
    if summary.pairs < MIN_SEEDS:
        return "unknown"
    if abs(summary.difference) <= summary.interval:
        return "no difference seen"
    return "better" if summary.difference > 0 else "worse"


def verdict(summaries: Sequence[Summary]) -> str:
    """Says in words which settings are better or worse than the first, by their intervals."""
    if not summaries:
        return "Nothing has been run."
    first, *rest = summaries
    if not rest:
        return f"There is nothing to compare `{first.setting}` with."
    sentences = {
        "better": f"Better than `{first.setting}`",
        "worse": f"Worse than `{first.setting}`",
        "no difference seen": f"No difference from `{first.setting}` seen",
        "unknown": f"Too few seeds to compare with `{first.setting}`",
    }
    found = {
        kind: [f"`{each.setting}`" for each in rest if relation(each) == kind] for kind in sentences
    }
    return " ".join(
        f"{sentences[kind]}: {', '.join(names)}." for kind, names in found.items() if names
    )


class Claim(NamedTuple):
    """A published comparison of two settings.

    Attributes:
        source: The paper, and what its experiment was if that differs from the study's.
        setting: The name of a setting.
        relation: "better", "worse", "no difference" or "not better".
        than: The name of the setting that it was compared with.
    """

    source: str
    setting: str
    relation: str
    than: str


def check_claim(records: Sequence[Record], claim: Claim) -> str:
    """Compares a published claim with the runs.

    An interval that includes zero does not show that there is no difference. A claim of no
    difference is therefore never confirmed, only contradicted or not.

    Returns:
        A line of Markdown; empty if the two settings have no seed in common.
    """
    runs = {
        name: [each for each in records if each["setting"] == name]
        for name in (claim.setting, claim.than)
    }
    if not all(runs.values()):
        return ""
    summary = _summary(claim.setting, runs[claim.setting], runs[claim.than])
    if not summary.pairs:
        return ""
    outcome = _OUTCOMES[claim.relation].get(relation(summary), "Too few seeds")
    diverged = sum(r["status"] != "ok" for own in runs.values() for r in own)
    return (
        f"- {claim.source}: `{claim.setting}` {_PHRASES[claim.relation]} `{claim.than}`. "
        f"{outcome} here: {_points(summary)} "
        f"(n = {summary.pairs}{f', {diverged} diverged' if diverged else ''})."
    )


_PHRASES = {
    "better": "is better than",
    "worse": "is worse than",
    "no difference": "does not differ from",
    "not better": "is not better than",
}
# By the published relation and the one that the runs show.
_OUTCOMES = {
    "better": {"better": "Seen", "no difference seen": "Not seen", "worse": "Contradicted"},
    "worse": {"better": "Contradicted", "no difference seen": "Not seen", "worse": "Seen"},
    "no difference": {
        "better": "Different",
        "no difference seen": "Not contradicted",
        "worse": "Different",
    },
    "not better": {
        "better": "Contradicted",
        "no difference seen": "Not contradicted",
        "worse": "Seen",
    },
}


def _points(summary: Summary) -> str:
    """The difference in percentage points, with its interval if it has one."""
    difference, interval = 100 * summary.difference, 100 * summary.interval
    if summary.pairs < MIN_SEEDS:
        return f"{difference:+.2f}"
    # A third digit if two do not show which is larger.
    digits = 2 if f"{abs(difference):.2f}" != f"{interval:.2f}" else 3
    return f"{difference:+.{digits}f} ± {interval:.{digits}f}"


def prediction_interval(kept: Summary, new: Summary) -> float:
    """Half the width of the 95 % prediction interval for the mean over other seeds of a setting.

    Args:
        kept: The seeds from which the interval is computed.
        new: The other seeds.

    Returns:
        Half the width of the interval around the mean of `kept`, by Student's t; NaN if `kept` has
        fewer than `MIN_SEEDS` seeds or `new` has none.
    """
    if kept.n < MIN_SEEDS or not new.n:
        return np.nan
    return float(_t_quantile(kept.n) * kept.deviation * np.sqrt(1 / kept.n + 1 / new.n))


HEAD = (
    "setting",
    "test, %",
    "n",
    "difference ± 95 % CI, points",
    "validation, %",
    "parameters",
    "s per run",
)


def markdown(summaries: Sequence[Summary]) -> str:
    """Formats the summaries as a table in Markdown, which `LEGEND` explains."""
    best = _best(summaries)
    lines = [
        [f"**{s.setting}**" if s.setting in best else s.setting, *_cells(s, first=not number)]
        for number, s in enumerate(summaries)
    ]
    return table(HEAD, lines)


def latex(summaries: Sequence[Summary], notes: str = LEGEND) -> str:
    """Formats the summaries as a LaTeX table with the rules of the package booktabs.

    Args:
        summaries: The summaries.
        notes: Text that stands as comments above the table.
    """
    best = _best(summaries)
    lines = []
    for number, s in enumerate(summaries):
        setting = _escape(s.setting)
        numbers = [_escape(cell.replace("-", "−")) for cell in _cells(s, first=not number)]
        lines.append([rf"\textbf{{{setting}}}" if s.setting in best else setting, *numbers])
    head, *body = (" & ".join(line) + r" \\" for line in ([_escape(h) for h in HEAD], *lines))
    columns = "l" + "r" * (len(HEAD) - 1)
    parts = [*(f"% {line}".rstrip() for line in notes.splitlines())]
    parts += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body]
    return "\n".join([*parts, r"\bottomrule", r"\end{tabular}", ""])


def _best(summaries: Sequence[Summary]) -> list[str]:
    """The settings with the highest validation accuracy."""
    # The mean of a setting with a diverged run is over a favourable choice of seeds.
    whole = [s for s in summaries if s.n and not s.diverged]
    highest = max((s.validation for s in whole), default=None)
    return [s.setting for s in whole if s.validation == highest]


def _cells(s: Summary, *, first: bool) -> list[str]:
    """The cells of a line of the table, after the name of the setting."""
    return [
        percent(s),
        f"{s.n}" + (f" ({s.diverged} diverged)" if s.diverged else ""),
        "–" if first or not s.pairs else _points(s),
        f"{100 * s.validation:.2f}" if s.n else "–",
        f"{s.parameters:,}",
        f"{s.seconds:.1f}",
    ]


def _escape(text: str) -> str:
    """The text with the characters that LaTeX reads as commands replaced."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"±": r"$\pm$", "−": "$-$", "–": "--"} | {each: rf"\{each}" for each in "%_&#${}"}
    return text.translate(str.maketrans(special))


def percent(summary: Summary) -> str:
    """Formats the mean of the test accuracy in percent, with its deviation if it has one."""
    if not summary.n:
        return "–"
    deviation = f" ± {100 * summary.deviation:.2f}" if summary.n > 1 else ""
    return f"{100 * summary.test:.2f}{deviation}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Formats a table in Markdown, with its columns padded to line up in a terminal.

    Args:
        head: The heads of the columns.
        lines: The cells of each line.
        left: Number of columns that are aligned to the left. The others are aligned to the right.

    Raises:
        ValueError: If a line does not have as many cells as there are heads.
    """
    widths = [max(3, *map(len, column)) for column in zip(head, *lines, strict=True)]
    rule = ["-" * width for width in widths[:left]]
    rule += ["-" * (width - 1) + ":" for width in widths[left:]]
    padded = [
        [cell.ljust(width) for cell, width in zip(line[:left], widths[:left], strict=True)]
        + [cell.rjust(width) for cell, width in zip(line[left:], widths[left:], strict=True)]
        for line in (head, rule, *lines)
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)
