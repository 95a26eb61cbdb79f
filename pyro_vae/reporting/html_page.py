"""The HTML page of a run: one file with scores, trust card and figures, without network access."""

import base64
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import plots
from pyro_vae.checkpointing.earlier_results import EXPLORER
from pyro_vae.data.sources.schema import Schema
from pyro_vae.datatree.from_pyro_svi import from_pyro_svi
from pyro_vae.diagnostics.trust_card import TrustCard
from pyro_vae.distributed import from_first
from pyro_vae.evaluation import DESCRIPTIONS
from pyro_vae.explorer import Explorer
from pyro_vae.models.base import Autoencoder
from pyro_vae.plots import encoded
from pyro_vae.reporting.described import parts_of
from pyro_vae.reporting.glossary import GLOSSARY
from pyro_vae.reporting.run_report import library_versions
from pyro_vae.runtime.devices import device_of
from pyro_vae.runtime.files import CheckpointError, JSONObject, read_file
from pyro_vae.runtime.records import write_result
from pyro_vae.runtime.tables import printable

TEMPLATE = "html_page.html.jinja"
PNG = b"\x89PNG\r\n\x1a\n"  # first bytes of an image
UNTRUSTED = ("uncured", "improbable", "doubtful")  # statuses of data
LISTED = 50  # number of data of a status that are listed
SHOWN = 10  # number of data in the posterior predictive figure
VERDICTS = {
    "safe": "No diagnostic speaks against this posterior. Whether the model fits the data is "
    "another question: compare its samples with the data in the figures.",
    "inspect": "Check these findings before you use this posterior.",
    "don't": "Do not rely on this posterior, for these reasons.",
}


@dataclass(frozen=True)
class Reading:
    """Title, alternative text and explanation of a figure."""

    title: str
    alt: str
    how: str


# In the order of the page: figures of the run's folder and figures made for the page.
READINGS = {
    "learning_curve": Reading(
        "Learning curve",
        "The ELBO in nats per datum against epochs, for training and validation data",
        "Higher is better. A curve that still rises at its end needs more epochs; a validation "
        "curve that falls while the training curve rises shows overfitting.",
    ),
    "reconstructions": Reading(
        "Test data above their reconstructions",
        "Rows of test images, each above the image decoded from its latents",
        "Each image is above its reconstruction; white lines separate the pairs. Details missing "
        "from the reconstruction are not in the latents.",
    ),
    "predictive": Reading(
        "Posterior predictive against x",
        "Test images in the first row, below them the mean and three samples of x predicted from "
        "their latents",
        "The mean should be a smooth version of x, and the samples noisy versions of it. If the "
        "mean has a different shape, the posterior of this datum is wrong.",
    ),
    "samples": Reading(
        "Means of x for z from the prior",
        "A grid of images decoded from samples of the prior",
        "They should look like the data and be as diverse. Blurred mixtures come from regions of "
        "the prior without latents of data.",
    ),
    "prior_samples": Reading(
        "Samples of x from the model",
        "A grid of images sampled from p(x)",
        "They should look like the training data, including pixel noise.",
    ),
    "columns": Reading(
        "Columns of data and model",
        "For each column a histogram or bars of test data next to samples of the model",
        "The outline of the model should follow the data. A different spread or missing peaks show "
        "that the likelihood of the column does not fit.",
    ),
    "dependence": Reading(
        "The most dependent pairs of columns",
        "Scatter plots of pairs of columns, test data above samples of the model",
        "The clouds of the second row should have the shape of the first. A round cloud below a "
        "narrow one means that the latents do not represent this dependence.",
    ),
    "imputation": Reading(
        "Imputation of hidden entries",
        "Bars of the error of imputed entries of each column next to that of the column's mean, "
        "and the coverage of their intervals",
        "A blue bar shorter than the grey one means that other columns predict this one. Points "
        "left of the dashed line of their colour are intervals that are too narrow.",
    ),
    "counts": Reading(
        "Moments of counts",
        "Variance against mean of the columns, shares of zeros, and totals of the rows, for data "
        "and model",
        "The clouds of the first panel should coincide, and the points of the second lie on the "
        "line. Fewer zeros in the model ask for zero inflation or more dispersion.",
    ),
    "manifold": Reading(
        "The latent plane, decoded",
        "A square of images decoded from a grid over the two latents",
        "Neighbouring images should be similar, and each kind of data should have a region.",
    ),
    "traversals": Reading(
        "One latent varied at a time",
        "Rows of images; along each row one latent goes from -2.5 to 2.5",
        "Each row varies one latent and keeps the others. If a row does not change, the decoder "
        "ignores the latent. The numbers of a row are its KL, in nats: the mean of the data, and "
        "that of this datum.",
    ),
    "latents": Reading(
        "Map of the encoded test data",
        "A scatter plot of posterior means of the test data, coloured by class if there are any",
        "Each point is a test datum. Nearly all samples of the prior are inside of a few standard "
        "deviations. If the data have classes, their names are at their medians, and separate "
        "clusters show that the latents represent the differences between classes.",
    ),
    "khat": Reading(
        "k-hat of each datum",
        "A scatter plot of k-hat against data with its limit as a line; images with the highest "
        "k-hat are below it",
        "For a datum above the line, q misses mass of the posterior, and log p(x) is too low by an "
        "unknown amount. If the data are images, those with the highest k-hat are below.",
    ),
    "untrusted": Reading(
        "Data not to be trusted",
        "Images with k-hat above the limit after refinement, or with a low log p(x)",
        "k-hat stays above the limit after refinement, or the image is less probable than 99.5% of "
        "the images simulated from the model.",
    ),
    "gaps": Reading(
        "Inference gaps",
        "Stacked bars of approximation and amortization gap for each of the first data, sorted",
        "The height of a bar is log p(x) - ELBO of a datum. A more flexible guide can reduce the "
        "first part, a better encoder the second.",
    ),
    "kl": Reading(
        "KL of each latent",
        "Bars of the KL divergence from posterior to prior of each latent, in nats, sorted",
        "A high bar is a latent with much information about x. A grey bar is an inactive latent "
        "that could be omitted.",
    ),
    "aggregate": Reading(
        "Aggregate posterior against the prior",
        "Histograms of latents over all data, each with the curve of the prior",
        "A histogram should match the curve of the prior. If it does not, the decoder is not "
        "trained on some samples from the prior.",
    ),
}


def write(
    path: str | os.PathLike[str],
    run: Path,
    metrics: JSONObject,
    vae: Autoencoder,
    x: Tensor | tuple[Tensor, ...],
    card: TrustCard,
    explorer: Explorer | None = None,
) -> None:
    """Write the page of a run, atomically.

    A page in the run's folder links to `explorer.html`, if that is there. A link is no script, and
    loads nothing before it is followed.

    The page contains the verdict, reasons and findings of the card, the scores of the run, the
    figures that `pyro_vae.report` and `pyro-vae sample` write to the run's folder, further figures,
    the parts of the model and the versions. Figures are embedded, no external file is loaded, and
    all text is escaped. With several processes, the first one writes.

    Args:
        path: File to write.
        run: Folder of the run.
        metrics: Contents of its metrics.json.
        vae: Model of the run.
        x: Data of the card, shape `(num_data, *event)`; or a tuple of them and their context.
        card: Result of `pyro_vae.diagnose` for these data.
        explorer: Explorer to add to the page, or None for a page without scripts.

    Raises:
        CheckpointError: If a figure in the run's folder is a link, no PNG image, or not readable.
        OSError: If the file cannot be written.
    """
    schema: Schema | None = getattr(vae, "schema", None)
    batch = x if isinstance(x, tuple) else (x,)
    pictures = {name: encoded(figure, dpi=110) for name, figure in _figures(vae, batch, card)}
    for name in READINGS.keys() - pictures.keys():
        if (run / f"{name}.png").is_file():
            pictures[name] = _picture(run, f"{name}.png")
    template = files("pyro_vae.reporting").joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(template).render(
        run=run.resolve().name,
        metrics=metrics,
        summary=[
            (DESCRIPTIONS[score], metrics[f"test_{score}"], metrics[f"test_{score}_se"])
            for score in ("elbo", "log_likelihood")
        ],
        facts=[(name, value) for name, value in _facts(run, metrics, vae, card) if value],
        model=type(vae).__name__,
        parts=parts_of(vae),
        columns=[
            {name: printable(text) for name, text in row.items()}
            for row in (schema.rows() if schema is not None else [])
        ],
        card=card,
        verdict=VERDICTS[card.verdict],
        listed=_listed(card),
        glossary=GLOSSARY,
        explorer=None if explorer is None else explorer.section(),
        link=EXPLORER if _has_explorer(Path(path), run) else None,
        scores=[(what, f"test_{score}") for score, what in DESCRIPTIONS.items()],
        pictures=[
            (reading, base64.b64encode(pictures[name]).decode())
            for name, reading in READINGS.items()
            if name in pictures
        ],
        versions=_versions(metrics.get("versions", {})),
    )
    from_first(lambda: write_result(path, page.encode()))


def _has_explorer(path: Path, run: Path) -> bool:
    """Return whether the folder of the page is that of the run, with an explorer."""
    return path.resolve().parent == run.resolve() and (run / EXPLORER).is_file()


def _facts(
    run: Path, metrics: JSONObject, vae: Autoencoder, card: TrustCard
) -> Iterator[tuple[str, object]]:
    """Yield name and value of the settings of the run and of the page."""
    yield "Run", run.resolve().name
    yield "Model", f"{type(vae).__name__}, {len(card.latents.active)} latents"
    yield "Data", f"{metrics['dataset']}, {card.num_data:,} of its test data"
    binarization = metrics["binarization"]
    yield "Binarization", "" if binarization == "none" else binarization
    yield "Objective", metrics.get("objective", "")
    yield "Epochs", metrics.get("epochs", "")
    yield "Best epoch", metrics.get("best_epoch", "")
    yield "Batch size", metrics.get("batch_size", "")
    yield "Seed of the run", str(metrics["seed"])
    yield "K, samples for each datum", card.num_samples
    yield "Seed of the samples", str(card.seed)
    yield "Date of this page", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _picture(run: Path, name: str) -> bytes:
    """Read a figure in the folder of a run.

    Raises:
        CheckpointError: If the file is a link or no PNG image, and may be a private file.
    """
    data = read_file(run, name)
    if not data.startswith(PNG):
        raise CheckpointError(f"{run} is damaged: {name} is not a PNG image: remove it")
    return data


def _listed(card: TrustCard) -> list[tuple[str, str]]:
    """Return the positions of the data that are not trusted, by their status."""
    status = card.status()
    places = {kind: np.flatnonzero(status == kind) for kind in UNTRUSTED}
    return [
        (kind, ", ".join(map(str, found[:LISTED])) + (", ..." if len(found) > LISTED else ""))
        for kind, found in places.items()
        if len(found)
    ]


def _figures(
    vae: Autoencoder, batch: tuple[Tensor, ...], card: TrustCard
) -> Iterator[tuple[str, Figure]]:
    x = batch[0]
    images = x if x.dim() == 4 else None
    if images is not None:
        yield "predictive", _predictive(vae, batch, card)
    elpd = SimpleNamespace(pareto_k=card.per_datum["khat"], good_k=card.khat_threshold)
    yield "khat", plots.khat(elpd, None if images is None else images.cpu())
    untrusted = np.flatnonzero(np.isin(card.status(), UNTRUSTED[:2]))[:SHOWN]
    if images is not None and len(untrusted):
        yield "untrusted", plots.image_grid(x[untrusted].cpu(), "uncured or improbable data")
    if card.gaps is not None:
        approximation, amortization = card.gaps.approximation, card.gaps.amortization
        title = f"inference gaps of the first {len(approximation)} data"
        yield "gaps", plots.gaps(approximation, amortization, title)
    latents = card.latents
    yield "kl", plots.kl_by_dimension(latents.kl, latents.active, "KL of each latent")
    title = "one sample of z for each datum, in prior standard deviations, against N(0, 1)"
    yield "aggregate", plots.aggregate_posterior(latents.draws, title)


def _predictive(vae: Autoencoder, batch: tuple[Tensor, ...], card: TrustCard) -> Figure:
    rows = tuple(values[:SHOWN].to(device_of(vae)) for values in batch)
    tree = from_pyro_svi(
        vae.model,
        vae.guide,
        model_args=rows,
        num_samples=min(card.num_samples, 500),
        groups=("observed_data", "posterior_predictive"),
        seed=card.seed,
    )
    return plots.predictive(tree, range(len(rows[0])), "x above its posterior predictive")


def _versions(trained: dict[str, str]) -> list[tuple[str, str, str]]:
    """Return the version of each library in training, if recorded, and now."""
    now = library_versions()
    return [(name, trained.get(name, "not recorded"), found) for name, found in now.items()]
