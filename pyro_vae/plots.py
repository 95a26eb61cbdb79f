"""Arrays to figures. Nothing here sees a model; each function returns a matplotlib `Figure`.

Figures are made without pyplot, so that drawing in a script changes no global state. Images are
arrays of shape `(..., height, width)` or `(..., channels, height, width)` with values in [0, 1].
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure


def learning_curve(history: Sequence[dict[str, float]], title: str) -> Figure:
    """Plot the ELBO in nats per datum against epochs: training, and validation with its error."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="epoch", ylabel="ELBO (nats per datum)")
    epochs = [entry["epoch"] for entry in history]
    is_elbo = all("train_elbo" in entry for entry in history)
    train = [entry["train_elbo" if is_elbo else "train_objective"] for entry in history]
    what = "training" if is_elbo else "training objective, not the ELBO"
    axes.plot(epochs, train, marker=".", label=f"{what} (running mean of the epoch)")
    values = list(train)
    if all("validation_elbo" in entry for entry in history):
        validation = np.array([entry["validation_elbo"] for entry in history])
        error = np.array([entry["validation_elbo_se"] for entry in history])
        (line,) = axes.plot(epochs, validation, marker=".", label="validation ± standard error")
        axes.fill_between(
            epochs, validation - error, validation + error, color=line.get_color(), alpha=0.25, lw=0
        )
        values += list(validation)
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) > 4:
        # The first epoch's climb from nothing would flatten all that follows.
        top, low = max(finite), float(np.quantile(finite, 0.1))
        axes.set_ylim(low - 0.2 * (top - low), top + 0.1 * (top - low))
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    return figure


def image_grid(images: Any, title: str, columns: int | None = None) -> Figure:
    """Show images, shape `(num_images, [channels,] height, width)`, in rows of `columns`."""
    array = _displayable(images)
    columns = columns or math.ceil(math.sqrt(len(array)))
    rows = math.ceil(len(array) / columns)
    blank = np.ones((rows * columns - len(array), *array.shape[1:]))
    cells = np.concatenate([array, blank])
    return _canvas(cells.reshape(rows, columns, *array.shape[1:]), title)


def reconstructions(originals: Any, reconstructed: Any, title: str, columns: int = 10) -> Figure:
    """Show originals in odd rows, each reconstruction under its original."""
    pairs = np.stack([_displayable(originals), _displayable(reconstructed)])
    pairs = pairs[:, : pairs.shape[1] // columns * columns or None]
    columns = min(columns, pairs.shape[1])
    blocks = pairs.reshape(2, -1, columns, *pairs.shape[2:]).swapaxes(0, 1)
    return _canvas(blocks.reshape(-1, columns, *pairs.shape[2:]), title)


def mosaic(images: Any, title: str, row_labels: Sequence[str] | None = None) -> Figure:
    """Show images of shape `(rows, columns, [channels,] height, width)` as they stand."""
    cells = np.stack([_displayable(row) for row in np.asarray(images)])
    return _canvas(cells, title, row_labels)


def latent_map(points: Any, labels: Any | None, title: str, axis_labels: Sequence[str]) -> Figure:
    """Scatter latents of shape `(num_data, 2)`, coloured by integer class where `labels` has it."""
    points = np.asarray(points)
    figure = Figure(figsize=(6.5, 5.5), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=axis_labels[0], ylabel=axis_labels[1])
    if labels is None:
        axes.scatter(points[:, 0], points[:, 1], s=2, alpha=0.5)
    else:
        labels = np.asarray(labels)
        for label in np.unique(labels):
            chosen = points[labels == label]
            axes.scatter(chosen[:, 0], chosen[:, 1], s=2, alpha=0.5, label=str(label))
        axes.legend(title="class", markerscale=5, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_aspect("equal", adjustable="datalim")
    return figure


def _displayable(images: Any) -> np.ndarray:
    """Return images as `(num_images, height, width)` or, with colours, `(..., width, 3)`."""
    array = np.clip(np.asarray(images, dtype=float), 0, 1)
    if array.ndim == 4:
        array = array[:, 0] if array.shape[1] == 1 else np.moveaxis(array, 1, -1)
    return array


def _canvas(cells: np.ndarray, title: str, row_labels: Sequence[str] | None = None) -> Figure:
    rows, columns, height, width = cells.shape[:4]
    padded = np.pad(cells, [(0, 0), (0, 0), (1, 1), (1, 1), *[(0, 0)] * (cells.ndim - 4)])
    picture = padded.swapaxes(1, 2).reshape(
        rows * (height + 2), columns * (width + 2), *cells.shape[4:]
    )
    scale = min(0.5, 10 / columns, 14 / rows)
    figure = Figure(
        figsize=(max(columns * scale * width / height, 4), rows * scale + 0.4), layout="constrained"
    )
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=9)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    if row_labels is not None:
        axes.set_yticks([(row + 0.5) * (height + 2) for row in range(rows)], row_labels, fontsize=7)
    return figure
