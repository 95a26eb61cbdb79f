"""Plots of images.

Images are arrays of shape `(..., height, width)` or `(..., channels, height, width)` with values in
[0, 1].
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from pyro_vae.plots.encoding import Figure

if TYPE_CHECKING:
    import xarray as xr


def image_grid(images: ArrayLike, title: str, columns: int | None = None) -> Figure:
    """Show images in a grid.

    Args:
        images: Images of shape `(num_images, [channels,] height, width)`.
        title: Title of the figure.
        columns: Number of columns; by default the grid is about square.

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


def reconstructions(
    originals: ArrayLike, reconstructed: ArrayLike, title: str, columns: int = 10
) -> Figure:
    """Show originals in odd rows, with each reconstruction below its original.

    Args:
        originals: Images of shape `(num_images, [channels,] height, width)`.
        reconstructed: Reconstructions of the same shape.
        title: Title of the figure.
        columns: Number of columns.

    Example:
        >>> import numpy as np, pyro_vae as pv
        >>> figure = pv.plots.reconstructions(np.zeros((2, 2, 2)), np.ones((2, 2, 2)), "toy")
        >>> figure.axes[0].images[0].get_array().shape
        (8, 8)

    See also: `image_grid`, `predictive`.
    """
    pairs = np.stack([displayable(originals), displayable(reconstructed)])
    pairs = pairs[:, : pairs.shape[1] // columns * columns or None]
    columns = min(columns, pairs.shape[1])
    blocks = pairs.reshape(2, -1, columns, *pairs.shape[2:]).swapaxes(0, 1)
    return _canvas(blocks.reshape(-1, columns, *pairs.shape[2:]), title)


def mosaic(images: ArrayLike, title: str, row_labels: Sequence[str] | None = None) -> Figure:
    """Show images in given rows and columns.

    Args:
        images: Images of shape `(rows, columns, [channels,] height, width)`.
        title: Title of the figure.
        row_labels: Labels of the rows.

    Example:
        >>> import numpy as np, pyro_vae as pv
        >>> figure = pv.plots.mosaic(np.zeros((1, 3, 2, 2)), "zeros", ["row"])
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['row']

    See also: `image_grid`.
    """
    cells = np.stack([displayable(row) for row in np.asarray(images)])
    return _canvas(cells, title, row_labels)


def predictive(tree: "xr.DataTree", data: Sequence[int], title: str, plate: str = "data") -> Figure:
    """Show images x above the mean and three samples of the posterior predictive.

    Args:
        tree: Tree of `pyro_vae.from_pyro_svi` with `observed_data` and `posterior_predictive`.
        data: Indices of the data in `plate`.
        title: Title of the figure.
        plate: Name of the plate over the data.

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
    observed = tree["observed_data"].to_dataset().sel({plate: list(data)})
    (name,) = map(str, observed.data_vars)
    predicted = tree["posterior_predictive"].to_dataset()[name].sel({plate: list(data)})
    x, drawn = observed[name].to_numpy(), np.concatenate(predicted.to_numpy())
    rows = ["x", "mean", "draw", "draw", "draw"][: 2 + len(drawn)]
    return mosaic(np.stack([x, drawn.mean(0), *drawn[:3]]), title, rows)


def literal(text: str) -> str:
    """Return text that matplotlib shows unchanged. It typesets text between dollar signs."""
    return text.replace("$", r"\$")


def displayable(images: ArrayLike) -> np.ndarray:
    """Return images of shape `(num_images, height, width)` or, in colour, `(..., width, 3)`."""
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
