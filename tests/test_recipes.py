"""Recipes: the printed code builds the same model and the same arguments of `fit`."""

import re

import pytest
import torch
from typer.testing import CliRunner

import pyro_vae as pv
from pyro_vae import cli
from pyro_vae.data.errors import DataError
from pyro_vae.recipes import RECIPES


def images(count=40):
    torch.manual_seed(0)
    pixels = (torch.rand(count, 1, 12, 12) < 0.3).to(torch.uint8) * 255
    return pv.data.Dataset(pixels, name="squares", split="train", binarization="threshold")


def small(name):
    """Return the latents of a small model of a recipe."""
    return {"latent_dim": [4, 3] if name.startswith("ladder") else 3}


@pytest.mark.parametrize("name", RECIPES)
def test_the_printed_code_builds_the_same_model(name, capsys):
    data = images()
    torch.manual_seed(0)
    vae = RECIPES[name].build(data, **small(name))
    exec(capsys.readouterr().out, {"pv": pv}, scope := {})
    built = scope["vae"]
    built.load_state_dict(vae.state_dict())
    x = data[:6]
    for part in ("encode", "decode"):
        values = x if part == "encode" else torch.randn(6, 3)
        torch.manual_seed(1)
        expected = getattr(vae, part)(values).sample()
        torch.manual_seed(1)
        assert torch.equal(getattr(built, part)(values).sample(), expected)
    z = torch.randn(6, 3)
    assert torch.equal(built.parts["prior"]().log_prob(z), vae.parts["prior"]().log_prob(z))
    shares = [
        {*map(id, v.guide.parameters())} & {*map(id, v.parts["prior"].parameters())} != set()
        for v in (vae, built)
    ]
    assert shares[0] == shares[1] == name.endswith("vamp")
    assert [p.shape for p in vae.parameters()] == [p.shape for p in built.parameters()]


def described(value):
    """Return an objective or a schedule as values that can be compared."""
    if isinstance(value, pv.objectives.Beta):
        betas = [value.schedule(step) for step in range(value.num_steps, 400)]
        return betas, described(value.objective)
    if isinstance(value, pv.objectives.ImportanceWeighted):
        return {k: v for k, v in vars(value).items() if isinstance(v, int | float | bool)}
    return type(value) if hasattr(value, "differentiable_loss") else value


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("sizes", [{}, {"epochs": 7, "batch_size": 30}])
def test_the_code_has_the_settings(name, sizes):
    recipe = RECIPES[name]
    found = {}

    class Recorded:
        def __getattr__(self, key):
            return getattr(pv, key)

        @staticmethod
        def fit(vae, train, **given):
            found.update(given)

    scope = {"pv": Recorded(), "vae": None, "train": None, "validation": "held out"}
    exec(recipe.code(1000, **sizes), scope)
    assert found.pop("validation") == "held out"
    expected = recipe.settings(1000, **sizes)
    assert {k: described(v) for k, v in found.items()} == {
        k: described(v) for k, v in expected.items()
    }
    assert found["epochs"] == sizes.get("epochs", recipe.epochs)
    if recipe.warmup:
        steps = found["epochs"] * -(-1000 // found["batch_size"])
        schedule, layered = found["objective"].schedule, isinstance(recipe.warmup, tuple)
        for i, share in enumerate(recipe.warmup if layered else [recipe.warmup]):
            linear = pv.objectives.Linear(round(share * steps))
            for step in (0, 3, linear.num_steps - 1, linear.num_steps):
                assert (schedule(step)[i] if layered else schedule(step)) == linear(step)
        if layered:
            assert found["objective"].names == ("z1", "z2")


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", RECIPES)
def test_models_of_recipes_train_score_and_are_loaded(name, tmp_path):
    data = images()
    hidden = {} if name == "conv-flow" else {"hidden": [8]}
    torch.manual_seed(0)
    vae = RECIPES[name].build(data, show=False, **small(name), **hidden)
    settings = RECIPES[name].settings(len(data), epochs=1, batch_size=20)
    fit = pv.fit(vae, data, compile=False, progress=False, **settings)
    assert fit.num_steps == 2
    vae.save(tmp_path / "model")
    scores = [
        pv.evaluate(model, data, num_samples=4).log_likelihood
        for model in (vae, pv.load(tmp_path / "model"))
    ]
    assert (scores[0] == scores[1]).all()


@pytest.mark.parametrize("latent_dim", [3, [3], [4, 3, 2]])
def test_a_warm_up_of_layers_needs_as_many_layers(latent_dim):
    with pytest.raises(DataError, match=r"for 2 layers of latents; expected as many sizes, got"):
        RECIPES["ladder"].build(images(), latent_dim=latent_dim, show=False)


def test_convolutions_are_refused_for_other_data():
    with pytest.raises(DataError, match=r"\(conv=True\) need images .* got data of shape \(4,\)"):
        pv.suggest(torch.randn(10, 4).numpy(), conv=True, show=False)


def test_arguments_of_the_networks_reach_tables_too():
    import pandas as pd

    frame = pd.DataFrame({"a": [1.5, 2.5, -0.5, 3.0], "b": ["x", "y", "x", "y"]})
    vae = pv.suggest(frame, hidden=[4], network={"block": "gated"}, show=False)
    gates = [m for m in vae.modules() if type(m).__name__ == "Gated"]
    assert len(gates) == 2  # of the encoder, and of the trunk of the decoder


def command(out, *options):
    given = ["train", "mnist-5k", "--out", str(out), *options]
    return CliRunner().invoke(cli.app, given)


def test_the_command_trains_a_recipe(tmp_path, monkeypatch):
    monkeypatch.setattr(pv, "report", lambda *args, **kwargs: None)  # scores and pictures
    size = ["--hidden", "8", "--latent-dim", "2", "--epochs", "1", "--batch-size", "500"]
    done = command(tmp_path, "--recipe", "gated-vamp", "--learning-rate", "0.002", *size)
    assert done.exit_code == 0, done.exception
    vae = pv.load(tmp_path / "model")
    assert isinstance(vae.parts["prior"], pv.priors.VampPrior)
    printed = " ".join(done.stdout.split())
    assert "guide = pv.guides.DiagonalNormal(" in printed
    assert "block='gated'" in printed
    assert re.search(
        r"fit = pv\.fit\( vae, .* epochs=1, batch_size=500, learning_rate=0\.002", printed
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "best"], "unknown recipe 'best'; expected one of tanh"),
        (["--recipe", "gated", "--objective", "elbo"], "expected --recipe or --objective"),
    ],
)
def test_wrong_recipes_are_refused_before_training(tmp_path, options, message):
    done = command(tmp_path / "run", *options)
    assert done.exit_code != 0
    assert message in " ".join(f"{done.output} {done.exception}".split())
    assert not (tmp_path / "run").exists()
