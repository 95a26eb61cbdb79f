"""Runs are resumed bit for bit from their checkpoints."""

import pyro
import pytest
import torch

import pyro_vae as pv
from pyro_vae.engine import compiled_step
from pyro_vae.objectives.annealing import Beta, Linear
from tests.models.test_vae import small_vae
from tests.support.runs import (
    BATCH,
    DATA,
    STEPS,
    Stop,
    arguments,
    assert_same_run,
    forge,
    half_a_run,
    pixels,
    stop_after,
    train,
)

VARIANTS = {
    "plain": {},
    "early stopping": {"patience": 1, "epochs": 6, "schedule": None},
    "annealed": {"objective": Beta(Linear(10))},
    "particles": {"num_particles": 2},
    "compiled": {"compile": True},
}


@pytest.mark.thinned(5)
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
    ],
)
def test_a_forged_checkpoint_is_refused(change, sentence, tmp_path, monkeypatch):
    forge(half_a_run(tmp_path, monkeypatch)[-1], change)
    with pytest.raises(pv.CheckpointError, match=sentence):
        train(tmp_path, resume=True)


@pytest.mark.parametrize("change", [lambda s: s.pop("progress"), lambda s: s.update(progress=[1])])
def test_a_state_with_other_fields_is_damaged(change, tmp_path, monkeypatch):
    """Training continues from the checkpoint before it."""
    forge(half_a_run(tmp_path, monkeypatch)[-1], lambda tensors, state: change(state))
    with pytest.warns(UserWarning, match="content.*trying the checkpoint before it"):
        train(tmp_path, resume=True)


def test_a_path_in_the_state_is_never_followed(tmp_path, monkeypatch):
    run, precious = tmp_path / "run", tmp_path / "precious"
    precious.mkdir()
    newest = half_a_run(run, monkeypatch)[-1]
    forge(newest, lambda t, s: s["progress"].update(best_checkpoint="../../precious"))
    train(run, resume=True)
    assert precious.is_dir()


def test_a_checkpoint_within_an_epoch_does_not_read_the_loader_again(tmp_path):
    class Counted(torch.utils.data.Dataset):
        reads = 0

        def __len__(self):
            return DATA

        def __getitem__(self, index):
            type(self).reads += 1
            return (torch.arange(16).reshape(1, 4, 4) % (index + 2) == 0).float()

    def run(folder, seconds):
        torch.manual_seed(7)
        vae, Counted.reads = small_vae(), 0
        loader = torch.utils.data.DataLoader(Counted(), batch_size=BATCH, shuffle=True)
        pv.fit(vae, loader, epochs=2, out=folder, checkpoint_seconds=seconds, progress=False)
        return Counted.reads, list(vae.parameters())

    (rarely, weights), (often, others) = run(tmp_path / "a", 60.0), run(tmp_path / "b", 0.0)
    assert often == rarely
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(weights, others, strict=True))
