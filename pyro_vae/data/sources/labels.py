"""Labels: the names of the classes of rows, which are not modelled, from columns of any type."""

import warnings
from collections.abc import Sequence

import narwhals as nw
import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.errors import DataError, DataWarning
from pyro_vae.data.sources import frames
from pyro_vae.data.sources.texts import Texts


def names_in(series: nw.Series) -> list[str]:
    """Return the name of the class of each row, empty for missing ones.

    Whole numbers are written as integers, since a column with missing values may hold them as
    floats.
    """
    if series.dtype.is_float():
        numbers = frames.values_of(series, "real")[0]
        return [
            "" if v != v else f"{v:.0f}" if v.is_integer() else str(v) for v in numbers.tolist()
        ]
    return Texts.of(series).all.tolist()


def classes_in(series: nw.Series) -> list[str]:
    """Return the names of all classes: integers by size, others by name.

    Raises:
        DataError: If the values are dates, or numbers that are not whole.
    """
    names = names_in(series)
    distinct = {*names}
    if frames.type_of(series, ["text"]) in ("integer", "real"):
        if fractions := [name for name in names if name and not name.lstrip("-").isdigit()]:
            raise DataError(
                f"column {series.name!r}, row {names.index(fractions[0])}: expected classes as "
                f"text, integers or truth values, got the number {fractions[0]}. Choose another "
                "column of labels, or convert the numbers to classes"
            )
        return sorted(distinct, key=lambda name: int(name) if name else -np.inf)
    if frames.type_of(series, ["text"]) == "date":
        raise DataError(
            f"column {series.name!r}: expected classes as text, integers or truth values, got "
            "dates. Choose another column of labels, or convert it to text"
        )
    return sorted(distinct)


def codes_of(names: Sequence[str], classes: Sequence[str], source: str) -> Tensor | None:
    """Return the number of the class of each row; None if a class is unknown.

    Labels are not modelled, so data with other ones are scored without classes.

    Args:
        names: Names of the classes of rows.
        classes: Names of the known classes.
        source: Name of the column, for the warning.

    Warns:
        DataWarning: If a class is unknown.
    """
    number = {name: i for i, name in enumerate(classes)}
    unknown = [row for row, name in enumerate(names) if name not in number]
    if unknown:
        warnings.warn(
            f"{source}, row {unknown[0]}: unknown class {names[unknown[0]]!r} ({len(unknown)} such "
            f"rows); expected one of {list(classes)[:10]}. The data have no classes",
            DataWarning,
            stacklevel=4,
        )
        return None
    return torch.tensor([number[name] for name in names])
