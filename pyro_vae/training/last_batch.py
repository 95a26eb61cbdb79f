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
    """Run guide and model in their training mode on one row, if a batch has a single row.

    BatchNorm needs several values per channel in training mode. Their state is restored.

    Raises:
        DataError: If guide or model fails.
    """
    last = min(len(data) - (num_batches - 1) * batch_size, batch_size)
    if not 1 <= last <= world_size():
        return
    batch = data.batch(slice(1))
    try:
        with (
            torch.no_grad(),
            restored(pair.model, pair.guide),
            pyro.validation_enabled(False),
        ):
            guide = poutine.trace(pair.guide).get_trace(*batch)
            poutine.replay(pair.model, trace=guide)(*batch)
    except Exception as error:
        rows = "1 row" if world_size() == 1 else f"{last} rows for {world_size()} processes"
        fix = "drop_last=True, or another batch_size" if batch_size > 1 else "a larger batch_size"
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise DataError(
            f"the last batch of an epoch has {rows} ({len(data)} data in batches of {batch_size}), "
            f"and model or guide cannot train on a single row ({reason}). Pass {fix}; to the "
            "loader, if the data are a DataLoader"
        ) from error
