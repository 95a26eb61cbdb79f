"""Likelihoods of counts, with means of their own or as shares of an observed total."""

from abc import abstractmethod

import pyro.distributions as dist
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.distributions.counts import CountsGivenTotal
from pyro_vae.likelihoods.base import Decoder, Entrywise, PositiveParameter, Spread

MIN_INVERSE_DISPERSION = 1e-3


class Counts(Entrywise):
    """Counts with means exp(decoder(z)), or with shares of a total: the base class of those below.

    Args:
        decoder: network to log means, or log shares, and what else the distribution takes.
        num_outputs: as for `Entrywise`.
        library_size: None for means exp(decoder(z)). A number makes the means shares, a softmax
            over the entries, of the total count of each observation, as scVI does with its library
            size (Lopez et al. 2018); the number is the total that draws and means stand for.
            log p(x|z) is then conditional on the observed total: it is no density of x, and not to
            be compared with one.
        positive: as for `Entrywise`.

    Raises:
        ValueError: for a library size that is not positive.
    """

    def __init__(
        self,
        decoder: Decoder,
        num_outputs: int = 1,
        *,
        library_size: float | None,
        **positive: tuple[Spread, float],
    ) -> None:
        super().__init__(decoder, num_outputs, **positive)
        if library_size is not None and not library_size > 0:
            raise ValueError(f"library_size must be a positive number or None, got {library_size}")
        self.library_size = library_size

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """Return p(x|z), batch_shape `z.shape[:-1]`, event_shape that of one observation."""
        if self.library_size is None:
            return super().forward(z)
        outputs = self.outputs(z)
        if outputs.dim() != z.dim() + 1:
            raise ValueError(
                f"{type(self).__name__}(library_size=) takes observations that are vectors of "
                f"counts, got a decoder for the shape {tuple(outputs.shape[z.dim() - 1 : -1])}"
            )
        return CountsGivenTotal(
            lambda log_mean: self.counts(log_mean, outputs), outputs[..., 0], self.library_size
        )

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a distribution of counts for every entry."""
        return self.counts(outputs[..., 0], outputs)

    @abstractmethod
    def counts(self, log_mean: Tensor, outputs: Tensor) -> dist.TorchDistribution:
        """Return the distribution of counts with these means and the outputs' other parameters."""


class Poisson(Counts):
    """p(x|z) = Poisson(x; mean exp(decoder(z))), for counts whose variance is their mean.

    Args:
        decoder: network to log means.
        library_size: see `Counts`.
    """

    def __init__(self, decoder: Decoder, library_size: float | None = None) -> None:
        super().__init__(decoder, library_size=library_size)

    def counts(self, log_mean: Tensor, outputs: Tensor) -> dist.TorchDistribution:
        """Return Poisson distributions with these means."""
        return dist.Poisson(log_mean.exp())


class NegativeBinomial(Counts):
    """p(x|z) = NB(x; mean m = exp(decoder(z)), r), for counts of variance m + m^2 / r.

    Args:
        decoder: network to log means, and to r where that is `"decoder"`.
        inverse_dispersion: r, a number, `"learned"`, `"entrywise"` or `"decoder"`; it grows as the
            counts come near to Poisson's.
        library_size: see `Counts`.
    """

    inverse_dispersion: PositiveParameter

    def __init__(
        self,
        decoder: Decoder,
        inverse_dispersion: Spread = "learned",
        library_size: float | None = None,
    ) -> None:
        super().__init__(
            decoder,
            library_size=library_size,
            inverse_dispersion=(inverse_dispersion, MIN_INVERSE_DISPERSION),
        )

    def counts(self, log_mean: Tensor, outputs: Tensor) -> dist.TorchDistribution:
        """Return negative binomial distributions with these means."""
        r = self.inverse_dispersion(outputs)
        return dist.NegativeBinomial(r, logits=log_mean - r.log())


class ZeroInflatedNegativeBinomial(Counts):
    """A negative binomial with more zeros, for the counts of single cells: Lopez et al. (2018).

    p(x|z) = g [x = 0] + (1 - g) NB(x; m, r), with m = exp(decoder(z)) the mean of what is not
    dropped out, and g = sigmoid(decoder(z)) the share that is.

    Args:
        decoder: network to log m and the logits of g, and to r where that is `"decoder"`.
        inverse_dispersion: r, as for `NegativeBinomial`.
        library_size: see `Counts`.
    """

    inverse_dispersion: PositiveParameter

    def __init__(
        self,
        decoder: Decoder,
        inverse_dispersion: Spread = "learned",
        library_size: float | None = None,
    ) -> None:
        super().__init__(
            decoder,
            2,
            library_size=library_size,
            inverse_dispersion=(inverse_dispersion, MIN_INVERSE_DISPERSION),
        )

    def counts(self, log_mean: Tensor, outputs: Tensor) -> dist.TorchDistribution:
        """Return zero-inflated negative binomial distributions with these means."""
        r = self.inverse_dispersion(outputs)
        return distributions.ZeroInflatedNegativeBinomial(
            r, logits=log_mean - r.log(), gate_logits=outputs[..., 1]
        )
