"""The validation ELBO after each epoch."""

import math

import torch
from torch import Tensor

from pyro_vae.data.dataset import Chunk, Dataset
from pyro_vae.distributed import distribute
from pyro_vae.pairs.chunking import data_per_chunk
from pyro_vae.pairs.sampler import Sampler
from pyro_vae.runtime.random_state import preserved_state, seed_chunk


def _validate(sampler: Sampler, data: Dataset, seed: int) -> dict[str, float]:
    """One draw for each validation datum, the same noise every epoch, so that epochs compare.

    Global latents are drawn from the guide; their KL divergence belongs to the training data.
    """

    def score(chunk: Chunk) -> Tensor:
        place, read = chunk
        batch = read()
        seed_chunk(seed, place)
        return sampler.log_weights(batch, 1).log_weights[0].double().cpu()

    with preserved_state():
        chunks = data.chunks(data_per_chunk(data.event_shape, 1))
        elbo = torch.cat(list(distribute(chunks, score)))
    se = elbo.std().item() / math.sqrt(len(elbo)) if len(elbo) > 1 else math.nan
    return {"validation_elbo": elbo.mean().item(), "validation_elbo_se": se}
