"""Every part is exported as a program that computes the same numbers, or refused in a sentence."""

import hashlib
import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn

import pyro_vae as pv
from tests.support.catalogue import GUIDES, LIKELIHOODS

MLP = pv.networks.MLP
WITHOUT_MOMENTS = {"Flow", "LogisticNormal", "PowerSpherical"}  # of q(z|x) in closed form
EXPORTED = [name for name in GUIDES if name not in WITHOUT_MOMENTS]
LINES = list(zip(LIKELIHOODS, itertools.cycle(EXPORTED)))


def built(likelihood, guide):
    torch.manual_seed(0)
    posterior = GUIDES[guide].build()
    latent_dim = posterior(torch.zeros(1, 2)).event_shape[0]
    return pv.VAE(
        pv.priors.StandardNormal(latent_dim), LIKELIHOODS[likelihood].build(latent_dim), posterior
    )


def loaded(folder):
    return [torch.export.load(folder / f"{name}.pt2").module() for name in ("encoder", "decoder")]


def test_every_likelihood_and_guide_has_a_cell():
    assert {likelihood for likelihood, _ in LINES} == set(LIKELIHOODS)
    assert {guide for _, guide in LINES} | WITHOUT_MOMENTS == set(GUIDES)


@pytest.mark.thinned(7)
@pytest.mark.parametrize(("likelihood", "guide"), LINES)
@torch.no_grad()
def test_exported_programs_compute_the_same_numbers(likelihood, guide, tmp_path):
    vae = built(likelihood, guide)
    vae.export(tmp_path / "export")
    encoder, decoder = loaded(tmp_path / "export")
    for num_data in (1, 5):
        x = vae.sample(num_data)
        q = vae.encode(x)
        torch.testing.assert_close(encoder(x), (q.mean, q.stddev))
        z = q.sample()
        torch.testing.assert_close(decoder(z), (vae.decode(z).mean,))


@pytest.mark.parametrize("guide", sorted(WITHOUT_MOMENTS))
def test_a_guide_without_moments_is_refused(guide, tmp_path):
    with pytest.raises(
        pv.PairError, match=f"the guide {guide} cannot be exported: .* has no (mean|stddev) in"
    ):
        built("Normal", guide).export(tmp_path / "export")
    assert not list(tmp_path.iterdir())


class Branching(nn.Module):
    """Computes by the values of its input."""

    def forward(self, x):
        return torch.cat([x, x], -1) if x.sum() > 0 else torch.cat([-x, x], -1)


class Noisy(nn.Module):
    """Computes other numbers in each call."""

    def forward(self, x):
        return torch.cat([x, x], -1) + torch.rand(())


@pytest.mark.parametrize(
    ("network", "reason"), [(Branching(), "cannot be exported: .+"), (Noisy(), "may be random")]
)
def test_what_cannot_be_exported_is_refused(network, reason, tmp_path):
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(MLP(2, [], 2)),
        pv.guides.DiagonalNormal(network),
    )
    with pytest.raises(pv.PairError, match=reason):
        vae.export(tmp_path / "export")
    assert not list(tmp_path.iterdir())


def images():
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.networks.ConvDecoder(2, [4], (1, 6, 6))),
        pv.guides.DiagonalNormal(pv.networks.ConvEncoder((1, 6, 6), [4], 4)),
    )


def test_exporting_changes_nothing_and_replaces_an_earlier_export(tmp_path):
    vae, folder = images().double(), tmp_path / "export"
    vae.train()
    before, state = [t.clone() for t in vae.state_dict().values()], torch.get_rng_state()
    for _ in range(2):
        vae.export(folder)
    assert vae.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, before, vae.state_dict().values()))
    assert {path.name for path in tmp_path.iterdir()} == {"export"}
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert loaded(folder)[0](torch.zeros(3, 1, 6, 6, dtype=torch.float64))[0].dtype == torch.float64


def test_a_folder_with_other_files_is_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(pv.CheckpointError, match=r"no exported model \('notes.txt'\)"):
        images().export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_missing_entries_can_be_encoded(tmp_path):
    vae = pv.VAE(
        pv.priors.StandardNormal(1),
        pv.likelihoods.Missing(pv.likelihoods.Normal(MLP(1, [4], 3))),
        pv.guides.DiagonalNormal(pv.networks.WithMask(MLP(6, [4], 2))),
    )
    vae.export(tmp_path / "export")
    x = torch.tensor([[0.5, torch.nan, 1.0], [torch.nan] * 3])
    q = vae.encode(x)
    torch.testing.assert_close(loaded(tmp_path / "export")[0](x), (q.mean, q.stddev))


def test_an_exported_program_needs_only_torch(tmp_path):
    images().export(tmp_path / "export")
    code = """
import sys, torch
decoder = torch.export.load("export/decoder.pt2").module()
assert decoder(torch.zeros(4, 2))[0].shape == (4, 1, 6, 6)
assert not {"pyro", "pyro_vae"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)


@torch.no_grad()
def test_a_conditional_vae_is_exported_with_its_context(tmp_path):
    torch.manual_seed(0)
    vae = pv.ConditionalVAE(
        pv.priors.StandardNormal(3),
        pv.likelihoods.NegativeBinomial(
            pv.networks.WithContext(MLP(3 + 2, [8], 5), 3), "entrywise"
        ),
        pv.guides.DiagonalNormal(pv.networks.WithContext(MLP(5 + 2, [8], 6), 5)),
    )
    vae.export(tmp_path / "export", y=torch.eye(2))
    encoder, decoder = loaded(tmp_path / "export")
    for num_data in (1, 5):
        y = torch.eye(2)[torch.arange(num_data) % 2]
        x = vae.sample(y)
        q = vae.encode(x, y)
        torch.testing.assert_close(encoder(x, y), (q.mean, q.stddev))
        torch.testing.assert_close(decoder(q.mean, y), (vae.decode(q.mean, y).mean,))
    with pytest.raises(pv.PairError, match="y"):
        vae.export(tmp_path / "other", y=torch.eye(3))
    assert not (tmp_path / "other").exists()
