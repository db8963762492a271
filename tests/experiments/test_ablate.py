"""Studies: their settings, their records, and the page of results."""

import dataclasses
import json
import re
import shlex
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import ablate
import experiment
import jax
import jobs
import numpy as np
import options
import pytest
import results
import results_page
import run_study
from command_line import parse
from errors import OptionError
from jax.experimental import multihost_utils
from matplotlib.figure import Figure
from records import Records

from jaxrnn import training
from jaxrnn.training import compare, data
from jaxrnn.training.run import git_revision, machine

pytestmark = pytest.mark.usefixtures("standard_promotion")


def ablation(tmp_path, **options):
    fixed = {"dataset": "digits", "out": tmp_path, "evaluations": 2, "seeds": 2}
    small = ("hidden_size=8", "steps=20", "batch_size=20", "schedule=constant")
    return ablate.Config(**{"set": small, **fixed, **options})


@pytest.fixture
def untrained(monkeypatch):
    """Runs end at once with made-up results, and pictures are empty files."""

    def fit(trainer, examples, evaluations, *, steps, seed, hparams, eval_every, **_):
        state = SimpleNamespace(step=np.zeros(len(seed)), params=np.zeros((len(seed), 5)))
        rates = hparams["learning_rate"]
        draws = [
            np.random.default_rng([number, int(1e4 * rate)])
            for number, rate in zip(seed, rates, strict=True)
        ]
        for step in [*range(eval_every, steps, eval_every), steps]:
            scores = np.array([0.9 + 0.1 * draw.random() for draw in draws])
            losses = np.ones((len(seed), min(eval_every, step))) / step
            metrics = {"validation": scores, "test": scores}
            yield training.Progress(step, losses, metrics, {"train": 60.0 * step}, state)

    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(Figure, "savefig", lambda _, path, **__: Path(path).write_bytes(b""))


def lines(tmp_path, study):
    return (tmp_path / study / "results.jsonl").read_text().splitlines()


def table_lines(folder):
    """The lines of a study's table, without its head."""
    written = (folder / "table.md").read_text()
    return [line for line in written.splitlines() if line.startswith("|")][2:]


def test_a_study_runs_resumes_and_concludes(tmp_path, capsys):
    config = ablation(tmp_path, study="mine", vary=("cell=lstm,gru", "learning_rate=1e-3,1e-2"))
    assert ablate.main(config) == 0
    first = lines(tmp_path, "mine")
    assert len(first) == 8
    origin = {"machine": machine(), "revision": git_revision(), "jax": jax.__version__}
    assert origin.items() <= json.loads(first[0]).items()
    assert [line.split()[1:3] for line in table_lines(tmp_path / "mine")][-1] == [
        "cell=gru",
        "learning_rate=1e-2",
    ]
    kept = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert kept["commands"] == [
        "python experiments/ablate.py mine --vary cell=lstm,gru --vary learning_rate=1e-3,1e-2 "
        "--set hidden_size=8 --set steps=20 --set batch_size=20 --set schedule=constant "
        "--seeds 2 --evaluations 2 --dataset digits"
    ]
    for picture in ("curves", "heat"):
        assert (tmp_path / "mine" / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    # Cut off in the middle of a line, it makes again only what it lost; another seed is added.
    path = tmp_path / "mine" / "results.jsonl"
    path.write_text("\n".join(first[:6]) + "\n" + first[6][:40])
    capsys.readouterr()
    assert ablate.main(ablation(tmp_path, study="mine", vary=config.vary, seeds=3)) == 0
    assert "6 runs are done, 6 to do" in capsys.readouterr().out
    again = {(r["setting"], r["seed"]): r for r in map(json.loads, lines(tmp_path, "mine"))}
    assert len(again) == 12
    for record in map(json.loads, first):
        same = again[record["setting"], record["seed"]]
        assert same["curve"][-1]["loss"] == pytest.approx(record["curve"][-1]["loss"], rel=1e-3)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_a_study_explains_its_table_and_says_where_its_files_are(tmp_path, capsys, seeds):
    vary = ("cell=rnn", "learning_rate=1e-3,1e-2")
    assert ablate.main(ablation(tmp_path, study="mine", vary=vary, seeds=seeds)) == 0
    shown, folder = capsys.readouterr().out, tmp_path / "mine"
    written = (folder / "table.md").read_text()
    assert written in shown
    assert compare.LEGEND in written
    verdict = written.splitlines()[-1]
    assert verdict.startswith("Too few seeds to compare with") == (seeds < 3)
    # The two columns with ±: the deviation of at least two seeds, the interval of at least three.
    assert [line.count("±") for line in table_lines(folder)] == [
        seeds > 1,
        (seeds > 1) + (seeds > 2),
    ]
    for line in (
        f"table:   {folder / 'table.md'}, {folder / 'table.tex'}",
        f"figures: {folder / 'curves.png'}, {folder / 'heat.png'}",
        f"runs:    {folder / 'results.jsonl'} (a line of JSON for each)",
        f"config:  {folder / 'config.json'}",
    ):
        assert f"\n{line}\n" in shown
    names = ("table.md", "table.tex", "curves.png", "heat.png", "results.jsonl", "config.json")
    for name in names:
        assert (folder / name).is_file()
    # What the settings have in common, also by default, and the command.
    assert (
        "\nAll settings: digits (1,257 training, 180 validation and 360 test images), the fast "
        "recipe, cell=rnn, hidden_size=8, batch_size=20, steps=20, optimizer=adam, "
        "schedule=constant, clip_norm=1.0.\n"
    ) in written
    assert f"\n    {Records(folder).config()['commands'][0]}\n" in written
    rows = [line.split(" & ")[0] for line in (folder / "table.tex").read_text().splitlines()]
    assert r"cell=rnn learning\_rate=1e-2" in "\n".join(rows)


@pytest.mark.usefixtures("untrained")
def test_the_page_of_results_is_made_of_the_records(tmp_path):
    kept, page = tmp_path / "kept", tmp_path / "results.md"
    assert ablate.main(ablation(kept, study="odyssey", settings=("peephole", "nfg"), seeds=3)) == 0
    grid = ablation(kept, study="mine", vary=("cell=rnn", "learning_rate=1e-3,1e-2"), seeds=1)
    assert ablate.main(grid) == 0
    rerun = {"study": "odyssey", "settings": ("nfg",), "seeds": 1, "first_seed": 7}
    assert ablate.main(ablation(kept / "again", **rerun)) == 0
    (kept / "elsewhere").mkdir()
    (kept / "mine").rename(kept / "elsewhere" / "mine")
    assert results.main(kept, page) == 0
    text = page.read_text()
    assert "## odyssey" in text
    assert "Greff et al." in text
    assert "\n".join(table_lines(kept / "odyssey")) in text
    assert "--settings peephole nfg --seeds 3 --evaluations 2" in text
    assert "Worse than `peephole`: " in text or "No difference from `peephole` seen" in text
    assert compare.LEGEND in text
    (new,) = Records(kept / "again" / "odyssey").of_settings()
    assert new["seed"] == 7
    _, nfg = compare.summarise(Records(kept / "odyssey").of_settings())
    means = f"{100 * nfg.test:.2f}", f"{100 * new['test_accuracy']:.2f}"
    line = rf"\| odyssey +\| nfg +\| {means[0]} ± .*\| +{means[1]} \| +1 \|"
    assert re.search(line, text)
    assert "## again" not in text
    # What was run again with other options, or with seeds that are kept, says nothing.
    words = ("hidden_size=8", "steps=10", "batch_size=20", "schedule=constant")
    other = {"study": "order", "settings": ("order=columns",), "seeds": 1}
    assert ablate.main(ablation(kept, **other)) == 0
    assert (
        ablate.main(ablation(kept / "again", **other, evaluations=1, first_seed=7, set=words)) == 0
    )
    assert ablate.main(ablation(kept / "again", study="odyssey", settings=("nfg",), seeds=1)) == 0
    assert results.main(kept, page) == 0
    again = page.read_text()
    assert re.search(line, again)
    assert "| order " not in again
    assert "## order" in again
    assert "- Greff et al.: `nfg` is worse than `peephole`. " in text
    assert "Data set: digits. All settings: `hidden_size=8`, `batch_size=20`, " in text
    # Of a study that was interrupted it says how far it got, and of one that only began nothing.
    path = kept / "odyssey" / "results.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    (kept / "order" / "results.jsonl").unlink()
    assert results.main(kept, page) == 0
    cut = page.read_text()
    assert " 3 of 6 runs are finished.\n" in cut
    assert "## order" not in cut
    shown = re.findall(r"!\[(.*)\]\((.*)\)", text)
    assert shown == [
        ("Learning curves of elsewhere/mine", "results/elsewhere/mine/curves.png"),
        ("Test accuracies of elsewhere/mine", "results/elsewhere/mine/heat.png"),
        ("Learning curves of odyssey", "results/odyssey/curves.png"),
    ]
    assert all((tmp_path / picture).is_file() for _, picture in shown)


def test_the_page_of_results_is_the_one_that_the_script_writes():
    """But for the last digit of a number, which may be rounded otherwise elsewhere."""
    number = re.compile(r"\d+(?:\.\d+)?")
    written, page = results.PAGE.read_text(), results_page.page(results.FOLDER)
    assert number.sub("0", written) == number.sub("0", page)
    found, expected = (np.array(number.findall(text), float) for text in (written, page))
    np.testing.assert_allclose(found, expected, atol=0.0101)
    pictures = re.findall(r"!\[.*\]\((.*)\)", page)
    there = [path.relative_to(results.PAGE.parent) for path in results.PAGE.parent.rglob("*.png")]
    assert {Path(picture) for picture in pictures} == {
        path for path in there if path.parts[0] == "results"
    }


@pytest.mark.usefixtures("untrained")
def test_a_study_has_an_event_file_of_each_run(tmp_path, capsys):
    pytest.importorskip("tensorboardX")
    config = ablation(tmp_path, study="mine", vary=("cell=rnn,gru",), tensorboard=True)
    assert ablate.main(config) == 0
    events = tmp_path / "mine" / "events"
    assert f"\nevents:  {events}\n" in capsys.readouterr().out
    found = {path.parent.relative_to(events).as_posix() for path in events.rglob("events.out.*")}
    assert found == {f"cell={cell}/seed-{seed}" for cell in ("rnn", "gru") for seed in (0, 1)}


@pytest.mark.usefixtures("untrained")
def test_a_setting_run_later_leaves_the_others_of_its_study(tmp_path, monkeypatch):
    both = ablation(tmp_path, study="odyssey", settings=("peephole", "nfg"), seeds=1)
    assert ablate.main(both) == 0
    assert ablate.main(ablation(tmp_path, study="odyssey", settings=("nfg",), seeds=2)) == 0
    kept = json.loads((tmp_path / "odyssey" / "config.json").read_text())
    assert {name: len(found["runs"]) for name, found in kept["settings"].items()} == {
        "peephole": 1,
        "nfg": 2,
    }
    assert len(kept["commands"]) == 2
    assert len(table_lines(tmp_path / "odyssey")) == 2
    # Fewer seeds, and an option on which no number depends, leave what is kept.
    monkeypatch.setattr(data, "load_or_digits", lambda _, size: data.load("digits", None, size))
    fewer = ablation(tmp_path, study="odyssey", settings=("nfg",), seeds=1, dataset="auto")
    assert len(Records(tmp_path / "odyssey").of_settings()) == 3
    assert ablate.main(fewer) == 0
    assert len(Records(tmp_path / "odyssey").of_settings()) == 3
    # Other options under the same name are other runs, which do not stand beside these.
    words = ("hidden_size=8", "steps=10", "batch_size=20", "schedule=constant")
    again = ablation(
        tmp_path, study="odyssey", settings=("nfg",), seeds=1, evaluations=1, set=words
    )
    with pytest.raises(OptionError, match="holds 'peephole' with another --set"):
        ablate.main(again)
    assert ablate.main(dataclasses.replace(again, settings=("peephole", "nfg"))) == 0
    kept = Records(tmp_path / "odyssey").of_settings()
    assert [record["curve"][-1]["step"] for record in kept] == [10, 10]
    # Nothing is left of the commands before.
    (command,) = Records(tmp_path / "odyssey").config()["commands"]
    assert "--set steps=10" in command


@pytest.mark.usefixtures("untrained")
def test_a_setting_that_the_study_has_otherwise_by_now_is_dropped(tmp_path, monkeypatch):
    config = ablation(tmp_path, study="regularisers", settings=("none", "zoneout 0.1"), seeds=1)
    assert ablate.main(config) == 0
    study = run_study.STUDIES["regularisers"]
    changed = study._replace(settings=study.settings | {"zoneout 0.1": {"zoneout": 0.2}})
    monkeypatch.setitem(run_study.STUDIES, "regularisers", changed)
    assert ablate.main(dataclasses.replace(config, settings=("none",))) == 0
    assert [record["setting"] for record in Records(tmp_path / "regularisers").of_settings()] == [
        "none"
    ]


@pytest.mark.usefixtures("untrained")
def test_the_table_of_a_grid_is_of_that_grid(tmp_path):
    grid = ablation(tmp_path, vary=("cell=rnn,irnn",), seeds=1)
    assert ablate.main(grid) == 0
    assert ablate.main(dataclasses.replace(grid, vary=("cell=irnn,gru",))) == 0
    kept = [record["setting"] for record in Records(tmp_path / "grid").of_settings()]
    assert kept == ["cell=irnn", "cell=gru"]
    assert len(lines(tmp_path, "grid")) == 3
    # Nor does it name a command of which nothing is left, or show the picture of another.
    two = dataclasses.replace(grid, vary=("cell=irnn", "learning_rate=1e-3"))
    assert ablate.main(two) == 0
    assert (tmp_path / "grid" / "heat.png").exists()
    assert ablate.main(dataclasses.replace(grid, vary=("cell=janet",))) == 0
    kept = Records(tmp_path / "grid").config()
    assert list(kept["settings"]) == ["cell=janet"]
    assert [command.count("cell=janet") for command in kept["commands"]] == [1]
    assert not (tmp_path / "grid" / "heat.png").exists()


@pytest.mark.usefixtures("untrained")
def test_there_are_no_more_evaluations_than_asked_for(tmp_path):
    config = ablation(tmp_path, vary=("cell=rnn",), seeds=1, evaluations=3)
    assert ablate.main(config) == 0
    (record,) = Records(tmp_path / "grid").of_settings()
    assert [look["step"] for look in record["curve"]] == [7, 14, 20]


@pytest.mark.usefixtures("untrained")
def test_runs_on_other_data_do_not_replace_those_that_are_kept(tmp_path, monkeypatch):
    config = ablation(tmp_path, study="odyssey", settings=("nfg",), seeds=1)
    assert ablate.main(config) == 0
    monkeypatch.setattr(run_study, "digest", lambda dataset: "of other data")
    with pytest.raises(OptionError, match="holds runs on other data"):
        ablate.main(config)
    with pytest.raises(OptionError, match="holds runs on other data"):
        ablate.main(dataclasses.replace(config, settings=("nog",)))
    assert len(Records(tmp_path / "odyssey").of_settings()) == 1


def test_two_processes_do_not_write_to_a_study_at_once(tmp_path):
    kept = Records(tmp_path / "mine")
    other = threading.Thread(target=kept.append, args=(RECORD,))
    with kept.locked():
        other.start()
        other.join(0.2)
        assert other.is_alive()
    other.join()
    assert kept.read() == {RECORD["identity"]: RECORD}
    kept.append(RECORD)
    assert len(lines(tmp_path, "mine")) == 1


RECORD = {
    "setting": "lstm",
    "seed": 0,
    "identity": "0123456789abcdef",
    "parameters": 5,
    "seconds": 1.0,
    "ms_per_step": 1.0,
    "machine": "2 × cpu",
    "together": 2,
    "dataset": "digits",
    "status": "ok",
    "test_accuracy": 0.5,
    "validation_accuracy": 0.5,
    "curve": [{"step": 1, "loss": None, "validation_accuracy": 0.5, "test_accuracy": 0.5}],
}


def test_damaged_records_are_left_out_with_one_line(tmp_path):
    kept = Records(tmp_path, warn=(warnings := []).append)
    kept.append(RECORD)
    with kept.path.open("ab") as file:
        file.write(b"[]\n\n\xff\nnull\n" + json.dumps(RECORD | {"curve": [3]}).encode() + b"\n")
    for _ in range(2):
        assert kept.read() == {RECORD["identity"]: RECORD}
    (warning,) = warnings
    assert (
        "results.jsonl is read without damaged lines: 5, first line 2: list is not a dict"
        in warning
    )
    for text in ("", "[]", "{}", "[" * 100_000):
        kept.config_path.write_text(text)
        with pytest.raises(OptionError, match=r"config\.json is damaged: .*; delete it") as error:
            kept.config()
        assert "\n" not in str(error.value)


CLAIM = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from records import Records
with Records(Path(sys.argv[3])).claims() as claim:
    print(*map(claim, sys.argv[4:]), flush=True)
    sys.stdin.read()
"""


@pytest.mark.usefixtures("untrained")
def test_two_commands_at_once_share_the_runs(tmp_path, monkeypatch, capsys):
    config = ablation(tmp_path, study="odyssey", settings=("nfg", "nog"))
    resolved = run_study.resolve(config).settings
    hashes = run_study.digests(resolved, experiment.load_dataset("digits"))
    planned = jobs.plan(resolved, range(2), hashes)
    taken = [job.identity for job in planned if job.setting == "nfg"]
    folders = [str(Path(ablate.__file__).parent), str(Path(ablate.__file__).parents[1])]
    other = subprocess.Popen(
        [sys.executable, "-c", CLAIM, *folders, str(tmp_path / "odyssey"), *taken],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with other:
        assert other.stdout.readline() == "True True\n"
        with Records(tmp_path / "odyssey").claims() as claim:
            assert [claim(job.identity) for job in planned] == [
                job.identity not in taken for job in planned
            ]

        def sleep(seconds):  # until the other process is killed
            assert [r["setting"] for r in Records(tmp_path / "odyssey").read().values()] == [
                "nog",
                "nog",
            ]
            other.kill()
            other.wait()

        monkeypatch.setattr(run_study, "time", SimpleNamespace(sleep=sleep))
        assert ablate.main(config) == 0
    assert "waiting for 2 runs that another process trains" in capsys.readouterr().out
    assert len(lines(tmp_path, "odyssey")) == 4


def test_settings_that_differ_in_hyperparameters_share_a_program(tmp_path):
    config = ablation(tmp_path, vary=("cell=lstm", "forget_bias=0,1", "learning_rate=1e-3,1e-2"))
    settings = run_study.resolve(config).settings
    every = jobs.plan(settings, range(3), dict.fromkeys(settings, "digest"))
    found = list(jobs.batches(every, 8))
    assert [len(batch) for _, batch in found] == [6, 6]
    assert found[0][0] == found[1][0]


@pytest.mark.usefixtures("untrained")
def test_what_another_study_has_run_is_taken_from_there(tmp_path, capsys):
    first = ablation(tmp_path, study="odyssey", settings=("peephole",), seeds=1)
    assert ablate.main(first) == 0
    capsys.readouterr()
    settings = ("lstm-peephole", "janet")
    assert ablate.main(ablation(tmp_path, study="cells", settings=settings, seeds=1)) == 0
    shown = capsys.readouterr().out
    assert "1 runs are done, 1 to do" in shown
    assert re.search(r"about \d+ minutes if the others take as long as lstm-peephole", shown)
    (there,) = Records(tmp_path / "odyssey").read().values()
    here = list(Records(tmp_path / "cells").read().values())
    assert here[0] == there | {"setting": "lstm-peephole"}
    assert [record["setting"] for record in here] == ["lstm-peephole", "janet"]


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("first", ["lstm", "gru"])
def test_of_a_grid_only_what_goes_together_is_run(tmp_path, capsys, first):
    other = {"lstm": "gru", "gru": "lstm"}[first]
    vary = (f"cell={first},{other}", "cell_options=peephole=True,peephole=False,None")
    assert ablate.main(ablation(tmp_path, vary=vary, seeds=1)) == 0
    shown = capsys.readouterr().out
    kept = [record["setting"] for record in Records(tmp_path / "grid").of_settings()]
    lstm = [
        f"cell=lstm cell_options={each}" for each in ("peephole=True", "peephole=False", "None")
    ]
    gru = [name.replace("lstm", "gru") for name in lstm]
    assert kept == ([*lstm, gru[2]] if first == "lstm" else [gru[2], *lstm])
    reason = "since --cell gru does not take --cell-options peephole"
    assert all(f"left out: {name}, {reason}" in shown for name in gru[:2])
    written = (tmp_path / "grid" / "table.md").read_text()
    reason = "2 of 6 settings are left out, since their options do not go together"
    assert f"\n{reason}: '{gru[0]}'" in written
    warning = f"\nThe first setting, '{gru[0]}', is left out. The differences are from '{gru[2]}'; "
    assert (warning in written) == (first == "gru")
    # Before the training, and after the table.
    assert shown.count("NOT THE FIRST SETTING") == (2 if first == "gru" else 0)


@pytest.mark.usefixtures("untrained")
def test_the_differences_are_from_the_baseline(tmp_path):
    grid = ablation(tmp_path, study="mine", vary=("learning_rate=1e-3,1e-2,1e-1",))
    means = {}
    for baseline in (None, "learning_rate=1e-2"):
        assert ablate.main(dataclasses.replace(grid, baseline=baseline)) == 0
        lines_of = [line.split("|") for line in table_lines(tmp_path / "mine")]
        means[baseline] = {line[1].strip(" *"): float(line[2].split("±")[0]) for line in lines_of}
    assert lines_of[0][1].strip(" *") == baseline
    assert lines_of[0][4].strip() == "–"
    assert means[None] == means[baseline]
    assert next(iter(means[None])) == "learning_rate=1e-3"
    difference = means[None]["learning_rate=1e-1"] - means[None][baseline]
    assert float(lines_of[2][4].split("±")[0]) == pytest.approx(difference, abs=0.011)
    kept = Records(tmp_path / "mine").config()
    assert [command.count(f"--baseline {baseline}") for command in kept["commands"]] == [0, 1]
    page = results_page.section(tmp_path, "mine")
    assert "\n".join(table_lines(tmp_path / "mine")) in page


@pytest.mark.usefixtures("untrained")
def test_a_changed_cell_is_trained_anew_and_the_file_is_named(tmp_path, capsys):
    path = tmp_path / "own.py"
    path.write_text("import jaxrnn\n\ndef cell(size):\n    return jaxrnn.rnn(size)\n")
    config = ablation(tmp_path, vary=(f"cell=gru,{path}:cell",), seeds=1)
    assert ablate.main(config) == 0
    assert ablate.main(config) == 0
    assert "has changed" not in capsys.readouterr().out
    path.write_text(path.read_text().replace("rnn(", "lstm("))
    assert ablate.main(config) == 0
    shown = capsys.readouterr().out
    assert f"note: {path}:cell has changed; runs with the earlier file are trained again\n" in shown
    assert "1 runs are done, 1 to do" in shown


def test_of_a_grid_of_which_nothing_goes_together_there_is_one_error(tmp_path, capsys):
    with pytest.raises(OptionError, match="--cell gru does not take --forget-bias"):
        ablate.main(ablation(tmp_path, vary=("cell=gru", "forget_bias=0,1")))
    assert capsys.readouterr().out == ""


def test_a_run_that_diverges_is_recorded_and_the_study_goes_on(tmp_path):
    config = ablation(tmp_path, study="mine", vary=("learning_rate=1e38,1e-2",))
    assert ablate.main(config) == 0
    records = [json.loads(line) for line in lines(tmp_path, "mine")]
    status = {(record["setting"], record["status"]) for record in records}
    assert status == {("learning_rate=1e38", "diverged"), ("learning_rate=1e-2", "ok")}
    assert "(2 diverged)" in (tmp_path / "mine" / "table.md").read_text()


@pytest.mark.usefixtures("untrained")
def test_a_dry_run_trains_nothing(tmp_path, capsys):
    assert ablate.main(ablation(tmp_path, study="odyssey", dry_run=True)) == 0
    shown = capsys.readouterr().out
    assert "9 settings × 2 seeds: 0 runs are done, 18 to do" in shown
    assert "nfg: {" in shown
    assert shown.index("timing peephole …\n") < shown.index("9 settings")
    # Two runs at once take a minute for a step.
    assert "18 to do, about 180 minutes if the others take as long as peephole" in shown
    assert not (tmp_path / "odyssey" / "results.jsonl").exists()


@pytest.mark.usefixtures("untrained")
def test_a_host_waits_for_what_another_has_not_kept_yet(tmp_path, monkeypatch):
    config = ablation(tmp_path, study="odyssey", settings=("nfg",), seeds=1)
    assert ablate.main(config) == 0
    (record,) = Records(tmp_path / "odyssey").of_settings()
    (tmp_path / "odyssey" / "results.jsonl").unlink()
    (tmp_path / "odyssey" / "table.md").unlink()

    def train_elsewhere(jobs, kept, dataset, evaluations):
        threading.Timer(0.5, kept.append, (record,)).start()

    monkeypatch.setattr(run_study, "train", train_elsewhere)
    assert ablate.main(config) == 0
    assert table_lines(tmp_path / "odyssey")[0].startswith("| **nfg**")


def check_shared(tmp_path):
    """Each of two hosts has run its own part of the study, and one has concluded it."""
    shares = [(tmp_path / "mine" / name) for name in ("results.jsonl", "results-1.jsonl")]
    runs = [[json.loads(line) for line in share.read_text().splitlines()] for share in shares]
    assert list(map(len, runs)) == [2, 2]
    assert len({(record["setting"], record["seed"]) for share in runs for record in share}) == 4
    assert len(table_lines(tmp_path / "mine")) == 2


@pytest.mark.usefixtures("untrained")
def test_hosts_share_a_study(tmp_path, monkeypatch):
    """The hosts are threads here, because two processes take ten seconds."""
    joined, meeting = set(), threading.Barrier(2)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *words, **_: joined.add(words))
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: None)
    monkeypatch.setattr(run_study.hosts, "filter_stderr", lambda: None)
    monkeypatch.setattr(multihost_utils, "sync_global_devices", lambda _: meeting.wait(timeout=60))
    monkeypatch.setattr(run_study, "POLL_SECONDS", 0.1)
    config = ablation(
        tmp_path, study="mine", vary=("learning_rate=0.1,0.2",), hosts=2, coordinator="there:1"
    )
    hosts = [dataclasses.replace(config, host=host) for host in range(2)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ablate.main, hosts)) == [0, 0]
    assert joined == {("there:1", 2, 0), ("there:1", 2, 1)}
    check_shared(tmp_path)


@pytest.mark.slow
def test_processes_share_a_study(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    script = ablate.__file__
    words = [sys.executable, script, "mine", "--vary", "learning_rate=0.1,0.2", "--seeds", "2"]
    words += ["--dataset", "digits", "--out", str(tmp_path), "--hosts", "2", "--evaluations", "1"]
    for option in ("cell=rnn", "hidden_size=2", "steps=2", "batch_size=2"):
        words += ["--set", option]
    words += ["--coordinator", coordinator]
    hosts = [
        subprocess.Popen([*words, "--host", str(host)], stdout=subprocess.PIPE, text=True)
        for host in range(2)
    ]
    shown = [host.communicate(timeout=600)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], shown
    check_shared(tmp_path)


@pytest.mark.parametrize("name", run_study.STUDIES)
def test_every_study_is_of_options_that_go_together(name):
    study, settings, _ = run_study.resolve(ablate.Config(name))
    assert study.about
    assert len(settings) == len(study.settings)
    for claim in study.claims:
        assert {claim.setting, claim.than} <= settings.keys()
        assert claim.relation in ("better", "worse", "no difference", "not better")


def test_equal_cells_are_as_large_as_units_in_fours_allow():
    study = run_study.STUDIES["cells-equal"]
    for name, setting in study.settings.items():
        model = experiment.build_model(options.Config(**setting))
        shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 28, 28), np.float32))
        assert abs(training.count_parameters(shapes) / 81_674 - 1) < 0.04, name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seeds": 0}, "--seeds must be at least 1"),
        ({"first_seed": -1}, "--first-seed must not be negative"),
        ({"evaluations": 0}, "--evaluations must be at least 1"),
        ({"vary": ("cell=lstm",), "study": "cells"}, "cells is a study of its own"),
        ({"study": "size", "settings": ("hidden_size=64",)}, "--set hidden_size is not for"),
        (
            {"study": "no such"},
            "no study 'no such', and no --vary to define it. Choose from cells, ",
        ),
        ({"vary": ("cell=lstm", "cell=gru")}, "cell is given 2 times"),
        ({"vary": ("cell=lstm,gru,lstm",)}, "cell has a value twice"),
        ({"vary": ("cell=gru",), "set": ("steps=1", "steps=2")}, "steps is given 2 times"),
        ({"vary": ("cel=lstm",)}, r"there is no option cel; did you mean cell or cell_options\?"),
        ({"vary": ("cell=lstn",)}, "cell does not take 'lstn'; did you mean lstm"),
        ({"vary": ("steps=many",)}, 'for steps: unable to convert "many" into int'),
        ({"vary": ("steps=None",)}, 'for steps: unable to convert "None" into int'),
        (
            {"vary": ("learning_rate=None",)},
            'for learning_rate: unable to convert "None" into float',
        ),
        ({"vary": ("bidirectional=maybe",)}, "for bidirectional. Choose from: True, False"),
        ({"vary": ("hidden_size",)}, "--vary must be option=value,value, got 'hidden_size'"),
        ({"vary": ("cell=gru",), "set": ("steps",)}, "--set must be option=value, got 'steps'"),
        ({"study": "sise"}, r"there is no study 'sise', .*; did you mean size\? Choose from "),
        ({"vary": ("cell=gru",), "coordinator": "here"}, "--coordinator must be HOST:PORT, got he"),
        ({"vary": ("cell=gru",), "hosts": 2}, "--hosts needs --coordinator HOST:PORT"),
        ({"vary": ("cell=gru",), "study": "../esc"}, "name of a folder of --out, got '../esc'"),
        ({"vary": ("cell=gru",), "study": ".."}, r"name of a folder of --out, got '\.\.'"),
        ({"vary": ("cell=gru",), "study": "/tmp/esc"}, "name of a folder of --out, got '/tmp/esc'"),
        ({"vary": ("cell=gru",), "study": ""}, "name of a folder of --out, got ''"),
        ({"vary": ("cell=gru",), "host": 2}, "--host must be at least 0 and less than --hosts"),
        ({"study": "odyssey", "settings": ("nfq",)}, r"no setting 'nfq'; did you mean nfg"),
        ({"study": "odyssey", "baseline": "nfq"}, r"no setting 'nfq'; did you mean nfg"),
        (
            {"study": "odyssey", "settings": ("nfg",), "baseline": "cifg"},
            "--baseline cifg is not among --settings",
        ),
        (
            {"vary": ("cell=lstm,gru", "forget_bias=0,1"), "baseline": "cell=gru forget_bias=0"},
            "--cell gru does not take --forget-bias",
        ),
        (
            {"vary": ("cell=gru,lstm", "projection_size=2,3")},
            "^projection_size is an option of the cell: "
            "--vary cell_options=projection_size=2,projection_size=3$",
        ),
        (
            {"vary": ("learning_rate=1e-3",), "set": ("cell_clip=2.0",)},
            r"^cell_clip is an option of the cell: --cell-options cell_clip=2\.0$",
        ),
        ({"vary": ("peephole=True",), "cell": "gru"}, "there is no option peephole"),
        (
            {"vary": ("cell=lstm,my_cells.py",)},
            "my_cells.py names no function; write my_cells.py:NA",
        ),
        ({"vary": ("seed=1,2",)}, "seed is not an option of a study"),
        ({"study": "odyssey", "settings": ("nfg", "no such")}, "odyssey has no setting 'no such'"),
        ({"vary": ("cell=gru",), "set": ("forget_bias=1",)}, "does not take --forget-bias"),
        ({"vary": ("cell=mlp",), "set": ("num_layers=2",)}, "does not take --num-layers"),
        (
            {"vary": ("cell=lru",), "set": ("zoneout=0.1",)},
            "regularizer.zoneout must be None for a cell",
        ),
    ],
)
def test_what_cannot_be_is_refused(options, words, tmp_path):
    with pytest.raises(OptionError, match=words):
        ablate.main(ablation(tmp_path, **options))


def test_the_command_of_a_study_can_be_given_to_a_shell():
    config = ablate.Config(
        "mine",
        vary=("learning_rate=1e-3,1e-2",),
        cell="lru",
        cell_options=("radius=(0.9,0.99)",),
        settings=("with a space", "with (parentheses)"),
        baseline="with a 'quote'",
        first_seed=2,
        evaluations=3,
    )
    python, script, *words = shlex.split(run_study.command(config))
    assert (python, script) == ("python", "experiments/ablate.py")
    assert parse(ablate.Config, None, words) == config
