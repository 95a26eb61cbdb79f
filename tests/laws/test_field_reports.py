"""Programs of public reports in small, one for each entry of `docs/field-reports.md`."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import Normal
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal

import pyro_vae as pv

ZERO = torch.zeros((), dtype=torch.float64)
ONE = torch.ones((), dtype=torch.float64)


def rows(num_data, *event):
    return torch.randn(num_data, *event, dtype=torch.float64)


def marginal(x):
    """Return log p(x_n) for z_n ~ N(0, 1) and x_n ~ N(z_n, 1)."""
    return Normal(ZERO, 2**0.5).log_prob(x)


def local_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", Normal(ZERO, ONE))
        pyro.sample("x", Normal(z, ONE), obs=x)


def local_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", Normal(x / 2, ONE / 2**0.5))


def global_model(x):
    loc = pyro.sample("loc", Normal(ZERO, ONE))
    with pyro.plate("data", len(x)):
        pyro.sample("x", Normal(loc, ONE), obs=x)


def fit(model, guide, x, **options):
    """Fit by Adam with a rate that falls to 0; return the exact optimum to about 0.01."""
    options = {"epochs": 150, "learning_rate": 0.1, "num_particles": 16} | options

    def schedule(optimizer, steps):
        return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)

    return pv.fit(pv.Pair(model, guide), x, schedule=schedule, **options)


def test_arviz_1165_a_plate_without_a_size():
    x, y = rows(12, 2), (rows(12) > 0).double()

    def model(size, x, y):
        b = pyro.sample("b", Normal(ZERO, 5 * ONE).expand([2]).to_event(1))
        with pyro.plate("data", size):
            pyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)

    def guide(size, x, y):
        pyro.sample("b", Normal(ZERO, ONE).expand([2]).to_event(1))

    with pytest.raises(pv.PairError, match=r"plate\('data'\) has no size.*'data', len\(x\)"):
        pv.from_pyro_svi(model, guide, model_args=(None, x, y))
    tree = pv.from_pyro_svi(model, guide, model_args=(len(x), x, y), num_samples=7)
    logits = torch.as_tensor(tree["posterior/b"].values[0]) @ x.T
    expected = dist.Bernoulli(logits=logits).log_prob(y)
    np.testing.assert_allclose(tree["log_likelihood/y"].values[0], expected, rtol=1e-12)


def test_arviz_1102_batch_dimensions_outside_a_plate():
    y = rows(6)

    def model(y):
        pyro.sample("a", Normal(ZERO, ONE).expand([5]))
        pyro.sample("obs", Normal(ZERO, ONE).expand([6]), obs=y)

    def guide(y):
        pyro.sample("a", Normal(ZERO, ONE).expand([5]))

    with pytest.raises(pv.PairError, match=r"site 'a' has batch shape.*plate, or declare"):
        pv.from_pyro_svi(model, guide, model_args=(y,))


def test_arviz_1404_several_observed_sites():
    x, y = rows(40), rows(40)

    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Normal(ZERO, ONE))
            pyro.sample("x", Normal(z, ONE), obs=x)
            pyro.sample("y", Normal(z, ONE), obs=y)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", Normal((x + y) / 3, ONE / 3**0.5))

    tree = pv.from_pyro_svi(model, guide, model_args=(x, y), num_samples=10)
    covariance = torch.eye(2, dtype=torch.float64) + 1
    expected = dist.MultivariateNormal(torch.zeros_like(covariance[0]), covariance)
    expected = expected.log_prob(torch.stack([x, y], 1))
    np.testing.assert_allclose(pv.elpd_marginal(tree).elpd_i, expected, rtol=1e-9)
    assert set(tree["log_likelihood"].data_vars) == {"x", "y"}


def test_numpyro_1739_batches_of_several_sizes():
    x = rows(10) + 1
    guide = AutoNormal(global_model)
    fit(global_model, guide, x, batch_size=3, epochs=60)  # three batches of 3 and one of 1
    assert guide.median()["loc"].item() == pytest.approx(x.sum().item() / 11, abs=0.1)
    assert guide.scales.loc.item() == pytest.approx(11**-0.5, rel=0.1)


def test_pyro_1437_scales_of_nested_plates():
    x = rows(12, 4) + 1

    def model(x):
        with pyro.plate("columns", 4, dim=-1):
            w = pyro.sample("w", Normal(ZERO, ONE))
            with pyro.plate("data", len(x), dim=-2):
                pyro.sample("x", Normal(w, ONE), obs=x)

    guide = AutoNormal(model)
    fit(model, guide, x, batch_size=4, epochs=60)  # as many data as columns
    found = guide.median()["w"].detach().squeeze()
    np.testing.assert_allclose(found, x.sum(0) / 13, atol=0.1)
    np.testing.assert_allclose(guide.scales.w.detach().squeeze(), 13**-0.5, rtol=0.1)


def test_funsor_606_a_shared_latent_summed_out_in_batches():
    x, locs = rows(6) + 1, torch.tensor([1.0, 3.0], dtype=torch.float64)

    def model(x):
        a = pyro.sample("a", dist.Categorical(ONE.expand(2)), infer={"enumerate": "parallel"})
        with pyro.plate("data", len(x)):
            pyro.sample("x", Normal(locs[a], ONE), obs=x)

    pair = pv.Pair(model, lambda x: None)
    options = {"epochs": 1, "objective": TraceEnum_ELBO(), "learning_rate": 1e-9}
    with pytest.raises(pv.PairError, match=r"sums out \['a'\].*batch_size=6"):
        pv.fit(pair, x, batch_size=4, **options)
    history = pv.fit(pair, x, batch_size=6, **options).history
    expected = (Normal(locs[:, None], ONE).log_prob(x).sum(1) - np.log(2)).logsumexp(0) / 6
    assert history[0]["train_elbo"] == pytest.approx(expected.item(), rel=1e-12)


def test_pyro_531_scale_of_score_function_gradients():
    x = torch.tensor([0.1, 0.9, 2.0, -1.0], dtype=torch.float64)
    logit = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x), subsample_size=2) as i:
            b = pyro.sample("b", dist.Bernoulli(ONE / 2))
            pyro.sample("x", Normal(b, ONE), obs=x[i])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=2):
            pyro.sample("b", dist.Bernoulli(logits=pyro.param("logit", logit.detach().clone())))

    q = logit.sigmoid()
    one, zero = Normal(ONE, ONE).log_prob(x), Normal(ZERO, ONE).log_prob(x)
    entropy = -q * q.log() - (1 - q) * (1 - q).log()
    bound = (q * one + (1 - q) * zero + entropy - np.log(2)).sum()
    (expected,) = torch.autograd.grad(bound, logit)
    svi = pv.SVI(model, guide, pyro.optim.SGD({"lr": 1.0}), loss=Trace_ELBO())
    moves = []
    for _ in range(600):
        pyro.clear_param_store()
        svi.step(x)
        moves.append(pyro.param("logit").item() - 0.3)
    error = np.std(moves) / len(moves) ** 0.5
    assert abs(np.mean(moves) - expected.item()) < 4.5 * error


def test_scvi_tools_1455_cells_without_counts():
    counts = torch.poisson(torch.full((30, 4), 3.0))
    counts[17] = 0
    x = (counts / counts.sum(1, keepdim=True)).log1p()
    likelihood = pv.likelihoods.Normal(pv.networks.MLP(2, [8], 4))
    guide = pv.guides.DiagonalNormal(pv.networks.MLP(4, [8], 4))
    vae = pv.VAE(pv.priors.StandardNormal(2), likelihood, guide)
    with pytest.raises(ValueError, match=r"NaN.*17|17.*NaN"):
        pv.fit(vae, x, epochs=1)


def test_semi_supervised_pytorch_9_pixels_that_are_not_scaled():
    x = torch.randint(0, 256, (20, 5)).float()
    likelihood = pv.likelihoods.Bernoulli(pv.networks.MLP(2, [8], 5))
    guide = pv.guides.DiagonalNormal(pv.networks.MLP(5, [8], 4))
    vae = pv.VAE(pv.priors.StandardNormal(2), likelihood, guide)
    for run in (pv.fit, pv.evaluate, pv.check):
        with pytest.raises(pv.PairError, match=r"outside the likelihood's support.*255"):
            run(vae, x)


def test_cell2location_293_two_guides_of_the_same_names():
    data = rows(20) + 1, rows(20) - 1
    means = [x.sum().item() / 21 for x in data]
    sentence = "'AutoNormal.locs.loc' belongs to another guide.*module_local_params"

    def mean(guide, x):
        tree = pv.from_pyro_svi(global_model, guide, model_args=(x,), num_samples=1_000)
        return tree["posterior/loc"].values.mean()

    first, second = AutoNormal(global_model), AutoNormal(global_model)
    fit(global_model, first, data[0], batch_size=20, epochs=60)
    with pytest.raises(pv.PairError, match=sentence):
        fit(global_model, second, data[1], batch_size=20, epochs=60)
    svi = pv.SVI(global_model, AutoNormal(global_model), pyro.optim.Adam({"lr": 0.1}))
    with pytest.raises(pv.PairError, match=sentence):
        svi.step(data[1])
    assert mean(first, data[0]) == pytest.approx(means[0], abs=0.05)
    pyro.clear_param_store()
    second = AutoNormal(global_model)
    fit(global_model, second, data[1], batch_size=20, epochs=60)
    assert mean(second, data[1]) == pytest.approx(means[1], abs=0.05)
    with pytest.raises(pv.PairError, match=sentence):
        mean(first, data[0])
    with pyro.settings.context(module_local_params=True):
        guides = AutoNormal(global_model), AutoNormal(global_model)
        for guide, x in zip(guides, data, strict=True):
            fit(global_model, guide, x, batch_size=20, epochs=60)
        found = [mean(guide, x) for guide, x in zip(guides, data, strict=True)]
    np.testing.assert_allclose(found, means, atol=0.05)


def test_scvi_tools_369_every_latent_is_in_the_marginal_likelihood():
    x = rows(9)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Normal(ZERO, ONE))
            library = pyro.sample("library", Normal(ZERO, ONE))
            pyro.sample("x", Normal(z + library, ONE), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Normal(x / 3, (2 / 3 * ONE).sqrt()))
            pyro.sample("library", Normal((x - z) / 2, (ONE / 2).sqrt()))

    scores = pv.evaluate(pv.Pair(model, guide), x, num_samples=5)
    expected = Normal(ZERO, 3**0.5).log_prob(x)
    np.testing.assert_allclose(scores.log_likelihood, expected, rtol=1e-9)
    np.testing.assert_allclose(scores.elbo, expected, rtol=1e-9)


def test_breze_85_the_mean_over_data_is_outside_the_logarithm():
    x = torch.tensor([-30.0, 0.0, 3.0], dtype=torch.float64)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", Normal(x / 2, ONE))

    scores = pv.evaluate(pv.Pair(local_model, guide), x, num_samples=20_000)
    np.testing.assert_allclose(scores.log_likelihood, marginal(x), atol=0.03)
    assert scores.mean("log_likelihood") == pytest.approx(marginal(x).mean().item(), abs=0.02)


def test_iwae_2_scores_belong_to_their_rows():
    x = rows(50)
    order = torch.randperm(50)
    pair = pv.Pair(local_model, local_guide)
    for index in (torch.arange(50), order):
        scores = pv.evaluate(pair, x[index], num_samples=2)
        np.testing.assert_allclose(scores.log_likelihood, marginal(x[index]), rtol=1e-9)
    alone = [pv.evaluate(pair, x[i : i + 1], num_samples=2).log_likelihood[0] for i in range(3)]
    np.testing.assert_allclose(alone, marginal(x[:3]), rtol=1e-9)


def test_semi_supervised_pytorch_21_the_jacobian_of_a_flow_belongs_to_its_row():
    x = torch.randn(6, 3)
    guide = pv.guides.Flow(pv.networks.MLP(3, [8], 2 * 2 + 4), 2)
    z = torch.randn(6, 2)
    together = guide(x).log_prob(z)
    alone = [guide(x[n : n + 1]).log_prob(z[n : n + 1]) for n in range(6)]
    assert together.shape == (6,)
    torch.testing.assert_close(together, torch.cat(alone))
