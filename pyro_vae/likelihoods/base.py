"""How a decoder's outputs become a distribution for every entry of x: the base of likelihoods.

The outputs of an entry are stacked along the first dimension of the event; `likelihoods.py` says
how. Positive parameters may be outputs, learned by themselves, or fixed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.part import Part

Decoder = Callable[[Tensor], Tensor]
# How a positive parameter is given: a fixed number; "learned", one number for all entries of x;
# "entrywise", learned too, one for each entry; or "decoder", for each entry and dependent on z.
Spread = float | str

# At a constant entry of x, a learned scale would shrink and the density grow without bound. For
# pixels in [0, 1] this floor is a quarter of the step between two grey levels.
MIN_SCALE = 1e-3


class PositiveParameter(nn.Module):
    """A positive parameter of a likelihood, whichever way a `Spread` says it comes about.

    Args:
        given: the `Spread`.
        minimum: lower end of what is learned; a fixed number is taken as it is.
        event_shape: shape of one observation, for `"entrywise"`.
        index: which of the decoder's outputs it is, for `"decoder"`.
    """

    def __init__(
        self, given: Spread, minimum: float, event_shape: tuple[int, ...], index: int
    ) -> None:
        super().__init__()
        self.given, self.minimum, self.index = given, minimum, index
        if given in ("learned", "entrywise"):
            shape = event_shape if given == "entrywise" else ()
            self.raw = nn.Parameter(torch.ones(shape).expm1().log())  # softplus of it is 1

    def forward(self, outputs: Tensor) -> Tensor:
        """Return its value, which broadcasts with the entries; outputs are `(*entries, K)`."""
        if not isinstance(self.given, str):
            return outputs.new_full((), self.given)
        raw = outputs[..., self.index] if self.given == "decoder" else self.raw
        return softplus(raw) + self.minimum


class Entrywise(Part, ABC):
    """A likelihood whose entries are independent given z: the base class of those below.

    Args:
        decoder: network from `(*batch, latent_dim)` to the stacked outputs of all entries.
        num_outputs: outputs that an entry takes beside its positive parameters.
        positive: each positive parameter's `Spread`, and the least value that it can learn.

    Raises:
        ValueError: when the decoder's out_shape is no stack of so many outputs, or a `Spread` is
            none.
    """

    def __init__(
        self, decoder: Decoder, num_outputs: int = 1, **positive: tuple[Spread, float]
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.num_outputs = num_outputs
        indices = {}
        for name, (given, _) in positive.items():
            _check_spread(f"{type(self).__name__}({name}=)", given)
            indices[name] = self.num_outputs
            self.num_outputs += given == "decoder"
        out_shape = getattr(decoder, "out_shape", None)
        event_shape = () if out_shape is None else self._event_shape(out_shape)
        for name, (given, minimum) in positive.items():
            if given == "entrywise" and out_shape is None:
                raise ValueError(
                    f"{type(self).__name__}({name}='entrywise') needs the shape of x, but the "
                    f"decoder, a {type(decoder).__name__}, has no out_shape: give it that "
                    "attribute, or choose 'learned' or 'decoder'"
                )
            self.add_module(name, PositiveParameter(given, minimum, event_shape, indices[name]))

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """Return p(x|z), batch_shape `z.shape[:-1]`, event_shape that of one observation."""
        outputs = self.outputs(z)
        return self.entries(outputs).to_event(outputs.dim() - z.dim())

    def outputs(self, z: Tensor) -> Tensor:
        """Return the K outputs of every entry, shape `(*batch, *event_shape, K)`."""
        output = self.decoder(z)
        first = z.dim() - 1
        self._event_shape(output.shape[first:])
        return output.unflatten(first, (self.num_outputs, -1)).movedim(first, -1)

    @abstractmethod
    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return the distribution of every entry, batch_shape `(*batch, *event_shape)`."""

    def _event_shape(self, out_shape: Sequence[int]) -> tuple[int, ...]:
        if not out_shape or out_shape[0] % self.num_outputs:
            k = self.num_outputs
            raise ValueError(
                f"{type(self).__name__} takes {k} outputs of the decoder for each entry of x, "
                f"stacked along the first dimension: its out_shape must be ({k} * "
                f"event_shape[0], *event_shape[1:]), got {tuple(out_shape)}"
            )
        return (out_shape[0] // self.num_outputs, *out_shape[1:])


def _check_spread(name: str, given: Spread) -> None:
    named = given in ("learned", "entrywise", "decoder")
    if not named and (isinstance(given, str) or not given > 0):
        raise ValueError(
            f"{name} must be a positive number, 'learned' (one for all entries), 'entrywise' "
            f"(learned, one for each entry) or 'decoder' (one for each entry and z), got {given!r}"
        )
