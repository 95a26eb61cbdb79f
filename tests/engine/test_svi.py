"""The public methods of `SVI`."""

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

import pyro_vae as pv
from pyro_vae.svi import SVI
from tests.support.pyro_programs import OPTIMIZERS, batches, train_vae, vae

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.usefixtures("graph_only")
def test_step_tensor_takes_the_same_step():
    torch.manual_seed(1)
    pyro.clear_param_store()
    model, guide, data = vae()
    svi = SVI(model, guide, OPTIMIZERS["Adam"], Trace_ELBO(), compile=True)
    losses = [svi.step_tensor(*args) for args in data]
    assert all(loss.shape == () for loss in losses)
    np.testing.assert_allclose([x.item() for x in losses], train_vae(OPTIMIZERS["Adam"], True)[1])


@pytest.mark.parametrize(("name", "value"), [("compile", "yes"), ("precision", "fp16")])
def test_refuses_unknown_options(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        SVI(*vae()[:2], OPTIMIZERS["Adam"], Trace_ELBO(), **{name: value})


@pytest.mark.parametrize("made", ["before", "in the first step"])
def test_refuses_an_optimizer_that_computes_the_loss_itself(made):
    model, guide, data = vae()
    optim = torch.optim.LBFGS
    if made == "before":
        optim = torch.optim.LBFGS([torch.zeros(2, requires_grad=True)])
    with pytest.raises(ValueError, match="LBFGS computes the loss several times"):
        SVI(model, guide, optim).step(*data[0])


@pytest.mark.usefixtures("graph_only")
def test_a_loss_that_is_not_finite_changes_nothing():
    svi, _, before = train_vae(OPTIMIZERS["Adam"], True)
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


@pytest.mark.usefixtures("graph_only")
@pytest.mark.parametrize("prepared", [None, 0.5])
def test_steps_with_a_share_are_averaged_whatever_was_prepared(monkeypatch, prepared):
    shares = []

    def average(values, parameters, share):
        shares.append(share)
        return values

    monkeypatch.setattr(pv.distributed, "average", average)
    first, _, _ = train_vae(OPTIMIZERS["Adam"], True, steps=2)
    resumed = SVI(first.model, first.guide, first.optim, Trace_ELBO(), compile=True)
    data = batches()[2:6]
    compiled = {"enabled": True, "started": True, "sizes": [{"steps": 0, "compiled": True}]}
    resumed.restore_compilation([(data[0], prepared)], compiled)
    for args in data[:3]:
        resumed.step_of(args, {}, 0.5)
    resumed.step_of(data[3], {}, 0.25)
    assert shares == [0.5, 0.5, 0.5, 0.25]
    assert resumed.num_compiled_steps == (0 if prepared is None else 4)


@pytest.mark.usefixtures("graph_only")
def test_a_process_compares_its_own_losses(monkeypatch):
    def average(values, parameters, share):
        return tuple(value + 1.0 for value in values)  # the losses of other processes are larger

    monkeypatch.setattr(pv.distributed, "average", average)
    first, _, _ = train_vae(OPTIMIZERS["Adam"], True, steps=2)
    svi = SVI(first.model, first.guide, first.optim, Trace_ELBO(), compile=True)
    for args in batches()[2:6]:
        svi.step_of(args, {}, 0.5)
    assert svi.num_compiled_steps == 4
