"""Names, k-hat and log weights without bounds reach figures, tables and pages unchanged."""

import itertools
import warnings
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

import pyro_vae as pv
from pyro_vae.data import DataError

INF, NAN = np.inf, np.nan
NAMES = [
    "cost_$x^{$",
    r"a \$ and $$",
    "$",
    r"$\frac{$ [bold]red[/] :smile:",
    "[/]",
    "<b>&amp;</b><script>",
    "{name} %s {{ jinja }}",
    "größe 数",
]


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", NAMES)
def test_names_of_datasets_are_reported_as_they_are(name, tmp_path):
    torch.manual_seed(0)
    data = pv.data.Dataset(torch.rand(20, 6), name=name)
    mlp = pv.networks.MLP
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(mlp(2, [4], 6)),
        pv.guides.DiagonalNormal(mlp(6, [4], 4)),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        fit = pv.fit(vae, data, epochs=1, compile=False, progress=False)
        scores = pv.report(vae, fit, data, tmp_path / "run", num_samples=30)
    assert (tmp_path / "run" / "latents.png").is_file()
    assert name[:9] in str(scores)


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "\x1b[31m", "a\tb", "\udcff", "a\u2028b"])
def test_names_that_cannot_be_printed_are_refused(name):
    with pytest.raises(DataError, match="name must have printable characters"):
        pv.data.Dataset(torch.zeros(3, 2), name=name)


@pytest.mark.parametrize("name", ["z[bold]", "z[/]", "$z", ":smile:", "<z>"])
def test_names_of_sites_are_shown_as_they_are(name):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample(name, dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample(name, dist.Normal(x / 2, 0.5).to_event(1))

    assert name in str(pv.check(pv.Pair(model, guide), torch.randn(4, 2)))


@pytest.mark.parametrize("values", list(itertools.product([INF, -INF, NAN, 0.3, 5.0], repeat=2)))
def test_khat_of_any_value_is_plotted(values):
    elpd = SimpleNamespace(pareto_k=np.array(values), good_k=0.7)
    figure = pv.plots.khat(elpd, np.zeros((2, 4, 4)))
    points = np.concatenate([dots.get_offsets() for dots in figure.axes[0].collections])
    shown = {int(place): height for place, height in points if not np.ma.is_masked(height)}
    low, high = figure.axes[0].get_ylim()
    for place, value in enumerate(values):
        if not np.isnan(value):
            assert low < shown[place] < high
        if value == INF:
            assert shown[place] > max(0.7, *(v for v in values if np.isfinite(v)), 0.7)
        elif value == -INF:
            assert shown[place] < 0
        elif not np.isnan(value):
            assert shown[place] == value
    worst = figure.axes[1].get_xticklabels()[0].get_text()
    known = [value for value in values if not np.isnan(value)]
    assert not known or worst.endswith(f"{max(known):.2f}")


GENERATOR = np.random.default_rng(0)
WEIGHTS = {
    "normal": GENERATOR.normal(size=60),
    "zero weights": np.full(60, -INF),
    "some zero weights": np.where(np.arange(60) < 20, -INF, 0.0),
    "infinite": np.where(np.arange(60) < 1, INF, 0.0),
    "not a number": np.where(np.arange(60) < 1, NAN, 0.0),
    "equal": np.zeros(60),
    "wide": 900 * GENERATOR.normal(size=60),
    "huge": 1e30 * GENERATOR.normal(size=60),
    "largest": 1e308 * np.sign(GENERATOR.normal(size=60)),
}


@pytest.mark.parametrize("names", [*((name,) for name in WEIGHTS), tuple(WEIGHTS)])
def test_log_weights_of_any_value_have_an_elpd_without_numpy_warnings(names):
    weights = np.stack([WEIGHTS[name] for name in names], axis=-1)[None]
    group = xr.Dataset({"log_weight": (("chain", "draw", "data"), weights)})
    group = group.assign_coords(data=np.arange(len(names)))
    elpd = pv.elpd_marginal(xr.DataTree.from_dict({"sample_stats": group}))
    found = dict(zip(names, elpd.elpd_i.to_numpy(), strict=True))
    khat = dict(zip(names, elpd.pareto_k.to_numpy(), strict=True))
    expected = {"zero weights": -INF, "some zero weights": np.log(2 / 3), "infinite": INF}
    for name in names:
        right = expected.get(name, {"equal": 0.0, "not a number": NAN}.get(name, found[name]))
        np.testing.assert_allclose(found[name], right)
        undefined = name in ("zero weights", "infinite", "not a number")
        assert np.isnan(khat[name]) == undefined
    pv.plots.encoded(pv.plots.khat(elpd))
    assert "Pareto k" in str(elpd)
