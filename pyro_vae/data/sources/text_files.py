"""Read text files of rows and columns: CSV, TSV and others, checked line by line."""

import csv
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyro_vae.arguments import setting
from pyro_vae.data.errors import DataError, DataWarning
from pyro_vae.data.sources.texts import MINUS, MOSTLY, NUMBER

if TYPE_CHECKING:
    import pandas as pd

SEPARATORS = ",;\t|"
MISSING = ("?", "-", ".")  # read as missing, in addition to those of pandas
BINARY = {  # first bytes of files that are no tables in text
    b"PK\x03\x04": "a zip archive or an Excel workbook. Save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel workbook. Save the sheet as CSV",
    b"\x1f\x8b": "compressed by gzip. Decompress it",
    b"PAR1": "a Parquet file. Let its name end in .parquet",
    b"ARROW1": "a Feather file. Let its name end in .feather",
    b"%PDF": "a PDF document. Save the table as CSV",
    b"<!DOCTYPE": "an HTML page. Save the table as CSV",
    b"<html": "an HTML page. Save the table as CSV",
    b"<?xml": "XML. Save the table as CSV",
    b"{": "JSON. Save the frame that pandas.read_json returns as CSV",
    b"[{": "JSON. Save the frame that pandas.read_json returns as CSV",
}
_ONE_GROUP = re.compile(r"-?[1-9]\d{0,2}\.\d{3}", re.ASCII)  # 1.234, perhaps 1234


@dataclass(frozen=True)
class TextForm:
    """The form of a text file. Attributes are described by `tables.read`."""

    separator: str | None = None
    encoding: str = "utf-8"
    na: Sequence[str] = ()
    decimal: str = "."
    thousands: str | None = None
    skip: int = 0


DEFAULT_FORM = TextForm()


@dataclass(frozen=True)
class _Layout:
    """The layout of a file.

    Attributes:
        separator: Separator of the values.
        skip: Number of lines before the names.
        names: Names of the columns.
        codes: Names of columns with digits after leading zeros.
        groups: Names of columns in which all values have the form 1.234.
        num_rows: Number of rows up to the last one that is not blank.
    """

    separator: str
    skip: int
    names: list[str]
    codes: set[str]
    groups: set[str]
    num_rows: int

    @property
    def has_blank_rows(self) -> bool:
        """Whether a blank line is a row: in a file with one column, it is a missing value."""
        return len(self.names) == 1


def read(path: Path, form: TextForm, as_text: Collection[str] = ()) -> "pd.DataFrame":
    """Read a text file. Blanks around values and names, and empty rows at the end, are removed.

    A blank line between others is a missing value in a file with one column, otherwise ignored.

    Columns of digits with leading zeros, as in postal codes, are text. A first line such as `sep=;`
    gives the separator.

    Args:
        path: Path of the file.
        form: Form of the file.
        as_text: Names of columns that are text, even if their values look like numbers.

    Raises:
        DataError: If the file is no text, a line has another number of values than the first, or
            the first line has no names of columns.

    Warns:
        DataWarning: If decimal points may be separators of thousands.
    """
    import pandas as pd

    with path.open("rb") as file:
        start = file.read(64).lower()
    for first_bytes, advice in BINARY.items():
        if start.startswith(first_bytes.lower()):
            raise DataError(f"{path} is {advice}")
    encoding = "utf-8-sig" if form.encoding == "utf-8" else form.encoding
    try:
        layout = _scan(path, replace(form, encoding=encoding))
    except UnicodeDecodeError as error:
        raise _not_encoded(path, form.encoding) from error
    texts = {*layout.codes, *as_text}
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        frame = pd.read_csv(
            path,
            sep=layout.separator,
            names=layout.names,
            header=0,
            skiprows=layout.skip,
            encoding=encoding,
            na_values=[*MISSING, *form.na],
            index_col=False,
            skip_blank_lines=not layout.has_blank_rows,
            nrows=layout.num_rows if layout.has_blank_rows else None,
            skipinitialspace=True,
            low_memory=False,
            decimal=form.decimal,
            dtype={name: "string" for name in layout.names if name in texts},
            dtype_backend="numpy_nullable",
        )
    return _cleaned(path, frame, form, layout, as_text)


def _scan(path: Path, form: TextForm) -> _Layout:
    """Return the layout of a file after a check of each line."""
    with path.open(encoding=form.encoding, newline="") as file:
        skip, separator = form.skip, form.separator
        for _ in range(skip):
            file.readline()
        place, first = file.tell(), file.readline()
        if not skip and (stated := re.fullmatch(r"sep=(.)\s*", first)):
            skip, separator = 1, separator or stated[1]
            place, first = file.tell(), file.readline()
        if not first.strip():
            line = f"line {skip + 1}" if skip else "the first line"
            raise DataError(f"{path}: {line} is empty; expected the names of the columns")
        separator = separator or max(SEPARATORS, key=first.count)
        file.seek(place)
        rows = csv.reader(_lines(path, file, skip), delimiter=separator, skipinitialspace=True)
        header = [name.strip() for name in next(rows)]
        _check_header(path, header)
        names = [name or f"Unnamed: {i}" for i, name in enumerate(header)]
        # In files with semicolons, decimals often have commas.
        is_german = separator == ";" and form.decimal == "."
        codes, groups = set[int](), {*range(len(names) * is_german)}
        number = header_line = rows.line_num
        num_rows = 0
        for place, row in enumerate(rows, start=1):
            num_rows = place if row else num_rows
            if number == header_line and len(header) == 1:
                _check_one_column(path, header[0], row, separator)
            if row and len(row) != len(header):
                raise _other_length(path, row, header, separator, skip, rows.line_num)
            number = rows.line_num
            for i, cell in enumerate(row):
                if cell[:1] == "0" and len(cell) > 1 and cell.isdigit():
                    codes.add(i)
            if groups and row:
                groups = {i for i in groups if not row[i] or _ONE_GROUP.fullmatch(row[i])}
    texts, grouped = ({names[i] for i in found} for found in (codes, groups))
    return _Layout(separator, skip, names, texts, grouped, num_rows)


def _lines(path: Path, lines: Iterable[str], skip: int) -> Iterator[str]:
    for number, line in enumerate(lines, start=skip + 1):
        if "\0" in line:
            raise DataError(f"{path}, line {number}: the line has a NUL byte, so this is no text")
        yield line


def _other_length(
    path: Path, row: list[str], header: list[str], separator: str, skip: int, number: int
) -> DataError:
    line = f"line {skip + 1}" if skip else "the first line"
    advice = f"Values that contain {separator!r} must be quoted"
    if row[0].lstrip().startswith(("#", "%", "//")):
        advice = "Remove the line, if it is a comment"
    elif len(row) < len(header):
        advice = f"Remove the line if it is no row, or add the {separator!r} of missing values"
    later = f". If a later line has the names, pass {setting('skip', skip + 1)}" * (number == 2)
    return DataError(
        f"{path}, line {skip + number}: got {len(row)} values, expected {len(header)}, one for "
        f"each name in {line}. {advice}{later}"
    )


def _check_one_column(path: Path, name: str, row: list[str], separator: str) -> None:
    """Check that a file with one column does not have another separator."""
    others = [other for other in SEPARATORS if other != separator and other in name]
    words = len(name.split())
    if not others and words > 1 and row and len(row[0].split()) == words:
        others = [" "]
    if others:
        raise DataError(
            f"{path}: {setting('separator', separator)} gives the one column {name!r}; "
            f"expected {setting('separator', others[0])}?"
        )


def _check_header(path: Path, header: list[str]) -> None:
    named = [name for name in header if name]
    if repeated := sorted({name for name in named if named.count(name) > 1}):
        raise DataError(
            f"{path}: the column {repeated[0]!r} occurs {header.count(repeated[0])} times. Give "
            "each column another name"
        )
    if numbers := [name for name in header if _is_number(name) and not name.isdigit()]:
        raise _no_names(path, numbers[0])


def _check_integer_names(path: Path, frame: "pd.DataFrame") -> None:
    """Check that names are no values: integers, each within the range of its column."""
    names = list(frame.columns)
    if not all(name.isdigit() for name in names):
        return
    places, numbers = [*range(len(names))], [*map(int, names)]
    if numbers in (places, [place + 1 for place in places]):
        return  # names by default
    columns = [frame[name] for name in names if frame[name].dtype.kind in "iuf"]
    if len(columns) == len(names) and all(
        column.min() <= number <= column.max()
        for column, number in zip(columns, numbers, strict=True)
    ):
        raise _no_names(path, names[0])


def _no_names(path: Path, number: str) -> DataError:
    return DataError(
        f"{path}: the first line has the number {number!r}; expected names of columns. Insert a "
        "line with a name for each column"
    )


def _cleaned(
    path: Path, frame: "pd.DataFrame", form: TextForm, layout: _Layout, as_text: Collection[str]
) -> "pd.DataFrame":
    """Return a frame with clean text, plain numbers, and columns and rows that have a value."""
    import pandas as pd

    thousands = form.thousands or ("." if form.decimal == "," else None)
    for name in layout.names:
        if isinstance(frame[name].dtype, pd.StringDtype):
            frame[name] = frame[name].str.strip()
            if thousands is not None and name not in as_text:
                frame[name] = _without_groups(frame[name], thousands, form.decimal)
    used = frame.notna().to_numpy()
    unnamed = np.array([name.startswith("Unnamed: ") for name in layout.names])
    if (lost := unnamed[1:] & used[:, 1:].any(axis=0)).any():
        raise DataError(
            f"{path}: column {int(lost.argmax()) + 2} has values, but no name in line "
            f"{layout.skip + 1}. Give it a name, or pass the number of lines before the names, as "
            f"in {setting('skip', layout.skip + 1)}"
        )
    rows = np.flatnonzero(used.any(axis=1))
    last = None if layout.has_blank_rows or not len(rows) else rows[-1]
    frame = frame.loc[:last, ~unnamed | used.any(axis=0)]
    _check_integer_names(path, frame)
    for name in frame.columns[frame.columns.isin([*layout.groups])]:
        value = frame[name].dropna()
        if len(value):
            warnings.warn(
                f"{path}: column {name!r}: all values have a point before three digits, such as "
                f"{value.iloc[0]:.3f}, and are read as decimal numbers. If the point separates "
                f"thousands, pass {setting('decimal', ',')}",
                DataWarning,
                stacklevel=6,
            )
    return frame


def _without_groups(texts: "pd.Series", thousands: str, decimal: str) -> "pd.Series":
    """Return text without separators of thousands, if most of it are numbers with them.

    If some are no such numbers, but all are numbers with a decimal point, the text is unchanged: in
    0.979 and 36.512 next to 36.5, the point does not separate thousands.

    Raises:
        DataError: If the separator of thousands is a decimal point in some numbers only.
    """
    import pandas as pd

    mark = r"[ \xa0\u202f]" if thousands == " " else re.escape(thousands)
    number = rf"[-+{MINUS}]?([1-9]\d{{0,2}}({mark}\d{{3}})+|\d+)({re.escape(decimal)}\d+)?"
    matches = texts.str.fullmatch(number).fillna(False).astype(bool)
    is_plain = texts.str.fullmatch(NUMBER).fillna(False).astype(bool)
    marked, other = matches & ~is_plain, is_plain & ~matches
    if matches.sum() <= MOSTLY * texts.notna().sum() or (other.any() and not marked.any()):
        return texts
    if other.any():
        first, second = int(other.argmax()), int(marked.argmax())
        raise DataError(
            f"column {texts.name!r}, row {first}: {texts[first]!r} has a decimal point, but "
            f"{texts[second]!r} in row {second} has the decimal mark {decimal!r} or separators of "
            f"thousands {thousands!r}. Write all numbers in one form"
        )
    plain = texts.str.replace(mark, "", regex=True).str.replace(decimal, ".", regex=False)
    texts = texts.mask(matches, plain.str.replace(MINUS, "-", regex=False))
    # An error about the column names the other values.
    return pd.to_numeric(texts) if (matches | texts.isna()).all() else texts


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _not_encoded(path: Path, encoding: str) -> DataError:
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return DataError(f"{path} is UTF-16 text: give {setting('encoding', 'utf-16')}")
    try:
        content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return DataError(
            f"{path}, line {line}: the byte {content[error.start]:#x} is not {encoding} text. Give "
            f"the encoding of the file, as in {setting('encoding', 'latin-1')}"
        )
    return DataError(f"{path} is not {encoding} text")
