"""Write the results of a trained VAE to a folder: scores, figures, posterior samples, settings."""

import functools
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.special import ndtri
from torch import Tensor

from pyro_vae import plots
from pyro_vae.arguments import FilePath, Instance, Samples, Seed, checked
from pyro_vae.checkpointing.earlier_results import (
    CARD,
    METRICS,
    PICTURES,
    POSTERIOR,
    set_aside_other_results,
)
from pyro_vae.checkpointing.model_folder import MODEL, results_folder
from pyro_vae.data.dataset import Data, Dataset
from pyro_vae.datatree.from_pyro_svi import from_pyro_svi
from pyro_vae.distributed import from_first, is_first
from pyro_vae.evaluation import DESCRIPTIONS, Evaluation, evaluate
from pyro_vae.models.vae import VAE
from pyro_vae.pairs.chunking import data_per_chunk, fitting, map_chunks
from pyro_vae.pairs.inputs import dataset_of
from pyro_vae.pairs.state import unchanged
from pyro_vae.plots.images import literal
from pyro_vae.reporting import model_card
from pyro_vae.runtime.devices import device_of
from pyro_vae.runtime.files import CheckpointError, JSONObject, read_file, write_file, write_json
from pyro_vae.runtime.json_schema import (
    COUNT,
    HISTORY,
    MAX_BYTES,
    PLACE,
    TEXTS,
    Number,
    Record,
    Text,
    parse,
)
from pyro_vae.runtime.versions import versions
from pyro_vae.training.result import Fit

SHOWN = 100  # images in a picture
STEPS = 11  # images along a traversed latent
MANIFOLD = 20  # images along each side of a two-dimensional manifold


_SCORES = {f"test_{name}{end}": Number() for name in DESCRIPTIONS for end in ("", "_se")}
_METRICS = Record(
    {"dataset": Text(), "binarization": Text(), "seed": Number(0, 2**64, integer=True)},
    {
        **_SCORES,
        "num_test": PLACE,
        "num_importance_samples": PLACE,
        "best_epoch": COUNT,
        "versions": TEXTS,
        "history": HISTORY,
    },
)


@checked
def report(
    vae: Annotated[VAE, Instance((VAE,), "a VAE")],
    fit: Annotated[Fit, Instance((Fit,), "the result of pyro_vae.fit")],
    test: Data,
    out: FilePath,
    *,
    num_samples: Samples = 500,
    seed: Seed = 0,
) -> Evaluation:
    """Score a trained VAE on test data and write the results to a folder.

    The folder contains `metrics.json`, a model card (`model_card.md`), the model (`model/`),
    samples of the posterior of some test data for ArviZ (`posterior.nc`) and the figures
    `learning_curve.png` and `latents.png`. For image data it also contains `samples.png`,
    `reconstructions.png`, and `manifold.png` for two latents (Kingma & Welling 2013, Figure 4) or
    `traversals.png` otherwise. Several processes (`torchrun`) share the scores, and the first one
    writes. Results of another run in the folder
    are moved to `results-before`.

    Args:
        vae: Trained VAE.
        fit: Result of `pyro_vae.fit` for it.
        test: Test data, as for `evaluate`.
        out: Folder for the results; it is created if it does not exist.
        num_samples: K, number of importance samples for log p(x).
        seed: Random seed.

    Returns:
        The scores.

    Raises:
        CheckpointError: If the folder is not writable, or a link or an unrelated file or folder has
            the name of a result. It is raised before scoring.

    Warns:
        UserWarning: If results of another run were moved, or if a file cannot be written, for
            example on a full disk. An existing file is then kept.

    Example:
        >>> import tempfile, pathlib, torch, pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Bernoulli(pv.networks.MLP(2, [4], 5)),
        ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [4], 4)),
        ... )
        >>> x = torch.rand(4, 5).round()
        >>> fit = pv.fit(vae, x, epochs=1, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     scores = pv.report(vae, fit, x, folder, num_samples=5)
        ...     sorted(path.name for path in pathlib.Path(folder).iterdir())
        ['latents.png', 'learning_curve.png', 'metrics.json', 'model', 'model_card.md', ...]

    See also: `evaluate`, `fit`, `load`.
    """
    test = dataset_of(vae, test)
    names = [METRICS, CARD, POSTERIOR, *(f"{name}.png" for name in PICTURES)]
    out = from_first(lambda: results_folder(out, names))
    scores = evaluate(vae, test, num_samples=num_samples, seed=seed)
    shown = test.spread(SHOWN)
    tree = from_pyro_svi(
        vae.model,
        vae.guide,
        model_args=(shown[:20],),
        num_samples=500,
        seed=seed,
    )
    with torch.no_grad(), unchanged(vae.model, vae.guide):
        moments = _encoded(vae, test, seed)
    if not is_first():
        return scores
    for group in tree.subtree:
        group.attrs |= {"dataset": test.name, "binarization": test.binarization}
    with torch.no_grad(), unchanged(vae.model, vae.guide):
        torch.manual_seed(seed)
        figures = _figures(vae, fit, test, shown, *moments)
    # Encoded in memory, because HDF5 follows links and crashes if the disk is full.
    files: dict[str, bytes | memoryview] = {POSTERIOR: tree.to_netcdf(engine="h5netcdf")}
    files |= {f"{name}.png": plots.encoded(figure) for name, figure in figures.items()}
    writers: list[Callable[[], object]] = [
        lambda: set_aside_other_results(out, fit.history),
        lambda: vae.save(out / MODEL),
        lambda: model_card.write(
            out,
            write_metrics(out / METRICS, vae, fit, scores),
            vae,
            model_card.read_trust(out),
        ),
        *(functools.partial(write_file, out / name, data) for name, data in files.items()),
    ]
    _write_all(writers, out)
    return scores


def _write_all(writers: Iterable[Callable[[], object]], out: Path) -> None:
    """Call functions that write results; warn once about those that cannot be written."""
    failed = []
    for write in writers:
        try:
            write()
        except (OSError, CheckpointError) as error:
            failed.append(str(error))
    if failed:
        warnings.warn(
            f"results cannot be written into {out} ({'; '.join(failed)}); the scores are returned",
            stacklevel=4,  # the caller of `report`, which has a decorator
        )


def write_metrics(path: Path, vae: VAE, fit: Fit, scores: Evaluation) -> JSONObject:
    """Write settings, scores (nats per datum) and history to `path`, atomically."""
    metrics: JSONObject = {
        **{kind: type(part).__name__ for kind, part in vae.parts.items()},
        **fit.settings,
        "num_test": scores.num_data,
        **scores.metrics(),
        "proposal": scores.proposal,
        "train_seconds": fit.seconds,
        "images_per_second": fit.images_per_second,
        "stopped": fit.stopped,
        "best_epoch": int(fit.best["epoch"]),
        "versions": library_versions(),
        "threads": torch.get_num_threads(),
        "history": fit.history,
    }
    write_json(path, metrics)
    return metrics


def read_metrics(run: Path) -> JSONObject:
    """Read the metrics.json of a run's folder.

    Raises:
        CheckpointError: If the file is missing or damaged.
    """
    return parse(read_file(run, METRICS, MAX_BYTES), run / METRICS, _METRICS)


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that the scores depend on."""
    found = versions("arviz-base")
    names = {"pyro-ppl": "pyro", "pyro-vae": "pyro_vae"}
    return {names.get(name, name): version for name, version in found.items()}


def _figures(
    vae: VAE, fit: Fit, test: Dataset, shown: Tensor, means: Tensor, scales: Tensor
) -> dict[str, Figure]:
    title = f"{literal(test.name)}, binarization {test.binarization}, seed {fit.settings['seed']}"
    figures = {"learning_curve": plots.learning_curve(fit.history, title)}
    latent_dim = means.shape[1]
    points, axis_labels = _plane(means)
    figures["latents"] = plots.latent_map(
        points,
        test.labels,
        f"{title}\nposterior means of the test data by class",
        axis_labels,
        test.class_names,
    )
    if len(test.event_shape) != 3:
        return figures  # not image data
    draws = vae.decode(vae.model.prior().sample((SHOWN,))).mean
    figures["samples"] = plots.image_grid(
        draws.cpu(), f"{title}\nE[x|z] for z drawn from the prior ({latent_dim} latents)"
    )
    figures["reconstructions"] = plots.reconstructions(
        shown[:50].cpu(), vae.reconstruct(shown[:50]).cpu(), f"{title}\ntest data above E[x|z]"
    )
    if latent_dim == 2:
        figures["manifold"] = _manifold(vae, title)
    else:
        figures["traversals"] = _traversals(vae, title, means, scales)
    return figures


def _encoded(vae: VAE, test: Dataset, seed: int) -> tuple[Tensor, Tensor]:
    """Return posterior means and standard deviations, each `(num_data, latent_dim)`.

    They are estimated from 100 samples if q(z|x) has no closed form for them, for example a flow.
    """

    def moments(batch: tuple[Tensor, ...], _: int) -> dict[str, Tensor]:
        q = vae.encode(batch[0])
        try:
            return {"mean": q.mean, "scale": q.stddev}
        except NotImplementedError:
            z = q.sample((100,))
            return {"mean": z.mean(dim=0), "scale": z.std(dim=0)}

    usual = data_per_chunk(test.event_shape, 1)
    rows, _ = fitting(usual, 1, moments, test.batch(slice(4)))
    found = map_chunks(test, moments, rows=rows, seed=seed)
    return found["mean"], found["scale"]


def _plane(means: Tensor) -> tuple[np.ndarray, tuple[str, str]]:
    """Return the first two principal components, or the latents if there are at most two."""
    if means.shape[1] <= 2:
        padded = torch.nn.functional.pad(means, (0, 2 - means.shape[1]))
        return padded.cpu().numpy(), ("z₁", "z₂")
    centred = means - means.mean(dim=0)
    _, singular, components = torch.linalg.svd(centred, full_matrices=False)
    share = singular.square() / singular.square().sum()
    labels = [f"principal component {i + 1} ({share[i]:.0%} of the variance)" for i in (0, 1)]
    return (centred @ components[:2].T).cpu().numpy(), (labels[0], labels[1])


def _manifold(vae: VAE, title: str) -> Figure:
    """Decode a grid of N(0, I) quantiles (Kingma & Welling 2013, Figure 4)."""
    quantiles = ndtri((np.arange(MANIFOLD) + 0.5) / MANIFOLD)
    z2, z1 = np.meshgrid(quantiles[::-1], quantiles, indexing="ij")
    z = torch.tensor(np.stack([z1, z2], axis=-1), dtype=torch.float32)
    images = vae.decode(z.to(device_of(vae))).mean
    return plots.mosaic(images.cpu(), f"{title}\nE[x|z] over the quantiles of N(0, I)")


def _traversals(vae: VAE, title: str, means: Tensor, scales: Tensor) -> Figure:
    """Vary one latent at a time from -2.5 to 2.5, in descending order of KL."""
    # KL(q(z_i|x) || N(0, 1))
    kl = 0.5 * (means.square() + scales.square() - 1) - scales.log()
    order = kl.mean(dim=0).argsort(descending=True)[:20]
    values = torch.linspace(-2.5, 2.5, STEPS, device=means.device)
    z = means[:1].expand(len(order), STEPS, -1).clone()
    for row, latent in enumerate(order):
        z[row, :, latent] = values
    labels = [f"z[{int(i)}]: {kl[:, i].mean():.1f} nats" for i in order]
    caption = f"{title}\nE[x|z] for the first test datum, one latent varied, and its KL to N(0, 1)"
    return plots.mosaic(vae.decode(z.to(device_of(vae))).mean.cpu(), caption, labels)
