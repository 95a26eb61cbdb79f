"""`fit` and its step: equal to stock SVI, repeatable, and in order when something goes wrong."""

import functools
import logging
import math
import os
import signal

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import Categorical, Normal, constraints
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import nn

import pyro_vae as pv
from pyro_vae.objectives.nats_per_datum import per_datum
from tests.models.test_vae import small_vae
from tests.support.linear_gaussian import MeanFieldPosterior, linear_vae
from tests.support.pairs import EXACT_PAIRS, LOG_SHARES, MEANS


def binary(num_data, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(num_data, 1, 4, 4, generator=generator) < 0.3).float()


def test_a_step_is_stock_svi_s():
    x = binary(32)
    losses, weights = [], []
    for svi_class, optim in [
        (pyro.infer.SVI, pyro.optim.Adam({"lr": 1e-2})),
        (pv.SVI, pyro.optim.Adam({"lr": 1e-2})),
        (pv.SVI, functools.partial(torch.optim.Adam, lr=1e-2)),
    ]:
        torch.manual_seed(1)
        vae = small_vae().double()
        svi = svi_class(vae.model, vae.guide, optim, loss=Trace_ELBO())
        steps = [svi.step(x.double()) for _ in range(20)]
        losses.append([*steps, svi.evaluate_loss(x.double())])
        weights.append(torch.cat([p.flatten() for p in vae.parameters()]))
    for other in (1, 2):
        np.testing.assert_allclose(losses[other], losses[0], rtol=1e-12)
        torch.testing.assert_close(weights[other], weights[0], rtol=1e-12, atol=1e-12)


def test_a_parameter_that_a_step_does_not_use_moves_as_stock_s_does():
    def model(x, use):
        a, b = (pyro.param(name, torch.tensor(0.0, dtype=torch.float64)) for name in "ab")
        with pyro.plate("data", len(x)):
            pyro.sample("x", pyro.distributions.Normal(a + b if use else a, 1.0), obs=x)

    x, ends = torch.tensor([1.0, 2.0], dtype=torch.float64), []
    for svi_class in (pyro.infer.SVI, pv.SVI):
        with pyro.get_param_store().scope():
            optim = pyro.optim.Adam({"lr": 0.1})
            svi = svi_class(model, lambda x, use: None, optim, loss=Trace_ELBO())
            for step in range(6):
                svi.step(x, step % 2 == 0)
            ends.append((pyro.param("a").item(), pyro.param("b").item()))
    assert ends[1] == pytest.approx(ends[0], abs=1e-12)


def test_svi_takes_stock_programs_with_the_parameter_store():
    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", pyro.distributions.Normal(loc, 1.0), obs=x)

    with pyro.get_param_store().scope() as store:
        svi = pv.SVI(
            model, lambda x: None, functools.partial(torch.optim.SGD, lr=0.02), Trace_ELBO()
        )
        for _ in range(200):
            svi.step(torch.tensor([1.0, 2.0, 6.0]))
        assert pyro.param("loc").item() == pytest.approx(3.0, abs=1e-4)
    assert "loc" not in pyro.get_param_store()
    assert store


@pytest.mark.parametrize("infer", [{}, {"enumerate": "sequential"}])
def test_fit_sums_over_discrete_latents_as_they_are_marked_or_at_once(infer):
    pair, weights = EXACT_PAIRS["discrete"](), torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
    calls = []

    def guide(x):
        calls.append(x)
        q = Categorical(pyro.param("q", weights, constraints.simplex))
        with pyro.plate("data", len(x)):
            pyro.sample("k", q, infer=infer)

    frozen = functools.partial(torch.optim.SGD, lr=0.0)
    settings = {"objective": TraceEnum_ELBO(), "optimizer": frozen}
    with pyro.get_param_store().scope():
        pv.fit(pv.Pair(pair.model, guide), *pair.args, epochs=1, **settings)
        once = len(calls)
        fit = pv.fit(pv.Pair(pair.model, guide), *pair.args, epochs=3, **settings)
    one_by_one = len(calls) - 2 * once > 2  # two more epochs of one step
    assert one_by_one == bool(infer)
    log_p = torch.stack(
        [LOG_SHARES[k] + Normal(MEANS[k], 1.0).log_prob(*pair.args) for k in range(3)], dim=-1
    )
    torch.testing.assert_close(log_p.logsumexp(-1), pair.evidence)  # of all three
    bound = (weights * (log_p - weights.log())).sum(-1).mean().item()
    assert [entry["train_elbo"] for entry in fit.history] == pytest.approx([bound] * 3, abs=1e-12)


def test_fit_sums_over_discrete_latents_of_networks_that_accept_one_batch_dimension():
    torch.manual_seed(0)
    x = (torch.rand(12, 1, 4, 4) < 0.3).float()
    decoder = nn.Sequential(
        nn.Linear(3, 8), nn.Unflatten(1, (2, 2, 2)), nn.ConvTranspose2d(2, 1, 2, stride=2)
    )
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    vae = pv.VAE(
        pv.priors.Categorical(3),
        pv.likelihoods.Bernoulli(decoder),
        pv.guides.Categorical(encoder),
    )
    with torch.no_grad():
        q = vae.parts["guide"](x).probs
        log_p = [
            vae.parts["likelihood"](code.expand(12, 3)).log_prob(x) - math.log(3)
            for code in torch.eye(3)
        ]
        bound = (q * (torch.stack(log_p, 1) - q.log())).sum(1).mean().item()
    frozen = functools.partial(torch.optim.SGD, lr=0.0)
    settings = {"objective": TraceEnum_ELBO(), "optimizer": frozen, "batch_size": 4}
    fit = pv.fit(vae, x, epochs=1, **settings)
    assert fit.history[0]["train_elbo"] == pytest.approx(bound, abs=1e-5)


@pytest.mark.parametrize(
    "objective",
    [
        None,
        pv.objectives.ImportanceWeighted(5),
        pv.objectives.Beta(1.0, pv.objectives.StickingTheLanding(5)),
        TraceMeanField_ELBO(5, vectorize_particles=True),
        TraceEnum_ELBO(strict_enumeration_warning=False),
    ],
)
def test_fit_knows_how_plates_are_nested(objective, monkeypatch):
    monkeypatch.delattr(ELBO, "_guess_max_plate_nesting")  # which runs the programs and says so
    vae, x = linear_vae(MeanFieldPosterior)
    pv.fit(vae, x, epochs=1, objective=objective, num_particles=1 if objective else 5)


@pytest.mark.parametrize("first", ["step", "evaluate_loss"])
def test_svi_finds_the_plates_as_pyro_does_but_says_nothing(first, caplog):
    losses = []
    for kind in (pyro.infer.SVI, pv.SVI):
        torch.manual_seed(0)
        vae, x = linear_vae(MeanFieldPosterior)
        bound = Trace_ELBO(5, vectorize_particles=True)
        svi = kind(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), bound)
        with caplog.at_level(logging.INFO):
            losses.append([getattr(svi, first)(x), svi.step(x)])
        assert bound.max_plate_nesting == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert caplog.text.count("Guessed") <= 1  # by Pyro's own


def test_the_minibatch_scale_is_unbiased_for_local_and_global_latents():
    """Eq. 8: over all minibatches of a partition, per-datum objectives average to the whole."""
    x = torch.randn(12, dtype=torch.float64)

    def model(x, plate=lambda m: pyro.plate("data", m)):
        w = pyro.sample("w", pyro.distributions.Normal(torch.zeros((), dtype=x.dtype), 1.0))
        with plate(len(x)):
            z = pyro.sample("z", pyro.distributions.Normal(w, 1.0))
            pyro.sample("x", pyro.distributions.Normal(z, 1.0), obs=x)

    subsampled = functools.partial(
        model, plate=lambda m: pyro.plate("data", 12, subsample=torch.arange(m))
    )
    values = {"w": torch.tensor(0.3, dtype=torch.float64)}

    def objective(program, batch):
        fixed = poutine.condition(program, {**values, "z": 0.5 * batch})
        return poutine.trace(fixed).get_trace(batch).log_prob_sum()

    whole = objective(model, x) / 12
    for program in (model, subsampled):
        scaled = per_datum(program, num_data=12)
        parts = torch.stack([objective(scaled, batch) for batch in x.split(4)])
        torch.testing.assert_close(parts.mean(), whole, rtol=0, atol=1e-12)


def test_fit_is_in_nats_per_datum_whatever_the_batch():
    vae, x = linear_vae()  # with the exact posterior each draw's weight is log p(x): no noise
    exact = vae.model.likelihood.marginal().log_prob(x).mean().item()
    frozen = functools.partial(torch.optim.SGD, lr=0.0)
    for batch_size in (7, 50):
        fit = pv.fit(vae, x, validation=x, epochs=1, batch_size=batch_size, optimizer=frozen)
        assert fit.history[0]["train_elbo"] == pytest.approx(exact, abs=1e-9)
        assert fit.history[0]["validation_elbo"] == pytest.approx(exact, abs=1e-9)


def test_the_same_seed_gives_the_same_run_and_leaves_the_random_state():
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(0)
        vae = small_vae()
        before = torch.get_rng_state()
        fit = pv.fit(vae, binary(64), validation=binary(16, 1), epochs=3, batch_size=16, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        runs.append([(h["train_elbo"], h["validation_elbo"]) for h in fit.history])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_early_stopping_keeps_the_best_weights():
    vae = small_vae()
    validation = binary(64, 1)
    diverging = functools.partial(torch.optim.SGD, lr=30.0)
    fit = pv.fit(
        vae, binary(64), validation=validation, epochs=50, optimizer=diverging, patience=3, seed=1
    )
    elbos = [entry["validation_elbo"] for entry in fit.history]
    assert fit.stopped == "early stopping"
    assert fit.best["validation_elbo"] == max(elbos)
    assert len(elbos) == fit.best["epoch"] + 3
    again = pv.fit(vae, binary(64), validation=validation, epochs=1, seed=1,
                   optimizer=functools.partial(torch.optim.SGD, lr=0.0))  # fmt: skip
    assert again.history[0]["validation_elbo"] == fit.best["validation_elbo"]


def test_schedule_and_optimizer_are_the_user_s():
    rates = []

    def schedule(optimizer, total_steps):
        assert total_steps == 8
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rates.append(step) or 1 / (1 + step)
        )

    optimizer = functools.partial(torch.optim.Adagrad, lr=0.1)
    pv.fit(small_vae(), binary(64), epochs=2, batch_size=16, optimizer=optimizer, schedule=schedule)
    assert rates == list(range(8))


@pytest.mark.parametrize("is_made", [False, True])
def test_each_step_has_the_learning_rate_of_the_schedule(is_made):
    used, vae = [], small_vae()

    def adam(parameters):
        made = torch.optim.Adam(parameters, lr=0.1)
        made.register_step_pre_hook(lambda *_: used.append(made.param_groups[0]["lr"]))
        return made

    pv.fit(
        vae,
        binary(64),
        epochs=2,
        batch_size=16,
        optimizer=adam(vae.parameters()) if is_made else adam,
        schedule=lambda optimizer, _: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: i / 8),
    )
    assert used == pytest.approx([0.1 * i / 8 for i in range(8)])


@pytest.mark.parametrize(
    "schedule",
    [lambda optimizer, _: None, lambda o, _: torch.optim.lr_scheduler.ReduceLROnPlateau(o)],
)
def test_a_schedule_that_cannot_be_stepped_is_refused_before_training(schedule):
    vae = small_vae()
    before = nn.utils.parameters_to_vector(vae.parameters()).clone()
    with pytest.raises(ValueError, match="expected a learning rate schedule"):
        pv.fit(vae, binary(64), epochs=2, batch_size=16, schedule=schedule)
    assert torch.equal(before, nn.utils.parameters_to_vector(vae.parameters()))


def test_an_svi_says_what_each_step_does():
    vae = small_vae()
    optimizer = torch.optim.RMSprop(vae.parameters(), lr=1e-3)
    svi = pv.SVI(vae.model, vae.guide, optimizer, Trace_ELBO(num_particles=2))
    fit = pv.fit(svi, binary(64), epochs=1, batch_size=16)
    assert fit.settings["num_particles"] == 2
    assert optimizer.state
    with pytest.raises(ValueError, match="own objective"):
        pv.fit(svi, binary(64), num_particles=2)


def test_ctrl_c_ends_in_order_and_keeps_what_was_trained():
    vae = small_vae()
    before = [parameter.clone() for parameter in vae.parameters()]
    handler = signal.getsignal(signal.SIGINT)
    calls = []

    class Interrupting(Trace_ELBO):
        def loss_and_grads(self, *args, **kwargs):
            calls.append(None)
            if len(calls) == 6:
                os.kill(os.getpid(), signal.SIGINT)
            return super().loss_and_grads(*args, **kwargs)

    fit = pv.fit(vae, binary(64), epochs=9, batch_size=16, objective=Interrupting())
    assert fit.stopped == "interrupted"
    assert fit.num_steps == len(calls) == 6
    assert [entry["num_data"] for entry in fit.history] == [64, 32]
    assert all(not torch.equal(old, new) for old, new in zip(before, vae.parameters(), strict=True))
    assert signal.getsignal(signal.SIGINT) is handler


class Exploding(Trace_ELBO):
    """A bound that turns NaN at the third step."""

    calls = 0

    def loss_and_grads(self, *args, **kwargs):
        self.calls += 1
        loss = super().loss_and_grads(*args, **kwargs)
        return math.nan if self.calls == 3 else loss


def test_a_nan_names_the_step_and_keeps_the_last_good_weights():
    weights = {}
    for objective, steps in [(Trace_ELBO(), 2), (Exploding(), None)]:
        torch.manual_seed(2)
        vae = small_vae()
        if steps:
            pv.fit(vae, binary(32), epochs=1, batch_size=16, objective=objective)
        else:
            with pytest.raises(pv.TrainingError, match=r"step 3 \(epoch 2\), batch of 16 data"):
                pv.fit(vae, binary(32), epochs=9, batch_size=16, objective=objective)
        weights[type(objective)] = [parameter.clone() for parameter in vae.parameters()]
    for good, kept in zip(*weights.values(), strict=True):
        assert torch.equal(good, kept)


def test_a_nan_from_the_decoder_names_its_site():
    vae = small_vae()

    class Poisoned(Trace_ELBO):
        def loss_and_grads(self, model, guide, x):
            with torch.no_grad():
                vae.model.likelihood.decoder.layers[-1].bias[3] = math.nan
            return super().loss_and_grads(model, guide, x)

    with pytest.raises(pv.TrainingError, match="site 'x' of the model"):
        pv.fit(vae, binary(32), epochs=1, objective=Poisoned())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"batch_size": 2.5}, "batch_size must be"),
        ({"batch_size": "all"}, "batch_size must be"),
        ({"num_particles": -1}, "num_particles must be"),
        ({"patience": 0, "validation": binary(8)}, "patience must be"),
        ({"patience": 2}, "patience needs validation data"),
        ({"device": "cuda:99"}, "device must be an available torch device .*, got 'cuda:99'"),
        ({"device": "abacus"}, "device must be an available torch device .*, got 'abacus'"),
        ({"objective": Trace_ELBO(), "num_particles": 2}, "belongs to the objective"),
    ],
)
def test_bad_settings_are_refused_before_anything_changes(settings, sentence):
    vae = small_vae()
    before = [parameter.clone() for parameter in vae.parameters()]
    with pytest.raises(ValueError, match=sentence):
        pv.fit(vae, binary(32), **settings)
    assert all(torch.equal(old, new) for old, new in zip(before, vae.parameters(), strict=True))


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        pv.fit(small_vae(), binary(32), out=tmp_path / "file" / "run")


def test_bad_data_anywhere_is_refused_before_training():
    data = binary(400)
    data[333, 0, 2, 2] = 0.5
    with pytest.raises(pv.PairError, match=r"first at datum 333.*binarize"):
        pv.fit(small_vae(), data)
    data[333, 0, 2, 2] = math.nan
    with pytest.raises(pv.PairError, match="NaN"):
        pv.fit(small_vae(), data)
    with pytest.raises(ValueError, match="255"):
        pv.fit(small_vae(), (data * 255).nan_to_num().byte())


def test_evaluation_refuses_bad_input_and_repeats():
    vae = small_vae()
    with pytest.raises(ValueError, match=r"num_samples must be a whole number .*, got 0"):
        pv.evaluate(vae, binary(8), num_samples=0)
    first, second = (pv.evaluate(vae, binary(8), num_samples=40, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.log_likelihood, second.log_likelihood)
    assert first.khat.shape == first.elbo.shape == (8,)
    assert "K = 40" in str(first)
    assert "seed 5" in str(first)
