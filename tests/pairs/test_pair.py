"""User-defined models and guides: Pyro's VAE, SS-VAE and DMM examples.

Each trains under `pv.SVI` to the numbers of stock `pyro.infer.SVI`, and under `pv.fit`.
"""

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

import pyro_vae as pv


@pytest.fixture(autouse=True)
def _own_parameter_store():
    with pyro.get_param_store().scope():
        yield


def network(fan_in, fan_out):
    return nn.Sequential(nn.Linear(fan_in, 16), nn.Tanh(), nn.Linear(16, fan_out))


class PyroVAE:
    """Pyro's `examples/vae/vae.py`: methods as programs, parameters in Pyro's store."""

    def __init__(self):
        self.encoder, self.decoder = network(12, 2 * 3), network(3, 12)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, dim=-1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))


class SSVAE(nn.Module):
    """Pyro's `examples/vae/ss_vae_M2.py` (Kingma et al. 2014): y is enumerated if absent."""

    def __init__(self):
        super().__init__()
        self.encoder_y, self.encoder_z = network(12, 4), network(12 + 4, 2 * 3)
        self.decoder = network(3 + 4, 12)

    def model(self, x, y=None):
        pyro.module("ss_vae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(x.new_full((4,), 0.25)), obs=y)
            shape = torch.broadcast_shapes(z.shape[:-1], y.shape[:-1])
            joint = torch.cat([z.expand(*shape, 3), y.expand(*shape, 4)], dim=-1)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(joint)).to_event(1), obs=x)

    def guide(self, x, y=None):
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=self.encoder_y(x)))
            joint = torch.cat([x.expand(*y.shape[:-1], 12), y], dim=-1)
            loc, log_scale = self.encoder_z(joint).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class DMM(nn.Module):
    """Pyro's `examples/dmm.py` (Krishnan et al. 2017): a latent per time step, with masks."""

    def __init__(self, dim=3, latent_dim=2):
        super().__init__()
        self.transition, self.emitter = network(latent_dim, 2 * latent_dim), network(latent_dim, 3)
        self.rnn = nn.RNN(dim, 8, batch_first=True)
        self.combiner = network(8 + latent_dim, 2 * latent_dim)
        self.z_0 = nn.Parameter(torch.zeros(latent_dim))
        self.z_q_0 = nn.Parameter(torch.zeros(latent_dim))

    def model(self, x, lengths):
        pyro.module("dmm", self)
        z = self.z_0.expand(len(x), -1)
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=t < lengths):
                    loc, log_scale = self.transition(z).chunk(2, dim=-1)
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, log_scale.exp()).to_event(1))
                    emission = dist.Bernoulli(logits=self.emitter(z)).to_event(1)
                    pyro.sample(f"x_{t}", emission, obs=x[:, t])

    def guide(self, x, lengths):
        hidden = self.rnn(x.flip(1))[0].flip(1)
        z = self.z_q_0.expand(len(x), -1)
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=t < lengths):
                    joint = torch.cat([hidden[:, t].expand(*z.shape[:-1], -1), z], dim=-1)
                    loc, log_scale = self.combiner(joint).chunk(2, dim=-1)
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, log_scale.exp()).to_event(1))


def bits(*shape):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(1)) < 0.3).float()


IMAGES = bits(24, 12)
CLASSES = nn.functional.one_hot(torch.arange(24) % 4, 4).float()
ENUMERATED = TraceEnum_ELBO(max_plate_nesting=1)


def ss_vae():
    pair = SSVAE()
    return pv.Pair(pair.model, config_enumerate(pair.guide, "parallel", expand=True))


SEQUENCES = (bits(24, 3, 3), 1 + torch.arange(24) % 3)


def annealed():
    return pv.objectives.Beta(pv.objectives.Linear(20, start=0.2))


CASES = {  # pair, arguments of its programs, objective
    "vae": (PyroVAE, (IMAGES,), Trace_ELBO),
    "vae, iwae": (PyroVAE, (IMAGES,), lambda: pv.objectives.ImportanceWeighted(4)),
    "ss-vae, no labels": (ss_vae, (IMAGES,), lambda: ENUMERATED),
    "ss-vae, labels": (SSVAE, (IMAGES, CLASSES), Trace_ELBO),
    "dmm": (DMM, SEQUENCES, Trace_ELBO),
    "dmm, annealed": (DMM, SEQUENCES, annealed),
}
cases = pytest.mark.parametrize(("make", "batch", "objective"), CASES.values(), ids=CASES)


@cases
def test_steps_are_those_of_stock_svi(make, batch, objective):
    losses = {}
    for svi_class in (pyro.infer.SVI, pv.SVI):
        torch.manual_seed(3)
        with pyro.get_param_store().scope():
            pair = make()
            svi = svi_class(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-2}), objective())
            losses[svi_class] = [svi.step(*batch) for _ in range(8)]
    np.testing.assert_allclose(losses[pv.SVI], losses[pyro.infer.SVI], rtol=1e-6)
    assert losses[pv.SVI][-1] != losses[pv.SVI][0]


@cases
def test_fit_trains_and_check_sees_them(make, batch, objective):
    torch.manual_seed(4)
    pair = make()
    bound = objective()
    table = pv.check(pair, batch, objective=bound)
    assert all(site.observed or name in table.guide for name, site in table.model.items())
    fit = pv.fit(pair, batch, epochs=25, batch_size=8, objective=bound, learning_rate=1e-2, seed=1)
    key = "train_elbo" if pv.objectives.is_elbo(bound) else "train_objective"
    first, *_, last = [entry[key] for entry in fit.history]
    assert last > first + 0.3


@pytest.mark.parametrize("make", [PyroVAE, DMM])
def test_what_was_fitted_is_scored(make):
    _, batch, _ = CASES["vae" if make is PyroVAE else "dmm"]
    torch.manual_seed(5)
    pair = make()
    fit = pv.fit(pair, batch, validation=batch, epochs=10, batch_size=8, learning_rate=1e-2)
    scores = pv.evaluate(pair, batch, num_samples=300)
    assert scores.elbo.shape == (24,)
    assert (scores.log_likelihood >= scores.elbo).all()
    error = 5 * (scores.se("elbo") + fit.best["validation_elbo_se"])
    assert fit.best["validation_elbo"] == pytest.approx(scores.mean("elbo"), abs=error)


def test_the_enumerated_bound_is_the_sum_over_classes():
    """M2's bound for an unlabelled datum: sum_y q(y|x) (-loss(x, y) - log q(y|x))."""
    torch.manual_seed(6)
    pair = SSVAE()
    enumerated = config_enumerate(pair.guide, "parallel", expand=True)
    loss = ENUMERATED.loss(pair.model, functools.partial(_without_noise, enumerated), IMAGES)
    q = pair.encoder_y(IMAGES).softmax(-1)
    total = 0.0
    for y in range(4):
        label = nn.functional.one_hot(torch.full((24,), y), 4).float()
        guide = poutine.trace(functools.partial(_without_noise, pair.guide)).get_trace(
            IMAGES, label
        )
        model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(IMAGES, label)
        model.compute_log_prob()
        guide.compute_log_prob()
        elbo = sum(model.nodes[name]["log_prob"] for name in "zyx") - guide.nodes["z"]["log_prob"]
        total = total + (q[:, y] * (elbo - q[:, y].log())).sum()
    assert loss == pytest.approx(-total.item(), rel=1e-5)


class _Mean(poutine.messenger.Messenger):
    def _pyro_sample(self, msg):
        if msg["name"] == "z" and msg["value"] is None:
            msg["value"], msg["done"] = msg["fn"].mean, True


def _without_noise(program, *args):
    """Run a program with z at its mean, to compare bounds without noise."""
    with _Mean():
        return program(*args)


def test_minibatches_of_global_and_local_latents_reach_the_exact_posterior():
    """x_n ~ N(w + z_n, 1), z_n ~ N(0, 1), w ~ N(0, 1): w|x ~ N(sum x / (N + 2), 2 / (N + 2))."""
    num_data = 60
    torch.manual_seed(7)
    x = 1.5 + torch.randn(num_data, dtype=torch.float64) * 2**0.5

    def model(x):
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(w + z, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", x.new_zeros(()))
        scale = pyro.param("scale", x.new_ones(()), constraint=dist.constraints.positive)
        w = pyro.sample("w", dist.Normal(loc, scale))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - w) / 2, 0.5**0.5))  # exact, given w

    pair = pv.Pair(model, guide)
    fit = pv.fit(
        pair,
        x,
        epochs=60,
        batch_size=20,
        objective=pv.objectives.StickingTheLanding(20),
        # Small betas: the first gradients are a hundred times as large as the last.
        optimizer=functools.partial(torch.optim.Adam, lr=0.05, betas=(0.9, 0.9)),
        schedule=lambda optimizer, steps: OneCycleLR(optimizer, 0.05, total_steps=steps),
    )
    assert pyro.param("loc").item() == pytest.approx(x.sum().item() / (num_data + 2), abs=0.01)
    assert pyro.param("scale").item() == pytest.approx((2 / (num_data + 2)) ** 0.5, rel=0.05)
    covariance = 2 * torch.eye(num_data, dtype=torch.float64) + 1
    marginal = dist.MultivariateNormal(x.new_zeros(num_data), covariance)
    exact = marginal.log_prob(x).item() / num_data
    assert fit.history[-1]["train_elbo"] == pytest.approx(exact, abs=0.02)
    # Given w, z integrates out: the validation ELBO is log N(x; w, 2) at one sample of w.
    given_w = dist.Normal(pyro.param("loc"), 2**0.5).log_prob(x[:40]).mean().item()
    fit = pv.fit(pair, x, validation=x[:40], epochs=1, learning_rate=1e-9)
    assert fit.history[-1]["validation_elbo"] == pytest.approx(given_w, abs=0.1)


def test_a_user_s_plates_inside_a_datum():
    """Two plates, data outside and pixels inside, with several particles per datum."""

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0))
            with pyro.plate("pixels", 12, dim=-1):
                pyro.sample("x", dist.Bernoulli(logits=z), obs=x)

    def guide(x):
        weight = pyro.param("weight", x.new_zeros(12))
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal((x @ weight).unsqueeze(-1), 1.0))

    pair = pv.Pair(model, guide)
    for objective in (None, pv.objectives.ImportanceWeighted(3)):
        fit = pv.fit(
            pair,
            IMAGES,
            epochs=2,
            objective=objective,
            num_particles=3 if objective is None else 1,
        )
        assert -30 < fit.history[-1].get("train_elbo", -8.0) < -5
    torch.manual_seed(0)
    looser, tighter = (
        -pv.objectives.ImportanceWeighted(k).loss(model, guide, IMAGES) / 24 for k in (1, 500)
    )
    exact = _marginal(IMAGES).mean().item()
    assert looser < tighter < exact + 0.05
    assert tighter > exact - 0.05


def _marginal(x):
    """Return log p(x) by quadrature, for z ~ N(0, 1) and 12 Bernoulli variables with logit z."""
    z = torch.linspace(-8, 8, 4001)
    log_joint = (
        dist.Bernoulli(logits=z[:, None, None]).log_prob(x).sum(-1)
        + dist.Normal(0.0, 1.0).log_prob(z)[:, None]
    )
    return log_joint.logsumexp(0) + torch.log(z[1] - z[0])
