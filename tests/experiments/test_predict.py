"""Any picture of a digit comes out in MNIST's form; bad files are named and skipped."""

import io
import json
import re
import zlib

import experiment
import jax
import mnist
import numpy as np
import predict
import pytest
import train
from idx_files import forbidden
from options import Config
from PIL import EpsImagePlugin, Image, ImageDraw, ImageFilter
from sklearn.datasets import load_digits

from jaxrnn import training
from jaxrnn.training import data, report

PAPER, PEN = (232, 226, 210), (35, 40, 80)


def drawing(size=(300, 400), at=(150, 200), paper=PAPER, pen=PEN):
    """A 7 of 100 by 160 pixels around `at`, in colour."""
    image = Image.new("RGB", size, paper)
    (x, y), draw = at, ImageDraw.Draw(image)
    points = [(x - 50, y - 70), (x + 50, y - 70), (x - 10, y + 80)]
    draw.line(points, fill=pen, width=14, joint="curve")
    return image.filter(ImageFilter.GaussianBlur(1))


def inverted(image):
    return Image.fromarray(255 - np.asarray(image))


def distance(one, other):
    return np.abs(one.astype(int) - other).mean()


def centre(image):
    return np.array([np.average(np.arange(28), weights=image.sum(axis)) for axis in (1, 0)])


SEVEN = predict.mnist_style(drawing())


def test_form():
    assert SEVEN.shape == (28, 28)
    assert SEVEN.dtype == np.uint8
    assert SEVEN.max() == 255
    assert SEVEN[0].max() == 0
    rows, columns = np.flatnonzero(SEVEN.any(1)), np.flatnonzero(SEVEN.any(0))
    assert np.ptp(rows) + 1 == 20
    assert 10 <= np.ptp(columns) + 1 <= 16
    np.testing.assert_allclose(centre(SEVEN), 14, atol=0.5)


def test_dark_on_light_equals_light_on_dark():
    np.testing.assert_allclose(predict.mnist_style(inverted(drawing())), SEVEN, atol=1)


@pytest.mark.parametrize("at", [(60, 90), (240, 310), (60, 310)])
def test_position_does_not_matter(at):
    np.testing.assert_array_equal(predict.mnist_style(drawing(at=at)), SEVEN)


@pytest.mark.parametrize("factor", [0.3, 0.5, 2, 8])
def test_size_does_not_matter(factor):
    image = drawing()
    size = [round(factor * side) for side in image.size]
    assert distance(predict.mnist_style(image.resize(size)), SEVEN) < 5


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "CMYK", "YCbCr", "I", "F", "1", "I;16"])
def test_mode_does_not_matter(mode):
    image = drawing()
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 200)
    else:
        image = image.convert("L" if mode in "IF" else "RGB").convert(mode)
    assert distance(predict.mnist_style(image), SEVEN) < 4


def test_colours_of_the_same_brightness():
    image = drawing(paper=(200, 30, 30), pen=(30, 112, 30))
    assert np.ptp(np.asarray(image.convert("L"))) < 20
    assert distance(predict.mnist_style(image), SEVEN) < 2


@pytest.mark.parametrize("pen", ["black", "white", "red"])
def test_transparent_background(pen):
    alpha = inverted(drawing(paper="white", pen="black").convert("L"))
    image = Image.new("RGBA", alpha.size, pen)
    image.putalpha(alpha)
    assert distance(predict.mnist_style(image), SEVEN) < 2


def test_rotation_in_exif(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    drawing().transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    assert distance(predict.mnist_style(predict.read_image(path)), SEVEN) < 3


def test_photograph():
    """Noise, light that falls off, specks of dust and JPEG leave the digit as it was."""
    rng = np.random.default_rng(0)
    pixels = np.asarray(drawing(), np.float64)
    pixels *= np.linspace(0.6, 1, pixels.shape[1])[:, None]
    pixels += rng.normal(0, 5, pixels.shape)
    pixels[20:23, 30:33] = pixels[350:353, 250:254] = 40
    file = io.BytesIO()
    Image.fromarray(np.uint8(pixels.clip(0, 255))).save(file, "JPEG")
    assert distance(predict.mnist_style(Image.open(file)), SEVEN) < 4


def test_strokes_that_do_not_touch_are_kept():
    image = drawing()
    ImageDraw.Draw(image).line([(90, 250), (120, 250)], fill=PEN, width=14)
    assert distance(predict.mnist_style(image), SEVEN) > 2


def test_mnist_style_twice_is_once():
    assert distance(predict.mnist_style(Image.fromarray(SEVEN)), SEVEN) < 0.5


def test_digits_in_the_form_of_mnist_stay_nearly_unchanged():
    """Written digits, once in MNIST's form, keep it, whether light or dark."""
    distances = []
    for pixels in load_digits().images[:100]:
        padded = Image.fromarray(np.pad(np.uint8(255 / 16 * pixels), 4))
        once = predict.mnist_style(padded.resize((160, 160), Image.Resampling.BILINEAR))
        again = predict.mnist_style(Image.fromarray(once))
        distances.append(distance(again, once))
        dark = predict.mnist_style(Image.fromarray(255 - once))
        np.testing.assert_allclose(dark, again, atol=1)
    # A centre of mass halfway between two pixels may be rounded to the other one.
    assert np.mean(np.array(distances) < 3) > 0.95


@pytest.mark.parametrize("color", ["white", "black", (200, 190, 170)])
@pytest.mark.parametrize("size", [(1, 1), (28, 28), (3, 500)])
def test_blank(color, size):
    with pytest.raises(ValueError, match="blank"):
        predict.mnist_style(Image.new("RGB", size, color))


def test_blank_paper_with_noise():
    noise = np.random.default_rng(0).normal(200, 8, (200, 200)).clip(0, 255)
    with pytest.raises(ValueError, match="blank"):
        predict.mnist_style(Image.fromarray(noise.astype(np.uint8)))


def test_fully_transparent():
    with pytest.raises(ValueError, match="blank"):
        predict.mnist_style(Image.new("RGBA", (50, 50), (0, 0, 0, 0)))


def bomb():
    """A PNG of a few bytes that says it has 10^10 pixels."""

    def chunk(name, content):
        checksum = zlib.crc32(name + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + name + content + checksum

    header = (100_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


@pytest.fixture
def bad_files(tmp_path):
    file = io.BytesIO()
    drawing().save(file, "PNG")
    contents = {
        "text.png": b"not an image",
        "empty.png": b"",
        "truncated.png": file.getvalue()[:-500],
        "bomb.png": bomb(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    Image.new("L", (50, 50), 255).save(tmp_path / "blank.png")
    (tmp_path / "folder.png").mkdir()
    return [tmp_path / name for name in (*contents, "blank.png", "folder.png", "missing.png")]


def test_bad_files(bad_files):
    images, errors, _ = predict.read_all(bad_files)
    assert not images
    assert list(errors) == [str(path) for path in bad_files]
    for message in errors.values():
        assert message
        assert "\n" not in message
    assert "pixels" in errors[str(bad_files[3])]
    assert errors[str(bad_files[-1])] == "does not exist"


def test_postscript_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", forbidden)
    drawing().convert("L").save(tmp_path / "three.eps")
    _, errors, _ = predict.read_all([tmp_path / "three.eps"])
    assert list(errors.values()) == ["is not an image that Pillow can read"]


def test_a_url_is_not_read():
    url = "https://example.org/three.png"
    images, errors, _ = predict.read_all([url])
    assert not images
    assert errors == {url: "is a URL; download the image and give its path"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A real run, trained for a moment, that waits before it names a digit."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    config = Config(dataset="digits", cell="rnn", hidden_size=4, steps=5, delay=4, out=out)
    with jax.numpy_dtype_promotion("standard"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "draw", lambda *_: None)
        assert mnist.main(config) == 0
    return out


@pytest.fixture
def good(tmp_path):
    paths = [tmp_path / "seven.png", tmp_path / "light on dark.jpg"]
    drawing().save(paths[0])
    inverted(drawing()).save(paths[1])
    return paths


def call(capsys, *arguments):
    capsys.readouterr()
    try:
        code = predict.main([str(argument) for argument in arguments])
    except SystemExit as error:
        code = error.code
    return code, *capsys.readouterr()


def test_prints_digit_and_probabilities(run, good, capsys):
    _, model, params, _ = experiment.load_run(run)
    [expected] = training.probabilities(model, params, data.sequences(SEVEN[None], delay=4))
    code, out, err = call(capsys, *good, "--run", run)
    assert code == 0
    # It was trained for a moment only.
    doubt = f"is read as {expected.argmax()} with a probability of {expected.max():.3f} only"
    assert err == "".join(f"warning: {path} {doubt}\n" for path in good)
    lines = out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{good[0]}: {expected.argmax()}  ")
    printed = [float(word) for word in lines[0].removeprefix(f"{good[0]}: ").split()[2::2]]
    np.testing.assert_allclose(printed, expected, atol=0.001)


def test_json_with_bad_files(run, good, bad_files, capsys):
    code, out, err = call(capsys, *bad_files, *good, "--run", run, "--json")
    assert code == 2
    found = json.loads(out)
    assert [entry["file"] for entry in found] == [str(path) for path in bad_files + good]
    assert all("error" in entry for entry in found[: len(bad_files)])
    for entry in found[len(bad_files) :]:
        assert entry["digit"] == np.argmax(entry["probabilities"])
        assert sum(entry["probabilities"]) == pytest.approx(1, abs=1e-4)
    assert all(len(entry["warnings"]) == 1 for entry in found[len(bad_files) :])
    problems = [line for line in err.splitlines() if not line.startswith("warning: ")]
    for path, line in zip(bad_files, problems, strict=True):
        assert re.match(rf"error: {re.escape(str(path))} (is|has|cannot|does) ", line)


def test_only_bad_files(run, bad_files, capsys, tmp_path):
    code, out, _ = call(capsys, *bad_files, "--run", run, "--beliefs", tmp_path / "beliefs.png")
    assert (code, out) == (2, "")
    assert not (tmp_path / "beliefs.png").exists()


def test_belief_picture(run, good, capsys, tmp_path, monkeypatch):
    path, shown, picture = tmp_path / "beliefs.png", [], report.beliefs
    monkeypatch.setattr(report, "beliefs", lambda *a, **b: (shown.append(a), picture(*a, **b)))
    assert call(capsys, *good, "--run", run, "--beliefs", path)[0] == 0
    images, points, _ = shown[0]
    _, model, params, _ = experiment.load_run(run)
    while_reading = training.beliefs(model, params, data.sequences(images))  # no blank steps
    np.testing.assert_allclose(points, while_reading, atol=1e-6)
    with Image.open(path) as image:
        image.load()
    code, out, err = call(capsys, good[0], "--run", run, "--beliefs", tmp_path / "no" / "b.png")
    assert code == 2
    assert len(out.splitlines()) == 1
    assert [line.split(": ")[0] for line in err.splitlines()] == ["error", "warning"]


@pytest.mark.parametrize("unfinished", [False, True])
def test_no_run(unfinished, run, good, capsys, tmp_path):
    folder = tmp_path / "run"
    if unfinished:
        folder.mkdir()
        (folder / "config.json").write_bytes((run / "config.json").read_bytes())
    code, out, err = call(capsys, *good, "--run", folder)
    assert (code, out) == (2, "")
    problem = "no checkpoint yet"
    if not unfinished:
        problem = "no run; train one with experiments/mnist.py, or name its folder with --run"
    assert err == f"error: {folder} holds {problem}\n"


def test_no_image(capsys):
    code, out, err = call(capsys)
    assert (code, out) == (2, "")
    assert err == "error: no image is given; see --help\n"


def test_what_may_not_be_one_digit_is_doubted(tmp_path):
    assert predict.doubts(drawing()) == []
    crossed = drawing()  # a stroke apart from the rest, as of some fives
    ImageDraw.Draw(crossed).line([(90, 250), (120, 250)], fill=PEN, width=14)
    assert predict.doubts(crossed) == []
    two = Image.new("RGB", (600, 400), PAPER)
    for left in (0, 300):
        two.paste(drawing(), (left, 0))
    parts = "has ink in 2 large parts, as if it showed more than one digit"
    assert predict.doubts(two) == [parts]
    table = drawing()  # the dark edge of a table
    ImageDraw.Draw(table).rectangle([280, 0, 299, 399], fill=(40, 30, 20))
    assert predict.doubts(table) == [parts]
    path = tmp_path / "moving.gif"
    drawing().save(path, save_all=True, append_images=[inverted(drawing()), drawing()])
    assert predict.doubts(predict.read_image(path)) == ["has 3 frames, of which the first is read"]
