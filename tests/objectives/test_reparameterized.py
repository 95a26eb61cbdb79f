"""Pathwise gradients against the full gradients."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

import pyro_vae as pv
from pyro_vae.objectives import FreeBits, ImportanceWeighted, StickingTheLanding
from tests.support.objectives import KWARGS, Linked, gradients, imperfect_vae


@pytest.mark.parametrize("chain", [False, True], ids=["one latent", "a chain of two"])
@pytest.mark.parametrize(
    ("ours", "plain"),
    [
        (StickingTheLanding(2), Trace_ELBO(2, vectorize_particles=True, max_plate_nesting=1)),
        (ImportanceWeighted(6, doubly_reparameterized=True), ImportanceWeighted(6)),
        (StickingTheLanding(2, vectorize_particles=False), Trace_ELBO(2)),
    ],
    ids=["sticking", "doubly reparameterized", "sticking, one by one"],
)
def test_path_derivatives_are_unbiased(ours, plain, chain):
    if chain:
        pair = Linked()
        x, parameters = torch.randn(4, 3, **KWARGS), list(pair.parameters())
    else:
        pair, x = imperfect_vae(4)
        parameters = list(pair.parameters())
    repeats, copies = 100, 16  # number of gradients, and of copies of the data in each
    x = x.repeat(copies, 1)
    with pyro.get_param_store().scope():
        a = gradients(ours, pair, x, repeats, parameters)
        b = gradients(plain, pair, x, repeats, parameters)
    error = ((a.var(0) + b.var(0)) / repeats).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() <= 5 * error + 1e-12).all()


def test_a_latent_without_rsample_is_refused():
    x = torch.randn(4, **KWARGS)

    def discrete_model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.5, **KWARGS)))
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    def discrete_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(torch.tensor(0.5, **KWARGS)))

    for objective in (ImportanceWeighted(3), StickingTheLanding(), FreeBits(1.0)):
        with pytest.raises(pv.PairError, match=r"the guide's Bernoulli for latent 'y' has none"):
            objective.differentiable_loss(discrete_model, discrete_guide, x)
