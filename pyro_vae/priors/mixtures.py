"""Priors with learned components: a mixture of Gaussians, the VampPrior."""

from collections.abc import Callable, Sequence
from typing import Annotated, TypeAlias

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.arguments import ArgumentError, Count, Finite
from pyro_vae.distributions.mixture import Mixture
from pyro_vae.distributions.parameters import MARGIN, MIN_SCALE, ONE_BEFORE_SOFTPLUS
from pyro_vae.networks import Initial, Shape, shape_of
from pyro_vae.networks.layers import check_finite
from pyro_vae.part import Part, Role

Guide: TypeAlias = Annotated[Callable[[Tensor], dist.TorchDistribution], Role("guide", ("x",))]


class MixtureOfGaussians(Part):
    """p(z) = sum_k w_k N(z; loc_k, diag scale_k^2), with learned weights, locs and scales.

    Args:
        latent_dim: Number of latent dimensions.
        num_components: Number of components K.
        locs: Initial locs, shape `(num_components, latent_dim)`. The default is standard normal
            samples.

    Raises:
        ValueError: If `latent_dim` or `num_components` is below 1, or `locs` has another shape or
            is not finite.

    Example:
        >>> from pyro_vae.priors import MixtureOfGaussians
        >>> prior = MixtureOfGaussians(3, num_components=10)
        >>> prior().sample((5,)).shape
        torch.Size([5, 3])

    See also: `VampPrior`, `Flow`.
    """

    def __init__(
        self, latent_dim: Count, num_components: Count, locs: Initial | None = None
    ) -> None:
        super().__init__()
        shape = (num_components, latent_dim)
        if locs is None:
            locs = torch.randn(shape)
        _check_initial("locs", locs, shape)
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

    Args:
        guide: Guide q(z|x) of the same model. It is shared, not copied.
        num_pseudo_inputs: Number of pseudo-inputs K.
        event_shape: Shape of one observation.
        bounds: Interval of the pseudo-inputs, the same as that of the data. `None` leaves them
            unbounded.
        pseudo_inputs: Initial pseudo-inputs, such as `train[:num_pseudo_inputs]`, shape
            `(num_pseudo_inputs, *event_shape)`. The default is noise within the bounds.

    Raises:
        ValueError: If a size is below 1, or `pseudo_inputs` has another shape, is not finite or is
            out of bounds.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(3),
        ...     pv.likelihoods.Bernoulli(pv.networks.MLP(3, [8], 5)),
        ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [8], 6)),
        ... )
        >>> vae = vae.replace(prior=pv.priors.VampPrior(vae.parts["guide"], 10, event_shape=5))
        >>> vae.parts["prior"]().sample((4,)).shape
        torch.Size([4, 3])

    See also: `MixtureOfGaussians`, `Flow`.
    """

    logits: Tensor

    def __init__(
        self,
        guide: Guide,
        num_pseudo_inputs: Count,
        event_shape: Shape,
        bounds: Sequence[Finite] | None = (0.0, 1.0),
        pseudo_inputs: Initial | None = None,
    ) -> None:
        super().__init__()
        shape = (num_pseudo_inputs, *shape_of(event_shape))
        if bounds is not None and not (len(bounds) == 2 and bounds[0] < bounds[1]):
            raise ArgumentError(f"bounds must be (low, high) with low < high, got {bounds!r}")
        self.guide, self.bounds = guide, bounds
        if pseudo_inputs is None:
            # Start near the middle of the bounds. The gradient vanishes at the ends of a sigmoid.
            raw = torch.randn(shape)
        else:
            _check_initial("pseudo_inputs", pseudo_inputs, shape)
            raw = pseudo_inputs.clone() if bounds is None else _unbounded(pseudo_inputs, bounds)
        self.raw_pseudo_inputs = nn.Parameter(raw)
        self.register_buffer("logits", torch.zeros(num_pseudo_inputs), persistent=False)

    @property
    def pseudo_inputs(self) -> Tensor:
        """Pseudo-inputs u_k, shape `(num_pseudo_inputs, *event_shape)`."""
        if self.bounds is None:
            return self.raw_pseudo_inputs
        low, high = self.bounds
        return low + (high - low) * self.raw_pseudo_inputs.sigmoid()

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        components = self.guide(self.pseudo_inputs)
        return Mixture(dist.Categorical(logits=self.logits), components)


def _unbounded(values: Tensor, bounds: Sequence[float]) -> Tensor:
    """Map values in the bounds to the real line, clamped to 1% from the ends."""
    low, high = bounds
    share = (values - low) / (high - low)
    if ((share < 0) | (share > 1)).any():
        raise ArgumentError(
            f"pseudo_inputs have values in [{values.min().item():g}, {values.max().item():g}], "
            f"outside the bounds {tuple(bounds)}: pass bounds=(low, high) of the data, or None"
        )
    return share.clamp(MARGIN, 1 - MARGIN).logit()


def _check_initial(name: str, values: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(values.shape) != shape:
        raise ArgumentError(f"{name} must have shape {shape}, got {tuple(values.shape)}")
    check_finite(name, values)
