"""Where training stopped being finite: the step, the batch, the site."""

from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.pairs import PairLike


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the step, the site and the batch."""


def described(what: str, step: int, epoch: int, pair: PairLike, batch: tuple[Tensor, ...]) -> str:
    """Say what is not finite, after which step, on which data and at which site."""
    x = batch[0]
    return (
        f"{what} is not finite at step {step} (epoch {epoch}), batch of {len(x)} data with values "
        f"in [{x.min().item():g}, {x.max().item():g}]: {_first_bad_site(pair, batch)}"
    )


def _first_bad_site(pair: PairLike, batch: tuple[Tensor, ...]) -> str:
    with torch.no_grad(), pyro.validation_enabled(False):
        guide = poutine.trace(pair.guide).get_trace(*batch)
        model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(*batch)
        for role, trace in (("guide", guide), ("model", model)):
            for name, node in trace.nodes.items():
                if node["type"] == "sample":
                    fn: Any = node["fn"]
                    if not torch.isfinite(fn.log_prob(node["value"])).all():
                        return f"site {name!r} of the {role} has a log density that is not finite"
    return "each site's log density is finite, and their sum or its gradient overflows"
