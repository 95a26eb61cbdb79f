"""A run never loses a file that it did not write, nor the scores of a finished run."""

import json
import warnings

import pytest
import torch

import pyro_vae as pv
from pyro_vae.checkpointing.earlier_results import BEFORE, FILES, METRICS
from pyro_vae.checkpointing.model_folder import FILES as MODEL_FILES

CONTENTS = {"text": b"mine", "empty": b"", "list": b"[]", "object": b"{}", "no history":
            b'{"history": []}'}  # fmt: skip
X = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))


def fit(out, **settings):
    torch.manual_seed(0)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(pv.networks.MLP(2, [4], 6)),
        pv.guides.DiagonalNormal(pv.networks.MLP(6, [4], 4)),
    )
    return vae, pv.fit(vae, X, epochs=1, out=out, progress=False, **settings)


def contents(folder):
    """Return the content of all files below a folder, in any order."""
    return sorted(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", [*FILES, *(f"model/{name}" for name in MODEL_FILES)])
def test_a_folder_with_files_of_the_user_is_refused(name, content, tmp_path):
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_bytes(CONTENTS[content])
    for resume in (False, True):
        with pytest.raises(pv.CheckpointError, match="choose another"):
            fit(tmp_path, resume=resume)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]
    assert mine.read_bytes() == CONTENTS[content]


@pytest.mark.filterwarnings("ignore:.*they were moved to")
@pytest.mark.parametrize("name", ["page.html", "model_card.md", "history.json", "metrics.json"])
def test_a_report_loses_no_file_of_the_user(name, tmp_path):
    (tmp_path / name).write_text("mine")
    vae, result = fit(None)
    for _ in range(3):
        pv.report(vae, result, X, tmp_path, num_samples=2)
    fit(tmp_path)
    fit(tmp_path)
    assert b"mine" in contents(tmp_path)


@pytest.mark.filterwarnings("ignore:.*they were moved to")
def test_an_unfinished_run_replaces_no_finished_one(tmp_path):
    """Runs that fail before their scores are written, in every order with finished ones."""
    finished = None
    for number, has_scores in enumerate((1, 0, 0, 1, 0, 1, 1, 0)):
        vae, result = fit(tmp_path, seed=number)
        if finished is not None:
            kept = [path.parent for path in tmp_path.glob(f"{BEFORE}*/{METRICS}")]
            seeds = [json.loads((path / METRICS).read_text())["seed"] for path in kept]
            assert finished in seeds
            assert all((path / "model").is_dir() for path in kept)
        if has_scores:
            finished = number
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pv.report(vae, result, X, tmp_path, num_samples=2)
