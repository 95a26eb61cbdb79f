"""Priors that learn their shape: a mixture, the VampPrior, flows. `priors.py` has their names."""

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.distributions import Mixture
from pyro_vae.networks import Shape, shape_of
from pyro_vae.parts import Part
from pyro_vae.transforms import (
    ONE_BEFORE_SOFTPLUS,
    Reverse,
    TransformedDistribution,
    clear_caches,
    transform_named,
)

# Keeps a learned scale away from 0, where the density has no bound.
MIN_SCALE = 1e-6


class MixtureOfGaussians(Part):
    """p(z) = sum_k w_k N(z; loc_k, diag scale_k^2), all learned.

    Args:
        latent_dim: number of latent dimensions.
        num_components: K.
        locs: starting values of the locs, shape `(num_components, latent_dim)`; by default
            standard normal draws.

    Raises:
        ValueError: for a `latent_dim` or `num_components` below 1, or `locs` of another shape.
    """

    def __init__(self, latent_dim: int, num_components: int, locs: Tensor | None = None) -> None:
        super().__init__()
        check_at_least("latent_dim", latent_dim, 1)
        check_at_least("num_components", num_components, 1)
        shape = (num_components, latent_dim)
        if locs is None:
            locs = torch.randn(shape)
        _check_shape("locs", locs, shape)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.locs = nn.Parameter(locs.clone())
        self.raw_scales = nn.Parameter(torch.full(shape, ONE_BEFORE_SOFTPLUS))

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        scales = softplus(self.raw_scales) + MIN_SCALE
        return Mixture(
            dist.Categorical(logits=self.logits), dist.Normal(self.locs, scales).to_event(1)
        )


class VampPrior(Part):
    """p(z) = 1/K sum_k q(z|u_k), with learned pseudo-inputs u_k: Tomczak & Welling (2018), eq. 9.

    The guide is the model's own: `vae.replace(prior=VampPrior(vae.parts["guide"], ...))`.

    Args:
        guide: q(z|x), shared, not copied.
        num_pseudo_inputs: K.
        event_shape: shape of one observation.
        bounds: the interval that the pseudo-inputs stay in, as data do; None for the reals.
        pseudo_inputs: starting values, such as `train[:num_pseudo_inputs]`, shape
            `(num_pseudo_inputs, *event_shape)`; by default noise within the bounds.

    Raises:
        ValueError: for a size below 1, `pseudo_inputs` of another shape or out of bounds.
    """

    logits: Tensor

    def __init__(
        self,
        guide: Callable[[Tensor], dist.TorchDistribution],
        num_pseudo_inputs: int,
        event_shape: Shape,
        bounds: Sequence[float] | None = (0.0, 1.0),
        pseudo_inputs: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_at_least("num_pseudo_inputs", num_pseudo_inputs, 1)
        shape = (num_pseudo_inputs, *shape_of(event_shape))
        self.guide, self.bounds = guide, bounds
        if pseudo_inputs is None:
            # Near the middle of the bounds: a sigmoid's flat ends would hold them.
            raw = torch.randn(shape)
        else:
            _check_shape("pseudo_inputs", pseudo_inputs, shape)
            raw = pseudo_inputs.clone() if bounds is None else _inside(pseudo_inputs, bounds)
        self.raw_pseudo_inputs = nn.Parameter(raw)
        self.register_buffer("logits", torch.zeros(num_pseudo_inputs), persistent=False)

    @property
    def pseudo_inputs(self) -> Tensor:
        """The u_k, shape `(num_pseudo_inputs, *event_shape)`."""
        if self.bounds is None:
            return self.raw_pseudo_inputs
        low, high = self.bounds
        return low + (high - low) * self.raw_pseudo_inputs.sigmoid()

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        components = self.guide(self.pseudo_inputs)
        return Mixture(dist.Categorical(logits=self.logits), components)


class Flow(Part):
    """A normalizing flow: transforms T take z to standard normal noise.

    p(z) = N(T(z); 0, I) |det dT/dz|, T = T_n after ... after T_1, with the order of the latents
    reversed between two transforms. To score z takes one pass, to draw it the inverse of T: so an
    `"affine_autoregressive"` T makes a masked autoregressive flow (Papamakarios et al. 2017),
    which draws one latent after the other; a `"spline_coupling"` one (Durkan et al. 2019) draws
    in one pass, too.

    Args:
        latent_dim: number of latent dimensions, at least 2.
        transforms: names (keys of `pyro_vae.transforms.TRANSFORMS`), or Pyro's or your own
            transforms of vectors, which train but cannot be saved.

    Raises:
        ValueError: for a `latent_dim` below 2, an unknown name, or no transform.
    """

    zero: Tensor
    one: Tensor

    def __init__(
        self,
        latent_dim: int,
        transforms: Sequence[Any] = ("spline_coupling", "affine_autoregressive"),
    ) -> None:
        super().__init__()
        check_at_least("latent_dim", latent_dim, 2)
        if not transforms:
            raise ValueError("Flow needs at least one transform, got none")
        built = [transform_named(t, latent_dim) if isinstance(t, str) else t for t in transforms]
        self.transforms = [built[0]]
        for transform in built[1:]:
            self.transforms += [Reverse(), transform]
        self.learned = nn.ModuleList(t for t in built if isinstance(t, nn.Module))
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("one", torch.ones(latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        clear_caches(self)
        noise = dist.Normal(self.zero, self.one).to_event(1)
        return TransformedDistribution(noise, [t.inv for t in reversed(self.transforms)])

    def __getstate__(self) -> Any:
        clear_caches(self)
        return super().__getstate__()


def _inside(values: Tensor, bounds: Sequence[float]) -> Tensor:
    """Return what a sigmoid takes to `values`, kept off its flat ends by 1%."""
    low, high = bounds
    share = (values - low) / (high - low)
    if ((share < 0) | (share > 1)).any():
        raise ValueError(
            f"pseudo_inputs hold values in [{values.min().item():g}, {values.max().item():g}], "
            f"outside the bounds {tuple(bounds)}: pass bounds=(low, high) of the data, or None"
        )
    return share.clamp(0.01, 0.99).logit()


def check_at_least(name: str, value: int, least: int) -> None:
    """Raise `ValueError` for a value below the least."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _check_shape(name: str, values: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(values.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(values.shape)}")
