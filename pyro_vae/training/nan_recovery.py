"""Recovery from non-finite losses and parameters: go back to a checkpoint, or raise an error."""

import sys

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.distributed import from_first, is_first
from pyro_vae.pairs.pair import PairLike
from pyro_vae.pairs.sites import Node
from pyro_vae.training.learning_rate import scale_rates
from pyro_vae.training.run_state import RunState
from pyro_vae.training.running import go_to


class TrainingError(RuntimeError):
    """The loss or a parameter is not finite. The message names the step, the batch and the site.

    The pair keeps its last finite weights.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> likelihood = pv.likelihoods.Normal(pv.networks.MLP(1, [], (3,)))
        >>> guide = pv.guides.DiagonalNormal(pv.networks.MLP((3,), [], 2))
        >>> vae = pv.VAE(pv.priors.StandardNormal(1), likelihood, guide)
        >>> pv.fit(vae, torch.ones(4, 3), learning_rate=1e30)
        Traceback (most recent call last):
        pyro_vae.training.nan_recovery.TrainingError: the loss is not finite at step 2 (epoch 2)...

    See also: `pyro_vae.fit` and its argument `on_nan`.
    """


def backtrack_or_raise(
    pair: PairLike, batch: tuple[Tensor, ...], parameter: str | None, state: RunState
) -> None:
    """Go back to a checkpoint and halve the learning rate, or raise if there is no checkpoint.

    Args:
        pair: Model and guide.
        batch: Batch of the failed step.
        parameter: Name of the non-finite parameter; None if the loss is not finite.
        state: State of the run after the failed step.

    Raises:
        TrainingError: If there is no checkpoint of an earlier step.
    """
    failure = _described(pair, batch, parameter, state)
    if not _backtrack(state):
        _raise(failure, state)
    now = state.progress
    if is_first():
        print(
            f"{failure}; continuing from step {now.step} with {now.rate_factor:g} times the "
            "learning rate",
            file=sys.stderr,
        )


def raise_not_finite(
    pair: PairLike, batch: tuple[Tensor, ...], parameter: str | None, state: RunState
) -> None:
    """Raise `TrainingError` for a failed step, after restoring finite weights."""
    _raise(_described(pair, batch, parameter, state), state)


def _raise(failure: str, state: RunState) -> None:
    if state.not_finite() is None:
        kept = "the pair keeps the weights of the step before"
    else:
        kept = f"the pair has the weights of epoch {int(state.progress.best.get('epoch', 0))}"
        state.restore_best()
    raise TrainingError(
        f"{failure}; {kept}. Try a lower learning rate, or check the data of this batch"
    )


def _backtrack(state: RunState) -> bool:
    """Go to the newest checkpoint of an earlier step; return False if there is none."""
    writer, failed, start = state.writer, state.progress, state.clocks.run
    assert writer is not None
    writer.wait()
    earlier = (c for c in writer.store.intact() if c[1]["progress"]["step"] < failed.step)
    checkpoint = from_first(lambda: next(earlier, None))
    if checkpoint is None:
        return False
    go_to(state, checkpoint)
    state.clocks.run = start  # discarded steps count towards the duration
    factor = failed.rate_factor / 2
    scale_rates(state.svi.optim.optimizer, factor / state.progress.rate_factor)
    state.progress.rate_factor = factor
    return True


def _described(
    pair: PairLike, batch: tuple[Tensor, ...], parameter: str | None, state: RunState
) -> str:
    """Describe the non-finite value, its step, its batch and its site."""
    now, x = state.progress, batch[0]
    what, step = (f"parameter {parameter!r}", now.step) if parameter else ("the loss", now.step + 1)
    return (
        f"{what} is not finite at step {step} (epoch {now.epoch}), batch of {len(x)} data with "
        f"values in [{x.min().item():g}, {x.max().item():g}]: {_first_bad_site(pair, batch)}"
    )


def _first_bad_site(pair: PairLike, batch: tuple[Tensor, ...]) -> str:
    with torch.no_grad(), pyro.validation_enabled(False):
        guide = poutine.trace(pair.guide).get_trace(*batch)
        model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(*batch)
        for role, trace in (("guide", guide), ("model", model)):
            nodes: dict[str, Node] = trace.nodes
            for name, node in nodes.items():
                if node["type"] != "sample":
                    continue
                if not torch.isfinite(node["fn"].log_prob(node["value"])).all():
                    return f"site {name!r} of the {role} has a non-finite log density"
    return "the log density of each site is finite, but their sum or its gradient overflows"
