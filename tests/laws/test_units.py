"""Units: log densities follow the unit of x, and columns far from the model's scale are named."""

import contextlib
import itertools
import math
import re
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.data import DataWarning

MLP = pv.networks.MLP
ROWS, WIDTH = 256, 3
UNITS = [1e-6, 1e-3, 0.5, 1e3, 1e6]
ORIGINS = [0.0, -3.0, 100.0]  # in units
SCALES = ["learned", "entrywise", "decoder", 0.7]


def decoder(outputs):
    return MLP(2, [8], outputs * WIDTH)


def location_scale(kind):
    def build(scale, unit, shift):
        scale = scale * unit if isinstance(scale, float) else scale
        outputs = 1 + (scale == "decoder")
        return kind(decoder(outputs), scale=scale, shift=shift, unit=unit)

    return build


def columns(scale, unit, shift):
    """Return blocks with a number, and with one number for each entry."""
    one = MLP(2, [8], 1 + (scale == "decoder"))
    two = MLP(2, [8], 2 * (1 + (scale == "decoder")))
    scale = scale * unit if isinstance(scale, float) else scale
    return pv.likelihoods.Columns(
        [
            pv.likelihoods.Normal(one, scale=scale, shift=shift, unit=unit),
            pv.likelihoods.Laplace(two, scale=scale, shift=[shift] * 2, unit=[unit] * 2),
        ]
    )


LIKELIHOODS = {
    "normal": location_scale(pv.likelihoods.Normal),
    "laplace": location_scale(pv.likelihoods.Laplace),
    "student": location_scale(pv.likelihoods.StudentT),
    "columns": columns,
}


def pair(name, scale, unit, shift):
    torch.manual_seed(3)
    encoder = pv.networks.Standardized(MLP(WIDTH, [8], 4), shift, unit)
    return pv.VAE(
        pv.priors.StandardNormal(2),
        LIKELIHOODS[name](scale, unit, shift),
        pv.guides.DiagonalNormal(encoder),
    )


def rows():
    torch.manual_seed(5)
    return torch.randn(ROWS, WIDTH) @ torch.tensor([[1.0, 0.5, 0.0], [0, 1, 0], [0, 0.3, 0.8]])


def log_p(vae, x):
    return pv.evaluate(vae, x, num_samples=20, progress=False).log_likelihood


# Each likelihood with each scale, at units and origins in turn.
EQUIVARIANT = [
    pytest.param(name, scale, UNITS[i % 5], ORIGINS[i % 3], id=f"{name}-{scale}")
    for i, (name, scale) in enumerate(itertools.product(LIKELIHOODS, SCALES))
]


@pytest.mark.thinned(3)
@pytest.mark.parametrize(("name", "scale", "unit", "origin"), EQUIVARIANT)
def test_log_p_and_samples_follow_the_unit(name, scale, unit, origin, tmp_path):
    x, shift = rows(), origin * unit
    base, other = pair(name, scale, 1.0, 0.0), pair(name, scale, unit, shift)
    moved = (x.double() * unit + shift).float()
    other.check(moved)
    for vae, data in ((base, x), (other, moved)):
        pv.fit(vae, data, epochs=2, learning_rate=1e-2, compile=False, progress=False)
    expected = log_p(base, x) - WIDTH * math.log(unit)
    np.testing.assert_allclose(log_p(other, moved), expected, atol=1e-3)
    draws = []
    for vae in (base, other):
        torch.manual_seed(7)
        draws.append(vae.sample(200).double())
    torch.testing.assert_close((draws[1] - shift) / unit, draws[0], rtol=1e-3, atol=1e-3)
    other.save(tmp_path / "model")
    np.testing.assert_array_equal(log_p(pv.load(tmp_path / "model"), moved), log_p(other, moved))


@pytest.mark.parametrize("unit", UNITS)
def test_a_log_normal_follows_the_unit(unit):
    logs, found = rows(), []
    for factor in (1.0, unit):
        torch.manual_seed(3)
        likelihood = pv.likelihoods.LogNormal(decoder(1))
        with torch.no_grad():
            list(likelihood.decoder.parameters())[-1].add_(math.log(factor))
        z = torch.randn(ROWS, 2)
        found.append(likelihood(z).log_prob((logs.double().exp() * factor).float()))
    torch.testing.assert_close(found[1], found[0] - WIDTH * math.log(unit), rtol=0, atol=1e-3)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("kind", ["Normal", "Laplace", "StudentT"])
@pytest.mark.parametrize("scale", ["entrywise", "decoder"])
def test_columns_of_all_units_reach_their_maximum_likelihood(kind, scale):
    torch.manual_seed(0)
    noise = torch.randn(600, 4, dtype=torch.float64)
    if kind == "Laplace":
        noise = torch.distributions.Laplace(0.0, 1.0).sample((600, 4)).double()
    x = (noise * torch.tensor([1e-6, 1e-3, 1.0, 1e6]) + torch.tensor([1e-5, 0, 20, -1e7])).float()
    outputs = 4 * (1 + (scale == "decoder"))
    settings = {"df": 1e4} if kind == "StudentT" else {}
    likelihood = getattr(pv.likelihoods, kind)(
        MLP(1, [], outputs), scale=scale, shift=x.mean(0), unit=x.std(0), **settings
    )
    encoder = pv.networks.Standardized(MLP(4, [], 2), x.mean(0), x.std(0))
    vae = pv.VAE(pv.priors.StandardNormal(1), likelihood, pv.guides.DiagonalNormal(encoder))
    pv.fit(vae, x, epochs=40, learning_rate=3e-2, compile=False, progress=False)
    found = pv.evaluate(vae, x, num_samples=100, progress=False).mean("log_likelihood")
    x = x.double()
    if kind == "Laplace":
        spread = (x - x.median(0).values).abs().mean(0)
        expected = -(2 * math.e * spread).log().sum()
    else:
        expected = -0.5 * (2 * math.pi * math.e * x.var(0, correction=0)).log().sum()
    assert found == pytest.approx(expected.item(), abs=0.1)


GOOD = {
    "normal": lambda g, n: g.normal(size=n),
    "normal of sd 5": lambda g, n: 3 + 5 * g.normal(size=n),
    "normal of sd 0.1": lambda g, n: 0.5 + 0.1 * g.normal(size=n),
    "binary": lambda g, n: g.integers(2, size=n),
    "rare": lambda g, n: g.random(n) < 0.01,
    "proportion": lambda g, n: g.beta(2, 20, size=n),
    "zero": lambda g, n: np.zeros(n),
    "constant": lambda g, n: np.full(n, 3.7),
    "rounded constant": lambda g, n: np.full(n, 0.1) + g.integers(2, size=n) * 1e-9,
    "counts": lambda g, n: g.poisson(4, size=n),
    "pixels": lambda g, n: np.where(g.random(n) < 0.83, 0, g.random(n)),
    "heavy tails": lambda g, n: g.standard_t(2, size=n),
    "missing": lambda g, n: np.where(g.random(n) < 0.3, np.nan, g.normal(size=n)),
}
BAD = {
    "income": lambda g, n: 3e4 * np.exp(0.5 * g.normal(size=n)),
    "thousands": lambda g, n: 10 ** g.uniform(2, 7) * g.normal(size=n),
    "moles": lambda g, n: 10 ** g.uniform(-7, -2.5) * g.normal(size=n),
    "moles with an offset": lambda g, n: 1e-3 + 1e-4 * g.normal(size=n),
    "year": lambda g, n: g.integers(1990, 2020, size=n),
    "kelvin": lambda g, n: 293 + 3 * g.normal(size=n),
    "negative offset": lambda g, n: -1e6 + g.normal(size=n),
    "constant": lambda g, n: np.full(n, 1e4),
    "gains": lambda g, n: np.where(g.random(n) < 0.08, 3e4 * g.random(n), 0),
    "missing": lambda g, n: np.where(g.random(n) < 0.3, np.nan, 1e5 * g.normal(size=n)),
}


def table(seed, num_rows):
    """Return a table of good and bad columns, and the indices of the bad ones."""
    g = np.random.default_rng(seed)
    bad = list(g.choice(list(BAD), size=seed % 5, replace=False))
    made = [(False, make(g, num_rows)) for make in GOOD.values()]
    made += [(True, BAD[kind](g, num_rows)) for kind in bad]
    order = g.permutation(len(made))
    x = torch.tensor(np.stack([made[i][1] for i in order], 1), dtype=torch.float32)
    return x, [place for place, i in enumerate(order) if made[i][0]]


def plain_vae(width, likelihood=None, scale="learned"):
    torch.manual_seed(1)
    decoder = MLP(2, [8], width * (1 + (scale == "decoder")))
    encoder = pv.networks.WithMask(MLP(2 * width, [8], 4))
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Missing((likelihood or pv.likelihoods.Normal)(decoder, scale=scale)),
        pv.guides.DiagonalNormal(encoder),
    )


def named_columns(call):
    """Return the columns named by the warnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    found = [str(w.message) for w in caught if issubclass(w.category, DataWarning)]
    assert all("Standardize x" in message and "unit=" in message for message in found)
    return sorted(int(i) for text in found for i in re.findall(r"column (\d+) of x", text))


@pytest.mark.thinned(3)
@pytest.mark.parametrize("seed", range(12))
def test_columns_on_another_scale_are_named_and_no_others(seed):
    x, bad = table(seed, 400)
    kinds = (pv.likelihoods.Normal, pv.likelihoods.Laplace, pv.likelihoods.StudentT)
    likelihood, scale = kinds[seed % 3], SCALES[seed // 3 % 3]
    vae = plain_vae(x.shape[1], likelihood, scale)
    assert named_columns(lambda: vae.check(x)) == bad
    settings = {"epochs": 1, "batch_size": 200, "compile": False, "progress": False}
    assert named_columns(lambda: pv.fit(vae, x, **settings)) == bad


@pytest.mark.parametrize("factor", [1.0, 255.0, 1e-4])
@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_images_on_another_scale_are_named(factor, channels):
    torch.manual_seed(0)
    x = torch.rand(40, *channels, 6, 6) * factor
    x[:, ..., 0] = 0
    shape = x.shape[1:]
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(MLP(2, [8], tuple(shape))),
        pv.guides.DiagonalNormal(MLP(tuple(shape), [8], 4)),
    )
    if factor == 1:
        vae.check(x)
        return
    with pytest.warns(DataWarning, match="x is on another scale than the model: x has median"):
        vae.check(x)


@contextlib.contextmanager
def plates(x, form):
    inner = pyro.plate("entries", WIDTH, dim=-1) if form == "plate" else contextlib.nullcontext()
    with pyro.plate("data", len(x), dim=-2 if form == "plate" else -1), inner:
        yield


def program(form):
    """Return a pair whose entries are an event, or in a plate, or one number for each datum."""

    def model(x):
        with plates(x, form):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            mean = z.unsqueeze(-1).expand(*z.shape, WIDTH) if form == "event" else z
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(int(form == "event")), obs=x)

    def guide(x):
        with plates(x, form):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    return pv.Pair(model, guide)


@pytest.mark.parametrize("factor", [1.0, 3e4, 1e-4])
@pytest.mark.parametrize("form", ["event", "plate", "number"])
def test_data_on_another_scale_are_named_in_programs_of_any_form(form, factor):
    torch.manual_seed(0)
    x = torch.randn(60, WIDTH)
    x[:, 1] *= factor
    if form == "number":
        x = x[:, 1]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pv.check(program(form), x)
    start = "x is on another scale than the model: "
    start += "x has" if form == "number" else "column 1 of x has"
    assert [str(w.message).startswith(start) for w in caught] == [True] * (factor != 1)


def test_likelihoods_of_bounded_values_are_not_compared():
    torch.manual_seed(0)
    x = torch.cat([torch.rand(50, 2), torch.randint(2, (50, 1)), 1e5 * torch.randn(50, 1)], 1)
    L = pv.likelihoods
    likelihood = L.Columns(
        [L.Beta(MLP(2, [], 2)), L.Bernoulli(MLP(2, [], 1)), L.Normal(MLP(2, [], 1))]
    )
    guide = pv.guides.DiagonalNormal(MLP(4, [], 4))
    vae = pv.VAE(pv.priors.StandardNormal(2), likelihood, guide)
    assert named_columns(lambda: vae.check(x)) == [3]
    levels = (torch.rand(50, 4) * 255).round() / 255
    logistic = L.DiscretizedLogistic(MLP(2, [], 8))
    assert not named_columns(lambda: vae.replace(likelihood=logistic).check(levels))
