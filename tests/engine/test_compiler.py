"""Compiled training equals stock Pyro's, in the programs and steps that the compiler selects."""

import gc
import warnings
import weakref

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO

import pyro_vae as pv
from pyro_vae.engine import compiler
from pyro_vae.objectives.annealing import Beta, Linear
from pyro_vae.svi import SVI
from tests.support.pyro_programs import (
    OPTIMIZERS,
    PROGRAMS,
    assert_same,
    batches,
    normal,
    run,
    train_vae,
    vae,
)

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.usefixtures("graph_only")
def test_equals_stock_pyro_step_by_step(name):
    program, loss = PROGRAMS[name]
    stock = run(pyro.infer.SVI, program, loss)
    ours = run(SVI, program, loss, compile=True)
    assert_same(ours, stock)
    assert ours[0].num_compiled_steps >= 6


@pytest.mark.usefixtures("graph_only")
def test_an_annealed_beta_needs_no_other_program():
    def annealed():
        return Beta(Linear(6), Trace_ELBO())

    ours = run(SVI, vae, annealed, compile=True)
    assert_same(ours, run(pyro.infer.SVI, vae, annealed))
    assert ours[0].num_compiled_steps == 7
    assert ours[0].objective.num_steps == 8


def test_leaves_nothing_patched():
    before = (pyro.infer.trace_elbo.torch_item, pyro.util.warn_if_nan, torch.Tensor.item)
    run(SVI, vae, Trace_ELBO, compile=True)
    assert before == (pyro.infer.trace_elbo.torch_item, pyro.util.warn_if_nan, torch.Tensor.item)
    assert torch.overrides._get_current_function_mode_stack() == []


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
    # The first step creates the parameters; the program is compiled after 200 more.
    assert svi.num_compiled_steps == 8 * 41 - 201


@pytest.mark.usefixtures("graph_only")
def test_memory_does_not_grow():
    svi, _, _ = train_vae(OPTIMIZERS["Adam"], True)
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
    """Reference counting frees the batch; no garbage collection is needed."""
    svi, _, _ = train_vae(OPTIMIZERS["Adam"], compile)
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
