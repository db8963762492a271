"""Ablations: their rows, what is kept of them, and RESULTS.md."""

import dataclasses
import json
import re
import socket
import subprocess
import sys
import threading

import ablate
import jax
import jax.numpy as jnp
import mnist
import pytest
import results
from records import Records

from jaxrnn.training import compare, data, sweep
from jaxrnn.training.run import git_revision, machine

pytestmark = pytest.mark.usefixtures("standard_promotion")


def ablation(tmp_path, **options):
    fixed = {"dataset": "digits", "out": tmp_path, "looks": 2, "seeds": 2}
    small = ("hidden_size=8", "steps=20", "batch_size=20", "schedule=constant")
    return ablate.Config(**{"set": small, **fixed, **options})


def lines(tmp_path, study):
    return (tmp_path / study / "results.jsonl").read_text().splitlines()


def test_a_study_runs_resumes_and_concludes(tmp_path, capsys):
    config = ablation(tmp_path, study="mine", vary=("cell=lstm,gru", "learning_rate=1e-3,1e-2"))
    assert ablate.main(config) == 0
    first = lines(tmp_path, "mine")
    assert len(first) == 8
    origin = {"machine": machine(), "revision": git_revision(), "jax": jax.__version__}
    assert origin.items() <= json.loads(first[0]).items()
    table = (tmp_path / "mine" / "table.md").read_text()
    assert table.count("\n") == 6
    assert "cell=gru learning_rate=1e-2" in table
    kept = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert kept["commands"] == [
        "python experiments/ablate.py mine --vary cell=lstm,gru --vary learning_rate=1e-3,1e-2 "
        "--set hidden_size=8 --set steps=20 --set batch_size=20 --set schedule=constant "
        "--seeds 2 --looks 2 --dataset digits"
    ]
    for picture in ("curves", "heat"):
        assert (tmp_path / "mine" / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    # Cut off in the middle of a line, it makes again only what it lost; another seed is added.
    path = tmp_path / "mine" / "results.jsonl"
    path.write_text("\n".join(first[:6]) + "\n" + first[6][:40])
    capsys.readouterr()
    assert ablate.main(ablation(tmp_path, study="mine", vary=config.vary, seeds=3)) == 0
    assert "6 runs are done, 6 to do" in capsys.readouterr().out
    again = {(r["row"], r["seed"]): r for r in map(json.loads, lines(tmp_path, "mine"))}
    assert len(again) == 12
    for record in map(json.loads, first):
        same = again[record["row"], record["seed"]]
        assert same["curve"][-1]["loss"] == pytest.approx(record["curve"][-1]["loss"], rel=1e-3)


def test_results_md_is_made_of_what_was_kept(tmp_path):
    kept = tmp_path / "results"
    assert ablate.main(ablation(kept, study="odyssey", rows=("peephole", "nfg"), seeds=2)) == 0
    grid = ablation(kept, study="mine", vary=("cell=rnn", "learning_rate=1e-3,1e-2"), seeds=1)
    assert ablate.main(grid) == 0
    rerun = {"study": "odyssey", "rows": ("nfg",), "seeds": 1, "first_seed": 7}
    assert ablate.main(ablation(kept / "again", **rerun)) == 0
    (kept / "elsewhere").mkdir()
    (kept / "mine").rename(kept / "elsewhere" / "mine")
    assert results.main(tmp_path) == 0
    text = (tmp_path / "RESULTS.md").read_text()
    assert "## odyssey" in text
    assert "Greff et al." in text
    assert (kept / "odyssey" / "table.md").read_text() in text
    assert "--rows 'peephole' 'nfg' --seeds 2 --looks 2" in text
    assert "Than `peephole` – " in text
    (new,) = Records(kept / "again" / "odyssey").of_rows()
    assert new["seed"] == 7
    _, nfg = compare.summarise(Records(kept / "odyssey").of_rows())
    row = rf"\| odyssey \| nfg \| {100 * nfg.test:.2f} ± .*\| {100 * new['test_accuracy']:.2f} \| 1"
    assert re.search(row, text)
    assert "## again" not in text
    # What was run again with other options, or with seeds that are kept, says nothing.
    words = ("hidden_size=8", "steps=10", "batch_size=20", "schedule=constant")
    other = {"study": "order", "rows": ("order=columns",), "seeds": 1}
    assert ablate.main(ablation(kept, **other)) == 0
    assert ablate.main(ablation(kept / "again", **other, looks=1, first_seed=7, set=words)) == 0
    assert ablate.main(ablation(kept / "again", study="odyssey", rows=("nfg",), seeds=1)) == 0
    assert results.main(tmp_path) == 0
    again = (tmp_path / "RESULTS.md").read_text()
    assert re.search(row, again)
    assert "| order |" not in again
    assert "## order" in again
    assert "- Greff et al.: `nfg` worse than `peephole`. " in text
    assert "On digits.\n" in text
    # Of a study that was interrupted it says how far it got, and of one that only began nothing.
    path = kept / "odyssey" / "results.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    (kept / "order" / "results.jsonl").unlink()
    assert results.main(tmp_path) == 0
    cut = (tmp_path / "RESULTS.md").read_text()
    assert "On digits. 3 of 4 runs so far.\n" in cut
    assert "## order" not in cut
    shown = re.findall(r"\]\((results/.*)\)", text)
    assert shown == [
        "results/elsewhere/mine/curves.png",
        "results/elsewhere/mine/heat.png",
        "results/odyssey/curves.png",
    ]
    assert all((tmp_path / picture).is_file() for picture in shown)


def test_a_row_run_later_leaves_the_others_of_its_study(tmp_path, monkeypatch):
    both = ablation(tmp_path, study="odyssey", rows=("peephole", "nfg"), seeds=1)
    assert ablate.main(both) == 0
    assert ablate.main(ablation(tmp_path, study="odyssey", rows=("nfg",), seeds=2)) == 0
    kept = json.loads((tmp_path / "odyssey" / "config.json").read_text())
    assert {row: len(found["runs"]) for row, found in kept["rows"].items()} == {
        "peephole": 1,
        "nfg": 2,
    }
    assert len(kept["commands"]) == 2
    assert (tmp_path / "odyssey" / "table.md").read_text().count("\n") == 4
    # Fewer seeds, and an option on which no number depends, leave what is kept.
    monkeypatch.setattr(data, "load_or_digits", lambda _, size: data.load("digits", None, size))
    fewer = ablation(tmp_path, study="odyssey", rows=("nfg",), seeds=1, dataset="auto")
    assert len(Records(tmp_path / "odyssey").of_rows()) == 3
    assert ablate.main(fewer) == 0
    assert len(Records(tmp_path / "odyssey").of_rows()) == 3
    # Other options under the same name are other runs, which do not stand beside these.
    words = ("hidden_size=8", "steps=10", "batch_size=20", "schedule=constant")
    again = ablation(tmp_path, study="odyssey", rows=("nfg",), seeds=1, looks=1, set=words)
    with pytest.raises(mnist.RunError, match="holds 'peephole' with another --set"):
        ablate.main(again)
    assert ablate.main(dataclasses.replace(again, rows=("peephole", "nfg"))) == 0
    kept = Records(tmp_path / "odyssey").of_rows()
    assert [record["curve"][-1]["step"] for record in kept] == [10, 10]
    # Nothing is left of the commands before.
    (command,) = Records(tmp_path / "odyssey").config()["commands"]
    assert "--set steps=10" in command


def test_a_row_that_the_study_has_otherwise_by_now_is_dropped(tmp_path, monkeypatch):
    config = ablation(tmp_path, study="regularisers", rows=("none", "zoneout 0.1"), seeds=1)
    assert ablate.main(config) == 0
    study = ablate.STUDIES["regularisers"]
    changed = study._replace(rows=study.rows | {"zoneout 0.1": {"zoneout": 0.2}})
    monkeypatch.setitem(ablate.STUDIES, "regularisers", changed)
    assert ablate.main(dataclasses.replace(config, rows=("none",))) == 0
    assert [record["row"] for record in Records(tmp_path / "regularisers").of_rows()] == ["none"]


def test_the_table_of_a_grid_is_of_that_grid(tmp_path):
    grid = ablation(tmp_path, vary=("cell=rnn,irnn",), seeds=1)
    assert ablate.main(grid) == 0
    assert ablate.main(dataclasses.replace(grid, vary=("cell=irnn,gru",))) == 0
    kept = [record["row"] for record in Records(tmp_path / "grid").of_rows()]
    assert kept == ["cell=irnn", "cell=gru"]
    assert len(lines(tmp_path, "grid")) == 3
    # Nor does it name a command of which nothing is left, or show the picture of another.
    two = dataclasses.replace(grid, vary=("cell=irnn", "learning_rate=1e-3"))
    assert ablate.main(two) == 0
    assert (tmp_path / "grid" / "heat.png").exists()
    assert ablate.main(dataclasses.replace(grid, vary=("cell=janet",))) == 0
    kept = Records(tmp_path / "grid").config()
    assert list(kept["rows"]) == ["cell=janet"]
    assert [command.count("cell=janet") for command in kept["commands"]] == [1]
    assert not (tmp_path / "grid" / "heat.png").exists()


def test_there_are_no_more_looks_than_asked_for(tmp_path):
    config = ablation(tmp_path, vary=("cell=rnn",), seeds=1, looks=3)
    assert ablate.main(config) == 0
    (record,) = Records(tmp_path / "grid").of_rows()
    assert [look["step"] for look in record["curve"]] == [7, 14, 20]


def test_runs_on_other_data_do_not_replace_those_that_are_kept(tmp_path, monkeypatch):
    config = ablation(tmp_path, study="odyssey", rows=("nfg",), seeds=1)
    assert ablate.main(config) == 0
    monkeypatch.setattr(mnist, "digest", lambda dataset: "of other data")
    with pytest.raises(mnist.RunError, match="holds runs on other data"):
        ablate.main(config)
    with pytest.raises(mnist.RunError, match="holds runs on other data"):
        ablate.main(dataclasses.replace(config, rows=("nog",)))
    assert len(Records(tmp_path / "odyssey").of_rows()) == 1


def test_two_processes_do_not_write_to_a_study_at_once(tmp_path):
    kept = Records(tmp_path / "mine")
    other = threading.Thread(target=kept.append, args=({"identity": "a"},))
    with kept.locked():
        other.start()
        other.join(0.2)
        assert other.is_alive()
    other.join()
    assert lines(tmp_path, "mine") == ['{"identity": "a"}']


def test_rows_that_differ_in_numbers_share_a_program(tmp_path):
    config = ablation(tmp_path, vary=("cell=lstm", "forget_bias=0,1", "learning_rate=1e-3,1e-2"))
    _, rows = ablate.settings(config)
    jobs = ablate.plan(rows, range(3), "digest")
    found = list(ablate.batches(jobs, 8))
    assert [len(batch) for _, batch in found] == [6, 6]
    assert found[0][0] == found[1][0]


def test_what_another_study_has_run_is_taken_from_there(tmp_path, capsys):
    first = ablation(tmp_path, study="odyssey", rows=("peephole",), seeds=1)
    assert ablate.main(first) == 0
    capsys.readouterr()
    rows = ("lstm-peephole", "janet")
    assert ablate.main(ablation(tmp_path, study="cells", rows=rows, seeds=1)) == 0
    shown = capsys.readouterr().out
    assert "1 runs are done, 1 to do" in shown
    assert re.search(r"about \d+ minutes if the others take as long as lstm-peephole", shown)
    (there,) = map(json.loads, lines(tmp_path, "odyssey"))
    here = [json.loads(line) for line in lines(tmp_path, "cells")]
    assert here[0] == there | {"row": "lstm-peephole"}
    assert [record["row"] for record in here] == ["lstm-peephole", "janet"]


def test_of_a_grid_only_what_goes_together_is_run(tmp_path, capsys):
    config = ablation(tmp_path, vary=("cell=lstm,gru", "forget_bias=0,1"))
    _, rows = ablate.settings(config)
    assert list(rows) == ["cell=lstm forget_bias=0", "cell=lstm forget_bias=1"]
    assert "left out: cell=gru forget_bias=0" in capsys.readouterr().out


def test_a_run_that_diverges_is_recorded_and_the_study_goes_on(tmp_path):
    config = ablation(tmp_path, study="mine", vary=("learning_rate=1e38,1e-2",))
    assert ablate.main(config) == 0
    records = [json.loads(line) for line in lines(tmp_path, "mine")]
    status = {(record["row"], record["status"]) for record in records}
    assert status == {("learning_rate=1e38", "diverged"), ("learning_rate=1e-2", "ok")}
    assert "(2 diverged)" in (tmp_path / "mine" / "table.md").read_text()


def test_a_dry_run_trains_nothing(tmp_path, capsys):
    assert ablate.main(ablation(tmp_path, study="odyssey", dry_run=True)) == 0
    shown = capsys.readouterr().out
    assert "9 settings × 2 seeds: 0 runs are done, 18 to do" in shown
    assert "nfg: {" in shown
    assert re.search(r"to do, about \d+ minutes if the others take as long as peephole", shown)
    assert not (tmp_path / "odyssey" / "results.jsonl").exists()


def test_a_host_waits_for_what_another_has_not_kept_yet(tmp_path, monkeypatch):
    config = ablation(tmp_path, study="odyssey", rows=("nfg",), seeds=1)
    assert ablate.main(config) == 0
    (record,) = Records(tmp_path / "odyssey").of_rows()
    (tmp_path / "odyssey" / "results.jsonl").unlink()
    (tmp_path / "odyssey" / "table.md").unlink()

    def train_elsewhere(jobs, kept, dataset, config):
        threading.Timer(0.5, kept.append, (record,)).start()

    monkeypatch.setattr(ablate, "train", train_elsewhere)
    assert ablate.main(config) == 0
    assert "| **nfg** |" in (tmp_path / "odyssey" / "table.md").read_text()


def test_hosts_share_a_study(tmp_path):
    """Two processes, each with its own part of the runs, and one conclusion."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    script = ablate.__file__
    words = [sys.executable, script, "mine", "--vary", "forget_bias=0,1", "--seeds", "2"]
    words += ["--dataset", "digits", "--out", str(tmp_path), "--hosts", "2", "--looks", "1"]
    for option in ("hidden_size=8", "steps=4", "batch_size=20"):
        words += ["--set", option]
    words += ["--coordinator", coordinator]
    hosts = [
        subprocess.Popen([*words, "--host", str(host)], stdout=subprocess.PIPE, text=True)
        for host in range(2)
    ]
    shown = [host.communicate(timeout=600)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], shown
    shares = [(tmp_path / "mine" / name) for name in ("results.jsonl", "results-1.jsonl")]
    runs = [[json.loads(line) for line in share.read_text().splitlines()] for share in shares]
    assert list(map(len, runs)) == [2, 2]
    assert len({(record["row"], record["seed"]) for share in runs for record in share}) == 4
    assert (tmp_path / "mine" / "table.md").read_text().count("\n") == 4


@pytest.mark.parametrize("name", ablate.STUDIES)
def test_every_study_is_of_options_that_go_together(name, tmp_path):
    study, rows = ablate.settings(ablate.Config(name))
    assert study.about
    assert len(rows) == len(study.rows)
    for claim in study.claims:
        assert {claim.row, claim.than} <= rows.keys()
        assert claim.relation in ("better", "worse", "no difference", "not better")


def test_equal_cells_are_as_large_as_units_in_fours_allow():
    _, rows = ablate.settings(ablate.Config("cells-equal"))
    sizes = {
        row: sweep.count_parameters(
            ablate.Build(config), {"learning_rate": 1.0}, jnp.asarray(mnist.initial_example(config))
        )
        for row, config in rows.items()
    }
    assert sizes.pop("lstm, 128 units") == 81_674
    for row, size in sizes.items():
        assert abs(size / 81_674 - 1) < 0.04, row


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seeds": 0}, "--seeds must be at least 1"),
        ({"first_seed": -1}, "--first-seed must not be negative"),
        ({"looks": 0}, "--looks must be at least 1"),
        ({"vary": ("cell=lstm",), "study": "cells"}, "cells is a study of its own"),
        ({"study": "size", "rows": ("hidden_size=64",)}, "--set hidden_size is not for"),
        ({"study": "no such"}, "there is no study no such"),
        ({"vary": ("cell=lstm", "cell=gru")}, "cell is given 2 times"),
        ({"vary": ("cell=lstm,gru,lstm",)}, "cell has a value twice"),
        ({"vary": ("cell=gru",), "set": ("steps=1", "steps=2")}, "steps is given 2 times"),
        ({"vary": ("cel=lstm",)}, "there is no option cel"),
        ({"vary": ("cell=lstn",)}, "cell does not take 'lstn'"),
        ({"vary": ("steps=many",)}, "steps does not take 'many'"),
        ({"vary": ("steps=None",)}, "steps does not take 'None'"),
        ({"vary": ("learning_rate=None",)}, "learning_rate does not take 'None'"),
        ({"vary": ("seed=1,2",)}, "seed is not an option of a study"),
        ({"study": "odyssey", "rows": ("nfg", "no such")}, "odyssey has no row 'no such'"),
        ({"vary": ("cell=gru",), "set": ("forget_bias=1",)}, "does not take all of --forget-bias"),
        ({"vary": ("cell=mlp",), "set": ("num_layers=2",)}, "does not take num_layers"),
        ({"vary": ("cell=lru",), "set": ("zoneout=0.1",)}, "regularizer.zoneout needs a cell"),
    ],
)
def test_what_cannot_be_is_refused(options, words, tmp_path):
    with pytest.raises(mnist.RunError, match=words):
        ablate.main(ablation(tmp_path, **options))
