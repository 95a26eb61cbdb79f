"""Datasets are checked, binarized, split and averaged."""

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.errors import DataError


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


def grey(num_data, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (num_data, 1, 4, 4), dtype=np.uint8))


def test_training_draws_are_fresh_and_scored_draws_are_fixed(generator):
    data = Dataset(grey(100), binarization="dynamic", seed=3)
    index = torch.arange(100)
    assert not torch.equal(data.draw(index, generator), data.draw(index, generator))
    again = Dataset(grey(100), binarization="dynamic", seed=3)
    assert torch.equal(data[:], again[:])
    order = torch.randperm(100)
    assert torch.equal(data[order], data[:][order])
    assert torch.equal(data[20:30], data[:][20:30])
    assert torch.equal(data[7], data[:][7])
    assert not torch.equal(data[:], Dataset(grey(100), binarization="dynamic", seed=4)[:])


def test_the_fixed_draws_have_the_pixels_probabilities_in_every_chunk():
    data = Dataset(torch.full((9000, 16), 51, dtype=torch.uint8), binarization="dynamic")
    for rows in (slice(4096), slice(4096, 8192), slice(8192, None)):
        count = data[rows].numel()
        assert abs(data[rows].double().mean() - 0.2) < 5 * (0.2 * 0.8 / count) ** 0.5
    assert not torch.equal(data[:808], data[4096:4904])


def test_feeding():
    pixels = torch.tensor([[0, 127, 128, 255]], dtype=torch.uint8)
    assert Dataset(pixels, binarization="threshold")[:].tolist() == [[0, 0, 1, 1]]
    assert Dataset(pixels)[:][0, 3] == 1
    floats = torch.rand(5, 3, dtype=torch.float64)
    assert torch.equal(pv.data.as_dataset(floats)[:], floats)
    assert pv.data.as_dataset(floats[:, ::2].numpy()).values.dtype == torch.float64
    missing = torch.tensor([[torch.nan, 1.0]])
    assert torch.equal(pv.data.as_dataset(missing)[:].isnan(), missing.isnan())


def test_as_dataset_takes_arrays_that_torch_cannot_hold():
    expected = torch.arange(6.0, dtype=torch.float64).view(3, 2)
    foreign = expected.numpy().astype(">f8")
    frozen = expected.numpy().copy()
    frozen.flags.writeable = False
    reversed_ = expected.flip(0).numpy().copy()[::-1]
    for array in (foreign, frozen, reversed_):
        assert torch.equal(pv.data.as_dataset(array)[:], expected)
    data = Dataset(expected)
    assert pv.data.as_dataset(data) is data
    assert data.to("cpu") is data


def test_mean_and_log_odds_are_exact():
    pixels = torch.tensor([[0, 255], [51, 255]], dtype=torch.uint8)
    for binarization in ("dynamic", "none"):
        data = Dataset(pixels, binarization=binarization)
        torch.testing.assert_close(data.mean(), torch.tensor([0.1, 1.0]))
    probabilities = torch.tensor([(0.2 + 0.5) / 3, 2.5 / 3])
    torch.testing.assert_close(data.log_odds(), torch.logit(probabilities))


def test_hold_out_takes_the_last_of_data_in_random_order():
    data = Dataset(grey(10), torch.arange(10), binarization="dynamic", hold_out_last=True)
    train, validation = data.hold_out(3)
    assert (len(train), len(validation), validation.split) == (7, 3, "validation")
    assert validation.labels.tolist() == [7, 8, 9]
    with pytest.raises(DataError, match="cannot hold out 10 of 10"):
        data.hold_out(10)


def test_hold_out_takes_a_share():
    for num_data, share, expected in [
        (60_000, 1 / 12, 5000),
        (4000, 1 / 12, 333),
        (10, 0.1, 1),
        (10, np.float32(0.3), 3),
        (10, 1e-9, 1),
        (10, 1 - 1e-9, 9),
        (2, 0.5, 1),
        (10, np.int64(3), 3),
    ]:
        train, validation = Dataset(torch.zeros(num_data, 1)).hold_out(share)
        assert (len(train), len(validation)) == (num_data - expected, expected)


@pytest.mark.parametrize(
    "count",
    [True, False, 0, -1, 0.0, 1.0, -0.1, 3.0, float("nan"), float("inf"), None, "3", np.float64(1)],
)
def test_hold_out_says_what_it_takes(count):
    sentence = r"cannot hold out .* of 10 data: expected a whole number from 1 to 9, or a share"
    with pytest.raises(DataError, match=sentence):
        Dataset(torch.zeros(10, 1)).hold_out(count)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Dataset(torch.zeros(0, 3)), "empty"),
        (lambda: Dataset(torch.zeros(3, 2), binarization="dynamic"), "needs 8-bit pixels"),
        (lambda: Dataset(torch.zeros(3, 2), binarization="maybe"), "unknown binarize='maybe'"),
        (lambda: Dataset(torch.zeros(3, 2, dtype=torch.int32)), "8-bit pixels or floats"),
        (
            lambda: Dataset(torch.zeros(3, 2), labels=torch.zeros(2)),
            r"labels have shape \(2,\); expected \(3,\)",
        ),
        (lambda: Dataset(torch.full((3, 2), torch.inf)), "infinite"),
        (lambda: pv.data.as_dataset(torch.zeros(3, 2).byte()), "divide bytes 0..255 by 255"),
        (lambda: pv.data.as_dataset(np.zeros((3, 2), np.uint8)), "floating-point dtype, got uint8"),
        (lambda: pv.data.as_dataset(np.array([["a"]])), "floating-point dtype, got <U1"),
        (lambda: pv.data.as_dataset([[1.0]]), "got list"),
        (lambda: pv.data.load("digits"), "unknown dataset 'digits'; expected one of mnist"),
        (lambda: pv.data.mnist(binarize="sometimes"), "unknown binarize='sometimes'"),
        (lambda: pv.data.frey_face(binarize="dynamic"), "Frey Face has grey values"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(DataError, match=sentence):
        make()


def test_data_are_taken_from_evenly_spaced_places():
    data = Dataset(torch.arange(10.0)[:, None])
    assert data.spread(3).flatten().tolist() == [0, 3, 6]
    assert data.spread(10).flatten().tolist() == data.spread(99).flatten().tolist() == [*range(10)]
