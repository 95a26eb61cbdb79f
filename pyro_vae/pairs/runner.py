"""Run any Pyro model and its guide for many samples, on any part of their data.

Every sample site of both programs gives its values, shape `(samples, *plates, *event)`, and its log
densities, shape `(samples, *plates)`. The samples run in one of three ways:

    vectorized    in one more plate on the left, if the programs accept it
    tiled         in the plate over the data, with the data repeated for each sample, for decoders
                  that do not broadcast over leading dimensions
    one by one    if neither works, for example because of latents outside the plate over the data

If each datum is treated independently, the data run batch by batch. The way is chosen by comparing
log densities on a few data, so programs need no annotation.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TypeAlias

import pyro
import torch
from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyro_vae.engine.guards import modules_of
from pyro_vae.pairs.axes import PlateAxes, event_dim_of
from pyro_vae.pairs.batching import Arguments, Batch
from pyro_vae.pairs.comparison import latents_of, same_densities
from pyro_vae.pairs.guides import (
    check_latents,
    is_automatic,
    penalties,
    point_masses,
    without_observations,
)
from pyro_vae.pairs.inputs import explanation
from pyro_vae.pairs.latents import check_masks
from pyro_vae.pairs.ownership import check_own_parameters
from pyro_vae.pairs.pair import PairError, Program
from pyro_vae.pairs.plates import MISFITS, data_frame
from pyro_vae.pairs.sites import (
    DRAWS,
    ConditionLatents,
    Node,
    SampleData,
    SiteDraws,
    Sites,
    deterministic_sites,
    dims_of,
    frames_of,
    full_size_of,
    latent_sites,
    observed_sites,
    sample_sites,
    stack,
    values_of,
)
from pyro_vae.pairs.supports import check_observed
from pyro_vae.runtime.allocator import keep_freed_memory
from pyro_vae.runtime.devices import evaluating
from pyro_vae.runtime.random_state import preserved_state

Traces: TypeAlias = tuple[poutine.Trace, ...]


class PairRunner:
    """Runs a model and its guide on given arguments, with any plates.

    Attributes:
        data_plate: Name of the plate over the data, or None if no observed site is in a plate.
        num_data: Number of data in this plate, before subsampling.
        separable: Whether each datum is treated independently, so that any batch can be run.
        all_local: Whether every latent is in the plate over the data.
        per_datum: Whether every log density is in this plate, so that each datum has a log weight.
        local_latents: Number of event dimensions of each latent in the plate over the data.
        weighted: Latents of the model that are computed values with a density.
        point_masses: Latents without a density in the guide, as in `AutoDelta`.
        penalties: Factors of the guide that are no part of a density.
        datum_size: Number of elements of the largest site of one datum.

    Args:
        model: A Pyro model.
        guide: Its guide, called with the same arguments.
        args: Positional arguments. The rows of the first tensor are the data.
        kwargs: Keyword arguments.
        obs_plate: Name of the plate over the data. By default, `data_plates` finds it.
        deterministic: Whether `run` returns computed values without a density, too.

    Raises:
        PairError: If a program fails on its arguments, if guide and model have different latents,
            if no site is observed, if a batch dimension belongs to no plate, or if several plates
            may be the one over the data.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        args: tuple[object, ...],
        kwargs: Mapping[str, object] | None = None,
        *,
        obs_plate: str | None = None,
        deterministic: bool = False,
    ) -> None:
        keep_freed_memory()
        self.deterministic = deterministic
        self.model, self.guide = model, without_observations(guide)
        self.modules = modules_of(model, guide)
        check_own_parameters(self.modules)
        self.arguments = Arguments(args, kwargs or {})
        self.layout = PlateAxes()
        self.separable = False
        self.num_data = self.subsample_size = 0
        with torch.no_grad(), preserved_state():
            if is_automatic(guide):  # the first call fixes its shapes
                with contextlib.suppress(*MISFITS):
                    self._trace(self.guide, self.arguments.whole())
            few = self._learn_plates(obs_plate)
            self._learn_draws(few)
            self._learn_sites(few)

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield the data in batches.

        A batch has `size` data if the programs treat each datum independently, and otherwise as
        many as the plate over the data.
        """
        if self.separable:
            for start in range(0, self.num_data, size):
                yield self.arguments.rows(start, min(start + size, self.num_data))
        elif self.subsample_size < self.num_data:
            step = self.subsample_size
            for start in range(0, self.num_data, step):
                first = min(start, self.num_data - step)
                indices = torch.arange(first, first + step)
                fixed = {str(self.data_plate): indices}
                whole = self.arguments.whole()
                yield replace(whole, indices=indices, subsample=fixed, repeated=start - first)
        else:
            yield replace(self.arguments.whole(), indices=torch.arange(self.num_data))

    def run(
        self, batch: Batch, num_draws: int, given: Mapping[str, Tensor] | None = None
    ) -> tuple[Sites, Sites]:
        """Run the guide on a batch, and the model on the guide's samples.

        Args:
            batch: Data, as from `batches`.
            num_draws: Number of samples.
            given: Values of latents that the guide does not sample, in the shape of
                `SiteDraws.value`.

        Returns:
            The sites of the guide and those of the model.
        """

        def both(batch: Batch, values: Mapping[str, Tensor]) -> Traces:
            guide = self._trace(self.guide, batch, values)
            model = self._trace(self.model, batch, values_of(guide))
            check_masks(dict(sample_sites(model)), dict(latent_sites(guide)))
            return guide, model

        guide, model = self._over_draws(both, batch, num_draws, given or {})
        return guide, model

    def run_guide(self, batch: Batch, num_draws: int, given: Mapping[str, Tensor]) -> Sites:
        """Run the guide on a batch, with these values of its latents.

        Args:
            batch: Data, as from `batches`.
            num_draws: Number of samples.
            given: Values of latents, in the shape of `SiteDraws.value`.
        """

        def alone(batch: Batch, values: Mapping[str, Tensor]) -> Traces:
            return (self._trace(self.guide, batch, values),)

        return self._over_draws(alone, batch, num_draws, given)[0]

    def run_model(
        self,
        batch: Batch,
        num_draws: int,
        given: Mapping[str, Tensor] | None = None,
        *,
        observe: bool = True,
    ) -> Sites:
        """Run the model on a batch.

        Args:
            batch: Data, as from `batches`.
            num_draws: Number of samples.
            given: Values of latents, in the shape of `SiteDraws.value`. The other latents are
                sampled from the prior.
            observe: Whether to condition on the data. Otherwise the observed sites are sampled.
        """
        model = self.model if observe else SampleData()(self.model)

        def alone(batch: Batch, values: Mapping[str, Tensor]) -> Traces:
            return (self._trace(model, batch, values),)

        return self._over_draws(alone, batch, num_draws, given or {})[0]

    def check_prior(self) -> None:
        """Check that the model without its data samples from the prior.

        Raises:
            PairError: If a `Reparam` passes the prior of a latent to `Delta`. The model then
                samples the latent from another distribution.
        """
        if self.weighted:
            raise PairError(
                f"the model computes {sorted(self.weighted)} from samples that are not from the "
                "prior (pyro.infer.reparam), and so there are no prior samples. Run the model "
                "without this reparameterization"
            )

    def observed(self, batch: Batch) -> Mapping[str, Node]:
        """Run the guide and the model once on a batch; return the observed sites by name."""
        with torch.no_grad(), preserved_state():
            guide = self._trace(self.guide, batch)
            return observed_sites(self._trace(self.model, batch, values_of(guide)))

    def _trace(
        self, program: Program, batch: Batch, values: Mapping[str, Tensor] | None = None
    ) -> poutine.Trace:
        with (
            evaluating(*self.modules),
            pyro.validation_enabled(False),
            ConditionLatents({**batch.subsample, **(values or {})}),
        ):
            return poutine.trace(program).get_trace(*batch.args, **batch.kwargs)

    def _over_draws(
        self,
        program: Callable[[Batch, Mapping[str, Tensor]], Traces],
        batch: Batch,
        num_draws: int,
        given: Mapping[str, Tensor],
    ) -> tuple[Sites, ...]:
        if self.layout.vectorized or self.layout.tiled:
            values = {name: self.layout.to_program(name, value) for name, value in given.items()}
            if self.layout.vectorized:
                with pyro.plate(DRAWS, num_draws, dim=-1 - self.layout.nesting):
                    traces = program(batch, values)
            else:
                traces = program(self.arguments.repeat(batch, num_draws), values)
            return tuple(self.layout.collect(trace, num_draws) for trace in traces)
        runs = []
        for s in range(num_draws):
            one = {n: self.layout.to_program(n, value[s : s + 1]) for n, value in given.items()}
            runs.append([self.layout.collect(trace, 1) for trace in program(batch, one)])
        return tuple(stack(list(sites)) for sites in zip(*runs, strict=True))

    # -- how the programs can be run -----------------------------------------------------------

    def _learn_plates(self, obs_plate: str | None) -> Batch:
        """Find the plates, and whether the programs can run on a part of the data."""
        traces: Traces | None = None
        few = self.arguments.rows(0, min(3, self.arguments.num_rows))
        if self.arguments.num_rows:
            with contextlib.suppress(*MISFITS):
                traces = self._try(few)
                self._set_plates(traces, few, obs_plate)
                self.separable = self._is_separable(traces, len(few.indices))
        if self.separable:
            self.num_data = self.subsample_size = self.arguments.num_rows
            return few
        traces = self._try(self.arguments.whole())
        frame = self._set_plates(traces, self.arguments.whole(), obs_plate)
        if frame is not None:
            self.num_data, self.subsample_size = full_size_of(frame), frame.size
        return next(self.batches(1))

    def _set_plates(
        self, traces: Traces, batch: Batch, obs_plate: str | None
    ) -> CondIndepStackFrame | None:
        """Set all attributes about plates, and return the plate over the data, if there is one."""
        check_latents(traces, lambda values: self._trace(self.guide, batch, values))
        guide, model = (dict(sample_sites(trace)) for trace in traces)
        observed_sites(traces[1])  # at least one
        computed = dict(deterministic_sites(traces[1]) if self.deterministic else ())
        self.layout.event_dims = {name: event_dim_of(node) for name, node in computed.items()}
        self.layout.frames = {
            name: frames_of(node) for name, node in {**guide, **model, **computed}.items()
        }
        all_frames = [frame for frames in self.layout.frames.values() for frame in frames]
        self.layout.nesting = -min(dims_of(all_frames), default=0)
        latents = [node for node in [*guide.values(), *model.values()] if not node["is_observed"]]
        frame = data_frame(traces, (self.guide, self.model), self.arguments, obs_plate)
        self.data_plate = None if frame is None else frame.name
        self.layout.data_dim = 0 if frame is None or frame.dim is None else frame.dim

        def are_local(nodes: Iterable[Node]) -> bool:
            return frame is not None and all(
                frame.name in [f.name for f in frames_of(node)] for node in nodes
            )

        self.all_local = are_local(latents)
        self.per_datum = are_local([*guide.values(), *model.values()])
        return frame

    def _is_separable(self, traces: Traces, num_rows: int) -> bool:
        """Return whether log densities stay the same when the last datum is left out."""
        guide, model = (self.layout.collect(trace, 1) for trace in traces)
        plate = str(self.data_plate)

        def size_of(site: SiteDraws) -> int:
            return site.log_prob.shape[1 + site.plates.index(plate)]

        local = [site for site in [*guide.values(), *model.values()] if plate in site.plates]
        if not local or any(size_of(site) != num_rows for site in local):
            return False
        if num_rows == 1:
            return True

        def shorten(values: Tensor, site: SiteDraws) -> Tensor:
            if plate not in site.plates:
                return values
            return values.narrow(1 + site.plates.index(plate), 0, num_rows - 1)

        given = {name: shorten(site.value, site) for name, site in latents_of(guide).items()}
        fewer = self.run(self.arguments.rows(0, num_rows - 1), 1, given)
        return same_densities((guide, model), fewer, shorten)

    def _learn_draws(self, batch: Batch) -> None:
        """Choose how samples run: vectorized, tiled or one by one."""
        batches, num_rows = [batch], len(batch.indices)
        if self.separable and num_rows > 1:  # the number of rows is no size of another dimension
            batches.append(self.arguments.rows(0, num_rows - 1))
        self.layout.vectorized = True
        if all(map(self._draws_agree, batches)):
            return
        self.layout.vectorized = False
        self.layout.tiled = self.separable and self.all_local
        self.layout.tiled = self.layout.tiled and self._draws_agree(batch)

    def _learn_sites(self, batch: Batch) -> None:
        guide, model = self.run(batch, 2)
        rows = max(1, len(batch.indices))
        self.datum_size = max(
            1,
            *(
                math.prod(site.value.shape[1:]) // (rows if self.data_plate in site.plates else 1)
                for site in model.values()
            ),
        )
        latents = latents_of(model)
        self.local_latents = {
            name: site.event_dim for name, site in latents.items() if self.data_plate in site.plates
        }
        self.weighted = {
            name for name, site in model.items() if site.computed and site.log_prob.any()
        }
        self.point_masses = point_masses(guide, latents)
        self.penalties = penalties(guide)

    def _draws_agree(self, batch: Batch) -> bool:
        """Return whether a sample has the same log densities among others and in a run alone.

        The number of samples is no size of another dimension. Otherwise, a program could take the
        samples for rows or entries and run without an error.
        """
        given: dict[str, Tensor] = {}
        try:
            sites = [site for sites in self._one_by_one(batch, given) for site in sites.values()]
            sizes = {size for site in sites for size in site.value.shape}
            num_draws = next(n for n in itertools.count(2) if n not in sizes)
            together = self.run(batch, num_draws)
        except MISFITS:
            return False
        given = {name: site.value[-1:] for name, site in latents_of(together[0]).items()}
        alone = self._one_by_one(batch, given)
        return same_densities(together, alone, lambda values, site: values[-1:])

    def _one_by_one(self, batch: Batch, given: Mapping[str, Tensor]) -> tuple[Sites, Sites]:
        """Return the sites of a run of one sample, without a dimension of samples."""
        at_once = self.layout.vectorized, self.layout.tiled
        self.layout.vectorized = self.layout.tiled = False
        try:
            return self.run(batch, 1, given)
        finally:
            self.layout.vectorized, self.layout.tiled = at_once

    def _try(self, batch: Batch) -> Traces:
        role = "guide"
        try:
            guide = self._trace(self.guide, batch)
            role = "model"
            model = self._trace(self.model, batch, values_of(guide))
        except MISFITS as error:
            first = self.arguments.args[0] if self.arguments.args else None
            text = explanation(first, error, self.guide, self.model)
            raise PairError(f"the {role} fails on the arguments given: {text}") from error
        observed = {name: node for name, node in sample_sites(model) if node["is_observed"]}
        check_observed(observed, range(len(batch.indices)), nan_passes=True)
        return guide, model
