"""Columns of text: which of them are numbers or dates."""

import datetime
import decimal
import re
from collections.abc import Callable
from dataclasses import dataclass

import narwhals as nw
import numpy as np

from pyro_vae.arguments import setting
from pyro_vae.data.errors import DataError

MOSTLY = 0.5  # text of which a larger share is numbers or dates has faulty values, not levels
VALUES = (str, bool, int, float, np.generic, decimal.Decimal, datetime.date)  # of object columns

_DATE = re.compile(
    r"\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?( ?(Z|[+-]\d{2}:?\d{2}))?)?"
)
_NUMBER = re.compile(
    r"\s*[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?\s*|[-+]?inf(inity)?|nan", re.IGNORECASE | re.ASCII
)
# Forms of text that people mean as dates or numbers, but that are not read as such.
_OTHER_DATE = re.compile(r"\d{1,4}([./-])\d{1,2}\1\d{1,4}([ T]\d{1,2}:\d{2}.*)?")
_OTHER_NUMBER = re.compile(r"[-+]?[$€£]?\s?\d+([., ']\d{3})*([.,]\d+)?\s?[%$€£]?")


@dataclass(frozen=True)
class Texts:
    """The values of a column as text.

    Attributes:
        name: Name of the column.
        distinct: Different values, in the order of the column.
        codes: Position of each value in `distinct`, -1 for missing ones.
    """

    name: str
    distinct: np.ndarray
    codes: np.ndarray

    @classmethod
    def of(cls, series: nw.Series) -> "Texts":
        """Return a column as text. Missing are null, NaN, NaT, and blank text.

        Raises:
            DataError: If a value is a list, bytes or of another class that is no scalar.
        """
        import pandas as pd

        values = pd.Series(series.to_list(), dtype=object)
        missing = values.isna().to_numpy()
        if not all(issubclass(cls, VALUES) for cls in {*map(type, values[~missing])}):
            wrong = [not isinstance(value, VALUES) for value in values[~missing]]
            row = int(np.flatnonzero(~missing)[np.argmax(wrong)])
            raise DataError(
                f"column {series.name!r}, row {row}: got a {type(values[row]).__name__}; expected "
                "numbers, truth values, dates or text. Leave the column out or convert it"
            )
        found, distinct = pd.factorize(values.where(missing, values.map(str)))
        texts = np.array([str(text) for text in distinct], dtype=object)
        blank = np.array([not text.strip() for text in texts], dtype=bool)
        kept = np.append(np.where(blank, -1, np.cumsum(~blank) - 1), -1)  # of code -1, too
        return cls(series.name, texts[~blank], kept[found])

    @property
    def missing(self) -> np.ndarray:
        """Mask of missing values."""
        return self.codes < 0

    @property
    def all(self) -> np.ndarray:
        """The text of each row, empty for missing ones."""
        return np.append(self.distinct, "")[self.codes]

    def matches(self, pattern: re.Pattern[str]) -> np.ndarray:
        """Return the mask of rows with text in a form."""
        return self._each([pattern.fullmatch(text) is not None for text in self.distinct], False)

    def are(self, type: str) -> np.ndarray:
        """Return the mask of rows with text of a type."""
        if type == "text":
            return ~self.missing
        if type == "boolean":
            return self._each([text in ("True", "False") for text in self.distinct], False)
        return self.matches(_DATE if type == "date" else _NUMBER)

    def numbers(self) -> np.ndarray:
        """Return text of numbers or truth values as float64, NaN for missing ones."""
        known = {"True": 1.0, "False": 0.0}
        return self._each(
            [known[text] if text in known else float(text) for text in self.distinct], np.nan
        )

    def dates(self) -> np.ndarray:
        """Return text of dates as `datetime64[us]` in UTC.

        Raises:
            DataError: If there is no such date; the message has its row.
        """
        found = []
        for i, text in enumerate(self.distinct):
            try:
                date = datetime.datetime.fromisoformat(text.replace(" Z", "Z").replace(" +", "+"))
            except ValueError as error:
                row = int((self.codes == i).argmax())
                raise DataError(
                    f"column {self.name!r}, row {row}: {text!r} is no date ({error})"
                ) from error
            if date.tzinfo is not None:
                date = date.astimezone(datetime.UTC).replace(tzinfo=None)
            found.append(np.datetime64(date, "us"))
        return self._each(found, np.datetime64("NaT", "us"))

    def _each(self, values: list, missing: object) -> np.ndarray:
        return np.array([*values, missing])[self.codes]


def type_of(texts: Texts) -> str:
    """Return the type of text: `"boolean"`, `"real"`, `"date"` or `"text"`.

    Raises:
        DataError: If most values are numbers or dates, but not all, or if most have a form of
            number or date that is not read.
    """
    observed = ~texts.missing
    if not observed.any():
        return "text"
    if texts.are("boolean")[observed].all():
        return "boolean"
    for name in ("real", "date"):
        found = texts.are(name)
        if found[observed].all():
            return name
        if found[observed].mean() > MOSTLY:
            row = int((observed & ~found).argmax())
            noun = "number" if name == "real" else "date"
            raise _faulty(
                texts,
                row,
                f"is not a {noun}, but {found[observed].mean():.1%} of the values are. Correct it, "
                f"read it as missing by {setting('na', [texts.all[row]])}",
            )
    for pattern, advice in _FORMS:
        if (found := texts.matches(pattern))[observed].mean() > MOSTLY:
            raise _faulty(texts, int(found.argmax()), advice(texts.name))
    return "text"


_FORMS: tuple[tuple[re.Pattern[str], Callable[[str], str]], ...] = (
    (
        _OTHER_DATE,
        lambda name: (
            "looks like a date that is not in ISO 8601 format, such as 2020-01-31. Convert the "
            "column to this format, for example with pandas.to_datetime"
        ),
    ),
    (
        _OTHER_NUMBER,
        lambda name: (
            "looks like a number with a decimal comma, separators of thousands or a unit. Convert "
            f"the column, read a file with {setting('decimal', ',')}"
        ),
    ),
)


def _faulty(texts: Texts, row: int, problem: str) -> DataError:
    return DataError(
        f"column {texts.name!r}, row {row}: {texts.all[row]!r} {problem}, or give the kind of the "
        f"column, as in {setting('columns', {texts.name: 'category'})}"
    )
