"""What several runs of several settings say: means, deviations, paired differences.

A record is one finished run: a mapping with `row` (the setting's name), `seed`, `status` ("ok" or
"diverged"), `test_accuracy`, `validation_accuracy`, `parameters`, `seconds`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

Record = Mapping[str, Any]


class Summary(NamedTuple):
    """One setting. Accuracies in 0..1; deviations are over seeds, with n - 1.

    Attributes:
        row: The setting's name.
        n: The runs that came to their end.
        diverged: Those whose loss was no longer finite.
        parameters: The model's.
        seconds: Of a run, on average.
        validation: Mean of the validation accuracy.
        test: Mean of the test accuracy.
        deviation: Its standard deviation; NaN for a single run.
        difference: Mean of this setting's test accuracy less the first's, same seeds only.
        interval: Half the width of its 95 % confidence interval, by Student's t.
        pairs: How many seeds both have.
    """

    row: str
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


def summarise(records: Sequence[Record], rows: Sequence[str] | None = None) -> list[Summary]:
    """One summary a setting, in the order given or in that of their first records."""
    rows = list(dict.fromkeys(record["row"] for record in records)) if rows is None else rows
    by_row = {row: [record for record in records if record["row"] == row] for row in rows}
    rows = [row for row in rows if by_row[row]]
    return [_summary(row, by_row[row], by_row[rows[0]]) for row in rows]


def _summary(row: str, records: Sequence[Record], reference: Sequence[Record]) -> Summary:
    first = _by_seed(reference)
    good = _by_seed(records)
    tests = np.array(list(good.values()))
    pairs = np.array([good[seed] - first[seed] for seed in good if seed in first])
    interval = np.nan
    if len(pairs) > 1:
        interval = stats.t.ppf(0.975, len(pairs) - 1) * stats.sem(pairs)
    ok = [record for record in records if record["status"] == "ok"]
    return Summary(
        row,
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


def _by_seed(records: Sequence[Record]) -> dict[int, float]:
    return {r["seed"]: r["test_accuracy"] for r in records if r["status"] == "ok"}


def relation(summary: Summary) -> str:
    """How a setting did beside the one it was compared with, by its interval.

    Returns:
        "better", "worse" or "no difference seen"; "unknown" where fewer than two seeds have both.
    """
    if summary.pairs < 2:
        return "unknown"
    if abs(summary.difference) <= summary.interval:
        return "no difference seen"
    return "better" if summary.difference > 0 else "worse"


def verdict(summaries: Sequence[Summary]) -> str:
    """What was seen, by the intervals of the paired differences to the first setting."""
    if not summaries:
        return "Nothing has been run."
    first, *rest = summaries
    seen = {
        kind: [f"`{each.row}`" for each in rest if relation(each) == kind]
        for kind in ("better", "worse", "no difference seen")
    }
    parts = [f"{kind}: {', '.join(rows)}" for kind, rows in seen.items() if rows]
    return f"Than `{first.row}` – {'; '.join(parts) or 'nothing to compare'}."


class Claim(NamedTuple):
    """What a paper found of two settings.

    Attributes:
        source: The paper, or its part.
        row: A setting.
        relation: "better", "worse", "no difference" or "not better".
        than: The setting it is compared with.
    """

    source: str
    row: str
    relation: str
    than: str


def check_claim(records: Sequence[Record], claim: Claim) -> str:
    """The claim and what was seen of it, as a line of Markdown; empty where nothing tells.

    An interval that includes zero does not show that there is no difference, so such a claim is
    never confirmed; and one that does not include it may still be too small to matter.
    """
    by_row = {row: [r for r in records if r["row"] == row] for row in (claim.row, claim.than)}
    if not all(by_row.values()):
        return ""
    summary = _summary(claim.row, by_row[claim.row], by_row[claim.than])
    seen = relation(summary)
    if seen == "unknown":
        return ""
    outcome = _OUTCOMES[claim.relation][seen]
    diverged = sum(r["status"] != "ok" for runs in by_row.values() for r in runs)
    preposition = "from" if claim.relation == "no difference" else "than"
    return (
        f"- {claim.source}: `{claim.row}` {claim.relation} {preposition} `{claim.than}`. "
        f"{outcome} here: {_points(summary.difference, summary.interval)} "
        f"(n = {summary.pairs}{f', {diverged} diverged' if diverged else ''})."
    )


# By what the paper found and what was seen.
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


def _points(difference: float, interval: float) -> str:
    """Both in percentage points, with a third digit where two do not tell which is larger."""
    digits = 2 if f"{100 * abs(difference):.2f}" != f"{100 * interval:.2f}" else 3
    return f"{100 * difference:+.{digits}f} ± {100 * interval:.{digits}f}"


def prediction_interval(kept: Summary, new: Summary) -> float:
    """Half the width of the 95 % prediction interval for the mean of other seeds of a setting.

    Args:
        kept: Of the seeds that the interval is made from.
        new: Of the others.

    Returns:
        By Student's t, around the mean of `kept`; NaN if that has but one seed.
    """
    if kept.n < 2 or not new.n:
        return np.nan
    width = stats.t.ppf(0.975, kept.n - 1) * kept.deviation
    return float(width * np.sqrt(1 / kept.n + 1 / new.n))


def markdown(summaries: Sequence[Summary]) -> str:
    """The summaries as a table, accuracies in percent; in bold what validation would choose.

    A setting of which a run diverged is not chosen: the mean is of those that did not.
    """
    lines = [
        "| | test, % | n | less the first, paired | validation, % | parameters | s a run |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    best = max((s.validation for s in summaries if s.n and not s.diverged), default=np.nan)
    for number, s in enumerate(summaries):
        name = f"**{s.row}**" if s.validation == best and not s.diverged else s.row
        test = "–" if not s.n else f"{100 * s.test:.2f}"
        if s.n > 1:
            test += f" ± {100 * s.deviation:.2f}"
        count = f"{s.n}" + (f" ({s.diverged} diverged)" if s.diverged else "")
        paired = "–"
        if number and s.pairs > 1:
            paired = _points(s.difference, s.interval)
        elif number and s.pairs:
            paired = f"{100 * s.difference:+.2f}"
        validation = "–" if not s.n else f"{100 * s.validation:.2f}"
        lines.append(
            f"| {name} | {test} | {count} | {paired} | {validation} | {s.parameters:,} "
            f"| {s.seconds:.1f} |"
        )
    return "\n".join(lines) + "\n"
