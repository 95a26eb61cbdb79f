"""Programs of public reports on single sites: masks, plates, flows."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import Normal
from pyro.infer import RenyiELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_vae as pv
from tests.laws.test_field_reports import (
    ONE,
    ZERO,
    fit,
    global_model,
    local_guide,
    marginal,
    rows,
)


def test_pyro_2447_nan_below_a_mask():
    x = rows(30)
    x[20] = torch.nan

    def model(x, fill=False):
        seen = ~x.isnan()
        loc = pyro.sample("loc", Normal(ZERO, ONE))
        with pyro.plate("data", len(x)), poutine.mask(mask=seen):
            x = torch.where(seen, x, 5.0) if fill else x
            pyro.sample("x", Normal(loc, ONE), obs=x)

    guide = AutoNormal(model)

    def nan_model(x):
        loc = pyro.sample("loc", Normal(ZERO, ONE))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.NanMaskedNormal(loc, ONE), obs=x)

    pv.fit(pv.Pair(nan_model, AutoNormal(nan_model)), x, epochs=1)
    pyro.clear_param_store()
    for run in (pv.fit, pv.check):
        with pytest.raises(pv.PairError, match=r"'x' holds NaN.*datum 20.*torch.where\(mask"):
            run(pv.Pair(model, guide), x)
    fit(lambda x: model(x, fill=True), guide, x, batch_size=30)
    assert guide.median()["loc"].item() == pytest.approx(x.nansum().item() / 30, abs=0.03)


def test_numpyro_568_the_value_below_a_mask_has_no_effect():
    x, seen = rows(8), torch.arange(8) % 3 > 0
    found = []
    for fill in (-100.0, 0.0, 7.0):
        filled = torch.where(seen, x, fill)

        def model(x, seen):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", Normal(ZERO, ONE))
                with poutine.mask(mask=seen):
                    pyro.sample("x", Normal(z, ONE), obs=x)

        def guide(x, seen):
            mean, sd = torch.where(seen, x / 2, 0.0), torch.where(seen, 0.5**0.5, 1.0)
            with pyro.plate("data", len(x)):
                pyro.sample("z", Normal(mean, sd))

        scores = pv.evaluate(pv.Pair(model, guide), (filled, seen), num_samples=4)
        found.append(scores.log_likelihood)
    expected = torch.where(seen, marginal(x), 0.0)
    np.testing.assert_allclose(found, expected.expand(3, 8), atol=1e-12)


def test_pyro_3468_rows_of_a_plate_that_the_guide_replaces():
    x, index = rows(10), torch.tensor([1, 4, 7])

    def model(x):
        with pyro.plate("data", 10, subsample=index):
            z = pyro.sample("z", Normal(ZERO, ONE))
            pyro.sample("x", Normal(z, ONE), obs=x[index])

    guide = AutoNormal(model)
    with pytest.raises(pv.PairError, match=r"'data' its rows by subsample=.*create_plates"):
        pv.check(pv.Pair(model, guide), x)
    for run in (pv.fit, pv.evaluate):
        with pytest.raises(pv.PairError):
            run(pv.Pair(model, guide), x)
    with pytest.raises(pv.PairError, match=r"'data' its rows by subsample="):
        pv.from_pyro_svi(model, guide, model_args=(x,))


def test_pyro_2288_a_latent_that_the_guide_forgets():
    x = rows(10)

    def model(x):
        loc = pyro.sample("loc", Normal(ZERO, ONE))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Normal(loc, ONE))
            pyro.sample("x", Normal(z, ONE), obs=x)

    pair = pv.Pair(model, local_guide)
    sentence = "draws the latent 'loc', the guide does not: it would silently"
    for run in (pv.check, pv.fit, pv.evaluate):
        with pytest.raises(pv.PairError, match=sentence):
            run(pair, x)
    with pytest.raises(pv.PairError, match=sentence):
        pv.from_pyro_svi(model, local_guide, model_args=(x,))


def test_text_vae_1_a_plate_of_the_batch_size():
    x = rows(25)

    def model(x):
        with pyro.plate("data", 10):
            z = pyro.sample("z", Normal(ZERO, ONE))
            pyro.sample("x", Normal(z, ONE), obs=x)

    def guide(x):
        with pyro.plate("data", 10):
            pyro.sample("z", Normal(x / 2, ONE))

    with pytest.raises(pv.PairError, match=r"inside plate\('data'\).*'data', len\(x\)"):
        pv.fit(pv.Pair(model, guide), x, epochs=1, batch_size=10)


def test_pyro_2718_a_flow_without_an_inverse():
    x = torch.randn(20, 2)

    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            self.flow = dist.transforms.Planar(2)

        def forward(self, x):
            pyro.module("flow", self.flow)
            with pyro.plate("data", len(x)):
                base = Normal(x / 2, 0.7 * torch.ones(2))
                pyro.sample("z", dist.TransformedDistribution(base, [self.flow]))

    def model(x, prior=None):
        with pyro.plate("data", len(x)):
            prior = prior or Normal(torch.zeros(2), 1.0).to_event(1)
            z = pyro.sample("z", prior)
            pyro.sample("x", Normal(z, 1.0).to_event(1), obs=x)

    def flow_model(x):
        prior = dist.TransformedDistribution(Normal(torch.zeros(2), 1.0), [guide.flow])
        model(x, prior)

    def normal_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", Normal(x / 2, 0.7).to_event(1))

    guide = Guide()
    elbo = pv.fit(pv.Pair(model, guide), x, epochs=3).history[-1]["train_elbo"]
    assert -4 < elbo < Normal(0.0, 2**0.5).log_prob(x).sum(1).mean().item() + 0.5
    sentence = "of site 'z' cannot score the value.*transforms have an inverse"
    with pytest.raises(pv.PairError, match=sentence):
        pv.evaluate(pv.Pair(model, guide), x)
    with pytest.raises(pv.PairError, match=sentence):
        pv.from_pyro_svi(model, guide, model_args=(x,))
    for run in (pv.check, pv.fit, pv.evaluate):
        with pytest.raises(pv.PairError, match=sentence):
            run(pv.Pair(flow_model, normal_guide), x)


def test_pyro_2541_an_unrolled_plate():
    x = rows(6)
    evidence = dist.MultivariateNormal(
        torch.zeros_like(x), torch.eye(6, dtype=torch.float64) + 1
    ).log_prob(x)

    def model(x):
        loc = pyro.sample("loc", Normal(ZERO, ONE))
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"x{i}", Normal(loc, ONE), obs=x[i])

    def guide(x):
        pyro.sample("loc", Normal(x.sum() / 7, ONE / 7**0.5))

    for vectorized in (False, True):
        loss = RenyiELBO(alpha=0.0, num_particles=4, vectorize_particles=vectorized)
        svi = pv.SVI(model, guide, pyro.optim.SGD({"lr": 0.0}), loss=loss)
        assert float(svi.evaluate_loss(x)) == pytest.approx(-evidence.item(), rel=1e-9)
    tree = pv.from_pyro_svi(model, guide, model_args=(x,), num_samples=4)
    np.testing.assert_allclose(tree["sample_stats/log_weight"], evidence, rtol=1e-9)


def test_scvi_tools_1895_the_global_kl_in_the_elbo_per_datum():
    x = rows(11)

    def guide(x):
        pyro.sample("loc", Normal(total / 12, ONE / 12**0.5))

    total = x.sum()
    covariance = torch.eye(11, dtype=torch.float64) + 1
    evidence = dist.MultivariateNormal(torch.zeros_like(x), covariance).log_prob(x).item()
    found = []
    for size in (1, 4, 11):
        run = pv.fit(pv.Pair(global_model, guide), x, epochs=40, batch_size=size)
        mean = np.mean([entry["train_elbo"] for entry in run.history])
        assert mean == pytest.approx(evidence / 11, abs=0.15 if size < 11 else 1e-9)
        found.append(mean)
