"""Distributions and transforms that Pyro lacks, or that lose precision in float32; no networks."""

from pyro_vae.distributions.bernoulli import ContinuousBernoulli, FastBernoulli, log_sigmoid
from pyro_vae.distributions.counts import CountsGivenTotal, ZeroInflatedNegativeBinomial
from pyro_vae.distributions.discretized import CategoricalLevels, DiscretizedLogistic, Levels
from pyro_vae.distributions.entrywise import OpenBeta, PartlyObserved, SideBySide, entries_of
from pyro_vae.distributions.mixture import Mixture
from pyro_vae.distributions.spherical import PowerSpherical

__all__ = [
    "CategoricalLevels",
    "ContinuousBernoulli",
    "CountsGivenTotal",
    "DiscretizedLogistic",
    "FastBernoulli",
    "Levels",
    "Mixture",
    "OpenBeta",
    "PartlyObserved",
    "PowerSpherical",
    "SideBySide",
    "ZeroInflatedNegativeBinomial",
    "entries_of",
    "log_sigmoid",
]
