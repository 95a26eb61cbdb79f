"""Plots of counts: the moments of data next to those of samples of a model."""

from typing import Annotated, TypeAlias

import numpy as np
from matplotlib.ticker import NullFormatter
from numpy.typing import ArrayLike

from pyro_vae.arguments import ArgumentError, checked
from pyro_vae.plots.encoding import Figure
from pyro_vae.plots.palette import BLUE, GREY
from pyro_vae.plots.values import IsArray

Counts: TypeAlias = Annotated[ArrayLike, IsArray((("num_data", "num_columns"),))]


@checked
def count_moments(data: Counts, model: Counts, title: str) -> Figure:
    """Compare variances, zeros and totals of counts with those of samples of a model.

    The panels show the variance against the mean of each column, the share of zeros of each column,
    and the distribution of the totals of the rows (library sizes).

    Args:
        data: Counts of shape `(num_data, num_columns)`.
        model: Sampled counts with the same columns.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ArgumentError: If data and model have different numbers of columns.

    Example:
        >>> import numpy as np, pyro_vae as pv
        >>> x = np.random.default_rng(0).poisson(3.0, (50, 4))
        >>> len(pv.plots.count_moments(x, x, "toy").axes)
        3

    See also: `marginals`.
    """
    x, drawn = np.asarray(data, float), np.asarray(model, float)
    if x.shape[1] != drawn.shape[1]:
        raise ArgumentError(
            f"expected the same columns, got {x.shape[1]} of data and {drawn.shape[1]} of model"
        )
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    moments, zeros, totals = figure.subplots(1, 3)
    for values, colour, label in ((x, GREY, "data"), (drawn, BLUE, "model")):
        mean, variance = values.mean(0), values.var(0)
        shown = (mean > 0) & (variance > 0)
        moments.scatter(
            mean[shown], variance[shown], s=6, alpha=0.5, color=colour, label=label, lw=0
        )
    low, high = x.mean(0)[x.mean(0) > 0].min(initial=1.0), x.mean(0).max(initial=1.0)
    moments.plot([low, high], [low, high], color="0.2", lw=1, ls="--", label="variance = mean")
    moments.set(xscale="log", yscale="log", xlabel="mean of a column", ylabel="variance")
    moments.xaxis.set_minor_formatter(NullFormatter())
    moments.legend(fontsize=8)
    zeros.scatter((x == 0).mean(0), (drawn == 0).mean(0), s=6, alpha=0.5, lw=0, color=BLUE)
    zeros.plot([0, 1], [0, 1], color="0.2", lw=1, ls="--")
    zeros.set(xlabel="share of zeros of a column, data", ylabel="share of zeros, model")
    sums, sampled = x.sum(1), drawn.sum(1)
    first, last = np.quantile(np.concatenate([sums, sampled]), [0.005, 0.995])
    bins = np.linspace(first, last, 31)
    if bins[-1] > bins[0]:
        totals.hist(np.clip(sums, bins[0], bins[-1]), bins, color=GREY, alpha=0.7, density=True)
        shown = np.clip(sampled, bins[0], bins[-1])
        totals.hist(shown, bins, color=BLUE, histtype="step", lw=1.4, density=True)
    totals.set(xlabel="total of a row", ylabel="density")
    figure.suptitle(title, fontsize=10)
    return figure
