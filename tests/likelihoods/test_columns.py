"""Tables with columns of different kinds."""

import pytest
import torch

import pyro_vae as pv
from pyro_vae import likelihoods
from pyro_vae.networks import MLP


def columns() -> likelihoods.Columns:
    return likelihoods.Columns(
        [
            likelihoods.Normal(MLP(8, [], 2), scale=0.5),
            likelihoods.Bernoulli(MLP(8, [], 1)),
            likelihoods.Categorical(MLP(8, [], 4), num_levels=4, spacing=1),
        ],
        trunk=MLP(3, [], 8),
    )


def test_columns_add_up_the_densities_of_their_likelihoods():
    torch.manual_seed(0)
    table = columns()
    z, x = torch.randn(6, 5, 3), torch.tensor([0.3, -2.0, 1.0, 3.0])
    p = table(z)
    assert (p.batch_shape, p.event_shape) == ((6, 5), (4,))
    shared = table.trunk(z)
    normal, bernoulli, categorical = (part(shared) for part in table.likelihoods)
    expected = normal.log_prob(x[:2]) + bernoulli.log_prob(x[2:3]) + categorical.log_prob(x[3:])
    torch.testing.assert_close(p.log_prob(x), expected)
    torch.testing.assert_close(p.mean[..., 2:3], bernoulli.mean)
    torch.testing.assert_close(p.variance[..., :2], torch.full((6, 5, 2), 0.25))
    draws = p.sample((9,))
    assert draws.shape == (9, 6, 5, 4)
    assert p.support.check(draws).all()
    assert p.expand((2, 6, 5)).log_prob(x).shape == (2, 6, 5)


def test_columns_out_of_support_are_named():
    vae = pv.VAE(pv.priors.StandardNormal(3), columns(), pv.guides.DiagonalNormal(MLP(4, [], 6)))
    x = torch.tensor([[0.3, -2.0, 1.0, 3.0], [0.3, -2.0, 1.0, 4.0]])
    with pytest.raises(pv.PairError, match=r"column 3: 4 levels from 0 to 3, 1 apart"):
        vae.check(x)
