"""`pv.SVI` and `fit` take the steps of stock SVI with every ELBO of Pyro, or refuse it."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import infer
from pyro.contrib.gp.kernels import RBF
from pyro.infer.elbo import ELBO

import pyro_vae as pv

NUM_DATA, STEPS = 6, 4
VECTORIZED = {"num_particles": 3, "vectorize_particles": True}
OPTIONS = {"one particle": {}, "a loop": {"num_particles": 3}, "vectorized": VECTORIZED}


def subclasses(kind):
    for found in kind.__subclasses__():
        if found.__module__.startswith("pyro.infer"):
            yield found
        yield from subclasses(found)


NAMES = {found.__name__ for found in subclasses(ELBO)} & set(infer.__all__) | {
    "TraceTailAdaptive_ELBO"
}
ELBOS = sorted(name for name in NAMES if not name.startswith("Jit"))  # TorchScript is deprecated
REFUSED = {
    "TraceTailAdaptive_ELBO": "TraceTailAdaptive_ELBO only computes gradients",
    "ReweightedWakeSleep": "ReweightedWakeSleep has several losses",
}


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.3))
    scale = pyro.param("scale", torch.tensor(0.8), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x, scale))


def elbo(name, options):
    kind = getattr(infer, name)
    if name == "ReweightedWakeSleep":
        options = {**options, "model_has_params": False, "insomnia": 1.0}
    if name == "Trace_MMD":
        options = {**options, "kernel": RBF(input_dim=1)}
    return kind(**options)


def parameters():
    return [pyro.param("loc").item(), pyro.param("scale").item()]


@pytest.fixture(autouse=True)
def clean():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def steps(kind, name, options, x, **more):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = kind(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo(name, options), **more)
    return [svi.step(x) for _ in range(STEPS)], parameters()


@pytest.mark.parametrize("name", ELBOS)
@pytest.mark.parametrize("particles", OPTIONS)
def test_svi_takes_the_steps_of_stock(name, particles):
    options, x = OPTIONS[particles], torch.linspace(-1, 2, NUM_DATA)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pyro's advice about the number of particles
        try:
            stock = steps(infer.SVI, name, options, x)
        except Exception as error:
            with pytest.raises(type(error)):
                steps(pv.SVI, name, options, x, compile=False)
            return
        ours = steps(pv.SVI, name, options, x, compile=False)
    assert ours == stock
    assert ours[1] != parameters_at_start()


def parameters_at_start():
    pyro.clear_param_store()
    guide(torch.zeros(NUM_DATA))
    return parameters()


@pytest.mark.parametrize("name", ELBOS)
@pytest.mark.parametrize("particles", OPTIONS)
def test_fit_takes_the_steps_of_stock_or_refuses(name, particles):
    """`fit` has the losses of stock, divided by the number of data, in the order of its batches."""
    options, x = OPTIONS[particles], torch.linspace(-1, 2, NUM_DATA)
    make = torch.optim.Adam
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            steps(infer.SVI, name, options, x)
        except Exception:
            return
        pyro.clear_param_store()
        objective = elbo(name, options)
        before = parameters_at_start()
        pair = pv.Pair(model, guide)
        optimizer = lambda parameters: make(parameters, lr=0.05)  # noqa: E731
        if name in REFUSED:
            with pytest.raises(ValueError, match=REFUSED[name] + r".*train with\s+pv\.SVI"):
                pv.fit(pair, x, epochs=STEPS, objective=objective, optimizer=optimizer)
            assert parameters() == before
            return
        fit = pv.fit(pair, x, epochs=STEPS, objective=objective, optimizer=optimizer)
        ours = [sum(v for k, v in e.items() if k.startswith("train_")) for e in fit.history]
        trained = parameters()
        seeds = np.random.SeedSequence(0).generate_state(2, np.uint64)
        pyro.clear_param_store()
        guide(x)
        torch.manual_seed(int(seeds[0]))
        generator = torch.Generator().manual_seed(int(seeds[1]))
        scaled = [pv.objectives.per_datum(p, NUM_DATA, "data") for p in (model, guide)]
        again = elbo(name, options)
        if getattr(again, "vectorize_particles", False) or "Enum" in name or "TMC" in name:
            again.max_plate_nesting = objective.max_plate_nesting
        stock = infer.SVI(*scaled, pyro.optim.Adam({"lr": 0.05}), again)
        losses = []
        for _ in range(STEPS):
            losses.append(stock.step(x[torch.randperm(NUM_DATA, generator=generator)]))
    np.testing.assert_allclose(ours, [-loss for loss in losses], rtol=1e-6)
    np.testing.assert_allclose(trained, parameters(), rtol=1e-6)


def test_a_step_of_infinite_loss_is_not_silent():
    def infinite(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.factor("never", -torch.inf * z.detach().abs())

    svi = pv.SVI(infinite, guide, pyro.optim.Adam({"lr": 0.05}), infer.Trace_ELBO(), compile=False)
    with pytest.warns(UserWarning, match="the step leaves the parameters unchanged"):
        svi.step(torch.ones(NUM_DATA))
    assert parameters() == pytest.approx([0.3, 0.8])
