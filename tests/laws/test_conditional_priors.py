"""The use of latents is measured against the prior of each datum, in any order of the data."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv

NUM_DATA, NUM_SAMPLES = 400, 500
GENERATOR = torch.Generator().manual_seed(3)
Y = torch.tensor([0.0, 1.0]).repeat_interleave(NUM_DATA // 2).double()[:, None]
NOISE = torch.randn(NUM_DATA, 2, generator=GENERATOR).double()
ORDERS = {
    "sorted": torch.arange(NUM_DATA),
    "reversed": torch.arange(NUM_DATA).flip(0),
    "shuffled": torch.randperm(NUM_DATA, generator=GENERATOR),
}


class Shifted:
    """z ~ N(a y, s^2), x ~ N(z, 1); the guide is the posterior, or the prior of each datum."""

    def __init__(self, slope, sd, guide):
        self.slope, self.sd, self.kind = slope, sd, guide
        self.x = slope * Y + sd * NOISE[:, :1] + NOISE[:, 1:]

    def prior(self, y):
        return self.slope * y, torch.full_like(y, self.sd)

    def posterior(self, x, y):
        if self.kind == "prior":
            return self.prior(y)
        gain = self.sd**2 / (1 + self.sd**2)
        return self.slope * y + gain * (x - self.slope * y), torch.full_like(x, gain**0.5)

    def conditional_vae(self):
        return pv.ConditionalVAE(
            lambda y: dist.Normal(*self.prior(y)).to_event(1),
            lambda z, y: dist.Normal(z, 1.0).to_event(1),
            lambda x, y: dist.Normal(*self.posterior(x, y)).to_event(1),
        )

    def own_programs(self):
        def model(x, y):
            with pyro.plate("people", len(x)):
                z = pyro.sample("z", dist.Normal(*self.prior(y)).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(x, y):
            with pyro.plate("people", len(x)):
                pyro.sample("z", dist.Normal(*self.posterior(x, y)).to_event(1))

        return pv.Pair(model, guide)

    def exact(self):
        """Return KL, share of the shift's variance, and moments of the aggregate posterior."""
        (loc, sd), (prior_loc, prior_sd) = self.posterior(self.x, Y), self.prior(Y)
        shift = loc - prior_loc
        kl = (sd**2 + shift**2) / prior_sd**2 - 1 - 2 * (sd / prior_sd).log()
        unit = (prior_sd.square().mean() + prior_loc.var()).sqrt()
        spread = (sd.square().mean() + loc.var()).sqrt()
        mean = (loc.mean() - prior_loc.mean()) / unit
        share = shift.var() / prior_sd.square().mean()
        return [float(v) for v in (kl.mean() / 2, share, mean, spread / unit)]


@pytest.mark.parametrize("make", ["conditional_vae", "own_programs"])
@pytest.mark.parametrize("guide", ["posterior", "prior"])
@pytest.mark.parametrize("slope", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("sd", [0.5, 2.0])
def test_latents_are_compared_with_the_prior_of_each_datum(sd, slope, guide, make):
    pair = Shifted(slope, sd, guide)
    kl, share, mean, spread = pair.exact()
    error = 5 * max(1.0, kl**0.5) / (NUM_DATA * NUM_SAMPLES) ** 0.5
    for order in ORDERS.values():
        data = pair.x[order], Y[order]
        found = pv.collapse(getattr(pair, make)(), data, num_samples=NUM_SAMPLES)
        # The prior of all data is known from 5,000 samples, and that of one datum from 500.
        np.testing.assert_allclose(found.kl, kl, atol=max(error, 0.05 * kl))
        np.testing.assert_allclose(
            found.mean_variance, share, rtol=5 * (2 / 5000) ** 0.5, atol=0.02
        )
        np.testing.assert_allclose(found.aggregate_mean, mean, atol=5 / 5000**0.5)
        np.testing.assert_allclose(found.aggregate_sd, spread, rtol=0.05)
        assert bool(found.active) == (guide == "posterior")
        assert abs(found.draws.mean() - mean) < 5 / NUM_DATA**0.5


def test_the_card_compares_the_aggregate_posterior_with_the_priors_of_the_data():
    pair = Shifted(5.0, 1.0, "posterior")
    for order in ORDERS.values():
        data = pair.x[order], Y[order]
        card = pv.diagnose(pair.conditional_vae(), data, num_simulations=0, num_gap_data=0)
        (finding,) = (f for f in card.findings if f.name.startswith("aggregate posterior"))
        assert finding.verdict == "safe"
