"""Each of the five forms, briefly, on the small digits."""

import json

import forms
import pytest

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.mark.parametrize(
    ("form", "measure", "least", "picture"),
    [
        ("one-to-one", "test_accuracy", 0.7, "mistakes"),
        ("many-to-one", "test_accuracy", 0.7, "confusion"),
        ("in-step", "test_accuracy", 0.7, "accuracy"),
        ("one-to-many", "named_correctly", 0.3, "drawings"),
        ("many-to-many", "named_correctly", 0.4, "drawings"),
    ],
)
def test_each_form_learns_something_and_pictures_it(form, measure, least, picture, tmp_path):
    config = forms.Config(
        form,
        dataset="digits",
        hidden_size=24,
        learning_rate=1e-2,
        steps=700 if picture == "drawings" else 400,
        judge_steps=300,
        batch_size=20,
        out=tmp_path,
    )
    assert forms.main(config) == 0
    result = json.loads((tmp_path / form / "result.json").read_text())
    assert result[measure] > least
    if form == "many-to-many":
        assert result[measure] > result["named_correctly_without_the_drawing"] + 0.1
    assert (tmp_path / form / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
