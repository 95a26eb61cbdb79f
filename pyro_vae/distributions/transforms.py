"""Invertible maps between latents and noise: what flows are made of, on Pyro's transforms."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
from pyro.distributions import constraints
from pyro.nn import AutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import Transform

# softplus of it is 1.
ONE_BEFORE_SOFTPLUS = 0.5413248546129181


class TransformedDistribution(dist.TransformedDistribution):
    """Pyro's, which takes the noise behind a draw from its transforms' caches, gradients or not.

    A draw without gradients, scored where they are wanted, would leave the transforms without:
    then the noise is found again.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats."""
        if torch.is_grad_enabled() and not value.requires_grad:
            for transform in self.transforms:
                transform.clear_cache()
                transform.inv.clear_cache()
        return super().log_prob(value)


class Reverse(Transform):
    """Reverses the order of the latents, so that the next transform treats them the other way."""

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
    """Pyro's inverse autoregressive flow, with an inverse that is not confined to float32."""

    def _inverse(self, y: Tensor) -> Tensor:
        x = torch.zeros_like(y)
        position = torch.arange(y.shape[-1], device=y.device)
        for i in self.arn.permutation:
            # y_i = scale_i x_i + shift_i, both functions of the entries before; x_i is still 0.
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


def _near_identity(transform: Any) -> Any:
    """Flatten the splines in a transform, which Pyro starts as dozens of narrow spikes."""
    for spline in transform.modules():
        if isinstance(spline, T.Spline):
            with torch.no_grad():
                for parameter in spline.parameters():
                    parameter.mul_(0.1)
                spline.unnormalized_derivatives.add_(ONE_BEFORE_SOFTPLUS)
    return transform


TRANSFORMS: dict[str, Callable[[int], Any]] = {
    "affine_autoregressive": _affine_autoregressive,
    "affine_coupling": T.affine_coupling,
    "spline": _spline,
    "spline_autoregressive": T.spline_autoregressive,
    "spline_coupling": _spline_coupling,
}


def transform_named(name: str, latent_dim: int) -> Any:
    """Build the transform called `name`; raise `ValueError` naming those there are."""
    if name not in TRANSFORMS:
        raise ValueError(f"transform {name!r} is unknown; choose one of {sorted(TRANSFORMS)}")
    return TRANSFORMS[name](latent_dim)


def clear_caches(module: nn.Module) -> None:
    """Forget the last input and output that each Pyro transform in `module` keeps.

    They are found again by the identity of the tensor, whatever the weights are by then, and,
    being intermediate results, would keep the module from being copied.
    """
    transforms: list[Any] = [part for part in module.modules() if isinstance(part, Transform)]
    for transform in transforms:
        transform.clear_cache()
        for name in ("_cache_log_detJ", "_cached_log_scale"):
            if hasattr(transform, name):
                setattr(transform, name, None)
