"""Plots of scores and latents."""

import math
from collections.abc import Sequence
from typing import Annotated, Protocol, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from pyro_vae.arguments import ArgumentError, Count, checked
from pyro_vae.plots import values as check
from pyro_vae.plots.encoding import Figure
from pyro_vae.plots.images import displayable, literal
from pyro_vae.plots.palette import BLUE, CLASSES, DARK, ORANGE, VERMILION

MAX_NAMED = 12  # classes with their names on a map

PerLatent: TypeAlias = Annotated[ArrayLike, check.IsArray((("latent_dim",),))]


@checked
def learning_curve(
    history: Annotated[Sequence[dict[str, float]], check.IsHistory()], title: str
) -> Figure:
    """Plot the ELBO in nats per datum against epochs, with the standard error in validation.

    Args:
        history: History of a training run (`Fit.history`).
        title: Title of the figure.

    Returns:
        The figure.

    Example:
        >>> import pyro_vae as pv
        >>> history = [{"epoch": 1, "train_elbo": -9.0}, {"epoch": 2, "train_elbo": -8.0}]
        >>> pv.plots.learning_curve(history, "toy").axes[0].get_ylabel()
        'ELBO (nats per datum)'

    See also: `pyro_vae.fit`, `pyro_vae.report`.
    """
    figure = Figure(figsize=(6, 4.4), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="epoch", ylabel="ELBO (nats per datum)")
    epochs = [entry["epoch"] for entry in history]
    is_elbo = all("train_elbo" in entry for entry in history)
    train = [entry["train_elbo" if is_elbo else "train_objective"] for entry in history]
    what = "training" if is_elbo else "training objective, not the ELBO"
    curves = [(f"{what} (running mean of the epoch)", BLUE, np.array(train), np.zeros(len(train)))]
    if all("validation_elbo" in entry for entry in history):
        validation = np.array([entry["validation_elbo"] for entry in history])
        error = np.array([entry["validation_elbo_se"] for entry in history])
        curves.append(("validation ± standard error", VERMILION, validation, error))
    _draw_curves(axes, epochs, curves)
    values = np.concatenate([values for _, _, values, _ in curves])
    finite = values[np.isfinite(values)]
    if len(epochs) > 4 and len(finite):
        # The large increase of the first epochs flattens the rest, which is shown again enlarged.
        top, low = finite.max(), np.quantile(finite, 0.25, method="higher")
        if finite.min() < low - 2 * (top - low):
            inset = axes.inset_axes((0.42, 0.1, 0.55, 0.6))
            _draw_curves(inset, epochs, curves)
            inset.set_ylim(low - 0.2 * (top - low), top + 0.1 * (top - low))
            inset.set_title("enlarged", fontsize=9)
            inset.tick_params(labelsize=8)
            inset.locator_params("y", nbins=4)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _draw_curves(
    axes: Axes, epochs: list[float], curves: Sequence[tuple[str, str, np.ndarray, np.ndarray]]
) -> None:
    """Draw curves of a label, a colour, values and their standard errors."""
    for label, colour, values, error in curves:
        axes.plot(epochs, values, marker=".", color=colour, label=label)
        if error.any():
            axes.fill_between(
                epochs, values - error, values + error, color=colour, alpha=0.25, lw=0
            )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


@checked
def latent_map(
    points: Annotated[ArrayLike, check.IsArray((("num_data", 2),))],
    labels: check.PerDatum | None,
    title: str,
    axis_labels: Sequence[str],
    class_names: Sequence[str] = (),
    prior_centre: Annotated[ArrayLike, check.IsArray(((2,),))] | None = None,
) -> Figure:
    """Show a scatter plot of two-dimensional latents.

    Args:
        points: Latents of shape `(num_data, 2)`.
        labels: Integer classes of shape `(num_data,)` for the colours, or None.
        title: Title of the figure.
        axis_labels: Labels of the two axes.
        class_names: Names of the classes, in the order of their numbers; by default the numbers.
        prior_centre: Place of the mean of a standard normal prior. Circles around it have radii of
            one and two standard deviations.

    Returns:
        The figure.

    Raises:
        ArgumentError: If there is not one label for each point, or a label has no class name.

    Example:
        >>> import numpy as np, pyro_vae as pv
        >>> figure = pv.plots.latent_map(np.eye(2), np.array([0, 1]), "toy", ("z1", "z2"))
        >>> len(figure.axes[0].collections)
        2

    See also: `aggregate_posterior`.
    """
    if labels is not None:
        check.check_same_length(points=points, labels=labels)
    check.check_two(axis_labels=axis_labels)
    points = np.asarray(points)
    size = min(20.0, max(2.0, 2000 / len(points)))
    figure = Figure(figsize=(6.5, 5.5), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=axis_labels[0], ylabel=axis_labels[1])
    if labels is None:
        axes.scatter(points[:, 0], points[:, 1], s=size, alpha=0.5, color=BLUE)
    else:
        labels = np.asarray(labels).astype(int)
        if len(class_names) and not 0 <= labels.min() <= labels.max() < len(class_names):
            raise ArgumentError(
                f"expected labels from 0 to {len(class_names) - 1}, the positions of class_names, "
                f"got {labels.min()} to {labels.max()}"
            )
        for place, label in enumerate(np.unique(labels)):
            chosen = points[labels == label]
            name = literal(class_names[label]) if len(class_names) else str(label)
            colour = CLASSES[place % len(CLASSES)]
            axes.scatter(chosen[:, 0], chosen[:, 1], s=size, alpha=0.5, color=colour, label=name)
            if len(np.unique(labels)) <= MAX_NAMED:
                _name(axes, np.median(chosen, axis=0), name, colour)
        axes.legend(
            title="class", markerscale=max(1, 10 / size), loc="center left", bbox_to_anchor=(1, 0.5)
        )
    if prior_centre is not None:
        x, y = np.asarray(prior_centre)
        for radius in (1, 2):
            axes.add_patch(Circle((x, y), radius, fill=False, color=DARK, ls="--", lw=1))
            _name(axes, np.array([x, y + radius]), f"{radius} sd of the prior", DARK, 8, "normal")
    axes.set_aspect("equal", adjustable="datalim")
    return figure


def _name(
    axes: Axes, place: np.ndarray, text: str, colour: str, size: float = 12, weight: str = "bold"
) -> None:
    """Write a text with a white outline at a place of the data."""
    outline = [withStroke(linewidth=3, foreground="white")]
    axes.annotate(
        text, tuple(place), ha="center", va="center", color=colour, fontsize=size, weight=weight,
        path_effects=outline,
    )  # fmt: skip


class WithKHat(Protocol):
    """An ELPD of ArviZ with a k-hat for each datum."""

    pareto_k: ArrayLike
    good_k: float


@checked
def khat(
    elpd: Annotated[WithKHat, check.HasKHat()],
    images: check.Images | None = None,
    count: Count = 10,
) -> Figure:
    """Plot k-hat of each datum above the images with the highest k-hat.

    Infinite values are triangles above the finite ones, and -inf, of equal weights, below them.

    Args:
        elpd: Result of `pyro_vae.elpd_marginal`, or an object with `pareto_k` and `good_k`.
        images: Images of all data, shape `(num_data, [channels,] height, width)`, or None.
        count: Number of images to show.

    Returns:
        The figure.

    Example:
        >>> from types import SimpleNamespace
        >>> import numpy as np, pyro_vae as pv
        >>> elpd = SimpleNamespace(pareto_k=np.array([0.1, 0.9]), good_k=0.7)
        >>> pv.plots.khat(elpd).axes[0].get_title()
        'log p(x) is unreliable for 50.0% of 2 data'

    See also: `pyro_vae.elpd_marginal`, `pyro_vae.diagnose`.
    """
    values = np.asarray(elpd.pareto_k).ravel()
    if images is not None:
        check.check_same_length(pareto_k=values, images=images)
    figure = Figure(figsize=(8, 4 if images is None else 5.5), layout="constrained")
    grid = figure.add_gridspec(
        1 if images is None else 2, 1, height_ratios=[3, 1][: 1 if images is None else 2]
    )
    axes = figure.add_subplot(grid[0], xlabel="datum", ylabel="k-hat")
    high, infinite = values > elpd.good_k, np.isinf(values)
    finite = values[np.isfinite(values)]
    low, top = finite.min(initial=0), finite.max(initial=elpd.good_k)
    shown = np.clip(values, low - 0.1 * (top - low), top + 0.1 * (top - low))
    kinds = [
        (~high & ~infinite, BLUE, "o", "reliable"),
        (high & ~infinite, VERMILION, "o", "unreliable"),
        (~high & infinite, BLUE, "v", "equal weights"),
        (high & infinite, VERMILION, "^", "infinite"),
    ]
    for chosen, colour, marker, label in kinds:
        if chosen.any() or marker == "o":
            place = np.flatnonzero(chosen)
            size = 6 if marker == "o" else 16
            axes.scatter(place, shown[chosen], s=size, color=colour, marker=marker, label=label)
    axes.axhline(elpd.good_k, color="0.3", linestyle="--", lw=1)
    axes.set_title(f"log p(x) is unreliable for {high.mean():.1%} of {len(values)} data")
    axes.legend(loc="upper right")
    if images is not None:
        worst = np.argsort(-values)[:count]
        strip = np.concatenate(list(displayable(np.asarray(images)[worst])), axis=1)
        below = figure.add_subplot(grid[1])
        below.imshow(strip, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        width = strip.shape[1] / len(worst)
        labels = [f"{i}: {values[i]:.2f}" for i in worst]
        below.set_xticks([(i + 0.5) * width for i in range(len(worst))], labels, fontsize=8)
        below.set_yticks([])
        below.set_title("highest k-hat", fontsize=9)
    return figure


@checked
def gaps(approximation: check.PerDatum, amortization: check.PerDatum, title: str) -> Figure:
    """Show the two inference gaps of each datum in nats, sorted by their sum.

    Args:
        approximation: Approximation gaps of shape `(num_data,)`.
        amortization: Amortization gaps of shape `(num_data,)`.
        title: Title of the figure.

    Returns:
        The figure.

    Example:
        >>> import pyro_vae as pv
        >>> figure = pv.plots.gaps([0.5, 1.5], [0.1, 0.3], "toy")
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['approximation gap, mean 1.00', 'amortization gap, mean 0.20']

    See also: `pyro_vae.gaps`.
    """
    check.check_same_length(approximation=approximation, amortization=amortization)
    approximation, amortization = np.asarray(approximation), np.asarray(amortization)
    order = np.argsort(approximation + amortization)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="data, sorted", ylabel="nats")
    place = np.arange(len(order))
    for values, base, name, colour in (
        (approximation, 0, "approximation gap", BLUE),
        (amortization, approximation[order], "amortization gap", ORANGE),
    ):
        label = f"{name}, mean {values.mean():.2f}"
        axes.bar(place, values[order], bottom=base, width=1.0, label=label, color=colour)
    axes.legend(loc="upper left")
    return figure


@checked
def kl_by_dimension(kl: PerLatent, active: PerLatent, title: str) -> Figure:
    """Show KL(q(z_i|x) || p(z_i)) of each latent in nats, in descending order.

    Args:
        kl: KL divergences of shape `(latent_dim,)`.
        active: Whether each latent is active; inactive latents are grey.
        title: Title of the figure.

    Returns:
        The figure.

    Example:
        >>> import pyro_vae as pv
        >>> figure = pv.plots.kl_by_dimension([0.0, 2.0], [False, True], "toy")
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['1', '0']

    See also: `pyro_vae.collapse`, `aggregate_posterior`.
    """
    check.check_same_length(kl=kl, active=active)
    kl, active = np.asarray(kl), np.asarray(active)
    order = np.argsort(-kl)
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="latent", ylabel="KL (nats)")
    colours = [BLUE if active[i] else "0.7" for i in order]
    axes.bar(range(len(order)), kl[order], color=colours)
    axes.set_xticks(range(len(order)), [str(i) for i in order], fontsize=8)
    return figure


@checked
def aggregate_posterior(
    draws: Annotated[ArrayLike, check.IsArray((("num_data", "latent_dim"),))],
    title: str,
    count: Count = 8,
) -> Figure:
    """Compare one sample of z for each datum, in prior standard deviations, with N(0, 1).

    The latents that differ most come first.

    Args:
        draws: Samples of shape `(num_data, latent_dim)`.
        title: Title of the figure.
        count: Number of latents to show.

    Returns:
        The figure.

    Example:
        >>> import numpy as np, pyro_vae as pv
        >>> draws = np.random.default_rng(0).normal(size=(20, 3))
        >>> len(pv.plots.aggregate_posterior(draws, "toy", count=2).axes)
        2

    See also: `pyro_vae.collapse`, `kl_by_dimension`.
    """
    draws = np.asarray(draws)
    with np.errstate(divide="ignore"):  # of a latent with one value
        off = np.abs(draws.mean(0)) + np.abs(np.log(draws.std(0)))
    chosen = np.argsort(-off)[:count]
    columns = math.ceil(math.sqrt(len(chosen)))
    rows = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(2.5 * columns, 2.2 * rows), layout="constrained")
    grid = np.linspace(-4, 4, 200)
    normal = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
    for place, i in enumerate(chosen):
        axes = figure.add_subplot(rows, columns, place + 1)
        shown = np.clip(draws[:, i], -4, 4)  # outliers are counted in the outermost bins
        axes.hist(shown, bins=40, range=(-4, 4), density=True, alpha=0.6, color=BLUE)
        axes.plot(grid, normal, color="0.2", lw=1)
        axes.set_title(
            f"z[{i}]: mean {draws[:, i].mean():.2f}, sd {draws[:, i].std():.2f}", fontsize=8
        )
        axes.set_yticks([])
    figure.suptitle(title, fontsize=9)
    return figure
