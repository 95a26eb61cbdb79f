"""Transforms of normalizing flows: corrections of those of Pyro, and a table of names."""

from collections.abc import Callable
from typing import Any, TypeVar

import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
from pyro.distributions import constraints
from pyro.nn import AutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import Transform

from pyro_vae.distributions.parameters import ONE_BEFORE_SOFTPLUS

Module = TypeVar("Module", bound=nn.Module)


class TransformedDistribution(dist.TransformedDistribution):
    """The distribution of Pyro, with gradients for samples that were taken without gradients.

    Pyro reads the noise of the latest sample from the caches of its transforms. If the sample was
    taken without gradients, that noise does not depend on the parameters of the transforms, and
    `log_prob` would have no gradient for them. In that case the noise is computed again.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats."""
        if torch.is_grad_enabled() and not value.requires_grad:
            for transform in self.transforms:
                transform.clear_cache()
                transform.inv.clear_cache()
        return super().log_prob(value)


class Reverse(Transform):
    """A transform that reverses the order of the latents."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        return x.flip(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        return y.flip(-1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return 0 for each vector."""
        return torch.zeros_like(x[..., 0])


class AffineAutoregressive(T.AffineAutoregressive):
    """The inverse autoregressive flow of Pyro, with an inverse for any dtype, not only float32."""

    def _inverse(self, y: Tensor) -> Tensor:
        x = torch.zeros_like(y)
        position = torch.arange(y.shape[-1], device=y.device)
        for i in self.arn.permutation:
            # y_i = scale_i x_i + shift_i with functions of the entries before. x_i is still 0.
            shift = self._call(x)
            x = torch.where(position == i, (y - shift) / self._cached_log_scale.exp(), x)
        return x

    _inverse_stable = _inverse


def _affine_autoregressive(latent_dim: int) -> AffineAutoregressive:
    return AffineAutoregressive(AutoRegressiveNN(latent_dim, [10 * latent_dim]))


def _spline(latent_dim: int) -> T.Spline:
    return _near_identity(T.spline(latent_dim))


def _spline_coupling(latent_dim: int) -> T.SplineCoupling:
    return _near_identity(T.spline_coupling(latent_dim))


def _near_identity(transform: Module) -> Module:
    """Move the splines of a transform near the identity. Pyro initializes them as narrow spikes."""
    for spline in transform.modules():
        if isinstance(spline, T.Spline):
            with torch.no_grad():
                for parameter in spline.parameters():
                    parameter.mul_(0.1)
                spline.unnormalized_derivatives.add_(ONE_BEFORE_SOFTPLUS)
    return transform


TRANSFORMS: dict[str, Callable[[int], Transform]] = {
    "affine_autoregressive": _affine_autoregressive,
    "affine_coupling": T.affine_coupling,
    "spline": _spline,
    "spline_autoregressive": T.spline_autoregressive,
    "spline_coupling": _spline_coupling,
}


def transform_named(name: str, latent_dim: int) -> Transform:
    """Build the transform called `name`; raise `ValueError` if the name is unknown."""
    if name not in TRANSFORMS:
        raise ValueError(f"transform {name!r} is unknown; expected one of {sorted(TRANSFORMS)}")
    return TRANSFORMS[name](latent_dim)


def clear_caches(module: nn.Module) -> None:
    """Clear the cached input and output of each Pyro transform in a module.

    The cache is looked up by the identity of a tensor, even if the weights have changed since. Its
    tensors are not leaves of the autograd graph, so the module could not be copied.
    """
    transforms: list[Any] = [part for part in module.modules() if isinstance(part, Transform)]
    for transform in transforms:
        transform.clear_cache()
        for name in ("_cache_log_detJ", "_cached_log_scale"):
            if hasattr(transform, name):
                setattr(transform, name, None)
