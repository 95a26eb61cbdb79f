"""Inference gaps: the parts of log p(x) - ELBO due to the guide's family and to the encoder.

Cremer, Li & Duvenaud (2018), eq. 7 and 8, with q* the best member of the family for a datum:

    log p(x) - ELBO(q) = [log p(x) - ELBO(q*)]  +  [ELBO(q*) - ELBO(q)]
                          approximation gap         amortization gap

The family is the set of distributions that the guide returns for any output of its encoder. For
each datum, stochastic gradient ascent of the ELBO over this output finds q*, starting from the
output of the encoder. Only the guide gets this output: a model that calls the same encoder, as with
a `VampPrior`, calls the encoder itself. Gradient noise keeps the iterates around q*, so they are
averaged with increasing weights (polynomial-decay averaging, Shamir & Zhang 2013).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from pyro_vae.arguments import Count, Positive, Samples, Seed, checked
from pyro_vae.data.any_data import Data
from pyro_vae.pairs.batching import batch_of
from pyro_vae.pairs.checked_rows import CheckedRows
from pyro_vae.pairs.chunking import data_per_chunk, fitting, map_chunks
from pyro_vae.pairs.inputs import dataset_of
from pyro_vae.pairs.log_weights import elbo, importance_bound, pareto_khat
from pyro_vae.pairs.pair import AnyPair, PairError, PairLike, Program
from pyro_vae.pairs.sampler import Sampler
from pyro_vae.pairs.state import unchanged
from pyro_vae.runtime.random_state import preserved_state
from pyro_vae.runtime.tables import rendered, summary


@dataclass(frozen=True)
class Gaps:
    """Bounds and gaps in nats, arrays of shape `(num_data,)`.

    Printing them shows means, standard errors and medians.

    Attributes:
        elbo: ELBO of the encoder's q.
        best_elbo: ELBO of the best q of the family.
        log_likelihood: Importance-weighted bound with samples from the best q.
        khat: Pareto k-hat of the weights of the best q.

    Example:
        >>> import numpy as np, pyro_vae as pv
        >>> split = pv.Gaps(np.array([-9.0]), np.array([-8.0]), np.array([-7.5]), np.array([0.1]))
        >>> split.approximation, split.amortization
        (array([0.5]), array([1.]))

    See also: `gaps`, `diagnose`, `plots.gaps`.
    """

    elbo: np.ndarray
    best_elbo: np.ndarray
    log_likelihood: np.ndarray
    khat: np.ndarray

    @property
    def approximation(self) -> np.ndarray:
        """Approximation gap, log p(x) - ELBO(q*), due to the family of the guide."""
        return self.log_likelihood - self.best_elbo

    @property
    def amortization(self) -> np.ndarray:
        """Amortization gap, ELBO(q*) - ELBO(q), due to the encoder."""
        return self.best_elbo - self.elbo

    def __rich__(self) -> Table:
        names = ("elbo", "best_elbo", "log_likelihood", "approximation", "amortization")
        return summary({name: getattr(self, name) for name in names})

    def __str__(self) -> str:
        return rendered(self, width=80)


@checked
def gaps(
    pair: AnyPair,
    x: Data,
    *,
    encoder: nn.Module | None = None,
    num_steps: Count = 200,
    num_particles: Count = 8,
    learning_rate: Positive = 0.1,
    num_samples: Samples = 1000,
    seed: Seed = 0,
    progress: bool | None = None,
) -> Gaps:
    """Split log p(x) - ELBO into approximation and amortization gap for each datum.

    Parameters of the pair are not changed.

    Args:
        pair: Object with `.model` and `.guide`. Every latent is in the plate over the data.
        x: Data of shape `(num_data, *event)`, or a tuple `(x, y, ...)` or a `DataLoader` as for
            `fit`.
        encoder: Module of the guide that returns the parameters of q, one row for each datum. The
            default is `pair.guide.posterior.encoder`, as in a `VAE`.
        num_steps: Number of Adam steps for each datum.
        num_particles: Number of samples for each datum and step.
        learning_rate: Learning rate of Adam, in units of the encoder's output.
        num_samples: Number of samples for each datum for the bounds and log p(x).
        seed: Random seed. The global random state is restored.
        progress: Whether to show a progress bar; by default if standard error is a terminal.

    Returns:
        The gaps of each datum in nats, as `Gaps`.

    Raises:
        PairError: If a latent is outside the plate over the data or has no reparameterized samples,
            the guide's support leaves out latents with p(x, z) > 0, or the guide is a point mass.
        ValueError: If the guide's encoder is unknown, does not return the parameters of q with one
            row for each datum, or a latent depends on the data by another network only.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Bernoulli(pv.networks.MLP(2, [4], 5)),
        ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [4], 4)),
        ... )
        >>> split = pv.gaps(vae, torch.ones(3, 5), num_steps=2, num_samples=30)
        >>> split.approximation.shape, split.amortization.shape
        ((3,), (3,))

    See also: `diagnose`, `ais`, `plots.gaps`.
    """
    data = dataset_of(pair, x)
    encoder = encoder or encoder_of(pair)
    if encoder is None:
        raise ValueError(
            "the guide has no posterior.encoder. Pass the module that returns the parameters of q "
            "for each datum as encoder="
        )
    rows = data_per_chunk(data.event_shape, num_particles)

    def score(batch: tuple[Tensor, ...], _: int) -> dict[str, Tensor]:
        first = _encoded(sampler, guide, batch)
        with guide.returning(first):
            sampler.check_weights(batch)
            before = sampler.log_weights(batch, num_samples, num_particles).log_weights
        best = _optimize(sampler, guide, batch, first, num_steps, num_particles, learning_rate)
        with guide.returning(best):
            sampler.check_weights(batch)
            after = sampler.log_weights(batch, num_samples, num_particles).log_weights
        return {
            "elbo": elbo(before),
            "best_elbo": elbo(after),
            "log_likelihood": importance_bound(after),
            "khat": pareto_khat(after),
        }

    def one_step(batch: tuple[Tensor, ...], draws: int) -> object:
        first = _encoded(sampler, guide, batch)
        return _optimize(sampler, guide, batch, first, 1, draws, learning_rate)

    checked = CheckedRows(pair, data)
    with unchanged(pair.model, pair.guide, seed=seed):
        sampler = Sampler(pair, data.batch(slice(2)))
        sampler.check_weights()
        if name := without_gradient(sampler):
            raise PairError(
                f"the guide has no reparameterized samples of latent {name!r}, so gradients of the "
                "ELBO do not lead to its best q: gaps need a guide with rsample; "
                "diagnose(num_gap_data=0) omits them"
            )
        guide = sampler.programs.guide = GivenOutputs(pair.guide, encoder)
        _check_all_latents(sampler, guide, data.batch(slice(2)))
        few = data.batch(slice(4))
        rows, _ = fitting(rows, num_particles, one_step, few, gradients=True)
        found = map_chunks(
            checked, score, rows=rows, seed=seed, description="inference gaps", progress=progress
        )
    return Gaps(**{name: values.numpy() for name, values in found.items()})


def encoder_of(pair: PairLike) -> nn.Module | None:
    """Return the encoder of a guide like those of the package, or None."""
    encoder = getattr(getattr(pair.guide, "posterior", None), "encoder", None)
    return encoder if isinstance(encoder, nn.Module) else None


def without_gradient(sampler: Sampler) -> str:
    """Return the name of a latent of the guide without reparameterized samples, or "".

    The gradient of one run of the ELBO is then not that of its mean.
    """
    with torch.no_grad(), preserved_state():
        guide, _ = sampler.programs.run(batch_of(sampler.few), 1)
    drawn = [name for name, site in guide.items() if not site.observed]
    return next((name for name in drawn if not guide[name].distribution.has_rsample), "")


class GivenOutputs(nn.Module):
    """A guide in which the encoder returns given outputs.

    The encoder is unchanged outside the guide, so the model may call it.

    Attributes:
        calls: Outputs of the encoder in each of its calls in the last run of the unchanged guide.
    """

    def __init__(self, guide: Program, encoder: nn.Module) -> None:
        super().__init__()
        self.guide, self.encoder = guide, encoder
        self.output: tuple[Tensor, ...] = ()
        self.calls: list[tuple[Tensor, ...]] = []

    @contextlib.contextmanager
    def returning(self, output: tuple[Tensor, ...]) -> Iterator[None]:
        """Make the encoder return these outputs, one row for each datum, while the guide runs."""
        self.output = output
        try:
            yield
        finally:
            self.output = ()

    def forward(self, *args: object, **kwargs: object) -> object:
        """Run the guide."""
        if not self.output:
            self.calls = []
            with self.encoder.register_forward_hook(self._remember):
                return self.guide(*args, **kwargs)
        before = vars(self.encoder).get("forward")
        self.encoder.forward = self._encode  # overrides the method of the class
        try:
            return self.guide(*args, **kwargs)
        finally:
            del self.encoder.forward
            if before is not None:
                self.encoder.forward = before

    def _remember(
        self, module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]
    ) -> None:
        self.calls.append(output if isinstance(output, tuple) else (output,))

    def _encode(self, x: Tensor, *args: object, **kwargs: object) -> Tensor | tuple[Tensor, ...]:
        # If the data are repeated for each sample, so is the output.
        given = [out.repeat(len(x) // len(out), *(1,) * (out.dim() - 1)) for out in self.output]
        return given[0] if len(given) == 1 else tuple(given)


def _optimize(
    sampler: Sampler,
    guide: GivenOutputs,
    batch: tuple[Tensor, ...],
    first: tuple[Tensor, ...],
    num_steps: int,
    num_particles: int,
    learning_rate: float,
) -> tuple[Tensor, ...]:
    """Return encoder outputs that maximize the ELBO of each datum, starting from `first`."""
    leaves = [output.clone().requires_grad_() for output in first]
    means = [output.clone() for output in first]
    # The ELBO of a datum depends on its row only, and Adam is elementwise. Optimizing all data
    # together therefore equals optimizing each datum alone.
    optimizer = torch.optim.Adam(leaves, lr=learning_rate, betas=(0.9, 0.99))
    for step in range(num_steps):
        with torch.enable_grad(), guide.returning(tuple(leaves)):
            loss = -sampler.rsample(batch, num_particles).log_weights.mean(0).sum()
            gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        if any(gradient is None for gradient in gradients):
            raise ValueError(
                "the ELBO has no gradient with respect to the encoder's output. The gaps need "
                "continuous latents that can be reparameterized"
            )
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        optimizer.step()
        for mean, leaf in zip(means, leaves, strict=True):
            # After n steps, step t has weight t (t + 1), so the starting point is forgotten.
            mean.lerp_(leaf.detach(), 3 / (step + 3))
    return tuple(means)


def _encoded(
    sampler: Sampler, guide: GivenOutputs, batch: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Return the encoder's output when the guide runs on a batch.

    Raises:
        ValueError: If it is not the same in every call of the encoder and for every sample of the
            guide, or does not have one row for each datum.
    """
    sampler.draw(batch, 1)
    calls = guide.calls
    if not calls:
        raise ValueError("the guide does not call the module passed as encoder=")
    with preserved_state(0):  # other noise
        sampler.draw(batch, 1)
    for output in calls[0]:
        if not isinstance(output, Tensor) or output.shape[:1] != batch[0].shape[:1]:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                "encoder= must return tensors with the parameters of q, one row for each of "
                f"{len(batch[0])} data, got {got}"
            )
    if not all(_same(calls[0], other) for other in [*calls[1:], *guide.calls]):
        raise ValueError(
            "the guide calls encoder= on other inputs than the data, or on samples, so its output "
            "is not the parameters of q. Pass another module as encoder=; "
            "diagnose(num_gap_data=0) omits the gaps"
        )
    return calls[0]


def _check_all_latents(sampler: Sampler, guide: GivenOutputs, batch: tuple[Tensor, ...]) -> None:
    """Raise `ValueError` if a latent depends on the data, but not by the encoder's output.

    Its part of q is that of another network, and no output of this one is the best q.
    """
    first = _encoded(sampler, guide, batch)
    shifted = tuple(o + torch.linspace(0.5, 1, o.shape[-1]).to(o) for o in first)
    several = len(batch[0]) > 1
    moved = tuple(x.roll(1, dims=0) if several else torch.zeros_like(x) for x in batch)

    def drawn(rows: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> dict[str, Tensor]:
        with preserved_state(seed=0), guide.returning(output):
            return sampler.draw(rows, 1).latents

    latents, by_output, by_data = drawn(batch, first), drawn(batch, shifted), drawn(moved, first)
    for name, z in latents.items():
        if torch.equal(z, by_output[name]) and not torch.equal(z, by_data[name]):
            raise ValueError(
                f"latent {name!r} depends on the data, and not on the output of encoder=. Pass a "
                "module that returns the parameters of q for all latents, such as the first "
                "layers that its networks share; diagnose(num_gap_data=0) omits the gaps"
            )


def _same(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))
