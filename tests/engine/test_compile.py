"""The compiled step gives what Pyro gives, or says that it does not compile."""

import functools
import gc
import random
import warnings
import weakref

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import (
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from pyro.optim import PyroLRScheduler
from torch import nn

import pyro_vae as pv
from pyro_vae.engine import compiled_step, compiler
from pyro_vae.engine.compiler import CompilationWarning
from pyro_vae.objectives.annealing import Beta, Linear
from pyro_vae.svi import SVI

D = torch.float64


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(D)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def graph_only(monkeypatch):
    """Run the graph itself, without the seconds that compiling it takes."""
    monkeypatch.setattr(compiled_step, "compile_graph", lambda graph, inputs: graph)


# -- programs, as Pyro's users write them ---------------------------------------------------------


def batches(shape=(6, 4), num=8):
    g = torch.Generator().manual_seed(0)
    return [((torch.rand(shape, generator=g) < 0.4).to(D),) for _ in range(num)]


def regression(guide):
    def model(x):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x[:, :3] @ weight, scale), obs=x[:, 3])

    return model, guide(model), batches()


def vae(batch_norm=False, discrete=False):
    encoder, decoder = nn.Linear(4, 4), nn.Linear(2, 4)
    if batch_norm:
        decoder = nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Linear(5, 4))

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            prior = dist.Bernoulli(x.new_full((2,), 0.5)) if discrete else dist.Normal(
                x.new_zeros(2), 1.0)  # fmt: skip
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, scale = encoder(x).chunk(2, -1)
            q = dist.Bernoulli(logits=loc) if discrete else dist.Normal(loc, scale.exp())
            pyro.sample("z", q.to_event(1))

    return model, guide, batches()


def mixture():
    @config_enumerate
    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x.sum(-1))

    return model, AutoDelta(poutine.block(model, expose=["weights", "locs"])), batches()


def joined(*values):
    batch = torch.broadcast_shapes(*[value.shape[:-1] for value in values])
    return torch.cat([value.expand(batch + value.shape[-1:]) for value in values], -1)


def semi_supervised():
    """SS-VAE: the label is enumerated in the guide where it is not observed."""
    encoder_y, encoder_z, decoder = nn.Linear(4, 3), nn.Linear(7, 4), nn.Linear(5, 4)

    def model(x, y=None):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(x.new_ones(3) / 3), obs=y)
            pyro.sample("x", dist.Bernoulli(logits=decoder(joined(z, y))).to_event(1), obs=x)

    @config_enumerate
    def guide(x, y=None):
        pyro.module("encoder_y", encoder_y)
        pyro.module("encoder_z", encoder_z)
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=encoder_y(x)))
            loc, scale = encoder_z(joined(x, y)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    labels = torch.eye(3, dtype=D)[torch.arange(6) % 3]
    return model, guide, [x if i % 4 else (*x, labels) for i, x in enumerate(batches(num=12))]


def subsampled():
    data = torch.linspace(-1, 1, 20, dtype=D)

    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 20, subsample_size=5) as index:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=data[index])

    def guide():
        loc = pyro.param("loc_loc", lambda: torch.tensor(0.1))
        scale = pyro.param("scale", lambda: torch.tensor(0.5), constraint=constraints.positive)
        pyro.sample("loc", dist.Normal(loc, scale))
        with pyro.plate("data", 20, subsample_size=5):
            pass

    return model, guide, [()] * 8


def deep_markov_model(length=3):
    rnn, combiner = nn.GRU(4, 5, batch_first=True), nn.Linear(7, 4)
    transition, emission = nn.Linear(2, 4), nn.Linear(2, 4)

    def model(x):
        pyro.module("transition", transition)
        pyro.module("emission", emission)
        z = x.new_zeros(len(x), 2)
        with pyro.plate("data", len(x)):
            for t in range(length):
                loc, scale = transition(z).chunk(2, -1)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, scale.exp()).to_event(1))
                p = dist.Bernoulli(logits=emission(z)).to_event(1)
                pyro.sample(f"x_{t}", p, obs=x[:, t])

    def guide(x):
        pyro.module("rnn", rnn)
        pyro.module("combiner", combiner)
        hidden, _ = rnn(x.flip(1))
        z = x.new_zeros(len(x), 2)
        with pyro.plate("data", len(x)):
            for t in range(length):
                loc, scale = combiner(torch.cat([z, hidden[:, -1 - t]], -1)).chunk(2, -1)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, scale.exp()).to_event(1))

    return model, guide, batches((6, length, 4))


PROGRAMS = {
    "AutoNormal": (lambda: regression(AutoNormal), Trace_ELBO),
    "AutoMultivariateNormal": (lambda: regression(AutoMultivariateNormal), Trace_ELBO),
    "vae": (vae, Trace_ELBO),
    "mean field": (vae, TraceMeanField_ELBO),
    "particles": (vae, lambda: Trace_ELBO(num_particles=3)),
    "vectorized": (vae, lambda: Trace_ELBO(num_particles=3, vectorize_particles=True)),
    "batch norm": (lambda: vae(batch_norm=True), Trace_ELBO),
    "score function": (lambda: vae(discrete=True), Trace_ELBO),
    "graph": (lambda: vae(discrete=True), TraceGraph_ELBO),
    "wake-sleep": (vae, lambda: ReweightedWakeSleep(num_particles=2)),
    "differentiable loss": (vae, lambda: Trace_ELBO().differentiable_loss),
    "mixture": (mixture, lambda: TraceEnum_ELBO(max_plate_nesting=1)),
    "semi-supervised": (
        semi_supervised,
        lambda: TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
    ),
    "subsampled": (subsampled, Trace_ELBO),
    "deep Markov model": (deep_markov_model, Trace_ELBO),
}


def run(svi_class, program, loss, optim=None, seed=1, **kwargs):
    """Train from seeded parameters; return the SVI, its losses and its parameters."""
    pyro.clear_param_store()
    torch.manual_seed(seed)
    model, guide, data = program()
    svi = svi_class(model, guide, optim or pyro.optim.Adam({"lr": 0.01}), loss(), **kwargs)
    losses = [svi.step(*args) for args in data]
    parameters = {k: v.detach().clone() for k, v in pyro.get_param_store().named_parameters()}
    return svi, losses, parameters


def assert_same(ours, stock, tolerance=1e-9):
    np.testing.assert_allclose(ours[1], stock[1], rtol=tolerance)
    assert ours[2].keys() == stock[2].keys()
    for name, expected in stock[2].items():
        torch.testing.assert_close(ours[2][name], expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.usefixtures("graph_only")
def test_equals_stock_pyro_step_by_step(name):
    program, loss = PROGRAMS[name]
    stock = run(pyro.infer.SVI, program, loss)
    ours = run(SVI, program, loss, compile=True)
    assert_same(ours, stock)
    assert ours[0].num_compiled_steps >= 6


@pytest.mark.parametrize("name", ["vae", "mixture"])
def test_compiled_equals_stock_pyro_step_by_step(name):
    program, loss = PROGRAMS[name]
    ours = run(SVI, program, loss, compile=True)
    assert_same(ours, run(pyro.infer.SVI, program, loss))
    assert ours[0].num_compiled_steps >= 6


def test_the_compiler_keeps_weight_decay_in_the_graph():
    """Fusing a product with a scaled sum, torch 2.14's compiler forgets the scale."""
    optim = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=0.1)
    ours, eager = train(optim, True), train(optim, False)
    assert_same(ours, eager)
    (program,) = ours[0]._compiler._programs.values()
    assert program.optimizers is not None


@pytest.mark.usefixtures("graph_only")
def test_an_annealed_beta_needs_no_other_program():
    def annealed():
        return Beta(Linear(6), Trace_ELBO())

    ours = run(SVI, vae, annealed, compile=True)
    assert_same(ours, run(pyro.infer.SVI, vae, annealed))
    assert ours[0].num_compiled_steps == 7
    assert ours[0].objective.num_steps == 8


@pytest.mark.usefixtures("graph_only")
def test_fit_compiles_and_gives_what_eager_gives():
    data = torch.rand(40, 4).bernoulli()
    fits = {}
    for compile in (True, False):
        torch.manual_seed(0)
        vae = pv.VAE(
            pv.priors.StandardNormal(2),
            pv.likelihoods.Bernoulli(pv.networks.MLP(2, [5], (4,))),
            pv.guides.DiagonalNormal(pv.networks.MLP((4,), [5], 4)),
        )
        fits[compile] = pv.fit(vae, data, epochs=3, batch_size=8, compile=compile)
    assert [fits[c].settings["engine"] for c in (True, False)] == ["compiled", "eager"]
    for ours, eager in zip(fits[True].history, fits[False].history, strict=True):
        np.testing.assert_allclose(ours["train_elbo"], eager["train_elbo"], rtol=1e-9)


def test_leaves_nothing_patched():
    before = (pyro.infer.trace_elbo.torch_item, pyro.util.warn_if_nan, torch.Tensor.item)
    run(SVI, vae, Trace_ELBO, compile=True)
    assert before == (pyro.infer.trace_elbo.torch_item, pyro.util.warn_if_nan, torch.Tensor.item)
    assert torch.overrides._get_current_function_mode_stack() == []


# -- what a graph does not see --------------------------------------------------------------------


def normal(scale_of=lambda x: 1.0):
    """A model whose scale depends on `scale_of(x)`, in whatever way that does."""

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, scale_of(x)), obs=x[:, 0])

    def guide(x):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.5))

    return model, guide, batches(num=14)


def reads_data(x):
    return 1.0 if x.mean() > 0.4 else 2.0


def draws_from_python(x):
    return random.random() + 0.5


def draws_from_numpy(x):
    return np.random.uniform(0.5, 1.5)  # noqa: NPY002


def makes_tensor_from_numpy(x):
    return torch.from_numpy(np.arange(1.0, 7.0))


def reads_array(x):
    return 1.0 + float(x.numpy().mean())


def replaces_by_mask(x):
    scale, row = torch.ones(6), x[:, 1].exp()
    chosen = x[:, 0] > 0.4
    scale[chosen] = row[chosen]
    scale[~chosen] = 2.0
    return scale


def selects_by_mask(x):
    scale, row = torch.ones(6), x[:, 1].exp()
    chosen = x[:, 0] > 0.4
    part = row[chosen]
    scale[chosen] = part
    return scale + part.sum()


def changes_what_a_mask_selected_from(x):
    scale, row = torch.ones(6), x[:, 1].exp()
    chosen = x[:, 0] > 0.4
    part = row[chosen]
    row += 1
    scale[chosen] = part
    return scale + row


SETTINGS = {"scale": 1.0}
calls = 0


def reads_setting(x):
    return SETTINGS["scale"]


def counts_calls(x):
    global calls
    calls += 1
    return 1.0 + calls % 3


def both(scale_of, between=lambda i: None, **kwargs):
    """Train with Pyro's SVI and with ours, calling `between(i)` before step i."""
    results = []
    for svi_class, more in ((pyro.infer.SVI, {}), (SVI, {"compile": True, **kwargs})):
        pyro.clear_param_store()
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        globals()["calls"] = 0
        model, guide, data = normal(scale_of)
        svi = svi_class(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), **more)
        losses = []
        for i, args in enumerate(data):
            between(i)
            losses.append(svi.step(*args))
        results.append((svi, losses, {"loc": pyro.param("loc").detach()}))
    stock, ours = results
    assert_same(ours, stock)
    return ours[0]


@pytest.mark.usefixtures("graph_only")
def test_a_branch_on_the_data_takes_the_branch():
    svi = both(reads_data)
    assert 0 < svi.num_compiled_steps < 13


@pytest.mark.usefixtures("graph_only")
@pytest.mark.parametrize(
    ("scale_of", "reason"),
    [
        (draws_from_python, "Python's or numpy's random"),
        (draws_from_numpy, "Python's or numpy's random"),
        (makes_tensor_from_numpy, "tensors of numpy arrays"),
        (reads_array, "into Python by numpy"),
        (selects_by_mask, "the shape of a result depends on the data"),
        (changes_what_a_mask_selected_from, "the shape of a result depends on the data"),
    ],
)
def test_what_cannot_be_compiled_runs_eagerly_and_says_why(scale_of, reason):
    with pytest.warns(CompilationWarning, match=reason):
        svi = both(scale_of)
    assert svi.num_compiled_steps == 0


@pytest.mark.usefixtures("graph_only")
def test_entries_replaced_by_a_mask_are_of_any_number():
    # The batches have different numbers of them.
    assert both(replaces_by_mask).num_compiled_steps == 13


@pytest.mark.usefixtures("graph_only")
def test_a_setting_that_changes_is_followed():
    svi = both(reads_setting, lambda i: SETTINGS.update(scale=2.0 if i in (5, 6) else 1.0))
    assert svi.num_compiled_steps == 11


@pytest.mark.usefixtures("graph_only")
def test_a_program_that_counts_its_calls_runs_eagerly():
    with pytest.warns(CompilationWarning, match="numbers that differ from run to run"):
        svi = both(counts_calls)
    assert svi.num_compiled_steps == 0


class Cell:
    """A setting where no search finds it: behind a class that is not the user's own."""

    __module__ = "torch"

    def __init__(self):
        self.value = [1.0]

    def __call__(self, x):
        return self.value[0]


@pytest.mark.usefixtures("graph_only")
def test_what_nothing_else_sees_is_seen_by_the_check_of_a_later_step():
    cell = Cell()

    def change(i):
        cell.value[0] = 1.0 if i < 10 else 2.0

    with pytest.warns(CompilationWarning, match="something that the graph does not see"):
        svi = both(lambda x: cell(x), change)  # the change falls on the tenth compiled step
    assert svi.num_compiled_steps == 9


@pytest.mark.usefixtures("graph_only")
def test_another_shape_runs_eagerly():
    def program():
        model, guide, data = vae()
        data[4] = (data[4][0][:3],)
        return model, guide, data

    ours = run(SVI, program, Trace_ELBO, compile=True)
    assert_same(ours, run(pyro.infer.SVI, program, Trace_ELBO))
    assert ours[0].num_compiled_steps == 6


@pytest.mark.usefixtures("graph_only")
def test_a_global_tensor_changed_in_place_is_an_input():
    scale = torch.tensor(1.0)
    svi = both(lambda x: scale, lambda i: scale.fill_(1.0 + i))
    assert svi.num_compiled_steps == 13


@pytest.mark.usefixtures("graph_only")
def test_pyro_handlers_around_the_step_are_obeyed():
    results = []
    for svi_class, more in ((pyro.infer.SVI, {}), (SVI, {"compile": True})):
        pyro.clear_param_store()
        torch.manual_seed(0)
        model, guide, data = normal()
        svi = svi_class(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), **more)
        losses = [svi.step(*args) for args in data[:4]]
        with poutine.scale(scale=2.0):
            losses.append(svi.step(*data[4]))
        results.append(losses)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-9)
    assert svi.num_compiled_steps == 3


# -- optimizers -----------------------------------------------------------------------------------

OPTIMIZERS = {
    "Adam": functools.partial(torch.optim.Adam, lr=0.01),
    "AdamW": functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    "amsgrad": functools.partial(torch.optim.Adam, lr=0.01, amsgrad=True),
    "fused": functools.partial(torch.optim.Adam, lr=0.01, fused=True),
    "SGD": functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=0.1),
    "plain SGD": functools.partial(torch.optim.SGD, lr=0.01),
    "Adagrad": functools.partial(torch.optim.Adagrad, lr=0.01, lr_decay=0.1),
    "RMSprop": functools.partial(torch.optim.RMSprop, lr=0.01),
    "RAdam": functools.partial(torch.optim.RAdam, lr=0.01),
}


def train(optim, compile, between=lambda i, svi: None, steps=8):
    pyro.clear_param_store()
    torch.manual_seed(1)
    model, guide, data = vae()
    svi = SVI(model, guide, optim, Trace_ELBO(), compile=compile)
    losses = []
    for i, args in enumerate(data[:steps]):
        between(i, svi)
        losses.append(svi.step(*args))
    parameters = {k: v.detach().clone() for k, v in pyro.get_param_store().named_parameters()}
    return svi, losses, parameters


@pytest.mark.usefixtures("graph_only")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizers_own_update_and_state(name):
    optim = OPTIMIZERS[name]
    ours, eager = train(optim, True), train(optim, False)
    assert_same(ours, eager)
    assert ours[0].num_compiled_steps >= 6
    (program,) = ours[0]._compiler._programs.values()
    assert (program.optimizers is None) == (name == "RAdam")  # it looks at its step count
    states = [svi.optim.optimizer.state_dict()["state"] for svi in (ours[0], eager[0])]
    for i, expected in states[1].items():
        for key, value in expected.items():
            torch.testing.assert_close(states[0][i][key], value, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("graph_only")
@pytest.mark.parametrize(
    "optim",
    [
        lambda: pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.9, "clip_norm": 0.5}),
        lambda: pyro.optim.Adam({"lr": 0.01}, {"clip_norm": 0.1}),
        lambda: PyroLRScheduler(
            torch.optim.lr_scheduler.StepLR,
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.01}, "step_size": 2},
        ),
    ],
)
def test_pyros_optimizers(optim):
    def schedule(i, svi):
        if isinstance(svi.optim, PyroLRScheduler) and i:
            svi.optim.step()

    ours, eager = (train(optim(), compile, schedule) for compile in (True, False))
    assert_same(ours, eager)
    assert ours[0].num_compiled_steps >= 6


@pytest.mark.usefixtures("graph_only")
def test_a_learning_rate_that_changes_needs_no_other_program():
    def halve(i, svi):
        for group in svi.optim.optimizer.param_groups if i else ():
            group["lr"] *= 0.5

    ours, eager = (train(OPTIMIZERS["Adam"], compile, halve) for compile in (True, False))
    assert_same(ours, eager)
    assert ours[0].num_compiled_steps == 7


@pytest.mark.usefixtures("graph_only")
def test_learning_rates_that_change_in_pyros_optimizers():
    def halve(i, svi):
        for optimizer in svi.optim.optim_objs.values():
            optimizer.param_groups[0]["lr"] *= 0.5

    def adam():
        return pyro.optim.Adam({"lr": 0.01})

    ours, eager = (train(adam(), compile, halve) for compile in (True, False))
    assert_same(ours, eager)
    assert ours[0].num_compiled_steps == 7
    (program,) = ours[0]._compiler._programs.values()
    assert program.optimizers is not None


@pytest.mark.usefixtures("graph_only")
@pytest.mark.parametrize("kind", ["Adam", "AdamW", "NAdam", "Adamax"])
def test_betas_that_change_need_no_other_program(kind):
    def cycle(i, svi):
        for group in svi.optim.optimizer.param_groups if i else ():
            group["betas"] = (0.9 - 0.05 * i, 0.999 - 0.01 * i)

    optim = functools.partial(getattr(torch.optim, kind), lr=0.01)
    ours, eager = (train(optim, compile, cycle) for compile in (True, False))
    assert_same(ours, eager)
    assert ours[0].num_compiled_steps == 7
    (program,) = ours[0]._compiler._programs.values()
    assert program.optimizers is not None
    assert program.runs == 7


@pytest.mark.usefixtures("graph_only")
def test_other_hyperparameters_that_change_are_the_optimizers_own():
    def decay(i, svi):
        for group in svi.optim.optimizer.param_groups if i else ():
            group["weight_decay"] = 0.1 * i

    ours, eager = (train(OPTIMIZERS["AdamW"], compile, decay) for compile in (True, False))
    assert_same(ours, eager)
    assert ours[0].num_compiled_steps == 7
    (program,) = ours[0]._compiler._programs.values()
    assert program.optimizers is None


@pytest.mark.usefixtures("graph_only")
@pytest.mark.filterwarnings("ignore:weight was not registered")
def test_frozen_parameters_stay():
    def freeze(i, svi):
        if i:
            weight = pyro.get_param_store()._params["decoder$$$weight"]
            weight.requires_grad_(i not in (4, 5))

    ours, eager = (train(OPTIMIZERS["Adam"], compile, freeze) for compile in (True, False))
    assert_same(ours, eager)
    assert ours[0].num_compiled_steps == 5


@pytest.mark.usefixtures("graph_only")
def test_a_loss_that_is_not_finite_changes_nothing():
    svi, _, before = train(OPTIMIZERS["Adam"], True)
    compiled = svi.num_compiled_steps
    x = batches()[0][0].clone()
    x[0, 0] = torch.nan
    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="NaN"):
        loss = svi.step(x)
    assert np.isnan(loss)
    assert svi.num_compiled_steps == compiled
    for name, value in pyro.get_param_store().named_parameters():
        assert torch.equal(value, before[name])
    assert np.isfinite(svi.step(*batches()[1]))


@pytest.mark.usefixtures("graph_only")
def test_resumes_to_the_bit():
    whole = train(OPTIMIZERS["Adam"], True)
    svi, _, _ = train(OPTIMIZERS["Adam"], True, steps=5)
    state = svi.optim.optimizer.state_dict()
    resumed_optimizer = torch.optim.Adam(list(svi.parameters), lr=0.01)
    resumed_optimizer.load_state_dict(state)
    resumed = SVI(svi.model, svi.guide, resumed_optimizer, Trace_ELBO(), compile=True)
    for args in batches()[5:]:
        resumed.step(*args)
    assert resumed.num_compiled_steps == 3
    for name, value in pyro.get_param_store().named_parameters():
        assert torch.equal(value, whole[2][name])


@pytest.mark.usefixtures("graph_only")
def test_a_loaded_optimizer_state_is_used():
    def reload(i, svi):
        if i == 4:
            optimizer = svi.optim.optimizer
            state = optimizer.state_dict()
            for entry in state["state"].values():
                entry["exp_avg"] = torch.ones_like(entry["exp_avg"])
            optimizer.load_state_dict(state)

    ours, eager = (train(OPTIMIZERS["Adam"], compile, reload) for compile in (True, False))
    assert_same(ours, eager)


# -- the rest -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("graph_only")
def test_auto_waits_and_tells_nothing(monkeypatch):
    monkeypatch.setattr(compiler, "STEPS_BEFORE_COMPILING", 200)
    own = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.networks.MLP(2, [], 4)),
        pv.guides.DiagonalNormal(pv.networks.MLP(4, [], 4)),
    )
    svi = SVI(own.model, own.guide, OPTIMIZERS["Adam"])
    for args in batches():
        svi.step(*args)
    assert svi.num_compiled_steps == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(40):
            for args in batches():
                svi.step(*args)
    # The first step makes the parameters, 200 more show that they are worth it.
    assert svi.num_compiled_steps == 8 * 41 - 201


@pytest.mark.usefixtures("graph_only")
def test_step_tensor_takes_the_same_step():
    torch.manual_seed(1)
    pyro.clear_param_store()
    model, guide, data = vae()
    svi = SVI(model, guide, OPTIMIZERS["Adam"], Trace_ELBO(), compile=True)
    losses = [svi.step_tensor(*args) for args in data]
    assert all(loss.shape == () for loss in losses)
    np.testing.assert_allclose([x.item() for x in losses], train(OPTIMIZERS["Adam"], True)[1])


def test_bfloat16_is_for_layers_only():
    seen = {}

    def model(x):
        layer = pyro.module("layer", linear)
        seen["layer"] = layer(x)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(seen["layer"] + z, 1.0).to_event(2), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.5))

    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    linear = nn.Linear(4, 4)
    x = torch.rand(8, 4)
    exact = linear(x)
    svi = SVI(model, guide, OPTIMIZERS["Adam"], Trace_ELBO(), compile=False, precision="bf16")
    svi.step(x)
    assert seen["layer"].dtype is torch.float32
    assert torch.equal(seen["layer"], seen["layer"].bfloat16().float())
    assert not torch.equal(seen["layer"], exact)
    torch.testing.assert_close(seen["layer"], exact, rtol=0.05, atol=0.05)
    assert linear.weight.dtype is torch.float32


@pytest.mark.usefixtures("graph_only")
def test_compiled_bfloat16_is_eager_bfloat16():
    torch.set_default_dtype(torch.float32)

    def program():
        model, guide, data = vae()
        return model, guide, [(x.float(),) for (x,) in data]

    ours, eager = (
        run(SVI, program, Trace_ELBO, compile=compile, precision="bf16")
        for compile in (True, False)
    )
    assert_same(ours, eager, 1e-5)
    assert ours[0].num_compiled_steps == 7


@pytest.mark.usefixtures("graph_only")
def test_memory_does_not_grow():
    svi, _, _ = train(OPTIMIZERS["Adam"], True)
    x = batches()[0][0]

    def objects():
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    svi.step(x)
    before = objects()
    for _ in range(300):
        svi.step(x)
    assert objects() <= before + 2


@pytest.mark.parametrize("compile", [True, False])
def test_a_batch_is_let_go_with_its_step(compile):
    """Without Python's search for circles of references, in which a batch once stayed."""
    svi, _, _ = train(OPTIMIZERS["Adam"], compile)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            x = batches()[0][0]
            held = weakref.ref(x)
            svi.step(x)
            del x
            assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(("name", "value"), [("compile", "yes"), ("precision", "fp16")])
def test_refuses_unknown_options(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        SVI(*vae()[:2], OPTIMIZERS["Adam"], Trace_ELBO(), **{name: value})
