"""Conditional VAEs against exact answers, and in every function that takes a pair."""

import itertools

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.networks import MLP, ConvEncoder, WithContext
from tests.support.catalogue import GUIDES, LIKELIHOODS

W, V, NOISE = torch.tensor([[1.0], [0.5]]), torch.tensor([[2.0, -1.0], [0.0, 3.0]]), 0.5


class Linear(pv.Part):
    """The decoder of x = W z + V y + noise, or the mean of its posterior."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.out_shape = (2,)

    def forward(self, values, *context):
        (y,) = context
        w, v = W.to(values), V.to(values)
        if self.kind == "decoder":
            return values @ w.T + y.to(values) @ v.T
        precision = (1 + w.square().sum() / NOISE**2).sqrt()
        mean = (values - y.to(values) @ v.T) @ w / NOISE**2 / precision**2
        return torch.cat([mean, precision.reciprocal().expm1().log().expand_as(mean)], -1)


class Exact(pv.Part):
    """The exact posterior of z given x and y."""

    def __init__(self):
        super().__init__()
        self.encoder = Linear("encoder")

    def forward(self, x, y):
        loc, raw = self.encoder(x, y).chunk(2, -1)
        return dist.Normal(loc, nn.functional.softplus(raw)).to_event(1)


def exact():
    return pv.ConditionalVAE(
        pv.priors.StandardNormal(1), pv.likelihoods.Normal(Linear("decoder"), NOISE), Exact()
    ).double()


def rows(num_data=12):
    generator = torch.Generator().manual_seed(1)
    y = torch.eye(2, dtype=torch.float64)[torch.arange(num_data) % 2]
    return torch.randn(num_data, 2, dtype=torch.float64, generator=generator), y


def evidence(x, y):
    """Return log p(x|y) = log N(x; V y, W W' + noise^2)."""
    covariance = W @ W.T + NOISE**2 * torch.eye(2)
    return dist.MultivariateNormal(y @ V.double().T, covariance.double()).log_prob(x)


def test_every_log_weight_is_the_evidence():
    x, y = rows()
    scores = pv.evaluate(exact(), (x, y), num_samples=7)
    np.testing.assert_allclose(scores.log_likelihood, evidence(x, y), atol=1e-6)
    np.testing.assert_allclose(scores.elbo, evidence(x, y), atol=1e-6)
    context = pv.data.Dataset(x, context=(y,))
    np.testing.assert_array_equal(pv.evaluate(exact(), context, num_samples=7).elbo, scores.elbo)


def test_the_other_context_has_another_evidence():
    x, y = rows()
    wrong = pv.evaluate(exact(), (x, y.flip(1)), num_samples=7)
    np.testing.assert_allclose(wrong.log_likelihood, evidence(x, y.flip(1)), atol=1e-6)
    assert abs(wrong.log_likelihood - evidence(x, y).numpy()).min() > 0.01


def test_samples_follow_the_model_given_y():
    y = torch.eye(2, dtype=torch.float64).repeat_interleave(4000, 0)
    x = exact().sample(y=y)
    covariance = (W @ W.T + NOISE**2 * torch.eye(2)).double()
    for group, mean in zip(x.split(4000), V.double().T, strict=True):
        error = (covariance.diagonal() / 4000).sqrt()
        assert ((group.mean(0) - mean).abs() < 5 * error).all()
        torch.testing.assert_close(group.T.cov(), covariance, atol=0.15, rtol=0)


def test_a_batch_effect_is_removed_in_the_reference_batch():
    """x of two batches with the same z has the same reconstruction in a common batch."""
    vae, (_, y) = exact(), rows(2)
    z = torch.full((2, 1), 0.7, dtype=torch.float64)
    x = vae.decode(z, y).mean
    assert (x[0] - x[1]).abs().min() > 1
    reference = y[:1].expand(2, 2)
    corrected = vae.decode(vae.encode(x, y).mean, reference).mean
    torch.testing.assert_close(corrected[0], corrected[1])


def small(likelihood="Bernoulli", guide="DiagonalNormal", prior=None):
    torch.manual_seed(0)

    def with_context(network, in_shape):
        (size,) = network.in_shape
        wider = MLP(size + 2, [6], network.out_shape)
        return WithContext(wider, in_shape)

    posterior = GUIDES[guide].build()
    posterior.encoder = with_context(posterior.encoder, 2)
    latent_dim = posterior(torch.zeros(1, 2), torch.zeros(1, 2)).event_shape[0]
    part = LIKELIHOODS[likelihood].build(latent_dim)
    owner = part.likelihood if likelihood == "Missing" else part
    name = "trunk" if likelihood.startswith("Columns") else "decoder"
    setattr(owner, name, with_context(getattr(owner, name), latent_dim))
    return pv.ConditionalVAE(prior or pv.priors.StandardNormal(latent_dim), part, posterior)


LINES = list(zip(LIKELIHOODS, itertools.cycle(GUIDES)))


@pytest.mark.parametrize(("likelihood", "guide"), LINES)
def test_every_part_takes_y(likelihood, guide):
    vae = small(likelihood, guide)
    y = torch.eye(2)[[0, 1, 0]]
    x = vae.sample(y=y)
    for rows_of_y in (y, y.flip(1)):
        density = vae.decode(vae.encode(x, rows_of_y).sample((4,)).mean(0), rows_of_y)
        assert density.log_prob(x).shape == (3,)
    one, other = (vae.encode(x, value).log_prob(vae.encode(x, y).sample()) for value in (y, -y))
    assert not torch.equal(one, other)


def of_images():
    return pv.ConditionalVAE(
        pv.guides.DiagonalNormal(MLP(2, [4], 4)),
        pv.likelihoods.Bernoulli(WithContext(MLP(2 + 2, [6], (1, 4, 4)), 2)),
        pv.guides.DiagonalNormal(WithContext(ConvEncoder((1 + 2, 4, 4), [3], 4), (1, 4, 4))),
    )


def test_it_trains_is_saved_and_works_everywhere(tmp_path):
    vae, y = of_images(), torch.eye(2).repeat(16, 1)
    x = (torch.rand(32, 1, 4, 4) < 0.2 + 0.6 * y[:, :1, None, None]).float()
    table = vae.check(x[:4], y[:4])
    assert table.model["x"].event_shape == (1, 4, 4)
    data = pv.data.Dataset(x, context=(y,))
    fit = pv.fit(vae, data, validation=(x, y), epochs=30, batch_size=8, learning_rate=0.01)
    assert fit.history[-1]["validation_elbo"] > fit.history[0]["validation_elbo"] + 1
    loaded_scores = pv.evaluate(vae, data, num_samples=5, proposal="refined")
    assert loaded_scores.log_likelihood.shape == (32,)
    assert pv.refine(vae, (x[:4], y[:4])).sample(3)["z"].shape == (3, 4, 2)
    tree = pv.from_pyro_svi(vae.model, vae.guide, model_args=(x[:4], y[:4]), num_samples=6)
    assert dict(tree["posterior"].sizes)["draw"] == 6
    vae.save(tmp_path / "model")
    loaded = pv.load(tmp_path / "model")
    torch.testing.assert_close(loaded.encode(x, y).mean, vae.encode(x, y).mean, rtol=0, atol=0)
    # The prior p(z|y), the likelihood and the guide all learned that y decides the brightness.
    dark, bright = vae.sample(y=torch.eye(2)[[1, 0]].repeat_interleave(200, 0)).split(200)
    assert bright.mean() > dark.mean() + 0.4


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda vae, x, y: vae.encode(x, y.argmax(1)), "y must be floats.*one_hot"),
        (lambda vae, x, y: vae.encode(x, y[:, :1]), r"y must be floats of shape \(\*batch, 2\)"),
        (lambda vae, x, y: vae.encode(x, y[:2]), "one row of y for each of 4 data"),
        (lambda vae, x, y: vae.decode(y, y.tolist()), "y must be a numpy array or a torch tensor"),
        (lambda vae, x, y: vae.sample(y=y[:, :1]), "the model fails"),
        (lambda vae, x, y: pv.fit(vae, x), "the guide fails|missing"),
    ],
)
def test_a_context_that_does_not_fit_is_refused(call, sentence):
    with pytest.raises(pv.PairError, match=sentence):
        call(of_images(), torch.zeros(4, 1, 4, 4), torch.eye(2).repeat(2, 1))


def test_networks_without_y_are_refused():
    likelihood = pv.likelihoods.Normal(WithContext(MLP(4, [], 2), 2))
    with pytest.raises(pv.ArgumentError, match="the encoder of the guide, a MLP, does not take y"):
        pv.ConditionalVAE(
            pv.priors.StandardNormal(2), likelihood, pv.guides.DiagonalNormal(MLP(2, [], 4))
        )


@pytest.mark.parametrize("in_shape", [(4,), (1, 4, 4), (2, 2, 3)])
def test_a_network_without_place_for_y_is_refused(in_shape):
    network = ConvEncoder((2, 2, 2), [2], 3) if len(in_shape) == 3 else MLP(4, [], 3)
    with pytest.raises(pv.ArgumentError, match="at least one number of y"):
        WithContext(network, in_shape)


@pytest.mark.parametrize("content", ["images", "array"])
def test_report_takes_conditional_vaes(content, tmp_path):
    torch.manual_seed(0)
    shape = (1, 4, 4) if content == "images" else (5,)
    size = torch.Size(shape).numel()
    vae = pv.ConditionalVAE(
        pv.priors.StandardNormal(3),
        pv.likelihoods.Bernoulli(WithContext(MLP(3 + 2, [8], shape), 3)),
        pv.guides.DiagonalNormal(WithContext(MLP(size + 2, [8], 6), shape)),
    )
    data = torch.rand(12, *shape).round(), torch.eye(2)[torch.arange(12) % 2]
    fit = pv.fit(vae, data, epochs=1, compile=False, progress=False)
    scores = pv.report(vae, fit, data, tmp_path, num_samples=5)
    np.testing.assert_array_equal(scores.elbo, pv.evaluate(vae, data, num_samples=5).elbo)
    pictures = {"samples", "reconstructions"} if content == "images" else {"columns"}
    assert {f"{name}.png" for name in pictures | {"latents"}} <= {
        p.name for p in tmp_path.iterdir()
    }
    assert pv.load(tmp_path / "model").schema is None
