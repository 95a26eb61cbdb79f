"""Rows of a tensor in memory."""

import torch
from torch import Tensor

from pyro_vae.data.binarization import fixed_draw
from pyro_vae.data.random_access import RandomAccess
from pyro_vae.data.rows import Batch, Index


class InMemory(RandomAccess):
    """A tensor that implements `Rows`.

    Args:
        tensor: Tensor of shape `(num_data, *event)`.
    """

    reads_ahead = False

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.dtype, self.device = tensor.shape, tensor.dtype, tensor.device
        # Data are constants: a step would compute gradients of the network that they come from.
        self._tensor = tensor.detach() if tensor.requires_grad else tensor
        self._draws: dict[int, Tensor] = {}

    @property
    def unwrapped(self) -> Tensor:
        """The tensor."""
        return self._tensor

    def has_infinities(self) -> bool:
        """Whether any value is infinite."""
        return self.dtype.is_floating_point and bool(torch.isinf(self._tensor).any())

    def select(self, entry: Tensor) -> Batch:
        """Return the rows of a training batch."""
        return (self._tensor.index_select(0, entry),)  # several times faster than tensor[entry]

    def take(self, index: Index) -> Batch:
        """Return the rows at an index."""
        return (self._tensor[index],)

    def split(self, size: int) -> tuple[Tensor, ...]:
        """Return all rows in order, `size` at a time."""
        return self._tensor.split(size)

    def sample(self) -> tuple[Index, Tensor]:
        """Return all rows."""
        return slice(None), self._tensor

    def fingerprint(self) -> tuple[Tensor, ...]:
        """Return all rows."""
        return self.split(4096)

    def content_samples(self) -> tuple[Tensor, ...]:
        """Return no rows, because the fingerprint has all of them."""
        return ()

    def binarize(self, pixels: Tensor, index: Index, seed: int) -> Tensor:
        """Return rows of one Bernoulli draw of the whole tensor, made at the first call."""
        if seed not in self._draws:
            self._draws[seed] = fixed_draw(self._tensor, seed)
        return self._draws[seed][index].float()

    def narrow(self, start: int, length: int) -> "InMemory":
        """Return a view of `length` rows from row `start` on."""
        return InMemory(self._tensor.narrow(0, start, length))

    def subset(self, numbers: Tensor) -> "InMemory":
        """Return a copy of the rows with these numbers."""
        return InMemory(self._tensor[numbers.to(self.device)])

    def to(self, device: str | torch.device) -> "InMemory":
        """Return the rows on a device."""
        return InMemory(self._tensor.to(device))
