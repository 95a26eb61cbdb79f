"""Checks of the values that are plotted: arrays, columns of tables, histories and trees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from pyro_vae.arguments import ArgumentError, Check, Unfit, shown

if TYPE_CHECKING:
    import xarray as xr

CHANNELS = (1, 3)  # of images


def numbers_of(value: object) -> np.ndarray:
    """Return numbers as an array of numpy in float64; raise `Unfit` for other values."""
    try:
        if detach := getattr(value, "detach", None):  # of a tensor; plots do without torch
            value = detach().to_dense().cpu().double()
        array = np.asarray(value)
        numbers = array.astype(float) if array.dtype.kind in "biuf" else None
    except (TypeError, ValueError, RuntimeError):  # of several lengths, without values, ...
        raise Unfit from None
    if numbers is None:
        raise Unfit
    return numbers


@dataclass(frozen=True)
class IsArray(Check):
    """Numbers in an array, tensor or list, at least one of them.

    Args:
        *shapes: Accepted shapes. A string names a dimension of any size.
        finite: Whether NaN and infinities are excluded.
    """

    shapes: tuple[tuple[str | int, ...], ...]
    finite: bool = True

    @property
    def expected(self) -> str:  # type: ignore[override]
        """Description of the shapes."""
        kind = "an array of finite numbers" if self.finite else "an array of numbers"
        shapes = " or ".join(f"({', '.join(map(str, shape))})" for shape in self.shapes)
        return f"{kind} of shape {shapes}"

    def convert(self, value: object) -> np.ndarray:
        """Return an array of numpy in float64."""
        array = numbers_of(value)
        fits = (
            len(shape) == array.ndim
            and all(isinstance(e, str) or e == n for e, n in zip(shape, array.shape, strict=True))
            for shape in self.shapes
        )
        if not any(fits) or not array.size:
            raise Unfit
        if self.finite and not np.isfinite(array).all():
            raise Unfit("it has values that are not finite")
        return array


class IsImages(IsArray):
    """Images, grey or in colour. Pixels may be NaN."""

    def __init__(self, *leading: str) -> None:
        shapes: list[tuple[str | int, ...]] = [(*leading, "height", "width")]
        shapes += [(*leading, channels, "height", "width") for channels in CHANNELS]
        super().__init__(tuple(shapes), finite=False)


@dataclass(frozen=True)
class IsColumns(Check):
    """Columns of numbers by name, such as a frame."""

    expected: str = "columns of numbers by name, such as a frame"

    def convert(self, value: object) -> dict[str, np.ndarray]:
        """Return the columns by name."""
        names = value.keys() if isinstance(value, Mapping) else getattr(value, "columns", ())
        if isinstance(value, type) or not len(names):
            raise Unfit
        found = {}
        for name in names:
            try:
                column = numbers_of(value[name])  # type: ignore[index]
            except (Unfit, KeyError, TypeError):
                raise Unfit(f"the column {shown(name)} has no numbers") from None
            if column.ndim != 1:
                raise Unfit(f"the column {shown(name)} has {column.ndim} dimensions")
            found[name] = column
        return found


class IsPairs(Check):
    """Pairs of names."""

    expected = "pairs of the names of columns"

    def convert(self, value: object) -> list[tuple[object, object]]:
        """Return the pairs."""
        try:
            pairs = [tuple(pair) for pair in value]  # type: ignore[attr-defined]
            hash(tuple(pairs))
        except TypeError:
            raise Unfit from None
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise Unfit
        return pairs


class IsLevels(Check):
    """Sequences of levels by the names of columns."""

    expected = "the levels of columns by name, each a sequence"

    def convert(self, value: object) -> object:
        """Return the levels."""
        if not isinstance(value, Mapping):
            raise Unfit
        for levels in value.values():
            if isinstance(levels, str | bytes) or not isinstance(levels, Sequence) or not levels:
                raise Unfit(f"{shown(levels)} is not one")
        return value


class IsHistory(Check):
    """The history of a training run."""

    expected = "the history of a run, such as Fit.history, with at least one epoch"

    def convert(self, value: object) -> object:
        """Return the history."""
        if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not len(value):
            raise Unfit
        for entry in value:
            if not isinstance(entry, Mapping) or "epoch" not in entry:
                raise Unfit("each entry has an epoch and an ELBO")
            if not {"train_elbo", "train_objective"} & entry.keys():
                raise Unfit("each entry has a train_elbo or a train_objective")
            curves = [entry[name] for name in entry if name != "epoch"]
            if not all(isinstance(number, int | float) for number in [entry["epoch"], *curves]):
                raise Unfit("each value is a number")
        return value


class IsTree(Check):
    """A tree of xarray with some groups."""

    def __init__(self, *groups: str, source: str = "pyro_vae.from_pyro_svi") -> None:
        self.groups = groups
        self.expected = f"a tree of {source} with {' and '.join(groups)}"

    def convert(self, value: object) -> object:
        """Return the tree."""
        import xarray as xr  # slow to import

        if not isinstance(value, xr.DataTree) or not set(self.groups) <= set(value.children):
            raise Unfit
        return value


class HasKHat(Check):
    """An object with k-hat of each datum."""

    expected = "the result of pyro_vae.elpd_marginal, or an object with pareto_k and good_k"

    def convert(self, value: object) -> object:
        """Return the object."""
        limit = getattr(value, "good_k", None)
        if (
            not isinstance(limit, int | float)
            or not numbers_of(getattr(value, "pareto_k", ())).size
        ):
            raise Unfit
        return value


PerDatum: TypeAlias = Annotated[ArrayLike, IsArray((("num_data",),))]
Images: TypeAlias = Annotated[ArrayLike, IsImages("num_images")]
Columns: TypeAlias = Annotated[Mapping[str, ArrayLike], IsColumns()]
PredictiveTree: TypeAlias = Annotated[
    "xr.DataTree", IsTree("observed_data", "posterior_predictive")
]
Posterior: TypeAlias = Annotated["xr.DataTree", IsTree("posterior")]


def check_same_length(**arguments: object) -> None:
    """Check that arguments have the same length.

    Raises:
        ArgumentError: If they have not.
    """
    lengths = {name: len(np.asarray(value)) for name, value in arguments.items()}
    if len(set(lengths.values())) > 1:
        text = ", ".join(f"{length} for {name}" for name, length in lengths.items())
        raise ArgumentError(f"expected the same length, got {text}")


def check_two(**argument: Sequence[str]) -> None:
    """Raise `ArgumentError` if a sequence has not two entries."""
    for name, value in argument.items():
        if len(value) != 2:
            raise ArgumentError(f"expected two {name}, got {len(value)}")


def check_rows(tree: "xr.DataTree", group: str, dim: str, labels: Sequence[object]) -> None:
    """Check that labels are among those of a dimension of a group, each of them once.

    Raises:
        ArgumentError: If one is not, there is none, or no variable has this dimension.
    """
    dataset = tree[group].to_dataset()
    if dim not in dataset.dims:
        names = sorted(map(str, dataset.dims))
        raise ArgumentError(f"expected one of the dimensions {names}, got {shown(dim)}")
    known = dataset[dim].to_numpy().tolist()
    given = list(labels) if isinstance(labels, Sequence | np.ndarray) else [None]
    kinds = str | int | np.integer
    single = [isinstance(label, kinds) and not isinstance(label, bool) for label in given]
    if not given or not all(single) or not set(given) <= set(known) or len(set(given)) < len(given):
        raise ArgumentError(
            f"expected different entries of {dim!r}, from {known[0]} to {known[-1]}, got "
            f"{shown(labels)}"
        )
