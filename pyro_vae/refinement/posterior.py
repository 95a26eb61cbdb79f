"""`RefinedPosterior`: the result of `refine`, a proposal for each datum and its weights."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from pyro_vae.arguments import FilePath, Samples, Seed, checked, shown
from pyro_vae.data.any_data import Data
from pyro_vae.data.conversion import as_tensor
from pyro_vae.distributed import from_first
from pyro_vae.engine.guards import modules_of
from pyro_vae.engine.matmul import fast_layers
from pyro_vae.pairs.check import check_data
from pyro_vae.pairs.checked_rows import CheckedRows
from pyro_vae.pairs.chunking import over_chunks
from pyro_vae.pairs.inputs import dataset_of
from pyro_vae.pairs.khat import khat_threshold
from pyro_vae.pairs.pair import PairError, PairLike
from pyro_vae.pairs.sampler import Sampler
from pyro_vae.pairs.state import unchanged
from pyro_vae.pairs.unconstrained import Unconstrained
from pyro_vae.refinement import storage
from pyro_vae.refinement.importance import defence, log_mixture, resampled, weighted
from pyro_vae.refinement.proposal import Proposal
from pyro_vae.refinement.refiner import Refiner
from pyro_vae.runtime.files import CheckpointError
from pyro_vae.runtime.random_state import preserved_state
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
    _log_joint: Tensor  # log p(x, z) of each datum at its first mode, shape `(num_data,)`

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

        Raises:
            PairError: If log p(x, z) shows that the pair or the data have changed since `refine`.
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

        Raises:
            PairError: If names or shapes of the latents are others, or as for `sample`.
        """
        start, values = 0, self._values(latents)

        def density(posterior: Unconstrained, r: Proposal, draws: int) -> Tensor:
            nonlocal start
            part = {name: z[:, start : start + len(r.logits)] for name, z in values.items()}
            start += len(r.logits)
            _check_shapes(part, posterior.constrain(r.loc[:, :1].movedim(1, 0))[0])
            states = posterior.unconstrain({name: part[name] for name in posterior.transforms})
            terms = [posterior(part)[0] for part in states.split(draws)]
            shares = defence(posterior)
            log_r = log_mixture(posterior, r, states, torch.cat(terms), shares, draws)
            return log_r - posterior.constrain(states)[1]

        return torch.cat(list(self._each(density, 0)), dim=1)

    def _values(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the arguments of `log_prob` in the dtype and on the device of the proposals."""
        if not isinstance(latents, Mapping):
            raise PairError(
                f"expected the latents by site name, as from sample, got {shown(latents)}"
            )
        found = {name: torch.as_tensor(as_tensor(z)) for name, z in latents.items()}
        for name, z in found.items():
            if z.dim() < 2 or z.shape[1] != self.num_data:
                raise PairError(
                    f"expected latent {name!r} of shape (num_samples, {self.num_data}, *event), "
                    f"got {tuple(z.shape)}"
                )
        return {name: z.to(self._proposal.loc) for name, z in found.items()}

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
        tensors["log_joint"] = self._log_joint
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
            _log_joint=tensors["log_joint"],
        )
        few = data.batch(slice(2))
        with torch.no_grad(), unchanged(pair.model, pair.guide):
            dim = Unconstrained(Sampler(pair, few), few).dim
        if dim != posterior._proposal.dim:
            raise CheckpointError(
                f"{path} is a posterior of {posterior._proposal.dim} unconstrained latents, and "
                f"the model has {dim}"
            )
        try:
            list(posterior._each(lambda *_: None, 0))
        except PairError as error:
            raise CheckpointError(f"{path}: {error}") from error
        return posterior

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
                rows = slice(place, place + len(batch[0]))
                part, posterior = self._proposal[rows], Unconstrained(sampler, batch)
                with preserved_state():
                    at_mode = at_first_mode(posterior, part)
                if change := storage.changed(self._log_joint[rows], at_mode, place):
                    raise PairError(
                        f"the posterior is of another model or other data: {change}. Use it with "
                        "the pair and the data of refine, or call refine again"
                    )
                return work(posterior, part, draws)

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


def at_first_mode(posterior: Unconstrained, proposal: Proposal) -> Tensor:
    """Return log p(x, z) of each datum at its first mode, shape `(num_data,)`."""
    return posterior.log_joint(proposal.loc[:, 0][None])[0].cpu()


def _check_shapes(given: Mapping[str, Tensor], latents: Mapping[str, Tensor]) -> None:
    """Raise `PairError` if the names or the event shapes of latents are others."""
    shapes = [{name: tuple(z.shape[2:]) for name, z in some.items()} for some in (given, latents)]
    if shapes[0] != shapes[1]:
        raise PairError(
            f"expected values of the latents with the event shapes {shapes[1]}, got {shapes[0]}"
        )
