"""A conditional autoregressive flow with an inverse at the cost of one pass.

A masked network (Germain et al. 2015) returns the parameters of y_i as functions of the entries of
x before i. The inverse computes one entry of x after the other. D passes through the network would
compute each hidden unit D times and, with gradients, keep it D times. Here a hidden unit is
computed once, as soon as the entries that it depends on are known.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

import torch
from pyro.nn import ConditionalAutoRegressiveNN
from pyro.nn.auto_reg_nn import MaskedLinear
from torch import Tensor
from torch.nn.functional import linear, logsigmoid

from pyro_vae.distributions.transforms import AffineAutoregressive

# Function of y_i and the two outputs of the network for entry i. It returns x_i.
Solve: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


class MaskedNetwork(ConditionalAutoRegressiveNN):
    """The conditional autoregressive network of Pyro, which can also run one entry at a time.

    Args:
        context_dim: Size of the context.
        hidden: Sizes of the hidden layers.
        order: The numbers 0, ..., D - 1. Networks of one flow share this tensor, also in files.
    """

    def __init__(self, context_dim: int, hidden: Sequence[int], order: Tensor) -> None:
        latent_dim, permutation = len(order), cast(torch.LongTensor, order)
        super().__init__(latent_dim, context_dim, list(hidden), permutation=permutation)
        # The context is known at time 0, entry i after time i, and a unit with its last input.
        times = [0] * context_dim + [i + 1 for i in range(latent_dim)]
        layers = []
        for mask in self.masks[:-1]:
            used = (mask != 0).tolist()
            times = [max(itertools.compress(times, row), default=0) for row in used]
            layers.append(times)
        layers.append([*range(latent_dim)] * 2)  # both outputs for entry i are needed at time i
        self._units = [sorted(range(len(t)), key=t.__getitem__) for t in layers]
        self._counts = [[t.count(i) for i in range(latent_dim)] for t in layers]

    def forward(
        self, x: Tensor, context: Tensor, solve: Solve | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return both parameters of each entry. With `solve`, return x and the second parameter.

        Args:
            x: Input, shape `(*batch, latent_dim)`; with `solve`, the output y of the transform.
            context: Context, of a shape that broadcasts with x.
            solve: Function of y_i and the parameters of entry i that returns x_i.
        """
        if solve is None:
            return cast(tuple[Tensor, Tensor], super().forward(x, context))
        weights = self._sorted_weights()
        size = self.context_dim
        layers = cast(list[MaskedLinear], list(self.layers))
        # Sums of the units that are not computed yet, over the inputs that are known.
        sums = [layer.bias[units] for layer, units in zip(layers, self._units, strict=True)]
        sums[0] = linear(context, weights[0][:, :size], sums[0])
        done = [0] * len(sums)
        entries: list[Tensor] = []
        seconds: list[Tensor] = []
        for i in range(self.input_dim):
            for k, counts in enumerate(self._counts):
                units = slice(done[k], done[k] + counts[i])
                new, sums[k] = sums[k][..., : counts[i]], sums[k][..., counts[i] :]
                if k == 0 and i:
                    known = torch.stack(entries, -1)
                    new = new + linear(known, weights[0][units, size : size + i])
                if k + 1 < len(sums) and counts[i]:
                    later = weights[k + 1][done[k + 1] :, units]
                    sums[k + 1] = sums[k + 1] + linear(self.f(new), later)
                done[k] = units.stop
            first, second = new.unbind(-1)
            entries.append(solve(x[..., i], first, second))
            seconds.append(second.expand(entries[0].shape))
        return torch.stack(entries, -1), torch.stack(seconds, -1)

    def _sorted_weights(self) -> list[Tensor]:
        """Return the masked weights of each layer, units and inputs in the order of their times."""
        layers = cast(list[MaskedLinear], list(self.layers))
        weights = [layer.weight * layer.mask for layer in layers]
        rows = [weight[units] for weight, units in zip(weights, self._units, strict=True)]
        inputs = zip(rows[1:], self._units[:-1], strict=True)
        return [rows[0], *(weight[:, units] for weight, units in inputs)]


class Conditioned:
    """A masked network at a fixed context, for values that broadcast with the context."""

    def __init__(self, network: MaskedNetwork, context: Tensor) -> None:
        self.network, self.context = network, context

    def __call__(self, z: Tensor, solve: Solve | None = None) -> tuple[Tensor, Tensor]:
        """Run the network as `MaskedNetwork.forward` does."""
        if solve is not None:
            return self.network(z, self.context, solve)
        batch = torch.broadcast_shapes(z.shape[:-1], self.context.shape[:-1])
        return self.network(z.expand(*batch, -1), self.context)


class GatedAutoregressive(AffineAutoregressive):
    """y = s x + (1 - s) m with functions s in (0, 1) and m of the entries before and a context."""

    def __init__(self, network: MaskedNetwork, context: Tensor) -> None:
        super().__init__(Conditioned(network, context), stable=True)

    def _inverse_stable(self, y: Tensor) -> Tensor:
        x, raw = self.arn(y, self._solve)
        self._cached_log_scale = logsigmoid(raw + self.sigmoid_bias)
        return x

    def _solve(self, y: Tensor, mean: Tensor, raw: Tensor) -> Tensor:
        raw = raw + self.sigmoid_bias
        return (y - (1 - raw.sigmoid()) * mean) / logsigmoid(raw).exp()
