"""The contents of pictures, by their figures, and that matplotlib's state is unchanged."""

import errno
import sys
import warnings

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from jaxrnn.training import report

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
LABELS = np.arange(30) % 10
PATH = "picture.png"


def probabilities(*shape):
    return np.random.default_rng(1).dirichlet(np.ones(10), shape).astype(np.float32)


def record(step, test=0.9, validation=0.9, loss=0.5):
    return {
        "step": step,
        "loss": loss,
        "test_accuracy": test,
        "validation_accuracy": validation,
        "seconds": 1.0,
    }


@pytest.fixture
def figures(monkeypatch, tmp_path):
    """The figures that are saved during the test, laid out but not written."""
    monkeypatch.chdir(tmp_path)
    saved = []

    def savefig(self, path, **__):
        path.touch()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.draw_without_rendering()
        saved.append(self)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def images(axes):
    return [np.ma.getdata(image.get_array()) for image in axes.images]


def test_a_picture_is_written_without_pyplot(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would fail
    report.curves([record(100)], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        image.load()
        assert image.width > image.height > 300


@pytest.mark.parametrize(
    ("test", "validation"),
    [
        ([0.9], [0.8]),
        ([0.5, 0.9, 0.99], [0.4, 0.8, 0.98]),
        ([0.7, 0.8], [None, None]),
        ([0.7, 0.8], [None, 0.5]),
        ([0.0, 1.0], [0.0, 1.0]),
        ([1.0], [1.0]),
    ],
)
def test_curves(test, validation, figures):
    losses = [1 / (1 + number) for number in range(len(test))]
    every = zip(test, validation, losses, strict=True)
    metrics = [record(100 * (1 + number), *values) for number, values in enumerate(every)]
    report.curves(metrics, PATH)
    (figure,) = figures
    loss_axes, accuracy_axes = figure.axes
    steps = [100 * (1 + number) for number in range(len(test))]
    (loss_line,) = loss_axes.get_lines()
    np.testing.assert_allclose(loss_line.get_xydata(), np.transpose([steps, losses]))
    drawn = {line.get_label().split()[0]: line for line in accuracy_axes.get_lines()}
    assert drawn.keys() == {"test"} | ({"validation"} if any(validation) else set())
    best = (
        1 - max(value for value in test + validation if value is not None and value < 1)
        if (min(test) < 1)
        else 1e-3
    )
    for name, values in (("test", test), ("validation", validation)):
        if name in drawn:
            errors = np.array([np.nan if value is None else 1 - value for value in values])
            shown = drawn[name].get_ydata()
            # A perfect accuracy has no logarithm, and lies above the best that has one.
            np.testing.assert_allclose(shown[errors > 0], errors[errors > 0])
            assert np.all(shown[errors == 0] < best)
            assert drawn[name].get_label().endswith(f"(last {values[-1]:.2%})")
    low, high = accuracy_axes.get_ylim()
    assert low > high  # better accuracies are higher


def test_curves_without_metrics(tmp_path):
    with pytest.raises(ValueError, match="at least one evaluation"):
        report.curves([], PATH)


def test_confusion_shows_every_count(figures):
    predictions = np.where(np.arange(30) < 3, 7, LABELS)
    report.confusion(LABELS, predictions, PATH, "a $title")
    axes = figures[0].axes[0]
    expected = np.diag([3] * 10)
    for label in range(3):
        expected[label, label] -= 1
        expected[label, 7] += 1
    shown = {text.get_position(): int(text.get_text()) for text in axes.texts}
    assert shown == {(x, y): expected[y, x] for x in range(10) for y in range(10)}
    (heat,) = axes.images
    np.testing.assert_array_equal(np.ma.getmaskarray(heat.get_array()), np.eye(10, dtype=bool))
    np.testing.assert_array_equal(
        heat.get_array().filled(0), expected - np.diag(expected.diagonal())
    )
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    (right,) = axes.child_axes
    shares = [label.get_text() for label in right.get_yticklabels()]
    assert shares == ["66.7%"] * 3 + ["100.0%"] * 7
    assert "a $title" in texts(figures[0])


@pytest.mark.parametrize(
    ("labels", "predictions", "shares"),
    [([1, 1], [1, 1], ["–", "100.0%"]), ([0], [3], ["0.0%", "–", "–", "–"])],
    ids=["perfect", "one"],
)
def test_confusion_of_few(labels, predictions, shares, figures):
    report.confusion(labels, predictions, PATH)
    (right,) = figures[0].axes[0].child_axes
    assert [label.get_text() for label in right.get_yticklabels()] == shares


def test_confusion_rejects_other_shapes():
    with pytest.raises(ValueError, match="predictions must have shape"):
        report.confusion(LABELS, LABELS[:-1], PATH)
    with pytest.raises(ValueError, match="at least one label"):
        report.confusion([], [], PATH)


def test_mistakes_shows_the_most_confident_first(figures):
    beliefs = np.eye(10, dtype=np.float32)[LABELS]
    for n, confidence in ((4, 0.7), (11, 0.99), (25, 0.8)):
        beliefs[n] = 0
        beliefs[n, [LABELS[n], (LABELS[n] + 1) % 10]] = 1 - confidence, confidence
    report.mistakes(IMAGES, LABELS, beliefs, PATH, count=2)
    pictures, bars = figures[0].axes[::2], figures[0].axes[1::2]
    assert [axes.get_xlabel() for axes in pictures] == ["#11", "#25"]
    assert [axes.get_title() for axes in pictures] == ["true 1 (1.0%)", "true 5 (20.0%)"]
    assert [axes.get_title() for axes in bars] == ["predicted 2 (99%)", "predicted 6 (80%)"]
    for n, picture, bar in zip((11, 25), pictures, bars, strict=True):
        np.testing.assert_array_equal(images(picture), [IMAGES[n]])
        np.testing.assert_allclose([patch.get_width() for patch in bar.patches], beliefs[n])
        colors = [to_hex(patch.get_facecolor()) for patch in bar.patches]
        assert colors[LABELS[n]] == report.BLUE.lower()
        assert colors[LABELS[n] + 1] == report.VERMILLION.lower()


@pytest.mark.parametrize("errors", [1, 30])
def test_mistakes_however_many(errors, figures):
    beliefs = np.eye(10)[(LABELS + (np.arange(30) < errors)) % 10]
    report.mistakes(IMAGES, LABELS, beliefs, PATH, "title")
    shown = [axes for axes in figures[0].axes[::2] if axes.images]
    assert len(shown) == min(errors, 24)
    for number, axes in enumerate(shown):
        np.testing.assert_array_equal(images(axes), [IMAGES[number]])
    assert not any(axes.axison for axes in figures[0].axes if not axes.has_data())


def test_no_mistakes(figures):
    report.mistakes(IMAGES, LABELS, np.eye(10)[LABELS], PATH)
    assert "No misclassified image among 30" in texts(figures[0])


def test_drawings_lie_in_lines(figures):
    report.drawings(IMAGES[:6].reshape(2, 3, 28, 28), PATH, ["first", "second"], "title")
    axes = figures[0].axes
    np.testing.assert_array_equal([images(each)[0] for each in axes], IMAGES[:6])
    assert [each.get_ylabel() for each in axes] == ["first", "", "", "second", "", ""]
    with pytest.raises(ValueError, match="images must have shape"):
        report.drawings(IMAGES[:6].reshape(2, 3, 28, 28), PATH, ["one"])
    with pytest.raises(ValueError, match="at least one image"):
        report.drawings(np.zeros((1, 0, 28, 28)), PATH, ["one"])


def test_accuracies_are_those_after_each_part(figures):
    report.accuracies([0.1, 0.5, 0.9], PATH, "title")
    (line,) = figures[0].axes[0].get_lines()
    np.testing.assert_allclose(line.get_xydata(), [(1, 0.1), (2, 0.5), (3, 0.9)])


def test_bands_are_a_deviation_wide_and_omit_runs_with_other_steps(figures):
    def run(setting, tests, steps=(10, 20), status="ok"):
        points = zip(steps, tests, strict=True)
        curve = [{"step": step, "test_accuracy": test} for step, test in points]
        return {"setting": setting, "status": status, "curve": curve}

    runs = [
        run("a", (0.5, 0.9)),
        run("a", (0.7, 0.8)),
        run("a", (0.1, 0.1), status="diverged"),
        run("b", (0.2, 0.4)),
        run("b", (0.9, 0.9), steps=(15, 20)),
    ]
    report.learning_bands(runs, PATH)
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


def test_accuracies_by_length_are_means_over_seeds(figures):
    report.lengths({"a": {20: [0.4, 0.6], 10: [0.9]}, "b": {10: [], 30: [0.2]}}, PATH, "delay")
    (axes,) = figures[0].axes
    (a, _, (bars,)), (b, _, _) = axes.containers
    np.testing.assert_allclose(a.get_xydata(), [(10, 0.9), (20, 0.5)])
    np.testing.assert_allclose(b.get_xydata(), [(30, 0.2)])
    deviation = 0.2 / np.sqrt(2)
    ends = [[y for _, y in segment] for segment in bars.get_segments()]
    np.testing.assert_allclose(ends, [[0.9, 0.9], [0.5 - deviation, 0.5 + deviation]])
    assert axes.get_xlabel() == "delay"
    assert axes.get_xticks().tolist() == [10, 20, 30]
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shown == ["a", "b"]


def test_the_heat_map_has_every_value_in_its_place(figures):
    values = np.array([[0.1, 0.2, 0.3], [0.4, np.nan, 0.6]])
    labels = (("x", "y"), ("p", "q", "r"))
    report.heat_map(values, ("down", "across"), labels, PATH)
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


@pytest.mark.parametrize(("order", "count"), [("rows", 7), ("columns", 1), ("pixels", 2)])
def test_beliefs(order, count, figures):
    beliefs = probabilities(count, 28)
    report.beliefs(IMAGES[:count], beliefs, PATH, LABELS[:count], "a title", order)
    panels = [axes for axes in figures[0].axes if axes.images]
    pictures = [axes for axes in panels if images(axes)[0].shape == (28, 28)]
    heats = [axes for axes in panels if images(axes)[0].shape in ((28, 10), (10, 28))]
    assert len(pictures) == len(heats) == count
    np.testing.assert_array_equal([images(axes)[0] for axes in pictures], IMAGES[:count])
    for axes, belief in zip(heats, beliefs, strict=True):
        np.testing.assert_array_equal(images(axes)[0], belief.T if order == "columns" else belief)
    for axes, belief, label in zip(pictures, beliefs, LABELS, strict=False):
        said = belief[-1].argmax()
        assert axes.get_title() == f"predicted {said}, true {label}"
        assert axes.title.get_color() == ("black" if said == label else report.VERMILLION)
    time = heats[0].get_xlabel() if order == "columns" else heats[0].get_ylabel()
    assert time == {"rows": "rows read", "columns": "columns read"}.get(order, "pixels read")
    assert "a title" in texts(figures[0])


@pytest.mark.parametrize("order", ["rows", "columns"])
def test_beliefs_lie_beside_what_was_read(order, figures):
    report.beliefs(IMAGES[:1], probabilities(1, 28), PATH, order=order)
    image, heat = (axes.get_window_extent().extents for axes in figures[0].axes[:2])
    beside = slice(1, None, 2) if order == "rows" else slice(0, None, 2)
    np.testing.assert_allclose(image[beside], heat[beside], atol=1)


def test_beliefs_rejects_other_shapes():
    with pytest.raises(ValueError, match="probabilities must have shape"):
        report.beliefs(IMAGES, probabilities(30), PATH)
    with pytest.raises(ValueError, match="at least one image"):
        report.beliefs(IMAGES[:0], probabilities(0, 28), PATH)


def test_a_picture_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    path.write_bytes(b"the one before")

    def savefig(_, path, **__):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", savefig)
    with pytest.raises(OSError, match=r"No space left on device: .*curves\.png"):
        report.curves([record(100)], path)
    assert path.read_bytes() == b"the one before"
    assert list(tmp_path.iterdir()) == [path]
