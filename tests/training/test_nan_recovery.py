"""Runs with a non-finite loss or parameter go back to a checkpoint, or stop."""

import functools

import pyro
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

import pyro_vae as pv
from pyro_vae.engine import compiled_step
from pyro_vae.models.base import expose_parameters
from tests.support.runs import (
    Stop,
    stop_after,
    without_seconds,
)


class Mean(nn.Module):
    """x ~ Normal(loc, 1): a step of rate r multiplies loc - mean(x) by 1 - r, exactly."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        expose_parameters(self, "model")
        with pyro.plate("data", len(x)):
            pyro.sample("x", pyro.distributions.Normal(self.loc, 1.0), obs=x)


def fit_mean(rate, *, model=None, epochs=40, **settings):
    model = model or Mean()
    fit = pv.fit(
        pv.Pair(model, lambda x: None),
        torch.full((8,), 2.0),
        epochs=epochs,
        batch_size=2,
        optimizer=settings.pop("optimizer", functools.partial(torch.optim.SGD, lr=rate)),
        progress=False,
        **settings,
    )
    return fit, model


def one_cycle_of_3(optimizer, steps):
    # Constant at first, so that it diverges, with a momentum that follows.
    return OneCycleLR(optimizer, 3.0, total_steps=steps, div_factor=1.0, cycle_momentum=False)


def constant(optimizer, steps):
    return LambdaLR(optimizer, lambda step: 1.0)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"schedule": constant},
        {"compile": True},
        {"optimizer": lambda p: torch.optim.SGD(p, lr=torch.tensor(3.0))},
    ],
)
def test_a_diverging_run_goes_back_and_converges_at_half_the_rate(settings, monkeypatch, capsys):
    monkeypatch.setattr(compiled_step, "compile_graph", lambda graph, inputs: graph)
    with pytest.raises(pv.TrainingError, match=r"at step 6\d .*the weights of the step before"):
        fit_mean(3.0, **settings)  # |loc - 2| doubles at each step until its square overflows
    fit, model = fit_mean(3.0, **settings, on_nan="backtrack")
    factors = [entry["rate_factor"] for entry in fit.history]
    assert sorted({*factors}) == [0.5, 1.0]
    assert factors == sorted(factors, reverse=True)
    assert len(factors) == 40  # epochs taken anew stand there once
    assert fit.num_steps == 160
    assert model.loc.item() == 2.0
    told = capsys.readouterr().err
    assert "the loss is not finite at step 6" in told
    assert "continuing from step 60 with 0.5 times the learning rate" in told
    if settings.get("compile"):
        assert fit.settings["engine"] == "compiled"


def test_a_run_goes_back_five_times_and_then_stops():
    model = Mean()
    with pytest.raises(pv.TrainingError, match="the loss is not finite"):
        fit_mean(1e3, model=model, on_nan="backtrack", epochs=300)
    assert model.loc.isfinite()
    fit, model = fit_mean(40.0, on_nan="backtrack", epochs=300)
    assert fit.history[-1]["rate_factor"] == 1 / 32  # a rate of 1.25
    assert model.loc.item() == 2.0


def test_a_parameter_that_breaks_in_the_last_step_is_noticed():
    class Breaking(torch.optim.SGD):
        def step(self, closure=None):
            super().step()
            steps.append(1)
            if len(steps) % 4 == 0 and self.param_groups[0]["lr"] > 0.5:
                self.param_groups[0]["params"][0].data.fill_(torch.nan)

    steps, breaking = [], functools.partial(Breaking, lr=1.0)
    broken = Mean()
    with pytest.raises(pv.TrainingError, match=r"'model\.loc' is not finite at step 4 "):
        fit_mean(1.0, model=broken, optimizer=breaking)
    assert broken.loc.item() == 0.0  # as before the first epoch
    steps.clear()
    fit, model = fit_mean(1.0, optimizer=breaking, on_nan="backtrack", epochs=9)
    assert fit.history[0]["rate_factor"] == 0.5
    assert model.loc.item() == pytest.approx(2.0)


def test_a_run_that_went_back_is_resumed_bit_for_bit(tmp_path, monkeypatch):
    settings = {"on_nan": "backtrack", "schedule": one_cycle_of_3}
    whole, model = fit_mean(3.0, out=tmp_path / "whole", **settings)
    assert whole.history[-1]["rate_factor"] == 0.5
    for steps in (30, 70, 75):  # before it goes back, and twice after
        with monkeypatch.context() as patch:
            stop_after(patch, steps)
            with pytest.raises(Stop):
                fit_mean(3.0, out=tmp_path / str(steps), **settings)
        resumed, other = fit_mean(3.0, out=tmp_path / str(steps), resume=True, **settings)
        assert without_seconds(resumed.history) == without_seconds(whole.history)
        assert torch.equal(model.loc, other.loc)


def test_a_run_that_stopped_at_nan_can_be_resumed_going_back(tmp_path):
    with pytest.raises(pv.TrainingError):
        fit_mean(3.0, out=tmp_path)
    with pytest.raises(pv.TrainingError):
        fit_mean(3.0, out=tmp_path, resume=True)
    _, model = fit_mean(3.0, out=tmp_path, resume=True, on_nan="backtrack")
    assert model.loc.item() == 2.0


def test_what_cannot_go_back_is_refused():
    with pytest.raises(ValueError, match="on_nan must be 'stop' or 'backtrack', got 'ignore'"):
        fit_mean(1.0, on_nan="ignore")
    svi = pv.SVI(Mean(), lambda x: None, pyro.optim.SGD({"lr": 1.0}))
    with pytest.raises(ValueError, match=r"needs a torch optimizer .*, got one of pyro\.optim"):
        pv.fit(svi, torch.full((8,), 2.0), on_nan="backtrack")
