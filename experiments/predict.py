"""Classifies handwritten digits in image files with a trained run of experiments/mnist.py.

    python experiments/predict.py three.png photo.jpg
    python experiments/predict.py three.png --run runs/best --beliefs three-beliefs.png

Prints for each image the digit and the probabilities of all digits. A line on stderr warns of an
image that may hold something else than one digit, and of an answer with a low probability.
"""

from __future__ import annotations

import interrupts  # noqa: F401

# isort: split
import contextlib
import json
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from command_line import parse
from cyclopts import Parameter
from errors import OptionError, fail, printable
from PIL import Image, ImageOps

SIDE = 28  # of an MNIST image
BOX = 20  # side of the square to which its ink is scaled
MAX_SIDE = 1000  # larger images are reduced first, which saves time and loses no detail of a digit
MIN_CONTRAST = 20  # of 255; fainter ink is taken for blank paper
# A part of the ink is large if it has this much of the largest part's ink. Of the test images of
# MNIST, 0.3 % have a second large part; of pairs of them side by side, 98 %.
LARGE = 0.3
UNSURE = 0.5  # probability of an answer below which it is doubtful
FAINTEST = 0.1  # of the strongest ink; less is mostly JPEG artifacts around a stroke


@dataclass(frozen=True)
class Config:
    """The options."""

    images: tuple[str, ...] = ()
    """Image files of any size that Pillow reads, with a dark digit on a light background or a light
    one on dark."""
    _: KW_ONLY
    run: Annotated[Path, Parameter(metavar="FOLDER")] = Path("runs/mnist")
    """Folder of the trained run."""
    json: bool = False
    """Print a JSON array instead of lines."""
    beliefs: Annotated[Path | None, Parameter(metavar="PICTURE")] = None
    """Image file to write, with a picture of the predicted probabilities after each time step."""

    def check(self) -> None:
        """Raises OptionError if no image is given."""
        if not self.images:
            raise OptionError("no image is given; see --help")


def read_image(name: str | Path) -> Image.Image:
    """Reads and fully decodes an image file, rotated as its EXIF data says.

    Of an animation the first frame is read. `info["frames"]` is the number of frames.

    Raises:
        ValueError: If the file is missing, not an image, damaged or too large.
    """
    path = Path(name)
    if "://" in str(name):
        raise ValueError("is a URL; download the image and give its path")
    # Pillow would run a PostScript file, whatever its suffix, with Ghostscript.
    Image.init()
    formats = [each for each in Image.ID if each != "EPS"]
    try:
        if not path.is_file():
            raise OSError("is not a file" if path.exists() else "does not exist")
    except OSError as error:  # also of a name that is too long, or of a folder without permission
        raise ValueError(error.strerror or str(error)) from None
    try:
        with warnings.catch_warnings():
            # Of damage that does not prevent reading, Pillow warns or logs.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            logging.getLogger("PIL").setLevel(logging.CRITICAL)
            with Image.open(path, formats=formats) as image:
                frames = getattr(image, "n_frames", 1)
                ImageOps.exif_transpose(image, in_place=True)
                image.info["frames"] = frames
                return image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"has more than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except Image.UnidentifiedImageError:
        raise ValueError("is not an image that Pillow can read") from None
    except Exception as error:  # on damaged files Pillow's readers raise nearly anything
        raise ValueError(
            f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}"
        ) from None


def opaque(image: Image.Image) -> np.ndarray:
    """Returns the pixels as float [height, width, 3] in [0, 255], at most MAX_SIDE a side.

    Raises:
        ValueError: If a pixel is NaN or infinite, as in a damaged TIFF file.
    """
    if image.mode.startswith(("I", "F")):  # of any range, which convert() would clip
        image = image.convert(image.mode[0])  # 16-bit integers become 32-bit ones
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        values = np.asarray(image, np.float64)
        low, high = values.min(), values.max()
        if not np.isfinite(high - low):
            raise ValueError("has pixels that are NaN or infinite")
        image = Image.fromarray(np.uint8(255 * (values - low) / max(high - low, 1e-9)))
    mode = "RGBA" if image.has_transparency_data else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    scale = min(1, MAX_SIDE / max(image.size))
    size = [max(1, round(scale * side)) for side in image.size]
    image = image.resize(size, reducing_gap=2)
    if image.mode == "RGBA":
        on_white, on_black = (
            Image.alpha_composite(Image.new("RGBA", image.size, paper), image).convert("RGB")
            for paper in ("white", "black")
        )
        image = on_white if np.ptp(np.asarray(on_white)) >= MIN_CONTRAST else on_black
    return np.asarray(image, np.float64)


def background(pixels: np.ndarray) -> np.ndarray:
    """Returns the color of the paper at each pixel, [height, width, 3].

    It is a plane through the border pixels, since light falls off across a photograph. Ink that
    touches the border is ignored.
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
    """Returns the amount of ink at each pixel, float [height, width], 0 on the paper.

    The amount is the difference from the paper along the direction of the strongest differences, so
    ink may be darker, lighter, or of another color.

    Raises:
        ValueError: If there is no ink.
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


def large_parts(ink: np.ndarray) -> int:
    """Returns the number of large parts of the ink, which do not touch each other.

    Args:
        ink: The amount of ink at each pixel, as returned by `find_ink`.
    """
    from scipy import ndimage

    parts = np.zeros(ink.shape, np.int32)
    ndimage.label(ink > 0, np.ones((3, 3)), output=parts)
    amounts = np.bincount(parts.ravel(), ink.ravel())[1:]
    return int((amounts > LARGE * amounts.max()).sum())


def doubts(image: Image.Image) -> list[str]:
    """Returns what speaks against an image that shows one digit, as parts of a sentence.

    Raises:
        ValueError: If the image is blank.
    """
    found = []
    if (frames := image.info.get("frames", 1)) > 1:
        found.append(f"has {frames} frames, of which the first is read")
    if (parts := large_parts(find_ink(opaque(image)))) > 1:
        found.append(f"has ink in {parts} large parts, as if it showed more than one digit")
    return found


def mnist_style(image: Image.Image) -> np.ndarray:
    """Converts an image of one digit to the style of MNIST's images.

    The ink becomes bright on black, is scaled to fit a square of 20 pixels, and is placed with its
    center of mass in the middle.

    Args:
        image: An image of any size and mode, with a border of mostly plain background.

    Returns:
        The pixels, uint8 [28, 28].

    Raises:
        ValueError: If the image is blank.
    """
    ink = find_ink(opaque(image))
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    longest = max(ink.shape)
    if abs(longest - BOX) <= 2:  # already of MNIST's size; resampling would blur it
        longest = BOX
    height, width = [max(1, round(BOX * side / longest)) for side in ink.shape]
    picture = Image.fromarray(ink.astype(np.float32))
    ink = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
    # Not the maximum, which a thin stroke reaches at a crossing only, so the rest would be dim.
    full = np.percentile(ink[ink > ink.max() / 2], 90)
    ink = np.clip(ink / full, 0, 1)
    y = np.average(np.arange(height), weights=ink.sum(axis=1))
    x = np.average(np.arange(width), weights=ink.sum(axis=0))
    # The center of symmetric ink lies between two pixels, where the last bits must not decide.
    top, left = (round(round(SIDE / 2 - center, 3)) for center in (y, x))
    top, left = np.clip(top, 0, SIDE - height), np.clip(left, 0, SIDE - width)
    canvas = np.zeros((SIDE, SIDE), np.uint8)
    canvas[top : top + height, left : left + width] = np.rint(255 * ink)
    return canvas


def read_all(
    names: Sequence[str | Path],
) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, list[str]]]:
    """Reads image files.

    Returns:
        The images in the style of MNIST; of the other files what is wrong with them; and what is
        doubtful about the images. Each is by the name of the file.
    """
    images, errors, warnings = {}, {}, {}
    for name in names:
        try:
            image = read_image(name)
            images[str(name)] = mnist_style(image)
            warnings[str(name)] = doubts(image)
        except ValueError as error:
            errors[str(name)] = str(error)
    return images, errors, warnings


def as_json(
    names: Sequence[str],
    probabilities: Mapping[str, np.ndarray],
    errors: Mapping[str, str],
    warnings: Mapping[str, Sequence[str]],
) -> str:
    """Returns a JSON array with an object for each file, in the order given."""
    found = []
    for name in names:
        entry: dict = {"file": name}
        if name in errors:
            entry["error"] = errors[name]
        else:
            entry["digit"] = int(probabilities[name].argmax())
            entry["probabilities"] = [round(float(p), 6) for p in probabilities[name]]
            entry["warnings"] = warnings[name]
        found.append(entry)
    return json.dumps(found)


def as_line(name: str, probabilities: np.ndarray) -> str:
    """Returns `three.png: 3   0 0.001  1 0.000 …`."""
    each = "  ".join(f"{digit} {p:.3f}" for digit, p in enumerate(probabilities))
    return f"{printable(name)}: {probabilities.argmax()}   {each}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the predictions; returns the exit code: 0, or 2 after any error."""
    config = parse(Config, __doc__, arguments, check=Config.check)
    # Imported after the options are parsed, since JAX takes seconds.
    from experiment import load_run
    from terminal import quieten_orbax

    from jaxrnn import training
    from jaxrnn.training import data
    from jaxrnn.training.checkpoint import CheckpointError

    quieten_orbax()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the predictions alone
            trained, model, params, _ = load_run(config.run)
    except (OSError, ValueError, CheckpointError) as error:
        return fail(error)
    images, errors, warnings = read_all(config.images)
    code = 0
    for name, error in errors.items():
        code = fail(f"{name} {error}")
    probabilities = {}
    if images:
        stack = np.stack(list(images.values()))
        noise = 3 if trained.noise else None  # a stream that no split has
        sequences = data.sequences(stack, trained.order, delay=trained.delay, noise=noise)
        found = training.probabilities(model, params, sequences)
        probabilities = dict(zip(images, found, strict=True))
        if config.beliefs:
            # Without the blank time steps after the image, during which nothing is read.
            points = training.beliefs(model, params, data.sequences(stack, trained.order))
            code = draw(stack, points, config.beliefs, trained.order) or code
    for name, found in probabilities.items():
        if found.max() < UNSURE:
            doubt = f"is read as {found.argmax()} with a probability of {found.max():.3f} only"
            warnings[name].append(doubt)
        for doubt in warnings[name]:
            print(f"warning: {printable(name)} {doubt}", file=sys.stderr)
    if config.json:
        print(as_json(config.images, probabilities, errors, warnings))
    else:
        for name, found in probabilities.items():
            print(as_line(name, found))
    return code


def draw(images: np.ndarray, points: np.ndarray, path: Path, order: str) -> int:
    """Writes the picture of --beliefs; returns an exit code."""
    from jaxrnn.training import report

    try:
        report.beliefs(images, points, path, order=order)
    except (OSError, ValueError) as error:
        return fail(f"{path}: {' '.join(str(error).split())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
