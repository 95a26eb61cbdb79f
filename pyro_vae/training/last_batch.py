"""Check before training that model and guide can train on the smallest batch of an epoch."""

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.data.dataset import Dataset
from pyro_vae.data.errors import DataError
from pyro_vae.distributed import world_size
from pyro_vae.pairs.pair import PairLike
from pyro_vae.runtime.random_state import preserved_state


def check_last_batch(pair: PairLike, data: Dataset, num_batches: int, batch_size: int) -> None:
    """Run guide and model in their training mode on one row, if a batch has a single row.

    BatchNorm needs several values per channel in training mode. Buffers and random state are
    restored.

    Raises:
        DataError: If guide or model fails.
    """
    last = min(len(data) - (num_batches - 1) * batch_size, batch_size)
    if not 1 <= last <= world_size():
        return
    buffers = [(buffer, buffer.clone()) for buffer in _buffers(pair.model, pair.guide)]
    batch = data.batch(slice(1))
    try:
        with torch.no_grad(), preserved_state(), pyro.validation_enabled(False):
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
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _buffers(*programs: object) -> list[Tensor]:
    return [b for program in programs if isinstance(program, nn.Module) for b in program.buffers()]
