"""The scripts of docs/ run as they stand, and learn."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_sequences_of_different_lengths_are_classified(capsys):
    accuracy = runpy.run_path(str(DOCS / "variable_length.py"))["main"](steps=160, hidden_size=8)
    assert accuracy > 0.5  # of three classes
    assert capsys.readouterr().out.count("test accuracy") == 4


def test_a_series_is_forecast(capsys):
    relative = runpy.run_path(str(DOCS / "regression.py"))["main"](steps=160, hidden_size=8)
    assert relative < 0.7
    assert capsys.readouterr().out.count("relative test error") == 4
