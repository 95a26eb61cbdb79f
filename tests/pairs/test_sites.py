"""Reading the sample sites of a trace."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import ExpandedDistribution

import pyro_vae as pv
from pyro_vae.distributions.independent import unwrap_independent
from pyro_vae.pairs.sites import SiteDraws, latent_sites, observed_sites, sample_sites


def model(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.deterministic("double", 2 * w)
    with pyro.plate("data", 10, subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.deterministic("square", z**2)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 10, subsample_size=len(x)):
        pyro.sample("z", dist.Normal(x / 2, 1.0))


def test_sites_without_a_density_are_left_out():
    trace = poutine.trace(model).get_trace(torch.zeros(4))
    assert [name for name, _ in sample_sites(trace)] == ["w", "z", "x"]
    assert [name for name, _ in latent_sites(trace)] == ["w", "z"]
    assert list(observed_sites(trace)) == ["x"]


def test_a_pair_with_deterministic_sites_is_checked_and_scored():
    pair, x = pv.Pair(model, guide), torch.zeros(10)
    assert list(pv.check(pair, x).model) == ["w", "z", "x"]
    tree = pv.from_pyro_svi(model, guide, model_args=(x,), num_samples=2)
    assert set(tree["posterior"].data_vars) == {"w", "double", "z", "square"}
    np.testing.assert_array_equal(tree["posterior/square"], tree["posterior/z"] ** 2)


def test_a_deterministic_site_is_not_an_observation():
    def unobserved(x):
        with pyro.plate("data", len(x)):
            pyro.deterministic("x", x, event_dim=0)

    trace = poutine.trace(unobserved).get_trace(torch.zeros(4))
    with pytest.raises(pv.PairError, match="the model has no observed site: pass x as obs="):
        observed_sites(trace)
    with pytest.raises(pv.PairError, match="the model has no observed site"):
        pv.check(pv.Pair(unobserved, lambda x: None), torch.zeros(4))


def test_independent_and_named_wrappers_are_stripped():
    normal = dist.Normal(torch.zeros(3, 2), 1.0)
    assert unwrap_independent(normal) is normal
    assert unwrap_independent(normal.to_event(1).to_event(1)) is normal
    masked = normal.mask(torch.tensor(False))
    assert unwrap_independent(masked.to_event(2)) is masked
    expanded = ExpandedDistribution(normal.to_event(1), torch.Size([5, 3]))
    assert unwrap_independent(expanded) is expanded
    assert unwrap_independent(expanded, ExpandedDistribution) is normal


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        (dist.Delta(torch.zeros(2)).to_event(1), True),
        (dist.Delta(torch.zeros(2), event_dim=1).mask(False), True),
        (dist.Normal(torch.zeros(2), 1.0).to_event(1), False),
    ],
)
def test_point_masses_are_found_inside_wrappers(distribution, expected):
    site = SiteDraws(torch.zeros(1, 2), torch.zeros(1), (), False, distribution)
    assert site.is_delta == expected
