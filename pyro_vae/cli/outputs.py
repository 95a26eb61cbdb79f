"""Write the results of commands, atomically: tables, arrays, AnnData."""

import io
import itertools
import tempfile
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pyro_vae as pv
from pyro_vae.cli.sources import check_apart, taken_by
from pyro_vae.runtime.files import writable_folder
from pyro_vae.runtime.records import write_result

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor

    from pyro_vae.data import Dataset

    Columns: TypeAlias = dict[str, Sequence[object] | np.ndarray]

TABLES = (".csv", ".tsv", ".parquet", ".feather")


def check(
    path: Path, option: str, data: Sequence[str | None], endings: Sequence[str] | None = None
) -> None:
    """Check that a file can be written, before any work.

    Args:
        path: The file.
        option: Option that names it.
        data: Data that it may not replace.
        endings: Possible endings of its name, or None for any.

    Raises:
        ValueError: If it is a folder or data, or its ending is not one of `endings`, or it is an
            `.h5ad` file and the data are not, of which it is a copy.
        CheckpointError: If its folder is not writable.
    """
    if path.is_dir() and not path.is_symlink():  # a link is replaced
        raise ValueError(f"{option} {path} is a folder; expected the path of a file")
    if endings is not None and path.suffix not in endings:
        raise ValueError(
            f"{option} {path}: expected a file that ends in one of {', '.join(endings)}"
        )
    if path.suffix == ".h5ad" and not str(next(iter(data), None)).endswith(".h5ad"):
        raise ValueError(
            f"{option} {path}: .h5ad is a copy of the data with more columns, so it needs data in "
            f"this format, got {next(iter(data), None)}. Write {', '.join(TABLES)}"
        )
    check_apart(path, option, *data)
    writable_folder(path.parent, [path.name])


def row_columns(rows: "Dataset", data: str) -> "Columns":
    """Return the number of each row from 0, its image file and its class, if any.

    Args:
        rows: Rows that the schema of a run has read.
        data: Their path, or the name of a dataset.
    """
    columns: Columns = {"row": range(len(rows))}
    if data not in pv.data.NAMES and rows.schema is not None and rows.schema.content == "images":
        from pyro_vae.data.sources.images import files_in

        path = Path(data)
        files = [file.relative_to(path) for file in files_in(path)] if path.is_dir() else [path]
        columns["file"] = [file.as_posix() for file in files]
    if rows.labels is not None:
        from pyro_vae.data.classes import names_of_classes

        names = names_of_classes(rows.labels, rows.class_names)
        columns["class"] = [names[int(label)] for label in rows.labels]
    return columns


def write_table(path: Path, columns: "Columns") -> None:
    """Write columns as a table."""
    import pandas as pd

    write_frame(path, pd.DataFrame(dict(columns)))


def write_frame(path: Path, frame: "pd.DataFrame") -> None:
    """Write a pandas frame as CSV, TSV, Parquet or Feather."""
    file = io.BytesIO()
    try:
        if path.suffix == ".parquet":
            frame.to_parquet(file)  # with its index, if it has values of its own
        elif path.suffix == ".feather":
            frame.to_feather(file)
        else:
            frame.to_csv(file, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    except ImportError as error:
        raise ValueError(
            f"writing {path.name} needs pyarrow: pip install 'pyro-vae[tables]'"
        ) from error
    write_result(path, file.getvalue())


def write_array(path: Path, x: object) -> None:
    """Write an array as `.npy`."""
    import numpy as np

    file = io.BytesIO()
    np.save(file, np.asarray(x))
    write_result(path, file.getvalue())


def endings_of_samples(schema: Any, is_image: bool) -> Sequence[str]:
    """Return the endings of files that samples can be written to, by `write_samples` or as images.

    Arrays have numbers only: text in them would be pickled, and `numpy.load` refuses it.
    """
    if is_image:
        return (".npy", *(f".{kind}" for kind in pv.plots.encoding.KINDS))
    columns = [*getattr(schema, "columns", ()), *getattr(schema, "given", ())]
    is_table = getattr(schema, "content", None) == "table"
    has_text = is_table and any(
        c.values_type in ("text", "date") and c.kind != "identifier" for c in columns
    )
    return TABLES if has_text else (*TABLES, ".npy")


def write_samples(path: Path, schema: Any, x: "Tensor", given: "Tensor | int") -> None:
    """Write samples of a model in the form of its data, those of tables with their context.

    Args:
        path: File to write.
        schema: Schema of the data, or None.
        x: Samples.
        given: Context of the samples, or their number.
    """
    import numpy as np

    is_table = getattr(schema, "content", None) == "table"
    context = {"context": given} if is_table and not isinstance(given, int) else {}
    restored: Any = x if schema is None else schema.restore(x, **context)
    if hasattr(restored, "todense"):
        restored = restored.todense()
    if path.suffix == ".npy":
        write_array(path, restored.to_numpy(np.float64) if is_table else restored)
        return
    if is_table:
        write_frame(path, restored)
        return
    values = np.asarray(restored).reshape(len(x), -1)
    names = list(schema.names()) if schema is not None and x.dim() == 2 else []
    names = names or [f"x{i}" for i in range(values.shape[1])]
    write_table(path, dict(zip(names, values.T, strict=True)))


def write_completed(
    path: Path,
    source: str,
    options: Mapping[str, object],
    rows: "Dataset",
    tables: "Tensor",
) -> None:
    """Write data with their missing values filled. Observed values are those of the source.

    Args:
        path: File to write.
        source: Path of the data with missing values.
        options: Options with which they are read.
        rows: Their rows.
        tables: Completed rows of the model, shape `(num_data, num_columns)`, or
            `(num_tables, num_data, num_columns)`. Several tables are written below each other, with
            a column `draw` first; arrays have these dimensions.

    Warns:
        DataWarning: If the table has a column `draw`. The new one is `draw_1` then.
    """
    import numpy as np

    several = tables if tables.dim() == 3 else tables[None]
    if getattr(rows.schema, "content", None) == "table":
        as_text = [column.name for column in rows.schema.columns if column.values_type == "text"]
        original = schema_frame(source, options, as_text)
        completed = [rows.schema.complete(original, values) for values in several]
        if path.suffix != ".npy":
            write_frame(path, _one_below_another(completed, path.suffix == ".parquet"))
            return
        arrays = [frame.to_numpy() for frame in completed]
    else:
        arrays = [_filled(source, options, values.cpu().numpy()) for values in several]
    write_array(path, np.stack(arrays) if tables.dim() == 3 else arrays[0])


def _one_below_another(frames: "list[pd.DataFrame]", keeps_index: bool) -> "pd.DataFrame":
    """Return one frame of completed ones; of several, with a column `draw` first.

    An index with values of its own, as Parquet files of pandas may have, is kept or, if the file
    has none, becomes columns.
    """
    import pandas as pd

    index = frames[0].index
    has_index = not isinstance(index, pd.RangeIndex)
    if has_index and not keeps_index:
        frames = [frame.reset_index(allow_duplicates=True) for frame in frames]
    if len(frames) > 1:
        name = _new_name([*frames[0].columns, *index.names])
        for number, frame in enumerate(frames):
            frame.insert(0, name, number)
    return pd.concat(frames, ignore_index=not (has_index and keeps_index))


def _filled(source: str, options: Mapping[str, object], values: "np.ndarray") -> "np.ndarray":
    """Return the array in a file with values in place of its missing ones.

    Values are in float32, which does not have all numbers of the file.
    """
    import numpy as np
    import torch

    from pyro_vae.data.sources import array_files, counts

    path = Path(source)
    if counts.READER.accepts(path) or path.suffix.lower() not in array_files.ENDINGS:
        return values  # counts, of which none are missing
    stored = array_files.load(path, None if "key" not in options else str(options["key"]))
    if isinstance(stored, torch.Tensor) and stored.dtype == torch.bfloat16:
        return values
    original = np.asarray(stored)
    return np.where(np.isnan(original), values.astype(original.dtype), original)


def _new_name(names: Collection[str]) -> str:
    """Return a name for the column with the number of a draw that the table does not have."""
    possible = itertools.chain(["draw"], map("draw_{}".format, itertools.count(1)))
    name = next(name for name in possible if name not in names)
    if name != "draw":
        from pyro_vae.data.errors import DataWarning

        warnings.warn(
            f"the table has a column 'draw', so the number of each completed table is in {name!r}",
            DataWarning,
            stacklevel=3,
        )
    return name


def schema_frame(
    source: str, options: Mapping[str, object], as_text: Sequence[str]
) -> "pd.DataFrame":
    """Return the table in a file as a pandas frame, with some columns as text."""
    from pyro_vae.data.sources import frames
    from pyro_vae.data.sources.text_files import TextForm

    key = str(options["key"]) if "key" in options else None
    form = TextForm(**taken_by(TextForm, options))
    return frames.read(source, form, key, as_text).to_native()


def write_intervals(
    path: Path, rows: "Dataset", missing: "Tensor", found: Mapping[str, "Tensor"]
) -> None:
    """Write one row for each imputed value: its row, column, value and intervals."""
    schema = rows.schema
    names = schema.names()
    ends = ("value", "low_50", "high_50", "low_90", "high_90")
    if schema.content == "table":
        restored = {end: schema.restore(found[end]) for end in ends}
        value = lambda end, row, i: restored[end][names[i]].iloc[row]  # noqa: E731
    else:
        value = lambda end, row, i: float(found[end][row, i])  # noqa: E731
    places = [(int(row), int(i)) for row, i in missing.nonzero()]
    columns: dict[str, Sequence[object]] = {
        "row": [row for row, _ in places],
        "column": [names[i] for _, i in places],
        **{end: [value(end, row, i) for row, i in places] for end in ends},
        "share": [float(found["share"][row, i]) for row, i in places],
    }
    write_table(path, {k: v if k == "row" else _plain(v) for k, v in columns.items()})


def _plain(values: Sequence[object]) -> "pd.Series":
    """Return values of several columns as one: text if they are of several types.

    Parquet and Feather have one type for each column, so numbers next to levels are text.
    """
    import pandas as pd

    known = [None if value is None or value != value else value for value in values]
    column = pd.Series(known, dtype=object).infer_objects()
    return column.map(str, na_action="ignore") if column.dtype == object else column


def write_anndata(
    path: Path,
    source: str,
    arrays: Mapping[str, "np.ndarray"],
    log_p: "np.ndarray",
    khat: "np.ndarray",
) -> None:
    """Write a copy of an `.h5ad` file with arrays in `.obsm`, and log p(x) and k-hat in `.obs`."""
    import anndata

    annotated = anndata.read_h5ad(source)
    for name, values in arrays.items():
        annotated.obsm[name] = values
    annotated.obs["log_p"], annotated.obs["khat"] = log_p, khat
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        annotated.write_h5ad(Path(folder) / path.name)
        (Path(folder) / path.name).replace(path)
