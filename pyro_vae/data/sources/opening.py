"""Open a file, a folder, a frame or an array as a `Dataset` with a schema."""

import os
from pathlib import Path

from pyro_vae.arguments import checked
from pyro_vae.data.conversion import advice_for
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.errors import DataError
from pyro_vae.data.sources import arrays, counts, images, tables
from pyro_vae.data.sources.reader import Reader, Source

# To support another kind of source, add its reader here.
READERS: tuple[Reader, ...] = (tables.READER, images.READER, counts.READER, arrays.READER)
# Ways out for files that are not read.
FILES = {
    (".gz", ".bz2", ".xz", ".zip"): "decompress it",
    (".xlsx", ".xls", ".ods"): "save the sheet as CSV",
    (".json", ".sav", ".dta", ".sas7bdat", ".rds", ".rdata", ".pkl", ".mat"): (
        "read it with another library, as a frame or an array"
    ),
}


@checked
def open(source: Source, **options: object) -> Dataset:
    """Read data of any supported kind, and describe them by a schema.

    Args:
        source: Path of a file or a folder, or a frame or an array in memory.
        options: Options of the kind of source. Tables: `columns`, kinds of columns by name, and
            `schema`, the schema of earlier data. Arrays: `key`, the name of an array in the file.
            Images: `size`, `channels` (`"grey"` or `"colour"`) and `skip_unreadable`. Counts:
            `kind` (`"counts"` or `"real"`), and of AnnData `layer`, `batch`, `covariates` and
            `labels`.

    Returns:
        The data. Their schema is the attribute `schema`.

    Raises:
        DataError: If the source does not exist, is of no supported kind, or is damaged.

    Example:
        >>> import pandas as pd
        >>> import pyro_vae as pv
        >>> frame = pd.DataFrame({"age": [31.5, 42.0, 28.5], "member": [True, False, True]})
        >>> data = pv.data.open(frame)
        >>> data.schema.names()
        ('age', 'member')

    See also: `Dataset`, `pyro_vae.suggest`.
    """
    if isinstance(source, str | os.PathLike):
        source = Path(source)
        if not source.exists():
            raise DataError(f"{source}: no such file or directory")
        if not (source.is_file() or source.is_dir()):
            raise DataError(
                f"{source} is a pipe, a socket or a device, which cannot be read twice; expected "
                "a file or a folder: write the data to a file first"
            )
    for reader in READERS:
        if reader.accepts(source):
            if unknown := sorted(options.keys() - reader.options):
                raise DataError(
                    f"the option {unknown[0]!r} does not apply to {reader.name} data; expected "
                    f"some of {sorted(reader.options)}"
                )
            return reader.read(source, **options)
    known = "; ".join(f"{reader.name}: {reader.examples}" for reader in READERS)
    raise DataError(f"cannot read {_described(source)}; expected one of these kinds. {known}")


def _described(source: Source) -> str:
    if isinstance(source, Path):
        name = source.name.lower()
        ways = [f" ({way})" for endings, way in FILES.items() if name.endswith(endings)]
        return f"{source}{''.join(ways)}"
    advice = advice_for(source)
    return f"a {type(source).__name__}{f' ({advice})' if advice else ''}"
