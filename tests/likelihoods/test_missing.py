"""Missing values, against the closed forms of a linear-Gaussian model.

z ~ N(0, I),  x|z ~ N(W z + b, s^2 I);  for the observed entries o of x
x_o ~ N(b_o, W_o W_o' + s^2 I),  z|x_o ~ N(m, A^-1),  A = I + W_o'W_o / s^2
"""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import likelihoods
from pyro_vae.networks import MLP, WithMask
from pyro_vae.pairs.sampler import Sampler

NAN = float("nan")
LATENT_DIM, DATA_DIM, SCALE = 2, 5, 0.6


class LinearGaussian(nn.Module):
    """The model's matrices, and its exact posterior given any observed entries, as a guide."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.W = torch.randn(DATA_DIM, LATENT_DIM, generator=generator, dtype=torch.float64)
        self.b = torch.randn(DATA_DIM, generator=generator, dtype=torch.float64)

    def decoder(self, z: Tensor) -> Tensor:
        return z @ self.W.T + self.b

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        observed = (~x.isnan()).double()
        W_o = self.W * observed[..., None]
        precision = torch.eye(LATENT_DIM).double() + W_o.mT @ W_o / SCALE**2
        residual = torch.where(x.isnan(), torch.zeros_like(x), x - self.b)
        loc = torch.linalg.solve(precision, W_o.mT @ residual[..., None] / SCALE**2)[..., 0]
        return dist.MultivariateNormal(loc, precision_matrix=precision)

    def conditional(self, x: Tensor) -> tuple[float, Tensor, Tensor]:
        """Return log p(x_o), E[x|x_o] and Cov[x|x_o] of one datum, by the joint of x alone."""
        covariance = self.W @ self.W.T + SCALE**2 * torch.eye(DATA_DIM).double()
        o = ~x.isnan()
        if not o.any():
            return 0.0, self.b, covariance
        gain = torch.linalg.solve(covariance[o][:, o], covariance[o]).T
        log_prob = dist.MultivariateNormal(self.b[o], covariance[o][:, o]).log_prob(x[o])
        mean = self.b + gain @ (x[o] - self.b[o])
        return log_prob.item(), mean, covariance - gain @ covariance[o]


@pytest.fixture
def linear() -> LinearGaussian:
    return LinearGaussian()


@pytest.fixture
def vae(linear: LinearGaussian) -> pv.VAE:
    likelihood = likelihoods.Missing(likelihoods.Normal(linear.decoder, scale=SCALE))
    prior = pv.priors.StandardNormal(LATENT_DIM).double()
    return pv.VAE(prior, likelihood, linear)


@pytest.fixture
def x(linear: LinearGaussian) -> Tensor:
    """Data of the model: complete, with one to four entries missing, and with none observed."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(8, LATENT_DIM, generator=generator, dtype=torch.float64)
    noise = torch.randn(8, DATA_DIM, generator=generator, dtype=torch.float64)
    x = linear.decoder(z) + SCALE * noise
    missing = torch.rand(8, DATA_DIM, generator=generator) < 0.4
    missing[0], missing[1] = False, True
    return x.masked_fill(missing, NAN)


def test_every_log_weight_is_the_evidence_of_what_was_observed(linear, vae, x):
    vae.check(x)
    torch.manual_seed(0)
    log_weights = Sampler(vae, x[:2]).draw(x, 20).log_weights
    exact = torch.tensor([linear.conditional(row)[0] for row in x], dtype=torch.float64)
    torch.testing.assert_close(log_weights, exact.expand(20, 8), rtol=0, atol=1e-9)
    scores = pv.evaluate(vae, x, num_samples=10)
    np.testing.assert_allclose(scores.elbo, exact, atol=1e-9)


def test_imputation_has_the_conditional_mean_and_covariance(linear, vae, x):
    torch.manual_seed(0)
    num_samples = 40_000
    draws = vae.impute(x, num_samples)
    assert draws.shape == (num_samples, *x.shape)
    for row, completed in zip(x, draws.unbind(1), strict=True):
        _, mean, covariance = linear.conditional(row)
        m = row.isnan()
        assert (completed[:, ~m] == row[~m]).all()
        if not m.any():
            continue
        error = (completed.mean(0) - mean).abs()[m]
        assert (error <= 5 * covariance.diagonal()[m].sqrt() / num_samples**0.5).all()
        deviation = (completed - mean)[:, m]
        products = deviation[:, :, None] * deviation[:, None, :]
        error = (products.mean(0) - covariance[m][:, m]).abs()
        assert (error <= 5 * products.std(0) / num_samples**0.5).all()


def test_imputed_mean_is_exact_at_the_posterior_mean(linear, vae, x):
    reconstructed = vae.reconstruct(x)
    for row, mean in zip(x, reconstructed, strict=True):
        missing = row.isnan()
        torch.testing.assert_close(
            mean[missing], linear.conditional(row)[1][missing], rtol=0, atol=1e-9
        )


def test_imputation_changes_nothing_and_wants_at_least_one_draw(vae, x):
    vae.train()
    before = x.clone()
    completed = vae.impute(x, 1)
    assert completed.isfinite().all()
    torch.testing.assert_close(x, before, equal_nan=True, rtol=0, atol=0)
    assert vae.training
    with pytest.raises(ValueError, match=r"num_samples must be a whole number from 1 to .*, got 0"):
        vae.impute(x, 0)


WIDTH = 3
ONE_OUTPUT = {
    "Bernoulli": (likelihoods.Bernoulli, [1.0, 0.0, 1.0]),
    "Beta": (likelihoods.Beta, [0.2, 0.9, 0.5]),
    "ContinuousBernoulli": (likelihoods.ContinuousBernoulli, [0.0, 0.3, 1.0]),
    "Laplace": (likelihoods.Laplace, [-1.0, 0.0, 4.0]),
    "LogNormal": (likelihoods.LogNormal, [0.1, 1.0, 9.0]),
    "NegativeBinomial": (likelihoods.NegativeBinomial, [0.0, 3.0, 11.0]),
    "Normal": (likelihoods.Normal, [-1.0, 0.0, 4.0]),
    "Poisson": (likelihoods.Poisson, [0.0, 3.0, 11.0]),
    "StudentT": (likelihoods.StudentT, [-1.0, 0.0, 4.0]),
}
MORE_OUTPUTS = {
    "Categorical": (256, likelihoods.Categorical, [0.0, 0.2, 1.0]),
    "DiscretizedLogistic": (2, likelihoods.DiscretizedLogistic, [0.0, 0.2, 1.0]),
    "DiscretizedLogisticMixture": (15, likelihoods.DiscretizedLogisticMixture, [0.0, 0.2, 1.0]),
    "ZeroInflatedNegativeBinomial": (2, likelihoods.ZeroInflatedNegativeBinomial, [0.0, 3.0, 1.0]),
}
CASES = {name: (1, *case) for name, case in ONE_OUTPUT.items()} | MORE_OUTPUTS


@pytest.mark.parametrize(("outputs", "kind", "row"), CASES.values(), ids=list(CASES))
def test_missing_entries_leave_density_and_gradients_to_the_observed(outputs, kind, row):
    torch.manual_seed(0)
    likelihood = kind(MLP(2, [4], outputs * WIDTH))
    x, z = torch.tensor([row]).expand(6, WIDTH).clone(), torch.randn(6, 2)
    masked = likelihoods.Missing(likelihood)
    torch.testing.assert_close(masked(z).log_prob(x), likelihood(z).log_prob(x))

    observed = torch.rand(6, WIDTH) < 0.5
    parameters = list(likelihood.parameters())
    expected = (likelihood(z).base_dist.log_prob(x) * observed).sum()
    log_prob = masked(z).log_prob(x.masked_fill(~observed, NAN)).sum()
    torch.testing.assert_close(log_prob, expected)
    torch.testing.assert_close(
        torch.autograd.grad(log_prob, parameters), torch.autograd.grad(expected, parameters)
    )
    # Nothing of the value that stands in for NaN is left, nor is NaN itself.
    nothing = masked(z).log_prob(torch.full((6, WIDTH), NAN))
    assert (nothing == 0).all()
    for gradient in torch.autograd.grad(nothing.sum(), parameters):
        assert (gradient == 0).all()


def test_gradients_are_finite_where_the_filler_alone_would_break_them():
    # At 0, outside the support, this log density is -inf, and 0 times its gradient NaN.
    p = likelihoods.Missing(likelihoods.LogNormal(lambda z: z, scale=0.5))
    z = torch.zeros(1, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(p(z).log_prob(torch.tensor([[NAN, 2.0]])).sum(), z)
    assert gradient[0, 0] == 0
    assert gradient[0, 1].item() == pytest.approx(np.log(2) / 0.25, rel=1e-5)


def mixed_vae() -> pv.VAE:
    torch.manual_seed(0)
    table = likelihoods.Columns(
        [
            likelihoods.Normal(MLP(8, [], 2)),
            likelihoods.Bernoulli(MLP(8, [], 1)),
            likelihoods.Categorical(MLP(8, [], 4), num_levels=4, spacing=1),
        ],
        trunk=MLP(2, [], 8),
    )
    encoder = WithMask(MLP(2 * 4, [8], 2 * 2))
    return pv.VAE(
        pv.priors.StandardNormal(2), likelihoods.Missing(table), pv.guides.DiagonalNormal(encoder)
    )


def mixed_data() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(64, 2, generator=generator)
    x = torch.cat([real, (real[:, :1] > 0).float(), (real[:, 1:] > 0).float() * 3], dim=1)
    return x.masked_fill(torch.rand(64, 4, generator=generator) < 0.3, NAN)


def test_tables_with_missing_values_train_and_impute_in_their_support():
    vae, x = mixed_vae(), mixed_data()
    vae.check(x)
    fit = pv.fit(vae, x, epochs=30, batch_size=32, learning_rate=1e-2, progress=False)
    assert fit.history[-1]["train_elbo"] > fit.history[0]["train_elbo"] + 0.5
    completed = vae.impute(x, 5)
    assert vae.decode(torch.zeros(1, 2)).support.check(completed).all()
    assert completed.isfinite().all()
    torch.testing.assert_close(completed[2][~x.isnan()], x[~x.isnan()], rtol=0, atol=0)


def test_saved_with_its_mask_and_its_columns(tmp_path):
    vae, x = mixed_vae(), mixed_data()
    vae.save(tmp_path / "model")
    loaded = pv.load(tmp_path / "model")
    z = torch.randn(64, 2)
    torch.testing.assert_close(loaded.decode(z).log_prob(x), vae.decode(z).log_prob(x))
    torch.testing.assert_close(loaded.encode(x).mean, vae.encode(x).mean)


def test_a_bound_below_the_evidence_whatever_the_guide(linear, vae, x):
    torch.manual_seed(0)
    encoder = WithMask(MLP(2 * DATA_DIM, [8], 2 * LATENT_DIM)).double()
    wrong = vae.replace(guide=pv.guides.DiagonalNormal(encoder))
    elbo = -Trace_ELBO(num_particles=2000, vectorize_particles=True).loss(
        wrong.model, wrong.guide, x
    )
    assert elbo < sum(linear.conditional(row)[0] for row in x)


def test_the_encoder_sees_zeros_and_the_mask():
    seen = []

    class Recorder(nn.Module):
        in_shape, out_shape = (2, 2, 2), (4,)

        def forward(self, values: Tensor) -> Tensor:
            seen.append(values)
            return values.flatten(-3)[..., :4]

    network = WithMask(Recorder())
    assert network.in_shape == (1, 2, 2)
    network(torch.tensor([[[[1.5, NAN], [0.0, NAN]]]]))
    expected = torch.tensor([[[[1.5, 0.0], [0.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]]])
    torch.testing.assert_close(seen[0], expected)


def simple(likelihood, encoder) -> pv.VAE:
    return pv.VAE(pv.priors.StandardNormal(2), likelihood, pv.guides.DiagonalNormal(encoder))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: simple(likelihoods.Normal(MLP(2, [], 4)), WithMask(MLP(8, [], 4))).check(
                mixed_data()
            ),
            r"NaN entries, or wrap the likelihood in likelihoods\.Missing",
        ),
        (
            lambda: simple(
                likelihoods.Missing(likelihoods.Normal(MLP(2, [], 4))), MLP(4, [], 4)
            ).check(mixed_data()),
            r"draw of latent 'z' is not finite.*wrap the encoder in networks\.WithMask",
        ),
        (
            lambda: simple(likelihoods.Normal(MLP(2, [], 4)), MLP(4, [], 4)).check(
                torch.full((3, 4), 3e38)
            ),
            r"draw of latent 'z' is not finite: rescale x",
        ),
        (
            lambda: likelihoods.Missing(likelihoods.Poisson(MLP(2, [], 3), library_size=5))(
                torch.zeros(1, 2)
            ),
            "entries of a CountsGivenTotal depend on each other",
        ),
        (lambda: WithMask(MLP(3, [], 2)), r"WithMask takes.*MLP with in_shape \(3,\)"),
        (lambda: WithMask(nn.Linear(4, 2)), "Linear with in_shape None"),
    ],
)
def test_what_does_not_fit_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
