"""Datasets: loading, binarization, splits and batches.

`mnist`, `fashion_mnist` and `frey_face` read image datasets from a folder or download them.
`Dataset` wraps arrays in memory, arrays on disk, or a torch `DataLoader`.
"""

from pyro_vae.data.any_data import Data, as_dataset
from pyro_vae.data.binarization import BINARIZATIONS, bernoulli
from pyro_vae.data.catalogue import NAMES, fashion_mnist, frey_face, load, mnist
from pyro_vae.data.conversion import as_tensor
from pyro_vae.data.dataset import Dataset, Split
from pyro_vae.data.download import DataNotFoundError
from pyro_vae.data.errors import DataError, DataWarning
from pyro_vae.data.sources.columns import Column
from pyro_vae.data.sources.counts import CountsSchema
from pyro_vae.data.sources.images import ImageSchema
from pyro_vae.data.sources.opening import open
from pyro_vae.data.sources.table_schema import TableSchema

__all__ = [
    "BINARIZATIONS",
    "NAMES",
    "Column",
    "CountsSchema",
    "Data",
    "DataError",
    "DataNotFoundError",
    "DataWarning",
    "Dataset",
    "ImageSchema",
    "Split",
    "TableSchema",
    "as_dataset",
    "as_tensor",
    "bernoulli",
    "fashion_mnist",
    "frey_face",
    "load",
    "mnist",
    "open",
]
