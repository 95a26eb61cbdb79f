"""Proposals r(z|x) for importance sampling: mixtures of multivariate Student t distributions."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

CLIPPED = 0.02  # share of the largest weights that are set to the smallest of them
SHRINKAGE = 20.0  # effective draws per dimension at which half of a new covariance is used
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

    def __getitem__(self, rows: slice) -> "Proposal":
        return Proposal(self.logits[rows], self.loc[rows], self.scale_tril[rows], self.df)

    @property
    def dim(self) -> int:
        """Number of unconstrained latents."""
        return self.loc.shape[-1]

    @property
    def components(self) -> dist.TorchDistribution:
        """The components, with batch shape `(data, components)`."""
        df = self.loc.new_full(self.loc.shape[:-1], self.df)
        return dist.MultivariateStudentT(df, self.loc, self.scale_tril, validate_args=False)

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

    def adapted(self, states: Tensor, log_weights: Tensor) -> "Proposal":
        """Fit the components to weighted draws, shape `(samples, data, dim)` and `(samples, data)`.

        Population Monte Carlo for mixtures (Cappe et al. 2008): each component takes the mean and
        the covariance of the draws, weighted by its responsibilities. The largest weights are
        clipped. Few effective draws say little of a covariance in many dimensions, so means and
        covariances are shrunk towards those of this proposal.
        """
        dim = states.shape[-1]
        cut = log_weights.topk(max(1, int(CLIPPED * len(states))), dim=0).values[-1]
        each = self.components.log_prob(states.unsqueeze(-2)) + self.logits.log_softmax(-1)
        share = log_weights.minimum(cut).softmax(0).unsqueeze(-1) * each.softmax(-1)
        mass = share.sum(0)  # (data, components)
        share = share / mass.clamp(min=1e-30)
        effective = share.square().sum(0).clamp(min=1e-30).reciprocal()
        trust = torch.where(mass > 0, effective / (effective + SHRINKAGE * dim), 0)
        centred = (states.unsqueeze(-2) - self.loc).movedim(0, -1)
        white = torch.linalg.solve_triangular(self.scale_tril, centred, upper=False)
        share = share.movedim(0, -1).unsqueeze(-2)  # (data, components, 1, samples)
        mean = (share * white).sum(-1, keepdim=True)
        spread = (share * (white - mean)) @ (white - mean).mT * (self.df - 2) / self.df
        trust = trust[..., None, None]
        identity = torch.eye(dim, dtype=states.dtype, device=states.device)
        scale = WIDENING * (trust * spread + (1 - trust) * identity)
        return Proposal(
            torch.where(self.logits.isfinite(), mass.clamp(min=LEAST_SHARE).log(), -torch.inf),
            self.loc + (self.scale_tril @ mean).squeeze(-1),
            self.scale_tril @ torch.linalg.cholesky(scale),
            self.df,
        )
