"""Statistics of several runs of several settings: means, deviations, paired differences.

A record is one finished run: a mapping with `setting` (its name), `seed`, `status` ("ok" or
"diverged"), `test_accuracy`, `validation_accuracy`, `parameters`, `seconds`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

__all__ = [
    "Claim",
    "Summary",
    "check_claim",
    "markdown",
    "prediction_interval",
    "relation",
    "summarise",
    "verdict",
]

Record = Mapping[str, Any]


class Summary(NamedTuple):
    """One setting. Accuracies in 0..1; deviations are over seeds, with n - 1.

    Attributes:
        setting: Its name.
        n: The runs that did not diverge.
        diverged: The runs whose loss was not finite.
        parameters: The model's.
        seconds: Of a run, on average.
        validation: Mean of the validation accuracy.
        test: Mean of the test accuracy.
        deviation: Its standard deviation; NaN for a single run.
        difference: Mean of this setting's test accuracy minus that of the first, same seeds only.
        interval: Half the width of its 95 % confidence interval, by Student's t.
        pairs: How many seeds both have.
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
    """One summary a setting, in the order given or in that of their first records."""
    if settings is None:
        settings = list(dict.fromkeys(record["setting"] for record in records))
    runs = {name: [each for each in records if each["setting"] == name] for name in settings}
    runs = {name: own for name, own in runs.items() if own}
    return [_summary(name, own, next(iter(runs.values()))) for name, own in runs.items()]


def _summary(setting: str, records: Sequence[Record], reference: Sequence[Record]) -> Summary:
    first = _by_seed(reference)
    good = _by_seed(records)
    tests = np.array(list(good.values()))
    pairs = np.array([good[seed] - first[seed] for seed in good if seed in first])
    interval = np.nan
    if len(pairs) > 1:
        interval = stats.t.ppf(0.975, len(pairs) - 1) * stats.sem(pairs)
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


def _by_seed(records: Sequence[Record]) -> dict[int, float]:
    return {r["seed"]: r["test_accuracy"] for r in records if r["status"] == "ok"}


def relation(summary: Summary) -> str:
    """Whether a setting is better than the one it is compared with, by its interval.

    Returns:
        "better", "worse" or "no difference seen"; "unknown" where fewer than two seeds have both.
    """
    if summary.pairs < 2:
        return "unknown"
    if abs(summary.difference) <= summary.interval:
        return "no difference seen"
    return "better" if summary.difference > 0 else "worse"


def verdict(summaries: Sequence[Summary]) -> str:
    """Which settings are better or worse than the first, by the intervals of the differences."""
    if not summaries:
        return "Nothing has been run."
    first, *rest = summaries
    if not rest:
        return f"There is nothing to compare `{first.setting}` with."
    sentences = {
        "better": f"Better than `{first.setting}`",
        "worse": f"Worse than `{first.setting}`",
        "no difference seen": f"No difference from `{first.setting}` seen",
    }
    seen = {
        kind: [f"`{each.setting}`" for each in rest if relation(each) == kind] for kind in sentences
    }
    parts = [f"{sentences[kind]}: {', '.join(names)}." for kind, names in seen.items() if names]
    return " ".join(parts) or "Too few seeds to compare."


class Claim(NamedTuple):
    """What a paper found of two settings.

    Attributes:
        source: The paper, or its part.
        setting: A setting.
        relation: "better", "worse", "no difference" or "not better".
        than: The setting it is compared with.
    """

    source: str
    setting: str
    relation: str
    than: str


def check_claim(records: Sequence[Record], claim: Claim) -> str:
    """The claim and whether it was seen, as a line of Markdown; empty without runs to tell.

    An interval that includes zero does not show that there is no difference, so such a claim is
    never confirmed; and one that does not include it may still be too small to matter.
    """
    runs = {
        name: [each for each in records if each["setting"] == name]
        for name in (claim.setting, claim.than)
    }
    if not all(runs.values()):
        return ""
    summary = _summary(claim.setting, runs[claim.setting], runs[claim.than])
    seen = relation(summary)
    if seen == "unknown":
        return ""
    outcome = _OUTCOMES[claim.relation][seen]
    diverged = sum(r["status"] != "ok" for own in runs.values() for r in own)
    preposition = "from" if claim.relation == "no difference" else "than"
    return (
        f"- {claim.source}: `{claim.setting}` {claim.relation} {preposition} `{claim.than}`. "
        f"{outcome} here: {_points(summary.difference, summary.interval)} "
        f"(n = {summary.pairs}{f', {diverged} diverged' if diverged else ''})."
    )


# By what the paper found and what the runs show.
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
        "| | test, % | n | minus the first, paired | validation, % | parameters | s a run |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    best = max((s.validation for s in summaries if s.n and not s.diverged), default=np.nan)
    for number, s in enumerate(summaries):
        name = f"**{s.setting}**" if s.validation == best and not s.diverged else s.setting
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
