"""Rows in files of results have the identifiers that they have in the data."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import pyro_vae as pv
from pyro_vae.cli import outputs
from pyro_vae.data import DataError, DataWarning

COUNT = 12
IDS = [f"p{i:03d}" for i in range(COUNT)]
VALUES = np.arange(COUNT) / 10


def table(folder):
    path = folder / "table.csv"
    frame = {"patient": IDS, "x": VALUES, "visit_id": range(1000, 1000 + COUNT), "row": IDS[::-1]}
    pd.DataFrame(frame).to_csv(path, index=False)
    wanted = {"patient": IDS, "visit_id": [*frame["visit_id"]], "row_1": IDS[::-1]}
    return pv.data.open(path, columns=dict.fromkeys(("patient", "row"), "identifier")), wanted


def index(folder):
    path = folder / "table.parquet"
    pd.DataFrame({"x": VALUES}, index=pd.Index(IDS, name="gene")).to_parquet(path)
    return pv.data.open(path), {"gene": IDS}


def several_levels(folder):
    levels = pd.MultiIndex.from_arrays([IDS, range(COUNT)], names=["site", None])
    return pv.data.open(pd.DataFrame({"x": VALUES}, index=levels)), {
        "site": IDS,
        "index_1": [*range(COUNT)],
    }


def images(folder):
    for i, name in enumerate(IDS):
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(folder / f"{name}.png")
    (folder / "p003a.png").write_bytes(b"damaged")
    with pytest.warns(DataWarning, match="left out"):
        data = pv.data.open(folder, skip_unreadable=True)
    return data, {"file": [str(folder / f"{name}.png") for name in IDS]}


def cells(folder):
    anndata = pytest.importorskip("anndata")
    obs = pd.DataFrame(index=IDS)
    return pv.data.open(anndata.AnnData(np.eye(COUNT, dtype=np.float32), obs)), {"obs_name": IDS}


def without(folder):
    return pv.data.open(pd.DataFrame({"x": VALUES})), {}


@pytest.mark.filterwarnings("ignore:.*so the identifier of each row is in 'row_1'")
@pytest.mark.parametrize("source", [table, index, several_levels, images, cells, without])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_rows_keep_their_identifiers(source, ending, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    data, wanted = source(folder)
    path = tmp_path / f"z.{ending}"
    for part in (data, *data.hold_out(0.3), data.to("cpu")):
        place = data[:].flatten(1)[:, None].eq(part[:].flatten(1)).all(-1).int().argmax(0)
        outputs.write_rows(path, part, {"log_p": torch.zeros(len(part)).numpy()})
        written = pd.read_csv(path) if ending == "csv" else pd.read_parquet(path)
        assert list(written) == ["row", *wanted, "log_p"]
        for name, values in wanted.items():
            assert written[name].tolist() == [values[i] for i in place]


def test_the_class_follows_the_identifiers_and_intervals_have_them(tmp_path):
    frame = pd.DataFrame({"id": IDS, "x": [*VALUES[:-1], np.nan], "y": VALUES, "k": [*"ab"] * 6})
    data = pv.data.open(frame, labels="k")
    outputs.write_rows(tmp_path / "z.csv", data, {})
    assert list(pd.read_csv(tmp_path / "z.csv")) == ["row", "id", "class"]
    x = torch.zeros(COUNT, 2)
    found = dict.fromkeys(("value", "low_50", "high_50", "low_90", "high_90", "share"), x)
    outputs.write_intervals(tmp_path / "iv.csv", data, data[:].isnan(), found)
    written = pd.read_csv(tmp_path / "iv.csv")
    assert written[["row", "id", "column"]].to_numpy().tolist() == [[COUNT - 1, IDS[-1], "x"]]


def test_identifiers_are_one_for_each_row():
    with pytest.raises(DataError, match="'file' has 2 values: expected one for each datum, 3"):
        pv.data.Dataset(torch.zeros(3, 2), identifiers={"file": np.array(["a", "b"])})


def test_new_rows_may_lack_identifiers(tmp_path):
    data, _ = table(tmp_path)
    new = data.schema.read(pd.DataFrame({"x": VALUES, "patient": IDS[::-1]}))
    assert new.identifiers["patient"].tolist() == IDS[::-1]
    assert list(new.identifiers) == ["patient"]
