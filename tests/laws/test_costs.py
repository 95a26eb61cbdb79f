"""Costs do not multiply: memory of steps and chunks, counted, for every combination of parts.

The sizes are those of `examples/mnist_svi.py`, with fewer hidden units. Four data are run, and the
memory of a minibatch or a chunk follows from the allocations for two and for four.
"""

import functools
import itertools

import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

import pyro_vae as pv
from pyro_vae.distributions.transforms import AffineAutoregressive
from pyro_vae.pairs.allocations import FEW, MORE, allocations, bytes_per_datum, extrapolated_peak
from pyro_vae.pairs.chunking import CHUNK_BYTES, data_per_chunk, draws_per_chunk, fitting
from pyro_vae.pairs.sampler import Sampler
from pyro_vae.training import step_cost
from pyro_vae.training.step_cost import CostWarning

D, SHAPE, HIDDEN, BATCH = 20, (1, 28, 28), 60, 128
PRIORS = {
    "standard normal": lambda q, x: pv.priors.StandardNormal(D),
    "mixture": lambda q, x: pv.priors.MixtureOfGaussians(D, 10),
    "vamp": lambda q, x: pv.priors.VampPrior(q, 200, SHAPE),
    "flow": lambda q, x: pv.priors.Flow(D),
}
GUIDES = {
    "diagonal": (2 * D, pv.guides.DiagonalNormal),
    "full": (pv.guides.FullNormal.num_outputs(D), pv.guides.FullNormal),
    "flow": (3 * D, functools.partial(pv.guides.Flow, latent_dim=D)),
}
LIKELIHOODS = {
    "bernoulli": pv.likelihoods.Bernoulli,
    "continuous bernoulli": pv.likelihoods.ContinuousBernoulli,
    "normal": pv.likelihoods.Normal,
    "discretized": lambda net: pv.likelihoods.DiscretizedLogistic(net, "learned"),
}
OBJECTIVES = {
    "elbo": Trace_ELBO,
    "analytic": TraceMeanField_ELBO,
    "importance weighted": pv.objectives.ImportanceWeighted,
    "sticking the landing": pv.objectives.StickingTheLanding,
}


@functools.cache
def images():
    return torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(0)).round()


@functools.cache
def pair(prior, guide, likelihood):
    torch.manual_seed(0)
    size, kind = GUIDES[guide]
    q = kind(pv.networks.MLP(SHAPE, [HIDDEN], size))
    decoder = pv.networks.MLP(D, [HIDDEN], SHAPE)
    return pv.VAE(PRIORS[prior](q, images()), LIKELIHOODS[likelihood](decoder), q)


@pytest.mark.thinned(5)
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("prior", PRIORS)
def test_a_step_of_any_combination_takes_less_than_half_a_gigabyte(prior, guide):
    for likelihood, objective in itertools.product(LIKELIHOODS, OBJECTIVES):
        vae = pair(prior, guide, likelihood)
        loss = OBJECTIVES[objective](num_particles=1)

        def step(count, vae=vae, loss=loss):
            loss.loss_and_grads(vae.model, vae.guide, images()[:count])

        peak = extrapolated_peak(allocations(step, FEW), allocations(step, MORE), BATCH)
        assert peak < 2**29, (likelihood, objective)


@pytest.mark.thinned(5)
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("prior", PRIORS)
def test_chunks_fit_and_usual_pairs_keep_theirs(prior, guide):
    for likelihood, samples in itertools.product(LIKELIHOODS, (1, 16)):
        sampler = Sampler(pair(prior, guide, likelihood), images())
        usual = data_per_chunk(SHAPE, samples), draws_per_chunk(samples)
        rows, draws = fitting(*usual, sampler.draw, (images()[:4],))
        per_datum = bytes_per_datum(lambda n, s=sampler, d=draws: s.draw(images()[:n], d))
        assert rows * per_datum <= CHUNK_BYTES, (rows, draws, per_datum)
        if not (prior == "vamp" and guide == "flow"):
            assert (rows, draws) == usual


# -- the counter -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 10, 1000])
def test_allocations_are_counted_exactly(width):
    def work(n):
        a = torch.zeros(50 * width)  # not multiplied
        b = torch.zeros(n, width)  # kept
        for _ in range(5):
            c = b + 1  # one at a time: the next exists before the last is freed
        return a, b, c

    assert bytes_per_datum(work) == 3 * 4 * width
    counted = allocations(work, 2)
    assert counted.total == 4 * (50 * width + 2 * width * 6)
    peak = max(allocations(work, 100).live)
    assert extrapolated_peak(counted, allocations(work, 4), 100) == peak


def test_views_take_no_memory_and_gradients_keep_what_they_need():
    x = torch.zeros(100, 10, requires_grad=True)
    assert bytes_per_datum(lambda n: torch.zeros(n, 10).view(-1)[3:].reshape(-1, 1)) == 40
    with_graph = bytes_per_datum(lambda n: x[:n].exp().exp().exp().sum())
    with torch.no_grad():
        without = bytes_per_datum(lambda n: x[:n].exp().exp().exp().sum())
    assert with_graph == 120
    assert without == 80


# -- the flow guide at other values than its samples -----------------------------------------------

FLOWS = [
    (2, 1, None, 1), (3, 3, None, 3), (5, 2, [7, 9], 2), (4, 2, [40, 6, 13], 2), (9, 4, [10], 2),
]  # fmt: skip


def by_passes(guide, x):
    """q(z|x) with D passes through each network for the inverse."""
    q = guide(x)
    for transform in q.transforms[::2]:
        transform.arn.permutation = transform.arn.network.permutation
        transform._inverse = functools.partial(AffineAutoregressive._inverse, transform)
    return q


@pytest.mark.parametrize(("latent_dim", "context", "hidden", "transforms"), FLOWS)
def test_a_flow_scores_other_values_as_by_passes(latent_dim, context, hidden, transforms):
    torch.manual_seed(0)
    encoder = pv.networks.MLP(6, [5], 2 * latent_dim + context)
    guide = pv.guides.Flow(encoder, latent_dim, transforms, hidden).double()
    parameters = list(guide.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(4, 6, dtype=torch.double)
    with torch.no_grad():
        z = guide(x).sample((3,))[:, :, None, :]  # each sample at each x
    z.requires_grad_()
    found, expected = guide(x).log_prob(z), by_passes(guide, x).log_prob(z)
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(y.sum(), [z, *parameters]) for y in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("latent_dim", [5, 10, 20, 40])
def test_other_values_take_the_memory_of_a_few_passes(latent_dim):
    guide = pv.guides.Flow(pv.networks.MLP(6, [5], 3 * latent_dim), latent_dim)
    q = guide(torch.zeros(6))

    def one_pass(n):
        return guide(torch.zeros(6)).rsample((n,))

    def other_values(n):
        return q.log_prob(torch.zeros(n, latent_dim))

    assert bytes_per_datum(other_values) < 4 * bytes_per_datum(one_pass)


# -- announcements ---------------------------------------------------------------------------------


def test_fit_announces_a_costly_step_and_changes_no_number(monkeypatch):
    x = images().repeat(4, 1, 1, 1)
    histories = []
    for least, warned in ((step_cost.LEAST_BYTES, False), (2**20, True)):
        monkeypatch.setattr(step_cost, "LEAST_BYTES", least)
        pair.cache_clear()
        vae = pair("vamp", "flow", "normal")
        few = pv.priors.VampPrior(vae.parts["guide"], 9, SHAPE)
        torch.manual_seed(1)
        vae = vae.replace(prior=few)
        run = functools.partial(pv.fit, vae, x, epochs=1, batch_size=32)
        if warned:
            monkeypatch.setattr(step_cost, "MOST_TIMES", 2)
            with pytest.warns(CostWarning, match=r"takes about .* s and .* GB .* minutes") as seen:
                found = run()
            assert {warning.filename for warning in seen} == {__file__}
        else:
            found = run()
        histories.append(found.history[0]["train_elbo"])
    assert histories[0] == histories[1]


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("prior", PRIORS)
def test_only_multiplied_costs_are_announced(prior, guide):
    vae, x = pair(prior, guide, "normal"), images()
    svi = pv.SVI(vae.model, vae.guide, functools.partial(torch.optim.Adam, lr=1e-3))
    message = step_cost._message(svi, pv.data.as_dataset(x), BATCH, 100)
    assert bool(message) == (prior == "vamp" and guide == "flow")
