"""Arrays to figures. Nothing here sees a model; each function returns a matplotlib `Figure`.

Figures are not kept by pyplot, so that drawing in a script changes no global state. Images are
arrays of shape `(..., height, width)` or `(..., channels, height, width)` with values in [0, 1].
"""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    import xarray as xr


def encoded(figure: Figure, kind: str = "png", **settings: Any) -> bytes:
    """Return a figure as the bytes of a file of this kind; the settings are those of `savefig`."""
    file = io.BytesIO()
    figure.savefig(file, format=kind, **settings)
    return file.getvalue()


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
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
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


def forest(tree: "xr.DataTree", data: Sequence[int], plate: str = "data") -> Figure:
    """Show means and intervals of the latents of some data, by their indices in `plate`."""
    import arviz_plots  # takes seconds

    return _figure_of(arviz_plots.plot_forest(tree, coords={plate: list(data)}))


def densities(tree: "xr.DataTree", data: Sequence[int], plate: str = "data") -> Figure:
    """Show the marginal posterior densities of the latents of some data."""
    import arviz_plots

    return _figure_of(arviz_plots.plot_dist(tree, coords={plate: list(data)}))


def pairs(
    tree: "xr.DataTree", datum: int, latents: Sequence[int] | None = None, plate: str = "data"
) -> Figure:
    """Scatter the latents of one datum against each other; `latents` picks of `latent_dim`."""
    import arviz_plots
    import xarray as xr

    one = tree["posterior"].to_dataset().sel({plate: datum}, drop=True)
    if latents is not None:
        one = one.sel(latent_dim=list(latents))
    return _figure_of(arviz_plots.plot_pair(xr.DataTree.from_dict({"posterior": one})))


def predictive(tree: "xr.DataTree", data: Sequence[int], title: str, plate: str = "data") -> Figure:
    """Show images x, above the mean of the posterior predictive, above three of its draws."""
    observed = tree["observed_data"].to_dataset().sel({plate: list(data)})
    (name,) = map(str, observed.data_vars)
    predicted = tree["posterior_predictive"].to_dataset()[name].sel({plate: list(data)})
    x, drawn = observed[name].to_numpy(), np.concatenate(predicted.to_numpy())
    rows = ["x", "mean", "draw", "draw", "draw"][: 2 + len(drawn)]
    return mosaic(np.stack([x, drawn.mean(0), *drawn[:3]]), title, rows)


def khat(elpd: Any, images: Any | None = None, count: int = 10) -> Figure:
    """Plot k-hat of each datum, and below it the images of the data with the highest.

    Args:
        elpd: of `pyro_vae.elpd_marginal`, or anything with its `pareto_k` and `good_k`.
        images: of all data, shape `(num_data, [channels,] height, width)`.
        count: how many images to show.
    """
    values = np.asarray(elpd.pareto_k).ravel()
    figure = Figure(figsize=(8, 4 if images is None else 5.5), layout="constrained")
    grid = figure.add_gridspec(
        1 if images is None else 2, 1, height_ratios=[3, 1][: 1 if images is None else 2]
    )
    axes = figure.add_subplot(grid[0], xlabel="datum", ylabel="k-hat")
    high = values > elpd.good_k
    axes.scatter(np.flatnonzero(~high), values[~high], s=6, label="relied on")
    axes.scatter(np.flatnonzero(high), values[high], s=6, color="C3", label="not relied on")
    axes.axhline(elpd.good_k, color="0.3", linestyle="--", lw=1)
    axes.set_title(f"log p(x) is not to be relied on for {high.mean():.1%} of {len(values)} data")
    axes.legend(loc="upper right")
    if images is not None:
        worst = np.argsort(-np.nan_to_num(values, nan=-np.inf))[:count]
        strip = np.concatenate(list(_displayable(np.asarray(images)[worst])), axis=1)
        below = figure.add_subplot(grid[1])
        below.imshow(strip, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        width = strip.shape[1] / len(worst)
        labels = [f"{i}: {values[i]:.2f}" for i in worst]
        below.set_xticks([(i + 0.5) * width for i in range(len(worst))], labels, fontsize=7)
        below.set_yticks([])
        below.set_title("the highest k-hat", fontsize=9)
    return figure


def calibration(tree: "xr.DataTree", coverage: bool = False) -> Figure:
    """Plot the ECDF of the SBC ranks minus the uniform's, with a simultaneous 99% envelope.

    With `coverage`, the ECDF of the levels of the central intervals that just hold the truth.
    """
    import arviz_plots

    return _figure_of(arviz_plots.plot_ecdf_pit(tree, coverage=coverage))


def gaps(approximation: Any, amortization: Any, title: str) -> Figure:
    """Show the two inference gaps, nats for each datum, sorted by their sum, and their means."""
    approximation, amortization = np.asarray(approximation), np.asarray(amortization)
    order = np.argsort(approximation + amortization)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="data, sorted", ylabel="nats")
    place = np.arange(len(order))
    for values, base, name in (
        (approximation, 0, "approximation gap"),
        (amortization, approximation[order], "amortization gap"),
    ):
        label = f"{name}, mean {values.mean():.2f}"
        axes.bar(place, values[order], bottom=base, width=1.0, label=label)
    axes.legend(loc="upper left")
    return figure


def kl_by_dimension(kl: Any, active: Any, title: str) -> Figure:
    """Show KL(q(z_i|x) || p(z_i)) in nats, the largest first; inactive units are grey."""
    kl, active = np.asarray(kl), np.asarray(active)
    order = np.argsort(-kl)
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="latent", ylabel="KL (nats)")
    colours = ["C0" if active[i] else "0.7" for i in order]
    axes.bar(range(len(order)), kl[order], color=colours)
    axes.set_xticks(range(len(order)), [str(i) for i in order], fontsize=7)
    return figure


def aggregate_posterior(draws: Any, title: str, count: int = 8) -> Figure:
    """Show one draw of z for each datum, in prior standard deviations, against N(0, 1).

    The latents that differ most from it come first.

    Args:
        draws: shape `(num_data, latent_dim)`.
        title: of the figure.
        count: how many latents to show.
    """
    draws = np.asarray(draws)
    off = np.abs(draws.mean(0)) + np.abs(np.log(draws.std(0)))
    chosen = np.argsort(-off)[:count]
    columns = math.ceil(math.sqrt(len(chosen)))
    rows = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(2.5 * columns, 2.2 * rows), layout="constrained")
    grid = np.linspace(-4, 4, 200)
    normal = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
    for place, i in enumerate(chosen):
        axes = figure.add_subplot(rows, columns, place + 1)
        shown = np.clip(draws[:, i], -4, 4)  # what lies outside stands in the outermost bins
        axes.hist(shown, bins=40, range=(-4, 4), density=True, alpha=0.6)
        axes.plot(grid, normal, color="0.2", lw=1)
        axes.set_title(
            f"z[{i}]: mean {draws[:, i].mean():.2f}, sd {draws[:, i].std():.2f}", fontsize=8
        )
        axes.set_yticks([])
    figure.suptitle(title, fontsize=9)
    return figure


def _figure_of(collection: Any) -> Figure:
    """Take the figure out of an ArviZ plot, and out of pyplot's list of open figures."""
    from matplotlib import pyplot

    figure = collection.viz["figure"].item()
    pyplot.close(figure)
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
