"""Distributions and transforms that Pyro lacks, or that lose precision in float32; no networks."""

from pyro_vae.distributions.bernoulli import ContinuousBernoulli, FastBernoulli, log_sigmoid
from pyro_vae.distributions.continuous import (
    Beta,
    Dirichlet,
    LogNormal,
    LowRankNormal,
    Normal,
    StudentT,
)
from pyro_vae.distributions.counts import (
    CountsGivenTotal,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
)
from pyro_vae.distributions.discretized import CategoricalLevels, DiscretizedLogistic, Levels
from pyro_vae.distributions.entrywise import PartlyObserved, SideBySide, entries_of
from pyro_vae.distributions.mixture import Mixture
from pyro_vae.distributions.spherical import PowerSpherical

__all__ = [
    "Beta",
    "CategoricalLevels",
    "ContinuousBernoulli",
    "CountsGivenTotal",
    "Dirichlet",
    "DiscretizedLogistic",
    "FastBernoulli",
    "Levels",
    "LogNormal",
    "LowRankNormal",
    "Mixture",
    "NegativeBinomial",
    "Normal",
    "PartlyObserved",
    "Poisson",
    "PowerSpherical",
    "SideBySide",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
    "entries_of",
    "log_sigmoid",
]
