"""A fit of a proposal to its draws."""

import pytest
import torch

from pyro_vae.refinement import proposal
from pyro_vae.refinement.proposal import Proposal


def shifted(dim: int, components: int, num_draws: int) -> tuple[Proposal, torch.Tensor]:
    """Return a proposal of three data, and draws from it."""
    torch.manual_seed(dim)
    scale_tril = 0.3 * torch.randn(3, components, dim, dim).double().tril(-1) + torch.eye(dim)
    loc = 5.0 * torch.arange(components)[:, None] + torch.randn(3, 1, dim).double()
    found = Proposal(torch.zeros(3, components).double(), loc, scale_tril.double(), 5.0)
    return found, found.distribution.sample((num_draws,))


@pytest.mark.parametrize("dim", [1, 2, 8, 30])
def test_a_normal_posterior_is_found_in_one_round(dim, monkeypatch):
    """The regression of the scores of N(m, S) is exact for any weights: P = S^-1, and mean m."""
    monkeypatch.setattr(proposal, "PSEUDO_DRAWS", 0.0)
    before, states = shifted(dim, 1, 4 * dim + 4)
    change = 0.2 * torch.randn(dim, dim).double().tril(-1) / dim**0.5
    root = 1.3 * before.scale_tril[:, 0] @ change.matrix_exp()
    mean = before.loc[:, 0] + 0.5 * before.scale_tril[:, 0].sum(-1)
    target = torch.distributions.MultivariateNormal(mean, scale_tril=root)
    scores = -torch.cholesky_solve((states - mean).unsqueeze(-1), root).squeeze(-1)
    log_weights = target.log_prob(states) - before.distribution.log_prob(states)
    found = before.adapted(states, log_weights, scores)
    torch.testing.assert_close(found.loc[:, 0], mean)
    covariance = found.scale_tril[:, 0] @ found.scale_tril[:, 0].mT
    torch.testing.assert_close(covariance, proposal.WIDENING * root @ root.mT)


def test_a_precision_changes_within_limits():
    before, states = shifted(40, 1, 10)
    scores = 100 * torch.randn(states.shape).double()
    found = before.adapted(states, torch.zeros(10, 3).double(), scores)
    root = torch.linalg.solve_triangular(before.scale_tril, found.scale_tril, upper=False)
    precisions = proposal.WIDENING / torch.linalg.svdvals(root).square()
    least, most = proposal.PRECISIONS
    assert (precisions > 0.999 * least).all()
    assert (precisions < 1.001 * most).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_weights_and_scores_that_are_not_finite_do_not_stop_a_fit(bad):
    before, states = shifted(3, 2, 50)
    log_weights = torch.zeros(50, 3).double()
    log_weights[:, 0] = bad
    scores = -states
    scores[:, 1] = bad
    found = before.adapted(states, log_weights, scores)
    alone = before[2:].adapted(states[:, 2:], log_weights[:, 2:], scores[:, 2:])
    torch.testing.assert_close(found.loc[2:], alone.loc)
    torch.testing.assert_close(found.scale_tril[2:], alone.scale_tril)


def test_a_mean_moves_no_further_than_the_draws():
    """Scores far from a mode are large, and a full Newton step from there overshoots."""
    before, states = shifted(20, 1, 200)
    log_weights = torch.zeros(200, 3).double()
    log_weights[0] = 500.0
    found = before.adapted(states, log_weights, 300 * torch.ones_like(states))
    moved = torch.linalg.solve_triangular(
        before.scale_tril, (found.loc - before.loc).unsqueeze(-1), upper=False
    )
    assert (moved.norm(dim=(-2, -1)) < 1.001 * 20**0.5).all()
