"""Static checks of a model/guide pair against its data, before training."""

import functools
import inspect
import sys
from inspect import Parameter

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.arguments import checked
from pyro_vae.data.conversion import as_tensor
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.errors import DataError
from pyro_vae.pairs.any_rows import check_any_rows, check_not_whole
from pyro_vae.pairs.batching import Arguments
from pyro_vae.pairs.guides import check_auxiliary, without_observations
from pyro_vae.pairs.inputs import as_input, check_data_values, check_has_values, program_error
from pyro_vae.pairs.latents import (
    check_masks,
    check_names,
    check_not_observed,
    check_samples,
    check_shapes,
    check_supports,
)
from pyro_vae.pairs.objectives import check_objective
from pyro_vae.pairs.pair import AnyPair, PairError, PairLike, Program
from pyro_vae.pairs.plates import data_plates, frame_of
from pyro_vae.pairs.scales import warn_of_scales
from pyro_vae.pairs.site_table import Site, SiteTable
from pyro_vae.pairs.sites import (
    ConditionLatents,
    Node,
    is_enumerated,
    latent_sites,
    log_density,
    observed_sites,
    plate_nesting,
    sample_sites,
    values_of,
    weighted_sites,
)
from pyro_vae.pairs.state import unchanged
from pyro_vae.pairs.supports import (
    check_gradients,
    check_support,
    support_name,
    support_of,
)

FEW = 8  # number of rows that `check_data` runs first
SPREAD = 64  # number of rows from evenly spaced places that it runs next
MAX_ELEMENTS = 2**26  # of data that it runs as a whole if the first rows fail


@checked
def check(pair: AnyPair, x: Tensor | tuple[Tensor, ...], *, objective: object = None) -> SiteTable:
    """Check that a model and its guide fit the data and each other.

    Runs guide and model on x, without changing parameters, gradients or the random state.

    Args:
        pair: Object with a `.model` and a `.guide`.
        x: A few data, shape `(num_data, *event)`. If the programs take further tensors, a tuple of
            x and these, each with `num_data` rows.
        objective: Objective to train with. If given, check that it accepts the pair's latents.

    Returns:
        A table of the sample sites of both programs. Printed, it shows their shapes and supports.

    Raises:
        PairError: If x is empty, infinite, complex, boolean or 8-bit; if there are more tensors
            than the model or the guide takes; if a latent is missing from the model or the guide,
            or its shape, support or mask differs between them; if the guide has an auxiliary
            variable that its latents do not determine; if a sample of the guide is not finite; if
            a batch dimension belongs to no plate; if the shape of the decoder's output differs
            from that of x; if x is outside the likelihood's support, or a masked NaN; or if the
            objective needs reparameterized samples and the guide of a latent has no `rsample`.

    Warns:
        DataWarning: If x is converted to the floating-point type of the parameters, or the spread
            or offset of a column of x is far from that of the model.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> import pyro_vae as pv
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))
        >>> table = pv.check(pv.Pair(model, guide), torch.randn(4, 2))
        >>> table.data_plates, str(table.guide["z"])
        (('data',), '(4,) | (2,) on Real')

    See also: `fit` and `evaluate`, which check the first batch of their data; `Pair`; `PairError`.
    """
    batch = x if isinstance(x, tuple) else (x,)
    if not batch:
        raise PairError("x must hold at least one datum, got an empty tuple")
    # Arrays are float64 by default. `fit` converts tensors, too, but here a tensor is as intended.
    x = batch[0] if isinstance(batch[0], Tensor) else as_input(pair, batch[0])
    batch = (x, *map(as_tensor, batch[1:]))
    table, model = _check_batch(pair, batch, objective)
    check_gradients(observed_sites(model), range(len(batch[0])))
    warn_of_scales(model, batch[0], batch[0])
    return table


@torch.no_grad()
def _check_batch(
    pair: PairLike, batch: tuple[Tensor, ...], objective: object, weighted: bool = True
) -> tuple[SiteTable, poutine.Trace]:
    """Check a batch; return the table of the sites, and a trace of the model before training.

    In this trace, latents outside the plate over the data are samples of the guide, and others of
    the prior.
    """
    check_has_values(pair.model, pair.guide, *batch)
    check_values(*batch)
    check_arguments(pair, batch)
    guide_program = without_observations(pair.guide)
    with unchanged(pair.model, pair.guide), pyro.validation_enabled(False):
        guide, failure = _run("guide", guide_program, batch)
        if failure:
            raise failure
        check_samples(guide, batch[0])
        # The model runs twice: alone, which gives the intended shapes of its latents, and on the
        # guide's samples. If a latent size differs from the decoder's, the model fails. The
        # comparison of the latents then gives the better message, so it comes first.
        model, failure = _run("model", pair.model, batch)
        priors, posteriors = dict(latent_sites(model)), dict(latent_sites(guide))
        check_names(priors, posteriors, complete=failure is None)
        check_shapes(priors, posteriors)
        check_supports(priors, posteriors, weighted=weighted, alone=True)
        if failure:
            raise failure
        check_not_observed(dict(sample_sites(model)), dict(sample_sites(guide)))
        check_masks(dict(sample_sites(model)), posteriors)

        def rerun(values: dict[str, Tensor]) -> dict[str, Node]:
            with ConditionLatents(values):
                return dict(sample_sites(poutine.trace(guide_program).get_trace(*batch)))

        check_auxiliary(priors, guide, rerun)
        _check_batch_dimensions(model, guide)
        plates = data_plates([model, guide], [guide_program, pair.model], Arguments(batch, {}))
        _check_data_plate(model, plates[:1], len(batch[0]))
        if objective is not None:
            check_objective(model, guide, plates, objective)
        with ConditionLatents(values_of(guide)):
            replayed, failure = _run("model", pair.model, batch)
        if failure:
            raise failure
        check_supports(dict(latent_sites(replayed)), posteriors, weighted=weighted, alone=False)
        given = {
            name: posteriors[name]["value"]
            for name, node in priors.items()
            if name in posteriors and frame_of(node, plates) is None
        }
        drawn = model
        if given:
            with ConditionLatents(given):
                drawn, failure = _run("model", pair.model, batch)
            drawn = replayed if failure else drawn
        for name, node in observed_sites(replayed).items():
            _check_observation(name, node)
        for name, node in latent_sites(replayed):
            log_density(name, node)
    sums = [name for name, node in priors.items() if name not in guide and is_enumerated(node)]
    shared = tuple(name for name in sums if frame_of(priors[name], plates) is None)
    nesting, scaled = plate_nesting(model, guide), weighted_sites(guide, model)
    table = SiteTable(_table(model), _table(guide), nesting, plates, shared, scaled)
    return table, drawn


def check_data(
    pair: PairLike,
    data: Dataset,
    *,
    objective: object = None,
    scales: bool = False,
    weighted: bool = True,
) -> SiteTable:
    """Check the first rows of a dataset as `check` does. `CheckedRows` checks the support of all.

    Args:
        pair: Object with a `.model` and a `.guide`.
        data: Data on the device and in the type of the pair.
        objective: Objective, as for `check`.
        scales: Whether to compare the spread and offset of the data with those of the model.
        weighted: Whether log densities of the guide are used, as in `check_latent_support`.

    Raises:
        PairError: As in `check`, or if the pair does not run on any rows of the data.
        DataError: If the data are integers, and the pair does not run on integers.

    Warns:
        DataWarning: If the spread or offset of the data is far from that of the model.
    """
    try:
        table, trace, first = _check_rows(pair, data, objective, weighted)
    except PairError as error:
        if data.values.dtype != torch.int64 or error.__cause__ is None:
            raise
        raise DataError(f"{error}. Or divide bytes 0..255 by 255") from error
    if scales:
        warn_of_scales(trace, first, data.sample())
    return table


def _check_rows(
    pair: PairLike, data: Dataset, objective: object, weighted: bool
) -> tuple[SiteTable, poutine.Trace, Tensor]:
    """Check a few rows as `check` does, and that the programs run on other rows, too.

    Returns:
        The results of `_check_batch`, and x of the few rows.
    """
    few, in_memory = data.batch(slice(FEW)), isinstance(data.values, Tensor)
    try:
        table, trace = _check_batch(pair, few, objective, weighted)
    except PairError:
        if in_memory and len(data) > FEW and data.values.numel() <= MAX_ELEMENTS:
            whole = data.batch(slice(None))
            check_not_whole(
                functools.partial(_check_batch, pair, whole, objective, weighted), len(data)
            )
        raise
    parts = [few]
    if len(data) <= FEW:
        parts.append(tuple(part[: (len(few[0]) + 1) // 2] for part in few))
    elif in_memory:
        parts.append(data.batch(slice(None, None, max(1, len(data) // SPREAD))))
    check_any_rows(pair, parts, table.data_plates)
    return table, trace, few[0]


def check_arguments(pair: PairLike, batch: tuple[Tensor, ...]) -> None:
    """Check that model and guide take all tensors of a batch.

    Raises:
        PairError: If a batch has more tensors than the model or the guide has arguments.
    """
    x, *others = batch
    for role, program in (("guide", pair.guide), ("model", pair.model)):
        taken = _num_arguments(program)
        if taken >= len(batch):
            continue
        kinds = ", ".join(
            f"{'an' if value.dtype == torch.int64 else 'a'} {str(value.dtype)[6:]} tensor of shape "
            f"{tuple(value.shape)}{', probably labels' if _like_labels(value) else ''}"
            for value in others
        )
        raise PairError(
            f"a batch of the data has {len(batch)} tensors (x of shape {tuple(x.shape)}, and "
            f"{kinds}), but the {role} takes {taken} argument{'' if taken == 1 else 's'}: drop "
            "labels and other tensors (of a DataLoader by collate_fn=lambda rows: "
            "torch.stack([x for x, *_ in rows])), or give both model and guide an argument for "
            "each tensor"
        )


def _like_labels(value: Tensor) -> bool:
    return not value.is_floating_point() and value.dim() <= 2


def _num_arguments(program: Program) -> int:
    """Return the number of positional arguments of a program, or `sys.maxsize` if unknown."""
    call = program.forward if isinstance(program, nn.Module) else program
    try:
        kinds = [parameter.kind for parameter in inspect.signature(call).parameters.values()]
    except (TypeError, ValueError):
        return sys.maxsize
    if Parameter.VAR_POSITIONAL in kinds:
        return sys.maxsize
    return sum(
        kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds
    )


def check_values(x: Tensor, *others: Tensor) -> None:
    """Check the dtype, the shape and the values of a batch.

    Args:
        x: Data, shape `(num_data, *event)`.
        others: Other tensors with one row per datum.

    Raises:
        PairError: If x is empty, infinite, complex, boolean or 8-bit, or if another tensor has a
            different number of rows.
    """
    for value in (x, *others):
        if not isinstance(value, Tensor):
            raise PairError(f"x must be a torch tensor, got {type(value).__name__}")
    check_data_values(x)
    for value in others:
        if value.dim() == 0 or len(value) != len(x):
            raise PairError(
                f"x has {len(x)} data, but a tensor passed with it has shape {tuple(value.shape)}: "
                "give one row per datum"
            )


def _run(
    role: str, program: Program, batch: tuple[Tensor, ...]
) -> tuple[poutine.Trace, PairError | None]:
    """Trace a program on a batch. If it fails, return the trace so far and a `PairError`."""
    with poutine.trace() as tracer:
        try:
            program(*batch)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            return tracer.trace, program_error(role, batch[0], error, program)
    return tracer.trace, None


def _table(trace: poutine.Trace) -> dict[str, Site]:
    sites = {}
    for name, node in sample_sites(trace):
        fn = node["fn"]
        batch, event = tuple(fn.batch_shape), tuple(fn.event_shape)
        sites[name] = Site(name, batch, event, support_name(support_of(fn)), node["is_observed"])
    return sites


def _check_batch_dimensions(model: poutine.Trace, guide: poutine.Trace) -> None:
    """Raise `PairError` unless each batch dimension belongs to a plate."""
    for role, trace in (("model", model), ("guide", guide)):
        for name, node in sample_sites(trace):
            frames = [frame for frame in node["cond_indep_stack"] if frame.vectorized]
            dims = {frame.dim for frame in frames}
            batch_shape = tuple(node["fn"].batch_shape)
            if any(n > 1 and i - len(batch_shape) not in dims for i, n in enumerate(batch_shape)):
                raise PairError(
                    f"site {name!r} of the {role} has batch shape {batch_shape}, but its plates "
                    f"{sorted(frame.name for frame in frames)} do not cover all of it: declare the "
                    "dimensions of one datum as its event, by .to_event(), and put the data into "
                    "pyro.plate('data', len(x))"
                )


def _check_data_plate(model: poutine.Trace, plates: tuple[str, ...], num_data: int) -> None:
    """Raise `PairError` unless an observed site is in the plate over the data."""
    observed = observed_sites(model)
    if not any(
        frame.name in plates and (frame.name == "data" or frame.size == num_data)
        for node in observed.values()
        for frame in node["cond_indep_stack"]
    ):
        raise PairError(
            f"no observed site ({', '.join(observed)}) is in a plate over the {num_data} data, so "
            "minibatches cannot be weighted: put it into pyro.plate('data', len(x))"
        )


def _check_observation(name: str, node: Node) -> None:
    distribution, value = node["fn"], node["value"]
    if distribution.event_shape != value.shape[len(distribution.batch_shape) :]:
        raise PairError(
            f"one observation {name!r} has shape {tuple(value.shape[1:])}, but the likelihood "
            f"describes one of shape {tuple(distribution.event_shape)}: give the decoder that "
            "out_shape"
        )
    check_support(distribution, value, name, node["mask"])
