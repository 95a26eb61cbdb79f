"""Plots of images.

Images are arrays of shape `(..., height, width)` or `(..., channels, height, width)` with values in
[0, 1].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike

from pyro_vae.arguments import ArgumentError, Count, checked
from pyro_vae.plots.encoding import Figure
from pyro_vae.plots.values import (
    Images,
    IsImages,
    PredictiveTree,
    check_rows,
    check_two,
)


@checked
def image_grid(images: Images, title: str, columns: Count | None = None) -> Figure:
    """Show images in a grid.

    Args:
        images: Images of shape `(num_images, [channels,] height, width)`.
        title: Title of the figure.
        columns: Number of columns; by default the grid is about square.

    Returns:
        The figure.

    Example:
        >>> import numpy as np, pyro_vae as pv
        >>> figure = pv.plots.image_grid(np.zeros((4, 2, 2)), "zeros")
        >>> figure.axes[0].images[0].get_array().shape  # with frames of one pixel
        (8, 8)

    See also: `mosaic`, `reconstructions`.
    """
    array = displayable(images)
    columns = columns or math.ceil(math.sqrt(len(array)))
    rows = math.ceil(len(array) / columns)
    blank = np.ones((rows * columns - len(array), *array.shape[1:]))
    cells = np.concatenate([array, blank])
    return _canvas(cells.reshape(rows, columns, *array.shape[1:]), title)


@checked
def reconstructions(
    originals: Images, reconstructed: Images, title: str, columns: Count = 10
) -> Figure:
    """Show originals in odd rows, with each reconstruction below its original.

    White lines separate the pairs of rows.

    Args:
        originals: Images of shape `(num_images, [channels,] height, width)`.
        reconstructed: Reconstructions of the same shape.
        title: Title of the figure.
        columns: Number of columns.

    Returns:
        The figure.

    Raises:
        ArgumentError: If originals and reconstructions have different shapes.

    Example:
        >>> import numpy as np, pyro_vae as pv
        >>> figure = pv.plots.reconstructions(np.zeros((2, 2, 2)), np.ones((2, 2, 2)), "toy")
        >>> figure.axes[0].images[0].get_array().shape
        (8, 8)

    See also: `image_grid`, `predictive`.
    """
    if np.shape(originals) != np.shape(reconstructed):
        raise ArgumentError(
            f"expected the same shapes, got {np.shape(originals)} for originals and "
            f"{np.shape(reconstructed)} for reconstructed"
        )
    pairs = np.stack([displayable(originals), displayable(reconstructed)])
    pairs = pairs[:, : pairs.shape[1] // columns * columns or None]
    columns = min(columns, pairs.shape[1])
    blocks = pairs.reshape(2, -1, columns, *pairs.shape[2:]).swapaxes(0, 1)
    cells = blocks.reshape(-1, columns, *pairs.shape[2:])
    labels = ["x", "E[x|z]"] * len(blocks)
    return _canvas(cells, title, Labels(labels), group=2)


@checked
def mosaic(
    images: Annotated[ArrayLike, IsImages("rows", "columns")],
    title: str,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    axis_labels: Sequence[str] = ("", ""),
) -> Figure:
    """Show images in given rows and columns.

    Args:
        images: Images of shape `(rows, columns, [channels,] height, width)`.
        title: Title of the figure.
        row_labels: Labels of the rows, from the top. Empty ones have no tick.
        column_labels: Labels of the columns.
        axis_labels: Labels of the horizontal and the vertical axis.

    Returns:
        The figure.

    Example:
        >>> import numpy as np, pyro_vae as pv
        >>> figure = pv.plots.mosaic(np.zeros((1, 3, 2, 2)), "zeros", ["row"])
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['row']

    See also: `image_grid`.
    """
    check_two(axis_labels=axis_labels)
    cells = np.stack([displayable(row) for row in np.asarray(images)])
    return _canvas(cells, title, Labels(row_labels, column_labels, axis_labels))


@checked
def predictive(
    tree: PredictiveTree, data: Sequence[int], title: str, plate: str = "data"
) -> Figure:
    """Show images x above the mean and three samples of the posterior predictive.

    Args:
        tree: Tree of `pyro_vae.from_pyro_svi` with `observed_data` and `posterior_predictive`.
        data: Indices of the data in `plate`.
        title: Title of the figure.
        plate: Name of the plate over the data.

    Returns:
        The figure.

    Example:
        >>> import numpy as np, pyro_vae as pv, xarray as xr
        >>> dims = ("data", "row", "column")
        >>> x = xr.Dataset({"x": (dims, np.zeros((1, 2, 2)))}, {"data": [0]})
        >>> drawn = x.expand_dims(chain=1, draw=4)
        >>> tree = xr.DataTree.from_dict({"observed_data": x, "posterior_predictive": drawn})
        >>> pv.plots.predictive(tree, [0], "toy").axes[0].images[0].get_array().shape
        (20, 4)

    See also: `reconstructions`.
    """
    check_rows(tree, "observed_data", plate, data)
    observed = tree["observed_data"].to_dataset().sel({plate: list(data)})
    (name,) = map(str, observed.data_vars)
    predicted = tree["posterior_predictive"].to_dataset()[name].sel({plate: list(data)})
    x, drawn = observed[name].to_numpy(), np.concatenate(predicted.to_numpy())
    rows = ["x", "mean", "draw", "draw", "draw"][: 2 + len(drawn)]
    return mosaic(np.stack([x, drawn.mean(0), *drawn[:3]]), title, rows)


def title_of(dataset: str, binarization: str, seed: int) -> str:
    """Return the first line of the titles of a run."""
    binarized = "" if binarization == "none" else f", {binarization} binarization"
    return f"{literal(dataset)}{binarized}, seed {seed}"


def literal(text: str) -> str:
    """Return text that matplotlib shows unchanged. It typesets text between dollar signs."""
    return text.replace("$", r"\$")


def displayable(images: ArrayLike) -> np.ndarray:
    """Return images of shape `(num_images, height, width)` or, in colour, `(..., width, 3)`."""
    array = np.clip(np.asarray(images, dtype=float), 0, 1)
    if array.ndim == 4:
        array = array[:, 0] if array.shape[1] == 1 else np.moveaxis(array, 1, -1)
    return array


@dataclass(frozen=True)
class Labels:
    """Labels of the rows and columns of a canvas, and of its axes."""

    rows: Sequence[str] | None = None
    columns: Sequence[str] | None = None
    axes: Sequence[str] = ("", "")


def _canvas(cells: np.ndarray, title: str, labels: Labels = Labels(), group: int = 0) -> Figure:
    """Show images in rows and columns, in frames of one pixel.

    Args:
        cells: Images of shape `(rows, columns, height, width[, 3])`.
        title: Title of the figure.
        labels: Labels of rows, columns and axes.
        group: Number of rows between white lines; 0 for none.
    """
    rows, columns, height, width = cells.shape[:4]
    padded = np.pad(cells, [(0, 0), (0, 0), (1, 1), (1, 1), *[(0, 0)] * (cells.ndim - 4)])
    strips = padded.swapaxes(1, 2).reshape(
        rows, height + 2, columns * (width + 2), *cells.shape[4:]
    )
    gap = max(2, height // 6)
    tops, parts = [], []
    for row, strip in enumerate(strips):
        if group and row and row % group == 0:
            parts.append(np.ones((gap, *strip.shape[1:])))
        tops.append(sum(map(len, parts)))
        parts.append(strip)
    picture = np.concatenate(parts)
    scale = min(0.5, 10 / columns, 14 / rows)
    size = scale / height  # inches of a pixel
    figure = Figure(
        figsize=(max(columns * scale * width / height, 4), size * len(picture) + 0.4),
        layout="constrained",
    )
    axes = figure.add_subplot(xlabel=labels.axes[0], ylabel=labels.axes[1])
    axes.set_title(title, fontsize=10)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    places = [top + (height + 2) / 2 - 0.5 for top in tops]
    axes.set_yticks(*_shown(places, labels.rows), fontsize=9)
    places = [(column + 0.5) * (width + 2) - 0.5 for column in range(columns)]
    axes.set_xticks(*_shown(places, labels.columns), fontsize=9)
    axes.tick_params(length=0)
    return figure


def _shown(places: list[float], names: Sequence[str] | None) -> tuple[list[float], list[str]]:
    """Return the places with a name, and their names."""
    found = [(place, name) for place, name in zip(places, names or (), strict=False) if name]
    return [place for place, _ in found], [name for _, name in found]
