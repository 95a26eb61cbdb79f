"""Networks of inputs that are masked, standardized, or columns of a table."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.arguments import ArgumentError, Finite, Positive
from pyro_vae.networks.layers import Module, batch_shape
from pyro_vae.part import Part

# Learned inputs, such as those of a VampPrior, may leave the domain of a logarithm.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "log": lambda x: x.clamp_min(torch.finfo(x.dtype).tiny).log(),
    "log1p": lambda x: x.clamp_min(0.0).log1p(),
}


class WithMask(Part):
    """A network for data with missing entries: it replaces NaN by 0 and appends the mask.

    Maps `(*batch, *in_shape)` to `(*batch, *out_shape)`. The data and the mask of observed entries
    are stacked along the first event dimension, as channels or units.

    Args:
        network: Network with an in_shape twice as long as x along the first dimension.

    Raises:
        ValueError: If the network has no in_shape, or the first size of its in_shape is odd.

    Example:
        >>> import torch
        >>> from pyro_vae.networks import MLP, WithMask
        >>> network = WithMask(MLP(2 * 5, [8], 3))
        >>> network(torch.full((10, 5), float("nan"))).shape
        torch.Size([10, 3])

    See also: `likelihoods.Missing`, `VAE.impute`.
    """

    def __init__(self, network: Module) -> None:
        super().__init__()
        doubled = getattr(network, "in_shape", None)
        if doubled is None or doubled[0] % 2:
            raise ArgumentError(
                "WithMask takes a network with in_shape (2 * event_shape[0], *event_shape[1:]), "
                f"for x and its mask; got a {type(network).__name__} with in_shape {doubled}"
            )
        self.network = network
        self.in_shape = (doubled[0] // 2, *doubled[1:])
        self.out_shape = network.out_shape

    def forward(self, values: Tensor, *context: Tensor) -> Tensor:
        """Map `(*batch, *in_shape)`, with NaN for missing values, to `(*batch, *out_shape)`.

        A context is passed to the network.
        """
        batch = batch_shape(values, self.in_shape)
        missing = values.isnan()
        zeroed = torch.where(missing, torch.zeros_like(values), values)
        masked = torch.cat([zeroed, (~missing).to(values.dtype)], dim=len(batch))
        return self.network(masked, *context)


class Standardized(Part):
    """A network of standardized inputs: `network((values - shift) / unit)`.

    With the `shift` and `unit` of the likelihood, an encoder takes data in their original unit.

    Args:
        network: Network from `(*batch, *in_shape)` to `(*batch, *out_shape)`.
        shift: Origin of the inputs, such as their means: a number, or one for each entry of a
            vector.
        unit: Unit of the inputs, such as their standard deviations: a positive number, or one for
            each entry.

    Raises:
        ValueError: If `shift` or `unit` has another number of entries than the network's inputs.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> x = torch.tensor([[1e-4, 300.0], [2e-4, 310.0]])
        >>> shift, unit = x.mean(0), x.std(0)
        >>> decoder, encoder = pv.networks.MLP(1, [8], 2), pv.networks.MLP(2, [8], 2)
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(1),
        ...     pv.likelihoods.Normal(decoder, shift=shift, unit=unit),
        ...     pv.guides.DiagonalNormal(pv.networks.Standardized(encoder, shift, unit)),
        ... )
        >>> vae.encode(x).mean.shape
        torch.Size([2, 1])

    See also: `likelihoods.Normal`, `WithMask`.
    """

    shift: Tensor
    unit: Tensor

    def __init__(
        self,
        network: Module,
        shift: Finite | Sequence[Finite] = 0.0,
        unit: Positive | Sequence[Positive] = 1.0,
    ) -> None:
        super().__init__()
        self.network = network
        for name in ("in_shape", "out_shape"):
            if hasattr(network, name):
                setattr(self, name, getattr(network, name))
        for name, given in (("shift", shift), ("unit", unit)):
            value = torch.tensor(given)
            expected = getattr(network, "in_shape", tuple(value.shape))
            if value.dim() and tuple(value.shape) != tuple(expected):
                raise ArgumentError(
                    f"{name} must be a number or have the shape {tuple(expected)} of the inputs, "
                    f"got {len(value)} numbers"
                )
            # The constructor arguments restore them, so they are not saved with the weights.
            self.register_buffer(name, value, persistent=False)

    def forward(self, values: Tensor, *context: Tensor) -> Tensor:
        """Map `(*batch, *in_shape)` to `(*batch, *out_shape)`; pass a context to the network."""
        in_shape = getattr(self, "in_shape", None)
        if isinstance(in_shape, tuple):
            batch_shape(values, in_shape)
        return self.network((values - self.shift) / self.unit, *context)


class ColumnInputs(Part):
    """A network of the columns of a table, each as the features that suit its kind.

    Numbers are standardized, after a logarithm if their feature is one. Levels are one-hot. Missing
    values (NaN) are 0 in all their features.

    Args:
        network: Network of the features, of shape `(*batch, num_features)`: see `num_features_of`.
        features: Feature of each column, a list of its name and numbers: `["identity", shift,
            unit]`, `["log", shift, unit]`, `["log1p", shift, unit]` for (f(x) - shift) / unit, or
            `["one_hot", num_levels]`.
        missing: Whether to append the mask of observed values.

    Raises:
        ArgumentError: If a feature is unknown, or the network takes another number of features.

    Example:
        >>> import torch
        >>> from pyro_vae.networks import MLP, ColumnInputs
        >>> features = [["identity", 40.0, 10.0], ["one_hot", 3]]
        >>> network = ColumnInputs(MLP(ColumnInputs.num_features_of(features), [8], 2), features)
        >>> network(torch.tensor([[35.0, 2.0], [52.0, 0.0]])).shape
        torch.Size([2, 2])

    See also: `Standardized`, `WithMask`, `likelihoods.Columns`.
    """

    shift: Tensor
    unit: Tensor

    def __init__(
        self, network: Module, features: Sequence[Sequence[Any]], missing: bool = False
    ) -> None:
        super().__init__()
        self.network, self.missing = network, missing
        names = [feature[0] for feature in features]
        for name, *numbers in features:
            if name not in ("identity", "log", "log1p", "one_hot") or len(numbers) != 1 + (
                name != "one_hot"
            ):
                raise ArgumentError(
                    "expected the features ['identity' | 'log' | 'log1p', shift, unit] or "
                    f"['one_hot', num_levels], got {[name, *numbers]}"
                )
        self.columns = {
            name: [i for i, found in enumerate(names) if found == name]
            for name in dict.fromkeys(names)
        }
        self.num_levels = [feature[1] for feature in features if feature[0] == "one_hot"]
        expected = self.num_features_of(features, missing)
        if (given := getattr(network, "in_shape", (expected,))) != (expected,):
            raise ArgumentError(f"expected a network of {expected} features, got in_shape {given}")
        self.in_shape = (len(features),)
        self.out_shape = network.out_shape
        for number, name in enumerate(("shift", "unit"), start=1):
            values = [0.0 if f[0] == "one_hot" else f[number] for f in features]
            # The constructor arguments restore them, so they are not saved with the weights.
            self.register_buffer(name, torch.tensor(values), persistent=False)

    @staticmethod
    def num_features_of(features: Sequence[Sequence[Any]], missing: bool = False) -> int:
        """Return the number of features of some columns."""
        each = (feature[1] if feature[0] == "one_hot" else 1 for feature in features)
        return sum(each) + len(features) * missing

    def forward(self, values: Tensor) -> Tensor:
        """Map rows `(*batch, num_columns)` to `(*batch, *out_shape)`."""
        batch_shape(values, self.in_shape)
        absent = values.isnan()
        found = []
        for name, columns in self.columns.items():
            x, lost = values[..., columns], absent[..., columns]
            if name == "one_hot":
                codes = zip(x.unbind(-1), self.num_levels, strict=True)
                found += [_one_hot(code, num_levels) for code, num_levels in codes]
                continue
            # 1 is in the domain of every feature.
            x = torch.where(lost, torch.ones_like(x), x)
            x = FUNCTIONS[name](x)
            standardized = (x - self.shift[columns]) / self.unit[columns]
            found.append(torch.where(lost, torch.zeros_like(x), standardized))
        if self.missing:
            found.append((~absent).to(values.dtype))
        return self.network(torch.cat(found, dim=-1))


def _one_hot(code: Tensor, num_levels: int) -> Tensor:
    levels = torch.arange(num_levels, dtype=code.dtype, device=code.device)
    # NaN is equal to no level.
    return (code.unsqueeze(-1) == levels).to(code.dtype)
