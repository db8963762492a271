"""The page of experiments/export.py --format html, in a browser."""

import base64
import contextlib
import io
import shutil
import types

import experiment
import html_page
import jax
import jax.numpy as jnp
import numpy as np
import predict
import pytest
import read_page
from errors import OptionError
from models import build_model, classifier
from options import Config
from PIL import Image, ImageDraw

import jaxrnn
from jaxrnn import training
from jaxrnn.training.run import RunError

ROOT = np.random.default_rng(0)
EXAMPLES = ROOT.integers(0, 256, (3, 28, 28), np.uint8) * (ROOT.random((3, 28, 28)) < 0.3)
# A 7, as fractions of the drawing area: its two strokes.
STROKES = [[(0.3, 0.2), (0.7, 0.22), (0.45, 0.8)], [(0.4, 0.5), (0.66, 0.5)]]


def trained(model=None, **options):
    """A run with random parameters, biases among them, in place of trained ones."""
    config = Config(dataset="digits", **{"hidden_size": 4, **options})
    model = build_model(config) if model is None else model
    shapes = jax.eval_shape(model.init, jax.random.key(0), experiment.blank_example(config))
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32), shapes["params"]
    )
    return experiment.Trained(config, model, params, 0)


@pytest.fixture(scope="module")
def browser():
    """One browser for all tests."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("chromium is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def show(browser, tmp_path):
    """Opens the page of a run; at the end no error was logged and no request left the page."""
    problems = []
    with contextlib.ExitStack() as stack:

        def show(run, **options):
            path = tmp_path / "digit.html"
            path.write_text(html_page.export(run, EXAMPLES)[0], "utf-8")
            context = browser.new_context(**{"reduced_motion": "reduce", **options})
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(20_000)
            page.on("console", lambda message: problems.append(message.text))
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on(
                "request",
                lambda request: (
                    request.url in (path.as_uri(), "data:,") or problems.append(request.url)
                ),
            )
            page.goto(path.as_uri())
            return page

        yield show
    assert problems == []


def draw(page, strokes):
    box = page.locator("#pad").bounding_box()
    for stroke in strokes:
        points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=3)
        page.mouse.up()


def seen(page):
    """The image that the page reads."""
    return np.array(page.evaluate("image"), np.uint8)


def drawing(page):
    """The drawing as an image, which predict.py could read."""
    url = page.evaluate("pad.toDataURL()")
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def assert_beliefs(found, run, images):
    expected = training.beliefs(run.model, run.params, images)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.ptp(expected, axis=1).max() > 0.01  # something is at stake
    return expected


LSTM = trained(cell="lstm")


def test_strokes_of_the_mouse_are_read_row_by_row(show):
    page = show(LSTM)
    assert page.locator("#answer").inner_text() == "Draw a digit, or choose an image."
    draw(page, STROKES[:1])
    first = seen(page)
    draw(page, STROKES[1:])
    image = seen(page)
    expected = predict.mnist_style(drawing(page))
    np.testing.assert_allclose(image.astype(int), expected.astype(int), atol=1)
    assert np.abs(image.astype(int) - first).mean() > 2
    [beliefs] = assert_beliefs([page.evaluate("probabilities")], LSTM, image[None])
    answer = f"{beliefs[-1].argmax()} {100 * beliefs[-1].max():.1f} %"
    assert page.locator("#answer").inner_text() == answer
    page.get_by_role("button", name="Undo").click()
    np.testing.assert_array_equal(seen(page), first)
    page.keyboard.press("Control+z")
    assert page.evaluate("image") is None
    draw(page, STROKES)
    np.testing.assert_array_equal(seen(page), image)
    page.get_by_role("button", name="Clear").click()
    assert page.evaluate("image") is None
    assert page.get_by_role("button", name="Clear").is_disabled()


def test_nothing_else_happens_during_a_stroke(show):
    """As when a second finger presses a button."""
    page = show(LSTM)
    draw(page, STROKES[:1])
    page.mouse.down()
    page.evaluate(
        """() => {
            for (const button of document.querySelectorAll("#undo, #clear, #examples button"))
                button.click();
        }"""
    )
    page.mouse.move(200, 200, steps=3)
    page.mouse.up()
    assert page.evaluate("strokes.length") == 2
    np.testing.assert_allclose(
        seen(page).astype(int), predict.mnist_style(drawing(page)).astype(int), atol=1
    )


def test_everything_but_drawing_works_by_keyboard(show):
    page = show(LSTM)
    page.keyboard.press("Tab")  # over the disabled buttons to the first image
    assert page.evaluate("document.activeElement.ariaLabel") == "Test image 1"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    np.testing.assert_array_equal(seen(page), EXAMPLES[1])
    [beliefs] = assert_beliefs([page.evaluate("probabilities")], LSTM, EXAMPLES[1:2])
    slider = page.get_by_role("slider", name="Row")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    answer = f"{beliefs[26].argmax()} {100 * beliefs[26].max():.1f} % after row 27"
    assert page.locator("#answer").inner_text() == answer
    opacities = page.evaluate(
        "[...heat.getContext('2d').getImageData(0, 0, 10, 28).data].filter((_, i) => i % 4 === 3)"
    )
    expected = np.concatenate([beliefs[:27], np.zeros((1, 10))])
    np.testing.assert_allclose(np.reshape(opacities, (28, 10)), 255 * expected, atol=0.6)


def test_the_animation_runs_over_the_rows(show):
    page = show(LSTM, reduced_motion="no-preference")
    page.evaluate(
        """() => {
            const number = document.getElementById("number");
            window.rows = [];
            const observer = new MutationObserver(() => rows.push(number.textContent));
            observer.observe(number, {childList: true});
        }"""
    )
    page.get_by_role("button", name="Test image 1").click()
    page.get_by_role("button", name="Pause").wait_for()
    page.get_by_role("button", name="Play", exact=True).wait_for()
    rows = [int(row) for row in page.evaluate("rows")]
    assert rows[-28:] == list(range(1, 29))
    found = page.evaluate(
        """() => {
            const slider = document.getElementById("row"), button = document.getElementById("play");
            button.click();
            const during = [slider.value, button.textContent, timer !== null];
            button.click();
            return [...during, slider.value, button.textContent, timer !== null];
        }"""
    )
    assert found == ["1", "Pause", True, "1", "Play", False]


def test_a_finger_on_a_small_dark_screen(show):
    screen = {"width": 360, "height": 740}
    page = show(LSTM, viewport=screen, has_touch=True, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.locator("#pad").tap()
    assert seen(page).max() == 255
    red, _, _, opacity = page.evaluate("[...pen.getImageData(280, 280, 1, 1).data]")
    assert (red > 200, opacity) == (True, 255)  # light ink
    page.emulate_media(color_scheme="light")
    page.wait_for_function("pen.getImageData(280, 280, 1, 1).data[0] < 50")


RUNS = {
    "rnn-relu": trained(cell="rnn-relu", num_layers=2, residual=True),
    "lstm-peephole": trained(
        cell="lstm-peephole", num_layers=2, bidirectional=True, learn_initial_state=True
    ),
    "lstm-clip": trained(
        classifier(jaxrnn.lstm(4, cell_clip=0.3, activation=jax.nn.soft_sign)), cell="lstm"
    ),
    "gru": trained(cell="gru"),
    "gru-before": trained(cell="gru-before", learn_initial_state=True),
}


@pytest.mark.parametrize("name", RUNS)
def test_cells(show, name):
    found = show(RUNS[name]).evaluate("examples.map((image) => beliefs(network, image))")
    assert_beliefs(found, RUNS[name], EXAMPLES)


@pytest.mark.parametrize("name", RUNS)
def test_the_page_is_read_without_a_browser(name):
    """The reader that checks a page computes what the browser does."""
    page, _ = html_page.export(RUNS[name], EXAMPLES)
    assert_beliefs(read_page.beliefs(*read_page.read(page)), RUNS[name], EXAMPLES)


def test_a_page_is_checked_before_it_is_written(tmp_path, monkeypatch, capsys):
    images = np.tile(EXAMPLES, (4, 1, 1))
    dataset = types.SimpleNamespace(test=types.SimpleNamespace(images=images))
    monkeypatch.setattr(html_page, "load_run", lambda _: LSTM)
    monkeypatch.setattr(html_page, "load_dataset", lambda *_: dataset)
    out = tmp_path / "digit.html"
    assert html_page.write(tmp_path, out) == 0
    assert "after each row of 10 test images; open it" in capsys.readouterr().out
    monkeypatch.setattr(html_page, "LARGEST", out.stat().st_size - 1)
    before = out.read_bytes()
    assert html_page.write(tmp_path, out) == 0
    assert "with float16 weights" in capsys.readouterr().out
    assert out.read_bytes() != before
    before = out.read_bytes()
    page_of = html_page.page_of

    def with_other_weights(model):
        weights = bytes(len(base64.b64decode(model["weights"])))
        return page_of({**model, "weights": base64.b64encode(weights).decode()})

    for other, problem in (
        (with_other_weights, "does not compute what the run does: they differ by 0"),
        (lambda model: page_of({**model, "network": {}}), "cannot be read"),
    ):
        monkeypatch.setattr(html_page, "page_of", other)
        with pytest.raises(RunError, match=problem):
            html_page.write(tmp_path, out)
        assert out.read_bytes() == before


def test_activations_and_float16(show):
    page = show(LSTM)
    x = np.linspace(-4, 4, 17, dtype=np.float32)
    for function, name in html_page.ACTIVATIONS.items():
        found = page.evaluate("([name, x]) => x.map(ACTIVATIONS[name])", [name, x.tolist()])
        np.testing.assert_allclose(found, function(jnp.asarray(x)), atol=1e-6, err_msg=name)
        found = read_page.ACTIVATIONS[name](x.astype(float))
        np.testing.assert_allclose(found, function(jnp.asarray(x)), atol=1e-6, err_msg=name)
    bits = np.arange(2**16, dtype=np.uint16)[np.isfinite(np.arange(2**16, dtype="u2").view("f2"))]
    found = page.evaluate("(bits) => bits.map(fromHalf)", bits.tolist())
    np.testing.assert_array_equal(found, bits.view(np.float16).astype(float))


def picture(size, *lines, width=6):
    """Black lines on white."""
    image = Image.new("L", size, 255)
    for points in lines:
        ImageDraw.Draw(image).line(points, fill=0, width=width)
    return image


PICTURES = {
    "tall": picture((80, 120), [(40, 20), (44, 60), (60, 100)]),
    "flat, at the border": picture((120, 80), [(0, 40), (90, 44), (20, 60)]),
    "of MNIST's size": picture((28, 28), [(5, 4), (20, 6), (9, 22)], width=2),
    "enlarged": picture((28, 28), [(10, 10), (17, 11), (13, 15)], width=2),
    "with dust": picture((120, 120), [(30, 30), (90, 34), (50, 90)], [(10, 100), (11, 101)]),
    "with a dot": picture((120, 120), [(60, 50), (60, 100)], [(57, 20), (63, 20)]),
    "soft": picture((120, 120), [(30, 30), (90, 34), (50, 90)]).resize((97, 133)),
}
PICTURES["with dust"].putpixel((100, 110), 0)
for size in (47, 48, 50):  # symmetric, so that the center lies between two pixels
    PICTURES[f"a dot of {size}"] = Image.new("L", (120, 120), 255)
    ImageDraw.Draw(PICTURES[f"a dot of {size}"]).ellipse((30, 40, 30 + size, 40 + size), fill=0)


def test_images_are_scaled_and_centred_as_predict_does(show):
    page = show(LSTM)
    for name, image in PICTURES.items():
        ink = 1 - np.asarray(image, float) / 255
        found = np.array(page.evaluate("mnistStyle", ink.tolist()))
        np.testing.assert_allclose(found, predict.mnist_style(image), atol=1, err_msg=name)
    assert page.evaluate("mnistStyle", np.zeros((9, 9)).tolist()) is None
    halves = np.arange(-3, 3.5, 0.25)
    found = page.evaluate("(values) => values.map(roundToEven)", halves.tolist())
    np.testing.assert_array_equal(found, np.rint(halves))


def test_large_networks_are_stored_in_float16_and_larger_ones_refused(monkeypatch):
    page, dtype = html_page.export(LSTM, EXAMPLES)
    assert dtype == "float32"
    monkeypatch.setattr(html_page, "LARGEST", len(page) - 1)
    assert html_page.export(LSTM, EXAMPLES)[1] == "float16"
    monkeypatch.setattr(html_page, "LARGEST", 10_000)
    with pytest.raises(OptionError, match=r"takes networks of about .* parameters, and not 586"):
        html_page.export(LSTM, EXAMPLES)


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"cell": "mlp"}, "takes rnn, lstm and gru, not --cell mlp"),
        ({"cell": "janet", "patch": 14}, "takes rnn, lstm and gru, not --patch"),
        ({"cell": "lstm", "blocks": True}, "takes rnn, lstm and gru, not --blocks"),
        ({"cell": "janet"}, "has no janet; it takes rnn, lstm and gru"),
        ({"cell": "lstm-projection"}, "has no projection_size; it takes"),
        ({"order": "pixels"}, "row by row, not --order pixels"),
        ({"delay": 3}, "row by row, not --delay 3"),
        ({"zoneout": 0.1}, "does not take --zoneout"),
    ],
)
def test_what_the_page_cannot_show_is_refused(options, refused):
    config = Config(**{"dataset": "digits", "hidden_size": 4, **options})
    with pytest.raises(OptionError, match=rf"--format html.* {refused}"):
        html_page.export(experiment.Trained(config, build_model(config), {}, 0), EXAMPLES)


def test_other_data_sets_and_activations_are_refused():
    fashion = LSTM.config.__class__(dataset="fashion_mnist", hidden_size=4)
    with pytest.raises(OptionError, match="takes digits, not --dataset fashion_mnist"):
        html_page.export(LSTM._replace(config=fashion), EXAMPLES)
    gelu = LSTM._replace(model=classifier(jaxrnn.rnn(4, activation=jax.nn.gelu)))
    with pytest.raises(OptionError, match="has no activation gelu"):
        html_page.export(gelu, EXAMPLES)
