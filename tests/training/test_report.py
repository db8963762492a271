"""Pictures are written, hold what they should, and leave matplotlib's global state alone."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from jaxrnn.training import report

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
LABELS = np.arange(30) % 10


def probabilities(*shape):
    return np.random.default_rng(1).dirichlet(np.ones(10), shape).astype(np.float32)


def row(step, test=0.9, validation=0.9, loss=0.5):
    return {
        "step": step,
        "loss": loss,
        "test_accuracy": test,
        "validation_accuracy": validation,
        "seconds": 1.0,
    }


@pytest.fixture
def figures(monkeypatch):
    """The figures saved during the test."""
    saved = []
    save = Figure.savefig

    def savefig(self, *arguments, **options):
        saved.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def check_picture(path):
    with Image.open(path) as image:
        image.load()
        assert min(image.size) > 40
        assert image.convert("L").getextrema()[0] < 100


@pytest.mark.parametrize(
    "metrics",
    [
        [row(100)],
        [row(step, 1 - 1 / step, 1 - 2 / step) for step in range(100, 2100, 100)],
        [row(100, validation=None), row(200, validation=None)],
        [row(100, test=0.0), row(200, test=1.0)],
        [row(100, test=1.0, validation=1.0)],
    ],
    ids=["one", "many", "no validation", "from nothing to perfect", "perfect"],
)
def test_curves(metrics, tmp_path, recwarn):
    report.curves(metrics, tmp_path / "curves.png")
    check_picture(tmp_path / "curves.png")
    assert not recwarn.list


def test_curves_without_metrics(tmp_path):
    with pytest.raises(ValueError, match="at least one evaluation"):
        report.curves([], tmp_path / "curves.png")


def test_better_accuracy_is_higher(tmp_path, figures):
    report.curves([row(100, 0.9), row(200, 0.99)], tmp_path / "curves.png")
    axes = figures[0].axes[1]
    line = axes.get_lines()[-1]
    (_, low), (_, high) = axes.transData.transform(line.get_xydata())
    assert high > low


def test_confusion_shows_every_count(tmp_path, figures):
    predictions = np.where(np.arange(30) < 3, 7, LABELS)
    report.confusion(LABELS, predictions, tmp_path / "confusion.png", "a $title")
    check_picture(tmp_path / "confusion.png")
    cells = [int(text.get_text()) for text in figures[0].axes[0].texts]
    assert np.reshape(cells, (10, 10)).sum() == 30
    assert np.reshape(cells, (10, 10))[0, 7] == 1
    assert "66.7%" in texts(figures[0])
    assert "a $title" in texts(figures[0])


@pytest.mark.parametrize(
    ("labels", "predictions"), [([1, 1], [1, 1]), ([0], [3])], ids=["perfect", "one"]
)
def test_confusion_of_few(labels, predictions, tmp_path, recwarn):
    report.confusion(labels, predictions, tmp_path / "confusion.png")
    check_picture(tmp_path / "confusion.png")
    assert not recwarn.list


def test_confusion_rejects_other_shapes(tmp_path):
    with pytest.raises(ValueError, match="predictions must have shape"):
        report.confusion(LABELS, LABELS[:-1], tmp_path / "confusion.png")
    with pytest.raises(ValueError, match="at least one label"):
        report.confusion([], [], tmp_path / "confusion.png")


def test_mistakes_shows_the_most_confident_first(tmp_path, figures):
    beliefs = np.eye(10, dtype=np.float32)[LABELS]
    for n, confidence in ((4, 0.7), (11, 0.99), (25, 0.8)):
        beliefs[n] = 0
        beliefs[n, [LABELS[n], (LABELS[n] + 1) % 10]] = 1 - confidence, confidence
    report.mistakes(IMAGES, LABELS, beliefs, tmp_path / "mistakes.png", count=2)
    check_picture(tmp_path / "mistakes.png")
    shown = [text for text in texts(figures[0]) if text.startswith("#")]
    assert shown == ["#11", "#25"]
    assert {"true 1 (1.0%)", "says 2 (99%)"} <= set(texts(figures[0]))


@pytest.mark.parametrize("errors", [1, 7, 30])
def test_mistakes_however_many(errors, tmp_path, recwarn):
    beliefs = np.eye(10)[(LABELS + (np.arange(30) < errors)) % 10]
    report.mistakes(IMAGES, LABELS, beliefs, tmp_path / "mistakes.png", "title")
    check_picture(tmp_path / "mistakes.png")
    assert not recwarn.list


def test_no_mistakes(tmp_path, figures):
    report.mistakes(IMAGES, LABELS, np.eye(10)[LABELS], tmp_path / "mistakes.png")
    check_picture(tmp_path / "mistakes.png")
    assert "No mistakes among 30 images" in texts(figures[0])


def test_bands_are_a_deviation_wide_and_show_the_seeds_that_they_can(tmp_path, figures):
    def record(row, tests, steps=(10, 20), status="ok"):
        points = zip(steps, tests, strict=True)
        curve = [{"step": step, "test_accuracy": test} for step, test in points]
        return {"row": row, "status": status, "curve": curve}

    records = [
        record("a", (0.5, 0.9)),
        record("a", (0.7, 0.8)),
        record("a", (0.1, 0.1), status="diverged"),
        record("b", (0.2, 0.4)),
        record("b", (0.9, 0.9), steps=(15, 20)),
    ]
    report.learning_bands(records, tmp_path / "curves.png")
    (axes,) = figures[0].axes
    a, b = axes.get_lines()
    np.testing.assert_allclose(a.get_xydata(), [(10, 0.4), (20, 0.15)])
    np.testing.assert_allclose(b.get_xydata(), [(10, 0.8), (20, 0.6)])
    (band,) = axes.collections
    ends = band.get_paths()[0].get_extents()
    deviations = np.array([0.2, 0.1]) / np.sqrt(2)
    np.testing.assert_allclose((ends.y0, ends.y1), (0.15 - deviations[1], 0.4 + deviations[0]))
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shown == ["a", "b (1 of 2)"]


def test_the_heat_map_has_every_value_in_its_place(tmp_path, figures):
    values = np.array([[0.1, 0.2, 0.3], [0.4, np.nan, 0.6]])
    labels = (("x", "y"), ("p", "q", "r"))
    report.heat_map(values, ("down", "across"), labels, tmp_path / "heat.png")
    axes = figures[0].axes[0]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("down", "across")
    names = [
        [label.get_text() for label in each]
        for each in (axes.get_yticklabels(), axes.get_xticklabels())
    ]
    assert names == [["x", "y"], ["p", "q", "r"]]
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    assert shown[2, 0] == "30.00"
    assert shown[0, 1] == "40.00"
    assert shown[1, 1] == "–"
    np.testing.assert_allclose(axes.images[0].get_array().filled(np.nan), 100 * values)


@pytest.mark.parametrize("order", ["rows", "columns", "pixels", "permuted"])
@pytest.mark.parametrize("count", [1, 7])
def test_beliefs(order, count, tmp_path, recwarn):
    path = tmp_path / "beliefs.png"
    report.beliefs(IMAGES[:count], probabilities(count, 28), path, LABELS[:count], "t", order)
    check_picture(path)
    assert not recwarn.list


@pytest.mark.parametrize("order", ["rows", "columns"])
def test_beliefs_lie_beside_what_was_read(order, tmp_path, figures):
    report.beliefs(IMAGES[:1], probabilities(1, 28), tmp_path / "b.png", order=order)
    image, heat = (axes.get_window_extent().extents for axes in figures[0].axes[:2])
    beside = slice(1, None, 2) if order == "rows" else slice(0, None, 2)
    np.testing.assert_allclose(image[beside], heat[beside], atol=1)
    shape = figures[0].axes[1].images[0].get_array().shape
    assert shape == ((28, 10) if order == "rows" else (10, 28))


def test_beliefs_rejects_other_shapes(tmp_path):
    with pytest.raises(ValueError, match="probabilities must have shape"):
        report.beliefs(IMAGES, probabilities(30), tmp_path / "beliefs.png")
    with pytest.raises(ValueError, match="at least one image"):
        report.beliefs(IMAGES[:0], probabilities(0, 28), tmp_path / "beliefs.png")


def test_import_is_light():
    code = (
        "import sys, jaxrnn.training.report; print(*({'matplotlib', 'sklearn'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.split()


def test_no_global_backend(tmp_path):
    report.curves([row(100)], tmp_path / "curves.png")
    assert "matplotlib.pyplot" not in sys.modules
