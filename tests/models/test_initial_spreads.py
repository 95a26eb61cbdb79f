"""Positive parameters of suggested likelihoods start at the moments of the data."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from torch.nn.functional import softplus

import pyro_vae as pv

RNG = np.random.default_rng(0)


def blocks(data, **options):
    vae = pv.suggest(data, latent_dim=2, hidden=[4], show=False, **options)
    return vae.model.likelihood.likelihoods


@pytest.mark.parametrize(("r", "mean"), [(0.5, 3.0), (5.0, 700.0), (95.0, 400.0)])
def test_dispersion_of_counts(r, mean):
    x = RNG.negative_binomial(r, r / (r + mean), 3000)
    (block,) = blocks(pv.data.open(pd.DataFrame({"n": x}), columns={"n": "count"}))
    v = x.var()
    expected = x.mean() ** 2 / (v - x.mean())
    assert expected == pytest.approx(r, rel=0.25)
    assert softplus(block.inverse_dispersion.raw).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("c", [2.0, 40.0, 300.0])
def test_concentration_of_proportions(c):
    x = RNG.beta(0.3 * c, 0.7 * c, 3000)
    table = pd.DataFrame({"share": x})
    (block,) = blocks(pv.data.open(table, columns={"share": "proportion"}))
    expected = x.mean() * (1 - x.mean()) / x.var() - 1
    assert expected == pytest.approx(c, rel=0.2)
    assert softplus(block.concentration.raw).item() == pytest.approx(expected, rel=1e-3)


def test_sparse_counts_get_a_likelihood_of_counts(capsys):
    x = RNG.negative_binomial(2, 0.3, (60, 30))
    data = pv.data.open(sparse.csr_array(x))
    vae = pv.suggest(data, latent_dim=2)
    code = capsys.readouterr().out
    assert "NegativeBinomial" in code
    assert "]] * 30" in code  # the features of all columns are equal
    rebuilt = eval(code.partition("=")[2].strip(), {"pv": pv})
    assert rebuilt.guide.posterior(data[:3]).event_shape == (2,)
    assert vae.model.likelihood(torch.zeros(1, 2)).support.is_discrete
    counts = vae.encode(data[:3]).mean
    assert counts.isfinite().all()


@pytest.mark.parametrize("name", ["likelihood", "prior", "guide"])
def test_parts_may_be_functions(name):
    x = RNG.normal(size=(20, 2, 2)).astype(np.float32)
    made = {
        "likelihood": lambda decoder: pv.likelihoods.Laplace(decoder),
        "prior": lambda latent_dim, guide, data: pv.priors.Laplace(latent_dim),
        "guide": lambda encoder, size: pv.guides.FullNormal(
            encoder(pv.guides.FullNormal.num_outputs(size))
        ),
    }
    vae = pv.suggest(x, latent_dim=2, hidden=[4], show=False, **{name: made[name]})
    assert type(vae.parts[name]).__name__ in ("Laplace", "FullNormal")
    assert np.isfinite(pv.evaluate(vae, x, num_samples=2).elbo).all()


def test_convolutions_on_request():
    x = torch.zeros(4, 1, 16, 16)
    vae = pv.suggest(pv.data.Dataset(x + 0.5), latent_dim=2, conv=True, show=False)
    assert type(vae.guide.posterior.encoder).__name__ == "ConvEncoder"
    with pytest.raises(pv.data.DataError, match=r"\(conv=True\) need images"):
        pv.suggest(pv.data.Dataset(torch.rand(4, 1001)), conv=True, show=False)
