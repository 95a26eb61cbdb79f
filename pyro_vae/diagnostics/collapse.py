"""Posterior collapse: which latents does the encoder use, and does the decoder listen to them?"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.dataset import Data, as_dataset
from pyro_vae.pairs.chunking import data_per_chunk, map_chunks
from pyro_vae.pairs.pair import PairLike
from pyro_vae.pairs.sampler import Sampler, batch_of
from pyro_vae.runtime.devices import device_of
from pyro_vae.runtime.random_state import preserved_state

# Burda, Grosse & Salakhutdinov (2015), section 5.3.1.
ACTIVE_VARIANCE = 0.01
# A decoder whose reconstructions lose less than this by another datum's latents ignores them.
IGNORED_NATS = 0.01


@dataclass(frozen=True)
class Collapse:
    """What the latents carry; arrays of shape `(latent_dim,)`, sites and events in one row.

    Attributes:
        kl: KL(q(z_i|x) || p(z_i)) averaged over data, in nats, of the marginals' first two
            moments: exact where both are normal.
        mean_variance: variance over data of the posterior mean E[z_i|x].
        aggregate_mean, aggregate_sd: of z_i over data and posterior, in prior standard deviations
            from the prior's mean: 0 and 1 where the aggregate posterior is the prior.
        draws: one draw of z for each datum in the same units, shape `(num_data, latent_dim)`.
        reconstruction_drop: nats per datum that E[log p(x|z)] loses when each datum gets the
            latents of another one; near 0 where the decoder ignores them.
    """

    kl: np.ndarray
    mean_variance: np.ndarray
    aggregate_mean: np.ndarray
    aggregate_sd: np.ndarray
    draws: np.ndarray
    reconstruction_drop: float

    @property
    def active(self) -> np.ndarray:
        """Whether each unit is active: its posterior mean varies over data by more than 0.01."""
        return self.mean_variance > ACTIVE_VARIANCE

    @property
    def collapsed(self) -> bool:
        """Whether no unit is active or the decoder ignores them."""
        return not self.active.any() or self.reconstruction_drop < IGNORED_NATS

    @property
    def verdict(self) -> str:
        """One sentence on what the latents are good for."""
        num_active, num_units = int(self.active.sum()), len(self.active)
        if num_active == 0:
            return "collapsed: the posterior mean of no latent depends on x"
        if self.reconstruction_drop < IGNORED_NATS:
            return (
                "collapsed: the decoder ignores z, another datum's latents reconstruct x as well "
                f"(within {self.reconstruction_drop:.3f} nats)"
            )
        if num_active < num_units:
            return (
                f"{num_active} of {num_units} latents are active, the others repeat the prior and "
                "cost nothing: a smaller latent_dim would do as well"
            )
        return f"all {num_units} latents are active"


def collapse(
    pair: PairLike,
    x: Data,
    *,
    num_samples: int = 100,
    seed: int = 0,
    progress: bool | None = None,
) -> Collapse:
    """Measure what each latent carries of the data.

    Args:
        pair: anything with `.model` and `.guide`, every latent in the plate over the data.
        x: at least two data, shape `(num_data, *event)`; or a tuple `(x, y, ...)` or a
            `DataLoader`, as for `fit`.
        num_samples: draws for each datum.
        seed: of the draws; the random state is left as it was found.
        progress: Whether to show a progress bar; by default if standard error is a terminal.

    Raises:
        PairError: when a latent stands outside the plate over the data.
        ValueError: for fewer than two data or draws.
    """
    data = as_dataset(x).to(device_of(pair.model, pair.guide))
    if len(data) < 2 or num_samples < 2:
        raise ValueError(f"at least 2 data and 2 draws are needed, got {len(data)}, {num_samples}")
    rows = max(2, data_per_chunk(data.event_shape, num_samples))

    def score(batch: tuple[Tensor, ...], _: int) -> dict[str, Tensor]:
        draws = sampler.draw(batch, num_samples)
        z = (_flat(draws.latents) - prior.mean(0)) / prior.std(0)
        swapped = {name: value.roll(1, dims=1) for name, value in draws.latents.items()}
        log_likelihood = sampler.model_at(batch, swapped)[1]
        return {
            "mean": z.mean(0),
            "variance": z.var(0),
            "draw": z[0],
            "drop": (draws.log_likelihood - log_likelihood).mean(0),
        }

    with torch.no_grad(), preserved_state(seed):
        sampler = Sampler(pair, data.batch(slice(2)))
        prior = _prior_draws(sampler, data.batch(slice(1)), num_samples=5000)
        # A chunk of one datum would have no other latents to swap with.
        found = map_chunks(
            data,
            score,
            rows=rows,
            seed=seed,
            least=2,
            description="collapse",
            progress=progress,
        )
    mean, variance = found["mean"], found["variance"]
    # The mean of S draws has their variance over S on top, and the two together 1/S nats of KL.
    square = mean.square() - variance / num_samples
    kl = 0.5 * (square + variance - 1 - variance.log()) - 0.5 / num_samples
    mean_variance = mean.var(0) - variance.mean(0) / num_samples
    return Collapse(
        kl=kl.mean(0).numpy(),
        mean_variance=(mean_variance * prior.var(0).cpu()).numpy(),
        aggregate_mean=mean.mean(0).numpy(),
        aggregate_sd=(mean_variance + variance.mean(0)).sqrt().numpy(),
        draws=found["draw"].numpy(),
        reconstruction_drop=float(found["drop"].double().mean()),
    )


def _prior_draws(sampler: Sampler, datum: tuple[Tensor, ...], num_samples: int) -> Tensor:
    """Draw latents from the prior, shape `(num_samples, latent_dim)`."""
    sites = sampler.programs.run_model(batch_of(datum), num_samples, observe=False)
    values = {name: sites[name].rows(sampler.plate) for name in sampler.programs.local_latents}
    return _flat(values)[:, 0]


def _flat(latents: dict[str, Tensor]) -> Tensor:
    """Put the latents of each datum into one row: `(draws, data, latent_dim)`, in float64."""
    return torch.cat(
        [value.flatten(2) if value.dim() > 2 else value[..., None] for value in latents.values()],
        dim=-1,
    ).double()
