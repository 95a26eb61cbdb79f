"""Likelihoods: `likelihood(z)` returns p(x|z), one distribution per latent.

The batch_shape is `z.shape[:-1]` and the event_shape is the shape of one observation. The decoder,
a network from z to the parameters of the distribution, is an argument.

If each entry of x needs several decoder outputs, such as a loc and a scale, the outputs are
stacked along the first event dimension, grouped by kind. For K outputs per entry the decoder's
out_shape is `(K * event_shape[0], *event_shape[1:])`: K times the channels of a convolutional
decoder, or K times the units of a fully connected one.
"""

from pyro_vae.likelihoods.columns import Columns
from pyro_vae.likelihoods.continuous import (
    Beta,
    ContinuousBernoulli,
    Laplace,
    LogNormal,
    Normal,
    StudentT,
)
from pyro_vae.likelihoods.counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from pyro_vae.likelihoods.discrete import (
    Bernoulli,
    Categorical,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
)
from pyro_vae.likelihoods.missing import Missing

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "Columns",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Laplace",
    "LogNormal",
    "Missing",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
]
