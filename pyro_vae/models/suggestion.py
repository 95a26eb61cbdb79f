"""`suggest`: a VAE with parts that suit the data."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module

from pyro_vae import guides, likelihoods, networks, priors
from pyro_vae.arguments import Count, checked, setting
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.errors import DataError
from pyro_vae.data.sources import arrays
from pyro_vae.data.sources.arrays import ArraySchema
from pyro_vae.data.sources.columns import Column
from pyro_vae.data.sources.opening import open
from pyro_vae.data.sources.table_schema import TableSchema
from pyro_vae.models.any_vae import AnyVAE
from pyro_vae.models.column_likelihoods import BLOCKS, counts_likelihood
from pyro_vae.models.conditional import ConditionalVAE
from pyro_vae.models.ladder import LadderEncoder, LadderVAE
from pyro_vae.models.vae import VAE
from pyro_vae.networks import MLP, ColumnInputs
from pyro_vae.part import Part, code_of

HIDDEN = 128  # hidden units for tables
HIDDEN_OF_IMAGES = 500
CONVOLUTIONAL = 32 * 32  # pixels of an image from which networks are convolutional
CHANNELS = (32, 64, 128)
OF_MLP = ("activation", "block", "norm")  # arguments of networks without convolutions


@checked
def suggest(
    data: object,
    latent_dim: Count | Sequence[Count] | None = None,
    *,
    hidden: Sequence[Count] | None = None,
    conv: bool | None = None,
    network: Mapping[str, Any] | None = None,
    likelihood: str | Callable[..., Part] | None = None,
    prior: str | Callable[..., Part] = "standard-normal",
    guide: str | Callable[..., Part] = "diagonal-normal",
    show: bool = True,
) -> AnyVAE:
    """Build a VAE with parts that suit the data, and print the code that builds it.

    Tables get a `likelihoods.Columns` with a likelihood for each kind of column; 8-bit pixels a
    `likelihoods.DiscretizedLogistic`; binarized pixels a `likelihoods.Bernoulli`; numbers in [0, 1]
    a `likelihoods.ContinuousBernoulli`; counts a negative binomial or Poisson likelihood; other
    numbers a `likelihoods.Normal`. Data with missing values get `likelihoods.Missing`. Data with
    context, such as the class of an image, get a `ConditionalVAE`. Several sizes of latents give a
    `LadderVAE`. Shift and unit of the data are arguments of the parts, so log p(x) is a density in
    the unit of the data.

    Args:
        data: Data: a result of `pyro_vae.data.open`, or an argument of it.
        latent_dim: Number of latents; by default a third of the entries of a datum, from 2 to 20.
            Or the sizes of the layers of a `LadderVAE`, from x upwards, such as `[20, 10]`.
        hidden: Sizes of the hidden layers of the encoder; the decoder has them reversed. Networks
            between the layers of a `LadderVAE` have the same.
        conv: Whether networks of images are convolutional; by default from 32 x 32 pixels on.
        network: Further arguments of the networks, such as `{"block": "gated"}`: those of
            `networks.MLP`, or of `networks.ConvEncoder` for convolutional ones.
        likelihood: Name of a likelihood, a key of `LIKELIHOODS`, for data other than tables; or a
            function of a decoder with the event_shape of the data.
        prior: Name of a prior, a key of `PRIORS`, or a function with the arguments of its values.
        guide: Name of a guide, a key of `GUIDES`, or a function with the arguments of its values.
            The guide of a `LadderVAE` is always "diagonal-normal".
        show: Whether to print the code.

    Returns:
        The VAE, with the schema of the data. Initial values are drawn from torch's generator.

    Raises:
        DataError: If the data cannot be read, a name is unknown, or arguments exclude each other.

    Example:
        >>> import pandas as pd
        >>> import pyro_vae as pv
        >>> frame = pd.DataFrame({"age": [31.5, 42.0, 28.5], "member": ["yes", "no", "yes"]})
        >>> vae = pv.suggest(frame, latent_dim=2, show=False)
        >>> vae.encode(frame).mean.shape
        torch.Size([3, 2])

    See also: `pyro_vae.data.open`, `VAE.replace`.
    """
    dataset = data if isinstance(data, Dataset) else open(data)
    is_counts = likelihood is None and getattr(dataset.schema, "kind", None) == "counts"
    layers = _latent_dims(latent_dim, dataset, guide)
    if dataset.context and prior == "vamp":
        raise DataError("a VampPrior has no context; choose another prior for a ConditionalVAE")
    if conv and len(dataset.event_shape) != 3:
        raise DataError(
            f"convolutional networks ({setting('conv', True)}) need images of shape (channels, "
            f"height, width), got data of shape {tuple(dataset.event_shape)}"
        )
    if conv and hidden is not None:
        raise DataError(
            f"expected {setting('conv', True)} or {setting('hidden')}, got both: {hidden}"
        )
    dense: Callable[..., Part] = functools.partial(MLP, **(network or {}))
    if isinstance(dataset.schema, TableSchema):
        decoded, encoder = _table(dataset, layers[0], hidden, dense)
        if likelihood is not None:
            if not callable(likelihood):
                raise DataError(
                    f"got {setting('likelihood', likelihood)} for a table, in which each column "
                    "has the likelihood of its kind: give other kinds, as in "
                    f"{setting('columns', {'age': 'real'})}"
                )
            sizes = list(hidden or [HIDDEN])[::-1]
            decoded = likelihood(_decoder(dataset, layers[0], sizes, dataset.event_shape, dense))
    elif is_counts:
        decoded, encoder = _sparse_counts(dataset, layers[0], hidden, dense)
    else:
        decoded, encoder = _array(dataset, layers[0], hidden, likelihood, conv, network or {})
    q: Part
    build: Callable[..., AnyVAE] = ConditionalVAE if dataset.context else VAE
    if len(layers) > 1:
        sizes = list(hidden or [HIDDEN_OF_IMAGES if len(dataset.event_shape) == 3 else HIDDEN])
        options = {name: (network or {})[name] for name in OF_MLP if name in (network or {})}
        q, build = _ladder(layers, encoder, sizes, functools.partial(MLP, **options))
    else:
        q = _named(GUIDES, guide, "guide")(encoder, layers[0])
    p_z = _named(PRIORS, prior, "prior")(layers[-1], q, dataset)
    if show:
        # A prior may share the guide.
        names: dict[Module, str] = {q: "guide"} if q in p_z.modules() else {}
        for part in names:
            print(f"guide = {code_of(part)}")
        print(f"vae = {code_of(build(p_z, decoded, q), names=names)}")
    return build(p_z, decoded, q, schema=dataset.schema)


def _latent_dims(given: int | Sequence[int] | None, data: Dataset, guide: object) -> list[int]:
    """Return the sizes of the layers of latents, from x upwards.

    Raises:
        DataError: If there is none, or several that the data or the guide exclude.
    """
    if given is None:
        return [min(20, max(2, torch.Size(data.event_shape).numel() // 3))]
    sizes = [given] if isinstance(given, int) else list(given)
    if not sizes:
        raise DataError(f"{setting('latent_dim', given)}: expected at least one size")
    if len(sizes) > 1 and data.context:
        raise DataError(
            f"{setting('latent_dim', given)} asks for a LadderVAE, which has no context; give one "
            "size for a ConditionalVAE"
        )
    if len(sizes) > 1 and guide != "diagonal-normal":
        raise DataError(
            f"{setting('latent_dim', given)} asks for a LadderVAE, which has the guide "
            f"'diagonal-normal' in all layers; got {guide!r}: leave out {setting('guide')}"
        )
    return sizes


def _ladder(
    layers: Sequence[int], encoder: "Encoder", hidden: list[int], network: Callable[..., Part]
) -> tuple[LadderEncoder, Callable[..., LadderVAE]]:
    """Return the encoder of a ladder, and its constructor from prior, likelihood and encoder."""
    width = hidden[-1]
    upper = [network(width, hidden, width) for _ in layers[1:]]
    decoders = [
        network(above, hidden[::-1], 2 * size)
        for size, above in reversed(list(itertools.pairwise(layers)))
    ]

    def build(prior: Part, likelihood: Part, guide: LadderEncoder, **schema: Any) -> LadderVAE:
        return LadderVAE(prior, decoders, likelihood, guide, **schema)

    return LadderEncoder([encoder(width), *upper], list(layers)), build


def _named(
    table: dict[str, Callable[..., Part]], name: str | Callable[..., Part], what: str
) -> Callable[..., Part]:
    if callable(name):
        return name
    if name not in table:
        raise DataError(f"unknown {what} {name!r}; expected one of {', '.join(table)}")
    return table[name]


Encoder: TypeAlias = Callable[[int], Part]  # from the number of outputs

GUIDES: dict[str, Callable[[Encoder, int], Part]] = {
    "diagonal-normal": lambda encoder, size: guides.DiagonalNormal(encoder(2 * size)),
    "full-normal": lambda encoder, size: guides.FullNormal(
        encoder(guides.FullNormal.num_outputs(size))
    ),
    "flow": lambda encoder, size: guides.Flow(encoder(3 * size), size),
}


def vamp(latent_dim: int, guide: Part, data: Dataset, num_pseudo_inputs: int = 200) -> Part:
    """Return a VampPrior with data as the first pseudo-inputs, missing values at the median."""
    x = data.spread(num_pseudo_inputs)
    x = torch.where(x.isnan(), data.sample().nanmedian(0).values, x)
    return priors.VampPrior(guide, len(x), data.event_shape, bounds=None, pseudo_inputs=x)


PRIORS: dict[str, Callable[[int, Part, Dataset], Part]] = {
    "standard-normal": lambda latent_dim, guide, data: priors.StandardNormal(latent_dim),
    "mixture": lambda latent_dim, guide, data: priors.MixtureOfGaussians(latent_dim, 10),
    "vamp": vamp,
    "flow": lambda latent_dim, guide, data: priors.Flow(latent_dim),
}


def _context_size(data: Dataset) -> int:
    return sum(y.shape[-1] for y in data.batch(slice(1))[1:])


def _decoder(
    data: Dataset,
    latent_dim: int,
    sizes: Sequence[int],
    out: Sequence[int] | int,
    network: Callable[..., Part],
    **options: Any,
) -> Part:
    context = _context_size(data)
    return _in_context(network(latent_dim + context, sizes, out, **options), latent_dim, context)


def _in_context(network: Part, shape: Sequence[int] | int, context: int) -> Part:
    """Return a network of values and of their context, if there is one."""
    return networks.WithContext(network, shape) if context else network


def _table(
    data: Dataset, latent_dim: int, hidden: Sequence[int] | None, network: Callable[..., Part]
) -> tuple[Part, Encoder]:
    schema, x = data.schema, data.sample()
    sizes = list(hidden or [HIDDEN])
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, column in enumerate(schema.modelled):
        groups.setdefault((column.kind, column.is_open or column.num_levels), []).append(i)
    blocks = [
        BLOCKS[str(kind)](sizes[0], [schema.modelled[i] for i in places], x[:, places])
        for (kind, _), places in groups.items()
    ]
    trunk = _decoder(data, latent_dim, sizes[::-1], sizes[0], network)
    context = _context_size(data)
    decoded: Part = likelihoods.Columns(blocks, trunk, list(groups.values()))
    features = [_feature(column) for column in schema.modelled]
    features += [["identity", 0.0, 1.0]] * context
    missing = schema.has_missing

    def encoder(num_outputs: int) -> Part:
        num_features = ColumnInputs.num_features_of(features, missing)
        found = ColumnInputs(network(num_features, sizes, num_outputs), features, missing)
        return _in_context(found, len(schema.modelled), context)

    return likelihoods.Missing(decoded) if missing else decoded, encoder


def _feature(column: Column) -> list[object]:
    if column.num_levels > 2:
        return ["one_hot", column.num_levels]
    name = {"positive": "log", "count": "log1p"}.get(column.kind, "identity")
    return [name, column.shift, column.unit]


def _sparse_counts(
    data: Dataset, latent_dim: int, hidden: Sequence[int] | None, network: Callable[..., Part]
) -> tuple[Part, Encoder]:
    x, sizes = data.sample(), list(hidden or [HIDDEN])
    logs = x.log1p()
    width, context = x.shape[1], _context_size(data)
    features: list[list[object]] = [["log1p", float(logs.mean()), float(logs.std()) or 1.0]] * width
    features += [["identity", 0.0, 1.0]] * context

    def decoder(size: int, bias: Tensor) -> Part:
        return _decoder(data, latent_dim, sizes[::-1], size, network, output_bias=bias)

    def encoder(num_outputs: int) -> Part:
        encoding = ColumnInputs(network(len(features), sizes, num_outputs), features)
        return _in_context(encoding, width, context)

    return counts_likelihood(decoder, x), encoder


def _array(
    data: Dataset,
    latent_dim: int,
    hidden: Sequence[int] | None,
    likelihood: str | Callable[..., Part] | None,
    conv: bool | None,
    network: Mapping[str, Any],
) -> tuple[Part, Encoder]:
    shape = data.event_shape
    known = data.schema if isinstance(data.schema, ArraySchema) else arrays.schema_of(data)
    missing = known.missing > 0
    convolutional = len(shape) == 3 and shape[1] * shape[2] >= CONVOLUTIONAL and hidden is None
    if conv is not None:
        convolutional = conv
    sizes = list(hidden or [HIDDEN_OF_IMAGES if len(shape) == 3 else HIDDEN])
    name = likelihood if isinstance(likelihood, str) else _likelihood_name(data, known)
    outputs, build = (1, likelihood) if callable(likelihood) else _named_likelihood(name, known)

    network = {"channels": list(CHANNELS), **network} if convolutional else {**network}
    channels = network.pop("channels", [])
    context = _context_size(data)

    def encoding(inputs: Sequence[int], num_outputs: int) -> Part:
        if convolutional:
            planes = (inputs[0] + context, *inputs[1:])
            found: Part = networks.ConvEncoder(planes, channels, num_outputs, **network)
        else:
            size = math.prod(inputs) + context if context else inputs
            found = MLP(size, sizes, num_outputs, **network)
        return _in_context(found, inputs, context)

    stacked = (outputs * shape[0], *shape[1:])
    if convolutional:
        conv_decoder = networks.ConvDecoder
        decoder = _decoder(data, latent_dim, channels[::-1], stacked, conv_decoder, **network)
    else:
        dense = functools.partial(MLP, output_bias=_bias(name, data, outputs))
        decoder = _decoder(data, latent_dim, sizes[::-1], stacked, dense, **network)
    decoded = build(decoder)

    def encoder(num_outputs: int) -> Part:
        inputs = (2 * shape[0], *shape[1:]) if missing else shape
        found = encoding(inputs, num_outputs)
        found = networks.WithMask(found) if missing else found
        if name != "normal":
            return found
        return networks.Standardized(found, known.shift, known.unit)

    return likelihoods.Missing(decoded) if missing else decoded, encoder


def _likelihood_name(data: Dataset, known: ArraySchema) -> str:
    if data.binarization != "none":
        return "bernoulli"
    if data.values.dtype == torch.uint8:
        return "discretized-logistic"
    if known.low < 0 or known.high > 1:
        return "normal"
    x = data.sample()
    is_binary = ((x == 0) | (x == 1) | x.isnan()).all()
    return "bernoulli" if is_binary else "continuous-bernoulli"


def _bias(name: str, data: Dataset, outputs: int) -> Tensor | None:
    if name.endswith("bernoulli"):
        return data.log_odds()
    return data.mean() if name == "discretized-logistic" and outputs == 1 else None


def _named_likelihood(name: str, known: ArraySchema) -> tuple[int, Callable[[Part], Part]]:
    """Return the number of decoder outputs for each entry, and the likelihood of a decoder."""
    if name not in LIKELIHOODS:
        raise DataError(f"unknown likelihood {name!r}; expected one of {', '.join(LIKELIHOODS)}")
    if name == "normal":
        shift, unit = known.shift, known.unit
        return 1, lambda net: likelihoods.Normal(net, "learned", shift=shift, unit=unit)
    return LIKELIHOODS[name]


LIKELIHOODS: dict[str, tuple[int, Callable[[Part], Part]]] = {
    "bernoulli": (1, likelihoods.Bernoulli),
    "continuous-bernoulli": (1, likelihoods.ContinuousBernoulli),
    "normal": (1, likelihoods.Normal),
    "discretized-logistic": (1, lambda net: likelihoods.DiscretizedLogistic(net, "learned")),
    "poisson": (1, likelihoods.Poisson),
    "negative-binomial": (1, likelihoods.NegativeBinomial),
}
