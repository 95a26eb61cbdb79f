"""Averaged weights: against averages by hand, resumed, and with BatchNorm and masks."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.training.run_state import RunState
from tests.support.runs import (
    BATCH,
    STEPS,
    Stop,
    arguments,
    assert_same_run,
    pixels,
    stop_after,
    train,
)

KINDS = ("ema", "last")


def by_hand(kind, weights):
    """Return the average of the weights after each step, as the documentation states it."""
    if kind == "last":
        return torch.stack(weights[-(len(weights) // 4) :]).mean(0)
    average = weights[0]
    for n, value in enumerate(weights[1:], start=1):
        decay = min(0.999, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * value
    return average


def recorded(monkeypatch, kind, **changed):
    """Train; return the result, the final weights and those after each step."""
    torch.manual_seed(7)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.networks.MLP(2, [5], (1, 4, 4))),
        pv.guides.DiagonalNormal(pv.networks.MLP((1, 4, 4), [5], 4)),
    )
    real, after = RunState.count, []

    def flat():
        return torch.cat([p.detach().flatten() for p in vae.parameters()])

    def count(self, loss, num_data):
        real(self, loss, num_data)
        after.append(flat())

    with monkeypatch.context() as patch:
        patch.setattr(RunState, "count", count)
        fit = pv.fit(vae, **arguments(average=kind, **changed))
    return fit, flat(), after, vae


@pytest.mark.parametrize("kind", KINDS)
def test_the_average_is_that_of_the_documentation(kind, monkeypatch):
    raw = recorded(monkeypatch, None, validation=None)
    fit, final, after, _ = recorded(monkeypatch, kind, validation=None)
    # Training itself is the same, bit for bit.
    assert all(torch.equal(a, b) for a, b in zip(after, raw[2], strict=True))
    torch.testing.assert_close(final, by_hand(kind, after), rtol=1e-5, atol=1e-6)
    assert not torch.equal(final, after[-1])
    assert fit.settings["average"] == kind


@pytest.mark.parametrize("kind", KINDS)
def test_the_validated_weights_are_the_kept_ones(kind, monkeypatch):
    held_out = pixels(1, 20)
    fit, final, after, _ = recorded(monkeypatch, kind, epochs=8, validation=held_out)
    steps = int(fit.best["step"])
    total = len(after)
    expected = by_hand(kind, after[:steps]) if kind == "ema" else after[steps - 1]
    if kind == "last" and steps > total - total // 4:
        expected = torch.stack(after[total - total // 4 : steps]).mean(0)
    torch.testing.assert_close(final, expected, rtol=1e-5, atol=1e-6)
    assert fit.best["validation_elbo"] == max(e["validation_elbo"] for e in fit.history)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, STEPS, STEPS + 2, 3 * STEPS, 3 * STEPS + 2])
def test_a_killed_run_is_resumed_bit_for_bit(kind, steps, tmp_path, monkeypatch):
    whole = train(tmp_path / "whole", average=kind, schedule=None)
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(Stop):
            train(tmp_path / "run", seconds=0.0, average=kind, schedule=None)
    again = train(tmp_path / "run", resume=True, average=kind, schedule=None)
    averages = {name for name in whole[2][0] if name.startswith("average/")}
    assert {f"average/{name[4:]}" for name in whole[2][0] if name.startswith("now/")} == averages
    for name in averages:
        assert torch.equal(whole[2][0].pop(name), again[2][0].pop(name))
    assert_same_run(whole, again)


@pytest.mark.parametrize("kind", KINDS)
def test_an_extended_run_is_the_longer_run(kind, tmp_path):
    whole = train(tmp_path / "whole", average=kind, schedule=None, validation=None)
    train(tmp_path / "run", average=kind, epochs=2, schedule=None, validation=None)
    again = train(tmp_path / "run", average=kind, resume=True, schedule=None, validation=None)
    assert all(map(torch.equal, whole[1], again[1]))


def test_another_average_is_another_run(tmp_path):
    train(tmp_path, average="ema", epochs=2)
    with pytest.raises(pv.CheckpointError, match="average was 'ema' and is None"):
        train(tmp_path, resume=True, epochs=2)


def test_average_must_be_known(tmp_path):
    with pytest.raises(pv.ArgumentError, match="average must be 'ema' or 'last'"):
        train(tmp_path / "run", average="swa")
    assert not (tmp_path / "run").exists()


class WithBuffers(nn.Module):
    """An encoder with the statistics of BatchNorm, a mask of infinities and a counter."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4))
        self.register_buffer("mask", torch.tensor([0.0, 0.0, 0.0, -torch.inf]))

    def forward(self, x):
        return self.layers(x) + self.mask.clamp(min=-1)


@pytest.mark.parametrize("kind", KINDS)
def test_buffers_are_averaged_if_they_are_finite(kind):
    encoder = WithBuffers()
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.networks.MLP(2, [5], (1, 4, 4))),
        pv.guides.DiagonalNormal(encoder),
    )
    means = []
    encoder.layers[2].register_forward_hook(
        lambda layer, *_: means.append(layer.running_mean.clone()) if layer.training else None
    )
    fit = pv.fit(vae, pixels(), epochs=4, batch_size=BATCH, average=kind, validation=None)
    steps = means[-fit.num_steps :]
    torch.testing.assert_close(encoder.layers[2].running_mean, by_hand(kind, steps))
    assert encoder.mask.tolist() == [0.0, 0.0, 0.0, -torch.inf]
    assert encoder.layers[2].num_batches_tracked >= fit.num_steps


def test_an_average_of_noisy_weights_is_nearer_to_the_optimum():
    """SGD at a constant rate on a quadratic loss: the average has less variance (Polyak 1992)."""
    x = torch.randn(300, 1, generator=torch.Generator().manual_seed(1))
    errors = {}
    for kind in (None, *KINDS):
        pyro.clear_param_store()

        def model(x):
            loc = pyro.param("loc", torch.zeros(()))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(loc, 1.0).expand([len(x), 1]).to_event(1), obs=x)

        found = []
        for seed in range(3):
            pyro.clear_param_store()
            pv.fit(
                pv.Pair(model, lambda x: None),
                x,
                epochs=4,
                batch_size=10,
                seed=seed,
                average=kind,
                optimizer=functools.partial(torch.optim.SGD, lr=0.5),
            )
            found.append((pyro.param("loc").item() - x.mean().item()) ** 2)
        errors[kind] = sum(found) / 3
    # Of the last step: variance lr / (2 - lr) / batch_size = 0.033; of the averages below 0.002.
    assert errors[None] > 0.005
    assert max(errors["ema"], errors["last"]) < 0.002
