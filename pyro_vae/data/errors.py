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


class DataWarning(UserWarning):
    """Other data than the given ones are used, or the data are far from what a model starts at.

    `load` warns if it returns another dataset than the requested one. `fit` and `check` warn if x
    is converted to the type of the parameters, or if the spread or offset of a column of x is far
    from that of the model.

    See also: `load`, `DataNotFoundError`, `fit`.

    Example:
        >>> import warnings
        >>> import pyro_vae as pv
        >>> with warnings.catch_warnings():  # raise an error instead of a fallback
        ...     warnings.simplefilter("error", pv.data.DataWarning)
        ...     train, test = pv.data.load("mnist-5k")
    """
