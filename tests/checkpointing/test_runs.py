"""Checkpoints and resuming: bit for bit, whatever ends a run and whatever befalls its files."""

import functools
import hashlib
import json
import multiprocessing
import os
import pickle
import random
import signal
import sys
import time
from pathlib import Path

import pyro
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from typer.testing import CliRunner

import pyro_vae as pv
from pyro_vae import cli
from pyro_vae.checkpointing import checkpoint_store as runs
from pyro_vae.engine import compiled_step
from pyro_vae.models.base import expose_parameters
from pyro_vae.objectives.annealing import Beta, Linear
from pyro_vae.runtime import files as folders
from pyro_vae.training import loop, run_state
from tests.models.test_vae import small_vae

STEPS = 4  # in an epoch of DATA and BATCH
DATA, BATCH = 60, 16


class Stop(BaseException):
    """Ends a run at once, as nothing that `fit` handles does."""


def pixels(seed=0, num_data=DATA):
    generator = torch.Generator().manual_seed(seed)
    shape = (num_data, 1, 4, 4)
    values = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return pv.data.Dataset(values, binarization="dynamic")


def one_cycle(optimizer, steps):
    return OneCycleLR(optimizer, 1e-2, total_steps=steps)


def arguments(**changed):
    return {
        "train": pixels(),
        "validation": pixels(1, 20),
        "epochs": 4,
        "batch_size": BATCH,
        "optimizer": functools.partial(torch.optim.Adam, lr=1e-2, fused=True),
        "schedule": one_cycle,
        "seed": 3,
        **changed,
    }


def train(folder, *, resume=False, seconds=60.0, **changed):
    """Train; return the result, the weights and the newest checkpoint."""
    torch.manual_seed(7)
    vae = small_vae()
    fit = pv.fit(vae, out=folder, resume=resume, checkpoint_seconds=seconds, **arguments(**changed))
    newest = sorted((folder / "checkpoints").glob("[0-9]*"))[-1]
    return fit, list(vae.parameters()), runs.read(newest)


def stop_after(monkeypatch, steps):
    """Make `fit` end at once after so many steps, whenever it asks for the next batch."""
    real, taken = run_state.RunState.count, []

    def count(self, loss, num_data):
        if len(taken) == steps:
            raise Stop
        taken.append(loss)
        real(self, loss, num_data)

    monkeypatch.setattr(run_state.RunState, "count", count)


def without_seconds(history):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


def assert_same_run(one, other):
    for key in ("stopped", "num_steps"):
        assert getattr(one[0], key) == getattr(other[0], key)
    assert without_seconds(one[0].history) == without_seconds(other[0].history)
    assert without_seconds([one[0].best]) == without_seconds([other[0].best])
    for mine, theirs in zip(one[1], other[1], strict=True):
        assert torch.equal(mine, theirs)
    (mine, _), (theirs, _) = one[2], other[2]
    assert mine.keys() == theirs.keys()  # weights, best weights, optimizer, random states
    assert {key.split("/")[0] for key in mine} == {"now", "best", "optimizer", "random"}
    for key, tensor in mine.items():
        assert torch.equal(tensor, theirs[key]), key


VARIANTS = {
    "plain": {},
    "early stopping": {"patience": 1, "epochs": 6, "schedule": None},
    "annealed": {"objective": Beta(Linear(10))},
    "particles": {"num_particles": 2},
    "compiled": {"compile": True},
}


@pytest.mark.parametrize("stop", [1, STEPS - 1, STEPS, STEPS + 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(variant, stop, tmp_path, monkeypatch):
    # The graph itself, without the seconds that compiling it takes.
    monkeypatch.setattr(compiled_step, "compile_graph", lambda graph, inputs: graph)

    def settings():
        changed = dict(VARIANTS[variant])
        if "objective" in changed:
            changed["objective"] = Beta(Linear(10))  # it counts its steps: one for each run
        return changed

    whole = train(tmp_path / "whole", **settings())
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(Stop):
            train(tmp_path / "parts", seconds=0.0, **settings())
    resumed = train(tmp_path / "parts", resume=True, **settings())
    assert_same_run(whole, resumed)


def test_a_run_in_a_folder_is_the_run_without_one(tmp_path):
    with_folder = train(tmp_path)
    torch.manual_seed(7)
    vae = small_vae()
    pv.fit(vae, **arguments())
    for mine, theirs in zip(with_folder[1], vae.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_programs_of_the_parameter_store_are_resumed_too(tmp_path, monkeypatch):
    def model(x):
        scale = pyro.param("scale", torch.ones(()), pyro.distributions.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
            pyro.sample("x", pyro.distributions.Normal(z, scale), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", pyro.distributions.Normal(loc, 1.0))

    def run(folder, **kwargs):
        with pyro.get_param_store().scope():
            x = torch.linspace(-1, 3, 40)
            pv.fit(
                pv.Pair(model, guide), x, epochs=3, batch_size=10, out=folder, progress=False,
                checkpoint_seconds=0.0, **kwargs,
            )  # fmt: skip
            return pyro.param("loc").item(), pyro.param("scale").item()

    whole = run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(Stop):
            run(tmp_path / "parts")
    assert run(tmp_path / "parts", resume=True) == whole


def test_without_a_checkpoint_it_starts_at_the_beginning_and_says_so(tmp_path, capsys):
    assert_same_run(train(tmp_path / "a"), train(tmp_path / "b", resume=True))
    assert "has no checkpoint: training starts at step 0" in capsys.readouterr().err
    with pytest.raises(ValueError, match="pass out="):
        pv.fit(small_vae(), pixels(), resume=True)


def test_a_finished_run_returns_its_result_at_once(tmp_path, monkeypatch):
    whole = train(tmp_path)
    stop_after(monkeypatch, 0)
    assert_same_run(whole, train(tmp_path, resume=True))


def test_the_last_two_and_the_best_are_kept(tmp_path):
    fit, _, (_, state) = train(tmp_path, epochs=6, patience=5, schedule=None)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert len(names) in (2, 3)
    best = state["progress"]["best_checkpoint"]
    assert best in names
    assert runs.read(tmp_path / "checkpoints" / best)[1]["progress"]["step"] == fit.best["step"]


def test_another_run_in_the_folder_sets_the_checkpoints_aside(tmp_path):
    train(tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    train(tmp_path, seed=4)
    assert sorted(path.name for path in (tmp_path / "checkpoints-before").iterdir()) == names


def half_a_run(folder, monkeypatch, steps=STEPS + 2):
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(Stop):
            train(folder, seconds=0.0)
    return sorted((folder / "checkpoints").glob("[0-9]*"))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"epochs": 5}, "epochs was 4 and is 5"),
        ({"batch_size": 8}, "batch_size was 16 and is 8"),
        ({"patience": 2}, "patience was None and is 2"),
        ({"precision": "bf16"}, "precision was 'fp32' and is 'bf16'"),
        ({"compile": True}, "compile was False and is True"),
        ({"train": pixels(5)}, "train_sha256 was"),
        ({"validation": pixels(5, 20)}, "validation_sha256 was"),
        ({"validation": None}, "validation_sha256 was"),
        ({"objective": Beta(2.0)}, "objective was 'Trace_ELBO' and is 'Beta'"),
        ({"schedule": None}, "other optimizer or schedule: lr was"),
        (
            {"optimizer": functools.partial(torch.optim.Adam, eps=1e-3)},
            "eps was 1e-08 and is 0.001",
        ),
        ({"optimizer": functools.partial(torch.optim.SGD, lr=1e-2)}, "momentum was"),
    ],
)
def test_other_settings_or_data_are_refused(changed, sentence, tmp_path, monkeypatch):
    half_a_run(tmp_path, monkeypatch)
    with pytest.raises(pv.CheckpointError, match=sentence):
        train(tmp_path, resume=True, **changed)


def test_another_beta_or_model_is_refused(tmp_path):
    for folder, objective in [("a", Beta(2.0)), ("b", Beta(Linear(5)))]:
        train(tmp_path / folder, objective=objective, epochs=1)
        with pytest.raises(pv.CheckpointError, match="objectives: beta was"):
            train(tmp_path / folder, objective=Beta(3.0), epochs=1, resume=True)
    with pytest.raises(pv.CheckpointError, match="model was"):
        pv.fit(small_vae(4), out=tmp_path / "a", resume=True,
               **arguments(objective=Beta(2.0), epochs=1))  # fmt: skip


class Canary:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def replace_by_link(path):
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


DAMAGE = {
    "flipped tensors": lambda path: flip(path / runs.TENSORS),
    "flipped state": lambda path: flip(path / runs.STATE),
    "flipped sums": lambda path: flip(path / folders.SUMS),
    "truncated tensors": lambda path: os.truncate(path / runs.TENSORS, 999),
    "truncated state": lambda path: os.truncate(path / runs.STATE, 99),
    "empty": lambda path: os.truncate(path / runs.TENSORS, 0),
    "gone": lambda path: (path / runs.TENSORS).unlink(),
    "pickle": lambda path: (path / runs.TENSORS).write_bytes(
        pickle.dumps(Canary(path.parent / "canary"))
    ),
    "huge state": lambda path: os.truncate(path / runs.STATE, 100 * 2**20),
    "link": lambda path: replace_by_link(path / runs.TENSORS),
    "linked folder": replace_by_link,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_told_and_the_one_before_serves(damage, tmp_path, monkeypatch):
    whole = train(tmp_path / "whole")
    older, newest = half_a_run(tmp_path / "run", monkeypatch)[-2:]
    DAMAGE[damage](newest)
    with pytest.raises(pv.CheckpointError, match=f"{newest.name} is damaged"):
        runs.read(newest)
    with pytest.warns(UserWarning, match="trying the checkpoint before it"):
        resumed = train(tmp_path / "run", resume=True)
    assert_same_run(whole, resumed)
    assert not (older.parent / "canary").exists()


def test_when_none_is_whole_it_is_refused(tmp_path, monkeypatch):
    for path in half_a_run(tmp_path, monkeypatch):
        flip(path / runs.TENSORS)
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(pv.CheckpointError, match="none of the"),
    ):
        train(tmp_path, resume=True)


def forge(path, change):
    """Change a checkpoint and make its checksums right again."""
    tensors, state = runs.read(path)
    change(tensors, state)
    (path / runs.TENSORS).write_bytes(safetensors.torch.save(tensors))
    (path / runs.STATE).write_text(json.dumps(state))
    (path / folders.SUMS).write_text(
        "".join(
            f"{hashlib.sha256((path / file).read_bytes()).hexdigest()}  {file}\n"
            for file in (runs.STATE, runs.TENSORS)
        )
    )


WEIGHT = "now/model.likelihood.decoder.layers.0.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t, s: t.pop(WEIGHT), "lacks the tensor 'now/model.likelihood"),
        (lambda t, s: t.update({WEIGHT: torch.zeros(2)}), r"as torch.float32 of shape \(2,\)"),
        (lambda t, s: t.update({WEIGHT: t[WEIGHT].double()}), "as torch.float64 of shape"),
        (lambda t, s: t.pop(WEIGHT.replace("now", "best")), "lacks the tensor 'best/"),
        (lambda t, s: t.pop("random/torch"), "does not fit this run"),
        (lambda t, s: t.update({"random/torch": torch.zeros(3)}), "does not fit this run"),
        (lambda t, s: s.pop("progress"), "does not fit this run"),
        (lambda t, s: s.update(progress=[1]), "does not fit this run"),
    ],
)
def test_a_forged_checkpoint_is_refused(change, sentence, tmp_path, monkeypatch):
    forge(half_a_run(tmp_path, monkeypatch)[-1], change)
    with pytest.raises(pv.CheckpointError, match=sentence):
        train(tmp_path, resume=True)


def test_a_checkpoint_of_a_later_version_says_so(tmp_path, monkeypatch):
    newest = half_a_run(tmp_path, monkeypatch)[-1]
    forge(newest, lambda t, s: s.update(format=99))
    with pytest.raises(pv.CheckpointError, match=r"format 99.*upgrade pyro_vae"):
        runs.read(newest)


def test_a_path_in_the_state_is_never_followed(tmp_path, monkeypatch):
    run, precious = tmp_path / "run", tmp_path / "precious"
    precious.mkdir()
    newest = half_a_run(run, monkeypatch)[-1]
    forge(newest, lambda t, s: s["progress"].update(best_checkpoint="../../precious"))
    train(run, resume=True)
    assert precious.is_dir()


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
    with pytest.raises(
        ValueError, match=r"need a torch optimizer, but the SVI has an optimizer of pyro\.optim"
    ):
        pv.fit(svi, torch.full((8,), 2.0), on_nan="backtrack")


def test_a_full_disk_is_told_and_training_goes_on(tmp_path, monkeypatch):
    real = folders._write

    def full(path, data):
        of_a_checkpoint = tmp_path / "checkpoints" in path.parents
        if of_a_checkpoint and len(checkpoints(tmp_path)) >= 2:
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(folders, "_write", full)
    with pytest.warns(
        UserWarning, match="No space left.*training continues, and the last checkpoint is of"
    ):
        fit, *_ = train(tmp_path)
    assert fit.stopped == "finished"
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_a_second_run_in_the_folder_is_refused(tmp_path):
    with (
        runs.opened(tmp_path),
        pytest.raises(pv.CheckpointError, match=f"another run writes.*process {os.getpid()}"),
    ):
        train(tmp_path)
    train(tmp_path)


def interrupt_after(patch, steps):
    real = run_state.RunState.count

    def count(self, loss, num_data):
        real(self, loss, num_data)
        if self.progress.step == steps:
            signal.raise_signal(signal.SIGINT)

    patch.setattr(run_state.RunState, "count", count)


def test_the_command_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(pv, "report", lambda *args, **kwargs: None)  # scores and pictures

    def command(out, *options):
        size = ["--data", "mnist-5k", "--hidden", "8", "--latent-dim", "2", "--epochs", "2"]
        done = CliRunner().invoke(cli.app, ["train", *size, "--out", str(out), *options])
        assert done.exit_code == 0, done.exception
        return list(pv.load(out / "model").parameters())

    whole = command(tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 40)
        part = command(tmp_path / "parts")
    resumed = command(tmp_path / "parts", "--resume")
    assert not torch.equal(part[0], whole[0])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(resumed, whole, strict=True))


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    whole = train(tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, STEPS + 2)
        fit, *_ = train(tmp_path / "parts")
    assert (fit.stopped, fit.num_steps) == ("interrupted", STEPS + 2)
    told = capsys.readouterr().err
    assert f"interrupted at step {STEPS + 2}" in told
    assert "resume=True" in told
    assert_same_run(whole, train(tmp_path / "parts", resume=True))


# A forked child dies alone; pytest's process has one thread of torch's only (conftest.py).
fork = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
FORK = multiprocessing.get_context("fork")


def start(target, *args):
    child = FORK.Process(target=target, args=args)
    child.start()
    return child


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def checkpoints(folder):
    return sorted((folder / "checkpoints").glob("[0-9]*"))


def train_slowly(folder, errors):
    """A child's work: steps of 10 ms, and what it says in a file."""
    sys.stderr = errors.open("w", buffering=1)
    real = run_state.RunState.count

    def count(self, loss, num_data):
        time.sleep(0.01)
        real(self, loss, num_data)

    run_state.RunState.count = count
    train(folder, resume=True, seconds=0.0)


@fork
def test_sigterm_saves_and_ends(tmp_path):
    whole = train(tmp_path / "whole")
    child = start(train_slowly, tmp_path / "run", tmp_path / "errors")
    wait_for(lambda: len(checkpoints(tmp_path / "run")) >= 2)
    os.kill(child.pid, signal.SIGTERM)
    child.join(60)
    assert child.exitcode == -signal.SIGTERM
    assert "interrupted at step" in (tmp_path / "errors").read_text()
    assert_same_run(whole, train(tmp_path / "run", resume=True))


def train_without_end(folder, reached):
    def validate(*args):
        reached.touch()
        time.sleep(0.3)
        reached.with_name("handled").touch()
        time.sleep(120)

    loop._validate = validate
    train(folder)


@fork
def test_a_second_signal_ends_at_once(tmp_path):
    child = start(train_without_end, tmp_path / "run", tmp_path / "reached")
    wait_for((tmp_path / "reached").exists)
    os.kill(child.pid, signal.SIGTERM)
    wait_for((tmp_path / "handled").exists)
    assert child.is_alive()
    os.kill(child.pid, signal.SIGTERM)
    child.join(30)
    assert child.exitcode == -signal.SIGTERM


def killing_at(stage):
    """Return a wrapper of functions, which kills the process at their call of this number."""
    calls = []

    def fatal(real):
        def call(*args, **kwargs):
            calls.append(real)
            if len(calls) == stage:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    return fatal


def train_and_die(folder, stage):
    """A child's work: to be killed before the call of this number that touches the disk."""
    fatal = killing_at(stage)
    os.fsync = fatal(os.fsync)
    Path.rename = fatal(Path.rename)
    Path.open = fatal(Path.open)
    runs.read = fatal(runs.read)
    runs._remove = fatal(runs._remove)
    folders.tempfile.mkdtemp = fatal(folders.tempfile.mkdtemp)
    train(folder, resume=True, seconds=0.0)


@fork
def test_killed_at_every_stage_of_a_checkpoint_nothing_is_lost(tmp_path):
    whole = train(tmp_path / "whole")
    run, step, stages = tmp_path / "run", 0, 0
    while True:
        stages += 1
        child = start(train_and_die, run, stages)
        child.join(60)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        for path in checkpoints(run):
            state = runs.read(path)[1]  # raises unless it is whole
        if checkpoints(run):
            assert state["progress"]["step"] >= step
            step = state["progress"]["step"]
    assert stages > 12
    assert_same_run(whole, train(run, resume=True))


def killed_at_random(tmp_path, times, longest):
    draw, whole, run = random.Random(0), train(tmp_path / "whole", epochs=30), tmp_path / "run"
    step = 0
    for _ in range(times):
        child = FORK.Process(
            target=train, args=(run,), kwargs={"resume": True, "seconds": 0.0, "epochs": 30}
        )
        child.start()
        child.join(draw.uniform(0.05, longest))
        child.kill()
        child.join()
        for path in checkpoints(run):
            state = runs.read(path)[1]
        if checkpoints(run):
            assert state["progress"]["step"] >= step
            step = state["progress"]["step"]
    assert step > 0
    assert_same_run(whole, train(run, resume=True, epochs=30))


@fork
def test_killed_at_random_nothing_is_lost(tmp_path):
    killed_at_random(tmp_path, times=6, longest=0.6)


@fork
@pytest.mark.slow
def test_killed_at_random_200_times_nothing_is_lost(tmp_path):
    killed_at_random(tmp_path, times=200, longest=0.5)
