"""`check` accepts pairs that fit their data, and raises an error that names the cause otherwise."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import nn

import pyro_vae as pv
from pyro_vae.pairs.check import check_data
from tests.models.test_vae import small_vae


def test_the_table_shows_both_programs():
    x = (torch.rand(8, 1, 4, 4) < 0.5).float()
    table = small_vae().check(x)
    assert table.model["z"].event_shape == table.guide["z"].event_shape == (3,)
    assert table.model["x"].batch_shape == (8,)
    assert "Boolean" in str(table)


def parts(**changes):
    return small_vae().replace(**changes)


ONES = torch.ones(8, 1, 4, 4)


@pytest.mark.parametrize(
    ("vae", "x", "sentence"),
    [
        (small_vae(), 0.5 * ONES, "binarize"),
        (small_vae(), 0.5 * ONES, "ContinuousBernoulli"),
        (small_vae(), 200.0 * ONES, "x / 255"),
        (small_vae(), -ONES, r"\[-1, -1\].*outside the likelihood's support Boolean"),
        (small_vae(), math.nan * ONES, "NaN"),
        (small_vae(), math.inf * ONES, "infinite"),
        (small_vae(), ONES.byte(), "dtype torch.uint8; floating point is expected"),
        (small_vae(), ONES[:0], "at least one datum"),
        (small_vae(), ONES[:, :, :3], r"the guide fails on x of shape \(8, 1, 3, 4\)"),
        (small_vae(), ONES.double(), "float64"),
        (small_vae(), "digits", "torch tensor, got str"),
        (
            parts(prior=pv.priors.StandardNormal(2)),
            ONES,
            r"'z' has event shape \(2,\) in the model's prior and \(3,\) in the guide",
        ),
        (
            parts(likelihood=pv.likelihoods.Bernoulli(pv.networks.MLP(5, [], (1, 4, 4)))),
            ONES,
            r"the model fails.*\(\*batch, 5\), got \(8, 3\)",
        ),
        (
            parts(likelihood=pv.likelihoods.Bernoulli(pv.networks.MLP(3, [], (4, 4)))),
            ONES,
            r"has shape \(1, 4, 4\), but the likelihood describes one of shape \(4, 4\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(vae, x, sentence):
    with pytest.raises(pv.PairError, match=sentence):
        vae.check(x)


GUIDE = pv.guides.DiagonalNormal(pv.networks.MLP(4, [], 4))


def test_parts_refuse_sizes_that_cannot_be():
    with pytest.raises(ValueError, match="latent_dim must be a whole number of at least 1, got 0"):
        pv.priors.StandardNormal(0)
    with pytest.raises(ValueError, match=r"hidden must be .* whole number of at least 1, got"):
        pv.networks.MLP(3, [0], 4)
    with pytest.raises(ValueError, match=r"activation must be .*'tanh', got 'tan'"):
        pv.networks.MLP(3, [4], 4, activation="tan")
    with pytest.raises(ValueError, match=r"output is \(2 \* latent_dim,\)"):
        pv.guides.DiagonalNormal(pv.networks.MLP(4, [], 5))
    with pytest.raises(ValueError, match="output_bias has shape"):
        pv.networks.MLP(3, [], (4, 4), output_bias=torch.zeros(3))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "build",
    [
        lambda v: pv.networks.MLP(3, [], 4, output_bias=v),
        lambda v: pv.priors.MixtureOfGaussians(4, 1, locs=v[None]),
        lambda v: pv.priors.VampPrior(GUIDE, 1, 4, pseudo_inputs=v[None]),
        lambda v: pv.priors.VampPrior(GUIDE, 1, 4, bounds=None, pseudo_inputs=v[None]),
    ],
)
def test_parts_refuse_initial_values_that_are_not_finite(build, value):
    values = torch.full((4,), 0.5)
    build(values)
    values[1] = value
    with pytest.raises(pv.ArgumentError, match=r"has 1 values that are NaN or infinite"):
        build(values)


@pytest.mark.parametrize("name", ["shift", "unit"])
def test_a_wrong_entry_of_a_tensor_is_shown(name):
    values = torch.tensor([1.0, torch.nan, 1.0])
    with pytest.raises(pv.ArgumentError, match=rf"{name} must be .* entry 1 is a Tensor of nan"):
        pv.likelihoods.Normal(pv.networks.MLP(2, [], 3), **{name: values})


# -- pairs of plain functions ----------------------------------------------------------------------

X = torch.randn(8, 4)


def pair(prior, posterior, likelihood=None, infer=None):
    """Return a pair of functions with one latent w in the plate "data"."""

    def model(x):
        with pyro.plate("data", len(x)):
            w = pyro.sample("w", prior(x), infer=infer)
            if likelihood is None:
                pyro.sample("x", dist.Normal(x.new_zeros(4), 1.0).to_event(1), obs=x)
            else:
                pyro.sample("x", likelihood(w), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            if posterior is not None:
                pyro.sample("w", posterior(x), infer=infer)

    return pv.Pair(model, guide)


def normal(x):
    return dist.Normal(x[:, :3], 1.0).to_event(1)


def standard(x):
    return dist.Normal(torch.zeros(3), 1.0).to_event(1)


def dirichlet(x):
    return dist.Dirichlet(torch.ones(3))


def sphere(x):
    return dist.ProjectedNormal(torch.ones(3))


def positive(x):
    return dist.Gamma(torch.ones(3), 1.0).to_event(1)


def unit(x):
    return dist.Beta(torch.ones(3), 1.0).to_event(1)


def coin(x):
    return dist.Bernoulli(torch.full((3,), 0.5)).to_event(1)


def log_normal(x):
    return dist.LogNormal(x[:, :3], 1.0).to_event(1)


def softmaxed(x):
    return dist.TransformedDistribution(
        dist.Normal(x[:, :2], 1.0).to_event(1), [dist.transforms.StickBreakingTransform()]
    )


def point(x):
    return dist.Delta(x[:, :3].exp(), event_dim=1)


@pytest.mark.parametrize(
    ("prior", "posterior"),
    [
        (standard, normal),
        (standard, log_normal),  # narrower than the prior: allowed
        (dirichlet, dirichlet),
        (dirichlet, softmaxed),
        (positive, log_normal),
        (positive, point),
        (unit, unit),
        (sphere, sphere),
        (coin, coin),
    ],
)
def test_guides_on_the_prior_s_support_pass(prior, posterior):
    assert pv.check(pair(prior, posterior), X).guide["w"].event_shape == (3,)


@pytest.mark.parametrize(
    ("prior", "posterior", "sentence"),
    [
        (
            dirichlet,
            normal,
            "'w' lies on Simplex in the model's prior, a Dirichlet, but the guide's Normal has "
            "support Real: give the guide a distribution on Simplex, such as Dirichlet",
        ),
        (standard, softmaxed, "'w' lies on Real .* such as Normal"),
        (positive, normal, "'w' lies on GreaterThan.*such as LogNormal or Gamma"),
        (unit, log_normal, "'w' lies on Interval.*such as Beta"),
        (sphere, normal, "'w' lies on Sphere.*such as ProjectedNormal"),
        (standard, coin, "'w' lies on Real.*the guide's Bernoulli has support Boolean"),
        (coin, normal, "'w' lies on Boolean.*the guide's Normal has support Real"),
        (standard, None, "the model draws the latent 'w', the guide does not: it would silently"),
    ],
)
def test_what_the_guide_lacks_is_named(prior, posterior, sentence):
    with pytest.raises(pv.PairError, match=sentence):
        pv.check(pair(prior, posterior), X)


def test_a_latent_of_the_guide_alone_is_named():
    both = pair(standard, normal)

    def guide(x, infer=None):
        both.guide(x)
        pyro.sample("extra", dist.Normal(0.0, 1.0), infer=infer)

    with pytest.raises(pv.PairError, match=r"the guide draws the latent 'extra', .*is_auxiliary"):
        pv.check(pv.Pair(both.model, guide), X)
    helper = pv.Pair(both.model, lambda x: guide(x, {"is_auxiliary": True}))
    with pytest.raises(pv.PairError, match=r"auxiliary variable 'extra', .* do not determine"):
        pv.check(helper, X)


def test_missing_events_and_plates_are_named():
    unevented = pair(lambda x: dist.Normal(torch.zeros(3), 1.0), normal)
    with pytest.raises(pv.PairError, match=r"the model fails.*Shape mismatch.*\.to_event\(\)"):
        pv.check(unevented, X)
    with pytest.raises(pv.PairError, match=r"the guide fails.*Shape mismatch.*\.to_event\(\)"):
        pv.check(pair(standard, lambda x: dist.Normal(x[:, :3], 1.0)), X)
    with pytest.raises(pv.PairError, match=r"event shape \(3,\) in the model's.*\(\) in the guide"):
        pv.check(pair(standard, lambda x: dist.Normal(x[:, 0], 1.0)), X)
    wide = pair(standard, normal, lambda w: dist.Normal(w.new_zeros(8, 4), 1.0))
    with pytest.raises(pv.PairError, match=r"site x dim -1, 8 vs 4.*\.to_event\(\)"):
        pv.check(wide, X)

    def unplated(x):
        pyro.sample("w", normal(x))
        pyro.sample("x", dist.Normal(x, 1.0).to_event(1), obs=x)

    with pytest.raises(pv.PairError, match=r"'w' of the model has batch shape \(8,\).*pyro\.plate"):
        pv.check(pv.Pair(unplated, lambda x: pyro.sample("w", normal(x))), X)

    def one_event(x):
        pyro.sample("x", dist.Normal(torch.zeros(8, 4), 1.0).to_event(2), obs=x)

    with pytest.raises(pv.PairError, match=r"no observed site \(x\) is in a plate over the 8"):
        pv.check(pv.Pair(one_event, lambda x: None), X)
    with pytest.raises(pv.PairError, match="the model has no observed site"):
        pv.check(pv.Pair(lambda x: None, lambda x: None), X)


def test_a_latent_shared_by_all_data_may_stand_outside_the_plate():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("loc", dist.Normal(torch.zeros(4), 0.5).to_event(1))

    assert pv.check(pv.Pair(model, guide), X).model["loc"].batch_shape == ()


def test_what_the_decoder_says_of_x_is_compared_with_x():
    short = pair(standard, normal, lambda w: dist.Normal(w, 1.0).to_event(1))
    with pytest.raises(pv.PairError, match=r"has shape \(4,\), but the likelihood.*\(3,\): give"):
        pv.check(short, X)
    counts = pair(standard, normal, lambda w: dist.Poisson(w.new_ones(8, 4)).to_event(1))
    with pytest.raises(pv.PairError, match="outside the likelihood's support IntegerGreaterThan"):
        pv.check(counts, X)


def test_what_is_masked_out_may_be_anything():
    def masked(x):
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=x[:, 0] >= 0):
            pyro.sample("x", dist.Exponential(x.new_ones(4)).to_event(1), obs=x)

    some = pv.Pair(masked, lambda x: None)
    x = X.abs()
    x[3] = -1
    pv.check(some, x)
    x[3, 0] = 1
    with pytest.raises(pv.PairError, match=r"first at datum 3.*outside the likelihood's support"):
        pv.check(some, x)


@pytest.mark.parametrize(
    "objective",
    [
        TraceMeanField_ELBO(),
        pv.objectives.ImportanceWeighted(3),
        pv.objectives.StickingTheLanding(),
        pv.objectives.FreeBits(1.0),
        pv.objectives.Beta(1.0, pv.objectives.StickingTheLanding()),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_an_objective_that_needs_reparameterized_draws_is_named(objective):
    name = type(objective).__name__
    with pytest.raises(pv.PairError, match=f"{name} needs reparameterized samples.*Bernoulli for"):
        pv.check(pair(coin, coin), X, objective=objective)
    with pytest.raises(pv.PairError, match="needs reparameterized samples"):
        pv.fit(pair(coin, coin), X, objective=objective)
    pv.check(pair(standard, normal), X, objective=objective)
    pv.check(pair(coin, coin), X, objective=Trace_ELBO())


def test_enumeration_is_the_objective_s_to_do():
    def fair(x):
        return dist.Bernoulli(torch.tensor(0.5))

    marked = pair(fair, fair, infer={"enumerate": "parallel"})
    with pytest.raises(pv.PairError, match="'w' is marked for enumeration, but Trace_ELBO does"):
        pv.check(marked, X, objective=Trace_ELBO())
    in_the_model = pair(fair, None, infer={"enumerate": "parallel"})
    table = pv.check(in_the_model, X, objective=TraceEnum_ELBO(max_plate_nesting=1))
    assert "enumerated" in str(table)


@pytest.mark.parametrize(
    "score",
    [
        lambda pair: pv.evaluate(pair, X, num_samples=2),
        lambda pair: pv.from_pyro_svi(pair.model, pair.guide, model_args=(X,), num_samples=2),
        lambda pair: pv.mcmc_draws(pair, X, num_samples=2),
        lambda pair: pv.fit(
            pair,
            X,
            validation=X,
            epochs=1,
            batch_size=5,
            objective=TraceEnum_ELBO(max_plate_nesting=1),
        ),
    ],
)
def test_what_is_enumerated_in_the_model_alone_has_no_log_weight(score):
    def fair(x):
        return dist.Bernoulli(torch.tensor(0.5))

    sizes = []

    def recorded(x):
        sizes.append(len(x))
        in_the_model.guide(x)

    in_the_model = pair(fair, None, infer={"enumerate": "parallel"})
    with pytest.raises(pv.PairError, match="'w' is enumerated in the model and absent from the g"):
        score(pv.Pair(in_the_model.model, recorded))
    assert 5 not in sizes  # no training step ran


def test_what_goes_with_x_has_its_rows():
    both = pair(standard, normal)
    labelled = pv.Pair(lambda x, y: both.model(x), lambda x, y: both.guide(x))
    pv.check(labelled, (X, torch.zeros(8)))
    with pytest.raises(pv.PairError, match=r"x has 8 data, .* shape \(3,\): give one row"):
        pv.check(labelled, (X, torch.zeros(3)))
    with pytest.raises(ValueError, match=r"context has shape \(3,\): expected one row"):
        pv.fit(labelled, (X, torch.zeros(3)))


def test_check_changes_nothing():
    vae = small_vae()
    before, state = [p.clone() for p in vae.parameters()], torch.get_rng_state()
    vae.check(ONES)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))
    assert all(p.grad is None for p in vae.parameters())


def test_data_are_checked_without_touching_running_statistics():
    class Standardizing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4))

        def forward(self, x):
            return self.layers(x)

    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(pv.networks.MLP(2, [], 3)),
        pv.guides.DiagonalNormal(Standardizing()),
    )
    # The programs run on a single datum, which has no batch statistics.
    check_data(vae, pv.data.as_dataset(torch.randn(20, 3)))
    _, variance, count = vae.guide.buffers()
    assert torch.equal(variance, torch.ones(3))
    assert count == 0
    assert vae.guide.training
