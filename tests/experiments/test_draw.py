"""experiments/draw.py opens the page of the right run."""

import os

import draw
import html_page
import pytest
import train
from errors import OptionError

from jaxrnn.training.run import RunError


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """What is trained, written and opened, in order, in an empty working directory.

    Runs whose names start with "no" are refused.
    """
    calls = []

    def write(run, out, data_dir):
        if run.name.startswith("no"):
            raise {"no-page": OptionError, "no-run": RunError}[run.name]("a reason")
        calls.append(("write", str(run), out.name))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(html_page, "write", write)
    monkeypatch.setattr(train, "main", lambda config: calls.append(("train", config)) or 0)
    monkeypatch.setattr("webbrowser.open", lambda url: calls.append(("open", url)) or True)
    return calls


def make_runs(*names):
    """Makes runs, the last one last."""
    for age, name in enumerate(reversed(names)):
        folder = draw.RUNS / name / "checkpoints"
        folder.mkdir(parents=True)
        os.utime(folder, (1e9 - age, 1e9 - age))


def test_the_last_run_that_the_page_can_show(calls, tmp_path, capsys):
    make_runs("old", "new", "no-page", "no-run")
    assert draw.main(draw.Config()) == 0
    url = (tmp_path / "runs/new/digit.html").as_uri()
    assert calls == [("write", "runs/new", "digit.html"), ("open", url)]
    error = capsys.readouterr().err
    assert error == "".join(
        f"error: runs/{name} is skipped: a reason\n" for name in ("no-run", "no-page")
    )


def test_without_a_run_a_network_is_trained(calls, monkeypatch):
    make_runs("no-run")
    assert draw.main(draw.Config(browser=False)) == 0
    (_, config), written = calls
    assert (config.cell, config.steps, str(config.out)) == ("lstm", 600, "runs/draw")
    config.check()
    assert written == ("write", "runs/draw", "digit.html")
    calls.clear()
    monkeypatch.setattr(train, "main", lambda config: 130)  # interrupted
    assert (draw.main(draw.Config()), calls) == (130, [])
    make_runs("draw")  # what was interrupted is resumed
    assert (draw.main(draw.Config()), calls) == (130, [])
    (draw.SHORT.out / "result.json").touch()
    assert draw.main(draw.Config(browser=False)) == 0
    assert calls == [("write", "runs/draw", "digit.html")]


def test_a_run_that_is_named(calls, tmp_path):
    make_runs("new", "no-page")
    assert draw.main(draw.Config(run=tmp_path / "other", browser=False)) == 0
    assert calls == [("write", str(tmp_path / "other"), "digit.html")]
    with pytest.raises(OptionError, match="a reason"):
        draw.main(draw.Config(run=draw.RUNS / "no-page"))


def test_without_a_browser_the_file_is_named(calls, monkeypatch, capsys):
    make_runs("new")
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    assert draw.main(draw.Config()) == 1
    assert capsys.readouterr().err == (
        "error: no browser was found; open runs/new/digit.html in one\n"
    )
