"""`PairRunner` against exact posteriors and plain traces."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from torch import nn

import pyro_vae as pv
from pyro_vae.pairs.runner import PairRunner
from pyro_vae.runtime.random_state import preserved_state
from tests.support.pairs import EXACT_PAIRS

HOW = {  # separable, vectorized, tiled
    "global": (True, True, False),
    "subsampled": (False, True, False),
    "hierarchy": (True, True, False),
    "discrete": (True, True, False),
    "two sites": (True, True, False),
    "not broadcasting": (True, False, True),
    "whole only": (False, False, False),
    "masked": (True, True, False),
}


@pytest.mark.parametrize("kind", EXACT_PAIRS)
def test_how_a_pair_can_be_run_is_found_out(kind):
    pair = EXACT_PAIRS[kind]()
    programs = PairRunner(pair.model, pair.guide, pair.args)
    layout = programs.layout
    assert (programs.separable, layout.vectorized, layout.tiled) == HOW[kind]
    assert (programs.data_plate, programs.num_data) == (pair.plate, pair.num_data)


@pytest.mark.parametrize("num_columns", range(1, 5))
@pytest.mark.parametrize("num_data", range(1, 5))
def test_samples_are_never_taken_for_rows_or_columns(num_data, num_columns):
    # The shapes are fixed, and the rows that would show a difference are masked.
    shape, seen = (num_data, num_columns), torch.arange(num_data).unsqueeze(-1) == num_data - 1

    def model(x):
        with pyro.plate("columns", num_columns, dim=-1):
            w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x), dim=-1):
            likelihood = dist.Normal(w, 1.0).expand(shape).mask(seen)
            pyro.sample("x", likelihood.to_event(1), obs=x)

    def guide(x):
        with pyro.plate("columns", num_columns, dim=-1):
            pyro.sample("w", dist.Normal(x.mean(0), 1.0))

    x = torch.randn(shape)
    programs = PairRunner(model, guide, (x,))
    for num_draws in range(1, 6):
        (batch,) = programs.batches(10)
        draws, sites = programs.run(batch, num_draws)
        w = draws["w"].value.reshape(num_draws, num_columns)
        expected = torch.distributions.Normal(w, 1.0).log_prob(x[-1]).sum(-1)
        torch.testing.assert_close(sites["x"].log_prob.sum(-1).expand(num_draws), expected)


@pytest.mark.parametrize("kind", EXACT_PAIRS)
@pytest.mark.parametrize("size", [2, 100])
def test_batches_hold_every_datum_once(kind, size):
    pair = EXACT_PAIRS[kind]()
    programs = PairRunner(pair.model, pair.guide, pair.args)
    seen = [batch.indices[batch.repeated :] for batch in programs.batches(size)]
    assert torch.cat(seen).equal(torch.arange(pair.num_data))


@pytest.mark.parametrize("kind", ["discrete", "two sites", "not broadcasting", "masked"])
def test_log_densities_are_those_of_plain_traces(kind):
    pair = EXACT_PAIRS[kind]()
    programs = PairRunner(pair.model, pair.guide, pair.args)
    (batch,) = programs.batches(100)
    guide, model = programs.run(batch, 4)
    for s in range(4):
        latents = {name: site.value[s : s + 1] for name, site in guide.items()}
        programs.layout.vectorized = programs.layout.tiled = False
        raw = {name: programs.layout.to_program(name, value) for name, value in latents.items()}
        conditioned = poutine.condition(pair.model, data=raw)
        twin = poutine.trace(conditioned).get_trace(*pair.args)
        twin.compute_log_prob()
        for name, site in model.items():
            expected = twin.nodes[name]["log_prob"].reshape(site.log_prob[s].shape)
            torch.testing.assert_close(site.log_prob[s], expected, rtol=1e-12, atol=1e-12)


def regression(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x * w).sum(-1), scale), obs=y)


def regression_data():
    x = torch.randn(20, 2)
    return x, x @ torch.tensor([1.0, -2.0]) + 0.1 * torch.randn(20)


@pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal, AutoIAFNormal])
def test_an_autoguide_has_the_log_weights_of_trace_elbo(kind):
    args = regression_data()
    guide = kind(regression)
    guide(*args)
    programs = PairRunner(regression, guide, args)
    assert programs.separable
    assert programs.layout.vectorized
    (batch,) = programs.batches(100)
    with torch.no_grad(), preserved_state():
        sites = programs.run(batch, 3)
        twin = poutine.trace(guide).get_trace(*args)
        given = {name: node["value"][None] for name, node in twin.nodes.items() if name in sites[0]}
        alone = programs.run(batch, 1, given)
    replayed = poutine.trace(poutine.replay(regression, trace=twin)).get_trace(*args)
    expected = replayed.log_prob_sum() - twin.log_prob_sum()
    log_p, log_q = (sum(site.joint() for site in part.values()) for part in alone[::-1])
    torch.testing.assert_close((log_p - log_q)[0], expected, rtol=1e-5, atol=1e-4)


class Normalized(nn.Module):
    """A decoder with batch statistics, which a run in training mode would change."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))

    def forward(self, z):
        return dist.Normal(self.layers(z), 1.0).to_event(1)


def normalized_vae():
    encoder = pv.networks.MLP(4, [8], 4)
    return pv.VAE(pv.priors.StandardNormal(2), Normalized(), pv.guides.DiagonalNormal(encoder))


def test_nothing_is_left_changed():
    vae, x = normalized_vae(), torch.randn(6, 4)
    vae.guide.eval()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    modes = [module.training for module in vae.modules()]
    pyro.get_param_store().clear()
    args = regression_data()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    pv.from_pyro_svi(regression, AutoNormal(regression), model_args=args, num_samples=3)
    pv.from_pyro_svi(vae.model, vae.guide, model_args=(x,), num_samples=3, seed=1)
    assert torch.get_rng_state().equal(states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    assert not list(pyro.get_param_store().keys())
    assert [module.training for module in vae.modules()] == modes
    for name, value in vae.state_dict().items():
        assert value.equal(before[name]), name
