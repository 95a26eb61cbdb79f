"""Check before training that model and guide can train on the smallest batch of an epoch."""

import pyro
import torch
from pyro import poutine

from pyro_vae.data.dataset import Dataset
from pyro_vae.data.errors import DataError
from pyro_vae.distributed import world_size
from pyro_vae.pairs.pair import PairLike
from pyro_vae.pairs.state import restored


def check_last_batch(pair: PairLike, data: Dataset, num_batches: int, batch_size: int) -> None:
    """Run guide and model in their training mode on a smaller last batch, or on a single row.

    BatchNorm needs several values per channel in training mode, and the standard deviation of a
    single row is NaN. The state of the programs is restored.

    Raises:
        DataError: If guide or model fails, or if log densities are finite on two rows only.
    """
    last = min(len(data) - (num_batches - 1) * batch_size, batch_size)
    if last < 1 or (last == batch_size and last > world_size()):
        return
    rows = max(1, last // world_size())
    with torch.no_grad(), restored(pair.model, pair.guide), pyro.validation_enabled(False):
        try:
            is_finite = _is_finite(pair, data, rows)
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise _cannot_train(data, last, batch_size, reason) from error
        if not is_finite and rows == 1 and len(data) > 1 and _is_finite(pair, data, 2):
            raise _cannot_train(data, last, batch_size, "a log density is not finite")


def _is_finite(pair: PairLike, data: Dataset, rows: int) -> bool:
    """Return whether the log densities of guide and model are finite on some rows."""
    batch = data.batch(slice(rows))
    guide = poutine.trace(pair.guide).get_trace(*batch)
    model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(*batch)
    sums = [torch.as_tensor(trace.log_prob_sum()) for trace in (guide, model)]
    return all(bool(value.isfinite()) for value in sums)


def _cannot_train(data: Dataset, last: int, batch_size: int, reason: str) -> DataError:
    rows = f"{last} row{'s' if last > 1 else ''}"
    rows += f" for {world_size()} processes" if world_size() > 1 else ""
    fix = "drop_last=True, or another batch_size" if batch_size > 1 else "a larger batch_size"
    few = "a single row" if last <= world_size() else "so few rows"
    return DataError(
        f"the last batch of an epoch has {rows} ({len(data)} data in batches of {batch_size}), "
        f"and model or guide cannot train on {few} ({reason}). Pass {fix}; to the "
        "loader, if the data are a DataLoader"
    )
