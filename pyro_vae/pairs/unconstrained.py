"""The joint density of a model as a function of its unconstrained latents.

Annealing, Hamiltonian Monte Carlo and refinement move through R^dim. The latents of all sites of a
datum, each mapped from its support by `biject_to`, are concatenated to one state. Log densities of
states include the log Jacobian of the map. Masked elements have the densities of their prior and
their guide, which integrate to one: the log density 0 has an infinite integral.
"""

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.distributions import Transform, constraints
from torch.distributions.constraints import Constraint, MixtureSameFamilyConstraint

from pyro_vae.distributions.transforms import biject_to
from pyro_vae.engine.guards import modules_of
from pyro_vae.pairs.batching import batch_of
from pyro_vae.pairs.coverage import check_masked
from pyro_vae.pairs.masks import IgnoreMasks
from pyro_vae.pairs.pair import PairError
from pyro_vae.pairs.sampler import Draws, Sampler
from pyro_vae.pairs.sites import SiteDraws
from pyro_vae.pairs.supports import bounds_of, elementwise, period_of, support_name, support_of
from pyro_vae.runtime.random_state import preserved_state


class Unconstrained:
    """The log densities of a pair as functions of the unconstrained latents of some data.

    They have gradients with respect to the latents, and none with respect to parameters. States
    have shape `(samples, data, dim)`.

    Attributes:
        sampler: The pair.
        batch: The data, and other tensors with one row per datum.
        dim: Number of unconstrained latents of a datum.
        angles: Names of the latents that are angles. Their states map to one period, to which
            samples of a guide on the real line are wrapped.

    Args:
        sampler: Sampler of the pair.
        batch: Data.

    Raises:
        PairError: If there is no latent, if one is discrete, if no map from R^dim to its support is
            known, or if the density of another site depends on masked elements.
    """

    def __init__(self, sampler: Sampler, batch: tuple[Tensor, ...]) -> None:
        self.sampler, self.batch = sampler, batch
        modules = modules_of(sampler.programs.model)
        self._parameters = [p for module in modules for p in module.parameters(recurse=False)]
        with torch.no_grad():
            sites = sampler.programs.run_model(batch_of(batch), 1)
            check_masked(sampler.programs, batch_of(batch), sites)
        self.supports: dict[str, Constraint] = {}
        self.transforms: dict[str, Transform] = {}
        self.shapes: dict[str, torch.Size] = {}
        self.angles: set[str] = set()
        for name in sampler.programs.local_latents:
            distribution = sites[name].distribution
            period = period_of(distribution)
            if period is not None:
                self.angles.add(name)
            self.supports[name] = period or self._support(name, sites[name])
            self.transforms[name] = _to_support(name, self.supports[name])
            self.shapes[name] = self.transforms[name].inv(sites[name].rows(sampler.plate)).shape[2:]
        self.dim = sum(math.prod(shape) for shape in self.shapes.values())
        if not self.dim:
            raise PairError(
                "the model has no latent in the plate over the data, so p(z|x) is empty"
            )

    def rows(self, index: Tensor) -> "Unconstrained":
        """Return the densities of the data at these indices."""
        part = copy.copy(self)
        part.batch = tuple(rows[index] for rows in self.batch)
        part.supports = {name: _rows(support, index) for name, support in self.supports.items()}
        part.transforms = {n: _to_support(n, support) for n, support in part.supports.items()}
        return part

    def _support(self, name: str, site: SiteDraws) -> Constraint:
        """Return the support of a latent with bounds that are the same for all data or one a datum.

        Raises:
            PairError: If bounds depend on other latents, or differ in another plate.
        """
        support, shape = support_of(site.distribution), site.distribution.batch_shape
        bounds = bounds_of(support)
        if not bounds:
            return support
        with torch.no_grad(), preserved_state():
            again = self.sampler.programs.run_model(batch_of(self.batch), 1)[name].distribution
        if any(not value.equal(bounds[n]) for n, value in bounds_of(support_of(again)).items()):
            raise PairError(
                f"the bounds of latent {name!r}, which has the support {support_name(support)}, "
                "depend on other latents: sample a latent with fixed bounds, and compute this one"
            )
        event = site.distribution.event_shape
        rows = {n: v.expand(*shape, *event).reshape(-1, *event) for n, v in bounds.items()}
        if all(bool((value == value[:1]).all()) for value in rows.values()):
            return _with_bounds(support, {n: value[0] for n, value in rows.items()})
        if site.plates != (self.sampler.plate,):
            raise PairError(
                f"the bounds of latent {name!r} differ in the plates {list(site.plates)}: they may "
                f"differ in {self.sampler.plate!r} alone"
            )
        return _with_bounds(support, rows)

    @torch.no_grad()
    def from_prior(self, num_samples: int) -> Tensor:
        """Sample states from the prior."""
        return self.unconstrain(self.sampler.from_prior(self.batch, num_samples))

    def from_guide(self, num_samples: int) -> tuple[Tensor, Draws]:
        """Sample states from the guide; return them with the densities of the latents."""
        draws = self.sampler.draw(self.batch, num_samples)
        return self.unconstrain({name: draws.latents[name] for name in self.transforms}), draws

    def unconstrain(self, latents: dict[str, Tensor]) -> Tensor:
        """Concatenate unconstrained latents, each of shape `(samples, data, *event)`."""
        latents = {n: _wrapped(z) if n in self.angles else z for n, z in latents.items()}
        rows = [self.transforms[name].inv(value) for name, value in latents.items()]
        return torch.cat([row.reshape(*row.shape[:2], -1) for row in rows], dim=-1)

    def constrain(self, states: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the latents at states, and the log Jacobian of shape `(samples, data)`."""
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        latents, log_jacobian = {}, states.new_zeros(states.shape[:2])
        parts = states.split(sizes, dim=-1)
        for (name, shape), part in zip(self.shapes.items(), parts, strict=True):
            row = part.reshape(*part.shape[:2], *shape)
            latents[name] = self.transforms[name](row)
            terms = self.transforms[name].log_abs_det_jacobian(row, latents[name])
            log_jacobian = log_jacobian + terms.reshape(*states.shape[:2], -1).sum(-1)
        return latents, log_jacobian

    def __call__(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log prior of the states and log p(x|z), each of shape `(samples, data)`."""
        latents, log_jacobian = self.constrain(states)
        with _constant(self._parameters), self._every_element():
            log_prior, log_likelihood = self.sampler.model_at(self.batch, latents)
        return log_prior + log_jacobian, log_likelihood

    def log_joint(self, states: Tensor) -> Tensor:
        """Return the log density of states and data, shape `(samples, data)`."""
        log_prior, log_likelihood = self(states)
        return log_prior + log_likelihood

    @torch.no_grad()
    def log_guide(self, states: Tensor) -> Tensor:
        """Return the log density of the guide at states, shape `(samples, data)`."""
        latents, log_jacobian = self.constrain(states)
        with self._every_element():
            return self.sampler.guide_at(self.batch, latents) + log_jacobian

    def _every_element(self) -> contextlib.AbstractContextManager[object]:
        """Give masked elements their densities, unless a `Reparam` moved these to other sites."""
        return contextlib.nullcontext() if self.sampler.programs.weighted else IgnoreMasks()


@contextlib.contextmanager
def _constant(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Compute no gradients of parameters.

    The backward pass of an autograd function would compute them even if `torch.autograd.grad` is
    called for the latents only, since `needs_input_grad` is that of the forward pass.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()


def _with_bounds(support: Constraint, bounds: Mapping[str, Tensor]) -> Constraint:
    base = copy.copy(elementwise(support))
    vars(base).update(bounds)
    return constraints.independent(base, support.event_dim - base.event_dim)


def _rows(support: Constraint, index: Tensor) -> Constraint:
    """Return a support of some data. Bounds that differ between data have one more dimension."""
    bounds = bounds_of(support)
    local = {n: v[index] for n, v in bounds.items() if v.dim() > support.event_dim}
    return _with_bounds(support, local) if local else support


def _wrapped(angle: Tensor) -> Tensor:
    return torch.where(angle.abs() > math.pi, torch.atan2(angle.sin(), angle.cos()), angle)


def _to_support(name: str, support: Constraint) -> Transform:
    if isinstance(support, MixtureSameFamilyConstraint):
        support = support.base_constraint
    if support.is_discrete:
        raise PairError(f"latent {name!r} is discrete, and a continuous latent is needed")
    try:
        return biject_to(support)
    except NotImplementedError:
        raise PairError(
            f"latent {name!r} has the support {support}, and no map from R^dim to it is known: use "
            "a latent on R^dim, a box, the simplex or the positive numbers"
        ) from None
