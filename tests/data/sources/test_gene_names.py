"""Genes are compared by name; if only the model or only the data have names, a warning says so."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import io, sparse

import pyro_vae as pv
from pyro_vae.data import DataError, DataWarning

anndata = pytest.importorskip("anndata")
COUNTS = np.random.default_rng(0).poisson(2.0, (8, 5))
NAMES = ["g1", "g2", "g3", "g4", "g5"]


def mtx(folder, order, names=True):
    folder.mkdir(exist_ok=True)
    io.mmwrite(folder / "matrix.mtx", sparse.coo_matrix(COUNTS[:, order].T if names else COUNTS))
    if names:
        lines = (f"{NAMES[i]}\t{NAMES[i]}\tGene Expression" for i in order)
        (folder / "features.tsv").write_text("\n".join(lines) + "\n")
    return folder / "matrix.mtx"


SOURCES = {
    "mtx with names": mtx,
    "mtx": lambda folder, order: mtx(folder, order, names=False),
    "AnnData with names": lambda folder, order: anndata.AnnData(
        sparse.csr_array(COUNTS[:, order]), var=pd.DataFrame(index=[NAMES[i] for i in order])
    ),
    "AnnData": lambda folder, order: anndata.AnnData(sparse.csr_array(COUNTS[:, order])),
    "matrix": lambda folder, order: sparse.csr_array(COUNTS[:, order]),
}
NAMED = {name for name in SOURCES if name.endswith("with names")}
ORDER, OTHER = [0, 1, 2, 3, 4], [4, 2, 0, 1, 3]


@pytest.mark.parametrize(("known", "given"), [*itertools.product(SOURCES, SOURCES)])
def test_genes_are_in_the_order_of_the_model_or_not_checked_with_a_warning(known, given, tmp_path):
    schema = pv.data.open(SOURCES[known](tmp_path / "known", ORDER)).schema
    both = {known, given} <= NAMED
    source = SOURCES[given](tmp_path / "given", OTHER if both else ORDER)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = schema.read(source)
    texts = [str(w.message) for w in caught if w.category is DataWarning]
    assert torch.equal(data[:], torch.from_numpy(COUNTS).float())
    assert len(texts) == (((known in NAMED) != (given in NAMED)) and given != "matrix")
    assert all("order is not checked" in text for text in texts)


def test_a_matrix_of_other_size_is_refused_with_the_option_for_rows_of_genes(tmp_path):
    schema = pv.data.open(SOURCES["mtx with names"](tmp_path / "known", ORDER)).schema
    io.mmwrite(tmp_path / "rows.mtx", sparse.coo_matrix(COUNTS.T))
    with pytest.raises(DataError, match=r"expected 5 columns, got 8.*transposed=True"):
        schema.read(tmp_path / "rows.mtx")
    with pytest.warns(DataWarning, match=r"features\.tsv"):
        assert len(schema.read(tmp_path / "rows.mtx", transposed=True)) == 8
