"""The ELBO of `gaps` is that of the pair, if its model calls modules of its guide."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.pairs.log_weights import elbo
from pyro_vae.pairs.sampler import Sampler

SAMPLES = 2000


class Shared(nn.Module):
    """A pair whose model calls the encoder of its guide, on its own inputs."""

    def __init__(self, use, plain):
        super().__init__()
        self.use, self.encoder = use, nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
        self.decoder = nn.Linear(2, 4)
        self.inputs = nn.Parameter(torch.randn(5, 4))
        if plain:  # an attribute of the instance, as some users write it
            inner = self.encoder
            self.encoder = nn.Module()
            self.encoder.inner = inner
            self.encoder.forward = inner.forward

    def q(self, x):
        loc, log_scale = self.encoder(x).chunk(2, -1)
        return dist.Normal(loc, (log_scale / 4).exp()).to_event(1)

    def model(self, x):
        prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        if self.use == "mixture":
            prior = dist.MixtureSameFamily(dist.Categorical(torch.ones(5)), self.q(self.inputs))
        elif self.use == "mean":
            prior = dist.Normal(self.q(self.inputs).mean.mean(0), 1.0).to_event(1)
        elif self.use == "of x":
            prior = dist.Normal(self.encoder(-x)[..., :2], 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            loc = self.decoder(z)
            if self.use == "decoder":
                loc = loc + self.encoder(loc)
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q(x))


@pytest.mark.thinned(7)
@pytest.mark.parametrize("num_data", [1, 6])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("use", ["nothing", "mixture", "mean", "of x", "decoder"])
def test_the_model_may_call_the_encoder(use, plain, num_data):
    torch.manual_seed(0)
    pair, x = Shared(use, plain), torch.randn(num_data, 4)
    split = pv.gaps(pair, x, encoder=pair.encoder, num_steps=20, num_samples=SAMPLES)
    weights = Sampler(pair, x).log_weights(x, SAMPLES).log_weights
    error = (2 / SAMPLES) ** 0.5 * weights.double().std(0)
    difference = torch.as_tensor(split.elbo) - elbo(weights)
    assert (difference.abs() < 5 * error + 1e-4).all()
    assert (split.best_elbo > split.elbo - 5 * error.numpy()).all()
    assert ("forward" in vars(pair.encoder)) == plain


@pytest.mark.parametrize("num_components", [2, 10])
def test_vamp_prior(num_components):
    torch.manual_seed(0)
    guide = pv.guides.DiagonalNormal(pv.networks.MLP(6, [8], 4))
    vae = pv.VAE(
        pv.priors.VampPrior(guide, num_components, 6),
        pv.likelihoods.Bernoulli(pv.networks.MLP(2, [8], 6)),
        guide,
    )
    x = torch.rand(6, 6).round()
    split = pv.gaps(vae, x, num_steps=20, num_samples=SAMPLES)
    with torch.no_grad():
        q = guide(x)
        z = q.sample((SAMPLES,))
        terms = vae.decode(z).log_prob(x) + vae.model.prior().log_prob(z) - q.log_prob(z)
    error = (2 / SAMPLES) ** 0.5 * terms.std(0)
    assert ((torch.as_tensor(split.elbo) - terms.mean(0)).abs() < 5 * error + 1e-4).all()


def mean_of_noise(pair, x):
    return pair.encoder(x + torch.randn_like(x))[:, :2]


def mean_of_two_calls(pair, x):
    return (pair.encoder(x) + pair.encoder(-x))[:, :2]


def mean_of_more_rows(pair, x):
    return pair.encoder(x[:1].expand(len(x) + 1, -1))[: len(x), :2]


@pytest.mark.parametrize(
    ("mean", "sentence"),
    [
        (mean_of_noise, "on other inputs than the data"),
        (mean_of_two_calls, "on other inputs than the data"),
        (mean_of_more_rows, "one row for each of"),
    ],
)
def test_a_guide_without_one_output_for_each_datum_is_refused(mean, sentence):
    pair = Shared("nothing", False)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean(pair, x), 1.0).to_event(1))

    with pytest.raises(ValueError, match=sentence):
        pv.gaps(pv.Pair(pair.model, guide), torch.randn(4, 4), encoder=pair.encoder, num_steps=2)


class TwoLatents(nn.Module):
    """A pair whose guide is `kind`; both latents of a datum have one entry."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.encoder, self.other = kind, nn.Linear(2, 4), nn.Linear(2, 2)

    def model(self, x):
        with pyro.plate("data", len(x)):
            if self.kind in ("discrete", "discrete, one network"):
                a = pyro.sample("a", dist.Bernoulli(0.5))
            else:
                a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.stack([a, b], -1), 1.0).to_event(1), obs=x)

    def guide(self, x):
        loc, raw, first, second = self.encoder(x).unbind(-1)
        others = self.other(x).unbind(-1)
        a = {
            "two networks": lambda: dist.Normal(others[0], others[1].exp()),
            "discrete": lambda: dist.Bernoulli(logits=others[0]),
            "discrete, one network": lambda: dist.Bernoulli(logits=first),
            "one network": lambda: dist.Normal(first, second.exp()),
            "not amortized": lambda: dist.Normal(0.0, 1.0).expand(loc.shape),
        }[self.kind]()
        with pyro.plate("data", len(x)):
            pyro.sample("a", a)
            pyro.sample("b", dist.Normal(loc, raw.exp()))


@pytest.mark.parametrize("num_data", [1, 5])
@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("two networks", "latent 'a' depends on the data, and not on the output of encoder="),
        ("discrete", "no reparameterized samples of latent 'a'"),
        ("discrete, one network", "no reparameterized samples of latent 'a'"),
        ("one network", ""),
        ("not amortized", ""),
    ],
)
def test_the_best_q_is_that_of_all_latents(kind, sentence, num_data):
    torch.manual_seed(0)
    pair, x = TwoLatents(kind), torch.randn(num_data, 2)
    if sentence:
        with pytest.raises(ValueError, match=sentence):
            pv.gaps(pair, x, encoder=pair.encoder, num_steps=2)
        return
    split = pv.gaps(pair, x, encoder=pair.encoder, num_samples=SAMPLES)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).sum(-1).numpy()
    if kind == "one network":  # its family contains the posterior
        assert abs(split.best_elbo - exact).max() < 0.02
    assert (split.best_elbo < exact + 0.02).all()


@pytest.mark.parametrize("kind", ["Categorical", "Mixed"])
def test_diagnose_omits_the_gaps_of_discrete_latents(kind):
    c = pv.priors.Categorical(3), pv.guides.Categorical(pv.networks.MLP(4, [], 3))
    vae = pv.VAE(c[0], pv.likelihoods.Bernoulli(pv.networks.MLP(3, [], 4)), c[1])
    if kind == "Mixed":
        z = pv.priors.StandardNormal(1), pv.guides.DiagonalNormal(pv.networks.MLP(4, [], 2))
        x = pv.likelihoods.Bernoulli(pv.networks.MLP(4, [], 4))
        vae = pv.MixedVAE(c[0], z[0], x, c[1], z[1])
    with pytest.raises(pv.PairError, match="no reparameterized samples of latent"):
        pv.gaps(vae, torch.ones(2, 4), num_steps=2)
    card = pv.diagnose(vae, torch.ones(2, 4), num_samples=30, num_simulations=0)
    assert card.gaps is None
