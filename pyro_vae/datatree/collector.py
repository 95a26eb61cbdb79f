"""Run a model and its guide batch by batch and collect the sites in the groups of ArviZ."""

import math
import warnings

import numpy as np
import torch
from torch import Tensor

from pyro_vae.datatree.writer import SAMPLE_DIMS, Group, Labels, Variables
from pyro_vae.distributed import gather
from pyro_vae.pairs.batching import Batch
from pyro_vae.pairs.chunking import CHUNK_ELEMENTS
from pyro_vae.pairs.pair import PairError
from pyro_vae.pairs.runner import PairRunner
from pyro_vae.pairs.sites import SiteDraws, Sites


class GroupCollector:
    """Runs the programs batch by batch; sites outside the data plate are sampled once."""

    def __init__(
        self, programs: PairRunner, labels: Labels, num_samples: int, groups: tuple[str, ...]
    ) -> None:
        self.programs, self.labels, self.num_samples = programs, labels, num_samples
        self.groups, self.plate = groups, programs.data_plate
        self.first = True
        # Samples of the sites outside the data plate by chunk, the same for every batch.
        self.posterior: list[dict[str, Tensor]] = []
        self.prior: list[dict[str, Tensor]] = []
        self.log_q = np.zeros(num_samples)
        self.log_p = np.zeros(num_samples)
        self.not_finite: dict[str, str] = {}  # value and position of a log density, by site

    def collect(self, batch: Batch) -> Variables:
        """Run a batch with all samples, in chunks, and return its groups."""
        rows = max(1, len(batch.indices)) if self.plate else 1
        step = max(1, CHUNK_ELEMENTS // (self.programs.datum_size * rows))
        chunks = [
            self._chunk(batch, i, slice(start, min(start + step, self.num_samples)))
            for i, start in enumerate(range(0, self.num_samples, step))
        ]
        self.first = False
        result: Variables = {}
        for group, variables in chunks[0].items():
            result[group] = {}
            for name, (dims, values) in variables.items():
                if group == "observed_data":
                    result[group][name] = dims, values[0]
                else:
                    parts = [chunk[group][name][1] for chunk in chunks]
                    result[group][name] = (*SAMPLE_DIMS, *dims), np.concatenate(parts)[None]
        return result

    def _chunk(self, batch: Batch, index: int, draws: slice) -> Variables:
        num_draws = draws.stop - draws.start
        given = {} if self.first else self.posterior[index]
        guide, model = self.programs.run(batch, num_draws, given)
        if self.first:
            self.posterior.append(self._without_data(guide))
        latent = {name: site for name, site in model.items() if not site.observed}
        data = {name: site for name, site in model.items() if site.observed and not site.is_factor}
        self._check_values(latent, data)
        self._look_for_not_finite({**latent, **data}, batch)
        result = {
            "posterior": self._values(latent, batch),
            "sample_stats": self._stats(guide, model, batch, draws),
            "log_likelihood": self._log_densities(data, batch),
            "observed_data": self._values(data, batch),
            "log_prior": self._log_densities(latent, batch),
        }
        if "posterior_predictive" in self.groups:
            values = {name: site.value for name, site in latent.items()}
            drawn = self.programs.run_model(batch, num_draws, values, observe=False)
            result["posterior_predictive"] = self._values(drawn, batch, only=data)
        if {"prior", "prior_predictive"} & set(self.groups):
            given = {} if self.first else self.prior[index]
            drawn = self.programs.run_model(batch, num_draws, given, observe=False)
            if self.first:
                self.prior.append(self._without_data(drawn, only=latent))
            result["prior"] = self._values(drawn, batch, only=latent)
            result["prior_predictive"] = self._values(drawn, batch, only=data)
        return {group: result[group] for group in self.groups}

    def _stats(self, guide: Sites, model: Sites, batch: Batch, draws: slice) -> Group:
        """Return log weights and log q per datum, or add to the joint ones."""
        log_q = self._total(guide, batch)
        log_p = self._total(model, batch)
        if self.programs.all_local:
            terms = {"log_weight": log_p - log_q, "log_q": log_q}
            dims: tuple[str, ...] = (str(self.plate),)
            stats = {name: (dims, value.cpu().numpy()) for name, value in terms.items()}
            return self._unless_point_masses(stats)
        self.log_q[draws] += log_q.double().cpu().numpy()
        self.log_p[draws] += log_p.double().cpu().numpy()
        return {}

    def forget_data(self) -> None:
        """Discard the terms of the data so far; keep the samples of global sites."""
        self.log_q[:] = self.log_p[:] = 0.0

    def joint_stats(self) -> Variables:
        """Return the joint log weights and log q of all data and latents, shape `(1, samples)`."""
        log_p, log_q = (np.sum(gather(mine), axis=0) for mine in (self.log_p, self.log_q))
        terms = {"log_weight": log_p - log_q, "log_q": log_q}
        stats: Group = {name: (SAMPLE_DIMS, value[None]) for name, value in terms.items()}
        return {"sample_stats": self._unless_point_masses(stats)}

    def _unless_point_masses(self, stats: Group) -> Group:
        return {} if self.programs.point_masses else stats

    def _total(self, sites: Sites, batch: Batch) -> Tensor:
        """Sum log densities: `(samples, data)` if every latent is local, else `(samples,)`."""
        terms = []
        for site in sites.values():
            local = self.plate in site.plates
            if self.programs.all_local and local:
                terms.append(site.per_datum(str(self.plate))[:, batch.repeated :])
            elif local:
                terms.append(site.per_datum(str(self.plate))[:, batch.repeated :].sum(1))
            elif self.first:
                terms.append(site.joint())
        # A program without local sites has no terms after the first batch.
        return torch.stack(terms).sum(0) if terms else torch.zeros(())

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
        return self.first or self.plate in site.plates

    def _new(self, site: SiteDraws, values: Tensor, batch: Batch) -> np.ndarray:
        """Return values as an array without the data that repeat the previous batch."""
        if batch.repeated and self.plate in site.plates:
            dim = 1 + site.plates.index(str(self.plate))
            values = values.narrow(dim, batch.repeated, values.shape[dim] - batch.repeated)
        return values.cpu().numpy()

    def _without_data(self, sites: Sites, only: Sites | None = None) -> dict[str, Tensor]:
        return {
            name: site.value
            for name, site in sites.items()
            if self.plate not in site.plates and (only is None or name in only)
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
        if self.programs.point_masses and "sample_stats" in self.groups:
            warnings.warn(
                f"the guide is a point mass at {sorted(self.programs.point_masses)} (AutoDelta) "
                "without a density, so log_weight, k-hat and evidence are not available",
                stacklevel=3,
            )
