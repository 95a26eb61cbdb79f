"""The contents of an explorer: decoder, data, latents and draws, as JSON."""

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_vae.data.chunks import evenly_spaced
from pyro_vae.data.classes import names_of_classes
from pyro_vae.data.dataset import Dataset
from pyro_vae.diagnostics.collapse import collapse
from pyro_vae.evaluation import evaluate
from pyro_vae.explorer.decoder import checkpoint, exported, packed
from pyro_vae.explorer.latents import clouds_of, geometry_of, latents_of, principal_axes
from pyro_vae.explorer.observations import observation_of, pixels
from pyro_vae.models.any_vae import AnyVAE
from pyro_vae.models.base import mean_of
from pyro_vae.models.conditional import ConditionalVAE
from pyro_vae.models.ladder import LadderVAE
from pyro_vae.pairs.chunking import data_per_chunk
from pyro_vae.runtime.devices import evaluating
from pyro_vae.runtime.files import JSONObject
from pyro_vae.runtime.random_state import preserved_state

MAX_DATA_BYTES = 2_000_000  # of x in a page
PRIOR_SAMPLES = 1000
MAX_CONDITIONS = 30  # that can be chosen in a page
CLOUDS, DRAWS = 60, 60  # data with draws of their posterior, and draws of each


@torch.no_grad()
def contents_of(
    vae: AnyVAE,
    data: Dataset,
    *,
    num_data: int,
    num_samples: int,
    refine: bool,
    seed: int,
) -> JSONObject:
    """Return the contents of an explorer of a VAE.

    Args:
        vae: The VAE, or a VAE of x given y.
        data: Data with their context, on its device and in its floating-point type.
        num_data: Number of data on the map, from evenly spaced places.
        num_samples: K, number of samples for log p(x) and k-hat.
        refine: Whether to store draws of the refined posterior, too.
        seed: Random seed.
    """
    with evaluating(vae), preserved_state(seed):
        rows = _rows(data, num_data)
        batch = data.batch(torch.from_numpy(rows))
        x, *context = batch
        tiled = [y[torch.arange(PRIOR_SAMPLES) % len(y)] for y in context]
        prior, z = _prior(vae, tiled)
        decoder = exported(vae, z[:64], *(y[:64] for y in tiled))
        geometry = geometry_of(prior)
        means = _means(vae, batch, geometry)
        scores = evaluate(vae, batch, num_samples=num_samples, seed=seed)
        use = collapse(vae, batch, num_samples=20, seed=seed, progress=False)
        spread = np.linspace(0, len(x) - 1, min(CLOUDS, len(x))).astype(int).tolist()
        some = tuple(values[spread] for values in batch)
        clouds = clouds_of(vae, some, spread, DRAWS, refine, seed)
        check = checkpoint(vae, z, *tiled)
    values = x.cpu().float().numpy()
    observation = observation_of(data, values)
    stored = pixels(values) if observation["kind"] == "image" else values.astype(np.float32)
    return {
        "title": f"Latent space of {data.name}",
        "notes": _notes(vae, data, rows, num_samples, decoder["weights"]["dtype"]),
        "geometry": geometry,
        "latents": latents_of(use, means, z.cpu(), geometry),
        "axes": principal_axes(means),
        "observation": observation,
        "decoder": decoder,
        "check": check,
        "conditions": _conditions(data, context),
        "data": {
            "rows": rows.tolist(),
            "z": packed(means.numpy()),
            "x": packed(stored),
            "log_p": packed(np.asarray(scores.log_likelihood, dtype=np.float32)),
            "khat": packed(np.asarray(scores.khat, dtype=np.float32)),
            "khat_threshold": float(scores.khat_threshold),
            **_classes(data, rows),
        },
        "clouds": clouds,
    }


def _rows(data: Dataset, num_data: int) -> np.ndarray:
    """Return evenly spaced positions, as many as the page holds."""
    size = max(1, int(np.prod(data.event_shape)))
    size *= 1 if len(data.event_shape) == 3 else 4
    count = max(2, min(num_data, len(data), MAX_DATA_BYTES // size))
    return np.arange(len(data))[evenly_spaced(len(data), count)]


def _prior(vae: AnyVAE, context: list[Tensor]) -> tuple[Distribution, Tensor]:
    """Return p(z), or p(z|y) for each row of y, and samples `(PRIOR_SAMPLES, latent_dim)`."""
    if isinstance(vae, ConditionalVAE) and vae.model.prior_takes_y:
        prior = vae.model.prior(*context)
        return prior, prior.sample()
    prior = vae.model.prior()
    return prior, prior.sample((PRIOR_SAMPLES,))


def _means(vae: AnyVAE, batch: tuple[Tensor, ...], geometry: str) -> Tensor:
    """Return E[z|x], on the support of the prior, shape `(num_data, latent_dim)`."""
    size = data_per_chunk(batch[0].shape[1:], 1)
    parts = zip(*(values.split(size) for values in batch), strict=True)
    means = torch.cat([mean_of(vae.encode(*part)) for part in parts]).cpu().float()
    if geometry == "sphere":
        return means / means.norm(dim=1, keepdim=True)
    return means


def _conditions(data: Dataset, context: list[Tensor]) -> JSONObject | None:
    """Return the context of each datum, and the conditions that can be chosen, with their names."""
    if not context:
        return None
    y = context[0].cpu().float()
    rows, which = y.unique(dim=0, return_inverse=True)
    given: list[str] = getattr(data.schema, "context_names", list)()
    names = given or [f"y[{i}]" for i in range(y.shape[1])]
    is_few = len(rows) <= MAX_CONDITIONS
    return {
        "size": y.shape[1],
        "values": packed(y.numpy()),
        "choices": rows.tolist() if is_few else [],
        "names": [_condition(row, names) for row in rows.tolist()] if is_few else [],
        "of": which.tolist() if is_few else [],
    }


def _condition(row: list[float], names: list[str]) -> str:
    """Return the names of the entries that are 1, if all others are 0; or all entries."""
    if set(row) <= {0.0, 1.0} and 1.0 in row:
        return ", ".join(name for name, value in zip(names, row, strict=True) if value)
    return ", ".join(f"{name} = {value:g}" for name, value in zip(names, row, strict=True))


def _classes(data: Dataset, rows: np.ndarray) -> JSONObject:
    if data.labels is None:
        return {"labels": None, "class_names": []}
    labels = data.labels[torch.from_numpy(rows)].tolist()
    names = names_of_classes(data.labels, data.class_names)
    return {"labels": labels, "class_names": [str(name) for name in names]}


def _notes(vae: AnyVAE, data: Dataset, rows: np.ndarray, num_samples: int, dtype: str) -> list[str]:
    notes = [f"{len(rows):,} of {len(data):,} data of {data.name}"]
    if data.binarization != "none":
        notes[0] += f", {data.binarization} binarization"
    notes[0] += "."
    notes.append(f"log p(x) and k-hat are estimated with K = {num_samples} samples of the encoder.")
    if isinstance(vae, LadderVAE):
        notes.append(
            f"z is {vae.latent_site}, the top layer of a LadderVAE. The layers below are at their "
            "means given the layer above."
        )
    if dtype == "float16":
        notes.append("The weights of the decoder are stored in float16.")
    return notes
