"""From a trained pair to an `xarray.DataTree`, which ArviZ reads."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
import xarray as xr
from arviz_base import from_dict

from pyro_vae.traces import Sampler


def from_pyro_svi(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *,
    model_args: tuple[Any, ...],
    num_samples: int = 500,
    seed: int | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> xr.DataTree:
    """Draw from the guide and collect what ArviZ needs, with the dims `chain`, `draw`, `obs_id`.

    Groups: `posterior` (the latents), `sample_stats` (`log_weight` and `log_q` per datum),
    `log_likelihood` and `observed_data`.

    Args:
        model: a Pyro model whose sites stand in the plate over the data.
        guide: its guide.
        model_args: the data, a tuple of one tensor of shape `(num_data, *event)`.
        num_samples: draws for each datum; they are independent, so there is one chain.
        seed: of the draws; torch's global random state is left as it was found.
        attrs: attributes of the posterior group, such as the data set's name.
    """
    (x,) = model_args
    with torch.random.fork_rng():
        sampler = Sampler(SimpleNamespace(model=model, guide=guide), x[:2])
        if seed is not None:
            torch.manual_seed(seed)
        draws = sampler.draw(x, num_samples)
    latents = {name: value[None].cpu().numpy() for name, value in draws.latents.items()}
    dims = {name: ["obs_id", "latent_dim"] for name in latents}
    per_datum = {"log_weight": draws.log_weights, "log_q": draws.log_q}
    return from_dict(
        {
            "posterior": latents,
            "sample_stats": {k: v[None].cpu().numpy() for k, v in per_datum.items()},
            "log_likelihood": {"x": draws.log_likelihood[None].cpu().numpy()},
            "observed_data": {"x": x.cpu().numpy()},
        },
        dims={**dims, "log_weight": ["obs_id"], "log_q": ["obs_id"], "x": ["obs_id"]},
        attrs={"posterior": {"inference_library": "pyro_vae", **(attrs or {})}},
    )
