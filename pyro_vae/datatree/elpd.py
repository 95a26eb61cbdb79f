"""Held-out log p(x) per datum as an ArviZ ELPD object, from the log weights of a tree.

For a latent variable model with one z for each x, the expected log predictive density of new data
is the mean of log p(x). The importance weights of the guide's samples estimate it:

    log p(x_n) = log 1/S sum_s w_sn,     w_sn = p(x_n, z_s) / q(z_s|x_n).

ArviZ's `loo` is not suitable here: it reweights the samples of z_n to the posterior without x_n,
which is the prior, and samples from the posterior cannot represent it reliably.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from scipy.special import logsumexp

from pyro_vae.arguments import ArgumentError, shown
from pyro_vae.pairs.khat import khat_threshold, pareto_khat

if TYPE_CHECKING:
    from arviz_stats import ELPDData

SAMPLES = ("chain", "draw", "candidate")  # dimensions of weighted draws


def elpd_marginal(tree: xr.DataTree) -> "ELPDData":
    """Return log p(x) of each datum with its k-hat as an ArviZ ELPD object, in nats.

    Use it with `arviz_stats.compare`, `arviz_plots.plot_compare` and `plot_khat`. Models are
    compared on the same data, so the standard error of a difference is that of paired differences.
    log p(x) is a lower bound that depends on the proposal. The attributes of `elpd_i` name it. The
    `kind` of the result is `"marginal"`, or `"refined"` for a tree with `posterior="resampled"`.
    ArviZ refuses to compare objects of different kinds, or one of them with the result of `loo`.

    Args:
        tree: Tree of `pyro_vae.from_pyro_svi` with a `log_weight` for each datum.

    Returns:
        An `arviz_stats.ELPDData` object.

    Raises:
        ValueError: If it is no tree, or has no log weight for each datum.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Bernoulli(pv.networks.MLP(2, [4], 5)),
        ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [4], 4)),
        ... )
        >>> x = torch.ones(3, 5)
        >>> tree = pv.from_pyro_svi(vae.model, vae.guide, model_args=(x,), num_samples=30)
        >>> elpd = pv.elpd_marginal(tree)
        >>> elpd.elpd_i.dims, elpd.pareto_k.shape
        (('data',), (3,))

    See also: `from_pyro_svi`, `evaluate`, `plots.khat`.
    """
    if not isinstance(tree, xr.DataTree):
        raise ArgumentError(f"expected a tree of from_pyro_svi, got {shown(tree)}")
    stats = tree.children.get("sample_stats", xr.DataTree())
    if "log_weight" not in stats:
        raise ValueError(
            "the tree has no log_weight in sample_stats. Create it with from_pyro_svi, the group "
            "sample_stats and a guide that has a density (AutoDelta has none)"
        )
    weights = stats["log_weight"]
    data_dims = [str(dim) for dim in weights.dims if dim not in SAMPLES]
    if not data_dims:
        raise ValueError(
            "log_weight is joint over all data because a latent is outside the plate over the "
            "data. log p(x) of each datum is not available; arviz_stats.loo is right if no latent "
            "belongs to a single datum"
        )
    stacked = weights.transpose(*(dim for dim in weights.dims if dim in SAMPLES), *data_dims)
    shape = stacked.shape[2:]
    columns = stacked.to_numpy().astype(np.float64).reshape(-1, math.prod(shape))
    num_samples, num_data = columns.shape
    with np.errstate(invalid="ignore", over="ignore"):  # log p(x) may be infinite
        elpd_i = logsumexp(columns, axis=0) - math.log(num_samples)
        total, variance = elpd_i.sum(), elpd_i.var()
    khat = pareto_khat(columns)
    good_k = khat_threshold(num_samples)
    coords = {dim: weights.coords[dim] for dim in data_dims}
    proposal = tree.attrs.get("proposal", "guide")
    source = {"proposal": proposal, "num_samples": num_samples}
    values: dict[str, object] = {
        "elpd": float(total),
        "se": math.sqrt(num_data * variance),
        "p": math.nan,  # no parameter is fitted to these data
        "n_samples": num_samples,
        "n_data_points": num_data,
        "scale": "log",
        "good_k": good_k,
        "warning": bool((khat > good_k).any()),
        "elpd_i": xr.DataArray(elpd_i.reshape(shape), coords, data_dims, attrs=source),
        "pareto_k": xr.DataArray(khat.reshape(shape), coords, data_dims),
    }
    return _elpd_data("marginal" if proposal == "guide" else proposal, values)


def _elpd_data(kind: str, values: dict[str, object]) -> Any:
    """Return an object of ArviZ with the table of k-hat, which ArviZ prints for `loo` only.

    `arviz_stats.compare` refuses objects of different kinds.
    """
    import arviz_stats  # takes seconds

    classes: Any = arviz_stats  # of one of two versions
    has_field = not hasattr(classes, "ELPDDataLOO")  # ArviZ 0.x: one class, the kind is a field
    base = classes.ELPDData if has_field else classes.ELPDDataLOO

    def shown(self: object) -> str:
        text = str(base.__str__(self))
        with np.errstate(invalid="ignore"):  # shares of no data, if no k-hat is known
            loo = str(base(**{"kind": "loo"} if has_field else {}, **values))
        _, line, table = loo.partition("\n------")
        return text if line in text else text + line + table

    members = {
        "_kind": kind,
        "__str__": shown,
        "__reduce__": lambda _: (_elpd_data, (kind, values)),
    }
    return type(base.__name__, (base,), members)(**{"kind": kind} if has_field else {}, **values)
