"""Plots of tables: the columns of data next to samples of a model.

A column is an array of numbers with NaN for missing values. If it has levels, its numbers are
positions in their list.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from pyro_vae.arguments import ArgumentError, checked
from pyro_vae.plots.encoding import Figure
from pyro_vae.plots.palette import BLUE, ORANGE, VERMILION
from pyro_vae.plots.values import Columns, IsArray, IsColumns, IsLevels, IsPairs, check_same_length

PerColumn: TypeAlias = Annotated[ArrayLike, IsArray((("num_columns",),), finite=False)]
Levels: TypeAlias = Annotated[Mapping[str, Sequence[object]], IsLevels()]

DATA, MODEL = "0.45", BLUE  # colours
MAX_BARS = 25  # values of a whole number that are drawn as bars
SHORT = 14  # characters of a level


@checked
def marginals(data: Columns, model: Columns, title: str, levels: Levels | None = None) -> Figure:
    """Compare the distribution of each column in data with that in samples of a model.

    Numbers are histograms from the 0.5% to the 99.5% quantile of the data, with the values outside
    in the outermost bins. The axis is logarithmic if positive numbers span a factor of 100. Columns
    of few whole numbers and columns with levels are bars.

    Args:
        data: Values of each column by name, such as a frame of numbers.
        model: Sampled values of the same columns.
        title: Title of the figure.
        levels: Levels of the columns that have them.

    Returns:
        The figure.

    Example:
        >>> import numpy as np, pyro_vae as pv
        >>> x = {"age": np.linspace(20, 60, 50), "member": np.arange(50) % 2}
        >>> figure = pv.plots.marginals(x, x, "toy", {"member": ["no", "yes"]})
        >>> [axes.get_title() for axes in figure.axes]
        ['age', 'member']

    See also: `dependence`, `imputation_errors`.
    """
    _check_columns(data, data, model)
    columns = list(data)
    width = min(5, math.ceil(math.sqrt(len(columns))))
    height = math.ceil(len(columns) / width)
    figure = Figure(figsize=(2.6 * width + 0.6, 2.1 * height + 0.7), layout="constrained")
    for place, name in enumerate(columns):
        axes = figure.add_subplot(height, width, place + 1)
        axes.set_title(_text(name, 28), fontsize=9)
        axes.tick_params(labelsize=8)
        axes.set_yticks([])
        names = (levels or {}).get(name)
        _compare(axes, _observed(data[name]), _observed(model[name]), names)
    drawn = [axes for axes in figure.axes if axes.get_legend_handles_labels()[0]]
    if drawn:
        drawn[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def _compare(
    axes: Axes, data: np.ndarray, model: np.ndarray, levels: Sequence[object] | None
) -> None:
    if not len(data):
        axes.text(0.5, 0.5, "no values", ha="center", transform=axes.transAxes, fontsize=8)
        return
    values = np.unique(data)
    whole = bool((values == np.round(values)).all())
    if levels is None and not (whole and values[-1] - values[0] < MAX_BARS):
        low, high = np.quantile(data, [0.005, 0.995])
        number = int(np.clip(2 * math.sqrt(len(data)), 8, 30))
        bins = np.linspace(low, high if high > low else low + 1, number + 1)
        if low > 0 and high > 100 * low:
            bins = np.geomspace(low, high, number + 1)
            axes.set_xscale("log")
        else:
            axes.locator_params("x", nbins=5)
        for x, colour, label in ((data, DATA, "data"), (model, MODEL, "model")):
            outline = {"histtype": "step", "lw": 1.4} if label == "model" else {"alpha": 0.7}
            weights = np.full(len(x), 1 / max(len(x), 1))
            x = np.clip(x, bins[0], bins[-1])
            axes.hist(x, list(bins), weights=weights, color=colour, label=label, **outline)
        return
    places = np.arange(len(levels)) if levels else np.arange(values[0], values[-1] + 1)
    for x, colour, label, shift in ((data, DATA, "data", -0.2), (model, MODEL, "model", 0.2)):
        x = np.clip(np.round(x), places[0], places[-1])
        shares = [np.count_nonzero(x == place) / max(len(x), 1) for place in places]
        axes.bar(places + shift, shares, 0.4, color=colour, label=label)
    if levels:
        step = max(1, math.ceil(len(levels) / 12))
        names = [_text(level, SHORT) for level in levels]
        sideways = max(map(len, names)) * len(names[::step]) > 24
        axes.set_xticks(places[::step], names[::step], rotation=90 if sideways else 0)
    else:
        axes.locator_params("x", integer=True)


@checked
def dependence(
    pairs: Annotated[Sequence[tuple[str, str]], IsPairs()],
    data: Columns,
    model: Columns,
    title: str,
    levels: Levels | None = None,
) -> Figure:
    """Show scatter plots of pairs of columns: data in the first row, samples in the second.

    Values with levels are shifted at random, so that equal points do not hide each other.

    Args:
        pairs: Names of the columns of each pair.
        data: Values of each column by name.
        model: Sampled values of the same columns.
        title: Title of the figure.
        levels: Levels of the columns that have them.

    Returns:
        The figure.

    Example:
        >>> import numpy as np, pyro_vae as pv
        >>> x = {"a": np.arange(9.0), "b": np.arange(9.0) ** 2}
        >>> len(pv.plots.dependence([("a", "b")], x, x, "toy").axes)
        2

    See also: `marginals`.
    """
    _check_columns([name for pair in pairs for name in pair], data, model)
    levels, jitter = levels or {}, np.random.default_rng(0)
    figure = Figure(figsize=(2.7 * len(pairs) + 0.5, 5.2), layout="constrained")
    grid = figure.subplots(2, len(pairs), sharex="col", sharey="col", squeeze=False)
    for column, names in enumerate(pairs):
        for row, (values, colour) in enumerate(((data, DATA), (model, MODEL))):
            axes = grid[row, column]
            x, y = (
                np.asarray(values[name], float)
                + (jitter.uniform(-0.3, 0.3, np.shape(values[name])) if name in levels else 0)
                for name in names
            )
            size = min(20.0, max(4.0, 2000 / len(x)))
            axes.scatter(x, y, s=size, alpha=0.5, color=colour, linewidths=0)
            axes.tick_params(labelsize=8)
            axes.set_ylabel(f"{'model' if row else 'data'}\n" if column == 0 else "", fontsize=9)
        axes.set_xlim(_limits(data[names[0]], levels.get(names[0])))
        axes.set_ylim(_limits(data[names[1]], levels.get(names[1])))
        axes.set_xlabel(_text(names[0], 28), fontsize=9)
        grid[0, column].set_title(f"{_text(names[1], 24)} (vertical)", fontsize=9)
        for name, axis in zip(names, (axes.xaxis, axes.yaxis), strict=True):
            if name in levels and len(levels[name]) <= 8:
                ticks = [_text(level, 8) for level in levels[name]]
                axis.set_ticks(range(len(ticks)), ticks)
    figure.suptitle(title, fontsize=10)
    return figure


def _limits(values: ArrayLike, levels: Sequence[object] | None) -> tuple[float, float]:
    """Return the ends of an axis that shows all data, and all levels with their random shifts."""
    if levels is not None:
        return -0.5, len(levels) - 0.5
    observed = _observed(values)
    low, high = (observed.min(), observed.max()) if len(observed) else (0.0, 1.0)
    margin = 0.1 * (high - low) + 0.05
    return float(low - margin), float(high + margin)


@checked
def imputation_errors(
    names: Sequence[str],
    error: PerColumn,
    baseline: PerColumn,
    coverage: Annotated[Mapping[float, ArrayLike], IsColumns("shares by probability")],
    title: str,
) -> Figure:
    """Show the errors of imputed entries of each column, and the coverage of their intervals.

    Args:
        names: Names of the columns.
        error: Error of each column, for example a root mean square error.
        baseline: Error of a simple imputation, such as the column's mean.
        coverage: Share of the entries inside their interval, for each nominal probability; NaN for
            columns without intervals.
        title: Title of the figure.

    Returns:
        The figure.

    Example:
        >>> import pyro_vae as pv
        >>> figure = pv.plots.imputation_errors(["a"], [0.5], [1.0], {0.5: [0.48]}, "toy")
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['mean or mode of the column', 'model']

    See also: `marginals`.
    """
    check_same_length(names=names, error=error, baseline=baseline)
    for shares in coverage.values():
        check_same_length(names=names, coverage=shares)
    places = np.arange(len(names))
    figure = Figure(figsize=(9, 0.32 * len(names) + 1.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    left.barh(places + 0.2, baseline, 0.4, color=DATA, label="mean or mode of the column")
    left.barh(places - 0.2, error, 0.4, color=MODEL, label="model")
    left.set_yticks(places, [_text(name, 24) for name in names], fontsize=8)
    left.invert_yaxis()
    left.set_xlabel("RMSE in standard deviations; error rate of levels", fontsize=9)
    left.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1 + 0.9 / len(names)), ncols=2)
    for (nominal, shares), colour in zip(
        coverage.items(), itertools.cycle((VERMILION, ORANGE)), strict=False
    ):
        right.axvline(nominal, color=colour, lw=1, ls="--")
        right.scatter(shares, places, color=colour, s=16, label=f"{nominal:.0%} interval")
    right.set_xlim(0, 1.02)
    right.set_xlabel("share of hidden values inside their interval", fontsize=9)
    right.legend(
        fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1 + 0.9 / len(names)), ncols=2
    )
    figure.suptitle(title, fontsize=10)
    return figure


def _check_columns(names: Iterable[str], *tables: Columns) -> None:
    """Raise `ArgumentError` if a table lacks a column."""
    names = list(names)
    for table in tables:
        if any(name not in table for name in names):
            raise ArgumentError(f"expected the columns {names}, got {list(table)}")
    if not names:
        raise ArgumentError("expected the names of some columns, got none")


def _observed(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    return array[np.isfinite(array)]


def _text(value: object, length: int) -> str:
    """Return a text of at most this length that matplotlib shows unchanged."""
    text = str(value)
    return (text if len(text) <= length else f"{text[: length - 1]}…").replace("$", r"\$")
