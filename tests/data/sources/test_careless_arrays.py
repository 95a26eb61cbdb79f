"""Arrays, counts and images of careless people are read right, or refused with the way out."""

import contextlib

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import io, sparse

import pyro_vae as pv
from pyro_vae.data.errors import DataError
from pyro_vae.data.sources import matrices


def test_truth_values_in_bytes_are_no_pixels(tmp_path):
    x = np.random.default_rng(0).integers(0, 2, (20, 1, 4, 4)).astype(np.uint8)
    np.save(tmp_path / "x.npy", x)
    for source in (x, torch.from_numpy(x), tmp_path / "x.npy"):
        data = pv.data.open(source)
        np.testing.assert_array_equal(data[:].numpy(), x)
        np.testing.assert_array_equal(data.schema.read(source)[:].numpy(), x)
    pixels = np.where(x, 255, 0).astype(np.uint8)
    np.testing.assert_array_equal(pv.data.open(pixels)[:].numpy(), x)


def test_half_precision_tensors_are_read():
    x = torch.randn(20, 2, 3).bfloat16()
    assert torch.equal(pv.data.open(x)[:], x.float())


def test_counts_in_raw_and_transposed_matrices(tmp_path):
    anndata = pytest.importorskip("anndata")
    counts = np.random.default_rng(0).poisson(2.0, (30, 6)).astype(np.float32)
    for number, form in enumerate((sparse.csr_matrix, sparse.csc_matrix, np.asarray)):
        cells = anndata.AnnData(form(counts), var=pd.DataFrame(index=[f"g{i}" for i in range(6)]))
        cells.raw = cells
        cells = cells[:, :4].copy()
        cells.X = form(np.log1p(counts[:, :4]))
        path = tmp_path / f"{number}.h5ad"
        cells.write_h5ad(path)
        for source in (cells, path):
            with pytest.raises(DataError, match=r"expected a count.*'raw'"):
                pv.data.open(source)
            data = pv.data.open(source, layer="raw")
            np.testing.assert_array_equal(data[:].numpy(), counts)
            assert data.schema.names() == tuple(f"g{i}" for i in range(6))
    io.mmwrite(tmp_path / "genes.mtx", sparse.csr_matrix(counts.T))
    data = pv.data.open(tmp_path / "genes.mtx", transposed=True)
    np.testing.assert_array_equal(data[:].numpy(), counts)
    again = data.schema.read(tmp_path / "genes.mtx", transposed=True)
    assert torch.equal(again[:], data[:])


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix])
def test_a_file_on_disk_shows_its_progress(form, tmp_path, monkeypatch):
    anndata = pytest.importorskip("anndata")
    counts = form(np.random.default_rng(0).poisson(2.0, (50, 9)).astype(np.float32))
    anndata.AnnData(counts).write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.setattr(matrices, "ENTRIES", 100)
    shown = []

    @contextlib.contextmanager
    def bar(text, total):
        steps = []
        shown.append((text, total, steps))
        yield steps.append

    monkeypatch.setattr(matrices, "reading_bar", bar)
    data = pv.data.open(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(data[:].numpy(), counts.toarray())
    (_, entries, steps), (_, rows, checked) = shown
    assert all("cells.h5ad" in text for text, _, _ in shown)
    assert (entries, rows) == (counts.nnz, 50)
    assert (sum(steps), sum(checked)) == (entries, rows)
    assert len(steps) == -(-entries // 100)


def test_a_folder_without_images_names_what_it_has(tmp_path):
    (tmp_path / "matrix.mtx").write_text("")
    with pytest.raises(DataError, match=r"no images.*pass the path of a file.*matrix\.mtx"):
        pv.data.open(tmp_path)
    (tmp_path / "matrix.mtx").rename(tmp_path / "x.abc")
    with pytest.raises(DataError, match=r"no images.*found \.abc"):
        pv.data.open(tmp_path)


def test_gif_images_are_read_and_animated_ones_named(tmp_path):
    pictures = [Image.fromarray(np.full((4, 4), i * 9, np.uint8)) for i in range(5)]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.gif")
    assert pv.data.open(tmp_path)[:].shape == (5, 1, 4, 4)
    pictures[0].save(tmp_path / "5.gif", save_all=True, append_images=pictures[1:])
    with pytest.raises(DataError, match=r"5\.gif: 5 pictures in one file"):
        pv.data.open(tmp_path)
