"""The flow as a prior."""

import math

import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv


def test_a_flow_learns_what_no_normal_can():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2000, 2, generator=generator)
    banana = torch.stack([noise[:, 0], noise[:, 0] ** 2 - 1 + 0.3 * noise[:, 1]], -1)
    train, test = banana[:1000], banana[1000:]
    flow = pv.priors.Flow(2, ["affine_autoregressive", "spline_coupling", "affine_autoregressive"])
    optim = torch.optim.Adam(flow.parameters(), lr=0.01)
    for _ in range(300):
        optim.zero_grad()
        (-flow().log_prob(train).mean()).backward()
        optim.step()
    normal = dist.MultivariateNormal(train.mean(0), torch.cov(train.T))
    # The truth is about 1.55 nats above the best normal; both have its entropy in closed form.
    entropy = math.log(2 * math.pi * math.e) + math.log(0.3)
    score = flow().log_prob(test).mean().item()
    assert score > normal.log_prob(test).mean().item() + 1
    assert score <= -entropy + 5 * 1 / math.sqrt(1000)


def test_a_flow_names_the_transforms_that_there_are():
    with pytest.raises(ValueError, match=r"'planer' is unknown.*'spline_coupling'"):
        pv.priors.Flow(2, ["planer"])
    with pytest.raises(ValueError, match="at least one transform"):
        pv.priors.Flow(2, [])
    with pytest.raises(ValueError, match="latent_dim must be a whole number of at least 2, got 1"):
        pv.priors.Flow(1)
