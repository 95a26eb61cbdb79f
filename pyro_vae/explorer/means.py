"""Likelihoods as layers: a network, and the map from its outputs to E[x|z].

The map is the last layer of a likelihood, with `"op": "mean"`. Its `"kind"` is a function in
`explorer.js`. The parameters of the map are numbers, not tensors: they are exact in files with
weights in float16.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.functional import softplus

from pyro_vae import likelihoods
from pyro_vae.distributions.parameters import min_scale_of_levels
from pyro_vae.explorer.layers import Layer, Layers
from pyro_vae.likelihoods.base import Entrywise, PositiveParameter
from pyro_vae.likelihoods.continuous import LocationScale
from pyro_vae.likelihoods.counts import Counts
from pyro_vae.pairs.pair import PairError


def layers_of(likelihood: Any, layers: Layers) -> list[Layer]:
    """Return the layers from z to E[x|z].

    Raises:
        PairError: If the likelihood, or a module of its decoder, is not one that the page can run.
    """
    kind = type(likelihood)
    if kind is likelihoods.Missing:
        return layers_of(likelihood.likelihood, layers)
    if kind is likelihoods.Columns:
        return _columns(likelihood, layers)
    if kind not in MEANS:
        raise PairError(
            f"the explorer does not know E[x|z] of a {kind.__name__}; expected one of "
            f"pv.likelihoods.{', '.join(sorted(known.__name__ for known in MEANS))}, Columns or "
            "Missing"
        )
    network = layers.of(likelihood.decoder)
    return [*network, _mean(likelihood)]


def _columns(likelihood: likelihoods.Columns, layers: Layers) -> list[Layer]:
    trunk = [] if likelihood.trunk is None else layers.of(likelihood.trunk)
    shape = layers.shape
    blocks = []
    for block in likelihood.likelihoods:
        layers.shape = shape
        blocks.append(layers_of(block, layers))
    return [*trunk, {"op": "columns", "blocks": blocks, "positions": likelihood.positions}]


def _mean(likelihood: Entrywise) -> Layer:
    kind, settings = MEANS[type(likelihood)]
    return {
        "op": "mean",
        "kind": kind,
        "outputs": likelihood.num_outputs,
        **settings(likelihood),
    }


def _none(_: Entrywise) -> Layer:
    return {}


def _location(likelihood: LocationScale) -> Layer:
    if isinstance(likelihood, likelihoods.StudentT):
        df = likelihood.df.given
        if not isinstance(df, str) and df <= 1:
            raise PairError(f"the explorer shows E[x|z], which a StudentT with df={df} has not")
    return {
        "sigmoid": getattr(likelihood, "sigmoid_mean", False),
        "shift": _numbers(likelihood.shift, 0.0),
        "unit": _numbers(likelihood.unit, 1.0),
    }


def _log_normal(likelihood: likelihoods.LogNormal) -> Layer:
    # A given scale is in the unit of log x already.
    in_unit = not isinstance(likelihood.scale.given, str)
    return {
        **_location(likelihood),
        "scale": _positive(likelihood.scale),
        "scale_unit": [1.0] if in_unit else _numbers(likelihood.unit, 1.0),
    }


def _counts(likelihood: Counts) -> Layer:
    gated = isinstance(likelihood, likelihoods.ZeroInflatedNegativeBinomial)
    return {"total": likelihood.library_size, "gate": 1 if gated else None}


def _levels(likelihood: likelihoods.Categorical) -> Layer:
    return {"spacing": likelihood.spacing}


def _logistic(likelihood: likelihoods.DiscretizedLogistic) -> Layer:
    return {"scale": _positive(likelihood.scale), "num_levels": likelihood.num_levels}


def _mixture(likelihood: likelihoods.DiscretizedLogisticMixture) -> Layer:
    levels = likelihood.num_levels
    return {"minimum": min_scale_of_levels(levels), "num_levels": levels}


def _positive(parameter: PositiveParameter) -> Layer:
    """Return a positive parameter: its values, or the decoder output that it is computed from."""
    if parameter.given == "decoder":
        return {"index": parameter.index, "minimum": parameter.minimum}
    if isinstance(parameter.given, str):
        return {"values": _numbers(softplus(parameter.raw) + parameter.minimum, 0.0)}
    return {"values": [float(parameter.given)]}


def _numbers(values: Tensor | None, default: float) -> list[float]:
    if values is None:
        return [default]
    return values.detach().flatten().tolist()


# To support another likelihood, add the name of its mean in explorer.js, and its settings.
MEANS: dict[type, tuple[str, Callable[[Any], Layer]]] = {
    likelihoods.Bernoulli: ("sigmoid", _none),
    likelihoods.Beta: ("sigmoid", _none),
    likelihoods.Categorical: ("categorical", _levels),
    likelihoods.ContinuousBernoulli: ("continuous_bernoulli", _none),
    likelihoods.DiscretizedLogistic: ("discretized_logistic", _logistic),
    likelihoods.DiscretizedLogisticMixture: ("discretized_logistic_mixture", _mixture),
    likelihoods.Laplace: ("location", _location),
    likelihoods.LogNormal: ("log_normal", _log_normal),
    likelihoods.NegativeBinomial: ("counts", _counts),
    likelihoods.Normal: ("location", _location),
    likelihoods.Poisson: ("counts", _counts),
    likelihoods.StudentT: ("location", _location),
    likelihoods.ZeroInflatedNegativeBinomial: ("counts", _counts),
}
