"""Figures of images: samples, reconstructions, and the images along the latents."""

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.special import ndtri
from torch import Tensor

from pyro_vae import plots
from pyro_vae.models.conditional import ConditionalVAE
from pyro_vae.models.with_schema import Unconditional
from pyro_vae.reporting.subject import Subject
from pyro_vae.runtime.devices import device_of

SHOWN = 100  # sampled images
STEPS = 11  # images along a traversed latent
MANIFOLD = 20  # images along each side of a two-dimensional manifold


def figures(subject: Subject) -> dict[str, Figure]:
    """Return the figures of images."""
    vae, shown, title = subject.vae, subject.shown, subject.title
    if isinstance(vae, ConditionalVAE):
        y = subject.context[0]
        drawn = vae.sample(y).cpu()
        means = vae.reconstruct(shown[:50], y[:50]).cpu()
        text = f"{title}\ntest data above E[x|z, y]"
        return {
            "samples": plots.image_grid(drawn, f"{title}\nx drawn from p(x|y), y of test data"),
            "reconstructions": plots.reconstructions(shown[:50].cpu(), means, text),
        }
    latent_dim = subject.means.shape[1]
    draws = vae.sample_means(SHOWN)
    found = {
        "samples": plots.image_grid(
            draws.cpu(), f"{title}\nE[x|z] for z drawn from the prior ({latent_dim} latents)"
        ),
        "reconstructions": plots.reconstructions(
            shown[:50].cpu(), vae.reconstruct(shown[:50]).cpu(), f"{title}\ntest data above E[x|z]"
        ),
    }
    if latent_dim == 2:
        return {**found, "manifold": _manifold(vae, title)}
    return {**found, "traversals": _traversals(vae, title, subject.means, subject.scales)}


def _manifold(vae: Unconditional, title: str) -> Figure:
    """Decode a grid of N(0, I) quantiles (Kingma & Welling 2013, Figure 4)."""
    quantiles = ndtri((np.arange(MANIFOLD) + 0.5) / MANIFOLD)
    z2, z1 = np.meshgrid(quantiles[::-1], quantiles, indexing="ij")
    z = torch.tensor(np.stack([z1, z2], axis=-1), dtype=torch.float32)
    images = vae.decode(z.to(device_of(vae))).mean
    marked = {0, MANIFOLD // 4, MANIFOLD // 2 - 1, MANIFOLD // 2, 3 * MANIFOLD // 4, MANIFOLD - 1}
    names = [f"{value:.1f}" if i in marked else "" for i, value in enumerate(quantiles)]
    return plots.mosaic(
        images.cpu(),
        f"{title}\nE[x|z] over the quantiles of N(0, I)",
        names[::-1],
        names,
        ("z[0]", "z[1]"),
    )


def _traversals(vae: Unconditional, title: str, means: Tensor, scales: Tensor) -> Figure:
    """Vary one latent at a time from -2.5 to 2.5, in descending order of KL."""
    # KL(q(z_i|x) || N(0, 1))
    kl = 0.5 * (means.square() + scales.square() - 1) - scales.log()
    order = kl.mean(dim=0).argsort(descending=True)[:20]
    values = torch.linspace(-2.5, 2.5, STEPS, device=means.device)
    z = means[:1].expand(len(order), STEPS, -1).clone()
    for row, latent in enumerate(order):
        z[row, :, latent] = values
    labels = [f"z[{int(i)}]: {kl[:, i].mean():.1f}; {kl[0, i]:.1f}" for i in order]
    caption = f"{title}\nE[x|z] for the first test datum, with one latent varied in each row"
    return plots.mosaic(
        vae.decode(z.to(device_of(vae))).mean.cpu(),
        caption,
        labels,
        [f"{value:.1f}" for value in values],
        ("value of the latent", "KL to N(0, 1) in nats\n(mean of the data; this datum)"),
    )
