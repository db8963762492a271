"""Writes the page of results, docs/results.md, from the records of studies."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from records import Records
from studies import STUDIES

from jaxrnn.training import compare, report

HEAD = f"""# Results

`python experiments/results.py` writes this page from the records in `experiments/results`. Each
record of a run names the machine, the JAX version and, except for the oldest, the revision of the
code.

Each study has a question and, where a paper asks it too, the paper's answer. The options that all
settings of the study share are listed. Other options of `experiments/mnist.py` have their default
values, unless the name of the setting says otherwise. The commands are those that ran the study. A
study along a length has a table for each length.

## How to read the tables

{compare.LEGEND}
The comparisons have limits:

- Each interval is for a single comparison. Of twenty settings that do not differ from the first,
  one is expected to appear different.
- An interval that includes 0 does not show that two settings are equal. Conversely, a difference
  may be seen that is too small to matter: at an accuracy of 99 % on 10,000 images, the binomial
  standard error is 0.1 points.

The learning curves show the mean ± standard deviation of the test error over the seeds.
"""

AGAIN = "again"
OTHER_SEEDS = """
## Other seeds

One setting of each study listed here was run again with seeds that the study had not used. The
study's own seeds give a 95 % prediction interval (Student's t) for the mean over that many other
seeds.

"""


def page(folder: Path) -> str:
    """Returns the text of the page about the studies in a folder."""
    names = studies(folder)
    again = [name for name in names if name.startswith(f"{AGAIN}/")]
    text = HEAD
    if again:
        text += OTHER_SEEDS + other_seeds(
            folder, [name.removeprefix(f"{AGAIN}/") for name in again]
        )
    return text + "".join(section(folder, name) for name in names if name not in again)


def studies(folder: Path) -> list[str]:
    """Returns the studies in a folder that have a run, as paths relative to the folder."""
    found = sorted(path.parent for path in folder.glob("**/config.json"))
    return [path.relative_to(folder).as_posix() for path in found if Records(path).of_settings()]


def section(folder: Path, name: str) -> str:
    """Returns the section about a study: question, options, commands, table and comparison."""
    kept = Records(folder / name)
    records, config = kept.of_settings(), kept.config()
    study = STUDIES.get(kept.folder.name)
    about, claims = (study.about, study.claims) if study else (config["about"], ())
    settings = config["settings"]
    compared = kept.compared(config.get("baseline"))
    parts = [
        f"\n## {name}",
        about,
        describe(records, settings),
        "\n".join(f"    {command}" for command in config["commands"]),
        *(
            part
            for group in compared
            for part in (compare.markdown(group).rstrip(), compare.verdict(group))
        ),
        "\n".join(filter(None, (compare.check_claim(records, claim) for claim in claims))),
        "\n".join(
            f"![{title} of {name}](results/{name}/{picture})"
            for picture, title in pictures(kept.folder).items()
        ),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def describe(records: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """Returns the data set, the options that all settings share, and whether runs are missing."""
    words = [f"Data set: {', '.join(sorted({record['dataset'] for record in records}))}."]
    first, *others = (setting["options"] for setting in settings.values())
    shared = [
        f"`{option}={value}`"
        for option, value in first.items()
        if all(option in other and other[option] == value for other in others)
    ]
    if shared:
        words.append(f"All settings: {', '.join(shared)}.")
    runs = sum(len(setting["runs"]) for setting in settings.values())
    if len(records) < runs:
        words.append(f"{len(records)} of {runs} runs are finished.")
    return " ".join(words)


def pictures(study: Path) -> dict[str, str]:
    """Returns the pictures of a study, with their titles by file name."""
    grid = {"heat.png": "Test accuracies"} if (study / "heat.png").exists() else {}
    along = {"lengths.png": "Accuracy by length"} if Records(study).along() else {}
    return {"curves.png": "Learning curves"} | grid | along


def draw(study: Path, target: Path) -> None:
    """Writes the pictures of a study to a folder."""
    target.mkdir(parents=True, exist_ok=True)
    for picture in pictures(study):
        if picture == "curves.png":
            report.learning_bands(Records(study).of_settings(), target / picture, study.name)
        elif picture == "lengths.png":
            Records(study).draw_lengths(target / picture)
        else:
            shutil.copyfile(study / picture, target / picture)


def other_seeds(folder: Path, names: list[str]) -> str:
    """Returns the table of the settings that were run again with other seeds."""
    head = ["study", "setting", "study, %", "n", "prediction interval, %"]
    head += ["other seeds, %", "n", "within"]
    lines = [
        line
        for name in names
        if (folder / name).is_dir()
        for line in other_seeds_lines(name, folder / name, folder / AGAIN / name)
    ]
    return compare.table(head, lines, left=2)


def other_seeds_lines(name: str, kept: Path, new: Path) -> Iterator[list[str]]:
    """Yields a line for each setting that both folders hold with equal options and other seeds."""
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
        other = f"{100 * found.test:.2f}"
        yield [
            name,
            setting,
            compare.percent(was),
            f"{was.n}",
            interval,
            other,
            f"{found.n}",
            within,
        ]


def write(folder: Path, path: Path) -> None:
    """Writes the page to `path`, and its pictures to the folder of that name without the suffix."""
    path.write_text(page(folder))
    names = [name for name in studies(folder) if not name.startswith(f"{AGAIN}/")]
    for name in names:
        draw(folder / name, path.with_suffix("") / name)
    print(f"{path}: {', '.join(names) or 'no study yet'}")
