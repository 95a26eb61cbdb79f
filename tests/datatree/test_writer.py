"""Trees on disk: NetCDF and zarr."""

import sys

import arviz
import pytest
import xarray as xr

import pyro_vae as pv
from tests.support.linear_gaussian import linear_vae
from tests.support.pairs import EXACT_PAIRS


def test_netcdf_holds_a_tree(tmp_path):
    vae, x = linear_vae()
    tree = pv.from_pyro_svi(vae.model, vae.guide, model_args=(x,), num_samples=3)
    tree.to_netcdf(tmp_path / "tree.nc")
    with xr.open_datatree(tmp_path / "tree.nc") as again:
        xr.testing.assert_identical(tree, again.load())
    # ArviZ 0.23 converts the tree to InferenceData; ArviZ 1.x reads the file as a DataTree.
    if arviz.__version__.startswith("0."):
        read = arviz.InferenceData.from_datatree(tree)
    else:
        read = arviz.from_netcdf(tmp_path / "tree.nc")
    assert read.posterior["z"].shape == (1, 3, 50, 3)


@pytest.mark.parametrize("kind", ["discrete", "subsampled", "hierarchy"])
def test_zarr_grows_batch_by_batch_to_the_tree_in_memory(tmp_path, kind):
    pytest.importorskip("zarr", reason="zarr stores are tested where zarr is installed")
    pair = EXACT_PAIRS[kind]()
    settings = {"model_args": pair.args, "num_samples": 3, "batch_size": 2, "seed": 0}
    tree = pv.from_pyro_svi(pair.model, pair.guide, **settings)
    stored = pv.from_pyro_svi(pair.model, pair.guide, **settings, store=tmp_path / "tree.zarr")
    xr.testing.assert_identical(tree, stored.load())
    with pytest.raises(FileExistsError, match="exists already"):
        pv.from_pyro_svi(pair.model, pair.guide, **settings, store=tmp_path / "tree.zarr")


def test_a_store_without_zarr_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    vae, x = linear_vae()
    with pytest.raises(ImportError, match=r"pip install 'pyro-vae\[zarr\]'"):
        pv.from_pyro_svi(
            vae.model, vae.guide, model_args=(x,), num_samples=2, store=tmp_path / "tree.zarr"
        )
