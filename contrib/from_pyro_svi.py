"""Pyro-specific conversion code: the posterior that a guide approximates, as a DataTree.

The file has no imports of pyro_vae, so that it can be moved to arviz-base as it is. It follows
`arviz_base.from_numpyro_svi`. Differences:

- samples have the dimensions `chain` (of size 1) and `draw`, which all functions of ArviZ take;
- `sample_stats` has the log densities `log_p` of the model and `log_q` of the guide for each draw,
  as `arviz_stats.loo_approximate_posterior` needs them;
- observed data and pointwise log likelihoods are collected from the model.
"""

import numpy as np
import pyro
import torch
from arviz_base import from_dict
from pyro import poutine
from pyro.infer import SVI
from pyro.poutine.util import site_is_factor, site_is_subsample


def infer_dims(model, model_args=None, model_kwargs=None):
    """Infer the names of batch dimensions from the plates of a Pyro model.

    Names of event dimensions are taken from `infer={"event_dims": [...]}` of a sample statement.

    Parameters
    ----------
    model : callable
        A Pyro model.
    model_args : tuple, optional
        Arguments of the model.
    model_kwargs : dict, optional
        Keyword arguments of the model.

    Returns:
    -------
    dict of {str : list of str}
        Names of dimensions by site. A batch dimension without a plate is called
        ``{site}_dim_{i}``.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        trace = poutine.trace(model).get_trace(*(model_args or ()), **(model_kwargs or {}))
    dims = {}
    for name, site in _sample_sites(trace):
        frames = {frame.dim: frame.name for frame in site["cond_indep_stack"] if frame.vectorized}
        kept = _batch_dims(site)
        names = [frames.get(dim, f"{name}_dim_{i}") for i, dim in enumerate(kept)]
        names += list(site["infer"].get("event_dims", []))
        if names:
            dims[name] = names
    return dims


class PyroSVIConverter:
    """Samples a guide and its model, and sorts the sites into groups.

    Parameters are those of `from_pyro_svi`.
    """

    def __init__(self, svi, *, model_args=None, model_kwargs=None, num_samples=1000):
        self.model, self.guide = svi.model, svi.guide
        self.args, self.kwargs = model_args or (), model_kwargs or {}
        self.num_samples = num_samples

    def collect(self):
        """Return the arrays of all groups, with a chain dimension of size one."""
        draws = [self._draw() for _ in range(self.num_samples)]
        groups = {}
        for group in ("posterior", "sample_stats", "log_likelihood"):
            names = draws[0][group]
            groups[group] = {
                name: np.stack([draw[group][name] for draw in draws])[None] for name in names
            }
        groups["observed_data"] = draws[0]["observed_data"]
        return groups

    @torch.no_grad()
    def _draw(self):
        guide = poutine.trace(self.guide).get_trace(*self.args, **self.kwargs)
        replayed = poutine.replay(self.model, trace=guide)
        model = poutine.trace(replayed).get_trace(*self.args, **self.kwargs)
        for trace in (guide, model):
            trace.compute_log_prob()
        groups = {"posterior": {}, "log_likelihood": {}, "observed_data": {}}
        for name, site in _sample_sites(model):
            if site["infer"].get("_deterministic") or not site["is_observed"]:
                groups["posterior"][name] = _array(site, site["value"])
            elif not site_is_factor(site):
                groups["observed_data"][name] = _array(site, site["value"])
                groups["log_likelihood"][name] = _array(site, site["unscaled_log_prob"], event=0)
        log_p, log_q = (float(trace.log_prob_sum()) for trace in (model, guide))
        groups["sample_stats"] = {"log_p": np.array(log_p), "log_q": np.array(log_q)}
        return groups


def from_pyro_svi(
    svi,
    *,
    model_args=None,
    model_kwargs=None,
    prior=None,
    posterior_predictive=None,
    predictions=None,
    constant_data=None,
    predictions_constant_data=None,
    log_likelihood=True,
    index_origin=None,
    coords=None,
    dims=None,
    pred_dims=None,
    num_samples=1000,
):
    """Convert Pyro SVI results into a DataTree object.

    If no dims are provided, names of batch dimensions are those of the model's plates. Names of
    event dimensions can be given by ``infer={"event_dims": names}`` in ``pyro.sample``.

    Parameters
    ----------
    svi : pyro.infer.SVI
        SVI instance with the trained guide, or an object with a ``model`` and a ``guide``.
    model_args : tuple, optional
        Arguments of model and guide, usually those of training.
    model_kwargs : dict, optional
        Keyword arguments of model and guide.
    prior : dict, optional
        Prior samples, from ``pyro.infer.Predictive``.
    posterior_predictive : dict, optional
        Posterior predictive samples, from ``pyro.infer.Predictive``.
    predictions : dict, optional
        Out of sample predictions.
    constant_data : dict, optional
        Constant data by name.
    predictions_constant_data : dict, optional
        Constant data of out of sample predictions.
    log_likelihood : bool, default True
        Whether to store the pointwise log likelihood of each observed site.
    index_origin : int, optional
        First index of default coordinates.
    coords : dict, optional
        Map of dimensions to coordinates.
    dims : dict of {str : list of str}, optional
        Names of the dimensions by site. Inferred for the other sites.
    pred_dims : dict, optional
        Names of the dimensions of predictions.
    num_samples : int, default 1000
        Number of samples of the guide.

    Returns:
    -------
    DataTree

    See Also:
    --------
    arviz_base.from_numpyro_svi : The same for NumPyro.
    arviz_stats.loo_approximate_posterior : Uses ``log_p`` and ``log_q`` of ``sample_stats``.

    Examples:
    --------
    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyro.infer import SVI, Trace_ELBO
    >>> from pyro.infer.autoguide import AutoNormal
    >>> def model(x):
    ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("obs_id", len(x)):
    ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
    >>> x = torch.randn(5)
    >>> pyro.clear_param_store()
    >>> svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    >>> loss = svi.step(x)
    >>> tree = from_pyro_svi(svi, model_args=(x,), num_samples=10)
    >>> sorted(tree.children)
    ['log_likelihood', 'observed_data', 'posterior', 'sample_stats']
    >>> tree["log_likelihood/x"].dims
    ('chain', 'draw', 'obs_id')
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    converter = PyroSVIConverter(
        svi, model_args=model_args, model_kwargs=model_kwargs, num_samples=num_samples
    )
    groups = converter.collect()
    if not log_likelihood:
        del groups["log_likelihood"]
    samples = {"prior": prior, "posterior_predictive": posterior_predictive}
    samples |= {"predictions": predictions}
    groups |= {name: _with_chain(group) for name, group in samples.items() if group is not None}
    constants = {"constant_data": constant_data}
    constants |= {"predictions_constant_data": predictions_constant_data}
    groups |= {name: _arrays(group) for name, group in constants.items() if group is not None}
    inferred = infer_dims(svi.model, model_args, model_kwargs)
    return from_dict(
        {name: group for name, group in groups.items() if group},
        index_origin=index_origin,
        coords=coords,
        dims={**inferred, **(dims or {})},
        pred_dims=pred_dims,
        attrs={
            "/": {
                "inference_library": "pyro",
                "inference_library_version": pyro.__version__,
                "sampling_method": "svi" if isinstance(svi, SVI) else "guide",
            }
        },
    )


def _sample_sites(trace):
    """Yield name and site of each sample statement, without the indices of subsampled plates."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site_is_subsample(site):
            yield name, site


def _shapes(site):
    """Return the batch shape of a site and its number of event dimensions.

    By default, `pyro.deterministic` declares all dimensions as an event, those of plates included.
    """
    value = torch.as_tensor(site["value"])
    if site["infer"].get("_deterministic") and site["fn"].event_dim >= value.dim():
        return value.shape, 0
    return site["fn"].batch_shape, site["fn"].event_dim


def _batch_dims(site):
    """Return the batch dimensions to keep, counted from the right: plates, and sizes above one."""
    shape, _ = _shapes(site)
    plates = {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}
    return [dim for dim in range(-len(shape), 0) if dim in plates or shape[dim] > 1]


def _array(site, values, event=None):
    """Return values of a site as an array, without batch dimensions of size one and no plate."""
    batch, event_dim = _shapes(site)
    event_dim = event_dim if event is None else event
    values = torch.as_tensor(values).detach().cpu()
    event_shape = values.shape[values.dim() - event_dim :]
    values = values.expand((*batch, *event_shape))
    kept = tuple(batch[dim] for dim in _batch_dims(site))
    return values.reshape((*kept, *event_shape)).numpy()


def _with_chain(group):
    return {name: values[None] for name, values in _arrays(group).items()}


def _arrays(group):
    return {name: torch.as_tensor(values).detach().cpu().numpy() for name, values in group.items()}
