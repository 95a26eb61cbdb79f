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
from torch.distributions.transforms import IndependentTransform, StickBreakingTransform
from torch.nn.functional import pad

from pyro_vae.distributions.parameters import ONE_BEFORE_SOFTPLUS
from pyro_vae.distributions.special import in_float64, like, logsigmoid

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


class StickBreaking(StickBreakingTransform):
    """The stick-breaking transform of torch, accurate in the corners of the simplex.

    Share i is the part sigmoid(x_i - log(D - i)) of the stick that the shares before it leave, with
    D + 1 shares. torch computes the rest of the stick as 1 minus the sum of the shares before. If
    one share is nearly 1, this difference is rounded to a few multiples of 10^-7, or to 0, and log
    densities at small shares are wrong by thousands of nats. Here the rest is the sum of the shares
    that follow, and shares are products of logarithms of both parts.
    """

    def _call(self, x: Tensor) -> Tensor:
        log_share, log_rest = self._log_parts(*in_float64(x))
        left = pad(log_rest.cumsum(-1), [1, 0])
        shares = (pad(log_share, [0, 1]) + left).exp()
        return like(shares.clamp(min=torch.finfo(x.dtype).tiny), x)

    def _inverse(self, y: Tensor) -> Tensor:
        (shares,) = in_float64(y.clamp(min=torch.finfo(y.dtype).tiny))
        rest = shares.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        return like(shares[..., :-1].log() - rest.log() + self._log_offset(rest), y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log determinant, which depends on x alone."""
        log_share, log_rest = self._log_parts(*in_float64(x))
        before = pad(log_rest.cumsum(-1), [1, -1])
        return like((log_share + log_rest + before).sum(-1), x)

    def _log_parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logarithms of the parts of the remaining stick: the share, and the rest."""
        logit = x - self._log_offset(x)
        log_share = logsigmoid(logit)
        return log_share, log_share - logit

    @staticmethod
    def _log_offset(x: Tensor) -> Tensor:
        return torch.arange(x.shape[-1], 0, -1, dtype=x.dtype, device=x.device).log()


def biject_to(support: constraints.Constraint) -> Transform:
    """Return the map of Pyro from R^dim to a support, with the accurate `StickBreaking`.

    Raises:
        NotImplementedError: If no map is known.
    """
    return _accurate(T.biject_to(support))


def _accurate(transform: Transform) -> Transform:
    if isinstance(transform, IndependentTransform):
        base = _accurate(transform.base_transform)
        return IndependentTransform(base, transform.reinterpreted_batch_ndims)
    return StickBreaking() if isinstance(transform, StickBreakingTransform) else transform


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
