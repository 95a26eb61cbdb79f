"""Sparse matrices, `.mtx`, `.npz`, AnnData and `.h5ad`: numbers, context, and what is refused."""

import gzip
import re
import sys

import numpy as np
import pytest
import torch
from scipy import io, sparse

import pyro_vae as pv
from pyro_vae.data import DataError
from pyro_vae.data.sources import matrices

CELLS, GENES = 40, 7
COUNTS = np.random.default_rng(0).poisson(0.8, (CELLS, GENES))
EXPECTED = torch.from_numpy(COUNTS).float()
NAMES = [f"gene{i}" for i in range(GENES)]
AGES = np.random.default_rng(1).normal(40, 5, CELLS)


def write_mtx(folder, matrix):
    io.mmwrite(folder / "matrix.mtx", sparse.coo_matrix(matrix))
    return folder / "matrix.mtx"


def write_gz(folder, matrix):
    path = folder / "matrix.mtx.gz"
    path.write_bytes(gzip.compress(write_mtx(folder, matrix).read_bytes()))
    (folder / "matrix.mtx").unlink()
    return path


def write_npz(folder, matrix):
    sparse.save_npz(folder / "counts.npz", sparse.csc_matrix(matrix))
    return folder / "counts.npz"


def write_h5ad(folder, matrix, **options):
    annotated(matrix, **options).write_h5ad(folder / "cells.h5ad")
    return folder / "cells.h5ad"


def annotated(matrix=COUNTS, **layers):
    anndata = pytest.importorskip("anndata")
    pandas = pytest.importorskip("pandas")
    number = np.arange(matrix.shape[0])
    obs = pandas.DataFrame(
        {
            "batch": [f"b{i % 3}" for i in number],
            "age": np.resize(AGES, len(number)),
            "donor": number % 2,
        },
        index=[f"cell{i}" for i in number],
    )
    var = pandas.DataFrame(index=NAMES[: matrix.shape[1]])
    if not sparse.issparse(matrix):
        matrix = matrix.astype(np.float32)
    return anndata.AnnData(matrix, obs, var, layers=layers)


SOURCES = {
    **{
        f"{kind.__name__}, {dtype}": lambda folder, x, kind=kind, dtype=dtype: kind(x.astype(dtype))
        for kind in (sparse.csr_matrix, sparse.csc_array, sparse.coo_array, sparse.lil_matrix)
        for dtype in ("int64", "uint8", "float64")
    },
    "mtx": write_mtx,
    "mtx.gz": write_gz,
    "npz": write_npz,
    "AnnData": lambda folder, x: annotated(sparse.csr_matrix(x)),
    "AnnData, dense": lambda folder, x: annotated(x),
    "AnnData, a view": lambda folder, x: annotated(sparse.csc_matrix(np.r_[x, x]))[: len(x)],
    "h5ad": lambda folder, x: write_h5ad(folder, sparse.csr_matrix(x)),
    "h5ad, columns": lambda folder, x: write_h5ad(folder, sparse.csc_matrix(x)),
    "h5ad, dense": write_h5ad,
}
FILES = ["mtx", "mtx.gz", "npz", "h5ad"]


@pytest.fixture(params=["in memory", "on disk"])
def anywhere(request, monkeypatch):
    if request.param == "on disk":
        monkeypatch.setattr(matrices, "IN_MEMORY", 0)
        monkeypatch.setattr(matrices, "BLOCK", 9)


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("kind", SOURCES)
def test_counts_are_those_of_the_source(kind, tmp_path):
    source = SOURCES[kind](tmp_path, COUNTS)
    data = pv.data.open(source)
    assert torch.equal(data[:], EXPECTED)
    assert data.x_dtype == torch.float32
    index = torch.tensor([30, 2, 2, 39])
    assert torch.equal(data[index], EXPECTED[index])
    assert torch.equal(data[::7], EXPECTED[::7])
    assert data.schema.library_size == np.median(COUNTS.sum(1))
    assert data.event_shape == data.schema.event_shape == (GENES,)
    named = kind.startswith(("AnnData", "h5ad"))
    assert list(data.schema.names()) == (NAMES if named else [str(i) for i in range(GENES)])
    restored = data.schema.restore(data[:])
    assert restored.dtype == np.int64
    np.testing.assert_array_equal(restored.toarray(), COUNTS)


def test_duplicate_entries_are_summed_and_the_source_is_unchanged():
    parts = (np.array([1.0, 2.0, 4.0]), np.array([1, 1, 0]), np.array([0, 2, 3]))
    source = sparse.csr_matrix(parts, shape=(2, 3))
    assert pv.data.open(source)[:].tolist() == [[0, 3, 0], [4, 0, 0]]
    assert source.data.tolist() == [1, 2, 4]


def test_one_row_and_rows_without_counts_are_read():
    assert pv.data.open(sparse.csr_matrix(COUNTS[:1]))[:].tolist() == COUNTS[:1].tolist()
    assert pv.data.open(sparse.csr_matrix((3, 2)))[:].tolist() == [[0, 0]] * 3


def test_real_numbers_are_read_if_the_kind_says_so():
    values = np.array([[0, -1.5], [2.5, 0]])
    data = pv.data.open(sparse.csr_matrix(values), kind="real")
    assert data[:].tolist() == values.tolist()
    np.testing.assert_array_equal(data.schema.restore(data[:]).toarray(), values)


def test_means_of_counts_are_not_rounded():
    schema = pv.data.open(sparse.csr_matrix(COUNTS)).schema
    assert schema.restore(torch.full((1, GENES), 0.5)).toarray().tolist() == [[0.5] * GENES]


@pytest.mark.parametrize("name", ["features.tsv", "features.tsv.gz", "genes.tsv"])
def test_a_file_of_genes_next_to_a_matrix_has_their_names(name, tmp_path):
    """10x Genomics writes one row for each gene."""
    path = write_mtx(tmp_path, COUNTS.T)
    text = "".join(f"ID{i}\t{gene}\tGene Expression\n" for i, gene in enumerate(NAMES)).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    data = pv.data.open(path)
    assert torch.equal(data[:], EXPECTED)
    assert data.schema.names() == tuple(f"ID{i}" for i in range(GENES))
    (tmp_path / name).unlink()
    (tmp_path / "genes.tsv").write_text("one\ntwo\n")
    with pytest.raises(DataError, match=r"2 names of genes for a matrix of \(7, 40\)"):
        pv.data.open(path)


# -- context and schema ----------------------------------------------------------------------------


@pytest.mark.parametrize("on_disk", [False, True])
def test_columns_of_obs_are_context(on_disk, tmp_path):
    source = write_h5ad(tmp_path, COUNTS) if on_disk else annotated()
    options = {"batch": "donor", "covariates": ["age", "batch"], "labels": "batch"}
    data = pv.data.open(source, **options)
    assert data.schema.context_names() == [
        "donor=0", "donor=1", "age", "batch=b0", "batch=b1", "batch=b2"
    ]  # fmt: skip
    _, context = data.batch(slice(None))
    number = np.arange(CELLS)
    ages = (AGES - AGES.mean()) / AGES.std()
    columns = [number % 2 == 0, number % 2 == 1, ages, *(number % 3 == i for i in range(3))]
    np.testing.assert_allclose(context, np.stack(columns, -1), rtol=1e-5, atol=1e-6)
    assert data.labels.tolist() == (number % 3).tolist()
    assert data.class_names == data.schema.class_names
    assert len(data.class_names) == 3
    assert data.schema.class_names == ("b0", "b1", "b2")
    again = data.schema.read(source)
    assert torch.equal(again.context[0], context)
    _, held = data.hold_out(0.25)
    assert len(held.context[0]) == len(held) == len(held.labels) == 10


def test_new_data_are_encoded_by_the_schema():
    data = pv.data.open(annotated(), batch="batch", covariates=["age"])
    few = annotated()[5:7]
    assert torch.equal(data.schema.read(few).batch(slice(2))[1], data.batch(slice(5, 7))[1])
    few = few.copy()
    few.obs["batch"] = ["b1", "new"]
    message = r"row 'cell6', column 'batch' of .obs: unknown level 'new'; expected one of \['b0'"
    with pytest.raises(DataError, match=message):
        data.schema.read(few)


@pytest.mark.usefixtures("anywhere")
def test_genes_are_read_by_name(tmp_path):
    order = [3, 0, 6, 1, 2, 5, 4]
    data = pv.data.open(annotated())
    write_h5ad(tmp_path, COUNTS)
    shuffled = annotated(sparse.csr_matrix(COUNTS))[:, order].copy()
    shuffled.write_h5ad(tmp_path / "shuffled.h5ad")
    for source in (shuffled, tmp_path / "shuffled.h5ad", str(tmp_path / "cells.h5ad")):
        assert torch.equal(data.schema.read(source)[:], EXPECTED)
    assert torch.equal(data.schema.read(sparse.csr_matrix(COUNTS))[:], EXPECTED)
    shuffled.var_names = ["other", *shuffled.var_names[1:]]
    message = r"7 genes .*1 are missing \(gene3\) and 1 are new \(other\)"
    with pytest.raises(DataError, match=message):
        data.schema.read(shuffled)
    with pytest.raises(DataError, match="expected 7 columns, got 6"):
        data.schema.read(sparse.csr_matrix(COUNTS[:, :6]))


def test_a_layer_is_read():
    source = annotated(np.log1p(COUNTS), raw=sparse.csr_matrix(COUNTS))
    with pytest.raises(DataError, match=r"row 0, column \d \(gene\d\): .*layer=, one of \['raw'\]"):
        pv.data.open(source)
    data = pv.data.open(source, layer="raw")
    assert torch.equal(data[:], EXPECTED)
    assert torch.equal(data.schema.read(source)[:], EXPECTED)


# -- what is refused -------------------------------------------------------------------------------


BAD = {
    "missing": (np.nan, "expected a finite number"),
    "infinite": (np.inf, "expected a finite number"),
    "negative": (-1.0, "expected a count, .* kind='real'"),
    "not whole": (0.5, "expected a count, .* kind='real'"),
    "beyond float32": (2.0**24, "expected a count, a whole number from 0 to 16,777,215"),
}


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("source", ["csr_matrix, float64", "mtx", "npz", "AnnData", "h5ad"])
def test_a_number_that_is_no_count_is_named(kind, source, tmp_path):
    value, message = BAD[kind]
    found = re.escape(f"{value:g}")
    matrix = COUNTS.astype(float)
    matrix[31, 4] = value
    with pytest.raises(DataError, match=rf"row 31, column 4( \(gene4\))?: {found}; {message}"):
        pv.data.open(SOURCES[source](tmp_path, matrix))


REFUSED = {
    "no rows": (lambda: sparse.csr_matrix((0, 3)), {}, r"is empty: shape \(0, 3\)"),
    "complex numbers": (lambda: sparse.csr_matrix(COUNTS * 1j), {}, "got dtype complex128"),
    "a layer of a matrix": (lambda: sparse.csr_matrix(COUNTS), {"layer": "x"}, "needs AnnData"),
    "a batch of a matrix": (lambda: sparse.csr_matrix(COUNTS), {"batch": "x"}, "needs AnnData"),
    "an unknown layer": (annotated, {"layer": "x"}, r"no layer 'x'; expected one of \[\]"),
    "an unknown column": (annotated, {"batch": "x"}, r"no column 'x' in .obs: \['batch', 'age'"),
    "another kind": (annotated, {"kind": "x"}, "kind must be 'counts' or 'real'"),
    "another option": (annotated, {"size": 3}, "'size' does not apply to count data"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_sources_and_options_are_refused(kind):
    make, options, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        pv.data.open(make(), **options)


def test_faulty_columns_and_names_are_refused():
    source = annotated()
    source.obs["same"] = 1.0
    with pytest.raises(DataError, match=r"'same' of .obs is constant"):
        pv.data.open(source, covariates=["same"])
    source.obs.loc["cell7", "age"] = np.nan
    with pytest.raises(DataError, match=r"row 'cell7', column 'age' of .obs: missing value"):
        pv.data.open(source, covariates=["age"])
    source.var_names = ["gene1", *NAMES[1:]]
    with pytest.raises(DataError, match="the gene 'gene1' occurs several times"):
        pv.data.open(source)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_a_truncated_file_is_named(kind, share, tmp_path):
    path = SOURCES[kind](tmp_path, COUNTS)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match=rf"{path.name}.* cannot be read"):
        pv.data.open(path)


def test_a_file_of_another_version_is_named(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = write_h5ad(tmp_path, sparse.csr_matrix(COUNTS))
    with h5py.File(path, "r+") as file:
        file["obs"].attrs["encoding-version"] = "99.0.0"
    with pytest.raises(DataError, match=r"cells.h5ad cannot be read, .* another version"):
        pv.data.open(path)


def test_without_anndata_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "anndata", None)
    (tmp_path / "cells.h5ad").write_bytes(b"")
    with pytest.raises(DataError, match=r"pip install 'pyro-vae\[anndata\]'"):
        pv.data.open(tmp_path / "cells.h5ad")


def test_arrays_in_npz_files_are_no_counts(tmp_path):
    np.savez(tmp_path / "array.npz", COUNTS.astype(np.float32))
    assert pv.data.open(tmp_path / "array.npz").schema.content != "counts"


# -- training --------------------------------------------------------------------------------------


def vae(schema=None):
    torch.manual_seed(0)
    mlp = pv.networks.MLP
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.NegativeBinomial(mlp(2, [4], GENES)),
        pv.guides.DiagonalNormal(mlp(GENES, [4], 4)),
        schema=schema,
    )


def test_sparse_counts_train_and_score_as_dense_ones(tmp_path):
    found = []
    for data in (pv.data.Dataset(EXPECTED), pv.data.open(sparse.csr_matrix(COUNTS))):
        train, validation = data.hold_out(8, seed=3)
        pair = vae(data.schema)
        run = {"validation": validation, "compile": False, "progress": False}
        fit = pv.fit(pair, train, epochs=2, batch_size=8, **run)
        scores = pv.evaluate(pair, validation, num_samples=5)
        found.append(([e["validation_elbo"] for e in fit.history], scores.elbo.tolist()))
    assert found[0] == found[1]
    pair.save(tmp_path / "model")
    loaded = pv.load(tmp_path / "model")
    source = sparse.csr_matrix(COUNTS)
    assert torch.equal(loaded.schema.read(source)[:], EXPECTED)
    scores = [pv.evaluate(loaded, x, num_samples=5).elbo for x in (source, EXPECTED)]
    assert (scores[0] == scores[1]).all()


@pytest.mark.parametrize("place", [(17, 3), (39, 6)])
def test_a_run_is_not_resumed_on_other_counts(place, tmp_path):
    run = {"epochs": 1, "out": tmp_path / "run", "compile": False, "progress": False}
    pv.fit(vae(), pv.data.open(sparse.csr_matrix(COUNTS)), **run)
    other = COUNTS.copy()
    other[place] += 1
    with pytest.raises(ValueError, match="train_sha256"):
        pv.fit(vae(), pv.data.open(sparse.csr_matrix(other)), resume=True, **run)


@pytest.mark.parametrize("form", ["csr", "csc", "anndata"])
def test_functions_take_matrices_without_a_schema(form):
    """Numbers are those of the dense array, and need not be counts."""
    numbers = COUNTS * np.float32(0.5) - np.float32(0.25) * (COUNTS > 2)
    given = {
        "csr": sparse.csr_array,
        "csc": sparse.csc_matrix,
        "anndata": lambda x: annotated(sparse.csr_matrix(x)),
    }[form](numbers)
    scores = []
    for data in (torch.from_numpy(numbers).float(), given, (given, None)[:1]):
        torch.manual_seed(0)
        vae = pv.VAE(
            pv.priors.StandardNormal(2),
            pv.likelihoods.Normal(pv.networks.MLP(2, [4], GENES)),
            pv.guides.DiagonalNormal(pv.networks.MLP(GENES, [4], 4)),
        )
        pv.fit(vae, data, epochs=1, batch_size=8, compile=False, progress=False)
        found = pv.evaluate(vae, data, num_samples=5).log_likelihood
        x = data[0] if isinstance(data, tuple) else data
        scores.append((found, vae.encode(x).mean.detach().numpy()))
    for other in scores[1:]:
        np.testing.assert_array_equal(other[0], scores[0][0])
        np.testing.assert_array_equal(other[1], scores[0][1])
