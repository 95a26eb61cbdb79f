"""The posterior of any Pyro pair as a tree, and what ArviZ does with it on both of its lines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import arviz_stats
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.infer.reparam import LocScaleReparam
from torch import nn

import pyro_vae as pv
from pyro_vae.datatree.from_pyro_svi import GROUPS, PRIOR_GROUPS
from tests.support.linear_gaussian import MeanFieldPosterior, linear_vae
from tests.support.pairs import EXACT_PAIRS

ROOT = Path(__file__).parents[2]


ARVIZ_1 = os.environ.get("PYRO_VAE_ARVIZ_1", str(ROOT / ".venv-arviz-1/bin/python"))


@pytest.mark.parametrize("kind", EXACT_PAIRS)
@pytest.mark.parametrize("batch_size", [None, 2])
def test_every_log_weight_of_an_exact_posterior_is_the_evidence(kind, batch_size):
    pair = EXACT_PAIRS[kind]()
    tree = pv.from_pyro_svi(
        pair.model, pair.guide, model_args=pair.args, num_samples=4, batch_size=batch_size
    )
    weights = tree["sample_stats/log_weight"]
    expected = pair.evidence.numpy()
    local = weights.dims[2:] == (pair.plate,)
    assert local or weights.dims == ("chain", "draw")
    np.testing.assert_allclose(weights, np.broadcast_to(expected, weights.shape), atol=1e-9)


@pytest.mark.parametrize("kind", EXACT_PAIRS)
def test_data_come_back_in_their_order_and_predictions_are_not_the_data(kind):
    pair = EXACT_PAIRS[kind]()
    tree = pv.from_pyro_svi(
        pair.model,
        pair.guide,
        model_args=pair.args,
        num_samples=5,
        groups=GROUPS + PRIOR_GROUPS,
        batch_size=2,
    )
    assert set(tree.children) == {*GROUPS, *PRIOR_GROUPS}
    x = pair.args[0].numpy()
    np.testing.assert_array_equal(tree["observed_data/x"].to_numpy().reshape(x.shape), x)
    assert tree["observed_data/x"].coords[pair.plate].to_numpy().tolist() == list(
        range(pair.num_data)
    )
    for group in ("posterior_predictive", "prior_predictive"):
        drawn = tree[f"{group}/x"]
        assert drawn.dims[:2] == ("chain", "draw")
        assert drawn.shape[2:] == tree["observed_data/x"].shape
        assert (drawn != tree["observed_data/x"]).all()
        assert len(np.unique(drawn)) == drawn.size
    for group in ("posterior", "prior", "log_prior"):
        assert set(tree[group].data_vars) == set(tree["posterior"].data_vars)
    # All of a datum's draws are there, and those of a global latent are one for each draw.
    for name, latent in tree["posterior"].data_vars.items():
        assert latent.sizes["draw"] == 5, name
        assert latent.dtype == (np.int64 if kind == "discrete" else np.float64)


def test_the_posterior_has_its_exact_mean_and_covariance():
    vae, x = linear_vae()
    S = 4000
    tree = pv.from_pyro_svi(vae.model, vae.guide, model_args=(x[:5],), num_samples=S, seed=0)
    gain, covariance = (term.detach().numpy() for term in vae.model.likelihood.posterior_terms())
    mean = (x[:5].numpy() - vae.model.likelihood.mean.detach().numpy()) @ gain.T
    z = tree["posterior/z"].to_numpy()[0]
    assert tree["posterior/z"].dims == ("chain", "draw", "data", "latent_dim")
    sd = np.sqrt(covariance.diagonal())
    assert (np.abs(z.mean(0) - mean) < 5 * sd / S**0.5).all()
    for n in range(5):
        # The sd of a sample covariance of normals, Isserlis.
        error = np.sqrt((np.outer(sd**2, sd**2) + covariance**2) / S)
        assert (np.abs(np.cov(z[:, n].T) - covariance) < 5 * error).all()


def test_the_same_seed_gives_the_same_tree_and_another_one_does_not():
    vae, x = linear_vae()
    one, two, other = (
        pv.from_pyro_svi(vae.model, vae.guide, model_args=(x,), num_samples=3, seed=seed)
        for seed in (1, 1, 2)
    )
    xr.testing.assert_identical(one, two)
    assert not one["posterior/z"].equals(other["posterior/z"])


def test_a_tree_says_where_it_comes_from_and_takes_names():
    vae, x = linear_vae()
    data = pv.data.Dataset(x, name="simulated")
    tree = pv.from_pyro_svi(
        vae.model,
        vae.guide,
        model_args=(data,),
        num_samples=2,
        dims={"x": ["feature"], "z": ["factor"]},
        coords={"feature": list("abcdef"), "data": np.arange(100, 150)},
    )
    for attrs in (tree.attrs, tree["posterior"].attrs):
        assert attrs["inference_library"] == "pyro"
        assert attrs["inference_library_version"] == pyro.__version__
        assert attrs["creation_library"] == "pyro_vae"
        assert attrs["model"] == "pyro_vae.models.vae.Model"
        assert (attrs["dataset"], attrs["binarization"]) == ("simulated", "none")
    assert tree["posterior/z"].dims == ("chain", "draw", "data", "factor")
    assert tree["observed_data/x"].sel(data=103, feature="b") == x[3, 1]


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 16), nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 1, 3, padding=1)
        )

    def forward(self, z):
        return dist.Normal(self.layers(z), 1.0).to_event(3)


def test_a_convolutional_decoder_gives_the_same_log_weights_as_one_draw_at_a_time():
    encoder = pv.networks.MLP((1, 4, 4), [8], 6)
    vae = pv.VAE(pv.priors.StandardNormal(3), Convolutional(), pv.guides.DiagonalNormal(encoder))
    x = torch.randn(7, 1, 4, 4)
    tree = pv.from_pyro_svi(vae.model, vae.guide, model_args=(x,), num_samples=3)
    for s in range(3):
        z = torch.as_tensor(tree["posterior/z"].to_numpy()[0, s])
        with torch.no_grad():
            log_weight = vae.decode(z).log_prob(x) + vae.model.prior().log_prob(z)
            log_weight -= vae.encode(x).log_prob(z)
        np.testing.assert_allclose(tree["sample_stats/log_weight"][0, s], log_weight, rtol=1e-5)


def regression(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("people", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


ARGS = (torch.randn(20, 2), torch.randn(20))


def test_a_point_mass_has_no_log_weight_and_says_why():
    guide = AutoDelta(regression)
    with pytest.warns(UserWarning, match=r"point mass at \['w'\] \(Delta, as in AutoDelta\)"):
        tree = pv.from_pyro_svi(regression, guide, model_args=ARGS, num_samples=3)
    assert "log_weight" not in tree["sample_stats"]
    assert tree["posterior/w"].shape == (1, 3, 2)
    with pytest.raises(ValueError, match="a guide that has a density"):
        pv.elpd_marginal(tree)


def test_joint_log_weights_give_no_elpd_for_each_datum():
    guide = AutoNormal(regression)
    tree = pv.from_pyro_svi(regression, guide, model_args=ARGS, num_samples=3)
    with pytest.raises(ValueError, match="log_weight is joint over all data"):
        pv.elpd_marginal(tree)


def test_nan_in_a_log_density_is_named_by_its_datum():
    vae, x = linear_vae()
    x[3, 1] = torch.nan
    with pytest.warns(UserWarning, match="site 'x' is NaN, first at data 3"):
        pv.from_pyro_svi(vae.model, lambda x: vae.guide(x.nan_to_num()), model_args=(x,))


def without_latent(x, y):
    pass


def unobserved(x, y):
    pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))


def without_plate(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def named_like_a_dim(x, y):
    draw = pyro.sample("draw", dist.Normal(0.0, 1.0))
    with pyro.plate("people", len(x)):
        pyro.sample("y", dist.Normal(draw, 1.0), obs=y)


def guide_of_draw(x, y):
    pyro.sample("draw", dist.Normal(0.0, 1.0))


def failing(x, y):
    raise RuntimeError("a matrix of the wrong shape")


def guide(x, y):
    pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))


@pytest.mark.parametrize(
    ("model", "q", "settings", "sentence"),
    [
        (regression, without_latent, {}, "draws the latent 'w', the guide does not"),
        (without_latent, guide, {}, "the guide draws the latent 'w', the model does not"),
        (unobserved, guide, {}, "no observed site"),
        (without_plate, guide, {}, r"site 'y' has batch shape \(20,\)"),
        (named_like_a_dim, guide_of_draw, {}, "site 'draw' has the name of a dimension"),
        (failing, guide, {}, "the model fails on the arguments given: a matrix of the wrong shape"),
        (
            regression,
            guide,
            {"num_samples": 0},
            "num_samples must be a whole number .*, got 0",
        ),
        (regression, guide, {"groups": ["posteriors"]}, r"unknown groups \['posteriors'\]"),
        (regression, guide, {"obs_plate": "rows"}, "obs_plate='rows', but .* plates .*'people'"),
        (regression, guide, {"coords": {"people": [1]}}, "1 values for 'people'; expected 20"),
        (regression, guide, {"coords": {"row": [1]}}, "coords has the unknown dimension 'row'"),
        (regression, guide, {"dims": {"w": ["a", "b"]}}, r"the names \['a', 'b'\] for site 'w'"),
        (regression, guide, {"dims": {"w": ["people"]}}, "dimension 'people' has size"),
    ],
)
def test_bad_input_gets_a_sentence(model, q, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        pv.from_pyro_svi(model, q, model_args=ARGS, **{"num_samples": 2, **settings})


def groups(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.deterministic("tenfold", 10 * w)
    with pyro.plate("people", len(x)):
        mean = pyro.sample("mean", dist.Normal(w, 1.0))
        pyro.sample("y", dist.Normal(mean, 3.0), obs=y)


def saved_trees(folder):
    vae, x = linear_vae()
    mean_field = vae.replace(guide=MeanFieldPosterior(vae.model.likelihood))
    tree = pv.from_pyro_svi(
        mean_field.model, mean_field.guide, model_args=(x,), num_samples=100, seed=0
    )
    tree.to_netcdf(folder / "posterior.nc")
    pv.sbc(vae, num_simulations=200).to_netcdf(folder / "sbc.nc")
    model = poutine.reparam(groups, {"mean": LocScaleReparam(0.0)})
    reparameterized = pv.from_pyro_svi(
        model, AutoNormal(model), model_args=ARGS, num_samples=100, seed=0
    )
    reparameterized.to_netcdf(folder / "reparameterized.nc")
    return tree


ARVIZ_SCRIPT = """
import json, sys
import matplotlib
matplotlib.use("agg")
import arviz_plots, arviz_stats, xarray as xr
sys.path.insert(0, sys.argv[1])
from pyro_vae import plots
from pyro_vae.datatree import elpd
assert "torch" not in sys.modules  # that interpreter may have no torch
tree, sbc = xr.open_datatree("posterior.nc"), xr.open_datatree("sbc.nc")
score = elpd.elpd_marginal(tree)
with xr.open_datatree("reparameterized.nc") as reparameterized:
    assert {"mean", "tenfold"} <= set(reparameterized["posterior"].data_vars)
    arviz_stats.loo(reparameterized)
    arviz_stats.summary(reparameterized, kind="stats")
compared = arviz_stats.compare({"one": score, "same": score})
arviz_plots.plot_compare(compared)
arviz_plots.plot_khat(score)
figures = [plots.khat(score), plots.forest(tree, [0, 1]), plots.densities(tree, [0]),
           plots.pairs(tree, 0), plots.calibration(sbc), plots.calibration(sbc, coverage=True)]
for figure in figures:
    figure.savefig("figure.png")
print(json.dumps({"version": arviz_plots.__version__, "elpd": score.elpd, "se": score.se}))
"""


def run_arviz(python, folder):
    done = subprocess.run(
        [python, "-c", ARVIZ_SCRIPT, ROOT],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_arviz_takes_the_trees_here(tmp_path):
    tree = saved_trees(tmp_path)
    answer = run_arviz(sys.executable, tmp_path)
    assert answer["elpd"] == pytest.approx(pv.elpd_marginal(tree).elpd, rel=1e-6)


@pytest.mark.skipif(
    not Path(ARVIZ_1).is_file(),
    reason="ArviZ 1.x is tested by the interpreter that PYRO_VAE_ARVIZ_1 names (make arviz-1)",
)
def test_arviz_1_takes_the_trees(tmp_path):
    tree = saved_trees(tmp_path)
    answer = run_arviz(ARVIZ_1, tmp_path)
    assert int(answer["version"].split(".")[0]) >= 1
    assert answer["elpd"] == pytest.approx(pv.elpd_marginal(tree).elpd, rel=1e-6)


def test_arviz_summarizes_and_predicts():
    vae, x = linear_vae()
    tree = pv.from_pyro_svi(vae.model, vae.guide, model_args=(x,), num_samples=50)
    table = arviz_stats.summary(tree, kind="stats", coords={"data": [0]})
    assert len(table) == 3
    images = pv.from_pyro_svi(
        vae.model, vae.guide, model_args=(x,), num_samples=50, dims={"x": ["row"]}
    )
    assert images["posterior_predictive/x"].dims[-1] == "row"
