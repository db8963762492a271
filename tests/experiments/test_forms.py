"""Each of the five forms, briefly, on the small digits: it learns, and draws what it learned."""

import json

import five_forms
import forms
import numpy as np
import pytest

from jaxrnn.training import data

pytestmark = pytest.mark.usefixtures("standard_promotion")
TEST = data.load("digits").test
# The first digit of every class.
SHOWN = [int(np.argmax(TEST.labels == label)) for label in range(10)]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function from a form to its result and to what its pictures are drawn from."""

    def run(form, **options):
        drawn = {}
        for name in ("mistakes", "confusion", "accuracies", "beliefs", "drawings"):
            monkeypatch.setattr(
                five_forms.report, name, lambda *words, name=name: drawn.update({name: words})
            )
        small = {"hidden_size": 16, "learning_rate": 2e-2, "steps": 200, "batch_size": 20}
        config = forms.Config(form, dataset="digits", out=tmp_path, **{**small, **options})
        assert forms.main(config) == 0
        result = json.loads((tmp_path / form / "result.json").read_text())
        assert result["dataset"] == "digits"
        return result, drawn

    return run


def test_one_to_one(run):
    result, drawn = run("one-to-one")
    images, labels, probabilities, path, _ = drawn["mistakes"]
    np.testing.assert_array_equal(images, TEST.images)
    np.testing.assert_array_equal(labels, TEST.labels)
    accuracy = (probabilities.argmax(-1) == TEST.labels).mean()
    assert result["test_accuracy"] == pytest.approx(accuracy)
    assert accuracy > 0.6
    assert path.name == "mistakes.png"


def test_many_to_one(run):
    result, drawn = run("many-to-one")
    labels, predictions, path, _ = drawn["confusion"]
    np.testing.assert_array_equal(labels, TEST.labels)
    assert result["test_accuracy"] == pytest.approx((predictions == TEST.labels).mean())
    assert result["test_accuracy"] > 0.6
    assert path.name == "confusion.png"


def test_in_step(run):
    result, drawn = run("in-step")
    after, path, _ = drawn["accuracies"]
    assert len(after) == 28
    assert result["test_accuracy"] == pytest.approx(after[-1])
    np.testing.assert_allclose(result["test_accuracy_after_row"], after, atol=1e-4)
    # Nothing is known before the first ink is read.
    assert after[0] < 0.2 < 0.5 < after[-1]
    images, beliefs, _, labels = drawn["beliefs"]
    np.testing.assert_array_equal(images, TEST.images[SHOWN])
    np.testing.assert_array_equal(labels, np.arange(10))
    assert beliefs.shape == (10, 28, 10)
    assert path.name == "accuracy.png"


def test_one_to_many(run):
    result, drawn = run("one-to-many", hidden_size=24, steps=400, judge_steps=200, devices=1)
    images, path, names, _ = drawn["drawings"]
    assert images.shape == (10, 12, 28, 28)
    assert names == [str(label) for label in range(10)]
    assert result["drawn"] == 1000
    assert result["named_correctly"] > 0.2  # by chance it were 0.1
    assert np.all(images.std(1).mean((1, 2)) > 0.1)  # over styles
    assert images.mean(1).std(0).mean() > 1  # over labels
    assert path.name == "drawings.png"


def test_many_to_many(run):
    result, drawn = run("many-to-many", hidden_size=24, steps=550, judge_steps=250, devices=1)
    (digits, read, completed), path, names, _ = drawn["drawings"]
    np.testing.assert_array_equal(digits, TEST.images[SHOWN])
    np.testing.assert_array_equal(read[:, :14], digits[:, :14])
    assert not read[:, 14:].any()
    np.testing.assert_array_equal(completed[:, :14], digits[:, :14])
    assert completed[:, 14:].any((1, 2)).all()
    assert names == ["the digit", "read", "completed"]
    assert result["named_correctly"] > result["named_correctly_without_the_drawing"] + 0.05
    assert path.name == "drawings.png"
