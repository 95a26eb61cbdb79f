"""Run a model and its guide batch by batch and collect the sites in the groups of ArviZ."""

import math
import sys
import warnings
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from pyro_vae.datatree.resampler import Resampler
from pyro_vae.datatree.writer import SAMPLE_DIMS, Group, Labels, Variables
from pyro_vae.distributed import gather
from pyro_vae.pairs.allocations import MORE
from pyro_vae.pairs.batching import Batch
from pyro_vae.pairs.chunking import CHUNK_ELEMENTS, ChunkSize, data_that_fit, in_parts
from pyro_vae.pairs.pair import PairError
from pyro_vae.pairs.runner import PairRunner
from pyro_vae.pairs.sites import SiteDraws, Sites
from pyro_vae.runtime.devices import device_of

# Samples of the latents outside the data plate, the same for every batch, by group and site.
Shared: TypeAlias = dict[str, dict[str, Tensor]]
Block: TypeAlias = tuple[Variables, int]  # groups, and the number of new data in them
PRIOR_SAMPLES = {"prior", "prior_predictive"}


@dataclass(frozen=True)
class _Chunk:
    """Some samples of a batch: their groups, log densities, and latents outside the data plate."""

    groups: Variables
    log_q: Tensor
    log_p: Tensor
    shared: Shared


class GroupCollector:
    """Runs the programs batch by batch; sites outside the data plate are sampled once."""

    def __init__(
        self,
        programs: PairRunner,
        labels: Labels,
        num_samples: int,
        groups: tuple[str, ...],
        resampler: Resampler | None = None,
        unweighted: str = "",
    ) -> None:
        self.programs, self.labels, self.num_samples = programs, labels, num_samples
        self.resampler = resampler
        self.unweighted = unweighted  # why weights of the guide's samples do not estimate p(x)
        self.groups, self.plate = groups, programs.data_plate
        self.shared: Shared | None = None  # None before the first batch
        # Limits on the part of a batch that runs at once, found when memory ran out.
        self.most_rows = self.most_draws = sys.maxsize
        self.most_pairs = math.inf  # limit on data times samples, measured on the first batch
        self.log_q = np.zeros(num_samples)
        self.log_p = np.zeros(num_samples)
        self.not_finite: dict[str, str] = {}  # value and position of a log density, by site

    def collect(self, batch: Batch) -> list[Block]:
        """Run a batch with all samples and return its groups, in one block if memory suffices."""
        rows = max(1, len(batch.indices)) if self.plate else 1
        least = 1 if self.programs.separable else rows
        draws = max(1, CHUNK_ELEMENTS // (self.programs.datum_size * rows))
        draws = min(draws, self.num_samples, self.most_draws)
        if self.shared is None and least < MORE <= rows:
            self.most_pairs = self._pairs_that_fit(draws)
        part = int(min(rows, self.most_rows, max(least, self.most_pairs)))
        size = ChunkSize(part, least, int(min(draws, max(1, self.most_pairs / part))))
        at_first = replace(size)

        def work(part: slice, draws: int) -> Block:
            few = batch
            if self.programs.separable:
                first, last = batch.indices[part][[0, -1]].tolist()
                few = self.programs.arguments.rows(first, last + 1)
            return self._block(few, draws), len(few.indices) - few.repeated

        blocks = list(in_parts(rows, size, work))
        if size != at_first:
            self.most_rows, self.most_draws = size.rows, size.draws
        return blocks

    def _pairs_that_fit(self, draws: int) -> float:
        def run(count: int) -> object:
            return self.programs.run(self.programs.arguments.rows(0, count), draws)

        return draws * data_that_fit(run, device_of(*self.programs.modules))

    def _block(self, batch: Batch, step: int) -> Variables:
        """Run a batch with all samples, `step` at a time."""
        latents, stats = None, None
        if self.resampler is not None:
            latents, stats = self.resampler(batch, self.num_samples)
        chunks = [
            self._chunk(batch, slice(start, min(start + step, self.num_samples)), latents)
            for start in range(0, self.num_samples, step)
        ]
        result: Variables = {}
        for group, variables in chunks[0].groups.items():
            result[group] = {}
            for name, (dims, values) in variables.items():
                if group == "observed_data":
                    result[group][name] = dims, values[0]
                else:
                    parts = [chunk.groups[group][name][1] for chunk in chunks]
                    result[group][name] = (*SAMPLE_DIMS, *dims), np.concatenate(parts)[None]
        if stats is not None and "sample_stats" in self.groups:
            result["sample_stats"] = stats
        # The state changes last. A block for which memory runs out is repeated.
        if not self.programs.per_datum:
            self.log_q += torch.cat([chunk.log_q for chunk in chunks]).double().cpu().numpy()
            self.log_p += torch.cat([chunk.log_p for chunk in chunks]).double().cpu().numpy()
        if self.shared is None:
            self.shared = {
                group: {
                    name: torch.cat([chunk.shared[group][name] for chunk in chunks])
                    for name in sites
                }
                for group, sites in chunks[0].shared.items()
            }
        return result

    def _chunk(self, batch: Batch, draws: slice, latents: dict[str, Tensor] | None) -> _Chunk:
        num_draws = draws.stop - draws.start
        guide: Sites = {}
        if latents is None:
            guide, model = self.programs.run(batch, num_draws, self._given("posterior", draws))
        else:
            given = {name: value[draws] for name, value in latents.items()}
            model = self.programs.run_model(batch, num_draws, given)
        shared = {"posterior": self._without_data(guide)}
        latent = {name: site for name, site in model.items() if not site.observed}
        computed = {name: site for name, site in model.items() if site.computed}
        data = {
            name: site
            for name, site in model.items()
            if not (name in latent or name in computed or site.is_factor)
        }
        with_prior = {**latent, **computed}
        for name in self.programs.layout.event_dims:
            del with_prior[name]
        self._check_values(latent, data)
        self._look_for_not_finite({**latent, **data}, batch)
        log_q, log_p = (self._total(sites, batch, num_draws) for sites in (guide, model))
        result = {
            "posterior": self._values({**latent, **computed}, batch),
            "sample_stats": self._stats(log_q, log_p),
            "log_likelihood": self._log_densities(data, batch),
            "observed_data": self._values(data, batch),
            "log_prior": self._log_densities(with_prior, batch),
        }
        if "posterior_predictive" in self.groups:
            values = {name: site.value for name, site in latent.items()}
            drawn = self.programs.run_model(batch, num_draws, values, observe=False)
            result["posterior_predictive"] = self._values(drawn, batch, only=data)
        if PRIOR_SAMPLES & set(self.groups):
            given = self._given("prior", draws)
            drawn = self.programs.run_model(batch, num_draws, given, observe=False)
            shared["prior"] = self._without_data(drawn, only=latent)
            result["prior"] = self._values(drawn, batch, only={**latent, **computed})
            result["prior_predictive"] = self._values(drawn, batch, only=data)
        return _Chunk({group: result[group] for group in self.groups}, log_q, log_p, shared)

    def _stats(self, log_q: Tensor, log_p: Tensor) -> Group:
        """Return log weights and log q of each datum, if the programs have them."""
        if not self.programs.per_datum or self.resampler is not None:
            return {}
        terms = {"log_weight": log_p - log_q, "log_q": log_q}
        dims: tuple[str, ...] = (str(self.plate),)
        stats = {name: (dims, value.cpu().numpy()) for name, value in terms.items()}
        return self._if_weighted(stats)

    def joint_stats(self) -> Variables:
        """Return the joint log weights and log q of all data and latents, shape `(1, samples)`."""
        log_p, log_q = (np.sum(gather(mine), axis=0) for mine in (self.log_p, self.log_q))
        terms = {"log_weight": log_p - log_q, "log_q": log_q}
        stats: Group = {name: (SAMPLE_DIMS, value[None]) for name, value in terms.items()}
        return {"sample_stats": self._if_weighted(stats)}

    def _if_weighted(self, stats: Group) -> Group:
        return {} if self.unweighted else stats

    def _total(self, sites: Sites, batch: Batch, num_draws: int) -> Tensor:
        """Sum log densities: `(samples, data)` if each belongs to a datum, else `(samples,)`."""
        terms = []
        for site in sites.values():
            local = self.plate in site.plates
            if self.programs.per_datum and local:
                terms.append(site.per_datum(str(self.plate))[:, batch.repeated :])
            elif local:
                terms.append(site.per_datum(str(self.plate))[:, batch.repeated :].sum(1))
            elif self.shared is None and not self.programs.per_datum:
                terms.append(site.joint())  # else the site is a computed value without a density
        # A program without local sites has no terms after the first batch.
        return torch.stack(terms).sum(0) if terms else torch.zeros(num_draws)

    def _values(self, sites: Sites, batch: Batch, only: Sites | None = None) -> Group:
        return {
            name: (
                self.labels.of(name, site.plates, site.event_dim),
                self._new(site, site.value, batch),
            )
            for name, site in sites.items()
            if (only is None or name in only) and self._is_due(site)
        }

    def _log_densities(self, sites: Sites, batch: Batch) -> Group:
        return {
            name: (site.plates, self._new(site, site.log_prob, batch))
            for name, site in sites.items()
            if self._is_due(site)
        }

    def _is_due(self, site: SiteDraws) -> bool:
        return self.shared is None or self.plate in site.plates

    def _new(self, site: SiteDraws, values: Tensor, batch: Batch) -> np.ndarray:
        """Return values as an array without the data that repeat the previous batch."""
        if batch.repeated and self.plate in site.plates:
            dim = 1 + site.plates.index(str(self.plate))
            values = values.narrow(dim, batch.repeated, values.shape[dim] - batch.repeated)
        return values.cpu().numpy()

    def _given(self, group: str, draws: slice) -> dict[str, Tensor]:
        """Return the samples of the latents outside the data plate after the first batch."""
        shared = {} if self.shared is None else self.shared[group]
        return {name: values[draws] for name, values in shared.items()}

    def _without_data(self, sites: Sites, only: Sites | None = None) -> dict[str, Tensor]:
        return {
            name: site.value
            for name, site in sites.items()
            if self.plate not in site.plates
            and not site.observed
            and (only is None or name in only)
        }

    def _check_values(self, latent: Sites, data: Sites) -> None:
        for name, site in latent.items():
            if not torch.isfinite(site.value).all():
                raise PairError(
                    f"the guide's sample of latent {name!r} is not finite. Check the data for NaN "
                    "and very large values, and the encoder's weights"
                )
        for name, site in data.items():
            if torch.isinf(site.value).any():  # NaN is a missing value or causes a warning
                raise PairError(f"observation {name!r} contains infinite values")

    def _look_for_not_finite(self, sites: Sites, batch: Batch) -> None:
        for name, site in sites.items():
            finite = torch.isfinite(site.log_prob)
            if name in self.not_finite or finite.all():
                continue
            draw, *place = (~finite).nonzero()[0].tolist()
            value = site.log_prob[(draw, *place)].item()
            where = dict(zip(site.plates, place, strict=True))
            if self.plate in where:
                where[str(self.plate)] = int(batch.indices[where[str(self.plate)]])
            places = ", ".join(f"{plate} {i}" for plate, i in where.items()) or "every one"
            self.not_finite[name] = f"{'NaN' if math.isnan(value) else value}, first at {places}"

    def warn(self) -> None:
        """Warn about log densities in the tree that are not finite or not available."""
        for name, what in self.not_finite.items():
            warnings.warn(
                f"the log density of site {name!r} is {what}. Check this datum and the outputs of "
                "the networks for it",
                stacklevel=3,
            )
        if self.unweighted and "sample_stats" in self.groups:
            warnings.warn(
                f"{self.unweighted}. log_weight, k-hat and evidence are left out", stacklevel=3
            )
