"""Numeric floors, and maps from unconstrained network outputs to distribution parameters."""

from torch import Tensor
from torch.nn.functional import softplus

# Scale of z in a prior or a guide. It is far below any posterior scale that matters, and far above
# the scales at which float32 densities overflow.
MIN_SCALE = 1e-6
# Scale of z in a ladder, which adds precisions 1 / scale^2.
MIN_LADDER_SCALE = 1e-4
# Scale of x relative to the unit of x. If an entry of x is constant, its learned scale shrinks and
# the density grows without bound. For pixels in [0, 1] this floor is a quarter of the step between
# two of 256 grey levels.
MIN_LIKELIHOOD_SCALE = 1e-3
# Below it, samples of a Dirichlet distribution underflow to the corners of the simplex in float32.
MIN_CONCENTRATION = 1e-2
MIN_BETA_CONCENTRATION = 1e-3
MIN_INVERSE_DISPERSION = 1e-3
# The mean of a Student t distribution exists above it.
MIN_DF = 1.0

# softplus(ONE_BEFORE_SOFTPLUS) = 1
ONE_BEFORE_SOFTPLUS = 0.5413248546129181

# Pseudo-inputs start at least this share of their interval away from its ends.
MARGIN = 0.01


def min_scale_of_levels(num_levels: int) -> float:
    """Return the lower bound of the scale of pixels with this number of levels in [0, 1].

    More than 256 levels have a lower floor, in proportion to the step between two levels.
    """
    return MIN_LIKELIHOOD_SCALE * min(1.0, 255 / (num_levels - 1))


def loc_and_scale(outputs: Tensor, minimum: float = MIN_SCALE) -> tuple[Tensor, Tensor]:
    """Split outputs into loc and scale: the first half is loc, the second is softplus^-1(scale).

    Args:
        outputs: Network outputs, shape `(*batch, 2 * latent_dim)`.
        minimum: Lower bound of the scale.

    Returns:
        loc and scale, each of shape `(*batch, latent_dim)`.
    """
    loc, raw_scale = outputs.chunk(2, dim=-1)
    return loc, softplus(raw_scale) + minimum
