"""The validation ELBO after each epoch."""

import math
import warnings

import torch
from torch import Tensor

from pyro_vae.pairs.checked_rows import CheckedRows
from pyro_vae.pairs.chunking import data_per_chunk, fitting, map_chunks
from pyro_vae.pairs.sampler import Sampler
from pyro_vae.pairs.state import unchanged


def _validate(sampler: Sampler, data: CheckedRows, seed: int) -> dict[str, float]:
    """Return the mean ELBO of one sample for each validation datum, and its standard error.

    The noise is the same in every epoch, so that epochs can be compared. Global latents are sampled
    from the guide; their KL divergence is part of the training objective only.
    """

    def score(batch: tuple[Tensor, ...], _: int) -> dict[str, Tensor]:
        return {"elbo": sampler.log_weights(batch, 1).log_weights[0].double()}

    with unchanged(sampler.programs.model, sampler.programs.guide):
        rows, _ = fitting(
            data_per_chunk(data.event_shape, 1), 1, sampler.draw, data.data.batch(slice(4))
        )
        elbo = map_chunks(data, score, rows=rows, seed=seed)["elbo"]
    bad = ~elbo.isfinite()
    if bad.any():
        warnings.warn(
            f"the ELBO of {int(bad.sum())} of {len(elbo)} validation data is not finite (first at "
            f"datum {int(bad.nonzero()[0, 0])}), so epochs cannot be compared, and the best epoch "
            "and early stopping have no meaning: drop or rescale these data",
            stacklevel=2,
        )
    se = elbo.std().item() / math.sqrt(len(elbo)) if len(elbo) > 1 else math.nan
    mean = elbo.mean().nan_to_num(nan=-torch.inf, neginf=-torch.inf, posinf=torch.inf).item()
    return {"validation_elbo": mean, "validation_elbo_se": se}
