"""Plots of arrays and trees; each function returns a matplotlib `Figure`.

Figures are not registered with pyplot, so plotting does not change global state.
"""

from pyro_vae.plots.arrays import (
    aggregate_posterior,
    gaps,
    khat,
    kl_by_dimension,
    latent_map,
    learning_curve,
)
from pyro_vae.plots.counts import count_moments
from pyro_vae.plots.encoding import encoded
from pyro_vae.plots.images import image_grid, mosaic, predictive, reconstructions
from pyro_vae.plots.tables import dependence, imputation_errors, marginals
from pyro_vae.plots.trees import calibration, densities, forest, pairs

__all__ = [
    "aggregate_posterior",
    "calibration",
    "count_moments",
    "densities",
    "dependence",
    "encoded",
    "forest",
    "gaps",
    "image_grid",
    "imputation_errors",
    "khat",
    "kl_by_dimension",
    "latent_map",
    "learning_curve",
    "marginals",
    "mosaic",
    "pairs",
    "predictive",
    "reconstructions",
]
