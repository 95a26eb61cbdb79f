"""Every state that a run writes is read back, for all optimizers and autoguides."""

import functools
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import autoguide
from pyro.optim.clipped_adam import ClippedAdam
from torch import nn

import pyro_vae as pv
from pyro_vae.checkpointing import checkpoint_store
from tests.support.runs import Stop, stop_after

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
# LBFGS needs a closure, and SparseAdam sparse gradients: fit has neither.
WITHOUT = {"Optimizer", "LBFGS", "SparseAdam"}
OPTIMIZERS = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and name not in WITHOUT
)
VARIANTS = {
    "plain": {},
    "amsgrad": {"amsgrad": True},
    "momentum": {"momentum": 0.9},
    "fused": {"fused": True},
    "capturable": {"foreach": False},
}


def optimizers():
    for name in OPTIMIZERS:
        kind = getattr(torch.optim, name)
        for variant, settings in VARIANTS.items():
            try:
                kind([nn.Parameter(torch.zeros(2, 2))], lr=1e-2, **settings)
            except (TypeError, ValueError, RuntimeError):
                continue
            yield pytest.param(functools.partial(kind, lr=1e-2, **settings), id=f"{name} {variant}")


class Lists(torch.optim.SGD):
    """Keeps lists, tuples and dicts of tensors, numbers and strings."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                past = self.state[p].get("past", [])
                self.state[p]["past"] = [*past[-1:], p.detach().clone()]
                self.state[p]["nested"] = {"a/b": (1, [p.detach().sum(), None]), "c": "text"}


class SettingCounter(torch.optim.SGD):
    """Counts its steps in its groups, and changes a learning rate and a tensor there."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            group["total"] = group.get("total", torch.zeros(2)) + group["k"]
            group["lr"] *= 1 - 0.1 / group["k"]
            group["weight_decay"] = float(group["total"].mean()) / 100


class AttributeCounter(torch.optim.SGD):
    """Counts its steps in an attribute."""

    count = 0

    def step(self, closure=None):
        self.count += 1
        self.total = getattr(self, "total", torch.zeros(())) + self.count
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.div_(self.count + self.total)
        super().step(closure)


class OtherTypes(torch.optim.Optimizer):
    """Keeps momenta of another shape and dtype than the parameter, under names of torch."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state, half = self.state[p], p.grad.flatten()[: p.numel() // 2 + 1]
                state["exp_avg"] = 0.9 * state.get("exp_avg", torch.zeros_like(half)) + half
                state["sign"] = state["exp_avg"] > 0
                state["low"] = state.get("low", half.bfloat16()) + half.bfloat16()
                state["phase"] = state.get("phase", torch.ones(half.shape) + 0j) * 1j
                p.flatten()[: p.numel() // 2 + 1].sub_(group["lr"] * state["exp_avg"])
                p.sub_(group["lr"] * (state["low"].sum() + state["phase"].real.sum()))


def two_groups(parameters, kind=torch.optim.Adam, **settings):
    """An optimizer of two groups in another order than that of the parameters."""
    first, *others = parameters
    groups = [{"params": others, "lr": 1e-2}, {"params": [first], "lr": 1e-3}]
    return kind(groups if others else groups[1:], **settings)


CHANGING = {
    "lrd of pyro": functools.partial(ClippedAdam, lr=1e-2, lrd=0.9),
    "settings": functools.partial(SettingCounter, lr=1e-2),
    "attributes": functools.partial(AttributeCounter, lr=1e-2),
    "other types": functools.partial(OtherTypes, lr=1e-2),
    "two groups": two_groups,
    "two groups that change": functools.partial(two_groups, kind=ClippedAdam, lrd=0.9),
    "tensor as rate": lambda parameters: torch.optim.Adam(parameters, lr=torch.tensor(1e-2)),
}
OF_LATE = ("lrd of pyro", "settings", "attributes", "tensor as rate")
RATES = {
    "no schedule": None,
    "chained": lambda optimizer, n: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
    "closed form": lambda optimizer, n: torch.optim.lr_scheduler.LambdaLR(
        optimizer, [lambda step: (1 + step) / n] * len(optimizer.param_groups)
    ),
}


class Pair(nn.Module):
    """One matrix, one vector and one scalar; `matrices` leaves only the matrix."""

    def __init__(self, matrices=False):
        super().__init__()
        pyro.clear_param_store()
        torch.manual_seed(0)
        self.decoder = nn.Linear(6, 6, bias=not matrices)
        if not matrices:
            self.scale = nn.Parameter(torch.zeros(()))

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(6), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        scale = 0.5 if not hasattr(self, "scale") else self.scale.sigmoid()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale).to_event(1))


def fit(pair, folder, **settings):
    torch.manual_seed(0)
    options = {"epochs": 4, "batch_size": 8, "checkpoint_seconds": 0, "progress": False}
    return pv.fit(pair, X, out=folder, **options | settings)


def weights(folder):
    newest = sorted((folder / "checkpoints").glob("[0-9]*"))[-1]
    return checkpoint_store.read(newest)[0]


def assert_resumed(make, tmp_path, monkeypatch, steps=(6,), **settings):
    fit(make(), tmp_path / "whole", **settings)
    for number in steps:
        with monkeypatch.context() as patch:
            stop_after(patch, number)
            with pytest.raises(Stop):
                fit(make(), tmp_path / "parts", resume=number != steps[0], **settings)
    fit(make(), tmp_path / "parts", resume=True, **settings)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


@pytest.mark.thinned(4)
@pytest.mark.parametrize("optimizer", [*optimizers(), pytest.param(Lists, id="lists")])
def test_every_optimizer_is_resumed_bit_for_bit(optimizer, tmp_path, monkeypatch):
    name = getattr(optimizer, "func", optimizer).__name__
    make = functools.partial(Pair, matrices=name == "Muon")
    assert_resumed(make, tmp_path, monkeypatch, optimizer=optimizer)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("schedule", RATES.values(), ids=RATES)
@pytest.mark.parametrize("optimizer", CHANGING.values(), ids=CHANGING)
def test_what_an_optimizer_changes_in_its_steps_is_resumed(
    optimizer, schedule, tmp_path, monkeypatch
):
    assert_resumed(Pair, tmp_path, monkeypatch, optimizer=optimizer, schedule=schedule)


@pytest.mark.parametrize("settings", [{"lr": 2e-2}, {"lrd": 0.8}])
def test_other_settings_of_an_optimizer_that_changes_them_are_refused(settings, tmp_path):
    optimizer = functools.partial(ClippedAdam, **{"lr": 1e-2, "lrd": 0.9})
    fit(Pair(), tmp_path, optimizer=optimizer)
    other = functools.partial(optimizer, **settings)
    with pytest.raises(pv.CheckpointError, match=f"{next(iter(settings))} was"):
        fit(Pair(), tmp_path, optimizer=other, resume=True)


@pytest.mark.parametrize("first", [True, False])
def test_other_trained_parameters_are_refused(first, tmp_path):
    def pair(is_frozen):
        made = Pair()
        made.decoder.bias.requires_grad_(not is_frozen)
        made.train(False)  # Pyro warns of frozen parameters in training mode
        return made

    fit(pair(first), tmp_path)
    sentence = "was not trained and is" if first else "was trained and is not"
    with pytest.raises(pv.CheckpointError, match=f"decoder.*bias' {sentence}"):
        fit(pair(not first), tmp_path, resume=True)


def test_another_number_of_groups_is_refused(tmp_path):
    fit(Pair(), tmp_path, optimizer=two_groups)
    other = functools.partial(torch.optim.Adam, lr=1e-2)
    with pytest.raises(pv.CheckpointError, match=r"1 parameter groups of the optimizer, it had 2"):
        fit(Pair(), tmp_path, optimizer=other, resume=True)


@pytest.mark.parametrize("schedule", [None, pv.schedules.one_cycle])
@pytest.mark.parametrize("kind", [torch.optim.Adam, ClippedAdam])
def test_a_callback_may_add_a_group(kind, schedule, tmp_path):
    pair = Pair()
    first, *others = pair.decoder.parameters()
    optimizer = kind([first], lr=1e-2)

    def unfreeze(entry):
        if entry["epoch"] == 2:
            optimizer.add_param_group({"params": others, "lr": 1e-3})

    before = [p.detach().clone() for p in others]
    options = {"optimizer": optimizer, "callback": unfreeze, "schedule": schedule}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit(pair, tmp_path, **options).num_steps == 16
    assert not any(map(torch.equal, before, others))
    options["optimizer"] = kind([first], lr=1e-2)
    with pytest.raises(pv.CheckpointError, match=r"1 parameter groups .* it had 2"):
        fit(pair, tmp_path, resume=True, **options)


def test_a_hook_that_changes_a_setting_is_not_the_optimizer(tmp_path):
    def optimizer(parameters):
        made = SettingCounter(parameters, lr=1e-2)
        made.register_step_post_hook(lambda made, *_: made.param_groups[0].update(momentum=0.5))
        return made

    fit(Pair(), tmp_path, optimizer=optimizer)
    with pytest.raises(pv.CheckpointError, match=r"momentum was 0.5 and is 0"):
        fit(Pair(), tmp_path, optimizer=optimizer, resume=True)


def model(x):
    w = pyro.sample("w", dist.Normal(torch.zeros(6), 1.0).to_event(1))
    s = pyro.sample("s", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, s.exp()).to_event(1), obs=x)


GUIDES = [
    name
    for name, kind in vars(autoguide).items()
    if isinstance(kind, type)
    and name.startswith("Auto")
    and name
    not in {
        "AutoGuide", "AutoContinuous", "AutoCallable", "AutoDiscreteParallel", "AutoGuideList",
        "AutoMessenger", "AutoMessengerMeta", "AutoNormalizingFlow", "AutoRegressiveMessenger",
    }
]  # fmt: skip


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", GUIDES)
def test_every_autoguide_is_resumed_bit_for_bit(name, tmp_path, monkeypatch):
    def make():
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        return pv.Pair(model, getattr(autoguide, name)(model))

    with pyro.get_param_store().scope():
        assert_resumed(make, tmp_path, monkeypatch)


class Late(Pair):
    """A parameter appears when the weights, which are restored, have moved far enough."""

    constraint = constraints.simplex

    def __init__(self):
        super().__init__()
        self.register_buffer("start", self.decoder.weight.detach().clone())

    def model(self, x):
        if bool((self.decoder.weight - self.start).abs().max() > 0.03):
            late = pyro.param("late", torch.full((6,), 1 / 6), constraint=self.constraint)
            pyro.sample("late_x", dist.Normal(late.log().abs().sum(), 1.0), obs=torch.ones(()))
        super().model(x)


@pytest.mark.thinned(5)
@pytest.mark.parametrize("schedule", [None, "cosine"])
@pytest.mark.parametrize(
    "constraint", [constraints.real, constraints.positive, constraints.simplex]
)
@pytest.mark.parametrize("optimizer", ["Adam", "Adafactor", "SGD"])
def test_a_parameter_that_appears_late_is_read_back(
    optimizer, constraint, schedule, tmp_path, monkeypatch
):
    monkeypatch.setattr(Late, "constraint", constraint)
    rates = {}
    if schedule:
        rates = {"schedule": torch.optim.lr_scheduler.CosineAnnealingLR}
    kind = functools.partial(getattr(torch.optim, optimizer), lr=1e-2)
    with pyro.get_param_store().scope():
        assert_resumed(Late, tmp_path, monkeypatch, steps=(12,), optimizer=kind, **rates)


@pytest.mark.thinned(5)
@pytest.mark.parametrize("schedule", RATES.values(), ids=RATES)
@pytest.mark.parametrize("optimizer", [CHANGING[name] for name in OF_LATE], ids=OF_LATE)
def test_the_settings_of_a_late_group_are_those_before_its_first_step(
    optimizer, schedule, tmp_path, monkeypatch
):
    # The second part creates the group after a state was loaded, the third one is compared with it.
    options = {"optimizer": optimizer, "schedule": schedule, "epochs": 6}
    with pyro.get_param_store().scope():
        assert_resumed(Late, tmp_path, monkeypatch, steps=(2, 14), **options)


@pytest.mark.parametrize(
    ("key", "value"),
    [("odd", object()), (0, 1), (0, torch.zeros(2)), ("odd", torch.eye(2).to_sparse())],
)
def test_a_state_that_cannot_be_written_is_a_warning(key, value, tmp_path):
    class Odd(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            self.state[self.param_groups[0]["params"][0]][key] = value

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert fit(Pair(), tmp_path, optimizer=functools.partial(Odd, lr=1e-2)).num_steps == 16
    assert any("cannot be written" in str(warning.message) for warning in caught)
