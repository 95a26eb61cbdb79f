"""A run never loses a file that it did not write, nor the scores of a finished run."""

import hashlib
import json
import warnings

import pytest
import torch

import pyro_vae as pv
from pyro_vae.checkpointing.earlier_results import BEFORE, FILES, METRICS
from pyro_vae.checkpointing.model_folder import FILES as MODEL_FILES
from pyro_vae.runtime.records import RECORD, write_result
from tests.support.pictures import draw_no_pictures

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


@pytest.mark.thinned(7)
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


@pytest.mark.thinned(3)
@pytest.mark.filterwarnings("ignore:.*they were moved to")
@pytest.mark.parametrize("name", ["page.html", "model_card.md", "history.json", "metrics.json"])
def test_a_report_loses_no_file_of_the_user(name, tmp_path, monkeypatch):
    draw_no_pictures(monkeypatch)
    (tmp_path / name).write_text("mine")
    vae, result = fit(None)
    for _ in range(3):
        pv.report(vae, result, X, tmp_path, num_samples=2)
    fit(tmp_path)
    fit(tmp_path)
    assert b"mine" in contents(tmp_path)


@pytest.mark.filterwarnings("ignore:.*they were moved to")
def test_an_unfinished_run_replaces_no_finished_one(tmp_path, monkeypatch):
    """Runs that fail before their scores are written, in every order with finished ones."""
    draw_no_pictures(monkeypatch)
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


REPORTED = ["metrics.json", "model_card.md", "latents.png", "posterior.nc"]


@pytest.mark.filterwarnings("ignore:.*they were moved to")
@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", [*REPORTED, "history.json", "page.html", "prior_samples.csv"])
@pytest.mark.parametrize("is_change", [False, True])
def test_later_files_of_the_user_are_not_lost(name, is_change, tmp_path, monkeypatch):
    """A file that the user adds to the folder of a real run, or changes in it."""
    draw_no_pictures(monkeypatch)
    vae, result = fit(tmp_path)
    if is_change:
        pv.report(vae, result, X, tmp_path, num_samples=2)
    mine = (tmp_path / name).read_bytes() + b"mine" if (tmp_path / name).exists() else b"mine"
    (tmp_path / name).write_bytes(mine)
    if name != "metrics.json":  # which would be of another run
        pv.report(vae, result, X, tmp_path, num_samples=2)
    for seed in range(1, 4):
        fit(tmp_path, seed=seed)
        assert mine in contents(tmp_path)


WRITERS = {
    "any name.txt": lambda vae, path: write_result(path, b"a result"),
    "trust.json": lambda vae, path: pv.diagnose(vae, X, num_samples=10).save(path),
    "a page.html": lambda vae, path: pv.explorer.Explorer(vae, X, num_samples=2).save(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_no_writer_replaces_a_file_of_the_user_in_the_folder_of_a_run(name, tmp_path):
    vae, _ = fit(tmp_path)
    path = tmp_path / name
    path.write_text("mine")
    with pytest.warns(UserWarning, match=f"did not write .*{name}.*they were moved to"):
        WRITERS[name](vae, path)
    WRITERS[name](vae, path)
    moved = [*tmp_path.glob(f"{BEFORE}-*/{name}")]
    assert [file.read_text() for file in moved] == ["mine"]
    assert path.read_text() != "mine"


def test_results_of_the_run_are_replaced_without_a_word(tmp_path, monkeypatch):
    draw_no_pictures(monkeypatch)
    vae, result = fit(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            pv.report(vae, result, X, tmp_path, num_samples=2)
    for seed in (1, 2, 3):
        with pytest.warns(UserWarning, match="they were moved to"):
            vae, result = fit(tmp_path, seed=seed)
        pv.report(vae, result, X, tmp_path, num_samples=2)
    assert [path.name for path in tmp_path.glob(f"{BEFORE}*")] == [BEFORE]
    lines = (tmp_path / RECORD).read_text().splitlines()
    for line in lines:  # in the form of sha256sum
        digest, name = line.split("  ")
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    assert {"history.json", *REPORTED} <= {line.split("  ")[1] for line in lines}


def test_results_of_an_earlier_version_are_replaced_without_a_word(tmp_path, monkeypatch):
    """Earlier versions kept no record of their results."""
    draw_no_pictures(monkeypatch)
    vae, result = fit(tmp_path)
    pv.report(vae, result, X, tmp_path, num_samples=2)
    (tmp_path / RECORD).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            pv.report(vae, result, X, tmp_path, num_samples=2)
    assert not [*tmp_path.glob(f"{BEFORE}*")]


@pytest.mark.filterwarnings("ignore:.*they were moved to")
@pytest.mark.parametrize("content", [b"", b"\xff\0", b"nonsense", b"0" * 64 + b"  ../notes.txt\n"])
def test_a_damaged_record_loses_nothing(content, tmp_path, monkeypatch):
    draw_no_pictures(monkeypatch)
    vae, result = fit(tmp_path)
    pv.report(vae, result, X, tmp_path, num_samples=2)
    (tmp_path / "page.html").write_text("mine")
    (tmp_path / RECORD).write_bytes(content)
    for seed in (1, 2, 3):
        fit(tmp_path, seed=seed)
    assert b"mine" in contents(tmp_path)
