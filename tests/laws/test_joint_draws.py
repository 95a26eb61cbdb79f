"""Trees hold joint draws: log weights recomputed by hand from the posterior, for every size."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import norm

import pyro_vae as pv
from pyro_vae.datatree import collector, from_pyro_svi
from pyro_vae.pairs.chunking import MemoryWarning

PARTS = 2
# Global latent, latents of the data, latents nested in the data, and a term of all data.
LEVELS = {
    "local": (False, True, False, False),
    "global": (True, False, False, False),
    "global and local": (True, True, False, False),
    "nested": (True, True, True, False),
    "nested without global": (False, True, True, False),
    "outside term": (False, True, False, True),
    "global, local and outside term": (True, True, False, True),
}
SD = 1e-2  # of the guide around its parents: draws of other samples are far away


class Levels:
    """mu ~ N(0, 1), z_n ~ N(mu, 1), w_nk ~ N(z_n, 1), x_n ~ N(z_n + sum_k w_nk, 1)."""

    def __init__(self, levels):
        self.has_mu, self.has_z, self.has_w, self.has_term = LEVELS[levels]
        self.limit = None  # elements of x and its samples that fit in memory

    def model(self, x):
        mu = x.new_zeros(())
        if self.has_mu:
            mu = pyro.sample("mu", dist.Normal(mu, 1.0))
        if self.has_term:
            pyro.factor("term", x.new_tensor(-0.7))
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(mu, 1.0)) if self.has_z else mu
            mean = z
            if self.has_w:
                with pyro.plate("part", PARTS, dim=-1):
                    w = pyro.sample("w", dist.Normal(z, 1.0))
                mean = z + w.sum(-1, keepdim=True)
            if self.limit is not None and mean.numel() > self.limit:
                raise MemoryError
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[:, None])

    def guide(self, x):
        mu = x.new_zeros(())
        if self.has_mu:
            mu = pyro.sample("mu", dist.Normal(mu + 0.2, 2.0))
        with pyro.plate("data", len(x), dim=-2):
            z = mu
            if self.has_z:
                z = pyro.sample("z", dist.Normal(mu + x[:, None], SD))
            if self.has_w:
                with pyro.plate("part", PARTS, dim=-1):
                    pyro.sample("w", dist.Normal(z - mu, SD))

    def check(self, tree, x):
        """Compare the log weights and log likelihoods with those of the returned draws."""
        post = {name: values.values[0] for name, values in tree["posterior"].data_vars.items()}
        S, x = tree.sizes.get("draw") or len(next(iter(post.values()))), x.numpy()
        mu = post.get("mu", np.zeros(S))[:, None]
        log_p, log_q = np.zeros((S, len(x))), np.zeros((S, len(x)))
        z = np.broadcast_to(mu, (S, len(x)))
        if self.has_z:
            z = post["z"].reshape(S, len(x))
            log_p = log_p + norm.logpdf(z, mu, 1)
            log_q = log_q + norm.logpdf(z, mu + x, SD)
        mean = z
        if self.has_w:
            w = post["w"].reshape(S, len(x), PARTS)
            log_p = log_p + norm.logpdf(w, z[..., None], 1).sum(-1)
            log_q = log_q + norm.logpdf(w, (z - mu)[..., None], SD).sum(-1)
            mean = z + w.sum(-1)
        likelihood = norm.logpdf(x, mean, 1)
        log_p = log_p + likelihood
        if self.has_mu or self.has_term:
            log_p, log_q = log_p.sum(-1), log_q.sum(-1)
        if self.has_mu:
            log_p = log_p + norm.logpdf(mu[:, 0], 0, 1)
            log_q = log_q + norm.logpdf(mu[:, 0], 0.2, 2)
        if self.has_term:
            log_p = log_p - 0.7
        stats = tree["sample_stats"]
        for name, right in (("log_weight", log_p - log_q), ("log_q", log_q)):
            np.testing.assert_allclose(stats[name].values[0], right, rtol=1e-9, atol=1e-6)
        np.testing.assert_allclose(
            tree["log_likelihood/x"].values[0].reshape(likelihood.shape), likelihood, rtol=1e-9
        )
        np.testing.assert_array_equal(tree["observed_data/x"].values.ravel(), x)


def rows(num_data):
    return torch.linspace(-3, 3, num_data + 1, dtype=torch.float64)[1:]


def draw(pair, x, **settings):
    return pv.from_pyro_svi(pair.model, pair.guide, model_args=(x,), **settings)


# Every number of data, and for all levels those at which the chunks of samples change.
SIZES = {
    levels: [*range(1 + place, 61, len(LEVELS)), 21, 41] for place, levels in enumerate(LEVELS)
}


@pytest.mark.thinned(5)
@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("levels", LEVELS)
def test_draws_are_joint_for_every_number_of_data(levels, part, monkeypatch):
    monkeypatch.setattr(collector, "CHUNK_ELEMENTS", 40)
    monkeypatch.setattr(from_pyro_svi, "BLOCK_ELEMENTS", 80)
    groups = ("posterior", "sample_stats", "log_likelihood", "observed_data")
    choices = random.Random(levels)
    for num_data in SIZES[levels][part::2]:
        settings = {"num_samples": choices.choice((1, 2, 7)), "seed": 0, "groups": groups}
        batch_size = choices.choice((None, 7, 13, 20, 59))
        pair, x = Levels(levels), rows(num_data)
        pair.check(draw(pair, x, batch_size=batch_size, **settings), x)


class Limited(from_pyro_svi.PairRunner):
    """Has little memory once it has found out how the programs run."""

    def __init__(self, model, *args, **settings):
        super().__init__(model, *args, **settings)
        model.__self__.limit = model.__self__.later_limit


@pytest.mark.thinned(4)
@pytest.mark.parametrize("limit", [1, 3, 5])
@pytest.mark.parametrize("levels", LEVELS)
def test_draws_are_joint_when_memory_runs_out(levels, limit, monkeypatch):
    pair, x = Levels(levels), rows(13)
    right = draw(pair, x, num_samples=6, seed=0)
    monkeypatch.setattr(from_pyro_svi, "PairRunner", Limited)
    pair.later_limit = limit
    with pytest.warns(MemoryWarning, match="memory ran out"):
        tree = draw(pair, x, num_samples=6, seed=0)
    pair.check(tree, x)
    for group in right.children:
        assert tree[group].sizes == right[group].sizes


@pytest.mark.filterwarnings("ignore:memory ran out")
def test_too_little_memory_is_an_error(monkeypatch):
    monkeypatch.setattr(from_pyro_svi, "PairRunner", Limited)
    pair = Levels("global and local")
    pair.later_limit = 0
    with pytest.raises(MemoryError, match="a chunk of 1 data and 1 samples"):
        draw(pair, rows(5), num_samples=4)


def test_a_progress_bar_is_shown_on_request(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes standard error for a terminal
    pair = Levels("local")
    for show in (True, False):
        pv.from_pyro_svi(
            pair.model, pair.guide, model_args=(rows(3),), num_samples=2, progress=show
        )
        assert ("sampling" in capsys.readouterr().err) == show
