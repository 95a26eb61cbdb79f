"""Schedules: the rates of each step, alone and in `fit`."""

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

import pyro_vae as pv


def rates(schedule, num_steps, learning_rate=1e-3):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=learning_rate)
    scheduler, found = schedule(optimizer, num_steps), []
    for _ in range(num_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step() if len(found) < num_steps else None
    return found


@pytest.mark.parametrize("passes", [1, 5])
def test_stages_are_those_of_the_paper(passes):
    """3^i passes over the data at the rate 0.001 * 10^(-i/7), for i = 0, ..., 7."""
    expected = [1e-3 * 10 ** (-i / 7) for i in range(8) for _ in range(3**i * passes)]
    assert rates(pv.schedules.stages, 3280 * passes) == pytest.approx(expected, rel=1e-12)


def test_stages_of_a_short_run_never_increase_the_rate():
    for num_steps in (1, 2, 7, 100):
        found = rates(pv.schedules.stages, num_steps)
        assert found == sorted(found, reverse=True)


def test_one_cycle_has_the_rate_of_the_optimizer_as_its_maximum():
    expected = rates(lambda optimizer, steps: OneCycleLR(optimizer, 0.02, steps), 50, 0.02)
    found = rates(pv.schedules.one_cycle, 50, 0.02)
    assert found == expected
    assert max(found) == pytest.approx(0.02)


def test_fit_takes_them():
    vae = pv.VAE(
        pv.priors.StandardNormal(1),
        pv.likelihoods.Normal(pv.networks.MLP(1, [], 2)),
        pv.guides.DiagonalNormal(pv.networks.MLP(2, [], 2)),
    )
    made = []

    def optimizer(parameters):
        made.append(torch.optim.SGD(parameters, lr=1e-3))
        return made[-1]

    schedule = pv.schedules.stages
    pv.fit(vae, torch.randn(8, 2), epochs=82, batch_size=4, optimizer=optimizer, schedule=schedule)
    assert made[0].param_groups[0]["lr"] == pytest.approx(1e-4)
