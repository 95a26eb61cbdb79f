"""The ELBO with the path derivative gradient (Roeder et al. 2017)."""

from typing import Any

import torch
from torch import Tensor

from pyro_vae.objectives.reparameterized import PathDerivative, Traces, along_draws, sample_sites
from pyro_vae.pairs.plates import data_plates


class StickingTheLanding(PathDerivative):
    """The ELBO, with a gradient that vanishes draw by draw where the guide is exact.

    Roeder, Wu & Duvenaud (2017), "Sticking the Landing": the path derivative alone, whose mean is
    the gradient's. It is a bound, and it is the ELBO.
    """

    is_elbo = True

    def _bound(self, traces: Traces, args: tuple[Any, ...]) -> Tensor:
        return _elbo(traces) / self.num_particles

    def _surrogate(self, traces: Traces, args: tuple[Any, ...]) -> Tensor:
        path = along_draws(self._bound(traces, args), traces)
        return _elbo(traces, fixed_guide=True) / self.num_particles + path


def _elbo(traces: Traces, fixed_guide: bool = False) -> Tensor:
    log_p, log_q = (
        torch.stack([torch.as_tensor(trace.log_prob_sum()) for trace in half]).sum()
        for half in zip(*traces, strict=True)
    )
    return log_p - (log_q.detach() if fixed_guide else log_q)


def _plates_over_data(traces: Traces) -> tuple[str, ...]:
    """Return the names of the plates over the data: those of `PerDatum`, or found by name."""
    model = traces[0][0]
    for _, node in sample_sites(model):
        if "_data_plates" in node["infer"]:
            return node["infer"]["_data_plates"]
    return data_plates([model])
