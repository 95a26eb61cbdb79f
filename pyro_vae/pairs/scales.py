"""Compare the spread and offset of real data with those of a model before training."""

import warnings

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution

from pyro_vae.data.errors import DataWarning
from pyro_vae.distributions.independent import unwrap_independent
from pyro_vae.pairs.sites import observed_sites

# Largest distance of data from the model, in spreads of the model's samples: a learned scale starts
# at 1 and has a floor of 1e-3, and Adam moves a parameter by about the learning rate in each step.
FAR = 100.0
NUM_VALUES = 10**6  # of the data
NUM_DRAWS = 64
NAMED = 5  # columns in a message


@torch.no_grad()
def warn_of_scales(model: poutine.Trace, first: Tensor, x: Tensor) -> None:
    """Warn if the spread or offset of real data is far from that of the model.

    Spread is half the distance between the quantiles 0.16 and 0.84, the standard deviation of a
    normal distribution. Values that are mostly equal, such as the margins of images, have none.

    Args:
        model: Trace of the model on the first rows of the data, at latents of the guide.
        first: The first rows of the data.
        x: A sample of the data.

    Warns:
        DataWarning: If a column of a table, or the values of an array of more dimensions, need
            another unit or origin.
    """
    x = x[:: max(1, x.numel() // NUM_VALUES)]
    for node in observed_sites(model).values():
        fn = node["fn"]
        if node["value"] is not first or not fn.event_shape or len(x) < 2:
            continue
        real = _real_entries(fn)
        if real is None or not real.any():
            continue
        with torch.random.fork_rng():
            drawn = fn.sample((NUM_DRAWS,)).flatten(0, 1)
        columns = x.dim() == 2
        if not columns and not real.all():
            continue
        data = _moments(x if columns else x.reshape(-1, 1))
        start = _moments(drawn if columns else drawn.reshape(-1, 1))
        far = _is_far(*data, *start) & (real[0] if columns else True)
        if far.any():
            message = _message(far.nonzero().flatten().tolist(), data, start, columns)
            warnings.warn(message, DataWarning, stacklevel=3)


def _real_entries(fn: Distribution) -> Tensor | None:
    """Return which entries of an observation may be any real number, or None if it is unknown."""
    points = (-12345.5, 12345.5)
    try:
        support = unwrap_independent(fn).support
        inside = [support.check(torch.full((1, *fn.event_shape), point)) for point in points]
    except (NotImplementedError, AttributeError, RuntimeError):
        return None
    real = inside[0] & inside[1]
    if real.dim() <= len(fn.event_shape):  # the entries of the last dimensions depend on each other
        real = real.reshape(*real.shape, *(1,) * (1 + len(fn.event_shape) - real.dim()))
    return real.expand(1, *fn.event_shape)


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return median and spread of the columns of a matrix, without NaN."""
    probabilities = torch.tensor([0.16, 0.5, 0.84], dtype=values.dtype, device=values.device)
    low, median, high = torch.stack(
        [column.nanquantile(probabilities) for column in values.unbind(-1)], dim=-1
    )
    return median, (high - low) / 2


def _is_far(median: Tensor, spread: Tensor, start: Tensor, start_spread: Tensor) -> Tensor:
    ratio = spread / start_spread
    offset = (median - start).abs() / start_spread
    return (ratio > FAR) | ((ratio < 1 / FAR) & (ratio > 0)) | (offset > FAR)


def _message(
    far: list[int], data: tuple[Tensor, Tensor], start: tuple[Tensor, Tensor], columns: bool
) -> str:
    def described(moments: tuple[Tensor, Tensor], column: int) -> str:
        median, spread = (values[column].item() for values in moments)
        return f"median {median:.2g} and spread {spread:.2g}"

    places = [
        f"{f'column {i} of x' if columns else 'x'} has {described(data, i)} (model: "
        f"{described(start, i)})"
        for i in far[:NAMED]
    ]
    others = f", and {len(far) - NAMED} other columns" if len(far) > NAMED else ""
    axis = "0" if columns else ""
    return (
        f"x is on another scale than the model: {'; '.join(places)}{others}. Training covers such "
        f"a distance slowly or not at all. Standardize x, by (x - x.mean({axis})) / x.std({axis}); "
        f"or keep its unit and pass shift=x.mean({axis}) and unit=x.std({axis}) to the likelihood "
        "and, around the encoder, to networks.Standardized"
    )
