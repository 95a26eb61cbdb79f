"""Likelihoods of counts, with means or with shares of an observed total."""

from abc import abstractmethod

import pyro.distributions as dist
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.arguments import Positive
from pyro_vae.distributions.counts import CountsGivenTotal
from pyro_vae.distributions.parameters import MIN_INVERSE_DISPERSION
from pyro_vae.likelihoods.base import Decoder, Entrywise, PositiveParameter, Spread


class Counts(Entrywise):
    """Base class of likelihoods of counts, with means exp(decoder(z)) or shares of a total.

    Args:
        decoder: Network from z to log means or log shares, and to the other parameters.
        num_outputs: Number of decoder outputs for each entry, as for `Entrywise`.
        library_size: `None` for means exp(decoder(z)). With a number, the means are shares, a
            softmax over the entries, of the total count of each observation, as the library size
            of scVI (Lopez et al. 2018). The number is the total of samples and moments. In that
            case log p(x|z) is conditional on the observed total: it is not a density of x and
            cannot be compared with one.
        positive: `Spread` and smallest learned value of each positive parameter.

    Raises:
        ValueError: If `library_size` is not positive.
    """

    def __init__(
        self,
        decoder: Decoder,
        num_outputs: int = 1,
        *,
        library_size: Positive | None,
        **positive: tuple[Spread, float],
    ) -> None:
        super().__init__(decoder, num_outputs, **positive)
        self.library_size = library_size

    def forward(self, z: Tensor, *context: Tensor) -> dist.TorchDistribution:
        """Return p(x|z), batch_shape `z.shape[:-1]`, event_shape that of one observation."""
        if self.library_size is None:
            return super().forward(z, *context)
        outputs = self.outputs(z, *context)
        if outputs.dim() != z.dim() + 1:
            raise ValueError(
                f"{type(self).__name__}(library_size=) takes observations that are vectors of "
                f"counts, got a decoder for the shape {tuple(outputs.shape[z.dim() - 1 : -1])}"
            )
        return CountsGivenTotal(
            lambda log_mean: self.counts(log_mean, outputs), outputs[..., 0], self.library_size
        )

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a distribution of counts for each entry."""
        return self.counts(outputs[..., 0], outputs)

    @abstractmethod
    def counts(self, log_mean: Tensor, outputs: Tensor) -> dist.TorchDistribution:
        """Return the distribution of counts with these means and the other decoder outputs."""


class Poisson(Counts):
    """p(x|z) = Poisson(x; mean exp(decoder(z))), for counts with a variance equal to the mean.

    Args:
        decoder: Network from z to log means.
        library_size: Total count of samples and moments, or `None`; see `Counts`.

    Example:
        >>> import torch
        >>> from pyro_vae import likelihoods, networks
        >>> likelihood = likelihoods.Poisson(networks.MLP(3, [8], 5))
        >>> likelihood(torch.zeros(4, 3)).sample().shape
        torch.Size([4, 5])

    See also: `NegativeBinomial`, `ZeroInflatedNegativeBinomial`.
    """

    def __init__(self, decoder: Decoder, library_size: Positive | None = None) -> None:
        super().__init__(decoder, library_size=library_size)

    def counts(self, log_mean: Tensor, outputs: Tensor) -> dist.TorchDistribution:
        """Return Poisson distributions with these means."""
        return distributions.Poisson(log_mean)


class _Dispersed(Counts):
    """Counts with a variance above the mean m, such as m + m^2 / r."""

    num_params = 1  # outputs of the decoder for each entry, without r
    inverse_dispersion: PositiveParameter

    def __init__(
        self,
        decoder: Decoder,
        inverse_dispersion: Spread = "learned",
        library_size: Positive | None = None,
    ) -> None:
        super().__init__(
            decoder,
            self.num_params,
            library_size=library_size,
            inverse_dispersion=(inverse_dispersion, MIN_INVERSE_DISPERSION),
        )


class NegativeBinomial(_Dispersed):
    """p(x|z) = NB(x; mean m = exp(decoder(z)), r), for counts of variance m + m^2 / r.

    Args:
        decoder: Network from z to log means and, if `inverse_dispersion="decoder"`, to r.
        inverse_dispersion: Inverse dispersion r: a number, `"learned"`, `"entrywise"` or
            `"decoder"`. The distribution approaches a Poisson distribution as r grows.
        library_size: Total count of samples and moments, or `None`; see `Counts`.

    Example:
        >>> import torch
        >>> from pyro_vae import likelihoods, networks
        >>> likelihood = likelihoods.NegativeBinomial(networks.MLP(3, [8], 5), library_size=100.0)
        >>> likelihood(torch.zeros(4, 3)).sample().shape
        torch.Size([4, 5])

    See also: `Poisson`, `ZeroInflatedNegativeBinomial`.
    """

    def counts(self, log_mean: Tensor, outputs: Tensor) -> dist.TorchDistribution:
        """Return negative binomial distributions with these means."""
        return distributions.NegativeBinomial(self.inverse_dispersion(outputs), log_mean)


class ZeroInflatedNegativeBinomial(_Dispersed):
    """A negative binomial with extra zeros, for single-cell counts: Lopez et al. (2018).

    p(x|z) = g [x = 0] + (1 - g) NB(x; m, r). m = exp(decoder(z)) is the mean of counts without
    dropout, and g = sigmoid(decoder(z)) is the probability of dropout.

    Args:
        decoder: Network from z to log m, to the logits of g and, if
            `inverse_dispersion="decoder"`, to r.
        inverse_dispersion: Inverse dispersion r, as for `NegativeBinomial`.
        library_size: Total count of samples and moments, or `None`; see `Counts`.

    Example:
        >>> import torch
        >>> from pyro_vae import likelihoods, networks
        >>> likelihood = likelihoods.ZeroInflatedNegativeBinomial(networks.MLP(3, [8], 2 * 5))
        >>> likelihood(torch.zeros(4, 3)).sample().shape
        torch.Size([4, 5])

    See also: `NegativeBinomial`, `Poisson`.
    """

    num_params = 2

    def counts(self, log_mean: Tensor, outputs: Tensor) -> dist.TorchDistribution:
        """Return zero-inflated negative binomial distributions with these means."""
        return distributions.ZeroInflatedNegativeBinomial(
            self.inverse_dispersion(outputs), log_mean, gate_logits=outputs[..., 1]
        )
