"""Read counts: sparse matrices of scipy, `.mtx` and `.npz` files, and AnnData (`.h5ad`)."""

import os
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pyro_vae.arguments import Count, Finite, checked, setting
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.errors import DataError, DataWarning
from pyro_vae.data.sources import frames
from pyro_vae.data.sources.labels import codes_of
from pyro_vae.data.sources.matrices import Counts, SparseRows, library_sizes, load
from pyro_vae.data.sources.reader import Reader
from pyro_vae.part import Part

if TYPE_CHECKING:
    from scipy import sparse

Kind: TypeAlias = Literal["counts", "real"]
Column: TypeAlias = Sequence[Any]  # [name, levels], or [name, mean, standard deviation]


class CountsSchema(Part):
    """Genes (columns) of a sparse matrix, and the encoding of its context.

    Args:
        genes: Names of the columns; `"0"`, `"1"`, ... if they have no names.
        kind: `"counts"`, or `"real"` for any numbers.
        layer: Layer of an AnnData object; by default `X`.
        columns: Columns of `.obs` that are context. A category is `[name, levels]`, encoded by
            zeros and a one. A number is `[name, mean, sd]`, and (number - mean) / sd is context.
        labels: Column of `.obs` with the classes, or None.
        classes: Names of the classes.
        library_size: Median of the sum of a row.

    Example:
        >>> import numpy as np
        >>> import pyro_vae as pv
        >>> from scipy import sparse
        >>> data = pv.data.open(sparse.csr_array(np.array([[0, 3, 1], [2, 0, 0]])))
        >>> data.schema.library_size
        3.0
        >>> data.schema.restore(data[:1]).toarray()
        array([[0, 3, 1]])

    See also: `open`, `ImageSchema`, `TableSchema`.
    """

    content: ClassVar[str] = "counts"

    def __init__(
        self,
        genes: Sequence[str],
        kind: Kind = "counts",
        layer: str | None = None,
        columns: Sequence[Column] = (),
        labels: str | None = None,
        classes: Sequence[str] = (),
        library_size: Finite = 0.0,
    ) -> None:
        super().__init__()
        self.genes, self.kind, self.layer = tuple(genes), kind, layer
        self.columns = [tuple(column) for column in columns]
        self.labels, self.class_names, self.library_size = labels, tuple(classes), library_size

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one datum, `(genes,)`."""
        return (len(self.genes),)

    def read(self, source: object, *, transposed: bool = False) -> Dataset:
        """Return other data of these genes, in this order, with the same context.

        Args:
            source: Source of counts, see `open`.
            transposed: Whether the rows of the matrix are genes.

        Raises:
            DataError: If genes or columns of the context are missing, or levels are unknown.
        """
        source = Path(source) if isinstance(source, str | os.PathLike) else source
        counts = load(source, self.layer, transposed)
        library_sizes(counts, self.kind)
        return _dataset(counts, self, _order(counts, self.genes))

    def standardized_by(self, data: Dataset) -> Self:
        """Return the schema, which has neither shift nor unit."""
        return self

    def restore(self, x: Tensor) -> "sparse.csr_array":
        """Return data of the model, shape `(num_data, genes)`, as a CSR matrix of scipy.

        Whole numbers are int64 if the data are counts.
        """
        from scipy import sparse

        values = sparse.csr_array(x.detach().cpu().numpy())
        whole = self.kind == "counts" and (values.data == np.floor(values.data)).all()
        return values.astype(np.int64) if whole else values

    def names(self) -> tuple[str, ...]:
        """Return the names of the genes."""
        return self.genes

    def context_names(self) -> list[str]:
        """Return a name for each column of the context tensor."""
        return [
            name
            for column, *code in self.columns
            for name in ([f"{column}={level}" for level in code[0]] if len(code) == 1 else [column])
        ]

    def context(self, num_data: Count = 1, /, **values: object) -> Tensor:
        """Return the same context for some data, for example that of a reference batch.

        Args:
            num_data: Number of data.
            values: Level or number of each column of the context, by its name.

        Returns:
            Context as the model takes it, shape `(num_data, context_size)`.

        Raises:
            DataError: If a column is missing or unknown, or a level is unknown.

        Example:
            >>> import pyro_vae as pv
            >>> schema = pv.data.CountsSchema(["g1", "g2"], columns=[["batch", ["a", "b"]]])
            >>> schema.context(2, batch="b")
            tensor([[0., 1.],
                    [0., 1.]])

        See also: `pyro_vae.ConditionalVAE`.
        """
        import pandas as pd

        names = [column[0] for column in self.columns]
        if {*values} != {*names}:
            raise DataError(f"expected a value for each of {names}, got {sorted(values)}")
        obs = pd.DataFrame({name: [value] for name, value in values.items()})
        given = Counts("context", None, obs=obs)
        row = torch.cat([_encoded(given, column) for column in self.columns], -1)
        return row.expand(num_data, -1)

    def rows(self) -> list[dict[str, str]]:
        """Return the properties of the data, one in a row."""
        found = {
            "columns": f"{len(self.genes):,}",
            "kind": self.kind,
            "layer": self.layer or "X",
            "median sum of a row": f"{self.library_size:,.6g}",
            "context": ", ".join(self.context_names()) or "none",
            "classes": ", ".join(self.class_names) or "none",
        }
        return [{"property": name, "value": value} for name, value in found.items()]


@checked
def read(
    source: object,
    *,
    layer: str | None = None,
    batch: str | None = None,
    covariates: Sequence[str] = (),
    labels: str | None = None,
    kind: Kind = "counts",
    transposed: bool = False,
    context: Sequence[str] = (),
) -> Dataset:
    """Read a sparse matrix. Only the rows of a batch are made dense, as float32.

    Names of genes are read from AnnData, or from a file next to an `.mtx` file, as 10x Genomics
    writes them. If that file has as many names as the matrix has rows, rows and columns are
    exchanged.

    Args:
        source: Sparse matrix of scipy, AnnData, or path of an `.mtx(.gz)`, `.npz` or `.h5ad` file.
        layer: Layer of AnnData, or `"raw"` for its `.raw`; by default `X`.
        batch: Column of `.obs` with the batch of each row, a category. It is context.
        covariates: Further columns of `.obs` that are context: numbers or categories.
        labels: Column of `.obs` with classes, which are not modelled and colour pictures.
        kind: `"counts"`, or `"real"` for any finite numbers.
        transposed: Whether the rows of a matrix without names are genes, its columns cells.
        context: As `covariates`.

    Raises:
        DataError: If the source cannot be read or is empty, if a number is not a count or is not
            finite, or if a column of `.obs` is missing or has missing values.
    """
    counts = load(source, layer, transposed)
    genes = counts.genes or [str(i) for i in range(counts.matrix.shape[1])]
    names = dict.fromkeys([*([] if batch is None else [batch]), *covariates, *context])
    columns = [_column(counts, name, name == batch) for name in names]
    classes = [] if labels is None else _column(counts, labels, True)[1]
    size = float(np.median(library_sizes(counts, kind)))
    schema = CountsSchema(genes, kind, layer, columns, labels, classes, size)
    return _dataset(counts, schema, None)


def _column(counts: Counts, name: str, is_category: bool) -> list[Any]:
    """Return the description of a column of `.obs` for the schema."""
    values = counts.column(name)
    if is_category or values.dtype.kind not in "iuf":
        return [name, sorted(values.astype(str).unique().tolist())]
    mean, sd = float(values.mean()), float(values.std(ddof=0))
    if not 0 < sd < np.inf:
        raise DataError(f"{counts.name}: column {name!r} of .obs is constant or infinite; omit it")
    return [name, mean, sd]


def _order(counts: Counts, genes: tuple[str, ...]) -> np.ndarray | None:
    """Return the places of known genes in a matrix; None if they are in order."""
    unnamed = tuple(map(str, range(len(genes))))
    width, found = counts.matrix.shape[1], counts.genes
    if found is None or tuple(found) == unnamed or genes == unnamed:
        if width != len(genes):
            cells = counts.matrix.shape[0] == len(genes)
            advice = f". If its rows are genes, pass {setting('transposed', True)}" * cells
            raise DataError(
                f"{counts.name}: expected {len(genes):,} columns, got {width:,}{advice}"
            )
        _say_unnamed(counts, genes != unnamed, found is not None and tuple(found) != unnamed)
        return None
    known, given = set(genes), set(found)
    missing = [gene for gene in genes if gene not in given]
    new = [gene for gene in found if gene not in known]
    if missing or new:
        raise DataError(
            f"{counts.name}: expected the {len(genes):,} genes of the schema; {len(missing):,} are "
            f"missing ({', '.join(missing[:5])}) and {len(new):,} are new ({', '.join(new[:5])})"
        )
    places = {gene: i for i, gene in enumerate(found)}
    order = np.array([places[gene] for gene in genes])
    return None if (np.diff(order) == 1).all() else order


def _say_unnamed(counts: Counts, is_known: bool, is_given: bool) -> None:
    """Warn if only the model or only the data have names of genes, which cannot be compared.

    Matrices of scipy and `.npz` files never have names. Their columns are used as arrays are.
    """
    has_place = counts.genes is not None or ".mtx" in counts.name.lower()
    if is_known == is_given or not has_place:
        return
    who = "data have" if is_known else "model has"
    way_out = " The names are read from features.tsv or genes.tsv next to an .mtx file."
    warnings.warn(
        f"{counts.name}: the {who} no names of genes, so their order is not checked: the columns "
        f"are taken in the order of the model.{way_out * is_known}",
        DataWarning,
        stacklevel=4,
    )


def _codes(counts: Counts, name: str, levels: Sequence[str]) -> Tensor:
    """Return the number of the level of each row, in a category of `.obs`."""
    values = counts.column(name).astype(str)
    codes = values.astype("category").cat.set_categories(levels).cat.codes.to_numpy(np.int64)
    if (codes < 0).any():
        row = int((codes < 0).argmax())
        raise DataError(
            f"{counts.name}: row {values.index[row]!r}, column {name!r} of .obs: unknown level "
            f"{values.iloc[row]!r}; expected one of {list(levels)}"
        )
    return torch.from_numpy(codes)


def _encoded(counts: Counts, column: Column) -> Tensor:
    """Return a column of `.obs` as columns of the context."""
    name, *code = column
    if len(code) == 1:
        return torch.nn.functional.one_hot(_codes(counts, name, code[0]), len(code[0])).float()
    values = counts.column(name)
    if values.dtype.kind not in "iuf":
        raise DataError(f"{counts.name}: column {name!r} of .obs: expected numbers, got text")
    return torch.from_numpy((values.to_numpy(float) - code[0]) / code[1])[:, None].float()


def _dataset(counts: Counts, schema: CountsSchema, order: np.ndarray | None) -> Dataset:
    on_disk = not hasattr(counts.matrix, "astype")
    matrix = counts.matrix if on_disk else counts.matrix.astype(np.float32, copy=False)
    labels = None
    if schema.labels is not None and counts.obs is not None and schema.labels in counts.obs:
        names = counts.obs[schema.labels].astype(str).tolist()
        labels = codes_of(names, schema.class_names, f"{counts.name}, {schema.labels!r} of .obs")
    encoded = [_encoded(counts, column) for column in schema.columns]
    context = (torch.cat(encoded, -1),) if encoded else ()
    rows = SparseRows(matrix, order)
    return Dataset(
        rows,
        labels,
        name=Path(counts.name).stem,
        schema=schema,
        context=context,
        class_names=() if labels is None else schema.class_names,
        identifiers={} if counts.obs is None else {"obs_name": counts.obs.index.to_numpy()},
    )


def _accepts(source: Path | object) -> bool:
    if not isinstance(source, Path):
        return frames.is_matrix(source)
    if source.suffix.lower() == ".npz" and zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as file:
            return {"format.npy", "shape.npy", "data.npy"} <= {*file.namelist()}
    return source.name.lower().endswith((".mtx", ".mtx.gz", ".h5ad"))


READER = Reader(
    "count",
    _accepts,
    read,
    frozenset({"layer", "batch", "covariates", "labels", "kind", "transposed", "context"}),
    "sparse matrices of scipy, .mtx, .npz and .h5ad files, AnnData",
)
