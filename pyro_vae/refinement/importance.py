"""Find a proposal for each datum of a batch, and draw weighted samples from it.

The proposal starts as the Laplace approximation with heavy tails: Student t distributions at the
modes of p(z|x), with the inverse negative Hessians as scales. Rounds of adaptive importance
sampling then fit it to its weighted draws and to the gradients of log p(x, z) there. A fit is kept
for a datum only if draws that it has not seen show that it is closer to p(z|x) than the proposal
before. They come from both proposals.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.pairs.khat import smoothed_log_weights
from pyro_vae.pairs.log_weights import effective_sample_size
from pyro_vae.pairs.pair import PairError
from pyro_vae.pairs.sampler import Weighted
from pyro_vae.pairs.unconstrained import Unconstrained
from pyro_vae.refinement.newton import eigen, find_modes, value_and_gradient
from pyro_vae.refinement.proposal import Proposal, degrees_of_freedom

NUM_CANDIDATES = 64  # draws of guide and prior from which a first state is taken
DIMENSIONS_PER_START = 20  # a start costs as many evaluations as there are dimensions
MAX_STARTS = 8
SAME_MODE = 1.0  # distance of two modes in standard deviations below which they are one
EVEN = 0.1  # effective share of the draws, below which a datum has more rounds
MORE_STAGES, MORE_DRAWS = 8, 2  # stages of more rounds, and how many times as many draws
LEAST_GAIN = 0.5  # of a stage, in nats of the median log weight, to go on to the next one
GUIDE_SHARE, PRIOR_SHARE = 0.1, 0.1  # of the draws


@dataclass(frozen=True)
class WeightedStates(Weighted):
    """Draws from the proposals of some data with their log densities.

    Attributes:
        states: Unconstrained latents, shape `(samples, data, dim)`. `log_prior` and `log_q` are
            densities of these.
    """

    states: Tensor

    @property
    def log_joint(self) -> Tensor:
        """The log density of latents and data, shape `(samples, data)`."""
        return self.log_prior + self.log_likelihood


@torch.no_grad()
def fitted(posterior: Unconstrained, num_rounds: int, num_draws: int, chunk: int) -> Proposal:
    """Return a proposal for each datum.

    Data whose weights are still uneven have more rounds with more draws, in stages. Many of them
    are unlike the training data: where log p(x, z) has kinks, the Hessian at one state says little
    about the posterior.

    Args:
        posterior: The log density of latents and data.
        num_rounds: Number of rounds that fit the proposal to its draws.
        num_draws: Number of draws of each datum in a round.
        chunk: Number of draws to evaluate together.
    """
    proposal = fit = _laplace(posterior)
    rows = torch.arange(len(proposal), device=proposal.loc.device)
    for stage in range(1 + MORE_STAGES if num_rounds else 0):
        draws = num_draws * MORE_DRAWS if stage else num_draws
        former = proposal[rows]
        for _ in range(num_rounds):
            states, log_joint, scores = _with_scores(posterior, fit, draws, chunk)
            fit = fit.adapted(states, log_joint - fit.distribution.log_prob(states), scores)
        unseen, last = (weighted(posterior, r, draws, chunk) for r in (former, fit))
        states = torch.cat([unseen.states, last.states])
        closer = is_closer(fit, former, states, torch.cat([unseen.log_joint, last.log_joint]))
        proposal = proposal.replaced(rows, fit.where(closer, former))
        uneven = ~(effective_sample_size(last.log_weights) >= EVEN * draws)
        gain = last.log_weights.median(0).values - unseen.log_weights.median(0).values
        going = (uneven & (closer | (gain > LEAST_GAIN) | (stage == 0))).nonzero()[:, 0]
        if not len(going):
            break
        rows, fit, posterior = rows[going], fit[going], posterior.rows(going)
    return proposal


def is_closer(fit: Proposal, first: Proposal, states: Tensor, log_joint: Tensor) -> Tensor:
    """Return whether KL(p(z|x) || r) is smaller for `fit` than for `first`, shape `(data,)`.

    Draws of both proposals are weighted by their mixture (Owen & Zhou 2000). Draws of `fit` alone
    show nothing of the mass that it lost, so that a fit that is much too narrow would be kept.

    Args:
        fit: A proposal.
        first: Another one.
        states: The same number of draws of each, shape `(samples, data, dim)`. Neither proposal was
            fitted to them.
        log_joint: log p(x, z) at the draws, shape `(samples, data)`.
    """
    ours, theirs = (r.distribution.log_prob(states) for r in (fit, first))
    log_weights = (log_joint - torch.logaddexp(ours, theirs)).nan_to_num(nan=-torch.inf)
    return (log_weights.softmax(0) * (ours - theirs)).sum(0) >= 0


def _with_scores(
    posterior: Unconstrained, proposal: Proposal, num_draws: int, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return draws of a proposal with log p(x, z) and its gradients there."""
    states = proposal.distribution.sample((num_draws,))
    terms = [value_and_gradient(posterior, part) for part in states.split(chunk)]
    log_joint, scores = (torch.cat(parts) for parts in zip(*terms, strict=True))
    return states, log_joint, scores


@torch.no_grad()
def weighted(
    posterior: Unconstrained,
    proposal: Proposal,
    num_samples: int,
    chunk: int,
    *,
    defended: bool = False,
) -> WeightedStates:
    """Return fresh draws with their weights.

    Args:
        posterior: The log density of latents and data.
        proposal: Where to draw from.
        num_samples: Number of draws of each datum.
        chunk: Number of draws to evaluate together.
        defended: Whether a share of the draws comes from the guide and, in few dimensions, another
            one from the prior. All draws are weighted by the mixture (Owen & Zhou 2000), so a mode
            that the proposal misses does not have unbounded weights.
    """
    shares = defence(posterior) if defended else {}
    numbers = {name: int(share * num_samples) for name, share in shares.items()}
    parts = [proposal.distribution.sample((num_samples - sum(numbers.values()),))]
    if numbers.get("guide"):
        parts.append(posterior.from_guide(numbers["guide"])[0])
    if numbers.get("prior"):
        parts.append(posterior.from_prior(numbers["prior"]))
    states = torch.cat(parts)
    terms = [posterior(part) for part in states.split(chunk)]
    log_prior, log_likelihood = (torch.cat(parts) for parts in zip(*terms, strict=True))
    shares = {name: number / num_samples for name, number in numbers.items()}
    log_q = log_mixture(posterior, proposal, states, log_prior, shares, chunk)
    return WeightedStates(log_likelihood, log_prior, log_q, states)


def resampled(found: WeightedStates, num_samples: int) -> Tensor:
    """Choose states of each datum with replacement, shape `(num_samples, data, dim)`.

    Their probabilities are the Pareto smoothed weights (Vehtari et al. 2024).

    Args:
        found: Weighted draws that the proposal was not fitted to.
        num_samples: Number of states of each datum.
    """
    log_weights = smoothed_log_weights(found.log_weights.double().cpu().numpy())
    share = torch.from_numpy(log_weights).to(found.states).softmax(0)
    index = torch.multinomial(share.T, num_samples, replacement=True).T
    return found.states.gather(0, index[..., None].expand(*index.shape, found.states.shape[-1]))


def defence(posterior: Unconstrained) -> dict[str, float]:
    """Return the shares of the draws that come from the guide and from the prior.

    A guide without a density at any value of the latents has no share, and none if it samples
    outside the prior's support, or if latents are angles: its samples may be wrapped, and its
    density is not.
    """
    sampler = posterior.sampler
    known = sampler.has_density and not posterior.angles and sampler.stays_inside
    return {
        "guide": GUIDE_SHARE if known else 0.0,
        "prior": PRIOR_SHARE if _num_starts(posterior.dim) > 1 else 0.0,
    }


def log_mixture(
    posterior: Unconstrained,
    proposal: Proposal,
    states: Tensor,
    log_prior: Tensor,
    shares: dict[str, float],
    chunk: int,
) -> Tensor:
    """Return the log density of the mixture at states, shape `(samples, data)`.

    Args:
        posterior: The log density of latents and data.
        proposal: Component with the rest of the shares.
        states: States, shape `(samples, data, dim)`.
        log_prior: Log prior of the states, shape `(samples, data)`.
        shares: Shares of guide and prior.
        chunk: Number of draws to evaluate together.
    """
    terms = [proposal.distribution.log_prob(states) + math.log1p(-sum(shares.values()))]
    if shares.get("guide"):
        guide = torch.cat([posterior.log_guide(part) for part in states.split(chunk)])
        terms.append(guide + math.log(shares["guide"]))
    if shares.get("prior"):
        terms.append(log_prior + math.log(shares["prior"]))
    return torch.stack(terms).logsumexp(0)


def _num_starts(dim: int) -> int:
    return max(1, min(MAX_STARTS, DIMENSIONS_PER_START // dim))


def _laplace(posterior: Unconstrained) -> Proposal:
    """Return Student t distributions at the modes that are reached from several states.

    The first state is the guide's best. Each further state is the candidate with the largest weight
    under the mixture so far (Raftery & Bao 2010), where another mode may be missing.
    """
    num_starts = _num_starts(posterior.dim)
    num_candidates = NUM_CANDIDATES * num_starts
    prior = posterior.from_prior(num_candidates)
    scale = prior.flatten(0, 1).std(0).clamp(min=1e-6)
    guide, draws = posterior.from_guide(num_candidates)
    each = torch.arange(guide.shape[1], device=guide.device)
    best = (draws.log_prior + draws.log_likelihood).argmax(0)
    proposal = _at_mode(posterior, guide[best, each], scale)
    if num_starts == 1:
        return _checked(proposal)
    candidates = torch.cat([guide, prior])
    log_prior, log_likelihood = posterior(candidates)
    for _ in range(num_starts - 1):
        covered = torch.logaddexp(log_prior, proposal.distribution.log_prob(candidates))
        best = (log_prior + log_likelihood - covered).nan_to_num(nan=-torch.inf).argmax(0)
        proposal = _joined(proposal, _at_mode(posterior, candidates[best, each], scale))
    return _checked(proposal)


def _checked(proposal: Proposal) -> Proposal:
    """Return a proposal that has a component for each datum.

    Raises:
        PairError: If log p(x, z) is not finite at the modes of a datum.
    """
    failed = ~proposal.logits.isfinite().any(-1)
    if failed.any():
        raise PairError(
            f"log p(x, z) is not finite at the mode of {int(failed.sum())} of {len(failed)} data: "
            "check the weights of the pair, or rescale the data"
        )
    return proposal


def _at_mode(posterior: Unconstrained, start: Tensor, scale: Tensor) -> Proposal:
    """Return one component for each datum. Its logit is the log of the Laplace approximation."""
    mode = find_modes(posterior, start, scale)
    values, vectors = eigen(mode.precision, scale)
    root = scale[:, None] * vectors / values.sqrt().unsqueeze(-2)
    # The Cholesky factor of root @ root.mT, which need not be positive definite in float32.
    upper = torch.linalg.qr(root.mT, mode="r").R
    scale_tril = (upper * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-1)).mT
    log_det = scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    df = degrees_of_freedom(posterior.dim)
    logits = (mode.log_joint + log_det).unsqueeze(1)
    return Proposal(logits, mode.state.unsqueeze(1), scale_tril.unsqueeze(1), df)


def _joined(proposal: Proposal, other: Proposal) -> Proposal:
    """Return the mixture of a proposal and one more component. A mode counts once."""
    apart = (other.loc - proposal.loc).unsqueeze(-1)
    white = torch.linalg.solve_triangular(proposal.scale_tril, apart, upper=False).squeeze(-1)
    same = (white.norm(dim=-1) < SAME_MODE) & proposal.logits.isfinite()
    logits = torch.where(same.any(1, keepdim=True), -torch.inf, other.logits)
    return Proposal(
        torch.cat([proposal.logits, logits], 1),
        torch.cat([proposal.loc, other.loc], 1),
        torch.cat([proposal.scale_tril, other.scale_tril], 1),
        proposal.df,
    )
