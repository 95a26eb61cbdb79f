"""A run that is resumed with more epochs continues, with the schedule of the longer run."""

import functools
import signal

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, StepLR

import pyro_vae as pv

STEPS = 3  # of an epoch
SCHEDULES = {
    "none": None,
    "steps": lambda optimizer, _: StepLR(optimizer, 2, 0.5),
    "epochs": lambda optimizer, _: LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "cosine": lambda optimizer, steps: CosineAnnealingLR(optimizer, steps),
    "one cycle": lambda optimizer, steps: OneCycleLR(optimizer, 0.05, total_steps=steps + 1),
}
INDEPENDENT = ("none", "steps", "epochs")  # of the number of steps of the run
OBJECTIVES = {
    "elbo": lambda: None,
    "linear": lambda: pv.objectives.Beta(pv.objectives.Linear(8)),
    "linear of z": lambda: pv.objectives.Beta({"z": pv.objectives.Linear(8)}),
}
OPTIMIZERS = {
    "adam": functools.partial(torch.optim.Adam, lr=0.01),
    "sgd": functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9),
}


def train(out, epochs, stop=0, schedule=None, make=OPTIMIZERS["adam"], **options):
    """Train in a folder; return the weights and the history."""
    torch.manual_seed(0)
    vae = pv.VAE(
        pv.priors.StandardNormal(1),
        pv.likelihoods.Normal(pv.networks.MLP(1, [], 2)),
        pv.guides.DiagonalNormal(pv.networks.MLP(2, [], 2)),
    )
    x = torch.randn(4 * STEPS, 2, generator=torch.Generator().manual_seed(1))
    steps, rates = [], []

    def optimizer(parameters):
        made = make(parameters)

        def count(*_):
            steps.append(0)
            rates.append(made.param_groups[0]["lr"])
            if len(steps) == stop:
                signal.raise_signal(signal.SIGINT)

        made.register_step_post_hook(count)
        return made

    fit = pv.fit(
        vae, x, epochs=epochs, batch_size=4, schedule=SCHEDULES.get(schedule),
        optimizer=optimizer, out=out, **options,
    )  # fmt: skip
    history = [{k: v for k, v in entry.items() if k != "seconds"} for entry in fit.history]
    return torch.cat([p.detach().flatten() for p in vae.parameters()]), history, rates


@pytest.mark.thinned(7)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("stop", [0, 2, 3, 4])
def test_an_extended_run(schedule, objective, stop, tmp_path):
    options = {"schedule": schedule}
    bound = OBJECTIVES[objective]
    whole, history, rates = train(tmp_path / "whole", 4, objective=bound(), **options)
    _, first, _ = train(tmp_path / "run", 2, stop, objective=bound(), **options)
    weights, extended, more = train(tmp_path / "run", 4, objective=bound(), resume=True, **options)
    assert [entry["epoch"] for entry in extended] == [1, 2, 3, 4]
    complete = (stop or 2 * STEPS) // STEPS
    assert extended[:complete] == first[:complete]
    assert more == rates[len(rates) - len(more) :]  # the schedule of the longer run
    if schedule in INDEPENDENT and objective == "elbo":
        assert torch.equal(weights, whole)
        assert extended == history


@pytest.mark.parametrize("schedule", ["steps", "one cycle"])
def test_an_extended_run_is_resumed_bit_for_bit(schedule, tmp_path):
    results = []
    for folder, stop in (("one", 0), ("two", 2), ("three", 3)):
        train(tmp_path / folder, 2, schedule=schedule)
        if stop:
            train(tmp_path / folder, 4, stop, schedule=schedule, resume=True)
        results.append(train(tmp_path / folder, 4, schedule=schedule, resume=True)[:2])
    for weights, history in results[1:]:
        assert torch.equal(weights, results[0][0])
        assert history == results[0][1]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"epochs": 1}, "epochs was 2 and is 1"),
        ({"epochs": 4, "make": OPTIMIZERS["sgd"]}, "cannot be resumed with other optimizer"),
        ({"epochs": 4, "make": functools.partial(torch.optim.Adam, lr=0.1)}, "lr was 0.01 and is"),
        ({"epochs": 4, "schedule": "steps"}, "other optimizer or schedule"),
        ({"epochs": 4, "seed": 1}, "seed was 0 and is 1"),
        ({"epochs": 4, "objective": pv.objectives.Beta(2.0)}, "objective was"),
    ],
)
def test_an_extension_with_other_settings_is_refused(settings, sentence, tmp_path):
    train(tmp_path, 2)
    with pytest.raises(pv.CheckpointError, match=sentence):
        train(tmp_path, resume=True, **settings)


def test_a_run_that_stopped_early_is_extended_by_more_patience(tmp_path):
    options = {"validation": torch.zeros(4, 2), "make": functools.partial(torch.optim.SGD, lr=1.0)}
    _, first, _ = train(tmp_path, 20, patience=1, **options)
    assert len(first) < 20
    same = train(tmp_path, 25, patience=1, resume=True, **options)[1]
    assert same == first
    more = train(tmp_path, 25, patience=20, resume=True, **options)[1]
    assert len(more) > len(first)
    assert more[: len(first)] == first
