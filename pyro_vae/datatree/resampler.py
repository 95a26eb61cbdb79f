"""Samples of the posterior by importance resampling, in the place of the guide's samples."""

import functools
from collections.abc import Mapping

from torch import Tensor

from pyro_vae.datatree.writer import Group
from pyro_vae.pairs.batching import Batch
from pyro_vae.pairs.guides import is_automatic
from pyro_vae.pairs.log_weights import effective_sample_size, pareto_khat
from pyro_vae.pairs.pair import Pair, PairError, Program
from pyro_vae.pairs.runner import PairRunner
from pyro_vae.pairs.sampler import Sampler
from pyro_vae.refinement.refiner import NUM_CANDIDATES, NUM_ROUNDS, Refiner

CANDIDATE = "candidate"  # dimension of the weighted draws


class Resampler:
    """Samples the posteriors of batches of data with refined proposals.

    Args:
        model: Pyro model.
        guide: Its guide.
        programs: The runner of both. Tensors with one row for each datum must be positional.

    Raises:
        PairError: If another argument is positional, if the programs do not run on a part of the
            rows, or if a latent has no refined proposal.
    """

    def __init__(self, model: Program, guide: Program, programs: PairRunner) -> None:
        arguments = programs.arguments
        if not (arguments.num_rows and arguments.all_rows()):
            raise PairError(
                "posterior='resampled' needs model_args of tensors with one row for each datum, "
                "and no such tensor in model_kwargs. Pass the other arguments in model_kwargs"
            )
        if not programs.separable and not is_automatic(guide):
            raise PairError(
                "posterior='resampled' runs model and guide on parts of the data, and these two "
                "subsample them, expect a fixed number of rows, or let a log density depend on "
                f"other rows: give the plate over the data the number of rows, as in "
                f"pyro.plate({programs.data_plate or 'data'!r}, len(x)), without subsample_size= "
                "and subsample="
            )
        if arguments.kwargs:
            model, guide = (functools.partial(fn, **arguments.kwargs) for fn in (model, guide))
        few = _rows(arguments.rows(0, min(2, arguments.num_rows)))
        self.sampler = Sampler(Pair(model, guide), few)
        self.refiner = Refiner(self.sampler, NUM_ROUNDS, NUM_CANDIDATES)
        self.refiner.chunk_sizes(few, 1)  # raises an error for latents without a proposal

    def __call__(self, batch: Batch, num_samples: int) -> tuple[dict[str, Tensor], Group]:
        """Return samples in the shape of `SiteDraws.value`, and variables of `sample_stats`."""
        found = self.refiner.sample(_rows(batch), num_samples)
        weights, plate = found.log_weights, self.sampler.plate
        stats: Group = {
            "log_weight": (("chain", CANDIDATE, plate), weights[None].cpu().numpy()),
            "khat": ((plate,), pareto_khat(weights).numpy()),
            "ess": ((plate,), effective_sample_size(weights).cpu().numpy()),
        }
        return self.sampler.values(found.latents), stats

    @property
    def attributes(self) -> Mapping[str, str | int]:
        """Attributes of the tree that name the source of the samples."""
        return {
            "posterior": "resampled",
            "proposal": "refined",
            "num_candidates": self.refiner.num_samples,
            "num_rounds": self.refiner.num_rounds,
        }


def _rows(batch: Batch) -> tuple[Tensor, ...]:
    return tuple(value for value in batch.args if isinstance(value, Tensor))
