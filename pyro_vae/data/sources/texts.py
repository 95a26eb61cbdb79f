"""Columns of text: which of them are numbers or dates."""

import datetime
import decimal
import re
from collections import Counter
from dataclasses import dataclass

import narwhals as nw
import numpy as np

from pyro_vae.arguments import setting
from pyro_vae.data.errors import DataError

MOSTLY = 0.5  # text of which a larger share is numbers or dates has faulty values, not levels
VALUES = (str, bool, int, float, np.generic, decimal.Decimal, datetime.date)  # of object columns

_DATE = re.compile(
    r"\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(?P<zone> ?(Z|[+-]\d{2}:?\d{2}))?)?"
)
MINUS = "\N{MINUS SIGN}"  # written by typesetting programs
NUMBER = re.compile(
    rf"\s*[-+{MINUS}]?(\d+\.?\d*|\.\d+)(e[-+{MINUS}]?\d+)?\s*|[-+]?inf(inity)?|nan",
    re.IGNORECASE | re.ASCII,
)
_DIGITS, _CODE = re.compile(r"\d+", re.ASCII), re.compile(r"0\d+", re.ASCII)
_WHOLE = re.compile(r"\s*[-+]?\d+\s*", re.ASCII)
# Forms of text that people mean as dates or numbers, but that are not read as such.
_OTHER_DATE = re.compile(
    r"(\d{1,4}([./-])\d{1,2}\2\d{1,4}|\d{1,2}[. -]+[^\W\d]{3,9}[., -]+\d{2,4}"
    r"|[^\W\d]{3,9}\.? \d{1,2},? \d{4})([ T]\d{1,2}:\d{2}.*)?"
)
_TIME = re.compile(r"\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?( ?[ap]m)?", re.IGNORECASE)
_OTHER_NUMBER = re.compile(
    rf"\(?[-+{MINUS}]?[$€£]?\s?\d+([., '\xa0\u202f]\d{{3}})*([.,]\d+)?(d[-+]?\d+)?"
    r"\s?[%$€£]?\)?",
    re.IGNORECASE,
)
_UNIT = re.compile(rf"[-+{MINUS}]?\d+([.,]\d+)?(?P<unit>\s+[^\W\d]\S{{0,11}}|[a-zµ°]{{2}})")


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
        values, missing = series.to_list(), np.array(series.is_null().to_list(), dtype=bool)
        types = {*map(type, values)}
        if float in types:  # NaN among objects is not null in polars
            missing |= np.array([isinstance(v, float) and v != v for v in values])
        if not all(issubclass(found, VALUES) for found in types):
            row = next(
                (i for i in np.flatnonzero(~missing) if not isinstance(values[i], VALUES)), -1
            )
            if row >= 0:
                raise DataError(
                    f"column {series.name!r}, row {row}: got a {type(values[row]).__name__}; "
                    "expected numbers, truth values, dates or text. Leave the column out or "
                    "convert it"
                )
        texts = [*map(str, values)]
        position = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        codes = np.fromiter(map(position.__getitem__, texts), np.int64, len(texts))
        kept = np.bincount(codes[~missing], minlength=len(position)) > 0
        kept &= np.array([bool(text.strip()) for text in position], dtype=bool)
        new = np.where(kept, np.cumsum(kept) - 1, -1)
        return cls(
            series.name,
            np.array([*position], dtype=object)[kept],
            np.where(missing, -1, new[codes]),
        )

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
        return self.each([pattern.fullmatch(text) is not None for text in self.distinct], False)

    def are(self, type: str) -> np.ndarray:
        """Return the mask of rows with text of a type."""
        if type == "text":
            return ~self.missing
        if type == "boolean":
            return self.each([text in ("True", "False") for text in self.distinct], False)
        return self.matches(_DATE if type == "date" else NUMBER)

    def numbers(self) -> np.ndarray:
        """Return text of numbers or truth values as float64, NaN for missing ones."""
        known = {"True": 1.0, "False": 0.0}
        plain = [text.replace(MINUS, "-") for text in self.distinct]
        return self.each([known[text] if text in known else float(text) for text in plain], np.nan)

    def dates(self) -> np.ndarray:
        """Return text of dates as `datetime64[us]` in UTC.

        Raises:
            DataError: If there is no such date, or if some dates have a time zone and others do
                not; the message has its row.
        """
        zoned = np.array([*map(_has_zone, self.distinct)], dtype=bool)
        if zoned.any() and not zoned.all():
            row = int((self.codes == int(zoned.argmin())).argmax())
            raise DataError(
                f"column {self.name!r}, row {row}: {self.all[row]!r} has no time zone, but "
                f"{self.distinct[zoned.argmax()]!r} has one. Write all dates in the same form"
            )
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
        return self.each(found, np.datetime64("NaT", "us"))

    def have_zones(self) -> bool:
        """Return whether dates have a time zone."""
        return any(map(_has_zone, self.distinct))

    def each(self, values: list, missing: object) -> np.ndarray:
        """Return the value of each row, given those of `distinct` and the one of missing rows."""
        return np.array([*values, missing])[self.codes]


def _has_zone(text: str) -> bool:
    return (match := _DATE.fullmatch(text)) is not None and match["zone"] is not None


def type_of(texts: Texts, has_codes: bool) -> str:
    """Return the type of text: `"boolean"`, `"integer"`, `"real"`, `"date"` or `"text"`.

    Args:
        texts: The values of a column.
        has_codes: Whether digits are text if some of them have leading zeros.

    Raises:
        DataError: If most values are numbers or dates, but not all, or if most have a form of
            number or date that is not read.
    """
    observed = ~texts.missing
    if not observed.any():
        return "text"
    if texts.are("boolean")[observed].all():
        return "boolean"
    if has_codes and texts.matches(_CODE).any() and texts.matches(_DIGITS)[observed].all():
        return "text"
    for name in ("real", "date"):
        found = texts.are(name)
        if found[observed].all():
            is_whole = name == "real" and texts.matches(_WHOLE)[observed].all()
            return "integer" if is_whole else name
        if found[observed].mean() > MOSTLY:
            row = int((observed & ~found).argmax())
            noun = "number" if name == "real" else "date"
            raise _faulty(
                texts,
                row,
                f"is not a {noun}, but {found[observed].mean():.1%} of the values are. Correct it, "
                f"read it as missing by {setting('na', [texts.all[row]])}",
            )
    for name, found in _other_forms(texts).items():
        if found[observed].mean() > MOSTLY:
            row = int(found.argmax())
            raise _faulty(texts, row, ADVICE[name] + _separators(name, texts.all[row]))
    return "text"


ADVICE = {
    "date": "looks like a date that is not in ISO 8601 format, such as 2020-01-31. Convert the "
    "column to this format, for example with pandas.to_datetime",
    "time": "looks like a time of day or a duration. Convert the column to a number of minutes",
    "number": "looks like a number with a decimal comma, separators of thousands or a unit. "
    "Convert the column",
    "unit": "looks like a number with a unit. Remove the unit",
}


def _other_forms(texts: Texts) -> dict[str, np.ndarray]:
    """Return masks of the values in forms that are not read as dates or numbers."""
    units = [_unit(text) for text in texts.distinct]
    count = Counter(units)
    return {
        "date": texts.matches(_OTHER_DATE),
        "time": texts.matches(_TIME),
        "number": texts.matches(_OTHER_NUMBER),
        "unit": texts.each([unit != "" and count[unit] > 2 for unit in units], False),
    }


def _unit(text: str) -> str:
    found = _UNIT.fullmatch(text)
    return "" if found is None else found["unit"].strip()


def _separators(name: str, text: str) -> str:
    """Return the options that read a number with a comma or separators of thousands."""
    if name != "number" or not re.fullmatch(r"[-+]?[\d., '\xa0\u202f]+", text):
        return ""
    marks = re.sub(r"[-+\d]", "", text.replace("\xa0", " ").replace("\u202f", " "))
    options = [setting("decimal", ",")] if marks.count(",") == 1 and marks[-1] == "," else []
    if re.search(r"(?<!\d)[1-9]\d{0,2}\D\d{3}(?!\d)", text):
        options.append(setting("thousands", marks[0]))
    return f", read a file with {' or '.join(options)}" if options else ""


def _faulty(texts: Texts, row: int, problem: str) -> DataError:
    return DataError(
        f"column {texts.name!r}, row {row}: {texts.all[row]!r} {problem}, or give the kind of the "
        f"column, as in {setting('columns', {texts.name: 'category'})}"
    )
