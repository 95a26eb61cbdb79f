"""Every part of the package, one line each, for the laws (test_laws.py) and the grid.

The suite fails if `priors`, `likelihoods`, `guides` or `networks` exports a class without a line.
To add a part, add a line. If variants of a part take different paths through the code, add a line
for each, with a name that begins with the name of the class.

All observations have `EVENT_SHAPE`, two numbers, so every likelihood fits every guide and densities
can be integrated over a grid. For the same reason latents on the real line have 2 dimensions, and
those on a simplex, a sphere or one-hot codes have 3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch

from pyro_vae import guides, likelihoods, networks, priors
from pyro_vae.networks import MLP

EVENT_SHAPE = (2,)


@dataclass(frozen=True)
class Line:
    """A part and its expected properties.

    Args:
        build: Function that builds the part, for likelihoods from the number of latent dimensions.
        reparameterized: Whether samples have gradients, for guides only.
        normalized: Whether the density sums to 1 over x. It does not if it is conditional on a
            statistic of x.
        saves: Whether the part can be saved.
    """

    build: Callable[..., Any]
    reparameterized: bool = True
    normalized: bool = True
    saves: bool = True


def encoder(out_size: int) -> MLP:
    return MLP(EVENT_SHAPE, [6], out_size)


def decoder(latent_dim: int, outputs_per_entry: int = 1) -> MLP:
    return MLP(latent_dim, [6], outputs_per_entry * EVENT_SHAPE[0])


PRIORS: dict[str, Line] = {
    "Categorical": Line(lambda: priors.Categorical(3)),
    "DiagonalNormal": Line(lambda: priors.DiagonalNormal(2)),
    "Dirichlet": Line(lambda: priors.Dirichlet(3)),
    "Dirichlet, dense": Line(lambda: priors.Dirichlet(3, concentration=2.5)),
    "Fixed": Line(
        lambda: priors.Fixed(dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)), saves=False
    ),
    "Flow": Line(lambda: priors.Flow(2)),
    "Flow, affine coupling": Line(lambda: priors.Flow(2, ["affine_coupling"] * 2)),
    "Flow, spline": Line(lambda: priors.Flow(2, ["spline"])),
    "Flow, spline autoregressive": Line(lambda: priors.Flow(2, ["spline_autoregressive"])),
    "Flow, transforms of Pyro": Line(
        lambda: priors.Flow(2, [T.affine_coupling(2), T.householder(2)]), saves=False
    ),
    "HypersphericalUniform": Line(lambda: priors.HypersphericalUniform(3)),
    "Laplace": Line(lambda: priors.Laplace(2)),
    "LogisticNormal": Line(lambda: priors.LogisticNormal(3)),
    "MixtureOfGaussians": Line(lambda: priors.MixtureOfGaussians(2, num_components=3)),
    "StandardNormal": Line(lambda: priors.StandardNormal(2)),
    "StudentT": Line(lambda: priors.StudentT(2)),
    "VampPrior": Line(lambda: priors.VampPrior(guides.DiagonalNormal(encoder(4)), 3, EVENT_SHAPE)),
    "VampPrior, of a flow, unbounded": Line(
        lambda: priors.VampPrior(guides.Flow(encoder(7), 2), 3, EVENT_SHAPE, bounds=None)
    ),
    "VampPrior, on the sphere": Line(
        lambda: priors.VampPrior(guides.PowerSpherical(encoder(4)), 3, EVENT_SHAPE)
    ),
}

GUIDES: dict[str, Line] = {
    "Categorical": Line(lambda: guides.Categorical(encoder(3)), reparameterized=False),
    "DiagonalNormal": Line(lambda: guides.DiagonalNormal(encoder(4))),
    "Dirichlet": Line(lambda: guides.Dirichlet(encoder(3))),
    "Flow": Line(lambda: guides.Flow(encoder(4 + 3), 2)),
    "FullNormal": Line(lambda: guides.FullNormal(encoder(5))),
    "Laplace": Line(lambda: guides.Laplace(encoder(4))),
    "LogisticNormal": Line(lambda: guides.LogisticNormal(encoder(4))),
    "LowRankNormal": Line(lambda: guides.LowRankNormal(encoder(6), rank=1)),
    "PowerSpherical": Line(lambda: guides.PowerSpherical(encoder(4))),
}

# Likelihoods of an x of EVENT_SHAPE, for latents of any size.
LIKELIHOODS: dict[str, Line] = {
    "Bernoulli": Line(lambda latent_dim: likelihoods.Bernoulli(decoder(latent_dim))),
    "Beta": Line(lambda latent_dim: likelihoods.Beta(decoder(latent_dim))),
    "Beta, concentration from the decoder": Line(
        lambda latent_dim: likelihoods.Beta(decoder(latent_dim, 2), concentration="decoder")
    ),
    "Categorical": Line(
        lambda latent_dim: likelihoods.Categorical(decoder(latent_dim, 4), num_levels=4)
    ),
    "Columns": Line(
        lambda latent_dim: likelihoods.Columns(
            [
                likelihoods.Normal(MLP(5, [], 1)),
                likelihoods.Categorical(MLP(5, [], 3), num_levels=3, spacing=1),
            ],
            trunk=MLP(latent_dim, [], 5),
        )
    ),
    "Columns, at positions": Line(
        lambda latent_dim: likelihoods.Columns(
            [
                likelihoods.Bernoulli(MLP(5, [], 1)),
                likelihoods.Normal(MLP(5, [], 1), shift=[2.0], unit=[3.0]),
            ],
            trunk=MLP(latent_dim, [], 5),
            positions=[[1], [0]],
        )
    ),
    "ContinuousBernoulli": Line(
        lambda latent_dim: likelihoods.ContinuousBernoulli(decoder(latent_dim))
    ),
    "DiscretizedLogistic": Line(
        lambda latent_dim: likelihoods.DiscretizedLogistic(decoder(latent_dim, 2), num_levels=8)
    ),
    "DiscretizedLogisticMixture": Line(
        lambda latent_dim: likelihoods.DiscretizedLogisticMixture(decoder(latent_dim, 6), 2, 8)
    ),
    "Laplace": Line(lambda latent_dim: likelihoods.Laplace(decoder(latent_dim))),
    "LogNormal": Line(lambda latent_dim: likelihoods.LogNormal(decoder(latent_dim), scale=0.5)),
    "LogNormal, in the unit of the data": Line(
        lambda latent_dim: likelihoods.LogNormal(
            decoder(latent_dim), "entrywise", shift=[1.0, -2.0], unit=[0.5, 1.5]
        )
    ),
    "Missing": Line(
        lambda latent_dim: likelihoods.Missing(likelihoods.Normal(decoder(latent_dim)))
    ),
    "NegativeBinomial": Line(lambda latent_dim: likelihoods.NegativeBinomial(decoder(latent_dim))),
    "NegativeBinomial, given the library size": Line(
        lambda latent_dim: likelihoods.NegativeBinomial(
            decoder(latent_dim, 2), "decoder", library_size=20.0
        ),
        normalized=False,
    ),
    "Normal": Line(lambda latent_dim: likelihoods.Normal(decoder(latent_dim))),
    "Normal, scale fixed": Line(lambda latent_dim: likelihoods.Normal(decoder(latent_dim), 0.5)),
    "Normal, scale entrywise": Line(
        lambda latent_dim: likelihoods.Normal(decoder(latent_dim), scale="entrywise")
    ),
    "Normal, scale from the decoder": Line(
        lambda latent_dim: likelihoods.Normal(decoder(latent_dim, 2), scale="decoder")
    ),
    "Normal, mean in (0, 1)": Line(
        lambda latent_dim: likelihoods.Normal(decoder(latent_dim), sigmoid_mean=True)
    ),
    "Poisson": Line(lambda latent_dim: likelihoods.Poisson(decoder(latent_dim))),
    "StudentT": Line(lambda latent_dim: likelihoods.StudentT(decoder(latent_dim), df=5.0)),
    "ZeroInflatedNegativeBinomial": Line(
        lambda latent_dim: likelihoods.ZeroInflatedNegativeBinomial(decoder(latent_dim, 2))
    ),
}

NETWORKS: dict[str, Line] = {
    "ColumnInputs": Line(
        lambda: networks.ColumnInputs(
            networks.MLP(1 + 1 + 1 + 3 + 4, [4], 3),
            [["identity", 0.5, 2.0], ["one_hot", 3], ["log", -1.0, 0.5], ["log1p", 0.25, 1.5]],
            missing=True,
        )
    ),
    "ConvDecoder": Line(lambda: networks.ConvDecoder(3, [4, 2], (1, 5, 7))),
    "ConvDecoder, gated, with a stem": Line(
        lambda: networks.ConvDecoder(3, [4, 2], (1, 5, 7), block="gated", num_blocks=2, stem=3)
    ),
    "ConvEncoder": Line(lambda: networks.ConvEncoder((2, 5, 7), [2, 4], 3)),
    "ConvEncoder, gated, with a stem": Line(
        lambda: networks.ConvEncoder((2, 5, 7), [2, 4], 3, block="gated", num_blocks=2, stem=3)
    ),
    "MLP": Line(lambda: networks.MLP((3, 2), [5, 4], (2, 3))),
    "MLP, gated": Line(lambda: networks.MLP((3, 2), [5, 4], (2, 3), block="gated")),
    "MLP, residual, with layer norm": Line(
        lambda: networks.MLP((3, 2), [5, 5], (2, 3), block="residual", norm="layer")
    ),
    "Standardized": Line(lambda: networks.Standardized(networks.MLP(4, [3], 2), [0.0] * 4, 2.0)),
    "WithContext": Line(lambda: networks.WithContext(networks.MLP(2 * 3 + 4, [5], 3), (2, 3))),
    "WithContext, of images": Line(
        lambda: networks.WithContext(networks.ConvEncoder((2 + 4, 5, 7), [2], 3), (2, 5, 7))
    ),
    "WithMask": Line(lambda: networks.WithMask(networks.MLP((6, 2), [4], 3))),
}
