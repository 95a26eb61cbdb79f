"""Errors that the data package raises."""


class DataError(ValueError):
    """Data that cannot be read, or that have the wrong dtype, shape or values.

    See also: `DataNotFoundError`, `DataWarning`.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> try:
        ...     pv.data.Dataset(torch.zeros(0, 3))
        ... except pv.data.DataError as error:
        ...     print(error)
        dataset 'arrays' is empty: shape (0, 3)
    """
