"""The latent space as data: its geometry, its axes, and draws from posteriors."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_vae.diagnostics.collapse import Collapse
from pyro_vae.distributions.independent import is_standard_normal
from pyro_vae.explorer.decoder import packed
from pyro_vae.models.any_vae import AnyVAE
from pyro_vae.refinement.refine import refine
from pyro_vae.runtime.files import JSONObject

MARGIN = 0.05  # of the range of sliders


def geometry_of(prior: Distribution) -> str:
    """Return the geometry of the support of a prior.

    `"normal"` is the real space of a standard normal prior and `"plane"` that of others. `"sphere"`
    and `"simplex"` are surfaces, and `"codes"` are one-hot vectors.
    """
    support: Any = prior.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support is constraints.simplex:
        return "simplex"
    if support is constraints.one_hot:
        return "codes"
    if type(support).__name__ == "_Sphere":  # of Pyro
        return "sphere"
    return "normal" if is_standard_normal(prior) else "plane"


def latents_of(use: Collapse, means: Tensor, prior: Tensor, geometry: str) -> list[JSONObject]:
    """Return KL and range of each latent.

    Args:
        use: Use of the latents, of which those of `means` come first.
        means: Posterior means, shape `(num_data, latent_dim)`.
        prior: Samples of the prior, shape `(num_samples, latent_dim)`.
        geometry: Geometry of the prior.
    """
    ends = torch.cat([means, prior.quantile(torch.tensor([0.005, 0.995], dtype=prior.dtype), 0)])
    size = means.shape[1]
    low, high = ends.min(0).values, ends.max(0).values
    margin = MARGIN * (high - low)
    low, high = low - margin, high + margin
    if geometry in ("sphere", "simplex", "codes"):
        low, high = (
            torch.full_like(low, -1.0 if geometry == "sphere" else 0.0),
            torch.ones_like(low),
        )
    return [
        {"kl": float(kl), "active": bool(active), "low": float(a), "high": float(b)}
        for kl, active, a, b in zip(use.kl[:size], use.active[:size], low, high, strict=True)
    ]


def principal_axes(means: Tensor) -> list[JSONObject]:
    """Return the first two principal components of posterior means, if there are three or more."""
    if means.shape[1] < 3:
        return []
    centre = means.mean(0)
    _, singular, components = torch.linalg.svd(means - centre, full_matrices=False)
    share = singular.square() / singular.square().sum().clamp(min=1e-30)
    return [
        {
            "label": f"principal component {i + 1} ({float(share[i]):.0%} of the variance)",
            "title": f"principal component {i + 1}",
            "vector": components[i].tolist(),
            "offset": float(components[i] @ centre),
        }
        for i in range(min(2, len(components)))
    ]


def clouds_of(
    vae: AnyVAE,
    batch: tuple[Tensor, ...],
    places: list[int],
    num_draws: int,
    is_refined: bool,
    seed: int,
) -> JSONObject:
    """Return draws from the posterior of some data.

    Args:
        vae: The VAE.
        batch: Those data, shape `(num_data, *event)`, and their context.
        places: Their positions among the data of the map.
        num_draws: Number of draws of each.
        is_refined: Whether to draw from the refined posterior, too.
        seed: Random seed of the refinement.
    """
    encoder = vae.encode(*batch).sample((num_draws,))
    refined = None
    if is_refined:
        refined = refine(vae, batch, seed=seed).sample(num_draws, seed=seed)[vae.latent_site]
    return {
        "data": places,
        "draws": num_draws,
        "encoder": _packed_draws(encoder),
        "refined": None if refined is None else _packed_draws(refined),
    }


def _packed_draws(draws: Tensor) -> JSONObject:
    """Pack draws of shape `(num_draws, num_data, latent_dim)`, the data first."""
    return packed(draws.transpose(0, 1).cpu().numpy().astype(np.float16))
