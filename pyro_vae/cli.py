"""The command `pyro-vae`: calls the package's functions from a shell.

torch, Pyro and matplotlib are imported by the commands that use them, so that `--help` is fast.
"""

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

import pyro_vae as pv

if TYPE_CHECKING:
    from pyro_vae.models.base import Autoencoder
    from pyro_vae.runtime.files import JSONObject

app = typer.Typer(
    help="Variational autoencoders on Pyro: train, evaluate, inspect, sample.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

DataRoot = Annotated[
    Path | None,
    Option(help="Folder that contains the dataset [default: $PYRO_VAE_DATA or a cache folder]"),
]
Run = Annotated[Path, Argument(help="Folder of a training run")]
Seed = Annotated[int, Option(help="Random seed")]
Device = Annotated[str, Option(help="torch device, such as cpu or cuda")]
Refine = Annotated[bool, Option("--refine", help="Correct the posterior of each datum first")]
NumSamples = Annotated[int, Option(help="K, the number of importance samples for log p(x)")]


@app.command()
def train(
    data: Annotated[str, Option(help="Dataset: mnist, fashion-mnist, frey or mnist-5k")] = "mnist",
    data_root: DataRoot = None,
    binarize: Annotated[
        str, Option(help="Binarization of the pixels: dynamic, static or threshold")
    ] = "dynamic",
    epochs: Annotated[int, Option(help="Number of passes over the training data")] = 18,
    latent_dim: Annotated[int, Option(help="Dimension of the latent space")] = 20,
    hidden: Annotated[
        list[int], Option(help="Number of hidden units; repeat the option for more layers")
    ] = [500],  # noqa: B006
    batch_size: Annotated[int, Option(help="Size of a minibatch")] = 128,
    learning_rate: Annotated[float, Option(help="Maximum of the one-cycle schedule")] = 3e-3,
    patience: Annotated[
        int | None,
        Option(help="Stop after this number of epochs without a better validation ELBO"),
    ] = None,
    num_samples: NumSamples = 500,
    seed: Seed = 0,
    resume: Annotated[bool, Option(help="Continue from the latest checkpoint in --out")] = False,
    device: Device = "cpu",
    out: Annotated[Path, Option(help="Output folder")] = Path("runs/train"),
) -> None:
    """Train a VAE with a Bernoulli likelihood; write its scores and figures to a folder."""
    import torch
    from torch.optim.lr_scheduler import OneCycleLR

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
    _print(pv.report(vae, fit, test, out, num_samples=num_samples, seed=seed))
    _print(f"Wrote the metrics, figures, posterior.nc and the model to {out}")


@app.command()
def evaluate(
    run: Run,
    data_root: DataRoot = None,
    num_samples: NumSamples = 5000,
    refine: Refine = False,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Print the ELBO and log p(x) of a run's test data, with standard errors."""
    vae, metrics = _open(run, device)
    test = _test_data(metrics, data_root)
    scores = pv.evaluate(
        vae, test, num_samples=num_samples, proposal="refined" if refine else "guide", seed=seed
    )
    _print(scores)


@app.command()
def inspect(
    run: Run,
    html: Annotated[
        Path | None, Option(help="HTML page to write: trust card, figures, scores")
    ] = None,
    data_root: DataRoot = None,
    num_data: Annotated[int, Option(help="Number of test data to diagnose")] = 1000,
    num_samples: Annotated[int, Option(help="K, the number of samples per datum")] = 500,
    refine: Refine = False,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Diagnose a run's posterior and print its trust card; with --html, also write a page."""
    from pyro_vae.arguments import Whole
    from pyro_vae.reporting import model_card
    from pyro_vae.reporting.html_page import write
    from pyro_vae.runtime.files import writable_folder

    Whole(2)("num_data", num_data)
    Whole(1)("num_samples", num_samples)
    vae, metrics = _open(run, device)
    if html is not None and html.is_dir():
        raise ValueError(f"--html={html} is a folder; expected the path of a file")
    writable_folder(run, ["trust.json", "model_card.md"])
    writable_folder(run if html is None else html.parent)
    x = _test_data(metrics, data_root).spread(num_data)
    card = pv.diagnose(vae, x, num_samples=num_samples, refine=refine, seed=seed)
    _print(card)
    pv.distributed.from_first(lambda: card.save(run / "trust.json"))
    pv.distributed.from_first(lambda: model_card.write(run, metrics, vae, card.summary()))
    _print(f"Wrote the trust card to {run / 'trust.json'} and into {run / 'model_card.md'}")
    if html is not None:
        write(html, run, metrics, vae, x, card)
        _print(f"Wrote the page to {html}")


@app.command()
def sample(
    run: Run,
    num_samples: Annotated[int, Option(help="Number of images")] = 100,
    seed: Seed = 0,
    out: Annotated[
        Path | None, Option(help="Image file to write [default: RUN/prior_samples.png]")
    ] = None,
) -> None:
    """Sample images x ~ p(x) from a run's model and write them to an image file."""
    import torch

    from pyro_vae.runtime.files import write_file

    vae, metrics = _open(run, "cpu")
    torch.manual_seed(seed)
    figure = pv.plots.image_grid(
        vae.sample(num_samples), f"{metrics['dataset']}: draws from p(x), seed {seed}"
    )
    out = out or run / "prior_samples.png"
    write_file(out, pv.plots.encoded(figure, out.suffix[1:] or "png"))
    _print(f"Wrote {num_samples} samples from p(x) to {out}")


def _print(message: object) -> None:
    """Print in the first process only."""
    from rich.console import Console

    Console(quiet=not pv.distributed.is_first()).print(message)


def _open(run: Path, device: str) -> tuple["Autoencoder", "JSONObject"]:
    """Return the model and the metrics of a run."""
    from pyro_vae.reporting.run_report import read_metrics
    from pyro_vae.runtime.files import check_folder

    if not run.is_dir():
        raise ValueError(f"{run}: no such directory")
    for name in ("metrics.json", "model"):
        if not (run / name).exists():
            raise ValueError(f"{run} is not the folder of a training run: it has no {name}")
    check_folder(run / "model")
    metrics = read_metrics(run)
    return pv.load(run / "model", pv.resolve_device(device)), metrics


def _test_data(metrics: "JSONObject", root: Path | None) -> "pv.data.Dataset":
    """Return the test data of a run."""
    name, binarize, seed = (metrics[key] for key in ("dataset", "binarization", "seed"))
    try:
        _, test = pv.data.load(name, binarize=binarize, root=root, seed=seed)
    except pv.data.DataError as error:
        raise ValueError(f"cannot load the test data of the run: {error}") from error
    if test.name != name:
        raise ValueError(
            f"cannot load the test data of the run: expected {name}, found {test.name}, which may "
            "contain its training data. Set --data-root or PYRO_VAE_DATA"
        )
    return test


def main() -> None:
    """Run the command; print an expected error as a sentence, without a traceback."""
    try:
        app()
    except Exception as error:
        if not isinstance(error, ValueError | OSError | pv.TrainingError):
            raise
        sys.exit(f"error: {error}")
