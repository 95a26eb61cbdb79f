"""Optimizers update in the graph as they do outside."""

import functools

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.optim import PyroLRScheduler

from pyro_vae.svi import SVI
from tests.support.pyro_programs import OPTIMIZERS, assert_same, batches, train_vae

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.thinned(3)
@pytest.mark.usefixtures("graph_only")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizers_own_update_and_state(name):
    optim = OPTIMIZERS[name]
    ours, eager = train_vae(optim, True), train_vae(optim, False)
    assert_same(ours, eager)
    assert ours[0].num_compiled_steps >= 6
    (program,) = ours[0]._compiler._programs.values()
    assert (program.optimizers is None) == (name == "RAdam")  # RAdam reads its step count
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

    ours, eager = (train_vae(optim(), compile, schedule) for compile in (True, False))
    assert_same(ours, eager)
    assert ours[0].num_compiled_steps >= 6


@pytest.mark.usefixtures("graph_only")
def test_a_learning_rate_that_changes_needs_no_other_program():
    def halve(i, svi):
        for group in svi.optim.optimizer.param_groups if i else ():
            group["lr"] *= 0.5

    ours, eager = (train_vae(OPTIMIZERS["Adam"], compile, halve) for compile in (True, False))
    assert_same(ours, eager)
    assert ours[0].num_compiled_steps == 7


@pytest.mark.usefixtures("graph_only")
def test_learning_rates_that_change_in_pyros_optimizers():
    def halve(i, svi):
        for optimizer in svi.optim.optim_objs.values():
            optimizer.param_groups[0]["lr"] *= 0.5

    def adam():
        return pyro.optim.Adam({"lr": 0.01})

    ours, eager = (train_vae(adam(), compile, halve) for compile in (True, False))
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
    ours, eager = (train_vae(optim, compile, cycle) for compile in (True, False))
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

    ours, eager = (train_vae(OPTIMIZERS["AdamW"], compile, decay) for compile in (True, False))
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

    ours, eager = (train_vae(OPTIMIZERS["Adam"], compile, freeze) for compile in (True, False))
    assert_same(ours, eager)
    assert ours[0].num_compiled_steps == 5


@pytest.mark.usefixtures("graph_only")
def test_resumes_to_the_bit():
    whole = train_vae(OPTIMIZERS["Adam"], True)
    svi, _, _ = train_vae(OPTIMIZERS["Adam"], True, steps=5)
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

    ours, eager = (train_vae(OPTIMIZERS["Adam"], compile, reload) for compile in (True, False))
    assert_same(ours, eager)
