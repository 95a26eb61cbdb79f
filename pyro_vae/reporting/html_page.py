"""A run's folder and its trust card to one page: HTML that needs no other file and no network."""

import base64
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyro
import torch
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import plots
from pyro_vae.datatree.from_pyro_svi import from_pyro_svi
from pyro_vae.diagnostics.trust_card import TrustCard
from pyro_vae.evaluation import DESCRIPTIONS
from pyro_vae.models.base import Autoencoder
from pyro_vae.part import Part
from pyro_vae.runtime.devices import device_of
from pyro_vae.runtime.files import read_file, write_file

TEMPLATE = "html_page.html.jinja"
SHOWN = 10  # data beside what their latents predict
VERDICTS = {
    "safe": "Nothing that was measured speaks against relying on this posterior.",
    "inspect": "Look at these before you build on this posterior.",
    "don't": "Do not rely on this posterior: this speaks against it.",
}


@dataclass(frozen=True)
class Reading:
    """What a picture is called, what it shows to whoever cannot see it, and how to read it."""

    title: str
    alt: str
    how: str


# In the order of the page: the pictures of a run's folder, and those that are drawn for it.
READINGS = {
    "learning_curve": Reading(
        "Learning curve",
        "The ELBO in nats per datum against epochs, for training and validation data",
        "Higher is better: a curve still rising at its end wants more epochs, and a validation "
        "curve that turns down while training goes up has learned the training data by heart.",
    ),
    "reconstructions": Reading(
        "Test data above their reconstructions",
        "Rows of test images, each above the image decoded from its latents",
        "Each image in an odd row comes back below as what its latents kept: compare the two, a "
        "stroke lost there is not in the latents.",
    ),
    "predictive": Reading(
        "Posterior predictive against x",
        "Test images in the first row, below them the mean and three draws of x predicted from "
        "their latents",
        "The mean should be the x above it with soft edges, and the draws noisy versions of it: "
        "a mean of another shape is a datum that the posterior has got wrong.",
    ),
    "samples": Reading(
        "Means of x for z from the prior",
        "A grid of images decoded from draws of the prior",
        "They should look like the data, in all their variety: blurred hybrids come from regions "
        "of the prior where no datum has its latents.",
    ),
    "prior_samples": Reading(
        "Draws of x from the model",
        "A grid of images drawn from p(x)",
        "They should look like the data as these were fed in training, pixel noise included.",
    ),
    "manifold": Reading(
        "The latent plane, decoded",
        "A square of images decoded from a grid over the two latents",
        "Neighbours should change smoothly into each other, and each kind of data have its region.",
    ),
    "traversals": Reading(
        "One latent varied at a time",
        "Rows of images; along each row one latent goes from -2.5 to 2.5",
        "Each row varies the latent that it names and keeps the others: a row that does not change "
        "is a latent that the decoder ignores.",
    ),
    "latents": Reading(
        "Map of the encoded test data",
        "A scatter plot of posterior means of the test data, coloured by class",
        "Each point is a test datum: classes in clouds of their own, with the labels never seen, "
        "say that the latents have found what tells the data apart.",
    ),
    "khat": Reading(
        "k-hat of each datum, and the data where it is highest",
        "A scatter plot of k-hat against data with its limit as a line, above the images with the "
        "highest k-hat",
        "A point above the line is a datum of whose posterior q misses mass, so that its log p(x) "
        "is too low by an unknown amount; the images below are the worst of them.",
    ),
    "gaps": Reading(
        "Inference gaps",
        "Stacked bars of approximation and amortization gap for each of the first data, sorted",
        "The height of a bar is what the ELBO of a datum loses against log p(x): a richer guide "
        "can win the first part, a better encoder the second.",
    ),
    "kl": Reading(
        "KL of each latent",
        "Bars of the KL divergence from posterior to prior of each latent, in nats, sorted",
        "A high bar is a latent that says much of x, a grey one a latent that says nothing and "
        "could be left out.",
    ),
    "aggregate": Reading(
        "Aggregate posterior against the prior",
        "Histograms of latents over all data, each with the curve of the prior",
        "A histogram should fill the curve of its prior: where it does not, draws from the prior "
        "meet what the decoder has never seen.",
    ),
}


def write(
    path: str | os.PathLike[str],
    run: Path,
    metrics: dict[str, Any],
    vae: Autoencoder,
    x: Tensor,
    card: TrustCard,
) -> None:
    """Write the page of a run, whole or not at all.

    It holds the card's verdict, reasons and findings, the run's scores, the pictures of the
    run's folder that `pyro_vae.report` and `pyro-vae sample` write, those that are drawn for the
    page, the parts of the model and the versions. Pictures are part of the file, nothing is loaded
    from elsewhere, and every text is escaped.

    Args:
        path: the file.
        run: the run's folder.
        metrics: of its metrics.json.
        vae: its model.
        x: the data that the card was made of, images of shape `(num_data, [channels,] height,
            width)`.
        card: what `pyro_vae.diagnose` says of them.

    Raises:
        CheckpointError: when a picture in the run's folder is a link or cannot be read.
        OSError: when the file cannot be written.
    """
    pictures = {name: _png(figure) for name, figure in _figures(vae, x, card)}
    for name in READINGS.keys() - pictures.keys():
        if (run / f"{name}.png").is_file():
            pictures[name] = read_file(run, f"{name}.png")
    template = files("pyro_vae.reporting").joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(template).render(
        run=run.resolve().name,
        metrics=metrics,
        model=type(vae).__name__,
        parts=_parts(vae),
        card=card,
        verdict=VERDICTS[card.verdict],
        scores=[(what, f"test_{score}") for score, what in DESCRIPTIONS.items()],
        pictures=[
            (reading, base64.b64encode(pictures[name]).decode())
            for name, reading in READINGS.items()
            if name in pictures
        ],
        versions=_versions(metrics.get("versions", {})),
    )
    write_file(path, page.encode())


def _figures(vae: Autoencoder, x: Tensor, card: TrustCard) -> Iterator[tuple[str, Figure]]:
    tree = from_pyro_svi(
        vae.model,
        vae.guide,
        model_args=(x[:SHOWN].to(device_of(vae)),),
        num_samples=min(card.num_samples, 500),
        groups=("observed_data", "posterior_predictive"),
        seed=card.seed,
    )
    yield (
        "predictive",
        plots.predictive(tree, range(len(x[:SHOWN])), "x above what its latents predict"),
    )
    elpd = SimpleNamespace(pareto_k=card.per_datum["khat"], good_k=card.khat_threshold)
    yield "khat", plots.khat(elpd, x.cpu())
    if card.gaps is not None:
        approximation, amortization = card.gaps.approximation, card.gaps.amortization
        title = f"inference gaps of the first {len(approximation)} data"
        yield "gaps", plots.gaps(approximation, amortization, title)
    latents = card.latents
    yield "kl", plots.kl_by_dimension(latents.kl, latents.active, "KL of each latent")
    title = "one draw of z for each datum, in prior standard deviations, against N(0, 1)"
    yield "aggregate", plots.aggregate_posterior(latents.draws, title)


def _png(figure: Figure) -> bytes:
    return plots.encoded(figure, dpi=110, bbox_inches="tight")


def _parts(vae: Autoencoder) -> list[tuple[str, str, int]]:
    """Return name, description and number of parameters of what a model was built of."""
    return [
        (
            name,
            _described(value),
            sum(parameter.numel() for parameter in value.parameters())
            if isinstance(value, Part)
            else 0,
        )
        for name, value in vae.build_arguments.items()
    ]


def _described(value: Any) -> str:
    """Write a part as the call that builds it."""
    if isinstance(value, Part):
        arguments = ", ".join(
            f"{name}={_described(argument)}"
            for name, argument in value.build_arguments.items()
            if argument is not None  # a tensor that set a starting value, or a default
        )
        return f"{type(value).__name__}({arguments})"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_described, value))}]"
    return repr(value)


def _versions(trained: dict[str, str]) -> list[tuple[str, str, str]]:
    """Return for each library its version in training, where recorded, and its version now."""
    now = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "pyro_vae": version("pyro-vae"),
        "arviz-base": version("arviz-base"),
    }
    return [(name, trained.get(name, "not recorded"), found) for name, found in now.items()]
