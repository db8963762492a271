"""Read handwritten digits from image files: `python experiments/predict.py IMAGE…`."""

import contextlib
import json
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image, ImageOps

SIDE = 28  # an MNIST image
BOX = 20  # the square its ink is scaled to fit
MAX_SIDE = 1000  # larger pictures are reduced first: time and memory, and no detail a digit needs
MIN_CONTRAST = 20  # of 255; ink fainter than this is taken for blank paper
FAINTEST = 0.1  # of the strongest ink; less is mostly what JPEG leaves around a stroke


@dataclass(frozen=True)
class Config:
    """Classify images of digits with a trained run of experiments/mnist.py."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files: anything Pillow reads, of any size, dark on light or light on dark."""
    run: Path = Path("runs/mnist")
    """The folder of the trained run."""
    json: bool = False
    """Print one JSON array instead of lines."""
    beliefs: Path | None = None
    """Also write a picture of what the network believes as it reads each image."""


def read_image(path: Path) -> Image.Image:
    """Reads and fully decodes an image file, turned upright as its EXIF data says.

    Raises:
        ValueError: it is missing, not an image, damaged or too large, said in one line.
    """
    if not path.is_file():
        raise ValueError("is not a file" if path.exists() else "no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"has more than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except Image.UnidentifiedImageError:
        raise ValueError("is not an image that Pillow can read") from None
    except Exception as error:  # on damaged files Pillow's readers raise nearly anything
        raise ValueError(f"cannot be read: {' '.join(str(error).split())}") from None


def opaque(image: Image.Image) -> np.ndarray:
    """Returns the pixels as float [height, width, 3] in [0, 255], reduced to MAX_SIDE at most."""
    if image.mode.startswith(("I", "F")):  # these hold any range, which convert() would clip
        values = np.asarray(image, np.float64)
        low, high = values.min(), values.max()
        image = Image.fromarray(np.uint8(255 * (values - low) / max(high - low, 1e-9)))
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    if image.mode == "RGBA":
        on_white, on_black = (
            Image.alpha_composite(Image.new("RGBA", image.size, paper), image).convert("RGB")
            for paper in ("white", "black")
        )
        image = on_white if np.ptp(np.asarray(on_white)) >= MIN_CONTRAST else on_black
    return np.asarray(image, np.float64)


def background(pixels: np.ndarray) -> np.ndarray:
    """Returns the paper under each pixel [height, width, 3]: a plane through the border pixels.

    A plane, because light falls off across a photograph. Ink that touches the border is left out.
    """
    height, width, _ = pixels.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y], axis=-1)
    edge = np.ones((height, width), bool)
    edge[1:-1, 1:-1] = False
    offset = np.abs(pixels[edge] - np.median(pixels[edge], axis=0)).max(axis=-1)
    paper = offset <= 3 * np.median(offset)
    plane, *_ = np.linalg.lstsq(terms[edge][paper], pixels[edge][paper], rcond=None)
    return terms @ plane


def find_ink(pixels: np.ndarray) -> np.ndarray:
    """Returns how much ink lies on each pixel, float [height, width], 0 on the paper.

    Ink is what differs from the paper in the direction of the strongest differences, so it may be
    darker, lighter, or of another colour.

    Raises:
        ValueError: there is none.
    """
    from scipy import ndimage

    difference = pixels - background(pixels)
    distance = np.linalg.norm(difference, axis=-1)
    strongest = difference[distance >= np.percentile(distance, 99.9)].mean(axis=0)
    contrast = np.linalg.norm(strongest)
    ink = difference @ strongest / max(contrast, 1e-9)
    edge = np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]])
    noise = 1.5 * np.median(np.abs(edge))
    if contrast < max(MIN_CONTRAST, 6 * noise):
        raise ValueError("is blank: nothing on it stands out from its border")
    mask, parts = ink > max(4 * noise, FAINTEST * contrast), np.zeros(ink.shape, np.int32)
    ndimage.label(mask, np.ones((3, 3)), output=parts)
    every = np.arange(1, parts.max() + 1)
    sizes = ndimage.sum_labels(ink > 0.3 * contrast, parts, every)
    digit = every[sizes > 0.02 * sizes.max()]  # the rest is dust and noise
    return np.where(np.isin(parts, digit), ink, 0)


def mnist_style(image: Image.Image) -> np.ndarray:
    """Brings a picture of one digit to the form of MNIST's images.

    The ink becomes bright on black, is scaled to fit a square of 20 pixels, and placed with its
    centre of mass in the middle.

    Args:
        image: a picture of any size and mode, with a border of mostly plain background.

    Returns:
        uint8 [28, 28].

    Raises:
        ValueError: the picture is blank.
    """
    ink = find_ink(opaque(image))
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    longest = max(ink.shape)
    if abs(longest - BOX) <= 2:  # of MNIST's size already, to which resampling would do harm
        longest = BOX
    height, width = [max(1, round(BOX * side / longest)) for side in ink.shape]
    picture = Image.fromarray(ink.astype(np.float32))
    ink = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
    # Not the maximum, which in a thin stroke is one crossing and leaves the rest dim.
    full = np.percentile(ink[ink > ink.max() / 2], 90)
    ink = np.clip(ink / full, 0, 1)
    y = np.average(np.arange(height), weights=ink.sum(axis=1))
    x = np.average(np.arange(width), weights=ink.sum(axis=0))
    top = np.clip(round(SIDE / 2 - y), 0, SIDE - height)
    left = np.clip(round(SIDE / 2 - x), 0, SIDE - width)
    canvas = np.zeros((SIDE, SIDE), np.uint8)
    canvas[top : top + height, left : left + width] = np.rint(255 * ink)
    return canvas


def read_all(paths: Sequence[Path]) -> tuple[dict[Path, np.ndarray], dict[Path, str]]:
    """Returns the images brought to MNIST's form, and what is wrong with the files that are not."""
    images, errors = {}, {}
    for path in paths:
        try:
            images[path] = mnist_style(read_image(path))
        except ValueError as error:
            errors[path] = str(error)
    return images, errors


def as_json(
    paths: Sequence[Path], probabilities: Mapping[Path, np.ndarray], errors: Mapping[Path, str]
) -> str:
    """Returns one JSON array with an object per file, in the order given."""
    found = []
    for path in paths:
        entry: dict = {"file": str(path)}
        if path in errors:
            entry["error"] = errors[path]
        else:
            entry["digit"] = int(probabilities[path].argmax())
            entry["probabilities"] = [round(float(p), 6) for p in probabilities[path]]
        found.append(entry)
    return json.dumps(found)


def as_line(path: Path, probabilities: np.ndarray) -> str:
    """Returns `three.png: 3   0 0.001  1 0.000 …`."""
    each = "  ".join(f"{digit} {p:.3f}" for digit, p in enumerate(probabilities))
    return f"{path}: {probabilities.argmax()}   {each}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0, or 2 if anything went wrong."""
    config = tyro.cli(Config, args=arguments)
    if not config.images:
        return complain("no image given; --help says how")
    # Imported only now, so that --help and a mistyped command answer at once.
    from experiment import load_run

    from jaxrnn import training
    from jaxrnn.training import data
    from jaxrnn.training.checkpoint import CheckpointError

    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax logs every step
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the predictions alone
            trained, model, params, _ = load_run(config.run)
    except (OSError, ValueError, CheckpointError) as error:
        return complain(error)
    images, errors = read_all(config.images)
    code = 0
    for path, error in errors.items():
        code = complain(f"{path}: {error}")
    probabilities = {}
    if images:
        stack = np.stack(list(images.values()))
        sequences = data.sequences(stack, trained.order, delay=trained.delay)
        found = training.probabilities(model, params, sequences)
        probabilities = dict(zip(images, found, strict=True))
        if config.beliefs:
            # Without the blank steps after it, during which nothing of the image is read.
            points = training.beliefs(model, params, data.sequences(stack, trained.order))
            code = draw(stack, points, config.beliefs, trained.order) or code
    if config.json:
        print(as_json(config.images, probabilities, errors))
    else:
        for path, found in probabilities.items():
            print(as_line(path, found))
    return code


def draw(images: np.ndarray, points: np.ndarray, path: Path, order: str) -> int:
    """Writes the belief picture; returns an exit code."""
    from jaxrnn.training import report

    try:
        report.beliefs(images, points, path, order=order)
    except (OSError, ValueError) as error:
        return complain(f"{path}: {' '.join(str(error).split())}")
    return 0


def complain(message: object) -> int:
    """Prints one line on stderr and returns the exit code for it."""
    print(f"predict.py: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
