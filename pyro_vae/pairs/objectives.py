"""Check that an objective accepts the latents and the plates of a pair."""

from collections.abc import Sequence

from pyro import poutine
from pyro.infer import RenyiELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch.distributions import Distribution

from pyro_vae.pairs.pair import PairError
from pyro_vae.pairs.sites import is_enumerated, latent_sites, subsampled_plates
from pyro_vae.pairs.supports import kind_of


def check_objective(
    model: poutine.Trace, guide: poutine.Trace, plates: Sequence[str], objective: object
) -> None:
    """Check that an objective accepts the latents and the plates of a pair.

    Args:
        model: Trace of the model.
        guide: Trace of the guide.
        plates: Names of the plates over the data.
        objective: Objective of Pyro or of this package.

    Raises:
        PairError: If a latent is marked for enumeration and the objective does not enumerate, or as
            in `check_reparameterized` and `check_whole_plates`.
    """
    inner = getattr(objective, "objective", objective)
    needed = getattr(
        objective,
        "needs_reparameterization",
        isinstance(objective, TraceMeanField_ELBO | RenyiELBO),
    )
    for name, node in {**dict(latent_sites(model)), **dict(latent_sites(guide))}.items():
        if is_enumerated(node) and not isinstance(inner, TraceEnum_ELBO):
            raise PairError(
                f"latent {name!r} is marked for enumeration, but {type(objective).__name__} does "
                "not enumerate: use TraceEnum_ELBO(), or remove the mark"
            )
        if needed:
            check_reparameterized(name, node["fn"], objective)
    check_whole_plates((model, guide), plates, inner)


def check_reparameterized(name: str, distribution: Distribution, objective: object) -> None:
    """Check that a latent has reparameterized samples, for an objective that needs them.

    Raises:
        PairError: If the distribution has no `rsample`.
    """
    if not distribution.has_rsample:
        raise PairError(
            f"{type(objective).__name__} needs reparameterized samples, and the guide's "
            f"{kind_of(distribution)} for latent {name!r} has none: use Trace_ELBO, enumerate a "
            "discrete latent by TraceEnum_ELBO, or choose a guide with rsample"
        )


def check_whole_plates(
    traces: Sequence[poutine.Trace], plates: Sequence[str], objective: object
) -> None:
    """Check that no plate is subsampled inside the logarithm of an objective of several samples.

    The log density of a part of a plate, times N/M, is an unbiased estimate. Its exponential is
    not: the mean of the importance weights then exceeds p(x).

    Args:
        traces: Traces of model and guide.
        plates: Names of the plates over the data. These may be subsampled.
        objective: Objective of Pyro or of this package.

    Raises:
        PairError: If another plate is subsampled, and the objective is not linear in log densities.
    """
    linear = getattr(objective, "is_linear", not isinstance(objective, RenyiELBO))
    others = set() if linear else subsampled_plates(*traces) - set(plates)
    if others:
        raise PairError(
            f"the plates {sorted(others)} are subsampled and are not over the data, so "
            f"{type(objective).__name__} is no bound of log p(x): run them whole, without "
            "subsample_size= and subsample=, or train with Trace_ELBO"
        )
