"""`refine`: a corrected posterior of each datum, with the evidence of how good it is."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from pyro_vae.arguments import FilePath, Samples, Seed, Whole, checked
from pyro_vae.data.dataset import Data
from pyro_vae.distributed import from_first
from pyro_vae.engine.guards import modules_of
from pyro_vae.engine.matmul import fast_layers
from pyro_vae.pairs.check import check_data
from pyro_vae.pairs.checked_rows import CheckedRows
from pyro_vae.pairs.chunking import map_chunks, over_chunks
from pyro_vae.pairs.inputs import dataset_of
from pyro_vae.pairs.khat import khat_threshold
from pyro_vae.pairs.log_weights import (
    check_finite,
    effective_sample_size,
    importance_bound,
    pareto_khat,
)
from pyro_vae.pairs.pair import AnyPair, PairLike
from pyro_vae.pairs.sampler import Sampler
from pyro_vae.pairs.state import unchanged
from pyro_vae.pairs.unconstrained import Unconstrained
from pyro_vae.refinement import storage
from pyro_vae.refinement.importance import defence, log_mixture, resampled, weighted
from pyro_vae.refinement.proposal import Proposal
from pyro_vae.refinement.refiner import NUM_ROUNDS, Refiner
from pyro_vae.runtime.files import CheckpointError
from pyro_vae.runtime.tables import positions, rendered

SETTINGS = ("num_rounds", "seed", "dataset", "binarization")  # saved with a posterior

R = TypeVar("R")


@dataclass(frozen=True)
class RefinedPosterior:
    """A proposal r(z|x) near the posterior of each datum, and its importance weights.

    Printing it shows log p(x), k-hat and effective sample size.

    Attributes:
        log_weights: log p(x, z) - log r(z|x) of draws from r, shape `(num_samples, num_data)`.
        khat: Pareto k-hat of the weights, shape `(num_data,)`. Above `khat_threshold`, r is not
            near enough to the posterior.
        ess: Effective sample size of the weights, shape `(num_data,)`.
        log_likelihood: Importance-weighted bound of log p(x) in nats, shape `(num_data,)`.
        num_rounds: Number of rounds of adaptation.
        seed: Random seed.
        dataset: Name of the dataset.
        binarization: Binarization of the dataset.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Bernoulli(pv.networks.MLP(2, [4], 5)),
        ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [4], 4)),
        ... )
        >>> posterior = pv.refine(vae, torch.ones(3, 5), num_samples=100)
        >>> posterior.sample(10)["z"].shape, posterior.khat.shape
        (torch.Size([10, 3, 2]), (3,))

    See also: `refine`.
    """

    log_weights: np.ndarray
    khat: np.ndarray
    ess: np.ndarray
    log_likelihood: np.ndarray
    num_rounds: int
    seed: int
    dataset: str
    binarization: str
    _rows: CheckedRows
    _pair: PairLike
    _proposal: Proposal

    @property
    def num_samples(self) -> int:
        """Number of weighted draws of each datum."""
        return len(self.log_weights)

    @property
    def num_data(self) -> int:
        """Number of data."""
        return len(self.khat)

    @property
    def khat_threshold(self) -> float:
        """min(1 - 1/log10(num_samples), 0.7): Vehtari et al. (2024)."""
        return khat_threshold(self.num_samples)

    @property
    def unreliable(self) -> np.ndarray:
        """Positions of the data with k-hat above the threshold, or without one (NaN)."""
        return np.flatnonzero(~(self.khat <= self.khat_threshold))

    @checked
    def sample(
        self, num_samples: Samples = 1000, *, num_candidates: Samples = 1000, seed: Seed = 0
    ) -> dict[str, Tensor]:
        """Sample the latents from the posterior of each datum, by importance resampling.

        Fresh draws from r are resampled by their Pareto smoothed weights (Vehtari et al. 2024). A
        draw can be repeated. Smoothing takes mass from modes that few draws reach. For the data in
        `unreliable`, the samples are not from the posterior.

        Args:
            num_samples: Number of samples of each datum.
            num_candidates: Number of draws from r of which the samples are chosen.
            seed: Random seed. The global random state is restored.

        Returns:
            Samples by site name, shape `(num_samples, num_data, *event)`.
        """

        def chosen(posterior: Unconstrained, r: Proposal, draws: int) -> dict[str, Tensor]:
            found = weighted(posterior, r, num_candidates, draws, defended=True)
            return posterior.constrain(resampled(found, num_samples))[0]

        parts = list(self._each(chosen, seed))
        return {name: torch.cat([part[name].cpu() for part in parts], 1) for name in parts[0]}

    def log_prob(self, latents: Mapping[str, Tensor]) -> Tensor:
        """Return log r(z|x) in nats, shape `(num_samples, num_data)`.

        Args:
            latents: Values of all latents by site name, shape `(num_samples, num_data, *event)`.
        """
        start = 0

        def density(posterior: Unconstrained, r: Proposal, draws: int) -> Tensor:
            nonlocal start
            part = {name: z[:, start : start + len(r.logits)] for name, z in latents.items()}
            start += len(r.logits)
            states = posterior.unconstrain({name: part[name] for name in posterior.transforms})
            terms = [posterior(part)[0] for part in states.split(draws)]
            shares = defence(posterior)
            log_r = log_mixture(posterior, r, states, torch.cat(terms), shares, draws)
            return log_r - posterior.constrain(states)[1]

        return torch.cat(list(self._each(density, 0)), dim=1)

    @checked
    def save(self, path: FilePath) -> None:
        """Save the posterior into the folder `path`, which is replaced atomically.

        Model and data are not saved. A run's folder is a natural place:
        `posterior.save("runs/mnist/refined")`.

        Args:
            path: Folder to write.

        Raises:
            CheckpointError: If `path` is a link or contains other files.
            OSError: If the folder cannot be written. Its old content is kept.

        Example:
            >>> import tempfile, torch, pyro_vae as pv
            >>> vae = pv.VAE(
            ...     pv.priors.StandardNormal(2),
            ...     pv.likelihoods.Bernoulli(pv.networks.MLP(2, [4], 5)),
            ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [4], 4)),
            ... )
            >>> x = torch.ones(3, 5)
            >>> posterior = pv.refine(vae, x, num_samples=100)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     posterior.save(folder + "/refined")
            ...     pv.RefinedPosterior.load(folder + "/refined", vae, x).num_data
            3
        """
        values = {name: getattr(self, name) for name in ("khat", "ess", "log_likelihood")}
        tensors = {name: torch.from_numpy(array) for name, array in values.items()}
        tensors |= {"log_weights": torch.from_numpy(self.log_weights), **self._proposal.tensors()}
        tensors["log_joint"] = self._log_joint()
        settings = {name: getattr(self, name) for name in SETTINGS}
        from_first(lambda: storage.write(Path(path), settings, tensors))

    @classmethod
    def load(cls, path: str | os.PathLike[str], pair: PairLike, x: Data) -> "RefinedPosterior":
        """Load a posterior that was saved for a pair and data.

        Args:
            path: Folder of the posterior.
            pair: The pair, with the parameters that it had.
            x: The data, as for `refine`.

        Raises:
            CheckpointError: If a file is missing or damaged, or if log p(x, z) at the saved modes
                shows another model or other data.
        """
        settings, tensors = storage.read(Path(path))
        data = dataset_of(pair, x)
        if len(data) != settings["num_data"]:
            raise CheckpointError(
                f"{path} is a posterior of {settings['num_data']} data, got {len(data)}"
            )
        check_data(pair, data, weighted=False)
        posterior = cls(
            log_weights=tensors["log_weights"].numpy(),
            khat=tensors["khat"].numpy(),
            ess=tensors["ess"].numpy(),
            log_likelihood=tensors["log_likelihood"].numpy(),
            **{name: settings[name] for name in SETTINGS},
            _rows=CheckedRows(pair, data),
            _pair=pair,
            _proposal=Proposal.of(tensors, data.values.device),
        )
        few = data.batch(slice(2))
        with torch.no_grad(), unchanged(pair.model, pair.guide):
            dim = Unconstrained(Sampler(pair, few), few).dim
        if dim != posterior._proposal.dim:
            raise CheckpointError(
                f"{path} is a posterior of {posterior._proposal.dim} unconstrained latents, and "
                f"the model has {dim}"
            )
        storage.check_same(tensors["log_joint"], posterior._log_joint())
        return posterior

    def _log_joint(self) -> Tensor:
        """Return log p(x, z) of each datum at its first mode, shape `(num_data,)`."""

        def at_mode(posterior: Unconstrained, r: Proposal, _draws: int) -> Tensor:
            return posterior.log_joint(r.loc[:, 0][None])[0].cpu()

        return torch.cat(list(self._each(at_mode, 0)))

    def _each(self, work: Callable[[Unconstrained, Proposal, int], R], seed: int) -> Iterator[R]:
        """Yield the result of a function of the densities, proposals and draws of each chunk."""
        programs = self._pair.model, self._pair.guide
        data = self._rows.data
        with torch.no_grad(), unchanged(*programs), fast_layers(modules_of(*programs)):
            few = data.batch(slice(2))
            sampler = Sampler(self._pair, few)
            rows, draws = Refiner(sampler, self.num_rounds, self.num_samples).chunk_sizes(
                few, len(data)
            )

            def one(place: int, batch: tuple[Tensor, ...]) -> R:
                part = self._proposal[place : place + len(batch[0])]
                return work(Unconstrained(sampler, batch), part, draws)

            yield from over_chunks(self._rows.chunks(rows), one, seed=seed)

    def __rich__(self) -> Table:
        bad = len(self.unreliable) / self.num_data
        caption = (
            f"{self.dataset}, {self.num_data:,} data, binarization {self.binarization},\n"
            f"proposal refined in {self.num_rounds} rounds, K = {self.num_samples}, "
            f"seed {self.seed},\n"
            f"k-hat above {self.khat_threshold:.2f} for {bad:.1%} of the data"
            f"{positions(self.unreliable.tolist())}"
        )
        table = Table("per datum", "mean", "median", caption=caption)
        for name, values in (
            ("log p(x), nats", self.log_likelihood),
            ("effective sample size", self.ess),
            ("k-hat", self.khat),
        ):
            table.add_row(name, f"{values.mean():.2f}", f"{np.median(values):.2f}")
        return table

    def __str__(self) -> str:
        return rendered(self, width=100)


@checked
def refine(
    pair: AnyPair,
    x: Data,
    *,
    num_rounds: Annotated[int, Whole(0)] = NUM_ROUNDS,
    num_samples: Samples = 1000,
    seed: Seed = 0,
    progress: bool | None = None,
) -> RefinedPosterior:
    """Find a proposal near the posterior p(z|x) of each datum, and weight draws from it.

    An encoder is trained for all data together, and the posterior of a datum differs from its
    output (Cremer et al. 2018). For each datum, starting from the guide:

    1. Newton's method finds modes of p(z|x) in the unconstrained space of the latents. Student t
       distributions there, with the inverse negative Hessians as scales, are the first proposal.
    2. Rounds of adaptive importance sampling fit the proposal to its weighted draws (Cappe et al.
       2008) and to the gradients of log p(x, z) there. A fit is kept if draws that it has not seen,
       of the proposal before and of the fit, show that it is nearer to p(z|x). A datum whose
       weights are still uneven, such as one unlike the training data, has up to eight times as many
       rounds again.
    3. Fresh draws, a tenth of them from the guide if it has a density at given latents, are
       weighted by p(x, z) / r(z|x). Their k-hat shows for which data the proposal is still too far
       from the posterior.

    Memory use is bounded. Several processes share the data.

    Args:
        pair: Object with `.model` and `.guide`. Every latent is continuous and in the plate over
            the data.
        x: Data of shape `(num_data, *event)`, or a tuple `(x, y, ...)` or a `DataLoader` as for
            `fit`.
        num_rounds: Number of rounds of adaptation of each datum, at first.
        num_samples: Number of weighted draws of each datum.
        seed: Random seed. The global random state is restored.
        progress: Whether to show a progress bar; by default if standard error is a terminal.

    Returns:
        The draws, their log weights and k-hat, as a `RefinedPosterior`.

    Raises:
        PairError: If a latent is discrete, outside the plate over the data, or on a surface, or has
            bounds that depend on other latents, or if a density depends on masked elements. The
            guide's support may be a part of the prior's.
        ValueError: If log p(x) of a datum is not finite.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Bernoulli(pv.networks.MLP(2, [4], 5)),
        ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [4], 4)),
        ... )
        >>> posterior = pv.refine(vae, torch.ones(3, 5), num_samples=100)
        >>> posterior.log_weights.shape
        (100, 3)

    See also: `evaluate`, whose `proposal="refined"` scores with these draws; `diagnose`; `ais`.
    """
    dataset = dataset_of(pair, x)
    check_data(pair, dataset, weighted=False)
    rows = CheckedRows(pair, dataset)
    programs = pair.model, pair.guide

    def score(batch: tuple[Tensor, ...], draws: int) -> dict[str, Tensor]:
        proposal, found = refiner.draw(batch, draws)
        weights = found.log_weights
        return {
            "log_weights": weights.T,
            "khat": pareto_khat(weights),
            "ess": effective_sample_size(weights),
            "log_likelihood": importance_bound(weights),
            **proposal.tensors(),
        }

    with unchanged(*programs), fast_layers(modules_of(*programs)):
        few = dataset.batch(slice(2))
        refiner = Refiner(Sampler(pair, few), num_rounds, num_samples)
        size, draws = refiner.chunk_sizes(few, len(dataset))
        found = map_chunks(
            rows,
            score,
            rows=size,
            seed=seed,
            draws=draws,
            description="refining",
            progress=progress,
        )
    proposal = Proposal.of(found, dataset.values.device)
    scores = {name: found[name].numpy() for name in ("khat", "ess", "log_likelihood")}
    check_finite(scores["log_likelihood"])
    return RefinedPosterior(
        log_weights=found["log_weights"].T.numpy(),
        **scores,
        num_rounds=num_rounds,
        seed=seed,
        dataset=dataset.name,
        binarization=dataset.binarization,
        _rows=rows,
        _pair=pair,
        _proposal=proposal,
    )
