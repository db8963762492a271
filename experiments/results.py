"""Writes experiments/RESULTS.md from the results.jsonl files that are kept beside it.

    python experiments/results.py

Each study is a folder of experiments/results, made by `ablate.py STUDY --out experiments/results`,
or on other data in a folder of their own there, as `--out experiments/results/fashion_mnist`.
Settings run again with other seeds, to `experiments/results/again`, are compared with what is kept:

    python experiments/ablate.py STUDY --settings SETTING --seeds 2 --first-seed 100 --out \
        experiments/results/again

Every number in RESULTS.md comes from there; none is typed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from records import Records
from studies import STUDIES

from jaxrnn.training import compare, report

HERE = Path(__file__).parent
HEAD = """# Results

Written by `python experiments/results.py` from `experiments/results/*/results.jsonl`.

Test accuracy in percent: mean ± standard deviation over n seeds, at the last step. In bold the
setting that validation would choose. The differences are to the first setting over the same seeds,
with 95 % confidence intervals (Student's t); where they include zero, no difference was seen. With
two seeds an interval reaches nine standard deviations to either side, and even a large difference
may go unseen. Each interval is of one comparison: of twenty settings that do not differ, one will
seem to. The seconds are those of the machine as it was, whatever else it did. A claim of no
difference is never confirmed by an interval, and a difference may be seen that is too small to
matter: at 99 % the binomial error on 10,000 images is ±0.1 points. Each record names its machine,
JAX version and, but for the oldest, the revision of the code that made it.
"""

AGAIN = "again"
RUN_AGAIN = """
## Run again

Settings of studies with seeds that these had not seen, beside the interval in which the mean of so
many other seeds should fall 95 times in 100 (Student's t prediction interval of the kept seeds).

"""

# Of a study's folder, as far as it has them.
PICTURES = {"curves.png": "learning curves", "heat.png": "test accuracy of the grid"}


def section(folder: Path, name: str) -> str:
    """The study in results/`name`: what it asks, the command, the table and the pictures."""
    records, config = Records(folder).of_settings(), Records(folder).config()
    report.learning_bands(records, folder / "curves.png", folder.name)
    datasets = ", ".join(sorted({record["dataset"] for record in records}))
    study = STUDIES.get(folder.name)
    about, claims = (study.about, study.claims) if study else (config["about"], ())
    commands = "\n".join(f"    {command}" for command in config["commands"])
    summaries = compare.summarise(records, list(config["settings"]))
    asked = sum(len(setting["runs"]) for setting in config["settings"].values())
    unfinished = f"{len(records)} of {asked} runs so far." if len(records) < asked else ""
    found = "\n".join(filter(None, (compare.check_claim(records, claim) for claim in claims)))
    pictures = "\n".join(
        f"![{title}](results/{name}/{picture})"
        for picture, title in PICTURES.items()
        if (folder / picture).exists()
    )
    parts = [
        f"\n## {name}",
        about,
        commands,
        " ".join(filter(None, (f"On {datasets}.", unfinished))),
        compare.markdown(summaries).rstrip(),
        compare.verdict(summaries),
        found,
        pictures,
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def run_again(folder: Path, names: list[str]) -> str:
    """The settings in results/again beside the same settings of their studies."""
    lines = [
        "| study | setting | kept, % | n | 95 % of other seeds | again, % | n | within |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in names:
        if (folder / name).is_dir():
            lines += again_lines(name, folder / name, folder / AGAIN / name)
    return "\n".join(lines) + "\n"


def again_lines(name: str, kept: Path, new: Path) -> Iterator[str]:
    """A line for each setting that both folders hold with the same options, over its new seeds."""
    folders = Records(kept), Records(new)
    before, after = (each.config()["settings"] for each in folders)
    runs = [each.of_settings() for each in folders]
    for setting, asked in after.items():
        same = before.get(setting, {})
        if any(same.get(part) != asked[part] for part in ("options", "data_sha256")):
            continue
        first, second = ([run for run in each if run["setting"] == setting] for each in runs)
        seen = {run["seed"] for run in first}
        second = [run for run in second if run["seed"] not in seen]
        if not first or not second:
            continue
        (was,), (found,) = compare.summarise(first), compare.summarise(second)
        width = compare.prediction_interval(was, found)
        interval, within = "–", "–"
        if np.isfinite(width):
            interval = f"± {100 * width:.2f}"
            within = "yes" if abs(found.test - was.test) <= width else "no"
        yield (
            f"| {name} | {setting} | {100 * was.test:.2f} ± {100 * was.deviation:.2f} | {was.n} "
            f"| {interval} | {100 * found.test:.2f} | {found.n} | {within} |"
        )


def main(folder: Path = HERE) -> int:
    """Writes RESULTS.md in the folder."""
    configs = folder.glob("results/**/config.json")
    found = sorted(path.parent for path in configs if Records(path.parent).of_settings())
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
