"""Tests of the converter for Pyro's SVI, without pyro_vae."""

import ast
from pathlib import Path

import arviz_stats
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from from_pyro_svi import from_pyro_svi, infer_dims
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal

SCHOOLS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(sigma, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(sigma)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        return pyro.sample("obs", dist.Normal(theta, sigma), obs=y)


def trained(model, *args, guide=AutoNormal, steps=200):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = guide(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
    for _ in range(steps):
        svi.step(*args)
    return svi


@pytest.mark.parametrize("guide", [AutoNormal, AutoDiagonalNormal])
def test_groups_dims_and_coords_of_eight_schools(guide):
    svi = trained(eight_schools, ERRORS, SCHOOLS, guide=guide)
    names = [f"school {i}" for i in range(8)]
    predictive = Predictive(eight_schools, guide=svi.guide, num_samples=20)(ERRORS)
    tree = from_pyro_svi(
        svi,
        model_args=(ERRORS, SCHOOLS),
        num_samples=50,
        coords={"school": names},
        posterior_predictive={"obs": predictive["obs"]},
        constant_data={"sigma": ERRORS},
        dims={"sigma": ["school"]},
    )
    assert set(tree.children) == {
        "posterior",
        "sample_stats",
        "log_likelihood",
        "observed_data",
        "posterior_predictive",
        "constant_data",
    }
    posterior = tree["posterior"]
    assert set(posterior.data_vars) == {"mu", "tau", "eta", "theta"}
    assert posterior["theta"].dims == ("chain", "draw", "school")
    assert posterior["mu"].shape == (1, 50)
    assert list(posterior.coords["school"].values) == names
    assert tree["posterior_predictive/obs"].shape == (1, 20, 8)
    assert tree["constant_data/sigma"].dims == ("school",)
    np.testing.assert_array_equal(tree["observed_data/obs"], SCHOOLS)
    theta = posterior["mu"] + posterior["tau"] * posterior["eta"]
    np.testing.assert_allclose(posterior["theta"], theta, rtol=1e-5)
    expected = dist.Normal(torch.as_tensor(posterior["theta"].values), ERRORS).log_prob(SCHOOLS)
    np.testing.assert_allclose(tree["log_likelihood/obs"], expected, rtol=1e-4)
    assert tree.attrs["inference_library"] == "pyro"
    summary = arviz_stats.summary(tree, var_names=["mu", "theta"], kind="stats")
    assert len(summary) == 9


def test_log_p_and_log_q_are_densities_of_model_and_guide():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x):
        scale = (1 / (1 + len(x))) ** 0.5
        pyro.sample("loc", dist.Normal(x.sum() / (1 + len(x)), scale))

    x = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    svi = SVI(model, guide, pyro.optim.Adam({}), Trace_ELBO())
    tree = from_pyro_svi(svi, model_args=(x,), num_samples=9)
    weights = tree["sample_stats/log_p"] - tree["sample_stats/log_q"]
    covariance = torch.eye(3).double() + 1
    exact = dist.MultivariateNormal(torch.zeros(3).double(), covariance).log_prob(x)
    np.testing.assert_allclose(weights, float(exact), rtol=1e-6)  # the guide is the posterior


@pytest.mark.filterwarnings("ignore:Estimated shape parameter")
def test_loo_of_an_approximate_posterior_takes_the_tree():
    svi = trained(eight_schools, ERRORS, SCHOOLS, steps=50)
    tree = from_pyro_svi(svi, model_args=(ERRORS, SCHOOLS), num_samples=200)
    stats = tree["sample_stats"].to_dataset()
    elpd = arviz_stats.loo_approximate_posterior(
        tree, log_p=stats["log_p"], log_q=stats["log_q"], pointwise=True
    )
    assert elpd.elpd_i.dims == ("school",)
    assert np.isfinite(elpd.elpd)


def nested(x, w):
    rows, columns = pyro.plate("row", 3, dim=-2), pyro.plate("column", 4, dim=-1)
    with rows, columns:
        both = pyro.sample("both", dist.Normal(torch.zeros(3, 4), 1.0))
    with rows:
        pyro.sample("row_only", dist.Normal(torch.zeros(3, 1), 1.0))
    event = pyro.sample(
        "event", dist.Normal(torch.zeros(2), 1.0).to_event(1), infer={"event_dims": ["feature"]}
    )
    pyro.factor("penalty", -event.square().sum())
    with rows, columns:
        pyro.sample("x", dist.Normal(both + w, 1.0), obs=x)


def test_plates_and_events_name_the_dimensions():
    x = torch.randn(3, 4)
    dims = infer_dims(nested, (x,), {"w": 1.0})
    assert dims["both"] == ["row", "column"]
    assert dims["row_only"] == ["row"]
    assert dims["event"] == ["feature"]
    pyro.clear_param_store()
    guide = AutoNormal(nested)
    svi = SVI(nested, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(x, w=1.0)
    tree = from_pyro_svi(svi, model_args=(x,), model_kwargs={"w": 1.0}, num_samples=3)
    assert tree["posterior/both"].dims == ("chain", "draw", "row", "column")
    assert tree["posterior/row_only"].shape == (1, 3, 3)
    assert tree["posterior/event"].dims == ("chain", "draw", "feature")
    assert set(tree["observed_data"].data_vars) == {"x"}
    np.testing.assert_array_equal(tree["observed_data/x"], x)
    without = from_pyro_svi(
        svi, model_args=(x,), model_kwargs={"w": 1.0}, num_samples=2, log_likelihood=False
    )
    assert "log_likelihood" not in without.children


def test_no_samples_are_refused():
    svi = SVI(eight_schools, lambda *args: None, pyro.optim.Adam({}), Trace_ELBO())
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        from_pyro_svi(svi, model_args=(ERRORS, SCHOOLS), num_samples=0)


def test_the_file_needs_only_arviz_base_pyro_torch_and_numpy():
    tree = ast.parse((Path(__file__).parent / "from_pyro_svi.py").read_text())
    names = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
        )
    }
    assert names == {"numpy", "pyro", "torch", "arviz_base"}
