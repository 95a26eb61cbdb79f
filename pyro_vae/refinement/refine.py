"""`refine`: a corrected posterior of each datum, with the evidence of how good it is."""

from typing import Annotated

from torch import Tensor

from pyro_vae.arguments import Samples, Seed, Whole, checked
from pyro_vae.data.any_data import Data
from pyro_vae.engine.guards import modules_of
from pyro_vae.engine.matmul import fast_layers
from pyro_vae.pairs.check import check_data
from pyro_vae.pairs.checked_rows import CheckedRows
from pyro_vae.pairs.chunking import map_chunks
from pyro_vae.pairs.inputs import dataset_of
from pyro_vae.pairs.log_weights import (
    check_finite,
    effective_sample_size,
    importance_bound,
    pareto_khat,
)
from pyro_vae.pairs.pair import AnyPair
from pyro_vae.pairs.sampler import Sampler
from pyro_vae.pairs.state import unchanged
from pyro_vae.pairs.unconstrained import Unconstrained
from pyro_vae.refinement.posterior import RefinedPosterior, at_first_mode
from pyro_vae.refinement.proposal import Proposal
from pyro_vae.refinement.refiner import NUM_ROUNDS, Refiner


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
            "log_joint": at_first_mode(Unconstrained(refiner.sampler, batch), proposal),
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
        _log_joint=found["log_joint"],
    )
