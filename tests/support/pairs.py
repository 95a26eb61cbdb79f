"""Pyro pairs whose guide is the exact posterior: every log weight is the log evidence.

Each has its own kind of plates and latents. `evidence` is log p(data), of each datum where every
latent belongs to one, else of all data together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

ONE = torch.tensor(1.0, dtype=torch.float64)
MEANS = torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float64)
LOG_SHARES = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()


@dataclass(frozen=True)
class ExactPair:
    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    evidence: Tensor
    plate: str
    num_data: int


def data(num_data: int, *event: int) -> Tensor:
    return torch.randn(num_data, *event, dtype=torch.float64)


def normal_evidence(x: Tensor, covariance: Tensor) -> Tensor:
    return dist.MultivariateNormal(torch.zeros_like(x), covariance).log_prob(x)


def global_mean(num_data: int = 20, subsample_size: int | None = None) -> ExactPair:
    """w ~ N(0, 1), x_n ~ N(w, 1); seven does not divide twenty, so that the last batch overlaps."""
    x = data(num_data)

    def model(x):
        w = pyro.sample("w", dist.Normal(0 * ONE, ONE))
        with pyro.plate("people", len(x), subsample_size=subsample_size) as index:
            pyro.sample("x", dist.Normal(w, ONE), obs=x[index])

    def guide(x):
        pyro.sample("w", dist.Normal(posterior_mean, posterior_sd))

    posterior_mean, posterior_sd = x.sum() / (num_data + 1), (ONE / (num_data + 1)).sqrt()
    covariance = torch.eye(num_data, dtype=torch.float64) + 1
    return ExactPair(model, guide, (x,), normal_evidence(x, covariance), "people", num_data)


def hierarchy(num_data: int = 9) -> ExactPair:
    """w ~ N(0, 1), b_n ~ N(w, 1), x_n ~ N(b_n, 1): a global latent and local ones."""
    x = data(num_data)

    def model(x):
        w = pyro.sample("w", dist.Normal(0 * ONE, ONE))
        with pyro.plate("people", len(x)):
            b = pyro.sample("b", dist.Normal(w, ONE))
            pyro.sample("x", dist.Normal(b, ONE), obs=x)

    def guide(x):
        precision = 1 + num_data / 2
        w = pyro.sample("w", dist.Normal(total / 2 / precision, ONE * precision**-0.5))
        with pyro.plate("people", len(x)):
            pyro.sample("b", dist.Normal((w + x) / 2, ONE * 0.5**0.5))

    total = x.sum()
    covariance = 2 * torch.eye(num_data, dtype=torch.float64) + 1
    return ExactPair(model, guide, (x,), normal_evidence(x, covariance), "people", num_data)


def mixture(num_data: int = 7) -> ExactPair:
    """A discrete latent for each datum, k_n ~ Cat(shares), x_n ~ N(mean of k_n, 1)."""
    x = data(num_data)

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=LOG_SHARES))
            pyro.sample("x", dist.Normal(MEANS[k], ONE), obs=x)

    def joint(x):
        return LOG_SHARES + dist.Normal(MEANS, ONE).log_prob(x[..., None])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=joint(x)))

    return ExactPair(model, guide, (x,), joint(x).logsumexp(-1), "data", num_data)


def two_views(num_data: int = 6) -> ExactPair:
    """One latent, two observed sites, one of them a time series in a plate of its own.

    z_n ~ N(0, 1), x_n ~ N(z_n, 1), y_nt ~ N(z_n, 1).
    """
    x, y = data(num_data), data(num_data, 4)

    def model(x, *, y):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(0 * ONE, ONE))
            pyro.sample("x", dist.Normal(z, ONE), obs=x[:, None])
            with pyro.plate("time", y.shape[1], dim=-1):
                pyro.sample("y", dist.Normal(z, ONE), obs=y)

    def guide(x, *, y):
        with pyro.plate("data", len(x), dim=-2):
            total = x[:, None] + y.sum(1, keepdim=True)
            precision = 2 + y.shape[1]
            pyro.sample("z", dist.Normal(total / precision, ONE * precision**-0.5))

    both = torch.cat([x[:, None], y], dim=1)
    covariance = torch.eye(5, dtype=torch.float64) + 1
    evidence = normal_evidence(both, covariance)
    return ExactPair(
        lambda x, y: model(x, y=y), lambda x, y: guide(x, y=y), (x, y), evidence, "data", num_data
    )


def not_broadcasting(num_data: int = 5) -> ExactPair:
    """A decoder that takes one leading dimension only, as one that flattens or convolves does."""
    x = data(num_data, 2)

    def decoder(z):
        assert z.dim() == 2
        return z.reshape(len(z), 2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0 * ONE, ONE).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), ONE).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, ONE * 0.5**0.5).to_event(1))

    evidence = normal_evidence(x, 2 * torch.eye(2, dtype=torch.float64))
    return ExactPair(model, guide, (x,), evidence, "data", num_data)


def whole_only(num_data: int = 5) -> ExactPair:
    """A model that standardizes by all of its data, and does not broadcast: no part of it runs.

    w ~ N(0, 1) with x_n - mean(x) ~ N(w, 1).
    """
    x = data(num_data)

    def model(x):
        w = pyro.sample("w", dist.Normal(0 * ONE, ONE))
        assert w.dim() == 0
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w + x.mean(), ONE), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(0 * ONE, (ONE / (len(x) + 1)).sqrt()))

    covariance = torch.eye(num_data, dtype=torch.float64) + 1
    evidence = normal_evidence(x - x.mean(), covariance)
    return ExactPair(model, guide, (x,), evidence, "data", num_data)


def masked(num_data: int = 6) -> ExactPair:
    """z_n ~ N(0, 1), x_n ~ N(z_n, 1), every other datum missing."""
    x = data(num_data)
    seen = torch.arange(num_data) % 2 == 0

    def model(x, seen):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0 * ONE, ONE))
            with pyro.poutine.mask(mask=seen):
                pyro.sample("x", dist.Normal(z, ONE), obs=x)

    def guide(x, seen):
        precision = 1 + seen.to(x.dtype)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.where(seen, x, 0) / precision, precision**-0.5))

    evidence = torch.where(seen, dist.Normal(0 * ONE, 2**0.5).log_prob(x), 0 * ONE)
    return ExactPair(model, guide, (x, seen), evidence, "data", num_data)


EXACT_PAIRS: dict[str, Callable[[], ExactPair]] = {
    "global": global_mean,
    "subsampled": lambda: global_mean(subsample_size=7),
    "hierarchy": hierarchy,
    "discrete": mixture,
    "two sites": two_views,
    "not broadcasting": not_broadcasting,
    "whole only": whole_only,
    "masked": masked,
}
