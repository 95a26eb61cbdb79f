"""Rows are scored alike in whatever container they come, or the container is refused by name."""

import functools
import importlib
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.errors import DataError
from pyro_vae.pairs import chunking
from tests.support.containers import (
    CONTAINERS,
    WIDTH,
    Endless,
    Sized,
    image_files,
    memmaps,
)

NUM_DATA, LATENTS = 83, 2
K = 10
CHUNK = 7  # data that are scored together at K draws


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", CHUNK * K * WIDTH)


@pytest.fixture(autouse=True)
def short_gaps(monkeypatch):
    diagnose = importlib.import_module("pyro_vae.diagnostics.diagnose")
    monkeypatch.setattr(diagnose, "gaps", functools.partial(pv.gaps, num_steps=2, num_samples=K))


@pytest.fixture(scope="module")
def of_a_tensor(tmp_path_factory):
    """The numbers of a function of the first rows as tensors; each is computed once."""

    @functools.cache
    def numbers(function, num_data=NUM_DATA, first=0):
        pair, data = conditional(), tuple(values[first:num_data] for values in all_rows())
        return function(pair, data, tmp_path_factory.mktemp("tensor"))

    return numbers


@pytest.fixture
def rows():
    return all_rows()


def all_rows():
    """The first rows lie far from the others: scores of some rows are not those of all."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(NUM_DATA, WIDTH, generator=generator)
    x[20:] += 5
    return x, torch.arange(NUM_DATA) % 3


class ConditionalModel(nn.Module):
    """p(x, z|y), y one of three classes."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(LATENTS + 3, WIDTH)

    def forward(self, x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENTS), 1.0).to_event(1))
            y = nn.functional.one_hot(y, 3).to(z.dtype).expand(*z.shape[:-1], 3)
            mean = self.decoder(torch.cat([z, y], -1))
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


class Posterior(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(WIDTH + 3, 2 * LATENTS)


class ConditionalGuide(nn.Module):
    def __init__(self):
        super().__init__()
        self.posterior = Posterior()

    def forward(self, x, y):
        both = torch.cat([x, nn.functional.one_hot(y, 3).to(x.dtype)], -1)
        loc, log_scale = self.posterior.encoder(both).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def conditional():
    torch.manual_seed(1)
    return pv.Pair(ConditionalModel(), ConditionalGuide())


def vae():
    torch.manual_seed(1)
    return pv.VAE(
        pv.priors.StandardNormal(LATENTS),
        pv.likelihoods.Normal(pv.networks.MLP(LATENTS, [4], WIDTH)),
        pv.guides.DiagonalNormal(pv.networks.MLP(WIDTH, [4], 2 * LATENTS)),
    )


# -- what takes data, and the numbers that it makes of them ----------------------------------------


def evaluated(pair, data, folder):
    scores = pv.evaluate(pair, data, num_samples=K, seed=2)
    return [scores.elbo, scores.kl, scores.log_likelihood, [scores.num_data]]


def validated(pair, data, folder):
    train = (torch.ones(8, WIDTH), torch.zeros(8, dtype=torch.int64))
    train = train[0] if isinstance(pair, pv.VAE) else train
    fit = pv.fit(pair, train, validation=data, epochs=2, batch_size=8, progress=False)
    return [[e["validation_elbo"], e["validation_elbo_se"]] for e in fit.history]


def diagnosed(pair, data, folder):
    card = pv.diagnose(pair, data, num_samples=K, num_gap_data=0, num_simulations=0)
    full = pv.diagnose(pair, data, num_samples=2, num_gap_data=12, num_simulations=9)
    calibration = full.calibration["prior_sbc"]["z"].to_numpy()
    per_datum = [value.to_numpy() for value in card.per_datum.values()]
    return [*per_datum, card.latents.draws, full.gaps.best_elbo, calibration]


def collapsed(pair, data, folder):
    found = pv.collapse(pair, data, num_samples=K)
    return [found.kl, found.mean_variance, found.draws, [found.reconstruction_drop]]


def gapped(pair, data, folder):
    found = pv.gaps(pair, data, num_steps=2, num_particles=K, num_samples=K)
    return [found.elbo, found.best_elbo, found.log_likelihood]


def annealed(pair, data, folder):
    found = pv.ais(pair, data, num_chains=K, num_temperatures=2, num_leapfrog=2)
    return [found.lower, found.acceptance]


def both_sides(pair, data, folder):
    options = {"num_data": 9, "num_chains": 2, "num_temperatures": 2, "num_leapfrog": 2}
    simulated, found = pv.bidirectional(pair, data, **options)
    return [simulated.numpy(), found.lower, found.upper]


def calibrated(pair, data, folder):
    tree = pv.sbc(pair, data, num_simulations=17, num_draws=K)
    return [tree["prior_sbc"]["z"].to_numpy()]


def chained(pair, data, folder):
    tree = pv.mcmc_draws(pair, data, num_samples=2, warmup_steps=2, num_chains=1, kernel="hmc")
    return [tree["posterior"]["z"].to_numpy()]


def reported(pair, data, folder):
    fit = pv.fit(pair, torch.ones(8, WIDTH), epochs=1, progress=False)
    return [pv.report(pair, fit, data, folder / "report", num_samples=K).elbo]


FUNCTIONS = [
    evaluated, validated, diagnosed, collapsed, gapped, annealed, both_sides, calibrated, chained,
]  # fmt: skip


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.thinned(11)  # all read rows by one protocol
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_numbers_are_those_of_a_tensor(function, container, rows, tmp_path, of_a_tensor):
    part = (22, 18) if function is chained else (NUM_DATA, 0)
    rows = tuple(values[part[1] : part[0]] for values in rows)
    expected = of_a_tensor(function, *part)
    data = CONTAINERS[container](rows, tmp_path)
    pair = conditional()
    state = torch.get_rng_state()
    assert_same(function(pair, data, tmp_path), expected)
    assert torch.equal(torch.get_rng_state(), state) or function is validated


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_vae_s_scores_are_those_of_a_tensor(container, rows, tmp_path):
    data = CONTAINERS[container](rows[:1], tmp_path)
    assert_same(evaluated(vae(), data, tmp_path), evaluated(vae(), rows[0], tmp_path))


@pytest.mark.thinned(2)
@pytest.mark.parametrize("container", ["numpy", "memmap", "ragged loader", "iterable of batches"])
def test_a_report_s_scores_are_those_of_a_tensor(container, rows, tmp_path):
    data = CONTAINERS[container](rows[:1], tmp_path)
    other = tmp_path / "tensor"
    other.mkdir()
    assert_same(reported(vae(), data, tmp_path), reported(vae(), rows[0], other))


@pytest.mark.parametrize("function", FUNCTIONS[:-1])
def test_what_a_loader_drops_is_not_scored(function, rows, tmp_path, of_a_tensor):
    data = DataLoader(TensorDataset(*rows), batch_size=16, drop_last=True)
    assert_same(function(conditional(), data, tmp_path), of_a_tensor(function, 80))


def test_a_shuffled_loader_is_scored_in_its_own_order_the_same_each_time(rows, tmp_path):
    data = DataLoader(TensorDataset(*rows), batch_size=16, shuffle=True)
    x, y = pv.data.as_dataset(data).batch(slice(None))
    assert not torch.equal(x, rows[0])
    assert torch.equal(x.sort(0).values, rows[0].sort(0).values)
    expected = evaluated(conditional(), (x, y), tmp_path)
    for _ in range(2):
        assert_same(evaluated(conditional(), data, tmp_path), expected)
    torch.manual_seed(8)
    assert_same(evaluated(conditional(), data, tmp_path), expected)


class Augmented(TensorDataset):
    """Draws from every generator that a data set may draw from."""

    def __getitem__(self, index):
        x, *context = super().__getitem__(index)
        return (x + torch.rand(()) + np.random.rand() + random.random(), *context)  # noqa: NPY002


def test_the_draws_of_a_loader_and_those_of_the_scores_are_independent(rows, tmp_path):
    data = DataLoader(Augmented(*rows), batch_size=16)
    seen = pv.data.as_dataset(data).batch(slice(None))
    for function in (evaluated, validated, diagnosed, collapsed, gapped, annealed):
        pyro.set_rng_seed(int(torch.randint(100, ())))
        expected = function(conditional(), seen, tmp_path)
        assert_same(function(conditional(), data, tmp_path), expected)


@pytest.mark.parametrize("binarization", ["dynamic", "threshold", "none"])
def test_pixels_of_a_loader_are_scored_as_those_on_disk(binarization, tmp_path):
    pixels = torch.randint(256, (NUM_DATA, WIDTH), dtype=torch.uint8)
    stored = Dataset(memmaps([pixels], tmp_path), binarization=binarization, seed=4)
    loaded = Dataset(DataLoader(pixels, batch_size=16), binarization=binarization, seed=4)
    for function in (evaluated, validated, collapsed):
        assert_same(function(vae(), loaded, tmp_path), function(vae(), stored, tmp_path))
    assert torch.equal(loaded.spread(9), stored.spread(9))


@pytest.mark.parametrize("binarization", ["dynamic", "threshold", "none"])
def test_image_files_are_scored_as_pixels_on_disk(binarization, tmp_path):
    pixels = torch.randint(256, (NUM_DATA, WIDTH), dtype=torch.uint8)
    shaped = pixels.view(NUM_DATA, 1, 1, WIDTH)
    stored = Dataset(memmaps([shaped], tmp_path), binarization=binarization, seed=4)
    files = Dataset(image_files([pixels], tmp_path), binarization=binarization, seed=4)
    mlp, event = pv.networks.MLP, (1, 1, WIDTH)
    torch.manual_seed(1)
    pair = pv.VAE(
        pv.priors.StandardNormal(LATENTS),
        pv.likelihoods.Normal(mlp(LATENTS, [4], event)),
        pv.guides.DiagonalNormal(mlp(event, [4], 2 * LATENTS)),
    )
    for function in (evaluated, collapsed):
        assert_same(function(pair, files, tmp_path), function(pair, stored, tmp_path))
    assert torch.equal(files.spread(9), stored.spread(9))


# -- what is refused -------------------------------------------------------------------------------


def uneven(rows, folder):
    items = [values[:, :1] if number > 2 else values for number, values in enumerate(rows.split(9))]
    return DataLoader(Sized(items, len(items)), batch_size=None)


def infinite(x):
    return torch.cat([x[:-1], torch.full_like(x[-1:], torch.inf)])


REFUSED = {
    "labels of a loader": (
        lambda x, y: DataLoader(TensorDataset(x, y), batch_size=50),
        r"has 2 tensors .* int64 tensor .*, probably labels.* takes 1 argument: .*collate_fn",
    ),
    "labels beside x": (lambda x, y: (x, y), "int64 tensor .*, probably labels"),
    "something beside x": (lambda x, y: (x, x), r"float32 tensor of shape \(.*, 5\)\), but the"),
    "an empty loader": (lambda x, y: DataLoader(x[:0]), "the DataLoader is empty"),
    "no length": (lambda x, y: DataLoader(Endless()), "needs a length"),
    "dictionaries": (lambda x, y: DataLoader([{"x": row} for row in x]), "tuples of tensors"),
    "infinite values": (lambda x, y: DataLoader(infinite(x), batch_size=16), "infinite values"),
    "uneven rows": (lambda x, y: uneven(x, None), "all rows need the same types and shapes"),
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("container", REFUSED)
@pytest.mark.parametrize("function", [*FUNCTIONS, reported])
def test_what_cannot_be_scored_is_refused_by_name(function, container, rows, tmp_path):
    make, message = REFUSED[container]
    if container in ("uneven rows", "infinite values") and function in (both_sides, calibrated):
        pytest.skip("no more than the first rows are read")
    with pytest.raises(ValueError, match=message) as told:
        function(vae(), make(*rows), tmp_path)
    assert isinstance(told.value, DataError | pv.PairError)


def test_labels_are_refused_before_training_and_by_check(rows, tmp_path):
    data = DataLoader(TensorDataset(*rows), batch_size=50)
    with pytest.raises(pv.PairError, match="probably labels"):
        pv.fit(vae(), data, epochs=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(pv.PairError, match="probably labels"):
        pv.check(vae(), rows)


def test_programs_that_take_anything_are_asked_no_more(rows):
    inner = vae()
    anything = pv.Pair(lambda x, *rest: inner.model(x), lambda *data: inner.guide(data[0]))
    pv.check(anything, rows)
    assert np.isfinite(pv.evaluate(anything, rows, num_samples=K).elbo).all()
