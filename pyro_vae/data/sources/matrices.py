"""Matrices of counts with the names of their columns: scipy, `.mtx`, `.npz`, AnnData, `.h5ad`."""

import gzip
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pyro_vae.arguments import setting
from pyro_vae.data.errors import DataError
from pyro_vae.data.indexed_rows import IndexedRows
from pyro_vae.runtime.progress_bar import reading_bar

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from anndata.abc import CSCDataset, CSRDataset
    from scipy import sparse

    CSR: TypeAlias = sparse.csr_array | CSRDataset
    Matrix: TypeAlias = CSR | CSCDataset | sparse.sparray  # or dense, in memory or on disk

IN_MEMORY = 2**31  # bytes of a sparse matrix; a larger one of an .h5ad file is read from disk
BLOCK = 4096  # rows that are checked at once
ENTRIES = 2**20  # of a sparse matrix that are read at once
RAW = "raw"  # name of the matrix .raw of AnnData, as a layer
LARGEST = 2**24  # float32 has all whole numbers below
GENE_FILES = ("features.tsv.gz", "features.tsv", "genes.tsv")  # next to an .mtx file


class SparseRows(IndexedRows):
    """Rows of a CSR matrix that implement `Rows`. Only the rows of a batch are made dense.

    Args:
        matrix: CSR matrix of scipy, or of anndata on disk.
        order: Numbers of the columns to read, in this order; by default all.
    """

    def __init__(self, matrix: "CSR", order: np.ndarray | None = None) -> None:
        width = matrix.shape[1] if order is None else len(order)
        super().__init__(matrix.shape[0], (width,), torch.float32)
        self._matrix, self._order = matrix, order

    def _read(self, numbers: np.ndarray, rows: Tensor) -> None:
        self._sparse(numbers).toarray(out=rows.numpy())

    def fingerprint(self) -> Iterator[Tensor]:
        """Yield the entries of all rows and their places."""
        for start in range(0, len(self), BLOCK):
            part = self._sparse(self._numbers[start : start + BLOCK])
            yield from map(torch.from_numpy, (part.data, part.indices, part.indptr))

    def content_samples(self) -> tuple[Tensor, ...]:
        """Return no rows, because the fingerprint has all of them."""
        return ()

    def _sparse(self, numbers: np.ndarray) -> "sparse.csr_array":
        rows = self._matrix[numbers].astype(np.float32, copy=False)
        return rows if self._order is None else rows[:, self._order]


@dataclass
class Counts:
    """A matrix that was read, with the names of its genes and the columns of `.obs`, if any."""

    name: str
    matrix: "CSR"
    genes: list[str] | None = None
    obs: "pd.DataFrame | None" = None
    layers: Sequence[str] = ()

    def column(self, name: str) -> "pd.Series":
        """Return a column of `.obs` without missing values."""
        if self.obs is None:
            raise DataError(f"{self.name}: the column {name!r} needs AnnData with .obs")
        if name not in self.obs:
            raise DataError(f"{self.name}: no column {name!r} in .obs: {list(self.obs.columns)}")
        values = self.obs[name]
        if (missing := values.isna().to_numpy()).any():
            row = values.index[missing.argmax()]
            raise DataError(f"{self.name}: row {row!r}, column {name!r} of .obs: missing value")
        return values


def load(source: "Path | AnnData | Matrix", layer: str | None, transposed: bool = False) -> Counts:
    """Read a source as a CSR matrix, in memory or on disk; see `counts.read`."""
    from scipy import sparse

    if not isinstance(source, Path):
        return _counts_of(f"the {type(source).__name__}", source, None, layer, transposed)
    try:
        opened = _opened(source)
        found = _counts_of(source.name, opened, _genes_of(source), layer, transposed)
        if hasattr(opened, "file") and sparse.issparse(found.matrix):
            opened.file.close()
        return found
    except DataError:
        raise
    except ImportError as error:
        raise DataError("reading .h5ad needs anndata: pip install 'pyro-vae[anndata]'") from error
    except Exception as error:  # readers raise errors of many classes
        raise DataError(
            f"{source} cannot be read, because it is damaged or of another version of its format: "
            f"{type(error).__name__}: {error}"
        ) from error


def _opened(path: Path) -> "AnnData | Matrix":
    import scipy

    if path.suffix.lower() == ".npz":
        return scipy.sparse.load_npz(path)
    if path.suffix.lower() != ".h5ad":
        with warnings.catch_warnings():  # the class of matrices changes in scipy 1.20
            warnings.simplefilter("ignore", DeprecationWarning)
            return scipy.io.mmread(path)
    import anndata

    with warnings.catch_warnings():  # of files of earlier versions
        warnings.simplefilter("ignore")
        return anndata.read_h5ad(path, backed="r")


def _genes_of(path: Path) -> list[str] | None:
    """Return the names in a file of genes next to an `.mtx` file."""
    files = [path.with_name(name) for name in GENE_FILES if path.with_name(name).exists()]
    if not files or ".mtx" not in path.name.lower():
        return None
    text = files[0].read_bytes()
    text = gzip.decompress(text) if files[0].suffix == ".gz" else text
    return [line.split("\t")[0] for line in text.decode().splitlines()]


def _counts_of(
    name: str,
    source: "AnnData | Matrix",
    genes: list[str] | None,
    layer: str | None,
    transposed: bool,
) -> Counts:
    matrix, obs, layers = source, None, []
    if hasattr(source, "var_names"):  # AnnData
        if transposed:
            raise DataError(f"{name}: expected genes as columns; transpose it, by adata.T")
        layers = [key for key in source.layers if key is not None]  # X in anndata 0.13
        obs, layers = source.obs, [*layers, *[RAW] * (source.raw is not None)]
        if layer is not None and layer not in layers:
            raise DataError(f"{name}: no layer {layer!r}; expected one of {layers}")
        values = source.raw if layer == RAW and RAW not in source.layers else source
        matrix = source.layers.get(layer, values.X)
        genes = list(map(str, values.var_names))
        if matrix is None:
            raise DataError(f"{name} has no X; pass {setting('layer')}, one of {layers}")
    elif layer is not None:
        raise DataError(f"{name}: {setting('layer')} needs AnnData")
    elif transposed or (genes is not None and len(genes) == matrix.shape[0]):
        matrix = matrix.T
    if len(matrix.shape) != 2 or 0 in matrix.shape:
        raise DataError(f"{name} is empty: shape {tuple(matrix.shape)}")
    if genes is not None and len(genes) != matrix.shape[1]:
        raise DataError(f"{name}: {len(genes):,} names of genes for a matrix of {matrix.shape}")
    repeated = [gene for gene, count in Counter(genes).items() if count > 1]
    if repeated:
        raise DataError(
            f"{name}: the gene {repeated[0]!r} occurs several times: rename it, for example by "
            "adata.var_names_make_unique()"
        )
    return Counts(name, _csr(name, matrix), genes, obs, layers)


def _csr(name: str, matrix: "Matrix") -> "CSR":
    """Return a matrix as CSR without duplicate entries; a dense one block by block."""
    from scipy import sparse

    if np.dtype(matrix.dtype).kind not in "buif":
        raise DataError(f"{name}: expected a matrix of numbers, got dtype {matrix.dtype}")
    stored = None if sparse.issparse(matrix) else getattr(matrix, "format", None)  # on disk
    if stored == "csr" and 8 * matrix.group["data"].size > IN_MEMORY:
        return matrix
    if stored is not None:
        matrix = _in_memory(name, matrix)
    if not sparse.issparse(matrix):
        starts = range(0, matrix.shape[0], BLOCK)
        blocks = [sparse.csr_array(np.asarray(matrix[i : i + BLOCK])) for i in starts]
        return sparse.vstack(blocks, format="csr")
    csr = matrix.tocsr()
    if not csr.has_canonical_format:
        csr = csr.copy()
        csr.sum_duplicates()
    return csr


def _in_memory(name: str, matrix: "CSRDataset | CSCDataset") -> "sparse.sparray":
    """Read a sparse matrix on disk, block by block."""
    from scipy import sparse

    files = [matrix.group["data"], matrix.group["indices"]]
    arrays = [np.empty(file.shape, file.dtype) for file in files]
    with reading_bar(f"reading {name}", arrays[0].size) as advance:
        for start in range(0, arrays[0].size, ENTRIES):
            block = slice(start, start + ENTRIES)
            for file, array in zip(files, arrays, strict=True):
                array[block] = file[block]
            advance(len(arrays[0][block]))
    build = sparse.csr_array if matrix.format == "csr" else sparse.csc_array
    return build((*arrays, matrix.group["indptr"][:]), shape=matrix.shape)


def library_sizes(counts: Counts, kind: str) -> np.ndarray:
    """Return the sum of each row; check all numbers, before they are converted to float32."""
    sums, num_data = [], counts.matrix.shape[0]
    with reading_bar(f"reading {counts.name}", num_data) as advance:
        for start in range(0, num_data, BLOCK):
            part = counts.matrix[start : start + BLOCK]
            _check_numbers(counts, kind, part, start)
            sums.append(np.asarray(part.sum(1)).ravel())
            advance(part.shape[0])
    return np.concatenate(sums)


def _check_numbers(counts: Counts, kind: str, part: "sparse.csr_array", start: int) -> None:
    """Check the numbers of a block of rows, of which `start` is the first."""
    values = part.data
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(values.astype(np.float32))
    if kind == "counts":
        bad |= (values < 0) | (values != np.floor(values)) | (values >= LARGEST)
    if bad.any():
        place = int(bad.argmax())
        row = start + int(np.searchsorted(part.indptr, place, "right")) - 1
        column = int(part.indices[place])
        gene = f" ({counts.genes[column]})" if counts.genes else ""
        layers = f", or {setting('layer')}, one of {list(counts.layers)}" if counts.layers else ""
        expected = f"expected a count, a whole number from 0 to {LARGEST - 1:,}: correct it, or "
        expected += f"pass {setting('kind', 'real')} for other numbers{layers}"
        if kind == "real" or not np.isfinite(values[place]):
            expected = "expected a finite number of float32: leave out the row or the column"
        raise DataError(
            f"{counts.name}: row {row}, column {column}{gene}: {values[place]:g}; {expected}"
        )
