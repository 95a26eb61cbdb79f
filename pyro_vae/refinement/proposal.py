"""Proposals r(z|x) for importance sampling: mixtures of multivariate Student t distributions."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.pairs.log_weights import effective_sample_size
from pyro_vae.refinement.student_t import StudentT

EFFECTIVE = 0.1, 0.5  # least and largest share of effective draws that a fit needs
EFFECTIVE_PER_DIMENSION = 2.5
BISECTIONS = 12  # of the power of the weights
PSEUDO_DRAWS = 0.5  # effective draws per dimension that keep the precision
PRECISIONS = 0.2, 5.0  # limits of a new precision in units of the one before
WIDENING = 1.1  # of fitted covariances: too wide costs little, too narrow has no finite variance
LEAST_SHARE = 0.01  # of a component
MIN_DF, DIMENSIONS_PER_DF = 5.0, 5.0


def degrees_of_freedom(dim: int) -> float:
    """Return degrees of freedom for this number of dimensions.

    In many dimensions, the radius of a heavy-tailed distribution varies more than that of a nearly
    normal posterior.
    """
    return max(MIN_DF, dim / DIMENSIONS_PER_DF)


@dataclass(frozen=True)
class Proposal:
    """A mixture of Student t distributions for each datum.

    Attributes:
        logits: Log weights of the components, shape `(data, components)`.
        loc: Locations, shape `(data, components, dim)`.
        scale_tril: Cholesky factors of the scale matrices, `(data, components, dim, dim)`.
        df: Degrees of freedom.
    """

    logits: Tensor
    loc: Tensor
    scale_tril: Tensor
    df: float

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], device: torch.device) -> "Proposal":
        """Return the proposal of these `tensors` on a device."""
        logits, loc, scale_tril = (
            tensors[name].to(device) for name in ("logits", "loc", "scale_tril")
        )
        return cls(logits, loc, scale_tril, degrees_of_freedom(loc.shape[-1]))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the proposal by name, one row for each datum."""
        return {"logits": self.logits, "loc": self.loc, "scale_tril": self.scale_tril}

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, rows: slice | Tensor) -> "Proposal":
        return Proposal(self.logits[rows], self.loc[rows], self.scale_tril[rows], self.df)

    @property
    def dim(self) -> int:
        """Number of unconstrained latents."""
        return self.loc.shape[-1]

    @property
    def components(self) -> StudentT:
        """The components, with batch shape `(data, components)`."""
        df = self.loc.new_full(self.loc.shape[:-1], self.df)
        return StudentT(df, self.loc, self.scale_tril, validate_args=False)

    @property
    def distribution(self) -> dist.TorchDistribution:
        """The mixture, with batch shape `(data,)` and event shape `(dim,)`."""
        weights = dist.Categorical(logits=self.logits, validate_args=False)
        return dist.MixtureSameFamily(weights, self.components, validate_args=False)

    def where(self, chosen: Tensor, other: "Proposal") -> "Proposal":
        """Return this proposal for the chosen data, and the other one for the rest."""
        return Proposal(
            torch.where(chosen[:, None], self.logits, other.logits),
            torch.where(chosen[:, None, None], self.loc, other.loc),
            torch.where(chosen[:, None, None, None], self.scale_tril, other.scale_tril),
            self.df,
        )

    def replaced(self, rows: Tensor, other: "Proposal") -> "Proposal":
        """Return this proposal with the given rows replaced by those of the other one."""
        return Proposal(
            self.logits.index_copy(0, rows, other.logits),
            self.loc.index_copy(0, rows, other.loc),
            self.scale_tril.index_copy(0, rows, other.scale_tril),
            self.df,
        )

    def adapted(self, states: Tensor, log_weights: Tensor, scores: Tensor) -> "Proposal":
        """Fit the components to weighted draws.

        Means are those of the draws, weighted by importance weights and responsibilities as in
        population Monte Carlo (Cappe et al. 2008). Weights of too few effective draws are flattened
        by a power between 0 and 1 (Koblents & Miguez 2015); with equal weights a fit is a natural
        gradient step that decreases KL(r || p). Precisions are regressions of the scores on the
        draws. By Stein's identity, E (z - mean) score(z)^T = -I under p(z|x), and so

            precision = -E score (z - mean)^T (E (z - mean) (z - mean)^T)^-1.

        With weighted averages for all expectations, the errors of numerator and denominator cancel
        if p(z|x) is nearly normal. A covariance of the draws alone needs many more of them. A mean
        moves at most as far as most of the draws.

        Args:
            states: Draws from this proposal, shape `(samples, data, dim)`.
            log_weights: Their log weights, shape `(samples, data)`.
            scores: Gradients of log p(x, z) at the draws, shape `(samples, data, dim)`.
        """
        dim = states.shape[-1]
        each = self.components.log_prob(states.unsqueeze(-2)) + self.logits.log_softmax(-1)
        share = _flattened(log_weights, dim).unsqueeze(-1) * each.softmax(-1)
        mass = share.sum(0)  # (data, components)
        share = share / mass.clamp(min=1e-30)
        effective = share.square().sum(0).clamp(min=1 / len(states)).reciprocal()
        pseudo = (PSEUDO_DRAWS * dim / effective)[..., None, None]
        share = share.movedim(0, -1).unsqueeze(-2)  # (data, components, 1, samples)
        white = self.components.whitened(states.unsqueeze(-2))
        slope = self.scale_tril.mT @ scores.unsqueeze(-2).movedim(0, -1)
        mean, mean_slope = ((share * part).sum(-1, keepdim=True) for part in (white, slope))
        identity = torch.eye(dim, dtype=states.dtype, device=states.device)
        spread = (share * (white - mean)) @ (white - mean).mT + pseudo * identity
        product = pseudo * identity - (share * (slope - mean_slope)) @ (white - mean).mT
        covariance = _inverse(torch.linalg.solve(spread, product.mT))
        move = mean + covariance @ mean_slope
        move = move * (dim**0.5 / move.norm(dim=-2, keepdim=True)).clamp(max=1.0)
        return Proposal(
            torch.where(self.logits.isfinite(), mass.clamp(min=LEAST_SHARE).log(), -torch.inf),
            self.loc + (self.scale_tril @ move).squeeze(-1),
            self.scale_tril @ torch.linalg.cholesky(WIDENING * covariance),
            self.df,
        )


def _flattened(log_weights: Tensor, dim: int) -> Tensor:
    """Return normalized powers of weights, with enough effective draws to fit a proposal.

    Args:
        log_weights: Log weights, shape `(samples, data)`. Those that are not finite become zero.
        dim: Number of latents of a datum.
    """
    num = len(log_weights)
    least = min(max(EFFECTIVE_PER_DIMENSION * dim, EFFECTIVE[0] * num), EFFECTIVE[1] * num)
    possible = log_weights.isfinite()
    log_weights = log_weights.where(possible, -torch.inf)

    def powers(power: Tensor) -> Tensor:
        return torch.where(possible, power * log_weights, -torch.inf)

    low, high = torch.zeros_like(log_weights[0]), torch.ones_like(log_weights[0])
    low = torch.where(effective_sample_size(powers(high)) >= least, high, low)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        enough = effective_sample_size(powers(middle)) >= least
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return powers(low).softmax(0).nan_to_num(0.0)


def _inverse(precision: Tensor) -> Tensor:
    """Return inverses of the symmetric parts, with absolute eigenvalues in `PRECISIONS`.

    A precision that is not finite becomes the identity.
    """
    identity = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    finite = precision.isfinite().all(-1).all(-1)[..., None, None]
    values, vectors = torch.linalg.eigh(torch.where(finite, precision + precision.mT, 2 * identity))
    values = (values / 2).abs().clamp(*PRECISIONS)
    return (vectors / values.unsqueeze(-2)) @ vectors.mT
