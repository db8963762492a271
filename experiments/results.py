"""Writes experiments/RESULTS.md from the results.jsonl files that are kept beside it.

    python experiments/results.py

Each study is a folder of experiments/results, made by `ablate.py STUDY --out experiments/results`,
or on other data in a folder of their own there, as `--out experiments/results/fashion_mnist`.
Rows run again with other seeds, to `experiments/results/again`, are held against what is kept:

    python experiments/ablate.py STUDY --rows ROW --seeds 2 --first-seed 100 --out \
        experiments/results/again

Every number in RESULTS.md comes from there; none is typed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ablate import kept_records
from studies import STUDIES

from jaxrnn import compare, report

HERE = Path(__file__).parent
HEAD = """# Results

Written by `python experiments/results.py` from `experiments/results/*/results.jsonl`.

Test accuracy in percent: mean ± standard deviation over n seeds, at the last step. In bold the
setting that validation would choose. The differences are to the first row over the same seeds, with
95 % confidence intervals (Student's t); where they include zero, no difference was seen. Each
interval is of one comparison by itself: of twenty settings that do not differ, one will seem to.
Pace is the time of an update relative to the first row on the same machine, measured while
training; it and the seconds are those of the machine as it was, whatever else it did. At 99 % the
binomial error on 10,000 images is ±0.1 points.
"""

AGAIN = "again"
RUN_AGAIN = """
## Run again

One row of each study with seeds that it had not seen, beside the interval in which the mean of so
many other seeds should fall 95 times in 100 (Student's t prediction interval of the kept seeds).

"""

# Of a study's folder, as far as it has them.
PICTURES = {"curves.png": "learning curves", "heat.png": "test accuracy of the grid"}


def section(folder: Path, name: str) -> str:
    """The study in results/`name`: what it asks, the command, the table and the pictures."""
    records = kept_records(folder)
    config = json.loads((folder / "config.json").read_text())
    report.learning_bands(records, folder / "curves.png", folder.name)
    datasets = ", ".join(sorted({record["dataset"] for record in records}))
    about = STUDIES[folder.name].about if folder.name in STUDIES else config["about"]
    commands = "\n".join(f"    {command}" for command in config["commands"])
    summaries = compare.summarise(records, list(config["rows"]))
    claims = STUDIES[folder.name].claims if folder.name in STUDIES else ()
    found = "\n".join(filter(None, (compare.held(records, claim) for claim in claims)))
    pictures = "\n".join(
        f"![{title}](results/{name}/{picture})"
        for picture, title in PICTURES.items()
        if (folder / picture).exists()
    )
    return (
        f"\n## {name}\n\n{about}\n\n{commands}\n\n"
        f"On {datasets}.\n\n{compare.markdown(summaries)}\n{compare.verdict(summaries)}\n\n"
        f"{found}{2 * chr(10) if found else ''}{pictures}\n"
    )


def run_again(folder: Path, names: list[str]) -> str:
    """The rows in results/again beside the same rows of their studies."""
    lines = [
        "| study | row | kept, % | n | 95 % of other seeds | again, % | n | within |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in names:
        kept = {each.row: each for each in compare.summarise(kept_records(folder / name))}
        for new in compare.summarise(kept_records(folder / AGAIN / name)):
            old = kept[new.row]
            width = compare.again(old, new)
            within = "yes" if abs(new.test - old.test) <= width else "no"
            lines.append(
                f"| {name} | {new.row} | {100 * old.test:.2f} ± {100 * old.deviation:.2f} "
                f"| {old.n} | ± {100 * width:.2f} | {100 * new.test:.2f} | {new.n} | {within} |"
            )
    return "\n".join(lines) + "\n"


def main(folder: Path = HERE) -> int:
    """Writes RESULTS.md in the folder."""
    found = sorted(path.parent for path in folder.glob("results/**/results.jsonl"))
    studies = {study.relative_to(folder / "results").as_posix(): study for study in found}
    again = [name for name in studies if name.startswith(f"{AGAIN}/")]
    sections = [section(study, name) for name, study in studies.items() if name not in again]
    if again:
        names = [name.removeprefix(f"{AGAIN}/") for name in again]
        sections.insert(0, RUN_AGAIN + run_again(folder / "results", names))
    (folder / "RESULTS.md").write_text(HEAD + "".join(sections))
    print(f"{folder / 'RESULTS.md'}: {', '.join(studies) or 'no study yet'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
