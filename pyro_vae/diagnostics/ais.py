"""log p(x) by annealed importance sampling (AIS), by default independent of the guide.

Neal (2001): for each datum, chains move from the prior to the posterior through

    f_t(z) = p(z) p(x|z)^b_t,      0 = b_0 < b_1 < ... < b_T = 1,

with Hamiltonian Monte Carlo transitions that leave each f_t invariant. Their log weights are

    log w = sum_t (b_t - b_{t-1}) log p(x|z_{t-1}).

The transitions must not depend on the history of the chain, or E[w] would differ from p(x). A pilot
run therefore adapts the step sizes, one for each temperature and datum, and the chains of the
estimate use them unchanged. Chains can also start at a refined proposal r(z|x) (`FromProposal`).

E[w] = p(x), so in expectation the log-mean-exp over chains is a lower bound of log p(x). If x is
simulated from the model, the z* that generated it is an exact sample of the posterior. A chain from
z* back to the prior gives E[1/w] = 1/p(x) and thus an upper bound (bidirectional Monte Carlo,
Grosse, Ancha & Roy 2016). The schedule and the transitions follow Wu et al. (2017).
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from pyro_vae.arguments import Count, Seed, checked
from pyro_vae.data.any_data import Data
from pyro_vae.hmc import FIRST_STEP, LogDensities, Point, StepSizes, transition
from pyro_vae.pairs.checked_rows import CheckedRows
from pyro_vae.pairs.chunking import data_per_chunk, fitting, map_chunks
from pyro_vae.pairs.inputs import dataset_of
from pyro_vae.pairs.pair import AnyPair
from pyro_vae.pairs.sampler import Sampler, simulate
from pyro_vae.pairs.state import unchanged
from pyro_vae.pairs.unconstrained import Unconstrained
from pyro_vae.refinement.proposal import Proposal
from pyro_vae.refinement.refiner import NUM_ROUNDS, Refiner
from pyro_vae.runtime.tables import rendered, summary

TARGET_ACCEPTANCE = 0.65
PROPOSAL_DRAWS = 1000  # in a round that fits a proposal
# Chains of the pilot run for each datum, at most.
PILOT_CHAINS = 4


@dataclass(frozen=True)
class Annealed:
    """Bounds of log p(x) in nats, arrays of shape `(num_data,)`.

    Printing them shows means, standard errors over the data and medians.

    Attributes:
        lower: Lower bound, from chains that move from the prior to the posterior.
        upper: Upper bound, from chains in the other direction; NaN if no exact sample of the
            posterior is known.
        acceptance: Acceptance rate of the transitions.
        start: Distribution at which the chains of the lower bound start.

    Example:
        >>> import numpy as np, pyro_vae as pv
        >>> bounds = pv.Annealed(np.array([-5.1]), np.array([-5.0]), np.array([0.65]))
        >>> bool((bounds.lower < bounds.upper).all())
        True

    See also: `ais`, `bidirectional`.
    """

    lower: np.ndarray
    upper: np.ndarray
    acceptance: np.ndarray
    start: str = "prior"

    def __rich__(self) -> Table:
        bounds = {"lower bound of log p(x)": self.lower, "upper bound of log p(x)": self.upper}
        known = {name: values for name, values in bounds.items() if not np.isnan(values).all()}
        source = f"{len(self.lower):,} data, chains start at the {self.start}"
        source += " proposal" if self.start == "refined" else ""
        return summary(known, f"{source},\nmean acceptance rate {self.acceptance.mean():.2f}")

    def __str__(self) -> str:
        return rendered(self, width=80)


class Path(Protocol):
    """Log densities of the path from f_0 to f_1: log f_0(z) and log f_1(z) - log f_0(z)."""

    def __call__(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return both terms, each of shape `(samples, data)`."""

    def from_prior(self, num_samples: int) -> Tensor:
        """Sample states from f_0."""


class FromProposal:
    """The path from a proposal r(z|x) to the posterior: f_t(z) = r(z|x)^(1 - b_t) p(x, z)^b_t."""

    def __init__(self, posterior: Unconstrained, proposal: Proposal) -> None:
        self.posterior, self.proposal = posterior, proposal

    def from_prior(self, num_samples: int) -> Tensor:
        """Sample states from r."""
        return self.proposal.distribution.sample((num_samples,))

    def __call__(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return log r(z|x) and log p(x, z) - log r(z|x), each of shape `(samples, data)`."""
        log_r = self.proposal.distribution.log_prob(states)
        return log_r, self.posterior.log_joint(states) - log_r


@checked
def ais(
    pair: AnyPair,
    x: Data,
    *,
    num_chains: Count = 4,
    num_temperatures: Count = 500,
    num_leapfrog: Count = 10,
    start: Literal["prior", "refined"] = "prior",
    seed: Seed = 0,
    progress: bool | None = None,
) -> Annealed:
    """Estimate log p(x) of each datum by annealed importance sampling.

    Args:
        pair: Object with `.model` and `.guide`. Every latent is continuous and in the plate over
            the data. The guide is run only to find the shapes of the latents.
        x: Data of shape `(num_data, *event)`, or a tuple `(x, y, ...)` or a `DataLoader` as for
            `fit`.
        num_chains: Number of independent chains for each datum.
        num_temperatures: T, number of transitions of each chain.
        num_leapfrog: Number of leapfrog steps of each transition.
        start: Distribution at which the chains start: the prior, or the refined proposal of each
            datum, as in `refine`. The proposal is nearer to the posterior, so far fewer
            temperatures suffice. The bound then depends on the proposal.
        seed: Random seed. The global random state is restored.
        progress: Whether to show a progress bar; by default if standard error is a terminal.

    Returns:
        Lower bounds of log p(x); the upper bounds are NaN.

    Raises:
        PairError: If a latent is outside the plate over the data.
        ValueError: If a number of chains, temperatures or leapfrog steps is below one, or a latent
            is discrete.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Bernoulli(pv.networks.MLP(2, [4], 5)),
        ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [4], 4)),
        ... )
        >>> bounds = pv.ais(vae, torch.ones(3, 5), num_chains=2, num_temperatures=3)
        >>> bounds.lower.shape
        (3,)

    See also: `bidirectional`, `evaluate`, `refine`, `gaps`.
    """
    data = dataset_of(pair, x)
    rows = data_per_chunk(data.event_shape, num_chains)

    def score(batch: tuple[Tensor, ...], _: int) -> dict[str, Tensor]:
        target: Path = Unconstrained(sampler, batch)
        if start == "refined":
            target = FromProposal(Unconstrained(sampler, batch), refiner.find(batch, chunk_draws))
        lower, accepted, _steps = _from_prior(target, num_chains, num_temperatures, num_leapfrog)
        return {"lower": lower, "acceptance": accepted}

    def first_point(batch: tuple[Tensor, ...], draws: int) -> Point:
        target = Unconstrained(sampler, batch)
        return Point.at(target, target.from_prior(draws))

    checked = CheckedRows(pair, data, guide=False)
    with unchanged(pair.model, pair.guide, seed=seed):
        sampler = Sampler(pair, data.batch(slice(2)))
        refiner, chunk_draws = Refiner(sampler, NUM_ROUNDS, PROPOSAL_DRAWS), 1
        if start == "refined":
            fewer, chunk_draws = refiner.chunk_sizes(data.batch(slice(2)), len(data))
            rows = min(rows, fewer)
        few = data.batch(slice(4))
        rows, _ = fitting(rows, num_chains, first_point, few, gradients=True)
        found = map_chunks(
            checked, score, rows=rows, seed=seed, description="annealing", progress=progress
        )
    bounds = found["lower"].numpy()
    return Annealed(bounds, np.full_like(bounds, np.nan), found["acceptance"].numpy(), start)


@checked
def bidirectional(
    pair: AnyPair,
    x: Data,
    *,
    num_data: Count = 100,
    num_chains: Count = 4,
    num_temperatures: Count = 500,
    num_leapfrog: Count = 10,
    seed: Seed = 0,
) -> tuple[Tensor, Annealed]:
    """Bound log p(x) from both sides on data simulated from the pair's model.

    Args:
        pair: Pair as in `ais`, with one observed site.
        x: Data of the shape and dtype to simulate; their values are not used. The context rows of a
            tuple `(x, y, ...)` or a `DataLoader` are used in turn, one for each datum.
        num_data: Number of data to simulate.
        num_chains: Number of chains in each direction. All reverse chains of a datum start at the
            one exact sample.
        num_temperatures: Number of transitions of each chain.
        num_leapfrog: Number of leapfrog steps of each transition.
        seed: Random seed. The global random state is restored.

    Returns:
        The simulated data, shape `(num_data, *event)`, and the bounds.

    Raises:
        PairError: If a latent is outside the plate over the data.
        ValueError: If a setting is below one, a latent is discrete, or the model does not have
            exactly one observed site.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Bernoulli(pv.networks.MLP(2, [4], 5)),
        ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [4], 4)),
        ... )
        >>> x, bounds = pv.bidirectional(vae, torch.ones(1, 5), num_data=3, num_temperatures=3)
        >>> x.shape, bounds.upper.shape
        (torch.Size([3, 5]), (3,))

    See also: `ais`, `sbc`.
    """
    data = dataset_of(pair, x)
    with unchanged(pair.model, pair.guide, seed=seed):
        template = data.batch(slice(max(2, num_data)))
        sampler = Sampler(pair, template)
        with torch.no_grad():
            latents, simulated = simulate(sampler.programs, template, range(num_data))
        target = Unconstrained(sampler, simulated)
        lower, accepted, steps = _from_prior(target, num_chains, num_temperatures, num_leapfrog)
        exact = target.unconstrain({n: z.expand(num_chains, *z.shape) for n, z in latents.items()})
        back, _ = _anneal(target, exact, steps, num_leapfrog, reverse=True)
    upper = math.log(num_chains) - (-back).logsumexp(0)
    bounds = Annealed(lower.cpu().numpy(), upper.cpu().numpy(), accepted.cpu().numpy())
    return simulated[0], bounds


def schedule(num_temperatures: int, steepness: float = 4.0) -> Tensor:
    """Return b_0 = 0, ..., b_T = 1 on a sigmoid, denser at both ends (Wu et al. 2017)."""
    grid = torch.linspace(-1, 1, num_temperatures + 1, dtype=torch.float64) * steepness
    sigmoid = grid.sigmoid()
    return (sigmoid - sigmoid[0]) / (sigmoid[-1] - sigmoid[0])


def _from_prior(
    target: Path, num_chains: int, num_temperatures: int, num_leapfrog: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return lower bounds of log p(x), acceptance rates, and the step sizes of the pilot run."""
    pilot = target.from_prior(min(num_chains, PILOT_CHAINS))
    steps = _adapted_steps(target, pilot, num_temperatures, num_leapfrog)
    weights, accepted = _anneal(target, target.from_prior(num_chains), steps, num_leapfrog)
    return weights.logsumexp(0) - math.log(num_chains), accepted, steps


def _adapted_steps(
    target: LogDensities, states: Tensor, num_temperatures: int, num_leapfrog: int
) -> Tensor:
    """Return step sizes `(num_temperatures, data)` that adapted in a run along the schedule."""
    first = torch.full(states.shape[1:2], FIRST_STEP, dtype=states.dtype, device=states.device)
    sizes = StepSizes(first, TARGET_ACCEPTANCE)
    point = Point.at(target, states)
    steps = []
    for beta in schedule(num_temperatures)[1:].tolist():
        point, moved = transition(target, point, sizes.values, num_leapfrog, beta)
        sizes.follow(moved.to(first.dtype).mean(0))
        steps.append(sizes.values)
    return torch.stack(steps)


def _anneal(
    target: LogDensities, states: Tensor, steps: Tensor, num_leapfrog: int, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Run chains along the schedule; return log weights `(chains, data)` and acceptance rates.

    Args:
        target: Log densities.
        states: First states of the chains, shape `(chains, data, dim)`.
        steps: Step sizes, shape `(num_temperatures, data)`. They do not depend on these chains.
        num_leapfrog: Number of leapfrog steps of each transition.
        reverse: Whether to run from the posterior to the prior.
    """
    num_temperatures = len(steps)
    betas = schedule(num_temperatures).tolist()
    weights = torch.zeros(states.shape[:2], dtype=torch.float64, device=states.device)
    accepted = torch.zeros_like(weights)
    point = Point.at(target, states)
    order = range(num_temperatures, 0, -1) if reverse else range(1, num_temperatures + 1)
    for t in order:
        change = betas[t] - betas[t - 1]
        if not reverse:
            weights += change * point.log_likelihood.double()
        point, moved = transition(target, point, steps[t - 1], num_leapfrog, betas[t])
        if reverse:  # from f_t to f_{t-1}: move under f_t, then update the weight
            weights += change * point.log_likelihood.double()
        accepted += moved
    return weights, accepted.mean(0) / num_temperatures
