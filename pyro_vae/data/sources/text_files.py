"""Read text files of rows and columns: CSV, TSV and others, checked line by line."""

import csv
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pyro_vae.arguments import setting
from pyro_vae.data.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

SEPARATORS = ",;\t|"
MISSING = ("?", "-")  # read as missing, in addition to those of pandas
BINARY = {  # first bytes of files that are no text
    b"PK\x03\x04": "a zip archive or an Excel workbook. Save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel workbook. Save the sheet as CSV",
    b"\x1f\x8b": "compressed by gzip. Decompress it",
    b"PAR1": "a Parquet file. Let its name end in .parquet",
    b"ARROW1": "a Feather file. Let its name end in .feather",
    b"%PDF": "a PDF document. Save the table as CSV",
}


def read(
    path: Path, separator: str | None, encoding: str, na: Sequence[str], decimal: str
) -> "pd.DataFrame":
    """Read a text file. Arguments as for `frames.read`.

    Raises:
        DataError: If the file is no text, a line has another number of values than the first, or
            the first line has no names of columns.
    """
    import pandas as pd

    with path.open("rb") as file:
        start = file.read(8)
    for first_bytes, advice in BINARY.items():
        if start.startswith(first_bytes):
            raise DataError(f"{path} is {advice}")
    encoding = "utf-8-sig" if encoding == "utf-8" else encoding
    try:
        separator = _check(path, separator, encoding)
    except UnicodeDecodeError as error:
        raise _not_encoded(path, encoding.removesuffix("-sig")) from error
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return pd.read_csv(
            path,
            sep=separator,
            encoding=encoding,
            na_values=[*MISSING, *na],
            index_col=False,
            skipinitialspace=True,
            low_memory=False,
            decimal=decimal,
            dtype_backend="numpy_nullable",
        )


def _check(path: Path, separator: str | None, encoding: str) -> str:
    """Return the separator of a file after a check of each line."""
    with path.open(encoding=encoding, newline="") as file:
        first = file.readline()
        if not first.strip():
            raise DataError(f"{path}: the first line is empty; expected the names of the columns")
        separator = separator or max(SEPARATORS, key=first.count)
        file.seek(0)
        rows = csv.reader(_lines(path, file), delimiter=separator, skipinitialspace=True)
        header = next(rows)
        _check_header(path, header, separator)
        for row in rows:
            if row and len(row) != len(header):
                raise DataError(
                    f"{path}, line {rows.line_num}: got {len(row)} values, expected "
                    f"{len(header)}, one for each name in the first line. Values that contain "
                    f"{separator!r} must be quoted"
                )
    return separator


def _lines(path: Path, lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise DataError(f"{path}, line {number}: the line has a NUL byte, so this is no text")
        yield line


def _check_header(path: Path, header: list[str], separator: str) -> None:
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(
            f"{path}: the column {repeated[0]!r} occurs {header.count(repeated[0])} times. Give "
            "each column another name"
        )
    others = [other for other in SEPARATORS if other != separator and other in header[0]]
    if len(header) == 1 and others:
        raise DataError(
            f"{path}: {setting('separator', separator)} gives the one column {header[0]!r}; "
            f"expected {setting('separator', others[0])}?"
        )
    if numbers := [name for name in header if _is_number(name) and not name.isdigit()]:
        raise DataError(
            f"{path}: the first line has the number {numbers[0]!r}; expected names of columns. "
            "Insert a line with a name for each column"
        )


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
