"""The scripts on the paper: each runs as a user runs it, and their mathematics is exact."""

import json
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import nn
from torch.distributions import Normal, kl_divergence

import pyro_vae as pv
from pyro_vae import hmc
from pyro_vae.data import catalogue
from tests.support.linear_gaussian import LinearDecoder, linear_vae
from tests.support.programs import ROOT, run

FOLDER = ROOT / "examples" / "aevb"
SHARED = {
    "paper.py",
    "baselines.py",
    "full_vb.py",
    "marginal_likelihood.py",
}  # imported by the scripts
SCRIPTS = {
    "appendix_f.py": "appendix_f",
    "estimators.py": "estimators",
    "figure_2.py": "figure_2",
    "figure_3.py": "figure_3",
    "figure_4_5.py": "figure_4_5",
    "pca.py": "pca",
}


def test_no_script_is_forgotten():
    assert {path.name for path in FOLDER.glob("*.py")} == set(SCRIPTS) | SHARED


def test_scripts_are_short():
    for path in FOLDER.glob("*.py"):
        assert len(path.read_text().splitlines()) < 150, path.name


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_draws_its_picture_and_writes_its_curves(name, tmp_path):
    done = run([FOLDER / name, "--quick", "--out", "run", "--seed", "3"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    stem = SCRIPTS[name]
    assert list((tmp_path / "run").glob("*.png"))
    for picture in (tmp_path / "run").glob("*.png"):
        assert picture.stat().st_size > 5000
    text = (tmp_path / "run" / f"{stem}.json").read_text()
    assert '"seed": 3' in text
    assert f'"binarization": "{"none" if stem == "pca" else "dynamic"}"' in text
    assert '"samples": ' in text
    json.loads(text)


class LinearEncoder(nn.Module):
    """A linear map to loc and to what softplus makes the scale."""

    def __init__(self, dim, latent_dim):
        super().__init__()
        self.linear = nn.Linear(dim, 2 * latent_dim, dtype=torch.float64)

    def forward(self, x):
        return self.linear(x)


def exact_elbo(vae, x):
    """ELBO of a diagonal Gaussian guide on the linear-Gaussian model, in closed form."""
    decoder, q = vae.model.likelihood, vae.encode(x)
    s2 = (2 * decoder.log_scale).exp()
    residual = x - q.mean @ decoder.weight.T - decoder.mean
    spread = q.variance @ decoder.weight.square().sum(dim=0)
    log_likelihood = -0.5 * (
        (residual.square().sum(dim=-1) + spread) / s2 + x.shape[1] * (2 * math.pi * s2).log()
    )
    kl = 0.5 * (q.mean.square() + q.variance - 1 - q.variance.log()).sum(dim=-1)
    return (log_likelihood - kl).mean()


@pytest.mark.parametrize(
    "name", ["score function", "A (eq. 6)", "B (eq. 7)", "sticking the landing"]
)
def test_each_estimator_is_unbiased(script, name):
    estimators = script("estimators")
    vae, x = linear_vae(dim=4, latent_dim=2)
    guide = pv.guides.DiagonalNormal(LinearEncoder(4, 2))
    vae = vae.replace(guide=guide)
    parameters = [*vae.guide.parameters(), *vae.model.parameters()]
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    gradient = torch.autograd.grad(exact_elbo(vae, x[:20]), parameters)
    exact = torch.cat([part.flatten() for part in gradient])
    draws = 600
    mean, variance, _ = estimators.gradient_moments(vae, x[:20], name, draws)
    assert len(mean) == len(exact)
    error = (mean - exact).abs()
    assert (error < 5 * (variance / draws).sqrt() + 1e-9).all()
    # The gradient is far from zero on this scale, so that a sign or a factor would show.
    assert (exact.abs() > 10 * (variance / draws).sqrt()).any()


def test_the_score_function_has_the_highest_variance(script):
    estimators = script("estimators")
    vae, x = linear_vae(dim=4, latent_dim=2)
    vae = vae.replace(guide=pv.guides.DiagonalNormal(LinearEncoder(4, 2)))
    variances = {
        name: estimators.gradient_moments(vae, x[:20], name, 100)[1][:20].sum()
        for name in estimators.ESTIMATORS
    }
    assert variances["score function"] > 2 * max(
        variance for name, variance in variances.items() if name != "score function"
    )


def test_wake_sleep_follows_both_of_its_gradients(script):
    """Theta climbs the ELBO; phi climbs E_p(x,z) log q(z|x), in closed form for a linear loc."""
    wake_sleep = script("baselines").wake_sleep
    vae, x = linear_vae(dim=4, latent_dim=2)
    encoder = LinearEncoder(4, 2)
    with torch.no_grad():
        encoder.linear.weight[2:] = 0  # a scale that does not depend on x
    vae = vae.replace(guide=pv.guides.DiagonalNormal(encoder))
    x, decoder = x[:20], vae.model.likelihood
    A, b = encoder.linear.weight[:2], encoder.linear.bias[:2]
    marginal = decoder.marginal()
    second = marginal.covariance_matrix + torch.outer(decoder.mean, decoder.mean)  # E x x'
    variance = vae.encode(x).variance[0]
    sleep = torch.cat(
        [
            (decoder.weight.T - A @ second - torch.outer(b, decoder.mean)) / variance[:, None],
            (-(A @ decoder.mean + b) / variance)[:, None],
        ],
        dim=1,
    )
    theta = [decoder.weight, decoder.mean, decoder.log_scale]
    wake = torch.cat([part.flatten() for part in torch.autograd.grad(exact_elbo(vae, x), theta)])
    exact = torch.cat([wake, sleep.flatten()]).detach()

    programs = [pv.objectives.per_datum(p, len(x)) for p in (vae.model, vae.guide)]
    draws = []
    for _ in range(600):
        loss = -wake_sleep(*programs, x)
        phi = [encoder.linear.weight, encoder.linear.bias]
        *of_theta, weight, bias = torch.autograd.grad(loss, [*theta, *phi])
        of_phi = torch.cat([weight[:2], bias[:2, None]], dim=1)
        draws.append(torch.cat([part.flatten() for part in [*of_theta, of_phi]]))
    draws = torch.stack(draws)
    error = draws.std(dim=0) / math.sqrt(len(draws))
    assert ((draws.mean(dim=0) - exact).abs() < 5 * error).all()
    for part in (slice(len(wake)), slice(len(wake), None)):
        assert (exact[part].abs() > 10 * error[part]).any()


def test_figure_2_goes_on_where_it_stopped(script, tmp_path, capsys):
    main = script("figure_2").main
    short = {"quick": True, "data": "mnist", "latent_dim": [3], "out": tmp_path}
    main(**short)
    printed = capsys.readouterr().out
    path = tmp_path / "figure_2.json"
    kept = json.loads(path.read_text())
    main(**short, optimizer="adam")
    both = json.loads(path.read_text())
    assert both[: len(kept)] == kept
    assert [(c["method"], c["optimizer"]) for c in both] == [
        ("AEVB", "adagrad"), ("wake-sleep", "adagrad"), ("AEVB", "adam"), ("wake-sleep", "adam"),
    ]  # fmt: skip
    for curve in both:
        assert curve["seen"][-1] == curve["samples"]
        assert curve["train"][-1] > curve["train"][0]
    # Adam has not come so far in 20 steps; from a lower end, it has, at its first score above it.
    assert "Adam is by inf samples where Adagrad ends" in capsys.readouterr().out
    third = both[2]["test"][3]
    path.write_text(json.dumps([both[0] | {"test": [*both[0]["test"][:-1], third]}, *both[1:]]))
    main(**short)
    first = next(
        n for n, bound in zip(both[2]["seen"], both[2]["test"], strict=True) if bound >= third
    )
    assert f"Adam is by {first:.1e} samples where Adagrad ends" in capsys.readouterr().out
    path.write_text(json.dumps(both))
    capsys.readouterr()
    main(**short)
    assert capsys.readouterr().out.startswith(printed)  # the same seconds: nothing was trained
    assert json.loads(path.read_text()) == both


def test_figure_2_takes_the_grey_frames_of_frey_face(script, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "CONTENT", {})  # the frames are not those of the real file
    ramp = np.linspace(0, 255, 560).reshape(1, 28, 20)
    frames = ramp * np.random.default_rng(0).uniform(0.5, 1, (1965, 1, 1))
    np.savez(tmp_path / "frey_faces.npz", images=frames.astype(np.uint8))
    short = {"quick": True, "data": "frey", "latent_dim": [2], "data_root": tmp_path}
    script("figure_2").main(**short, out=tmp_path)
    for curve in json.loads((tmp_path / "figure_2.json").read_text()):
        assert curve["binarization"] == "none"
        # A uniform density on [0, 1] scores 0; one that has learned the ramp is far above.
        assert curve["test"][-1] > 100


def test_appendix_d_finds_the_evidence_of_the_linear_gaussian_model(script):
    log_marginal_likelihood = script("marginal_likelihood").log_marginal_likelihood
    vae, x = linear_vae()
    exact = vae.model.likelihood.marginal().log_prob(x)
    error = log_marginal_likelihood(vae, x, num_samples=300) - exact
    assert error.abs().max() < 0.1
    assert error.mean().abs() < 5 * error.std() / math.sqrt(len(error)) < 0.05
    # With the paper's 50 draws a datum is off by more, their mean is not.
    error = log_marginal_likelihood(vae, x) - exact
    assert error.mean().abs() < 0.1


def test_appendix_d_agrees_with_importance_sampling(script):
    log_marginal_likelihood = script("marginal_likelihood").log_marginal_likelihood
    decoder = pv.networks.MLP(2, [10], (20,))
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(decoder),
        pv.guides.DiagonalNormal(pv.networks.MLP((20,), [], 4)),
    )
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_()
        for parameter in vae.guide.parameters():
            parameter.zero_()
    x = vae.sample(40)
    scores = pv.evaluate(vae, x, num_samples=50_000)
    error = log_marginal_likelihood(vae, x, num_samples=300).numpy() - scores.log_likelihood
    # A posterior may have a bend, or a mode that one chain does not find: not each datum, the mean.
    assert abs(error.mean()) < 0.1
    assert np.median(abs(error)) < 0.1
    assert scores.log_likelihood.std() > 1


class Waves(nn.Module):
    """p(x|z) of an x whose second coordinate tells which wave of the first z is on."""

    def forward(self, z):
        return dist.Normal(torch.cat([3 * (3 * z).sin(), z], -1), 0.3).to_event(1)


def test_appendix_d_begins_its_chains_on_the_right_island(script, monkeypatch):
    """Islands of p(z|x) lie 2 pi / 3 apart, all but one of them some 24 nats down."""
    marginal_likelihood = script("marginal_likelihood")
    guide = pv.guides.DiagonalNormal(pv.networks.MLP((2,), [], 2))
    vae = pv.VAE(pv.priors.StandardNormal(1), Waves(), guide)
    x = vae.sample(60)
    z = torch.linspace(-8, 8, 16_001)[:, None]
    log_likelihood = vae.decode(z).log_prob(x[:, None])
    log_joint = dist.Normal(0.0, 1.0).log_prob(z[:, 0]) + log_likelihood
    exact = log_joint.logsumexp(1) + math.log(16 / 16_000)
    error = marginal_likelihood.log_marginal_likelihood(vae, x, num_samples=300) - exact
    # Where a wave turns, an island has two summits and one chain is slow between them.
    assert error.mean().abs() < 0.5
    assert error.abs().median() < 0.1
    # What is held off here: chains that begin anywhere.
    monkeypatch.setattr(marginal_likelihood, "starts", lambda vae, x, n: torch.randn(len(x), 1))
    assert (marginal_likelihood.log_marginal_likelihood(vae, x) - exact).mean() < -5


def test_equal_steps_can_stand_still_and_jittered_ones_do_not():
    """Four leapfrog steps of sqrt(2) turn a standard normal by 4 quarter circles, exactly."""

    def target(z):
        return -0.5 * z.square().sum(-1), 0 * z.sum(-1)

    start = hmc.Point.at(target, torch.randn(50, 2, dtype=torch.float64))
    step = torch.tensor(math.sqrt(2), dtype=torch.float64)
    after, moved = hmc.transition(target, start, step, 4)
    assert moved.all()
    torch.testing.assert_close(after.state, start.state, rtol=0, atol=1e-12)
    after, moved = hmc.transition(target, start, hmc.jittered(step), 4)
    assert (after.state - start.state).abs()[moved].min() > 1e-6


def test_monte_carlo_em_climbs_to_the_maximum_likelihood(script):
    """Tipping & Bishop (1999), in closed form as in test_exact.py; EM's fixed point is it."""
    truth, _ = linear_vae(dim=5, latent_dim=2)
    x = truth.model.likelihood.marginal().sample((400,))
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    log_det = eigenvalues[:2].log().sum() + 3 * eigenvalues[2:].mean().log()
    maximum = -0.5 * (5 * math.log(2 * math.pi) + log_det + 5)

    decoder = LinearDecoder(torch.randn(5, 2, dtype=torch.float64), x.mean(0), 1.0)
    vae = truth.replace(likelihood=decoder)
    data = pv.data.Dataset(x)
    before = decoder.marginal().log_prob(x).mean()
    optim = torch.optim.Adagrad(decoder.parameters(), lr=0.1)
    train = script("baselines").monte_carlo_em
    assert list(train(vae, data, 250_000, optim, seed=0, points=2))[-1] == 250_000
    evidence = decoder.marginal().log_prob(x).mean()
    assert before < maximum - 0.5
    assert maximum - 0.05 < evidence <= maximum


def test_figure_3_shows_every_curve_s_end(script):
    def curve(size, method, end):
        found = {"num_train": size, "method": method, "seen": [1e6, 2e6]}
        return found | {"train": [-400, end], "test": [-400, end - 5]}

    curves = [curve(9, "AEVB", -120), curve(9, "MCEM", -130), curve(99, "AEVB", -200)]
    few, many = script("figure_3").draw(curves).axes
    assert len(few.lines) == 4
    assert few.get_ylim()[0] == -160
    assert many.get_ylim()[0] == -215
    np.testing.assert_array_equal(many.lines[0].get_xdata(), [1, 2])


def test_appendix_f_goes_on_where_it_stopped(script, tmp_path, capsys):
    short = {"quick": True, "num_train": [100], "samples": 500, "out": tmp_path}
    main = script("appendix_f").main
    main(**short)
    printed = capsys.readouterr().out
    kept = json.loads((tmp_path / "appendix_f.json").read_text())
    assert [(r["method"], r["seed"]) for r in kept] == [
        ("MAP", 0), ("MAP", 1), ("full VB", 0), ("full VB", 1),
    ]  # fmt: skip
    assert len({r["test"] for r in kept}) == len({r["own"] for r in kept}) == 4
    assert f"{np.mean([r['test'] for r in kept[:2]]):.2f} ±" in printed
    main(**short)
    assert json.loads((tmp_path / "appendix_f.json").read_text()) == kept
    assert capsys.readouterr().out == printed


def test_full_variational_bayes_weighs_the_weights_once_for_all_data(script):
    """Eq. 24: per datum KL(q(theta)||p(theta)) is divided by N, whatever the minibatch."""
    paper, full_vb = script("paper"), script("full_vb")
    x = torch.rand(7, 1, 4, 4).round()
    data = pv.data.Dataset(x, binarization="static")
    vae = paper.build(data, 2, 5, 0.3)
    full = full_vb.FullVB(vae, weight_sd=0.05)
    z = torch.randn(7, 2)
    torch.testing.assert_close(full.decode(z, full.weights.loc).mean, vae.decode(z).mean)

    def loss(num_data):
        torch.manual_seed(1)
        with pyro.get_param_store().scope(), torch.no_grad():
            programs = [pv.objectives.per_datum(p, num_data) for p in (full.model, full.guide)]
            return TraceMeanField_ELBO().loss(*programs, x)

    q = full.weights
    kl = kl_divergence(Normal(q.loc, q.log_scale.exp()), Normal(0.0, 1.0)).sum().item()
    assert kl > 100
    assert loss(50) - loss(200) == pytest.approx(kl / 50 - kl / 200, rel=1e-4)
