"""Compare the spread and offset of real data with those of a model before training."""

import warnings
from typing import NamedTuple

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution

from pyro_vae.data.errors import DataWarning
from pyro_vae.distributions.independent import unwrap_independent
from pyro_vae.pairs.sites import observed_sites

# Limits in spreads of the model's samples. Adam moves a parameter by about the learning rate in a
# step: after 1,600 steps at a rate of 0.01, a column that is 20 times too large still costs 0.4
# nats.
LARGE = 15.0
SMALL = 0.01  # a learned scale starts at 1 and has a floor of 1e-3
NUM_VALUES = 10**6  # of the data
NUM_DRAWS = 64
LEAST_DATA = 8  # values of a column; of fewer, some can be nearly equal by chance
NAMED = 5  # columns in a message


@torch.no_grad()
def warn_of_scales(model: poutine.Trace, first: Tensor, x: Tensor) -> None:
    """Warn if the spread or offset of real data is far from that of the model.

    Spread is half the distance between the quantiles 0.16 and 0.84, the standard deviation of a
    normal distribution. If that is zero, because most values are equal as in the margins of images,
    it is the root mean squared distance from the median. Such values are not too small.

    Args:
        model: Trace of the model on the first rows of the data. Latents of single data are samples
            of the prior: those of an encoder are as far off as its inputs.
        first: The first rows of the data.
        x: A sample of the data.

    Warns:
        DataWarning: If a column of a table, or the values of an array of more dimensions, need
            another unit or origin.
    """
    x = x[:: max(1, x.numel() // NUM_VALUES)]
    for node in observed_sites(model).values():
        fn = node["fn"]
        # The entries of a datum are the event of a site, or in further plates.
        if node["value"] is not first or fn.batch_shape + fn.event_shape != first.shape:
            continue
        real = _real_entries(fn, first.shape[1:])
        if real is None or not real.any():
            continue
        with torch.random.fork_rng():
            drawn = fn.sample((NUM_DRAWS,)).flatten(0, 1)
        columns = x.dim() == 2
        if (not columns and not real.all()) or len(x if columns else x.flatten()) < LEAST_DATA:
            continue
        data = _moments(x if columns else x.reshape(-1, 1))
        start = _moments(drawn if columns else drawn.reshape(-1, 1))
        far = _is_far(data, start) & (real[0] if columns else True)
        if far.any():
            message = _message(far.nonzero().flatten().tolist(), data, start, columns)
            warnings.warn(message, DataWarning, stacklevel=3)


def _real_entries(fn: Distribution, shape: torch.Size) -> Tensor | None:
    """Return which entries of a datum may be any real number, or None if it is unknown.

    Args:
        fn: Distribution of the data.
        shape: Shape of one datum.
    """
    points = (-12345.5, 12345.5)
    try:
        support = unwrap_independent(fn).support
        if support is None:
            return None
        inside = [support.check(torch.full((1, *shape), point)) for point in points]
    except (NotImplementedError, AttributeError, RuntimeError):
        return None
    real = inside[0] & inside[1]
    if real.dim() <= len(shape):  # the entries of the last dimensions depend on each other
        real = real.reshape(*real.shape, *(1,) * (1 + len(shape) - real.dim()))
    # The support of an instance, such as of a binomial distribution, may have a row for each datum.
    rows = real.flatten(0, real.dim() - len(shape) - 1)
    return rows.all(0, keepdim=True).expand(1, *shape)


class Moments(NamedTuple):
    """Robust moments of columns, each of shape `(num_columns,)`."""

    median: Tensor
    spread: Tensor
    extent: Tensor  # spread of the tails; zero for a column without spread


def _moments(values: Tensor) -> Moments:
    """Return the moments of the columns of a matrix, without NaN."""
    probabilities = values.new_tensor([0.02, 0.16, 0.5, 0.84, 0.98])
    lowest, low, median, high, highest = torch.stack(
        [column.nanquantile(probabilities) for column in values.unbind(-1)], dim=-1
    )
    spread = (high - low) / 2
    rounding = 4 * torch.finfo(values.dtype).eps * median.abs()
    varies = spread > rounding
    distance = (values - median).square().nanmean(0).sqrt()
    extent = torch.where(varies, torch.maximum(spread, (highest - lowest) / 4), 0.0)
    distance = torch.where(distance > rounding, distance, 0.0)
    return Moments(median, torch.where(varies, spread, distance), extent)


def _is_far(data: Moments, start: Moments) -> Tensor:
    large = torch.maximum(data.spread, (data.median - start.median).abs()) > LARGE * start.spread
    return large | ((data.extent > 0) & (data.extent < SMALL * start.spread))


def _message(far: list[int], data: Moments, start: Moments, columns: bool) -> str:
    def described(moments: Moments, column: int) -> str:
        median, spread = moments.median[column].item(), moments.spread[column].item()
        return f"median {median:.2g} and spread {spread:.2g}"

    places = [
        f"{f'column {i} of x' if columns else 'x'} has {described(data, i)} (model: "
        f"{described(start, i)})"
        for i in far[:NAMED]
    ]
    others = f", and {len(far) - NAMED} other columns" if len(far) > NAMED else ""
    constant = any(data.spread[i] == 0 for i in far)
    axis = "0" if columns else ""
    return (
        f"x is on another scale than the model: {'; '.join(places)}{others}. Training covers such "
        "a distance slowly or not at all. "
        f"{'Drop columns of spread 0, which are constant. ' if constant else ''}"
        f"Standardize x, by (x - x.mean({axis})) / x.std({axis}); "
        f"or keep its unit and pass shift=x.mean({axis}) and unit=x.std({axis}) to the likelihood "
        "and, around the encoder, to networks.Standardized"
    )
