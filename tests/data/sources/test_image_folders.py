"""Files of a folder that are no data: hidden ones, other formats, tables next to the images."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import pyro_vae as pv
from pyro_vae.cli.sources import digest
from pyro_vae.data import DataError, DataWarning

STRANGERS = [  # files that programs add to folders, at any depth
    ".DS_Store",
    ".ipynb_checkpoints/0-checkpoint.png",
    ".git/a/0.png",
    "a/.ipynb_checkpoints/0.png",
    "b/._0.png",
    "b/.thumbnails/normal/0.jpg",
    "a/Thumbs.db",
    "labels.csv",
    "a/readme.txt",
]
OTHERS = ["a/0.jfif", "a/1.JPX", "b/0.heic", "c/0.ppm"]


@pytest.fixture
def folder(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return tmp_path / "photos"


def add(folder, name):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((folder / "a" / "0.png").read_bytes())


@pytest.mark.parametrize("name", STRANGERS)
def test_a_file_that_is_no_data_changes_neither_data_nor_digest(name, folder):
    before, recorded = pv.data.open(folder), digest(folder)
    add(folder, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after = pv.data.open(folder)
    assert torch.equal(after[:], before[:])
    assert torch.equal(after.labels, before.labels)
    assert after.class_names == ("a", "b")
    assert digest(folder) == recorded


def test_a_folder_below_a_hidden_one_is_read(folder, tmp_path):
    data = pv.data.open(folder)
    hidden = folder.rename(tmp_path / ".cache")
    assert torch.equal(pv.data.open(hidden)[:], data[:])


def test_images_of_other_formats_are_left_out_with_a_warning(folder):
    recorded = digest(folder)
    for name in OTHERS:
        add(folder, name)
    with pytest.warns(DataWarning, match=r"4 files that end in \.heic, \.jfif, \.jpx, \.ppm are"):
        data = pv.data.open(folder)
    assert len(data) == 6
    assert digest(folder) == recorded
    for path in [*folder.rglob("*.png")]:
        path.unlink()
    with pytest.raises(DataError, match=r"no images in this folder; expected files .png"):
        pv.data.open(folder)


def test_a_new_image_changes_the_digest(folder):
    recorded = digest(folder)
    add(folder, "b/new.png")
    assert digest(folder) != recorded


def test_the_digest_of_an_array_store_has_all_files(tmp_path):
    """The parts of a .zarr folder have no endings, or are hidden."""
    store = tmp_path / "a.zarr"
    store.mkdir()
    (store / ".zarray").write_text("{}")
    recorded = digest(store)
    (store / "0.0").write_bytes(b"1234")
    assert digest(store) != recorded
