"""The results in a folder are those of one run. Results of an earlier run are moved away."""

import itertools
import json
import warnings

import pytest
import torch

import pyro_vae as pv
from pyro_vae.checkpointing.earlier_results import BEFORE, FILES
from tests.support.pictures import draw_no_pictures


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    draw_no_pictures(monkeypatch)


def run(latents, out, *, fits, reports, resume=False, epochs=1, seed=0):
    """Train and report a VAE with a number of latents; return it and the warnings."""
    torch.manual_seed(0)
    vae = pv.VAE(
        pv.priors.StandardNormal(latents),
        pv.likelihoods.Bernoulli(pv.networks.MLP(latents, [4], (1, 4, 4))),
        pv.guides.DiagonalNormal(pv.networks.MLP((1, 4, 4), [4], 2 * latents)),
    )
    x = (torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = pv.fit(vae, x, epochs=epochs, out=out if fits else None, resume=resume, seed=seed)
        for _ in range(reports):
            pv.report(vae, fit, x, out, num_samples=2)
    return fit, [str(w.message) for w in caught if "earlier run" in str(w.message)]


def results(folder):
    return sorted(path.name for path in folder.iterdir() if path.name in (*FILES, "model"))


def latents_of(folder):
    with torch.no_grad():
        return pv.load(folder / "model").encode(torch.zeros(1, 1, 4, 4)).mean.shape[1]


KINDS = {"fit": (True, 0), "report": (False, 1), "both": (True, 1)}


@pytest.mark.thinned(4)
@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_a_second_run_in_the_folder(first, second, tmp_path):
    for number, (before, after) in enumerate(itertools.permutations((1, 2, 3), 2)):
        if number % 3:  # a third of the pairs of latents for each pair of kinds
            continue
        out = tmp_path / str(number)
        fits, reports = KINDS[first]
        _, said = run(before, out, fits=fits, reports=reports)
        assert not said
        own = results(out)
        for name in ("prior_samples.png", "trust.json"):  # of the command line
            (out / name).write_text("{}")
        (out / "notes.txt").write_text("mine")
        fits, reports = KINDS[second]
        fit, said = run(after, out, fits=fits, reports=reports)
        assert len(said) == 1
        assert str(out / BEFORE) in said[0]
        assert results(out / BEFORE) == sorted([*own, "prior_samples.png", "trust.json"])
        assert (latents_of(out / BEFORE), latents_of(out)) == (before, after)
        # Nothing of the first run is left.
        alone = tmp_path / f"{number} alone"
        run(after, alone, fits=fits, reports=reports)
        assert results(out) == results(alone)
        assert (out / "notes.txt").read_text() == "mine"
        if fits:
            assert json.loads((out / "history.json").read_text()) == fit.history


def test_the_results_of_the_same_run_are_replaced(tmp_path):
    _, said = run(2, tmp_path, fits=True, reports=2)
    assert not said
    _, said = run(2, tmp_path, fits=True, reports=1, resume=True)  # a finished run
    assert not said
    _, said = run(2, tmp_path, fits=True, reports=1, resume=True, epochs=2)  # an extended run
    assert not said
    assert not (tmp_path / BEFORE).exists()


def test_only_the_last_results_are_kept_but_no_foreign_file_is_lost(tmp_path):
    for latents in (1, 2, 3):
        run(latents, tmp_path, fits=True, reports=0)
    assert latents_of(tmp_path / BEFORE) == 2
    assert len(list(tmp_path.glob(f"{BEFORE}*"))) == 1
    (tmp_path / BEFORE / "notes.txt").write_text("mine")
    _, (said,) = run(1, tmp_path, fits=True, reports=0)
    assert (tmp_path / BEFORE / "notes.txt").read_text() == "mine"
    (other,) = tmp_path.glob(f"{BEFORE}-*")
    assert latents_of(other) == 3
    assert str(other) in said


def test_links_are_not_moved(tmp_path):
    target = tmp_path / "target.json"
    target.write_text("[]")
    out = tmp_path / "run"
    run(1, out, fits=True, reports=0)
    (out / "metrics.json").symlink_to(target)
    (out / BEFORE).symlink_to(tmp_path)
    run(2, out, fits=True, reports=0)
    assert (out / "metrics.json").is_symlink()
    assert (out / BEFORE).is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "target.json"]
