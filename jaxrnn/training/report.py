"""Pictures of training runs, of classifiers and of studies.

Every function writes one picture to `path`, whose suffix selects the format.

Shapes: N images, C classes, P points of a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxrnn.training.files import replacing

__all__ = [
    "accuracies",
    "beliefs",
    "confusion",
    "curves",
    "drawings",
    "heat_map",
    "learning_bands",
    "lengths",
    "mistakes",
]

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can distinguish.
BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "#999999"
ERROR_TICKS = (0.9, 0.5, 0.2, 0.1, 0.05, 0.03, 0.02, 0.015, 0.01, 0.007, 0.005, 0.003, 0.002, 0.001)
HEAT = "Blues"  # one hue from light to dark, which suits colour-blind readers and grey prints


def _figure(width: int | float, height: int | float, title: str = "") -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="compressed", facecolor="white")
    if title:
        figure.suptitle(title, fontsize=13, parse_math=False)
    return figure


def _save(figure: Figure, path: str | PathLike) -> None:
    path = Path(path)
    path = path if path.suffix else path.with_suffix(".png")
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], bbox_inches="tight", pad_inches=0.15)


def _check(name: str, array, *shape: int | None) -> np.ndarray:
    """Returns `array` as a NumPy array of the given shape, in which None means any size.

    Raises:
        ValueError: If it has another shape.
    """
    array = np.asarray(array)
    fits = len(shape) == array.ndim and all(
        want in (None, size) for want, size in zip(shape, array.shape, strict=True)
    )
    if not fits:
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have shape [{expected}], got {list(array.shape)}")
    return array


def curves(metrics: Sequence[Mapping], path: str | PathLike) -> None:
    """Draws the training loss and the accuracies against the training step.

    Args:
        metrics: One record per evaluation, with "step", "loss", "test_accuracy" and
            "validation_accuracy". Accuracies are in [0, 1]. "validation_accuracy" may be None.
        path: The file to write.

    Raises:
        ValueError: If `metrics` is empty.
    """
    if not metrics:
        raise ValueError("metrics must hold at least one evaluation, got none")
    steps = [record["step"] for record in metrics]
    marker = "o" if len(steps) < 3 else None
    figure = _figure(11.0, 4.2)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    loss_axes.plot(steps, [record["loss"] for record in metrics], color=BLUE, lw=1.2, marker=marker)
    loss_axes.set(yscale="log", ylabel="training loss")
    lines = {"validation": (GREY, "--"), "test": (VERMILLION, "-")}
    for name, (color, style) in lines.items():
        values = [record.get(f"{name}_accuracy") for record in metrics]
        if any(value is not None for value in values):
            errors = 1 - np.array([np.nan if v is None else v for v in values], float)
            label = f"{name} (last {1 - errors[-1]:.2%})"
            accuracy_axes.plot(
                steps, errors, style, color=color, lw=1.3, marker=marker, label=label
            )
    _accuracy_axis(accuracy_axes)
    accuracy_axes.legend(loc="lower right")
    for axes in (loss_axes, accuracy_axes):
        axes.set_xlabel("step")
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(True, which="both", color="0.9", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _accuracy_axis(axes: Axes) -> None:
    """Labels a y axis of error rates with accuracies, in which higher is better.

    The scale is that of the logarithm of the error, on which progress near 100 % is visible.
    """
    drawn = np.concatenate([line.get_ydata() for line in axes.get_lines()] or [[1.0]])
    drawn = drawn[drawn > 0]
    best, worst = (drawn.min(), drawn.max()) if drawn.size else (0.001, 0.01)
    for line in axes.get_lines():  # an error of 0 has no logarithm and is drawn just above the best
        line.set_ydata(np.maximum(line.get_ydata(), best / 1.3))
    axes.set_ylim(min(1, 1.5 * worst), best / 1.5)
    axes.set_yscale("log")
    axes.set_yticks(ERROR_TICKS, [f"{100 * (1 - tick):g}%" for tick in ERROR_TICKS])
    axes.set_yticks([], minor=True)
    axes.set_ylabel("accuracy (log scale of the error)")


def confusion(labels, predictions, path: str | PathLike, title: str = "") -> None:
    """Draws the confusion matrix with its counts and the recall of each class.

    The colours show the errors only.

    Args:
        labels: The true classes, integers `[N]`.
        predictions: The predicted classes, integers `[N]`.
        path: The file to write.
        title: The title of the picture.

    Raises:
        ValueError: If `labels` is empty, or has another shape than `predictions`.
    """
    from sklearn.metrics import confusion_matrix

    labels = _check("labels", labels, None)
    predictions = _check("predictions", predictions, len(labels))
    if not len(labels):
        raise ValueError("labels must hold at least one label, got none")
    classes = 1 + max(labels.max(), predictions.max())
    counts = confusion_matrix(labels, predictions, labels=np.arange(classes))
    errors = np.ma.array(counts, mask=np.eye(classes, dtype=bool))
    figure = _figure(7.4, 6.6, title)
    axes = figure.subplots()
    axes.set_facecolor("0.88")  # the colour of the masked diagonal
    heat = axes.imshow(errors, cmap=HEAT, vmin=0, vmax=max(1, errors.filled(0).max()))
    for (row, column), count in np.ndenumerate(counts):
        dark = row != column and count > 0.55 * heat.get_clim()[1]
        color = "white" if dark else "black" if count else "0.75"
        axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=10)
    ticks, totals = np.arange(classes), counts.sum(axis=1)
    axes.set(xlabel="predicted class", ylabel="true class", xticks=ticks, yticks=ticks)
    right = axes.secondary_yaxis("right")
    pairs = zip(counts.diagonal(), totals, strict=True)
    right.set_yticks(ticks, [f"{hits / total:.1%}" if total else "–" for hits, total in pairs])
    right.set_ylabel("recall")
    right.tick_params(length=0)
    _save(figure, path)


def mistakes(
    images, labels, probabilities, path: str | PathLike, title: str = "", count: int = 24
) -> None:
    """Draws the misclassified images with the highest probability of the predicted class.

    Beside each image is a bar for the probability of each class: the true one blue, the predicted
    one vermillion.

    Args:
        images: uint8 `[N, height, width]`.
        labels: The true classes, integers `[N]`.
        probabilities: The class probabilities, float `[N, C]`.
        path: The file to write.
        title: The title of the picture.
        count: Largest number of images to show.

    Raises:
        ValueError: If a shape does not match that of `images`.
    """
    images = _check("images", images, None, None, None)
    labels = _check("labels", labels, len(images))
    probabilities = _check("probabilities", probabilities, len(images), None)
    predictions = probabilities.argmax(axis=-1)
    wrong = np.flatnonzero(predictions != labels)
    worst = wrong[np.argsort(-probabilities[wrong].max(axis=-1), kind="stable")][:count]
    if not len(worst):
        figure = _figure(6.0, 2.0, title)
        figure.text(
            0.5, 0.4, f"No misclassified image among {len(images)}", ha="center", fontsize=14
        )
        _save(figure, path)
        return
    columns = min(6, len(worst))
    rows = -(-len(worst) // columns)
    figure = _figure(2.6 * columns, 1.75 * rows + 0.5, title)
    panels = figure.subplots(rows, 2 * columns, squeeze=False).reshape(-1, 2)
    for (picture, bars), n in zip(panels, worst, strict=False):
        _show(picture, images[n])
        truth = f"true {labels[n]} ({probabilities[n, labels[n]]:.1%})"
        picture.set_title(truth, fontsize=10, color=BLUE)
        picture.set_xlabel(f"#{n}", fontsize=8, color="0.4")
        _bars(bars, probabilities[n], int(labels[n]), int(predictions[n]))
    _hide(panels[len(worst) :])
    _save(figure, path)


def _hide(panels: np.ndarray) -> None:
    for axes in panels.flat:
        axes.set_axis_off()


def _show(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, cmap="gray_r", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])


def _bars(axes: Axes, probabilities: np.ndarray, label: int, prediction: int) -> None:
    """Draws class probabilities [C] as bars."""
    colors = [GREY] * len(probabilities)
    colors[label], colors[prediction] = BLUE, VERMILLION
    axes.barh(np.arange(len(probabilities)), probabilities, color=colors)
    axes.set(xlim=(0, 1), xticks=[], ylim=(len(probabilities) - 0.5, -0.5))
    axes.set_yticks(np.arange(len(probabilities)))
    axes.tick_params(axis="y", labelsize=7, length=0, pad=1)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_box_aspect(1)
    title = f"predicted {prediction} ({probabilities[prediction]:.0%})"
    axes.set_title(title, fontsize=10, color=VERMILLION)


def drawings(images, path: str | PathLike, names: Sequence[str], title: str = "") -> None:
    """Draws a grid of images.

    Args:
        images: float or uint8 `[L, N, height, width]`, L lines of N images.
        path: The file to write.
        names: The labels of the lines, L strings.
        title: The title of the picture.

    Raises:
        ValueError: If `images` is empty, or has another number of lines than `names`.
    """
    images = _check("images", images, len(names), None, None, None)
    if not images.size:
        raise ValueError("images must hold at least one image, got none")
    lines, columns = images.shape[:2]
    figure = _figure(0.75 * columns + 1.2, 0.75 * lines + 0.5, title)
    panels = figure.subplots(lines, columns, squeeze=False)
    for line, name, shown in zip(panels, names, images, strict=True):
        for axes, image in zip(line, shown, strict=True):
            _show(axes, image)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    _save(figure, path)


def accuracies(values, path: str | PathLike, title: str = "") -> None:
    """Draws the test accuracy against the number of rows that were read.

    Args:
        values: The accuracy after each row, float `[P]` in [0, 1].
        path: The file to write.
        title: The title of the picture.

    Raises:
        ValueError: If `values` does not have one axis.
    """
    values = _check("values", values, None)
    figure = _figure(6, 3.5, title)
    axes = figure.subplots()
    axes.plot(np.arange(1, len(values) + 1), values, marker="o", markersize=3)
    axes.set(xlabel="rows read", ylabel="test accuracy", ylim=(0, 1))
    axes.grid(alpha=0.3)
    _save(figure, path)


def learning_bands(records: Sequence[Mapping], path: str | PathLike, title: str = "") -> None:
    """Draws the learning curve of each setting: mean ± standard deviation over seeds.

    The curves are test errors. Diverged runs are omitted, and so are runs that were evaluated after
    other steps than the first run of their setting. The legend then says how many runs of the
    setting are shown.

    Args:
        records: The runs, with `setting`, `status` and `curve`, a list of records with "step" and
            "test_accuracy".
        path: The file to write.
        title: The title of the picture.
    """
    good = [record for record in records if record["status"] == "ok"]
    figure = _figure(8, 5, title)
    axes = figure.subplots()
    for number, setting in enumerate(dict.fromkeys(record["setting"] for record in good)):
        every = [record["curve"] for record in good if record["setting"] == setting]
        steps = [point["step"] for point in every[0]]
        curves = [curve for curve in every if [point["step"] for point in curve] == steps]
        label = (
            setting if len(curves) == len(every) else f"{setting} ({len(curves)} of {len(every)})"
        )
        errors = np.array([[1 - point["test_accuracy"] for point in curve] for curve in curves])
        mean = errors.mean(0)
        spread = errors.std(0, ddof=1) if len(curves) > 1 else np.zeros_like(mean)
        style = ("-", "--", ":", "-.")[number // 10 % 4]
        (line,) = axes.plot(steps, mean, style, marker="o", markersize=3, label=label)
        if len(curves) > 1:
            low = np.maximum(mean - spread, 1e-4)
            axes.fill_between(steps, low, mean + spread, color=line.get_color(), alpha=0.15)
    ylabel = "test error (mean ± standard deviation over seeds)"
    axes.set(xlabel="step", ylabel=ylabel, yscale="log")
    axes.grid(alpha=0.3, which="both")
    if good:
        axes.legend(fontsize="small", ncols=2)
    _save(figure, path)


def lengths(
    lines: Mapping[str, Mapping[int, Sequence[float]]],
    path: str | PathLike,
    xlabel: str = "length",
    title: str = "",
) -> None:
    """Draws the test accuracy against the length of the sequences: mean ± standard deviation.

    Args:
        lines: For each line by its name, the accuracies of several seeds by length.
        path: The file to write.
        xlabel: The label of the axis of lengths.
        title: The title of the picture.
    """
    figure = _figure(8, 5, title)
    axes = figure.subplots()
    for number, (name, points) in enumerate(lines.items()):
        found = [(length, points[length]) for length in sorted(points) if points[length]]
        means = np.array([np.mean(values) for _, values in found])
        spreads = np.array([np.std(v, ddof=1) if len(v) > 1 else 0.0 for _, v in found])
        style = ("o-", "s--", "^:", "v-.")[number % 4]
        axes.errorbar([x for x, _ in found], means, spreads, fmt=style, capsize=3, label=name)
    ylabel = "test accuracy (mean ± standard deviation over seeds)"
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(-0.02, 1.02))
    axes.set_xticks(sorted({length for points in lines.values() for length in points}))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small", ncols=2)
    _save(figure, path)


def heat_map(
    values,
    names: Sequence[str],
    labels: tuple[Sequence[str], Sequence[str]],
    path: str | PathLike,
    title: str = "test accuracy, %",
) -> None:
    """Draws the accuracies of a grid of two options as a heat map.

    Args:
        values: Accuracies in [0, 1], float `[down, across]`. NaN is shown as a dash.
        names: The names of the options down and across.
        labels: The values of the options down and across.
        path: The file to write.
        title: The title of the picture.

    Raises:
        ValueError: If `values` does not have the shape of `labels`.
    """
    down, across = labels
    values = 100 * _check("values", values, len(down), len(across))
    figure = _figure(1.1 * len(across) + 2.5, 0.7 * len(down) + 1.5, title)
    axes = figure.subplots()
    image = axes.imshow(values, cmap=HEAT, aspect="auto")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), value in np.ndenumerate(values):
        color = "white" if value > middle else "black"
        text = "–" if np.isnan(value) else f"{value:.2f}"
        axes.text(column, row, text, ha="center", va="center", color=color)
    axes.set_xticks(range(len(across)), across)
    axes.set_yticks(range(len(down)), down)
    axes.set(ylabel=names[0], xlabel=names[1])
    figure.colorbar(image)
    _save(figure, path)


def beliefs(
    images,
    probabilities,
    path: str | PathLike,
    labels=None,
    title: str = "",
    order: str = "rows",
) -> None:
    """Draws the class probabilities after each part of an image that the classifier reads.

    Args:
        images: uint8 `[N, height, width]`.
        probabilities: The class probabilities after each of P parts of the image, float
            `[N, P, C]`. The parts are rows, columns, or equal numbers of pixels.
        path: The file to write.
        labels: The true classes, integers `[N]`, or None.
        title: The title of the picture.
        order: The order in which the image is read: "rows", "columns", "shuffled", "pixels" or
            "permuted", as in `jaxrnn.training.data.sequences`.

    Raises:
        ValueError: If `images` is empty, or a shape does not match that of `images`.
    """
    images = _check("images", images, None, None, None)
    probabilities = _check("probabilities", probabilities, len(images), None, None)
    if not len(images):
        raise ValueError("images must hold at least one image, got none")
    if labels is not None:
        labels = _check("labels", labels, len(images))
    across = order == "columns"
    columns = min(5 if across else 3, len(images))
    rows = -(-len(images) // columns)
    if across:
        figure = _figure(2.4 * columns + 1, 4.6 * rows + 0.5, title)
        panels = figure.subplots(2 * rows, columns, squeeze=False)
        panels = panels.reshape(rows, 2, columns).swapaxes(1, 2).reshape(-1, 2)
    else:
        figure = _figure(4.4 * columns + 1, 2.6 * rows + 0.5, title)
        panels = figure.subplots(rows, 2 * columns, squeeze=False).reshape(-1, 2)
    _hide(panels[len(images) :])
    for n, (image, belief) in enumerate(zip(images, probabilities, strict=True)):
        _show(panels[n, 0], image)
        _heat(panels[n, 1], belief, order)
        prediction = belief[-1].argmax()
        truth = "" if labels is None else f", true {labels[n]}"
        wrong = labels is not None and labels[n] != prediction
        color = VERMILLION if wrong else "black"
        panels[n, 0].set_title(f"predicted {prediction}{truth}", color=color)
    heat, every = panels[0, 1].images[0], panels.ravel().tolist()
    figure.colorbar(heat, ax=every, label="class probability", pad=0.01, aspect=12 * rows)
    _save(figure, path)


def _heat(axes: Axes, belief: np.ndarray, order: str) -> None:
    """Draws class probabilities [P, C], each point beside the part of the image just read."""
    points, classes = belief.shape
    across = order == "columns"
    axes.imshow(belief.T if across else belief, cmap=HEAT, vmin=0, vmax=1, aspect="auto")
    axes.set_box_aspect(1)
    time, kind = (axes.xaxis, axes.yaxis) if across else (axes.yaxis, axes.xaxis)
    kind.set_ticks(np.arange(classes))
    kind.set_label_text("class")
    quarters = np.unique(np.arange(1, 5) * points // 4)
    quarters = quarters[quarters > 0]
    if order in ("rows", "columns"):
        time.set_ticks(quarters - 1, [str(part) for part in quarters])
        time.set_label_text(f"{order} read")
    else:
        time.set_ticks(quarters - 1, [f"{part / points:.0%}" for part in quarters])
        time.set_label_text("pixels read")
    axes.tick_params(labelsize=8)
    if not across:
        axes.yaxis.tick_right()
        axes.yaxis.set_label_position("right")
