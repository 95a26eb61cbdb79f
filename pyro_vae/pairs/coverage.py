"""Whether the weights of a guide's samples estimate p(x).

The mean of p(x, z) / q(z|x) over samples z of the guide is p(x) if the supports agree: q(z|x) is
positive wherever p(x, z) is, and p(x, z) is zero where the guide samples outside the prior's
support. No diagnostic of the weights shows this, since it concerns latents that are not sampled.
A point mass has no density q(z|x), so its weights estimate nothing, and neither do those of a guide
with a factor that is no Jacobian.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to
from torch.distributions.constraints import Constraint

from pyro_vae.pairs.batching import Batch
from pyro_vae.pairs.chunking import out_of_memory
from pyro_vae.pairs.comparison import latents_of, same_densities
from pyro_vae.pairs.latent_supports import (
    advice_for,
    check_latent_support,
    contained,
    covers,
    differing,
    has_zeros,
    listed_values,
    may_vary,
)
from pyro_vae.pairs.pair import PairError
from pyro_vae.pairs.plates import MISFITS
from pyro_vae.pairs.runner import PairRunner
from pyro_vae.pairs.sites import Sites
from pyro_vae.pairs.supports import bounds_of, density_support, elementwise, kind_of, known_support
from pyro_vae.runtime.random_state import preserved_state

NUM_POINTS = 16  # points of the prior's support that are compared with the guide's
MOST_VALUES = 100  # values of a discrete latent that are tried
NUM_MOVED = 4  # samples that show whether a density depends on masked elements
SPREAD = 3.0  # their distance from the mean, to that of samples of the prior


def check_coverage(programs: PairRunner, batches: Iterable[Batch] | None = None) -> None:
    """Check that the weights of the guide's samples estimate p(x).

    Args:
        programs: The pair.
        batches: Data to check; by default a few.

    Raises:
        PairError: If they do not.
    """
    reason = uncovered(programs, batches)
    if reason:
        raise PairError(
            f"{reason}. `fit` and, if all latents are continuous, proposal='refined' accept it"
        )


@torch.no_grad()
def uncovered(programs: PairRunner, batches: Iterable[Batch] | None = None) -> str:
    """Return why the weights of the guide's samples do not estimate p(x); empty if they do.

    It is also empty if there is not enough memory to run the programs on a batch at once.

    Args:
        programs: The pair.
        batches: Data to check; by default a few.

    Raises:
        PairError: If densities of guide and model are of different kinds, or the guide samples
            where the prior returns a density that is not on its support.
    """
    if programs.weighted:  # latents of a `Reparam`, which have no density
        return _without_density(programs)
    with preserved_state(seed=0):
        for batch in _first_data(programs) if batches is None else batches:
            try:
                reason = _uncovered_by(programs, batch)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                break
            if reason:
                return reason
    return _without_density(programs)


def _without_density(programs: PairRunner) -> str:
    if programs.penalties:
        return (
            f"the guide has the pyro.factor {sorted(programs.penalties)}, so log q(z|x) is not the "
            "density of its samples. Weights of its samples do not estimate p(x): remove it. A "
            "factor in a guide can be the Jacobian of latents that it computes in Delta sites"
        )
    if not programs.point_masses:
        return ""
    return (
        f"the guide is a point mass at {sorted(programs.point_masses)} (Delta, as in AutoDelta), "
        "which has no density. Weights of its samples do not estimate p(x): give the guide a "
        "distribution with a density, such as Normal"
    )


def _uncovered_by(programs: PairRunner, batch: Batch) -> str:
    guide, model = programs.run(batch, 1)
    _check_supports(programs, guide, model)
    check_masked(programs, batch, model)
    name = _missed(programs, batch, _doubtful(guide, model))
    if name is None:
        return ""
    prior, posterior = model[name].distribution, guide[name].distribution
    difference, advice = differing(name, prior, posterior), advice_for(prior)
    if has_zeros(posterior):
        difference = (
            f"the guide's {kind_of(posterior)} of latent {name!r} gives values a probability of 0"
        )
        advice = "give all values positive probabilities, for example by logits="
    return (
        f"{difference}, which leaves out latents with p(x, z) > 0. "
        f"Weights of its samples do not estimate p(x): {advice}"
    )


@torch.no_grad()
def depends_on_data(programs: PairRunner) -> bool:
    """Return whether the result of `uncovered` may differ between data, so that all are checked.

    It may for bounds, probabilities of zero and masks, which are functions of the data in general.
    """
    if not _is_per_datum(programs):  # all data have been run
        return False
    with preserved_state(seed=0):
        guide, model = programs.run(_first_data(programs)[0], 1)
    latents = [name for name in guide if name in model and not guide[name].is_delta]
    return any(
        model[name].mask is not None
        or may_vary(guide[name].distribution)
        or may_vary(model[name].distribution)
        for name in latents
    )


@torch.no_grad()
def check_masked(programs: PairRunner, batch: Batch, model: Sites) -> None:
    """Check that no density depends on masked elements of latents.

    Masked elements then integrate to one, and log p(x) is that of the others. Otherwise log p(x)
    would depend on the distribution that these elements get.

    Args:
        programs: The pair.
        batch: Data.
        model: Sites of the model in a run on these data.

    Raises:
        PairError: If a density depends on a masked element.
    """
    masked = [
        name
        for name, site in latents_of(model).items()
        if site.mask is not None and not site.mask.all()
    ]
    if programs.weighted or not masked:  # a `Reparam` moves densities of masked latents
        return
    with preserved_state():
        latents, others = (latents_of(programs.run_model(batch, NUM_MOVED)) for _ in range(2))
    given = {name: site.value for name, site in latents.items()}
    kept = {name: torch.as_tensor(latents[name].mask) for name in masked}
    moved = {n: torch.where(mask, given[n], others[n].value) for n, mask in kept.items()}
    here, there = (programs.run_model(batch, NUM_MOVED, at) for at in (given, given | moved))
    for name, site in here.items():
        if not same_densities([{name: site}], [there], lambda values, _: values):
            raise PairError(
                f"the density of {name!r} depends on masked elements of latent "
                f"{' or '.join(map(repr, masked))}, which have no density, so log p(x) is not "
                "defined: multiply the latent by its mask before it is used, or do not mask it"
            )


@torch.no_grad()
def is_zero_outside(programs: PairRunner) -> bool:
    """Return whether the guide returns a density of zero outside its support."""
    with preserved_state(seed=0):
        for batch in _first_data(programs):
            names = _doubtful(*programs.run(batch, 1))
            for at, _, possible in _points(programs, batch, names):
                sites = programs.run_guide(batch, 1, at)
                for name in names:
                    outside = possible & ~_rows_inside(programs, sites, at, name)
                    if outside.any() and sites[name].log_prob.sum() != -torch.inf:
                        return False
    return True


@torch.no_grad()
def check_kinds(programs: PairRunner) -> None:
    """Check that samples of the guide can be starting points of each latent.

    Raises:
        PairError: If densities of guide and model are of different kinds, or the guide samples
            where the prior returns a density that is not on its support. Angles may be on the real
            line.
    """
    with preserved_state(seed=0):
        for batch in _first_data(programs):
            _check_supports(programs, *programs.run(batch, 1), weighted=False)


@torch.no_grad()
def stays_inside(programs: PairRunner) -> bool:
    """Return whether the guide's support is in that of the prior."""
    with preserved_state(seed=0):
        for batch in _first_data(programs):
            try:
                _check_supports(programs, *programs.run(batch, 1), zero_outside=False)
            except PairError:
                return False
    return True


def _is_per_datum(programs: PairRunner) -> bool:
    return programs.separable and programs.all_local


def _first_data(programs: PairRunner) -> list[Batch]:
    """Return a few batches. Global latents depend on all data."""
    if _is_per_datum(programs):
        return list(itertools.islice(programs.batches(1), 2))
    return [next(programs.batches(max(1, programs.num_data)))]


def _check_supports(
    programs: PairRunner,
    guide: Sites,
    model: Sites,
    *,
    weighted: bool = True,
    zero_outside: bool = True,
) -> None:
    for name in guide.keys() & model.keys():
        value = programs.layout.to_program(name, guide[name].value)
        site = {"fn": guide[name].distribution, "value": value}
        prior = model[name].distribution
        check_latent_support(name, prior, site, weighted=weighted, zero_outside=zero_outside)


def _doubtful(guide: Sites, model: Sites) -> list[str]:
    """Return the latents for which the guide's support is not known to contain the prior's."""
    return [
        name
        for name in guide
        if name in model
        and not guide[name].is_delta
        and known_support(model[name].distribution) is not None
        and not covers(guide[name].distribution, model[name].distribution)
    ]


def _missed(programs: PairRunner, batch: Batch, names: list[str]) -> str | None:
    """Return a latent that has values outside the guide's support at which p(x, z) > 0, if any.

    It may have them for one datum of the batch alone.
    """
    with contextlib.suppress(*MISFITS):  # of flows without an inverse
        for at, model, possible in _points(programs, batch, names):
            possible = possible & (_log_joint(programs, model) > -torch.inf)
            guide = programs.run_guide(batch, 1, at)
            for name in names:
                if (possible & ~_rows_inside(programs, guide, at, name)).any():
                    return name
    return None


def _points(
    programs: PairRunner, batch: Batch, names: list[str]
) -> Iterator[tuple[dict[str, Tensor], Sites, Tensor]]:
    """Yield values of all latents, spread widely for some, and the sites of the model there.

    The third element has the data for which the values are in the supports of the priors.
    """
    if not names:
        return
    with contextlib.suppress(*MISFITS):  # of priors without samples
        draws = [programs.run_model(batch, 1) for _ in range(NUM_POINTS)]
        points = {
            name: _candidates(
                torch.cat([draw[name].value for draw in draws]), draws[0][name].distribution
            )
            for name in names
        }
        for i in range(max(map(len, points.values()))):
            drawn = draws[i % NUM_POINTS]
            at = {name: site.value for name, site in drawn.items() if not site.observed}
            at |= {name: values[i % len(values)][None] for name, values in points.items()}
            model = programs.run_model(batch, 1, at)
            inside = [_rows_inside(programs, model, at, name) for name in at]
            yield at, model, torch.stack(inside).all(0)


def _rows_inside(programs: PairRunner, sites: Sites, at: Mapping[str, Tensor], name: str) -> Tensor:
    """Return for which data the values of a latent are in its support, one element if together."""
    value = programs.layout.to_program(name, at[name])
    inside = contained(sites[name].distribution, value)
    if not _is_per_datum(programs):
        return inside.all()[None]
    rows = inside.movedim(programs.layout.data_dim, 0)
    return rows.reshape(len(rows), -1).all(1)


def _log_joint(programs: PairRunner, model: Sites) -> Tensor:
    """Return log p(x, z) of the only sample for each datum, or for all of them together."""
    local = programs.data_plate if _is_per_datum(programs) else None
    terms = [
        site.per_datum(str(local))[0] if local in site.plates else site.joint()
        for site in model.values()
    ]
    return torch.stack(torch.broadcast_tensors(*terms)).sum(0)


def _candidates(draws: Tensor, prior: Distribution) -> Tensor:
    """Return values of a latent in its prior's support: samples, spread, and the rare values."""
    values = _spread(draws, density_support(prior))
    listed = listed_values(prior)[:MOST_VALUES]
    if not len(listed):
        return values
    every = listed.reshape(len(listed), *[1] * (draws.dim() - listed.dim()), *listed.shape[1:])
    return torch.cat([every.expand(len(listed), *draws.shape[1:]).to(draws), values])


def _spread(values: Tensor, support: Constraint) -> Tensor:
    """Return samples of a prior at a multiple of their distance from the mean.

    If bounds depend on data or other latents, they are returned as given.
    """
    if bounds_of(support):
        return values
    support = elementwise(support)
    if support.is_discrete:
        center = values.double().mean(0)
        moved = (center + SPREAD * (values - center)).round().to(values.dtype)
        inside = support.check(moved)
        return torch.where(inside, moved, values) if inside.shape == values.shape else values
    try:
        transform = biject_to(support)
        free = transform.inv(values)
        moved = transform(free.mean(0) + SPREAD * (free - free.mean(0)))
    except NotImplementedError:
        return values
    return torch.where(moved.isfinite(), moved, values)
