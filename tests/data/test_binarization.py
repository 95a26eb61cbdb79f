"""Bernoulli draws have the probabilities of the pixels."""

import pytest
import torch

from pyro_vae.data.binarization import bernoulli


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


def test_draws_have_the_pixels_probabilities(generator):
    levels = torch.arange(256, dtype=torch.uint8)
    count = 40_000
    draws = bernoulli(levels.expand(count, 256), generator)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    expected = levels.double() / 255 * (1 - 2**-16)
    error = (expected * (1 - expected) / count).sqrt()
    assert ((draws.double().mean(0) - expected).abs() <= 5 * error).all()
    assert draws[:, 0].max() == 0


@pytest.mark.parametrize("lane", range(4))
def test_each_quarter_of_a_word_is_uniform_and_alone(generator, lane):
    """The four draws that share a random word have the same mean and are uncorrelated."""
    half = torch.full((50_000, 8), 128, dtype=torch.uint8)
    draws = bernoulli(half, generator).double()
    p = 128 / 255
    assert abs(draws[:, lane].mean() - p) < 5 * (p * (1 - p) / 50_000) ** 0.5
    correlations = torch.corrcoef(draws.T)[lane]
    others = torch.arange(8) != lane
    assert (correlations[others].abs() < 5 / 50_000**0.5).all()
