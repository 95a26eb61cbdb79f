"""`from_pyro_svi(posterior="resampled")`: samples of the exact posterior from any wrong guide."""

import math
import pickle

import arviz_stats
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoNormal

import pyro_vae as pv

NUM_DATA, WIDTH, NOISE = 6, 9, 0.6
KINDS = ("one site", "two sites", "a factor of the model")


class Regression:
    """z ~ N(0, I_3) and x ~ N(b W z, s^2 I); the guide has a wrong mean and a wrong scale."""

    def __init__(self, kind, slope=1.0):
        torch.manual_seed(3)
        self.kind, self.slope = kind, slope
        self.weight = torch.randn(WIDTH, 3).double()
        scaled = slope * self.weight
        self.covariance = (torch.eye(3).double() + scaled.T @ scaled / NOISE**2).inverse()
        z = torch.randn(NUM_DATA, 3).double()
        self.x = z @ scaled.T + NOISE * torch.randn(NUM_DATA, WIDTH).double()
        self.mean = self.x @ scaled @ self.covariance / NOISE**2
        total = scaled @ scaled.T + NOISE**2 * torch.eye(WIDTH).double()
        self.evidence = dist.MultivariateNormal(torch.zeros(WIDTH).double(), total).log_prob(self.x)
        self.kwargs = {"slope": slope} if kind == "a factor of the model" else {}

    def sample(self, loc, scale):
        if self.kind != "two sites":
            return pyro.sample("z", dist.Normal(loc, scale).to_event(1))
        one = pyro.sample("one", dist.Normal(loc[..., 0], scale[..., 0]))
        others = pyro.sample("others", dist.Normal(loc[..., 1:], scale[..., 1:]).to_event(1))
        return torch.cat([one.unsqueeze(-1), others], -1)

    def model(self, x, slope=1.0):
        with pyro.plate("data", len(x)):
            zero = x.new_zeros(len(x), 3)
            z = self.sample(zero, zero + 1)
            loc = pyro.deterministic("mean", slope * z @ self.weight.T, event_dim=1)
            pyro.sample("x", dist.Normal(loc, NOISE).to_event(1), obs=x)

    def guide(self, x, slope=1.0):
        with pyro.plate("data", len(x)):
            loc = x @ self.weight @ self.covariance / NOISE**2 + 0.2
            self.sample(loc, torch.full_like(loc, 0.15))

    def tree(self, num_samples, **settings):
        return pv.from_pyro_svi(
            self.model,
            self.guide,
            model_args=(self.x,),
            model_kwargs=self.kwargs,
            num_samples=num_samples,
            posterior="resampled",
            **settings,
        )


def values(tree):
    posterior = tree["posterior"]
    if "z" in posterior:
        return posterior["z"].to_numpy()[0]
    one, others = (posterior[name].to_numpy()[0] for name in ("one", "others"))
    return np.concatenate([one[..., None], others], -1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_samples_are_of_the_exact_posterior(kind):
    pair = Regression(kind, slope=1.5 if kind == "a factor of the model" else 1.0)
    tree = pair.tree(1000, seed=1)
    z, sd = values(tree), pair.covariance.diagonal().sqrt().numpy()
    # 1000 candidates with an effective size of at least 500, and 1000 samples of these.
    assert (tree["sample_stats/ess"] > 500).all()
    assert (tree["sample_stats/khat"] < 0.5).all()
    error = math.sqrt(1 / 500 + 1 / 1000)
    assert (np.abs(z.mean(0) - pair.mean.numpy()) < 5 * error * sd).all()
    assert (np.abs(z.var(0) / sd**2 - 1) < 5 * error * math.sqrt(2)).all()
    elpd = pv.elpd_marginal(tree)
    assert elpd.elpd_i.attrs == {"proposal": "refined", "num_samples": 1000}
    # Relative variance of the mean weight: (1 / 500 - 1 / 1000).
    np.testing.assert_allclose(elpd.elpd_i, pair.evidence, atol=5 * math.sqrt(1 / 1000))
    np.testing.assert_allclose(
        tree["posterior/mean"][0], pair.slope * z @ pair.weight.T.numpy(), atol=1e-12
    )


def test_a_tree_names_the_source_of_its_samples():
    pair = Regression("one site")
    tree = pair.tree(7, seed=4)
    source = {"posterior": "resampled", "proposal": "refined", "num_candidates": 1000, "seed": 4}
    for group in (tree, *tree.children.values()):
        assert source.items() <= group.attrs.items()
    assert tree["posterior/z"].dims == ("chain", "draw", "data", "latent_dim")
    assert tree["sample_stats/log_weight"].dims == ("chain", "candidate", "data")
    guide = pv.from_pyro_svi(pair.model, pair.guide, model_args=(pair.x,), num_samples=30)
    assert (guide.attrs["posterior"], guide.attrs["proposal"]) == ("guide", "guide")


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # of pandas, in ArviZ
def test_bounds_of_different_proposals_are_not_compared():
    pair = Regression("one site")
    refined = pv.elpd_marginal(pair.tree(5))
    guide = pv.elpd_marginal(
        pv.from_pyro_svi(pair.model, pair.guide, model_args=(pair.x,), num_samples=50)
    )
    assert (refined.kind, guide.kind) == ("refined", "marginal")
    assert guide.elpd_i.attrs["proposal"] == "guide"
    assert len(arviz_stats.compare({"one": refined, "other": refined})) == 2
    with pytest.raises(ValueError, match="refined"):
        arviz_stats.compare({"refined": refined, "guide": guide})


@pytest.mark.filterwarnings("ignore:Estimated shape parameter")
def test_marginal_elpd_is_not_called_loo_or_compared_with_it():
    pair = Regression("one site")
    tree = pv.from_pyro_svi(pair.model, pair.guide, model_args=(pair.x,), num_samples=50)
    marginal, loo = pv.elpd_marginal(tree), arviz_stats.loo(tree, pointwise=True)
    assert "elpd_marginal" in str(marginal)
    assert "loo" not in str(marginal)
    assert len(arviz_stats.compare({"one": marginal, "other": marginal})) == 2
    with pytest.raises(ValueError, match="marginal"):
        arviz_stats.compare({"marginal": marginal, "loo": loo})


@pytest.mark.parametrize("posterior", ["guide", "resampled"])
def test_the_printed_elpd_counts_unreliable_data_and_can_be_pickled(posterior):
    pair = Regression("one site")
    tree = pv.from_pyro_svi(
        pair.model, pair.guide, model_args=(pair.x,), num_samples=100, posterior=posterior, seed=0
    )
    elpd = pv.elpd_marginal(tree)
    counts = np.histogram(elpd.pareto_k, [-np.inf, elpd.good_k, 1, np.inf])[0]
    rows = [line for line in str(elpd).splitlines() if line.endswith("%")]
    assert [int(line.split(")")[-1].split()[0]) for line in rows] == counts.tolist()
    copied = pickle.loads(pickle.dumps(elpd))
    assert (str(copied), copied.kind) == (str(elpd), elpd.kind)


def test_batches_give_the_posterior_of_each_datum_and_a_seed_the_same_tree():
    pair = Regression("two sites")
    one, again = (pair.tree(200, seed=s, batch_size=4) for s in (1, 1))
    xr.testing.assert_identical(one, again)
    sd = pair.covariance.diagonal().sqrt().numpy()
    error = 5 * math.sqrt(1 / 500 + 1 / 200)
    assert (np.abs(values(one).mean(0) - pair.mean.numpy()) < error * sd).all()
    before = torch.get_rng_state()
    assert set(pair.tree(2, groups=("posterior",)).children) == {"posterior"}
    assert torch.equal(before, torch.get_rng_state())


def test_arguments_and_latents_that_have_no_refined_proposal_are_refused():
    pair = Regression("one site")
    settings = {"posterior": "resampled", "num_samples": 2}

    def run(model, guide, args=(pair.x,), kwargs=None):
        pv.from_pyro_svi(model, guide, model_args=args, model_kwargs=kwargs, **settings)

    with pytest.raises(pv.PairError, match="model_args of tensors with one row"):
        run(pair.model, pair.guide, (pair.x, 1.0))
    with pytest.raises(pv.PairError, match="model_args of tensors with one row"):
        run(pair.model, pair.guide, kwargs={"slope": torch.ones(NUM_DATA, 1).double()})

    with pytest.raises(pv.PairError, match="fixed number of data"):
        run(pair.model, AutoNormal(pair.model))

    def with_global(x):
        pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
        pair.model(x)

    def guide_of_global(x):
        pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
        pair.guide(x)

    with pytest.raises(pv.PairError, match="outside the plate over the data"):
        run(with_global, guide_of_global)

    def of_discrete(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(x.new_full((), 0.5)))

    def scalar(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(x.new_full((), 0.5)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(pv.PairError, match="latent 'z' is discrete"):
        run(scalar, of_discrete, (torch.zeros(3),))
