"""`LadderVAE` as a model of data: exact linear-Gaussian ladders, and the ladders of `suggest`."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vae as pv
from pyro_vae.data.errors import DataError
from pyro_vae.distributions.parameters import MIN_LADDER_SCALE
from pyro_vae.networks import MLP
from tests.support.tables import random_table

SIZE, NOISE = 5, 0.6  # of x


def before_softplus(scale):
    return math.log(math.expm1(scale - MIN_LADDER_SCALE))


def linear(weight, bias):
    """Return an MLP of one affine layer."""
    network = MLP(weight.shape[1], [], len(weight)).double()
    with torch.no_grad():
        network.layers[0].weight.copy_(weight)
        network.layers[0].bias.copy_(bias)
    return network


def exact_ladder(num_layers, width=3):
    """Return a linear-Gaussian ladder with the exact posterior as its guide, and p(x).

    z_L ~ N(0, I),  z_i ~ N(a_i z_{i+1} + b_i, s_i^2 I),  x ~ N(W z_1 + m, NOISE^2 I), entrywise
    a_i and orthogonal columns of W, so each latent depends on one latent of each other layer.
    """
    f64 = torch.float64
    weight = torch.linalg.qr(torch.randn(SIZE, width, dtype=f64))[0]
    weight = weight * torch.tensor([0.7, 1.5, 2.0], dtype=f64)[:width]
    mean = torch.randn(SIZE, dtype=f64)
    lengths = weight.square().sum(0)
    decoders, means, variances = [], torch.zeros(width, dtype=f64), torch.ones(width, dtype=f64)
    # From x upwards, p(x|z_i) as a function of z_i is N(z_i; gain_i x + shift_i, spread_i).
    heads = [(weight.T / lengths[:, None], -(weight.T @ mean) / lengths, NOISE**2 / lengths)]
    for _ in range(num_layers - 1):
        a, b = 0.5 + torch.rand(width, dtype=f64), torch.randn(width, dtype=f64)
        s = (0.4 + torch.rand(1, dtype=f64)).item()
        raw = torch.full((width,), before_softplus(s), dtype=f64)
        decoders.append(linear(torch.cat([torch.diag(a), 0 * torch.diag(a)]), torch.cat([b, raw])))
        gain, shift, spread = heads[-1]
        heads.append((gain / a[:, None], (shift - b) / a, (spread + s**2) / a**2))
        decoders[-1].a, decoders[-1].b, decoders[-1].s = a, b, s
    decoders.reverse()
    for decoder in decoders:
        means = decoder.a * means + decoder.b
        variances = decoder.a**2 * variances + decoder.s**2
    # The top layer is multiplied by its prior N(0, I).
    gain, shift, spread = heads[-1]
    share = 1 / (1 + spread)
    heads[-1] = (gain * share[:, None], shift * share, spread * share)
    eye = torch.eye(SIZE, dtype=f64)
    vae = pv.LadderVAE(
        pv.priors.StandardNormal(width),
        decoders,
        pv.likelihoods.Normal(linear(weight, mean), scale=NOISE),
        [linear(eye, eye[0] * 0) for _ in heads],
        [width] * num_layers,
    ).double()
    with torch.no_grad():
        for layer, (gain, shift, spread) in zip(vae.guide.heads, heads, strict=True):
            raw = torch.tensor([before_softplus(v.sqrt().item()) for v in spread])
            layer.weight.copy_(torch.cat([gain, 0 * gain]))
            layer.bias.copy_(torch.cat([shift, raw]))
    covariance = weight @ torch.diag(variances) @ weight.T + NOISE**2 * eye
    marginal = torch.distributions.MultivariateNormal(weight @ means + mean, covariance)
    joint = (variances[:, None] * weight.T) @ torch.linalg.inv(covariance)  # E[z_1|x]
    expected = lambda x: (means + (x - marginal.mean) @ joint.T) @ weight.T + mean  # noqa: E731
    return vae, marginal, expected


@pytest.mark.parametrize("num_layers", [2, 3, 4])
@pytest.mark.parametrize("seed", range(2))
def test_a_linear_ladder_has_its_exact_evidence(num_layers, seed):
    torch.manual_seed(seed)
    vae, marginal, expected = exact_ladder(num_layers)
    x = marginal.sample((40,))
    scores = pv.evaluate(vae, x, num_samples=3)
    exact = marginal.log_prob(x).numpy()
    np.testing.assert_allclose(scores.elbo, exact, atol=1e-6)  # every log weight is log p(x)
    np.testing.assert_allclose(scores.log_likelihood, exact, atol=1e-6)
    torch.testing.assert_close(vae.reconstruct(x), expected(x), atol=1e-8, rtol=0)


@pytest.mark.parametrize("num_layers", [2, 3])
def test_encoder_and_decoder_of_a_linear_ladder_are_conditional_means(num_layers):
    """E[x|z_L] is affine in z_L, and z_L|x is normal: both follow from the joint covariance."""
    torch.manual_seed(3)
    vae, marginal, _ = exact_ladder(num_layers)
    origin, eye = torch.zeros(1, 3).double(), torch.eye(3).double()
    with torch.no_grad():
        intercept = vae.decode(origin).mean
        slopes = vae.decode(eye).mean - intercept  # E[x|z_L], for z_L ~ N(0, I)
        torch.testing.assert_close(intercept[0], marginal.mean)
        gain = slopes @ torch.linalg.inv(marginal.covariance_matrix)
        x = marginal.sample((10,))
        q = vae.encode(x)
        torch.testing.assert_close(q.mean, (x - marginal.mean) @ gain.T)
        posterior = eye - gain @ slopes.T
        torch.testing.assert_close(q.variance[0].diag(), posterior)


def test_draws_of_a_linear_ladder_have_its_moments():
    torch.manual_seed(4)
    vae, marginal, expected = exact_ladder(3)
    count = 40_000
    for draws, mean, variance in (
        (vae.sample(count), marginal.mean, marginal.covariance_matrix.diagonal()),
        (vae.sample_means(count), marginal.mean, marginal.covariance_matrix.diagonal() - NOISE**2),
    ):
        error = (variance / count).sqrt()
        assert ((draws.mean(0) - mean).abs() < 5 * error).all()
        assert ((draws.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / count)).all()
    x = marginal.sample((2,))
    given = vae.predictive(x, num_samples=count)
    assert given.batch_shape == (count, 2)
    drawn = given.sample()
    assert ((drawn.mean(0) - expected(x)).abs() < 5 * drawn.std(0) / math.sqrt(count)).all()


def test_the_vamp_prior_is_the_average_of_the_top_posteriors():
    torch.manual_seed(0)
    encoder = pv.LadderEncoder([MLP(6, [8], 8), MLP(8, [8], 8)], [3, 2])
    u = torch.randn(7, 6)
    vae = pv.LadderVAE(
        pv.priors.VampPrior(encoder, 7, 6, bounds=None, pseudo_inputs=u),
        [MLP(2, [8], 6)],
        pv.likelihoods.Normal(MLP(3, [8], 6)),
        encoder,
    )
    z = torch.randn(5, 2)
    expected = vae.encode(u).log_prob(z[:, None]).logsumexp(1) - math.log(7)
    torch.testing.assert_close(vae.model.prior().log_prob(z), expected)
    shared = {id(parameter) for parameter in vae.guide.parameters()}
    assert shared & {id(parameter) for parameter in vae.model.prior.parameters()}


def of_kind(kind):
    """Return data of a kind of content."""
    rng = np.random.default_rng(0)
    if kind == "table":
        return pd.DataFrame(random_table(2)[0])
    if kind == "counts":
        counts = rng.poisson(rng.gamma(2.0, 2.0, (40, 1)) * np.ones(9)).astype(np.float32)
        return pv.data.open(counts)
    if kind == "numbers":
        return rng.normal(size=(40, 6)).astype(np.float32)
    if kind == "missing":
        x = rng.normal(size=(40, 6)).astype(np.float32)
        x[rng.random(x.shape) < 0.2] = np.nan
        return x
    if kind == "binary images":
        return (rng.random((40, 1, 6, 5)) < 0.3).astype(np.float32)
    size = 32 if kind == "convolutional" else 6
    return rng.integers(0, 256, (40, 1, size, size), dtype=np.uint8)


KINDS = ("table", "counts", "numbers", "missing", "binary images", "images", "convolutional")


@pytest.mark.thinned(7)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("prior", "sizes"), [("standard-normal", [4, 3, 2]), ("vamp", [3, 2])])
def test_suggested_ladders_train_and_their_code_builds_them(kind, prior, sizes, tmp_path, capsys):
    data = of_kind(kind)
    options = {"network": {"channels": [4, 4]}} if kind == "convolutional" else {"hidden": [6]}
    torch.manual_seed(0)
    vae = pv.suggest(data, latent_dim=sizes, prior=prior, **options)
    dataset = data if isinstance(data, pv.data.Dataset) else pv.data.open(data)
    assert (type(vae), vae.schema is not None) == (pv.LadderVAE, dataset.schema is not None)
    pv.fit(vae, data, epochs=1, batch_size=16, compile=False, progress=False)
    exec(capsys.readouterr().out, {"pv": pv, "torch": torch}, scope := {})
    built = scope["vae"]
    built.load_state_dict(vae.state_dict())
    built.schema = vae.schema
    vae.save(tmp_path / "model")
    models = [vae, built, pv.load(tmp_path / "model")]
    scores = [pv.evaluate(model, data, num_samples=4).elbo for model in models]
    assert np.isfinite(scores[0]).all()
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_array_equal(scores[0], scores[2])
    x = dataset[:]
    with torch.no_grad():
        q = vae.encode(data if kind == "table" else x)
        assert q.batch_shape + q.event_shape == (len(x), sizes[-1])
        assert vae.decode(q.mean).mean.shape == vae.reconstruct(x).shape == x.shape
    if x.isnan().any():
        completed = vae.impute(x, 3)
        assert not completed.isnan().any()
        observed = ~x.isnan()
        assert torch.equal(completed[1][observed], x[observed])


def test_one_size_in_a_list_is_that_number_of_latents():
    assert isinstance(pv.suggest(of_kind("numbers"), latent_dim=[3], show=False), pv.VAE)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"latent_dim": []}, r"latent_dim=\[\]: expected at least one size"),
        ({"latent_dim": [3, 2], "guide": "flow"}, "a LadderVAE, which has the guide 'diagonal"),
    ],
)
def test_ladders_that_cannot_be_built_are_refused(options, sentence):
    with pytest.raises(DataError, match=sentence):
        pv.suggest(of_kind("numbers"), show=False, **options)


def test_a_ladder_has_no_context():
    data = pv.data.Dataset(torch.randn(8, 4), context=(torch.eye(2)[[0, 1] * 4],))
    with pytest.raises(DataError, match=r"a LadderVAE, which has no context; give one size"):
        pv.suggest(data, latent_dim=[3, 2], show=False)
