"""Likelihoods: `likelihood(z)` returns p(x given z), one distribution per latent.

Its batch_shape is `z.shape[:-1]` and its event_shape that of one observation. The decoder, a
network from z to the distribution's parameters, is an argument.
"""

from collections.abc import Callable

import pyro.distributions as dist
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_vae.parts import Part

Decoder = Callable[[Tensor], Tensor]


class Bernoulli(Part):
    """p(x|z) = prod_d Bernoulli(x_d; sigmoid(decoder(z)_d)), for x in {0, 1}.

    Kingma & Welling (2013), Appendix C.1. Grey values between 0 and 1 are outside its support: a
    Bernoulli density of them is not normalized. Binarize them (`binarize=` of the data sets).

    Args:
        decoder: network from `(*batch, latent_dim)` to logits `(*batch, *event)`.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """Return p(x|z), batch_shape `z.shape[:-1]`, event_shape that of the decoder's output."""
        logits = self.decoder(z)
        return _Bits(logits=logits).to_event(logits.dim() - z.dim() + 1)


class _Bits(dist.Bernoulli):
    """A Bernoulli whose log density is log sigmoid(+-logits), for a value of 1 or 0.

    The same number as Pyro's, which goes through a cross entropy for values between 0 and 1, in a
    third of the time.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return logsigmoid((2 * value - 1) * self.logits)
