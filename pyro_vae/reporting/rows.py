"""Numbers for each row of data: moments of the latents, and the contributions of the entries."""

import torch
from torch import Tensor

from pyro_vae.data.dataset import Dataset
from pyro_vae.distributions.entrywise import entries_of
from pyro_vae.models.vae import VAE
from pyro_vae.pairs.chunking import data_per_chunk, map_chunks


@torch.no_grad()
def latent_moments(vae: VAE, data: Dataset, seed: int) -> tuple[Tensor, Tensor]:
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

    found = map_chunks(data, moments, rows=data_per_chunk(data.event_shape, 1), seed=seed)
    return found["mean"], found["scale"]


@torch.no_grad()
def contributions(vae: VAE, data: Dataset, num_samples: int, seed: int) -> Tensor:
    """Return E_q log p(x_i|z) of each entry in nats, shape `(num_data, *event)`; 0 for NaN.

    Their sum over the entries is the term E log p(x|z) of the ELBO.

    Raises:
        ValueError: If the entries of the likelihood depend on each other.
    """

    def expected(batch: tuple[Tensor, ...], _: int) -> dict[str, Tensor]:
        z = vae.encode(batch[0]).sample((num_samples,))
        return {"entries": entries_of(vae.decode(z)).log_prob(batch[0]).mean(dim=0)}

    rows = data_per_chunk(data.event_shape, num_samples)
    return map_chunks(data, expected, rows=rows, seed=seed)["entries"]
