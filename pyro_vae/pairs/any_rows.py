"""Check that a pair runs on any rows of its data, as minibatches and chunks need it to."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.pairs.guides import without_observations
from pyro_vae.pairs.latents import check_masks
from pyro_vae.pairs.pair import PairError, PairLike
from pyro_vae.pairs.plates import MISFITS, frame_of
from pyro_vae.pairs.sites import Node, latent_sites, sample_sites
from pyro_vae.pairs.state import unchanged

Rows: TypeAlias = tuple[Tensor, ...]
Shapes: TypeAlias = dict[str, tuple[int, ...]]

ADVICE = (
    "Minibatches and chunks hold other rows in each call. Make the parameters of a local latent "
    "functions of x (for example a network, or amortized_plates= of an AutoMessenger), and count "
    "groups in all data, not in the batch. Or run on all data: train with pyro_vae.SVI and its "
    "step(x), and score with pyro_vae.from_pyro_svi"
)


@torch.no_grad()
def check_any_rows(
    pair: PairLike, parts: Sequence[Rows], plates: tuple[str, ...] | None = None
) -> None:
    """Check that the parameters and the global latents have one shape, whatever the rows are.

    Args:
        pair: Object with a `.model` and a `.guide`.
        parts: Rows of the data, different numbers of them.
        plates: Names of the plates over the data. By default, only parameters are compared.

    Raises:
        PairError: If a program fails on some of the rows, if a parameter or a latent outside the
            plates over the data has different shapes, or if model and guide have different masks.
    """
    first: Shapes = {}
    for rows in parts:
        try:
            shapes = _shapes(pair, rows, plates)
        except MISFITS as error:
            if isinstance(error, PairError):
                raise
            if _accepts(pair, parts[0], len(rows[0]), plates):
                continue  # the values of these rows are at fault; `CheckedRows` names them
            raise PairError(
                f"model and guide fail on {len(rows[0])} rows of the data: they have parameters or "
                f"latents of a fixed number of data or groups. {ADVICE}"
            ) from error
        first = first or shapes
        for name in first:
            if shapes.get(name, first[name]) != first[name]:
                raise PairError(
                    f"{name} has shape {first[name]} for {len(parts[0][0])} rows of the data and "
                    f"{shapes[name]} for {len(rows[0])} others, so it depends on the rows of a "
                    f"batch. {ADVICE}"
                )


def _accepts(pair: PairLike, rows: Rows, number: int, plates: tuple[str, ...] | None) -> bool:
    """Return whether a pair runs on this number of rows, all of them among those given."""
    index = torch.arange(number) % len(rows[0])
    try:
        _shapes(pair, tuple(part[index.to(part.device)] for part in rows), plates)
    except MISFITS:
        return False
    return True


def check_not_whole(run: Callable[[], object], num_data: int) -> None:
    """Check that a pair that does not run on a few rows does not run on all of them either.

    Raises:
        PairError: If `run`, which runs the pair on all data, raises no `PairError`.
    """
    try:
        run()
    except PairError:
        return
    raise PairError(
        f"model and guide run on all {num_data} data, but not on a few of them: they have "
        f"parameters or latents of a fixed number of data or groups. {ADVICE}"
    )


def _shapes(pair: PairLike, rows: Rows, plates: tuple[str, ...] | None) -> Shapes:
    """Return the shapes of parameters and of latents outside the plates over the data."""
    with unchanged(pair.model, pair.guide), pyro.validation_enabled(False):
        guide = poutine.trace(without_observations(pair.guide)).get_trace(*rows)
        model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(*rows)
        priors = dict(latent_sites(model))
        for trace in (guide, model):
            trace.compute_log_prob()  # raises an error if shapes do not fit
        check_masks(dict(sample_sites(model)), dict(latent_sites(guide)))
        shapes = {
            f"the global latent {name!r}": tuple(node["value"].shape)
            for name, node in priors.items()
            if plates is not None and frame_of(node, plates) is None
        }
        for trace in (model, guide):
            nodes: list[tuple[str, Node]] = list(trace.nodes.items())
            shapes |= {
                f"the parameter {name!r}": tuple(node["value"].shape)
                for name, node in nodes
                if node["type"] == "param"
            }
    return shapes
