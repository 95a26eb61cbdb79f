"""Conjugate models: the exact posterior and log p(x) for data with missing entries.

A `Conjugate` is one latent variable z and entries x_1..x_D that are independent given z. All of its
functions take batches: `x` and the boolean `seen` have shape `(*batch, D)`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

Distribution = dist.TorchDistribution


class Conjugate(ABC):
    """A prior, a likelihood of one entry, and their exact posterior."""

    event_dim = 0

    @abstractmethod
    def prior(self) -> Distribution:
        """Return p(z) with batch shape `()`."""

    @abstractmethod
    def likelihood(self, z: Tensor) -> Distribution:
        """Return p(x_d|z), with the batch shape of z."""

    @abstractmethod
    def posterior(self, x: Tensor, seen: Tensor) -> Distribution:
        """Return p(z|x) with batch shape `x.shape[:-1]`."""

    def entry(self, z: Tensor) -> Distribution:
        """Return p(x_d|z) with a last batch dimension of size one for the entries."""
        return self.likelihood(z.unsqueeze(-1 - self.event_dim))

    def log_evidence(self, x: Tensor, seen: Tensor) -> Tensor:
        """Return log p(x) = log p(x, z) - log p(z|x) at a z from the posterior."""
        posterior = self.posterior(x, seen)
        z = posterior.sample()
        likelihood = (self.entry(z).log_prob(x) * seen).sum(-1)
        return self.prior().log_prob(z) + likelihood - posterior.log_prob(z)

    def data(self, shape: tuple[int, ...], num_entries: int) -> Tensor:
        """Sample x of shape `(*shape, num_entries)`."""
        z = self.prior().sample(shape)
        return self.entry(z).sample((num_entries,)).movedim(0, -1)[..., 0, :]


@dataclass(frozen=True)
class NormalNormal(Conjugate):
    """z ~ N(m, s^2) and x_d ~ N(z, r^2)."""

    loc: Tensor
    scale: Tensor
    noise: Tensor

    def prior(self) -> Distribution:
        return dist.Normal(self.loc, self.scale)

    def likelihood(self, z: Tensor) -> Distribution:
        return dist.Normal(z, self.noise)

    def posterior(self, x: Tensor, seen: Tensor) -> Distribution:
        precision = self.scale**-2 + seen.sum(-1) * self.noise**-2
        weighted = self.loc * self.scale**-2 + (x * seen).sum(-1) * self.noise**-2
        return dist.Normal(weighted / precision, precision**-0.5)


@dataclass(frozen=True)
class GammaPoisson(Conjugate):
    """z ~ Gamma(a, b) and x_d ~ Poisson(z)."""

    concentration: Tensor
    rate: Tensor

    def prior(self) -> Distribution:
        return dist.Gamma(self.concentration, self.rate)

    def likelihood(self, z: Tensor) -> Distribution:
        return dist.Poisson(z)

    def posterior(self, x: Tensor, seen: Tensor) -> Distribution:
        return dist.Gamma(self.concentration + (x * seen).sum(-1), self.rate + seen.sum(-1))


@dataclass(frozen=True)
class GammaExponential(Conjugate):
    """z ~ Gamma(a, b) and x_d ~ Exponential(z)."""

    concentration: Tensor
    rate: Tensor

    def prior(self) -> Distribution:
        return dist.Gamma(self.concentration, self.rate)

    def likelihood(self, z: Tensor) -> Distribution:
        return dist.Exponential(z)

    def posterior(self, x: Tensor, seen: Tensor) -> Distribution:
        return dist.Gamma(self.concentration + seen.sum(-1), self.rate + (x * seen).sum(-1))


@dataclass(frozen=True)
class BetaBinomial(Conjugate):
    """z ~ Beta(a, b) and x_d ~ Binomial(n, z)."""

    first: Tensor
    second: Tensor
    total_count: int

    def prior(self) -> Distribution:
        return dist.Beta(self.first, self.second)

    def likelihood(self, z: Tensor) -> Distribution:
        return dist.Binomial(self.total_count, z)

    def posterior(self, x: Tensor, seen: Tensor) -> Distribution:
        successes = (x * seen).sum(-1)
        failures = self.total_count * seen.sum(-1) - successes
        return dist.Beta(self.first + successes, self.second + failures)


@dataclass(frozen=True)
class DirichletCategorical(Conjugate):
    """z ~ Dirichlet(a) and x_d ~ Categorical(z)."""

    concentration: Tensor
    event_dim = 1

    def prior(self) -> Distribution:
        return dist.Dirichlet(self.concentration)

    def likelihood(self, z: Tensor) -> Distribution:
        return dist.Categorical(z)

    def posterior(self, x: Tensor, seen: Tensor) -> Distribution:
        categories = torch.arange(len(self.concentration))
        counts = ((x.unsqueeze(-1) == categories) & seen.unsqueeze(-1)).sum(-2)
        return dist.Dirichlet(self.concentration + counts)


@dataclass(frozen=True)
class Mixture(Conjugate):
    """z ~ Categorical(w) and x_d ~ N(m_z, r^2): a mixture of normals, enumerated."""

    weights: Tensor
    locs: Tensor
    noise: Tensor

    def prior(self) -> Distribution:
        return dist.Categorical(self.weights)

    def likelihood(self, z: Tensor) -> Distribution:
        return dist.Normal(self.locs[z], self.noise)

    def posterior(self, x: Tensor, seen: Tensor) -> Distribution:
        each = dist.Normal(self.locs, self.noise).log_prob(x.unsqueeze(-1))
        return dist.Categorical(logits=self.weights.log() + (each * seen.unsqueeze(-1)).sum(-2))


def random_conjugate(generator: torch.Generator) -> Conjugate:
    """Return a model with random constants."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        unit = torch.rand(shape, generator=generator, dtype=torch.float64)
        return low + (high - low) * unit

    def positive(*shape: int) -> Tensor:
        return uniform(0.5, 3.0, *shape)

    size = int(torch.randint(2, 6, (), generator=generator))
    makers = [
        lambda: NormalNormal(uniform(-1, 1), positive(), positive()),
        lambda: GammaPoisson(positive(), positive()),
        lambda: GammaExponential(positive(), positive()),
        lambda: BetaBinomial(positive(), positive(), size),
        lambda: DirichletCategorical(positive(size)),
        lambda: Mixture(uniform(0.1, 1, size), uniform(-3, 3, size), positive()),
    ]
    return makers[int(torch.randint(len(makers), (), generator=generator))]()
