"""The containers of rows: tensors in memory, arrays on disk, torch loaders."""

from torch import Tensor
from torch.utils.data import DataLoader

from pyro_vae.data.conversion import advice_for, check_layout
from pyro_vae.data.data_loader import LoaderBatches
from pyro_vae.data.disk_array import DiskArray, is_stored
from pyro_vae.data.errors import DataError
from pyro_vae.data.in_memory import InMemory
from pyro_vae.data.rows import Rows


def as_rows(x: object) -> Rows:
    """Return a tensor, an array on disk, a `DataLoader` or other `Rows` as `Rows`.

    Raises:
        DataError: If x is something else.
    """
    if isinstance(x, Rows):
        return x
    if isinstance(x, DataLoader):
        return LoaderBatches(x)
    if is_stored(x):
        return DiskArray(x)
    if isinstance(x, Tensor):
        check_layout(x, "data")
        return InMemory(x)
    advice = advice_for(x)
    raise DataError(
        "expected a tensor, a numpy array, a frame, an array on disk, a torch DataLoader or a "
        f"pv.data.Dataset, got {type(x).__name__}{f': {advice}' if advice else ''}"
    )
