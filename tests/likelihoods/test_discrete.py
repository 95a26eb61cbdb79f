"""Mixtures of discretized logistics, categorical levels."""

import pytest
import torch

from pyro_vae import distributions, likelihoods
from tests.support.decoders import identity, outputs, spread


def test_mixture_is_the_weighted_sum_of_its_components():
    z = outputs(*[[value] for value in [0.3, -1.0, 0.2, -0.4, -3.0, -5.0]])  # logits, shifts, raw
    mixture = likelihoods.DiscretizedLogisticMixture(identity, num_components=2)(z)
    levels = (torch.arange(256, dtype=torch.float64) / 255)[:, None]
    weights = torch.tensor([0.3, -1.0], dtype=torch.float64).softmax(0)
    components = [
        distributions.DiscretizedLogistic(
            torch.tensor(centre + shift, dtype=torch.float64),
            torch.tensor(spread(raw), dtype=torch.float64),
        )
        for centre, shift, raw in [(0.25, 0.2, -3.0), (0.75, -0.4, -5.0)]
    ]
    expected = sum(w * c.log_prob(levels).exp() for w, c in zip(weights, components, strict=True))
    probs = mixture.log_prob(levels).exp()
    torch.testing.assert_close(probs, expected[:, 0], rtol=1e-9, atol=1e-12)
    assert probs.sum().item() == pytest.approx(1, abs=1e-12)
    assert mixture.mean.item() == pytest.approx((probs * levels[:, 0]).sum().item(), abs=1e-9)


def test_categorical_levels_sum_to_one_and_have_the_moments_of_their_values():
    torch.manual_seed(0)
    likelihood = likelihoods.Categorical(identity)
    p = likelihood(torch.randn(3, 256 * 2, dtype=torch.float64))
    levels = torch.arange(256, dtype=torch.float64) / 255
    entries = p.base_dist.log_prob(levels.reshape(-1, 1, 1)).exp()
    torch.testing.assert_close(entries.sum(0), torch.ones(3, 2).double(), rtol=0, atol=1e-12)
    mean = (entries * levels.reshape(-1, 1, 1)).sum(0)
    torch.testing.assert_close(p.mean, mean)
    square = (entries * levels.reshape(-1, 1, 1) ** 2).sum(0)
    torch.testing.assert_close(p.variance, square - mean**2)
    assert p.support.check(p.sample((5,))).all()
    assert not p.support.check(torch.full((3, 2), 0.5)).any()
