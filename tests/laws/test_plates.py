"""The plate over the data is found by name, for plates and batches of any size."""

import functools
import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_vae as pv
from pyro_vae.objectives.free_bits import FreeBits
from pyro_vae.objectives.importance_weighted import ImportanceWeighted
from pyro_vae.objectives.nats_per_datum import PerDatum, per_datum
from pyro_vae.pairs.pair import PairError
from pyro_vae.pairs.plates import data_plates_of

N = 6
ZERO = torch.zeros((), dtype=torch.float64)
frozen = functools.partial(torch.optim.SGD, lr=0.0)


def data(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def as_events(x, name, genes, size):
    """Observe x with one event per datum."""
    w, _ = genes()
    with pyro.plate(name, size, subsample_size=len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=x)


def in_two_plates(x, name, genes, size):
    """Observe x in the plate over the data and in another plate over the features."""
    w, _ = genes()
    with (
        pyro.plate(name, size, subsample_size=len(x), dim=-2),
        pyro.plate("entries", x.shape[1], dim=-1),
    ):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def in_genes(x, name, genes, size):
    """Observe x in an outer plate over the data and in the plate of the global latents."""
    w, plate = genes()
    with (
        plate,
        pyro.plate(name, size, subsample_size=len(x), dim=-2),
    ):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


class GlobalMeans:
    """w_k ~ N(0, s^2) and x_nk ~ N(w_k, 1) for k = 1..K. The guide is the exact posterior."""

    def __init__(self, x, observe, name="data", size=None, sd=0.5):
        self.observe, self.name, self.size, self.sd = observe, name, size, sd
        precision = len(x) + sd**-2
        self.loc, self.scale = x.sum(0) / precision, torch.tensor(precision).double() ** -0.5
        covariance = torch.eye(len(x)).double() + sd**2
        self.evidence = dist.MultivariateNormal(ZERO.expand(len(x)), covariance).log_prob(x.T).sum()

    def genes(self, loc, scale):
        plate = pyro.plate("genes", len(self.loc), dim=-1)
        with plate:
            return pyro.sample("w", dist.Normal(loc, scale)), plate

    def model(self, x):
        genes = functools.partial(self.genes, ZERO, self.sd)
        self.observe(x, self.name, genes, self.size or len(x))

    def guide(self, x):
        self.genes(self.loc, self.scale)


class Recorded(Trace_ELBO):
    """Records the size of the batch and the scales of the sites at each step."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def _get_trace(self, model, guide, args, kwargs):
        traces = super()._get_trace(model, guide, args, kwargs)
        nodes = [trace.nodes for trace in traces]
        scales = {(role, name): float(sites[name]["scale"])
                  for role, sites in zip("pq", nodes, strict=True)
                  for name in sites if sites[name]["type"] == "sample"}  # fmt: skip
        self.steps.append((len(args[0]), scales))
        return traces


@pytest.mark.thinned(5)
@pytest.mark.parametrize("subsampled", [False, True])
@pytest.mark.parametrize("name", ["data", "people"])
@pytest.mark.parametrize("observe", [as_events, in_two_plates, in_genes])
def test_global_sites_weigh_1_over_n_and_data_1_over_m(observe, name, subsampled):
    """For plates and batches of every size, with a shorter last batch."""
    for num_genes, batch_size in itertools.product(range(1, N + 1), repeat=2):
        x = data(N, num_genes)
        pair = GlobalMeans(x, observe, name, N if subsampled else None)
        recorded = Recorded()
        pv.fit(pair, x, epochs=1, batch_size=batch_size, objective=recorded, optimizer=frozen)
        rest = [N % batch_size] if N % batch_size else []
        assert [m for m, _ in recorded.steps] == [batch_size] * (N // batch_size) + rest
        for m, scales in recorded.steps:
            expected = {("p", "w"): 1 / N, ("q", "w"): 1 / N, ("p", "x"): 1 / m}
            assert scales == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["data", "people"])
@pytest.mark.parametrize("observe", [as_events, in_two_plates, in_genes])
def test_the_whole_data_give_the_exact_evidence(observe, name):
    """With the exact posterior every sample has the same weight."""
    for num_genes in range(1, N + 1):
        x = data(N, num_genes)
        pair = GlobalMeans(x, observe, name)
        fit = pv.fit(pair, x, epochs=1, batch_size=N, optimizer=frozen)
        assert fit.history[0]["train_elbo"] == pytest.approx(pair.evidence.item() / N, abs=1e-9)


class TrainedGuide(nn.Module):
    def __init__(self, num_genes):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(num_genes).double())
        self.log_scale = nn.Parameter(torch.full((num_genes,), -3.0).double())

    def forward(self, x):
        pyro.module("guide", self)
        with pyro.plate("genes", len(self.loc), dim=-1):
            pyro.sample("w", dist.Normal(self.loc, self.log_scale.exp()))


@pytest.mark.parametrize("batch_size", [9, 10, 11])
def test_fit_finds_the_posterior_of_as_many_globals_as_data_in_a_batch(batch_size):
    torch.manual_seed(0)
    x = data(100, 10) + 2
    pair = GlobalMeans(x, in_two_plates, sd=0.1)
    guide = TrainedGuide(10)
    pv.fit(pv.Pair(pair.model, guide), x, epochs=60, batch_size=batch_size, learning_rate=0.03)
    assert (guide.loc - pair.loc).mean().abs().item() < 0.5 * pair.scale.item()
    assert guide.log_scale.exp().mean().item() == pytest.approx(pair.scale.item(), rel=0.25)


# -- local latents ---------------------------------------------------------------------------------


class Views:
    """z_nv ~ N(0, 1), x_nv ~ N(z_nv, 1) in a plate of V views around the plate over the data."""

    def __init__(self, name="data", guide_name=None, guide_sd=0.5**0.5):
        self.name, self.guide_name, self.guide_sd = name, guide_name or name, guide_sd

    def model(self, x):
        with pyro.plate("views", x.shape[1], dim=-2), pyro.plate(self.name, len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(ZERO, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

    def guide(self, x):
        with pyro.plate("views", x.shape[1], dim=-2), pyro.plate(self.guide_name, len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.T / 2, self.guide_sd))

    def evidence(self, x):
        return dist.Normal(ZERO, 2**0.5).log_prob(x).sum(1)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", ["data", "people"])
@pytest.mark.parametrize("num_views", [1, 2, 3, 4])
def test_scores_belong_to_the_rows_of_the_data(num_views, name):
    pair = Views(name)
    for num_data in (2, 3, 4, 7):
        x = data(num_data, num_views)
        exact = pair.evidence(x).numpy()
        assert pv.check(pair, x).data_plates == (name,)
        scores = pv.evaluate(pair, x, num_samples=2)
        np.testing.assert_allclose(scores.log_likelihood, exact, atol=1e-5)
        tree = pv.from_pyro_svi(pair.model, pair.guide, model_args=(x,), num_samples=2)
        weights = tree["sample_stats/log_weight"]
        assert weights.dims == ("chain", "draw", name)
        np.testing.assert_allclose(weights[0, 0], exact, atol=1e-9)


def test_annealed_importance_and_the_card_score_the_rows_of_the_data():
    pair, x = Views("people"), data(6, 2)
    exact = pair.evidence(x).numpy()
    annealed = pv.ais(pair, x, num_temperatures=200)
    np.testing.assert_allclose(annealed.lower, exact, atol=0.3)
    card = pv.diagnose(pair, x, num_samples=200)
    np.testing.assert_allclose(card.per_datum["log_likelihood"], exact, atol=1e-5)


OBJECTIVES = {
    "elbo": Trace_ELBO,
    "importance-weighted": lambda: ImportanceWeighted(3),
    "doubly reparameterized": lambda: ImportanceWeighted(3, doubly_reparameterized=True),
}


@pytest.mark.thinned(4)
@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize(("name", "guide_name"), [("data",) * 2, ("obs",) * 2, ("data", "rows")])
def test_objectives_are_exact_in_an_outer_plate_of_any_size(make, name, guide_name):
    pair = Views(name, guide_name)
    for num_views, batch_size in itertools.product([1, 2, 3, 4], [1, 2, 3, 4]):
        x = data(4, num_views)
        # Batches of different sizes are weighted by their number of data.
        fit = pv.fit(pair, x, epochs=1, batch_size=batch_size, objective=make(), optimizer=frozen)
        curve = fit.history[0].get("train_elbo", fit.history[0].get("train_objective"))
        assert curve == pytest.approx(pair.evidence(x).mean().item(), abs=1e-6)


@pytest.mark.parametrize("num_views", [1, 2, 3, 4])
def test_free_nats_are_for_a_datum_in_an_outer_plate_of_any_size(num_views):
    """A threshold above the KL divergence of the latent replaces it."""
    x = data(3, num_views)
    for name in ("data", "people"):
        pair = Views(name, guide_sd=1e-9)  # for a reconstruction without noise
        reconstruction = dist.Normal(x / 2, 1.0).log_prob(x).sum(1).mean().item()
        fit = pv.fit(pair, x, epochs=1, objective=FreeBits(1e3), optimizer=frozen)
        value = fit.history[0]["train_objective"]
        assert value == pytest.approx(reconstruction - 1e3, abs=1e-6)


@pytest.mark.parametrize("kind", [lambda: ImportanceWeighted(2), lambda: FreeBits(1e3)])
def test_stock_svi_takes_the_plate_called_data_and_refuses_to_guess(kind):
    pair, x = Views(guide_sd=1e-9), data(3, 3)
    objective = kind()
    svi = pyro.infer.SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.0}), objective)
    loss = svi.evaluate_loss(x)
    if isinstance(objective, FreeBits):
        reconstruction = dist.Normal(x / 2, 1.0).log_prob(x).sum().item()
        assert loss == pytest.approx(3 * 1e3 - reconstruction, abs=1e-6)
    other = Views("people")
    with pytest.raises(PairError, match=r"plates \['people', 'views'\].*call that one 'data'"):
        kind().loss(other.model, other.guide, x)


# -- finding the plate -----------------------------------------------------------------------------


def test_per_datum_finds_the_plates_of_one_program_by_itself():
    x = data(4, 4)
    for name in ("data", "people"):
        pair = GlobalMeans(x, in_genes, name)
        model, guide = per_datum(pair.model, 20), per_datum(pair.guide, 20)
        assert poutine.trace(model).get_trace(x).nodes["w"]["scale"] == 1 / 20
        assert poutine.trace(model).get_trace(x).nodes["x"]["scale"] == 1 / 4
        assert poutine.trace(guide).get_trace(x).nodes["w"]["scale"] == 1 / 20
        views = Views(name)
        for program in (views.model, views.guide):
            for scaled in (per_datum(program, 20), per_datum(program, 20, name)):
                for rows in (4, 3):
                    assert poutine.trace(scaled).get_trace(x[:rows]).nodes["z"]["scale"] == 1 / rows


def test_a_handler_with_a_name_compares_no_sizes():
    pair, x = Views("people"), data(3, 3)
    with PerDatum(9, "people"):
        assert poutine.trace(pair.guide).get_trace(x).nodes["z"]["scale"] == 1 / 3
    with PerDatum(9, "data"):
        assert poutine.trace(pair.guide).get_trace(x).nodes["z"]["scale"] == 1 / 9


def test_a_penalty_outside_all_plates_does_not_hide_the_plate():
    def model(x):
        w = pyro.sample("w", dist.Normal(ZERO, 1.0))
        pyro.factor("penalty", -(w**2))
        with pyro.plate("people", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    assert data_plates_of(model, data(5)) == ("people",)


def test_data_in_a_loop():
    def model(x):
        with pyro.plate("time", x.shape[1], dim=-1):
            w = pyro.sample("w", dist.Normal(ZERO, 1.0))
            for n in pyro.plate("people", len(x)):
                pyro.sample(f"x_{n}", dist.Normal(w, 1.0), obs=x[n])

    assert data_plates_of(model, data(5, 5)) == ("people",)


def test_two_plates_that_both_have_one_entry_for_each_row_are_refused():
    def model(x):
        w = pyro.sample("w", dist.Normal(ZERO, 1.0))
        with pyro.plate("ego", len(x), dim=-2), pyro.plate("alter", len(x), dim=-1):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x[:, : len(x)])

    def guide(x):
        pyro.sample("w", dist.Normal(ZERO, 1.0))

    x = data(5, 5)
    sentence = r"plates \['alter', 'ego'\].*call that one 'data'"
    for attempt in (
        lambda: pv.check(pv.Pair(model, guide), x),
        lambda: pv.fit(pv.Pair(model, guide), x),
        lambda: pv.from_pyro_svi(model, guide, model_args=(x,), num_samples=2),
        lambda: per_datum(model, 5)(x),
    ):
        with pytest.raises(PairError, match=sentence):
            attempt()
    tree = pv.from_pyro_svi(model, guide, model_args=(x,), num_samples=2, obs_plate="ego")
    assert tree["log_likelihood/x"].dims == ("chain", "draw", "ego", "alter")


def test_finding_the_plates_leaves_no_trace():
    x = data(4, 4)
    pair = GlobalMeans(x, in_genes, "people")

    def model(x):
        pyro.param("unused", torch.zeros(len(x)))
        pair.model(x)

    guide = AutoNormal(model)
    before = torch.get_rng_state()
    for program in (model, guide):
        assert data_plates_of(program, x) == ("people",)
    assert torch.equal(torch.get_rng_state(), before)
    assert not list(pyro.get_param_store())
    assert guide.prototype_trace is None


def test_an_auto_guide_has_the_plates_of_its_model():
    for num_genes, batch_size in itertools.product([2, 3, 4], repeat=2):
        x = data(8, num_genes)
        pair = GlobalMeans(x, in_two_plates, "people")
        pyro.clear_param_store()
        recorded = Recorded()
        guide = AutoNormal(poutine.block(pair.model, hide=["x"]))
        pv.fit(
            pv.Pair(pair.model, guide), x, epochs=1, batch_size=batch_size, objective=recorded,
            optimizer=frozen,
        )  # fmt: skip
        for m, scales in recorded.steps:
            assert scales["q", "w"] == scales["p", "w"] == pytest.approx(1 / 8)
            assert scales["p", "x"] == pytest.approx(1 / m)


def test_a_compiled_step_weighs_as_an_eager_one():
    losses = []
    x = data(12, 4)
    pair = GlobalMeans(x, in_genes, "people")
    for compile in (False, True):
        pyro.clear_param_store()
        guide = TrainedGuide(4)
        programs = per_datum(pair.model, 60), per_datum(guide, 60)
        svi = pv.SVI(*programs, functools.partial(torch.optim.SGD, lr=0.1), compile=compile)
        torch.manual_seed(0)
        losses.append([svi.step(batch) for batch in [*x.split(4)] * 4])
    assert svi.num_compiled_steps > 0
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)
