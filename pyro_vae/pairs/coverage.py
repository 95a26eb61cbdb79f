"""Whether the weights of a guide's samples estimate p(x).

The mean of p(x, z) / q(z|x) over samples z of the guide is p(x) if the supports agree: q(z|x) is
positive wherever p(x, z) is, and p(x, z) is zero where the guide samples outside the prior's
support. No diagnostic of the weights shows this, since it concerns latents that are not sampled.
A point mass has no density q(z|x), so its weights estimate nothing.
"""

import contextlib
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import Constraint

from pyro_vae.pairs.batching import Batch
from pyro_vae.pairs.chunking import out_of_memory
from pyro_vae.pairs.comparison import latents_of, same_densities
from pyro_vae.pairs.latent_supports import (
    advice_for,
    check_latent_support,
    contains,
    covers,
    differing,
)
from pyro_vae.pairs.pair import PairError
from pyro_vae.pairs.plates import MISFITS
from pyro_vae.pairs.runner import PairRunner
from pyro_vae.pairs.sites import SiteDraws, Sites
from pyro_vae.pairs.supports import bounds_of, density_support, elementwise, known_support
from pyro_vae.runtime.random_state import preserved_state

NUM_POINTS = 16  # points of the prior's support that are compared with the guide's
NUM_MOVED = 4  # samples that show whether a density depends on masked elements
SPREAD = 3.0  # their distance from the mean, to that of samples of the prior


def check_coverage(programs: PairRunner) -> None:
    """Check that the weights of the guide's samples estimate p(x).

    Raises:
        PairError: If they do not.
    """
    reason = uncovered(programs)
    if reason:
        raise PairError(
            f"{reason}. `fit` and, if all latents are continuous, proposal='refined' accept it"
        )


@torch.no_grad()
def uncovered(programs: PairRunner) -> str:
    """Return why the weights of the guide's samples do not estimate p(x); empty if they do.

    It is also empty if there is not enough memory to run the programs on all data at once.

    Raises:
        PairError: If densities of guide and model are of different kinds, or the guide samples
            where the prior returns a density that is not on its support.
    """
    if programs.weighted:  # latents of a `Reparam`, which have no density
        return _without_density(programs)
    with preserved_state(seed=0):
        for batch in _first_data(programs):
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
    return (
        f"{differing(name, prior, posterior)}, which leaves out latents with p(x, z) > 0. "
        f"Weights of its samples do not estimate p(x): {advice_for(prior)}"
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
            for at in _points(programs, batch, names):
                sites = _not_containing(programs, batch, at, names)
                if any(site.log_prob.sum() != -torch.inf for site in sites.values()):
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


def _first_data(programs: PairRunner) -> list[Batch]:
    """Return a few batches. Global latents depend on all data."""
    if programs.separable and programs.all_local:
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
    """Return a latent that has values outside the guide's support at which p(x, z) > 0, if any."""
    with contextlib.suppress(*MISFITS):  # of flows without an inverse
        for at in _points(programs, batch, names):
            model = programs.run_model(batch, 1, at)
            if sum(site.log_prob.sum() for site in model.values()) > -torch.inf:
                for name in _not_containing(programs, batch, at, names):
                    return name
    return None


def _points(programs: PairRunner, batch: Batch, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Yield values of all latents in the supports of their priors, spread widely for some."""
    if not names:
        return
    with contextlib.suppress(*MISFITS):  # of priors without samples
        draws = [programs.run_model(batch, 1) for _ in range(NUM_POINTS)]
        points = {
            name: _spread(
                torch.cat([draw[name].value for draw in draws]),
                density_support(draws[0][name].distribution),
            )
            for name in names
        }
        for i, draw in enumerate(draws):
            at = {name: site.value for name, site in draw.items() if not site.observed}
            at |= {name: values[i : i + 1] for name, values in points.items()}
            if not _not_containing(programs, batch, at, list(at), of_model=True):
                yield at


def _not_containing(
    programs: PairRunner,
    batch: Batch,
    at: dict[str, Tensor],
    names: list[str],
    of_model: bool = False,
) -> dict[str, SiteDraws]:
    """Return the sites of the guide, or of the model, whose supports do not contain values."""
    run = programs.run_model if of_model else programs.run_guide
    sites = run(batch, 1, at)
    values = {name: programs.layout.to_program(name, at[name]) for name in names}
    return {
        name: sites[name]
        for name, value in values.items()
        if not contains(sites[name].distribution, value)
    }


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
