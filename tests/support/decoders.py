"""The identity as a decoder, with its outputs, and the functions that turn them into parameters."""

import math

import torch
from torch import Tensor

from pyro_vae.distributions.parameters import MIN_LIKELIHOOD_SCALE


def identity(z: Tensor) -> Tensor:
    return z


def outputs(*rows: list[float]) -> Tensor:
    """Stack the outputs of a decoder, one row after the other, for one datum."""
    return torch.tensor(rows, dtype=torch.float64).flatten()[None]


def spread(raw: float, minimum: float = MIN_LIKELIHOOD_SCALE) -> float:
    return math.log1p(math.exp(raw)) + minimum


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))
