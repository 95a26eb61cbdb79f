"""Read tables: CSV, TSV, Parquet and Feather files, and frames."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType
from typing import Annotated

from pyro_vae.arguments import CountOrZero, Instance, checked, setting
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.errors import DataError
from pyro_vae.data.sources import frames
from pyro_vae.data.sources.reader import Reader
from pyro_vae.data.sources.table_schema import TableSchema, schema_of
from pyro_vae.data.sources.text_files import TextForm

ENDINGS = (".csv", ".tsv", ".txt", ".data", ".parquet", ".feather")


def _accepts(source: Path | object) -> bool:
    if isinstance(source, Path):
        return source.suffix.lower() in ENDINGS and not source.is_dir()
    return frames.is_frame(source)


@checked
def read(
    source: object,
    *,
    schema: Annotated[
        TableSchema | None, Instance((TableSchema, NoneType), "the schema of a table, or None")
    ] = None,
    columns: Mapping[str, str] | None = None,
    labels: str | None = None,
    context: Sequence[str] = (),
    separator: str | None = None,
    encoding: str = "utf-8",
    na: Sequence[str] = (),
    decimal: str = ".",
    thousands: str | None = None,
    skip: CountOrZero = 0,
) -> Dataset:
    """Read a table.

    Args:
        source: Path of a file, a frame, or an array of two dimensions.
        schema: Schema of earlier data, which these must have; by default it is found by rules.
        columns: Kinds of columns by name, which override the rules.
        labels: Name of a column of classes, which is not modelled and colours pictures.
        context: Names of columns that are context of a conditional model, without missing values.
        separator: Separator of a text file; by default the most frequent of `text_files.SEPARATORS`
            in its first line.
        encoding: Encoding of a text file.
        na: Further texts that are read as missing in a text file.
        decimal: Decimal point of the numbers in a text file.
        thousands: Separator of thousands in a text file; by default `"."` if the decimal point is
            `","`.
        skip: Number of lines of a text file before the names of the columns.

    Raises:
        DataError: If the table cannot be read, or does not have the schema.
    """
    form = TextForm(separator, encoding, na, decimal, thousands, skip)
    with frames.errors_of(source):
        frame = frames.read(source, form)
        if schema is None:
            schema = schema_of(frame, columns, labels, context)
        elif columns or labels or context:
            names = ", ".join(map(setting, ("columns", "labels", "context")))
            raise DataError(f"expected {names}, or {setting('schema')}, got both: edit the schema")
        data = schema.read(frame.to_native())
        return replace(data, name=frames.name_of(source))


READER = Reader(
    "table",
    _accepts,
    read,
    frozenset(
        {"schema", "columns", "labels", "context", *(field.name for field in fields(TextForm))}
    ),
    "CSV, TSV, Parquet and Feather files, frames of pandas and polars",
)
