"""Sample from the guide of a pair and compute log weights, in bounded memory.

Every bound, score and diagnostic of the package is computed from one array, for samples
z_s ~ q(z|x_n):

    log_weights[s, n] = log p(x_n, z_s) - log q(z_s|x_n)          shape (num_samples, num_data)

Its mean over s estimates the ELBO (Kingma & Welling 2013, eq. 2). Its log-mean-exp estimates the
importance-weighted bound and log p(x) (Burda et al. 2015, eq. 8). Its tail shows how reliable these
estimates are.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.pairs.any_rows import check_any_rows
from pyro_vae.pairs.batching import Data, as_arguments, batch_of
from pyro_vae.pairs.check import check_arguments
from pyro_vae.pairs.chunking import CHUNK_DRAWS
from pyro_vae.pairs.coverage import (
    check_coverage,
    depends_on_data,
    is_zero_outside,
    stays_inside,
)
from pyro_vae.pairs.guides import is_automatic
from pyro_vae.pairs.pair import PairError, PairLike
from pyro_vae.pairs.runner import PairRunner
from pyro_vae.pairs.sites import SiteDraws, Sites
from pyro_vae.runtime.random_state import preserved_state

# Samples that show whether a log density depends on the latents.
PROBE_DRAWS = 16


@dataclass(frozen=True)
class Weighted:
    """Log densities in nats of samples from a proposal, each of shape `(samples, data)`.

    Attributes:
        log_likelihood: log p(x|z).
        log_prior: log p(z).
        log_q: Log density of the proposal, such as log q(z|x) of the guide.
    """

    log_likelihood: Tensor
    log_prior: Tensor
    log_q: Tensor

    @property
    def log_weights(self) -> Tensor:
        """Return log p(x, z) - log q(z|x), shape `(samples, data)`."""
        return self.log_likelihood + self.log_prior - self.log_q


@dataclass(frozen=True)
class Draws(Weighted):
    """Samples from the guide with their log densities.

    Attributes:
        latents: Samples by site name, shape `(samples, data, *other plates, *event)`. Latents
            outside the plate over the data have the shape of `SiteDraws.value`.
    """

    latents: dict[str, Tensor]


class Sampler:
    """Samples from a pair's guide, with the log densities of guide and model, on any data.

    All latents must be in the plate over the data. For other pairs, use `PairRunner`.

    Args:
        pair: Object with a `.model` and a `.guide`.
        batch: Some data, shape `(num_data, *event)`, or a tuple of these and other tensors with one
            row per datum.
        given_globals: Whether to accept pairs with global latents. Log densities are then
            conditional on samples of these. The global latents' log densities are left out, since
            they belong to no datum.

    Raises:
        PairError: If a latent is outside the plate over the data and `given_globals` is False, if
            another log density outside this plate is not constant, if the programs do not treat
            each datum independently, or if there are more tensors than the model or the guide
            takes.
    """

    def __init__(self, pair: PairLike, batch: Data, *, given_globals: bool = False) -> None:
        few = tuple(rows[:2] for rows in as_arguments(batch))
        check_arguments(pair, few)
        if is_automatic(pair.guide):  # before its first call, which may create its parameters
            check_any_rows(pair, (few, tuple(rows[:1] for rows in few)))
        self.programs = PairRunner(pair.model, pair.guide, few)
        given_globals = given_globals and self.programs.separable
        if not (self.programs.all_local or given_globals):
            raise PairError(
                "a latent is outside the plate over the data, so there is no log weight per datum: "
                "put it into pyro.plate('data', len(x)), or use the joint log weight from "
                "pyro_vae.from_pyro_svi"
            )
        self.plate, self.few = str(self.programs.data_plate), few
        if self.programs.all_local and not self.programs.per_datum:
            with torch.no_grad(), preserved_state():
                self._check_terms(few)

    def rsample(self, batch: Data, num_samples: int) -> Draws:
        """Sample z `num_samples` times for each datum, in one run, with gradients."""
        return self._draws(*self.programs.run(batch_of(batch), num_samples))

    @torch.no_grad()
    def draw(self, batch: Data, num_samples: int) -> Draws:
        """Sample z `num_samples` times for each datum, in one run."""
        return self.rsample(batch, num_samples)

    def from_prior(self, batch: Data, num_samples: int) -> dict[str, Tensor]:
        """Sample the latents of each datum from its prior, in the shapes of `Draws.latents`."""
        sites = self.programs.run_model(batch_of(batch), num_samples, observe=False)
        return {name: sites[name].rows(self.plate) for name in self.programs.local_latents}

    def model_at(self, batch: Data, latents: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return log p(z) and log p(x|z) with gradients, each of shape `(samples, data)`.

        Args:
            batch: Data.
            latents: Values of the latents, in the shapes of `Draws.latents`.
        """
        values, num_samples = self.values(latents), _num_samples(latents)
        model = self.programs.run_model(batch_of(batch), num_samples, values)
        return self._sum(_latents(model)), self._sum(_data(model))

    def guide_at(self, batch: Data, latents: Mapping[str, Tensor]) -> Tensor:
        """Return log q(z|x) of shape `(samples, data)` at any values of the latents.

        Args:
            batch: Data.
            latents: Values of all latents, in the shapes of `Draws.latents`.
        """
        values, num_samples = self.values(latents), _num_samples(latents)
        guide = self.programs.run_guide(batch_of(batch), num_samples, values)
        return self._sum(guide.values())

    def check_weights(self, batch: Data | None = None) -> None:
        """Check that the weights of the guide's samples estimate p(x), as in `check_coverage`.

        Args:
            batch: Data to check; by default a few. Nothing is run if they cannot differ from the
                few.
        """
        all_data = self._depends_on_data  # first of all: `gaps` replaces the guide later
        if batch is None:
            check_coverage(self.programs)
        elif all_data:
            check_coverage(self.programs, [batch_of(batch)])

    @functools.cached_property
    def _depends_on_data(self) -> bool:
        return depends_on_data(self.programs)

    @functools.cached_property
    def has_density(self) -> bool:
        """Whether `guide_at` gives the density of the guide's samples.

        It does not if the guide is a point mass or has a factor, if it computes its latents from
        auxiliary variables, or if its distributions return positive densities outside their
        supports.
        """
        if self.programs.point_masses or self.programs.penalties:
            return False
        with preserved_state(seed=0):
            draws = self.draw(self.few, PROBE_DRAWS)
            again = self.guide_at(self.few, draws.latents).detach()
        same = bool(torch.isclose(again.expand_as(draws.log_q), draws.log_q, rtol=1e-3).all())
        return same and is_zero_outside(self.programs)

    @functools.cached_property
    def stays_inside(self) -> bool:
        """Whether the guide's support is in that of the prior."""
        return stays_inside(self.programs)

    def values(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return latents of the shapes of `Draws.latents` in those of `SiteDraws.value`."""
        values = dict(latents)
        for name in self.programs.local_latents.keys() & latents.keys():
            plates = [frame.name for frame in self.programs.layout.frames[name]]
            values[name] = latents[name].movedim(1, 1 + plates.index(self.plate))
        return values

    def log_weights(
        self, batch: Data, num_samples: int, chunk_draws: int = CHUNK_DRAWS
    ) -> Weighted:
        """Return the log densities of `num_samples` samples per datum, computed chunk by chunk.

        Unlike `draw`, it does not keep the samples.
        """
        parts = []
        for start in range(0, num_samples, chunk_draws):
            part = self.draw(batch, min(chunk_draws, num_samples - start))
            parts.append((part.log_likelihood, part.log_prior, part.log_q))
        return Weighted(*(torch.cat(terms) for terms in zip(*parts, strict=True)))

    def _draws(self, guide: Sites, model: Sites) -> Draws:
        log_likelihood = self._sum(_data(model))
        return Draws(
            latents={
                name: site.rows(self.plate) if self.plate in site.plates else site.value
                for name, site in model.items()
                if not site.observed
            },
            log_likelihood=log_likelihood,
            log_prior=self._sum(_latents(model)).expand_as(log_likelihood),
            log_q=self._sum(guide.values()).expand_as(log_likelihood),
        )

    def _sum(self, sites: Iterable[SiteDraws]) -> Tensor:
        local = [site for site in sites if self.plate in site.plates]
        terms = [site.per_datum(self.plate) for site in local] or [torch.zeros(())]
        return torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]

    def _check_terms(self, batch: Data) -> None:
        """Raise `PairError` if a log density of all data together depends on them.

        A constant, such as a prior of the parameters, is no part of log p(x) of a datum.
        """
        repeated = self.programs.arguments.repeat(batch_of(batch), 2)
        one, two = (self.programs.run(rows, PROBE_DRAWS) for rows in (batch_of(batch), repeated))
        for role, sites, others in zip(("guide", "model"), one, two, strict=True):
            for name, site in sites.items():
                if self.plate in site.plates:
                    continue
                values = torch.cat([site.joint(), others[name].joint()])
                constant = self.programs.separable and bool((values == values[0]).all())
                if role == "guide" or not constant:
                    raise PairError(
                        f"the log density of {name!r} in the {role} is outside the plate over the "
                        "data and belongs to all of them, so there is no log weight per datum: put "
                        f"it into pyro.plate({self.plate!r}, len(x)), or use the joint log weight "
                        "from pyro_vae.from_pyro_svi"
                    )


def _num_samples(latents: Mapping[str, Tensor]) -> int:
    return len(next(iter(latents.values())))


def _latents(sites: Sites) -> list[SiteDraws]:
    # The density of a computed value is the prior of a latent that a `Reparam` of Pyro replaces.
    return [site for site in sites.values() if site.computed or not site.observed]


def _data(sites: Sites) -> list[SiteDraws]:
    return [site for site in sites.values() if site.observed and not site.computed]


def simulate(
    programs: PairRunner, template: tuple[Tensor, ...], places: range
) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """Sample latents and data from a model.

    Args:
        programs: The model and its guide.
        template: Data with the shape and dtype to simulate. Context tensors are repeated in order
            and returned with the data.
        places: Indices of the simulated data. One latent and one datum are sampled for each.

    Raises:
        ValueError: If the model has several observed sites.
        PairError: If the model does not sample from its prior.
    """
    programs.check_prior()
    x, *others = template
    rows = x[:1].expand(len(places), *x.shape[1:])
    index = torch.tensor(places, device=x.device) % len(x)
    context = tuple(part[index] for part in others)
    sites = programs.run_model(batch_of((rows, *context)), 1, observe=False)
    plate = str(programs.data_plate)
    latents = {name: sites[name].rows(plate)[0] for name in programs.local_latents}
    drawn = [name for name in sites if name not in latents and not sites[name].computed]
    if len(drawn) != 1:
        raise ValueError(f"expected one observed site to simulate data, got {drawn}")
    return latents, (sites[drawn[0]].rows(plate)[0].to(x.dtype), *context)
