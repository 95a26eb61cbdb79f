"""`LadderVAE` and `MixedVAE`, pairs with more than one latent."""

import functools

import numpy as np
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate

import pyro_vae as pv
from pyro_vae.models.ladder import _weighted_by_precision
from pyro_vae.networks import MLP


def ladder():
    return pv.LadderVAE(
        prior=pv.priors.StandardNormal(2),
        decoders=[MLP(2, [8], 2 * 3)],
        likelihood=pv.likelihoods.Bernoulli(MLP(3, [8], 6)),
        encoders=[MLP(6, [8], 8), MLP(8, [8], 8)],
        latent_dims=[3, 2],
    )


def mixed(num_codes=3):
    return pv.MixedVAE(
        discrete_prior=pv.priors.Categorical(num_codes),
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.likelihoods.Bernoulli(MLP(num_codes + 2, [8], 6)),
        discrete_guide=pv.guides.Categorical(MLP(6, [8], num_codes)),
        guide=pv.guides.DiagonalNormal(MLP(6, [8], 4)),
    )


@pytest.fixture
def x():
    prototypes = (torch.rand(3, 6) < 0.5).float()
    flips = (torch.rand(300, 6) < 0.05).float()
    return (prototypes[torch.arange(300) % 3] - flips).abs()


@pytest.mark.parametrize(
    ("build", "objective", "latents"),
    [
        (ladder, Trace_ELBO(), ["z1", "z2"]),
        (mixed, TraceEnum_ELBO(max_plate_nesting=1), ["c", "z"]),
        (mixed, Trace_ELBO(), ["c", "z"]),
    ],
)
def test_it_trains_scores_draws_and_saves(build, objective, latents, x, tmp_path):
    pair = build()
    assert sorted(set(pair.check(x).model) - {"x"}) == latents
    enumerates = isinstance(objective, TraceEnum_ELBO)
    guide = config_enumerate(pair.guide) if enumerates else pair.guide
    optim = functools.partial(torch.optim.Adam, lr=0.02)
    svi = pv.SVI(pair.model, guide, optim, objective)
    losses = [svi.step(x) for _ in range(60)]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    for parameter in pair.parameters():
        assert parameter.isfinite().all()
    scores = pv.evaluate(pair, x[:20], num_samples=50)
    assert (scores.log_likelihood >= scores.elbo - 1e-4).all()
    assert pair.sample(7).shape == (7, 6)
    pair.save(tmp_path / "pair")
    again = pv.evaluate(pv.load(tmp_path / "pair"), x[:20], num_samples=50)
    np.testing.assert_allclose(again.elbo, scores.elbo, rtol=1e-5)


def test_the_ladder_joins_two_normals_as_their_product():
    locs, scales = torch.randn(2, 5), torch.rand(2, 5) + 0.1
    one, other = (torch.distributions.Normal(locs[i], scales[i]) for i in range(2))
    joined = torch.distributions.Normal(
        *_weighted_by_precision((locs[0], scales[0]), (locs[1], scales[1]))
    )
    z = torch.randn(20, 5)
    excess = one.log_prob(z) + other.log_prob(z) - joined.log_prob(z)
    torch.testing.assert_close(excess, excess[:1].expand(20, 5), rtol=1e-3, atol=1e-3)


def test_a_ladder_that_sees_nothing_is_the_prior(x):
    """With an encoder that claims no precision, q(z1|z2, x) = p(z1|z2)."""
    pair = ladder().double()
    with torch.no_grad():
        head = pair.guide.heads[0]
        head.weight.zero_()
        head.bias[3:] = 1e6
    guide = poutine.trace(pair.guide).get_trace(x.double())
    model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(x.double())
    guide.compute_log_prob()
    model.compute_log_prob()
    torch.testing.assert_close(guide.nodes["z1"]["log_prob"], model.nodes["z1"]["log_prob"])
    assert not torch.allclose(guide.nodes["z2"]["log_prob"], model.nodes["z2"]["log_prob"])


def test_a_ladder_of_mismatched_parts_is_refused():
    with pytest.raises(ValueError, match="got 2, 1 and 1"):
        pv.LadderVAE(
            pv.priors.StandardNormal(2),
            [MLP(2, [], 6)],
            pv.likelihoods.Bernoulli(MLP(3, [], 6)),
            [MLP(6, [], 8)],
            [3, 2],
        )


def test_enumerating_the_code_is_summing_over_it(x):
    pair, x = mixed().double(), x[:11].double()
    torch.manual_seed(3)
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(pair.model, config_enumerate(pair.guide), x)
    torch.manual_seed(3)
    q_z = pair.guide.posterior(x)
    z = q_z.rsample()
    log_q = pair.guide.discrete_posterior(x).logits.log_softmax(-1)
    bound = pair.model.prior().log_prob(z) - q_z.log_prob(z)
    for k, code in enumerate(torch.eye(3, dtype=torch.float64)):
        both = torch.cat([code.expand(11, 3), z], -1)
        joint = pair.model.discrete_prior().log_prob(code) + pair.model.likelihood(both).log_prob(x)
        bound = bound + log_q[:, k].exp() * (joint - log_q[:, k])
    assert -loss == pytest.approx(bound.sum().item(), abs=1e-9)
