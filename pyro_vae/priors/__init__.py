"""Priors: `prior()` returns p(z), with batch_shape `()` and event_shape `(latent_dim,)`.

A guide can be combined with a prior if both have the same support: real vectors, the simplex, the
sphere, or one-hot codes.
"""

from pyro_vae.priors.flow import Flow
from pyro_vae.priors.mixtures import MixtureOfGaussians, VampPrior
from pyro_vae.priors.simple import (
    Categorical,
    DiagonalNormal,
    Dirichlet,
    Fixed,
    HypersphericalUniform,
    Laplace,
    LogisticNormal,
    StandardNormal,
    StudentT,
)

__all__ = [
    "Categorical",
    "DiagonalNormal",
    "Dirichlet",
    "Fixed",
    "Flow",
    "HypersphericalUniform",
    "Laplace",
    "LogisticNormal",
    "MixtureOfGaussians",
    "StandardNormal",
    "StudentT",
    "VampPrior",
]
