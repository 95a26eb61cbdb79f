"""Every example runs as a user runs it; one that is not listed here fails the suite."""

import json
import re

import pytest
import xarray as xr

from tests.support.programs import ROOT, run

# For each example the arguments that make it short.
EXAMPLES = {
    "count_data.py": ["--quick"],
    "missing_data.py": ["--quick"],
    "tabular_mixed.py": ["--quick"],
    "conditional.py": ["--quick"],
    "swap_parts.py": ["--quick"],
    "semi_supervised.py": ["--quick"],
    "your_own_model.py": ["--quick"],
    "teach_encoder.py": ["--quick"],
    "mnist_svi.py": ["--epochs", "1", "--hidden", "32", "--num-samples", "30"],
    "posterior_arviz.py": [
        "--epochs",
        "1",
        "--hidden",
        "32",
        "--latent-dim",
        "3",
        "--num-data",
        "30",
        "--num-samples",
        "50",
        "--out",
        "run",
    ],
    "svi_to_arviz.py": [],
    "lightning_ddp.py": ["--data", "mnist-5k", "--epochs", "1"],
}


def test_no_example_is_forgotten():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


def test_examples_are_short():
    for name in EXAMPLES:
        assert len((ROOT / "examples" / name).read_text().splitlines()) < 120, name


@pytest.mark.parametrize(
    "name", ["count_data.py", "missing_data.py", "tabular_mixed.py", "swap_parts.py"]
)
def test_an_example_runs_and_draws_its_picture(name, tmp_path):
    done = run([ROOT / "examples" / name, *EXAMPLES[name], "--out", "run"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    pictures = list((tmp_path / "run").glob("*.png"))
    assert pictures
    assert all(picture.stat().st_size > 5000 for picture in pictures)


def test_encoders_are_taught(tmp_path):
    done = run([ROOT / "examples/teach_encoder.py", *EXAMPLES["teach_encoder.py"]], tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("as trained", "sleep", "wake", "both"))


KEYS = {
    "dataset", "binarization", "num_train", "num_test", "epochs", "seed", "engine", "precision",
    "test_elbo", "test_elbo_se", "test_reconstruction", "test_kl", "test_log_likelihood",
    "test_log_likelihood_se", "num_importance_samples", "images_per_second", "train_seconds",
}  # fmt: skip
FILES = {
    "metrics.json", "model_card.md", "history.json", "posterior.nc", "model", "learning_curve.png",
    "samples.png",
    "reconstructions.png", "latents.png", "checkpoints", ".lock", "results.sha256",
}  # fmt: skip


def check_run(done, out, dataset, *extra):
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics) >= KEYS
    assert metrics["dataset"] == dataset
    assert {path.name for path in out.iterdir()} == FILES | {*extra}
    # What an untrained model of fair coins scores is -543: one epoch is far above it.
    assert -300 < metrics["test_elbo"] < metrics["test_log_likelihood"] < -80
    assert metrics["test_elbo"] == pytest.approx(
        metrics["test_reconstruction"] - metrics["test_kl"], abs=1e-3
    )
    with xr.open_datatree(out / "posterior.nc") as tree:
        assert tree["posterior"].attrs["dataset"] == dataset
        assert tree["posterior/z"].dims == ("chain", "draw", "data", "latent_dim")
    return metrics


def test_mnist_svi_without_data_or_network_says_what_it_uses(tmp_path):
    command = [ROOT / "examples" / "mnist_svi.py", *EXAMPLES["mnist_svi.py"], "--latent-dim", "2"]
    done = run(command, tmp_path)
    metrics = check_run(done, tmp_path / "runs/mnist_svi", "mnist-5k", "manifold.png")
    assert metrics["num_test"] == 1000
    assert "mnist-5k" in done.stderr  # the warning
    assert "mnist-5k" in done.stdout  # the table


def readme_block():
    """Return the README's first Python block, with fewer epochs, samples and hidden units."""
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    for setting, short in [
        (r"epochs=\d+", "epochs=1"),
        (r"num_samples=\d+", "num_samples=5"),
        (r"\[500\]", "[32]"),
    ]:
        block, found = re.subn(setting, short, block)
        assert found
    return block


def test_the_readme_runs_without_data_or_network(tmp_path):
    done = run(["-c", readme_block()], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mnist-5k" in done.stderr
    assert (tmp_path / "model").is_dir()


def test_the_readme_runs_on_real_mnist(tmp_path, mnist_root):
    block = readme_block() + "\nassert (len(train), len(validation)) == (55_000, 5_000)"
    done = run(["-c", block], tmp_path, data=mnist_root)
    assert done.returncode == 0, done.stderr


def test_the_model_of_the_readme_runs(tmp_path):
    _, block = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = run(["-c", block], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "log p(x)" in done.stdout


def test_mnist_svi_on_real_mnist(tmp_path, mnist_root):
    command = [ROOT / "examples" / "mnist_svi.py", *EXAMPLES["mnist_svi.py"], "--out", "run"]
    done = run(command, tmp_path, data=mnist_root)
    metrics = check_run(done, tmp_path / "run", "mnist", "traversals.png")
    assert metrics["num_train"] == 55_000
    assert metrics["test_elbo"] > -160


PARTS = [
    {"prior": "vamp", "guide": "full-normal", "objective": "sticking-the-landing"},
    {"prior": "flow", "likelihood": "normal", "objective": "importance-weighted"},
    {"prior": "mixture", "likelihood": "discretized-logistic", "guide": "flow"},
]


@pytest.mark.thinned(3, start=2)
@pytest.mark.parametrize("parts", PARTS)
def test_mnist_svi_takes_other_parts(tmp_path, parts):
    options = [word for kind, name in parts.items() for word in (f"--{kind}", name)]
    command = [ROOT / "examples/mnist_svi.py", *EXAMPLES["mnist_svi.py"], *options]
    done = run([*command, "--data", "mnist-5k", "--latent-dim", "3", "--out", "run"], tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    chosen = {
        "vamp": "VampPrior", "flow": "Flow", "mixture": "MixtureOfGaussians", "normal": "Normal",
        "discretized-logistic": "DiscretizedLogistic", "full-normal": "FullNormal",
        "sticking-the-landing": "StickingTheLanding", "importance-weighted": "ImportanceWeighted",
    }  # fmt: skip
    assert {kind: metrics[kind] for kind in parts} == {k: chosen[v] for k, v in parts.items()}
    assert metrics["binarization"] == ("none" if "likelihood" in parts else "dynamic")
    assert len(metrics["history"]) == 1


def test_posterior_arviz_goes_from_training_to_the_trust_card(tmp_path):
    command = [ROOT / "examples" / "posterior_arviz.py", *EXAMPLES["posterior_arviz.py"]]
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "run").glob("*.png"))) == 10
    card = json.loads((tmp_path / "run/trust.json").read_text())
    assert card["verdict"] in ("safe", "inspect", "don't")
    assert f"Trust card: {card['verdict']}" in done.stdout
    lower, upper = map(float, re.search(r"(\S+) < log p\(x\) < (\S+)", done.stdout).groups())
    assert upper - 20 < lower < upper + 1


def test_svi_to_arviz_finds_the_line_that_made_its_data(tmp_path):
    done = run([ROOT / "examples" / "svi_to_arviz.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    with xr.open_datatree(tmp_path / "regression.nc") as tree:
        slope = tree["posterior/slope"]
        assert abs(slope.mean() + 1.5) < 5 * slope.std()
        assert slope.std() < 0.1


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("conditional", "digits.png"),
        ("semi_supervised", "classes.png"),
        ("your_own_model", "layers.png"),
    ],
)
def test_a_first_look_draws_its_picture(tmp_path, name, picture):
    done = run([ROOT / "examples" / f"{name}.py", *EXAMPLES[f"{name}.py"]], tmp_path)
    assert done.returncode == 0, done.stderr
    assert picture in done.stdout.replace("\n", "")
    assert (tmp_path / "runs" / name / picture).stat().st_size > 1000


def test_lightning_trains_the_pair_on_two_processes(tmp_path):
    pytest.importorskip("lightning")
    path = ROOT / "examples/lightning_ddp.py"
    assert len(path.read_text().splitlines()) < 60
    done = run([path, *EXAMPLES["lightning_ddp.py"], "--out", "run"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("KL(q(z|x)") == 1  # of two processes one prints
    assert (tmp_path / "run/samples.png").stat().st_size > 5000
    (elbo,) = re.findall(r"ELBO\s*│ (-\d+\.\d+)", done.stdout)
    assert -230 < float(elbo) < -100  # fair coins score -543


@pytest.mark.thinned(2)
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data", "digits"], "error: .*digits.*mnist"),
        (["--epochs", "0"], "error: epochs must be a whole number of at least 1, got 0"),
        (
            ["--device", "cuda:99"],
            "error: device must be an available torch device .*, got 'cuda:99'",
        ),
        (["--binarize", "none"], "error: .*binarize"),
        (["--likelihood", "normal", "--binarize", "static"], "normal needs --binarize none"),
        (["--out", "/dev/null/run"], "error: the output folder '/dev/null/run' cannot be written"),
    ],
)
def test_a_careless_user_gets_a_sentence(tmp_path, arguments, sentence):
    done = run([ROOT / "examples" / "mnist_svi.py", "--data", "mnist-5k", *arguments], tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(sentence, done.stderr)
    assert not (tmp_path / "runs").exists()


def test_the_command_trains_evaluates_and_samples(tmp_path):
    train = ["train", "--data", "mnist-5k", "--epochs", "1", "--hidden", "32", "--out", "run"]
    done = run(["-m", "pyro_vae", *train, "--num-samples", "30"], tmp_path)
    extra = ("traversals.png", "trust.json", "page.html", "explorer.html")
    metrics = check_run(done, tmp_path / "run", "mnist-5k", *extra)
    done = run(["-m", "pyro_vae", "evaluate", "run", "--num-samples", "30"], tmp_path)
    assert done.returncode == 0, done.stderr
    # The same model, data and seed give the same score.
    assert f"{metrics['test_log_likelihood']:.2f}" in done.stdout
    done = run(["-m", "pyro_vae", "sample", "run", "--num-samples", "9"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/prior_samples.png").stat().st_size > 1000
    done = run(["-m", "pyro_vae", "evaluate", "nowhere"], tmp_path)
    assert done.returncode == 1
    assert "error: nowhere: no such directory" in done.stderr
