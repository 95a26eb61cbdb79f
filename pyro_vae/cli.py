"""The command `pyro-vae`: wiring from a shell to the package's functions."""

import functools
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch.optim.lr_scheduler import OneCycleLR
from typer import Argument, Option

import pyro_vae as pv
from pyro_vae import plots
from pyro_vae.reporting import html_page as pages
from pyro_vae.runtime.files import check_folder, read_file, writable_folder, write_file

print = Console(quiet=not pv.distributed.is_first()).print
app = typer.Typer(
    help="Variational autoencoders on Pyro: train, evaluate, sample.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

DataRoot = Annotated[
    Path | None, Option(help="Folder with the data [default: $PYRO_VAE_DATA or a cache]")
]
Run = Annotated[Path, Argument(help="Folder of a training run")]
Seed = Annotated[int, Option(help="Repeats the command")]


@app.command()
def train(
    data: Annotated[str, Option(help=f"One of {', '.join(pv.data.NAMES)}")] = "mnist",
    data_root: DataRoot = None,
    binarize: Annotated[str, Option(help="dynamic, static or threshold")] = "dynamic",
    epochs: Annotated[int, Option(help="Passes over the training data")] = 18,
    latent_dim: Annotated[int, Option(help="Number of latents")] = 20,
    hidden: Annotated[list[int], Option(help="Hidden units; once for each layer")] = [500],  # noqa: B006
    batch_size: Annotated[int, Option(help="Data in a minibatch")] = 128,
    learning_rate: Annotated[float, Option(help="The highest of the one-cycle schedule")] = 3e-3,
    patience: Annotated[
        int | None, Option(help="Stop after so many epochs without a better validation ELBO")
    ] = None,
    num_samples: Annotated[int, Option(help="K, importance samples for log p(x)")] = 500,
    seed: Seed = 0,
    resume: Annotated[bool, Option(help="Go on from the newest checkpoint in --out")] = False,
    device: Annotated[str, Option(help="cpu, cuda, ...")] = "cpu",
    out: Annotated[Path, Option(help="Folder for results")] = Path("runs/train"),
) -> None:
    """Train a VAE with a Bernoulli likelihood and write its scores and pictures to a folder."""
    full, test = pv.data.load(data, binarize=binarize, root=data_root, seed=seed)
    training, validation = full.hold_out(len(full) // 12)
    x_shape = full.event_shape
    torch.manual_seed(seed)
    decoder = pv.networks.MLP(latent_dim, hidden[::-1], x_shape, output_bias=training.log_odds())
    encoder = pv.networks.MLP(x_shape, hidden, 2 * latent_dim)
    vae = pv.VAE(
        pv.priors.StandardNormal(latent_dim),
        pv.likelihoods.Bernoulli(decoder),
        pv.guides.DiagonalNormal(encoder),
    )
    fit = pv.fit(
        vae,
        training,
        validation=validation,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=functools.partial(torch.optim.Adam, lr=learning_rate, fused=True),
        schedule=lambda optimizer, steps: OneCycleLR(optimizer, learning_rate, total_steps=steps),
        patience=patience,
        seed=seed,
        device=device,
        out=out,
        resume=resume,
    )
    print(pv.report(vae, fit, test, out, num_samples=num_samples, seed=seed))
    print(f"Metrics, pictures, posterior.nc and the model are in {out}")


@app.command()
def evaluate(
    run: Run,
    data_root: DataRoot = None,
    num_samples: Annotated[int, Option(help="K, importance samples for log p(x)")] = 5000,
    seed: Seed = 0,
    device: Annotated[str, Option(help="cpu, cuda, ...")] = "cpu",
) -> None:
    """Score a run's model on its test data: ELBO, log p(x), with standard errors."""
    vae, metrics = _open(run, device)
    test = _test_data(metrics, data_root)
    print(pv.evaluate(vae, test, num_samples=num_samples, seed=seed))


@app.command()
def inspect(
    run: Run,
    html: Annotated[Path | None, Option(help="Page to write: the card, pictures, scores")] = None,
    data_root: DataRoot = None,
    num_data: Annotated[int, Option(help="How many of the test data to look at")] = 1000,
    num_samples: Annotated[int, Option(help="K, draws from the guide for each datum")] = 500,
    seed: Seed = 0,
    device: Annotated[str, Option(help="cpu, cuda, ...")] = "cpu",
) -> None:
    """Say how far a run's posterior can be trusted, and why; with --html, on a page of its own."""
    if num_data < 2:
        raise ValueError(f"num_data must be at least 2, to tell data apart, got {num_data}")
    if num_samples < 1:
        raise ValueError(f"num_samples (K) must be at least 1, got {num_samples}")
    vae, metrics = _open(run, device)
    if html is not None and html.is_dir():
        raise ValueError(f"--html is the file to write, and {html} is a folder: name a file in it")
    writable_folder(run, ["trust.json"])
    writable_folder(run if html is None else html.parent)
    x = _test_data(metrics, data_root).spread(num_data)
    card = pv.diagnose(vae, x, num_samples=num_samples, seed=seed)
    print(card)
    card.save(run / "trust.json")
    print(f"The card is in {run / 'trust.json'}")
    if html is not None:
        pages.write(html, run, metrics, vae, x, card)
        print(f"The page is {html}")


@app.command()
def sample(
    run: Run,
    num_samples: Annotated[int, Option(help="How many images")] = 100,
    seed: Seed = 0,
    out: Annotated[
        Path | None, Option(help="Picture to write [default: RUN/prior_samples.png]")
    ] = None,
) -> None:
    """Draw images from a run's model, x ~ p(x), and write them as a picture."""
    vae, metrics = _open(run, "cpu")
    torch.manual_seed(seed)
    figure = plots.image_grid(
        vae.sample(num_samples), f"{metrics['dataset']}: draws from p(x), seed {seed}"
    )
    out = out or run / "prior_samples.png"
    write_file(out, plots.encoded(figure, out.suffix[1:] or "png", dpi=150))
    print(f"{num_samples} draws from p(x) are in {out}")


def _open(run: Path, device: str) -> tuple[Any, dict[str, Any]]:
    """Return a run's model and its metrics."""
    if not run.is_dir():
        raise ValueError(f"{run} is no folder of a training run: there is no such folder")
    for name in ("metrics.json", "model"):
        if not (run / name).exists():
            raise ValueError(f"{run} is no folder of a training run: it has no {name}")
    check_folder(run / "model")
    text = read_file(run, "metrics.json")
    try:
        metrics = json.loads(text)
        missing = {"dataset", "binarization", "seed"} - metrics.keys()
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{run / 'metrics.json'} is damaged: {error}") from error
    if missing:
        raise ValueError(
            f"{run / 'metrics.json'} does not say the run's {', '.join(sorted(missing))}"
        )
    return pv.load(run / "model", pv.resolve_device(device)), metrics


def _test_data(metrics: dict[str, Any], root: Path | None) -> pv.data.Dataset:
    """Return the data that a run was scored on."""
    name, binarize, seed = (metrics[key] for key in ("dataset", "binarization", "seed"))
    try:
        _, test = pv.data.load(name, binarize=binarize, root=root, seed=seed)
    except pv.data.DataError as error:
        raise ValueError(f"the run's test data cannot be had: {error}") from error
    if test.name != name:
        raise ValueError(
            f"the run's test data, of {name}, cannot be had, and those of {test.name} may be what "
            "it was trained on: name the folder by --data-root or PYRO_VAE_DATA"
        )
    return test


def main() -> None:
    """Run the command; an error of the package's own is a sentence, not a trace."""
    try:
        app()
    except (ValueError, OSError, pv.TrainingError) as error:
        sys.exit(f"error: {error}")
