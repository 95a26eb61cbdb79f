"""Base class of likelihoods with entries that are independent given z.

The decoder outputs of an entry are stacked along the first event dimension; see
`pyro_vae.likelihoods`. Positive parameters are decoder outputs, learned parameters, or fixed
numbers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, TypeAlias

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.arguments import ArgumentError, Check, Positive, check_of
from pyro_vae.part import Part, Role

Decoder: TypeAlias = Annotated[Callable[[Tensor], Tensor], Role("network", ("z",))]
# A positive parameter: a fixed number; "learned", one value for all entries of x; "entrywise", one
# learned value for each entry; or "decoder", one decoder output for each entry.
Spread: TypeAlias = Positive | Literal["learned", "entrywise", "decoder"]
_spread = check_of(Spread)
assert _spread is not None
SPREAD: Check = _spread


class PositiveParameter(nn.Module):
    """A positive parameter of a likelihood, defined by a `Spread`.

    Args:
        given: Source of the parameter, a `Spread`.
        minimum: Lower bound of learned values. A fixed number has no lower bound.
        event_shape: Shape of one observation, used by `"entrywise"`.
        index: Index of the decoder output, used by `"decoder"`.
    """

    def __init__(
        self, given: Spread, minimum: float, event_shape: tuple[int, ...], index: int
    ) -> None:
        super().__init__()
        self.given, self.minimum, self.index = given, minimum, index
        if given in ("learned", "entrywise"):
            shape = event_shape if given == "entrywise" else ()
            self.raw = nn.Parameter(torch.ones(shape).expm1().log())  # softplus(raw) = 1

    def forward(self, outputs: Tensor) -> Tensor:
        """Return the parameter, which broadcasts with the entries.

        Args:
            outputs: Decoder outputs, shape `(*entries, K)`.
        """
        if not isinstance(self.given, str):
            return outputs.new_full((), self.given)
        raw = outputs[..., self.index] if self.given == "decoder" else self.raw
        return softplus(raw) + self.minimum


class Entrywise(Part, ABC):
    """Base class of likelihoods with entries that are independent given z.

    Args:
        decoder: Network from `(*batch, latent_dim)` to the stacked outputs of all entries.
        num_outputs: Number of decoder outputs for each entry, without the positive parameters.
        positive: `Spread` and smallest learned value of each positive parameter.

    Raises:
        ValueError: If the out_shape of the decoder does not have that number of outputs for each
            entry, or a `Spread` is invalid.
    """

    def __init__(
        self, decoder: Decoder, num_outputs: int = 1, **positive: tuple[Spread, float]
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.num_outputs = num_outputs
        indices = {}
        for name, (given, _) in positive.items():
            SPREAD(f"{type(self).__name__}({name}=)", given)
            indices[name] = self.num_outputs
            self.num_outputs += given == "decoder"
        out_shape = getattr(decoder, "out_shape", None)
        event_shape = () if out_shape is None else self._event_shape(out_shape)
        for name, (given, minimum) in positive.items():
            if given == "entrywise" and out_shape is None:
                raise ArgumentError(
                    f"{type(self).__name__}({name}='entrywise') needs the shape of x, but the "
                    f"decoder, a {type(decoder).__name__}, has no out_shape: add that attribute, "
                    "or use 'learned' or 'decoder'"
                )
            self.add_module(name, PositiveParameter(given, minimum, event_shape, indices[name]))

    def forward(self, z: Tensor, *context: Tensor) -> dist.TorchDistribution:
        """Return p(x|z), batch_shape `z.shape[:-1]`, event_shape that of one observation."""
        outputs = self.outputs(z, *context)
        return self.entries(outputs).to_event(outputs.dim() - z.dim())

    def outputs(self, z: Tensor, *context: Tensor) -> Tensor:
        """Return the K outputs for each entry, shape `(*batch, *event_shape, K)`."""
        output = self.decoder(z, *context)
        first = z.dim() - 1
        self._event_shape(output.shape[first:])
        return output.unflatten(first, (self.num_outputs, -1)).movedim(first, -1)

    @abstractmethod
    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return the distribution of the entries, batch_shape `(*batch, *event_shape)`."""

    def _event_shape(self, out_shape: Sequence[int]) -> tuple[int, ...]:
        if not out_shape or out_shape[0] % self.num_outputs:
            k = self.num_outputs
            raise ArgumentError(
                f"{type(self).__name__} takes {k} outputs of the decoder for each entry of x, "
                f"stacked along the first dimension: its out_shape must be ({k} * "
                f"event_shape[0], *event_shape[1:]), got {tuple(out_shape)}"
            )
        return (out_shape[0] // self.num_outputs, *out_shape[1:])
