"""Objectives for training, in nats per datum.

Pyro's ELBOs sum over a minibatch. A minibatch of M out of N data gives an unbiased estimate of the
whole bound if local log densities are scaled by N/M (Kingma & Welling 2013, eq. 8). Divided by N,
this is the bound per datum:

    1/M sum over the minibatch of log p(x|z) + log p(z) - log q(z|x)    sites in the data plate
    1/N (log p - log q)                                                 sites outside it (global)

The objective, its gradients, learning rates and clipping thresholds then have the same meaning for
every batch size and dataset size. `PerDatum` applies this scaling.

Pyro's objectives can be used directly: `Trace_ELBO` is estimator A of the paper (eq. 6), and
`TraceMeanField_ELBO` is estimator B (eq. 7), with a closed-form KL divergence. This package adds,
for K reparameterized samples z_k with log weights log w = log p(x,z) - log q(z|x):

    objective             value for one datum                  lower bound of log p(x)?
    StickingTheLanding    1/K sum_k log w_k                    yes, it is the ELBO
    ImportanceWeighted    log 1/K sum_k w_k                    yes, between the ELBO and log p(x)
    FreeBits              log p(x|z) - sum_j max(free, KL_j)   yes, below the ELBO
    Beta                  log p(x|z) + beta log p(z)/q(z|x)    only for beta >= 1

Each is a `pyro.infer.ELBO`, which stock `pyro.infer.SVI` also accepts.
"""

from pyro_vae.objectives.annealing import Beta, Cyclic, Linear
from pyro_vae.objectives.free_bits import FreeBits
from pyro_vae.objectives.importance_weighted import ImportanceWeighted
from pyro_vae.objectives.nats_per_datum import PerDatum, is_elbo, per_datum
from pyro_vae.objectives.sticking_the_landing import StickingTheLanding

__all__ = [
    "Beta",
    "Cyclic",
    "FreeBits",
    "ImportanceWeighted",
    "Linear",
    "PerDatum",
    "StickingTheLanding",
    "is_elbo",
    "per_datum",
]
