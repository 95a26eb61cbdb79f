"""Where training stopped being finite: the step, the batch, the site."""

import sys
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.distributed import (
    is_first,
)
from pyro_vae.pairs.pair import PairLike
from pyro_vae.training.run_state import RunState


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


def _handle_nan(
    pair: PairLike, batch: tuple[Tensor, ...], parameter: str | None, run: RunState, on_nan: str
) -> None:
    """Go back to a checkpoint with a lower learning rate, if asked, or raise `TrainingError`."""
    now = run.progress
    what, step = (f"parameter {parameter!r}", now.step) if parameter else ("the loss", now.step + 1)
    failure = described(what, step, now.epoch, pair, batch)
    if on_nan == "backtrack" and run.backtrack():
        there = run.progress
        if is_first():
            print(
                f"{failure}; back at step {there.step}, with {there.rate_factor:g} times the "
                "learning rate",
                file=sys.stderr,
            )
        return
    if run.not_finite() is None:
        kept = "the weights of the step before are kept"
    else:
        kept = f"the weights are back at epoch {int(now.best.get('epoch', 0))}"
        run.restore_best()
    raise TrainingError(
        f"{failure}; {kept}. Try a lower learning rate, or look at the data of this batch"
    )
