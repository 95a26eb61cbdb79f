"""Write the results of a trained VAE to a folder: scores, figures, posterior samples, settings."""

import functools
import math
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from matplotlib.figure import Figure
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
from pyro_vae.data.any_data import Data
from pyro_vae.data.content import content_of
from pyro_vae.datatree.from_pyro_svi import from_pyro_svi
from pyro_vae.distributed import from_first, is_first
from pyro_vae.distributions.independent import is_standard_normal
from pyro_vae.evaluation import DESCRIPTIONS, Evaluation, evaluate
from pyro_vae.models.any_vae import AnyVAE
from pyro_vae.pairs.inputs import dataset_of
from pyro_vae.pairs.state import unchanged
from pyro_vae.plots.images import title_of
from pyro_vae.reporting import model_card
from pyro_vae.reporting.contents import FIGURES, Subject
from pyro_vae.reporting.rows import latent_moments
from pyro_vae.runtime.files import CheckpointError, JSONObject, read_file
from pyro_vae.runtime.json_schema import (
    COUNT,
    HISTORY,
    MAX_BYTES,
    PLACE,
    TEXTS,
    ListOf,
    Maybe,
    Number,
    Record,
    Text,
    parse,
)
from pyro_vae.runtime.records import write_json_result, write_result
from pyro_vae.runtime.versions import versions
from pyro_vae.training.result import Fit

SHOWN = 100  # images in a picture

# Where the data of a run are, recorded by the command line.
_SOURCE = Record(
    {"data": Text(), "sha256": ListOf(Text()), "options": Record()},
    {"binarize": Maybe(Text()), "test": Maybe(Text())},
)
_SCORES = {f"test_{name}{end}": Maybe(Number()) for name in DESCRIPTIONS for end in ("", "_se")}
_METRICS = Record(
    {
        "dataset": Text(),
        "binarization": Text(),
        "seed": Number(0, 2**64, integer=True),
        "num_test": PLACE,
        "num_importance_samples": PLACE,
    },
    {
        **_SCORES,
        "test_khat_share_above_threshold": Maybe(Number(0, 1)),
        "best_epoch": COUNT,
        "versions": TEXTS,
        "history": HISTORY,
        "source": _SOURCE,
    },
)


@checked
def report(
    vae: AnyVAE,
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
    `learning_curve.png` and `latents.png`. Images add `samples.png`, `reconstructions.png`, and
    `manifold.png` for two latents (Kingma & Welling 2013, Figure 4) or `traversals.png` otherwise.
    Tables and arrays add `columns.png` and `dependence.png`, and `imputation.png` if values are
    missing; counts add `counts.png`. Several processes (`torchrun`) share the scores, and the first
    one writes. Results of another run in the folder are moved to `results-before`.

    Args:
        vae: Trained `VAE` or `LadderVAE`; or a `ConditionalVAE`, sampled in the contexts of the
            test data.
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
        ...     names = {path.name for path in pathlib.Path(folder).iterdir()}
        >>> {"columns.png", "latents.png", "metrics.json", "model", "posterior.nc"} <= names
        True

    See also: `evaluate`, `fit`, `load`.
    """
    test = dataset_of(vae, test)
    names = [METRICS, CARD, POSTERIOR, *(f"{name}.png" for name in PICTURES)]
    out = from_first(lambda: results_folder(out, names))
    scores = evaluate(vae, test, num_samples=num_samples, seed=seed)
    shown, *context = test.spread_batch(SHOWN)
    tree = from_pyro_svi(
        vae.model,
        vae.guide,
        model_args=(shown[:20], *(y[:20] for y in context)),
        num_samples=500,
        seed=seed,
    )
    with torch.no_grad(), unchanged(vae.model, vae.guide):
        means, scales = latent_moments(vae, test, seed)
    if not is_first():
        return scores
    for group in tree.subtree:
        group.attrs |= {"dataset": test.name, "binarization": test.binarization}
    with torch.no_grad(), unchanged(vae.model, vae.guide):
        torch.manual_seed(seed)
        title = title_of(test.name, test.binarization, fit.settings["seed"])
        figures = _figures(
            Subject(vae, test, shown, tuple(context), means, scales, title, seed), fit
        )
    # Encoded in memory, because HDF5 follows links and crashes if the disk is full.
    encoded = tree.to_netcdf(engine="h5netcdf")
    files = {POSTERIOR: bytes(encoded)}
    if isinstance(encoded, memoryview):
        encoded.release()  # otherwise Python 3.13 warns when it frees the buffer
    files |= {f"{name}.png": plots.encoded(figure) for name, figure in figures.items()}
    writers: list[Callable[[], object]] = [
        lambda: set_aside_other_results(out, fit.history, [METRICS, CARD, *files]),
        lambda: vae.save(out / MODEL),
        lambda: model_card.write(
            out,
            write_metrics(out / METRICS, vae, fit, scores),
            vae,
            model_card.read_trust(out),
        ),
        *(functools.partial(write_result, out / name, data) for name, data in files.items()),
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


def write_metrics(path: Path, vae: AnyVAE, fit: Fit, scores: Evaluation) -> JSONObject:
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
    write_json_result(path, metrics)
    return metrics


def read_metrics(run: Path) -> JSONObject:
    """Read the metrics.json of a run's folder. Scores that are null or missing there are NaN.

    Raises:
        CheckpointError: If the file is missing or damaged.
    """
    metrics = parse(read_file(run, METRICS, MAX_BYTES), run / METRICS, _METRICS)
    undefined = [name for name in _SCORES if metrics.get(name) is None]
    return {**metrics, **dict.fromkeys(undefined, math.nan)}


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that the scores depend on."""
    found = versions("arviz-base")
    names = {"pyro-ppl": "pyro", "pyro-vae": "pyro_vae"}
    return {names.get(name, name): version for name, version in found.items()}


def _figures(subject: Subject, fit: Fit) -> dict[str, Figure]:
    """Return the figures of all contents, and those of the content of the data."""
    points, axis_labels, origin = _plane(subject.means)
    has_circle = is_standard_normal(subject.vae.model.prior()) and subject.means.shape[1] > 1
    labels = subject.test.labels
    by_class = "" if labels is None else " by class"
    return {
        "learning_curve": plots.learning_curve(fit.history, subject.title),
        "latents": plots.latent_map(
            points,
            labels,
            f"{subject.title}\nposterior means of the test data{by_class}",
            axis_labels,
            subject.test.class_names,
            origin if has_circle else None,
        ),
        **FIGURES[content_of(subject.test)](subject),
    }


def _plane(means: Tensor) -> tuple[np.ndarray, tuple[str, str], np.ndarray]:
    """Return points in a plane, the labels of its axes, and the place of z = 0.

    The axes are the first two principal components, or the latents if there are at most two.
    """
    if means.shape[1] <= 2:
        padded = torch.nn.functional.pad(means, (0, 2 - means.shape[1]))
        return padded.cpu().numpy(), ("z[0]", "z[1]"), np.zeros(2)
    centre = means.mean(dim=0)
    _, singular, components = torch.linalg.svd(means - centre, full_matrices=False)
    share = singular.square() / singular.square().sum()
    labels = [f"principal component {i + 1} ({share[i]:.0%} of the variance)" for i in (0, 1)]
    points = (means - centre) @ components[:2].T
    return points.cpu().numpy(), (labels[0], labels[1]), (-components[:2] @ centre).cpu().numpy()
