"""Before a minute is spent: does a model/guide pair fit its data, and its two halves each other?"""

import inspect
import sys
from collections.abc import Callable
from inspect import Parameter
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyro_vae.data.dataset import Dataset
from pyro_vae.pairs.batching import Arguments
from pyro_vae.pairs.pair import PairError, PairLike
from pyro_vae.pairs.plates import data_plates
from pyro_vae.pairs.site_table import Site, SiteTable
from pyro_vae.pairs.sites import is_enumerated, plate_nesting
from pyro_vae.pairs.supports import check_latent_support, check_support, kind_of, support_name
from pyro_vae.runtime.devices import evaluating


@torch.no_grad()
def check(pair: PairLike, x: Tensor | tuple[Tensor, ...], *, objective: object = None) -> SiteTable:
    """Run a pair's guide and model once on x, without changing anything, and list their sites.

    Args:
        pair: anything with `.model` and `.guide`.
        x: a few data, shape `(num_data, *event)`; or a tuple of such a tensor and what else the
            programs take for each datum, each of `num_data` rows.
        objective: what the pair shall be trained by, to see whether it takes the pair's latents.

    Raises:
        PairError: when x is empty, not floating point or infinite; when there are more tensors than
            the model or the guide takes; when a latent is missing from the model or the guide, or
            its shape or support differs between them; when a draw of the guide is not finite; when
            batch dimensions stand in no plate; when the decoder's output does not fit x; when x is
            outside the likelihood's support; or when the objective needs reparameterized draws of a
            latent that has none. The message says what to change.
    """
    batch = x if isinstance(x, tuple) else (x,)
    if not batch:
        raise PairError("x must hold at least one datum, got an empty tuple")
    check_values(*batch)
    check_arguments(pair, batch)
    with (
        torch.random.fork_rng(),
        evaluating(pair.model, pair.guide),
        pyro.validation_enabled(False),
    ):
        guide, failure = _run("guide", pair.guide, batch)
        if failure:
            raise failure
        _check_draws(guide, batch[0])
        # The model runs twice: on its own, for the shapes that it means its latents to have, and
        # on the guide's draws, for what it then says of x. A latent of another size than its
        # decoder's makes it fail, but is better said of the latent.
        model, failure = _run("model", pair.model, batch)
        _check_latents(model, guide, complete=failure is None)
        if failure:
            raise failure
        _check_batch_dimensions(model, guide)
        plates = data_plates([model, guide], [pair.guide, pair.model], Arguments(batch, {}))
        _check_data_plate(model, plates[:1], len(batch[0]))
        if objective is not None:
            _check_objective(model, guide, objective)
        replayed, failure = _run("model", poutine.replay(pair.model, trace=guide), batch)
        if failure:
            raise failure
    for name, node in replayed.nodes.items():
        if node["type"] == "sample" and node["is_observed"]:
            _check_observation(name, node)
    return SiteTable(_sites(model), _sites(guide), plate_nesting(model, guide), plates)


def check_data(pair: PairLike, data: Dataset, *, objective: object = None) -> SiteTable:
    """Check a first batch of a data set in depth, as `check` does, and the support of the rest.

    Raises:
        PairError: as `check`.
    """
    table = check(pair, data.batch(slice(8)), objective=objective)
    if data.values.dtype == torch.uint8:
        return table  # a data set's own pixels: in range by construction
    with (
        torch.no_grad(),
        torch.random.fork_rng(),
        evaluating(pair.model, pair.guide),
        pyro.validation_enabled(False),
    ):
        first = data.batch(slice(1))
        guide = poutine.trace(pair.guide).get_trace(*first)
        model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(*first)
    for name in model.observation_nodes:
        fn: Any = model.nodes[name]["fn"]
        # One datum's distribution, whose support all data share.
        if fn.batch_shape == (1,) and model.nodes[name]["value"] is first[0]:
            check_support(fn, data.sample(), name)
    return table


def check_arguments(pair: PairLike, batch: tuple[Tensor, ...]) -> None:
    """Raise `PairError` if data have more tensors for each datum than a program takes."""
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
            "them (of a DataLoader by collate_fn=lambda rows: torch.stack([x for x, *_ in rows])), "
            "or give both model and guide an argument for each tensor"
        )


def _like_labels(value: Tensor) -> bool:
    return not value.is_floating_point() and value.dim() <= 2


def _num_arguments(program: Callable[..., Any]) -> int:
    """Return how many positional arguments a program takes, as far as its signature says."""
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
    """Raise `PairError` unless x is a batch of at least one datum, floating point, not infinite.

    What else belongs to its data must have as many rows.
    """
    for value in (x, *others):
        if not isinstance(value, Tensor):
            raise PairError(f"x must be a torch tensor, got {type(value).__name__}")
    if x.dim() == 0 or len(x) == 0:
        raise PairError(f"x must hold at least one datum, got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise PairError(
            f"x has dtype {x.dtype}; floating point is expected. Bytes 0..255 become data by "
            "x.float() / 255, and for a Bernoulli likelihood by binarizing them (binarize=)"
        )
    if torch.isinf(x).any():
        raise PairError("x holds infinite values")
    for value in others:
        if value.dim() == 0 or len(value) != len(x):
            raise PairError(
                f"x has {len(x)} data, but what goes with it has shape {tuple(value.shape)}: give "
                "one row for each datum"
            )


def check_reparameterized(name: str, distribution: Any, objective: object) -> None:
    """Raise `PairError` where an objective that needs it has no reparameterized draws."""
    if not distribution.has_rsample:
        raise PairError(
            f"{type(objective).__name__} needs reparameterized draws, and the guide's "
            f"{kind_of(distribution)} for latent {name!r} has none: take Trace_ELBO, enumerate a "
            "discrete latent by TraceEnum_ELBO, or choose a guide with rsample"
        )


def _run(
    role: str, program: Callable[..., Any], batch: tuple[Tensor, ...]
) -> tuple[poutine.Trace, PairError | None]:
    """Trace a program on a batch; where it fails, return what it did so far and a `PairError`."""
    with poutine.trace() as tracer:
        try:
            program(*batch)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            x = batch[0]
            advice = ""
            if "Shape mismatch inside plate" in str(error):
                advice = ". Declare what belongs to one datum as its event, by .to_event()"
            failure = PairError(
                f"the {role} fails on x of shape {tuple(x.shape)} and dtype {x.dtype}: "
                f"{error}{advice}"
            )
            failure.__cause__ = error
            return tracer.trace, failure
    return tracer.trace, None


def _check_draws(guide: poutine.Trace, x: Tensor) -> None:
    for name, node in guide.nodes.items():
        if node["type"] != "sample":
            continue
        value: Any = node["value"]
        if not torch.isfinite(value).all():
            if torch.isnan(x).any():
                fix = "x holds NaN entries: wrap the encoder in networks.WithMask"
            else:
                fix = "rescale x, or look at the encoder's weights"
            raise PairError(f"the guide's draw of latent {name!r} is not finite: {fix}")


def _sample_sites(trace: poutine.Trace) -> dict[str, Any]:
    return {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not site_is_subsample(node)
    }


def _latents(trace: poutine.Trace) -> dict[str, Any]:
    return {name: node for name, node in _sample_sites(trace).items() if not node["is_observed"]}


def _sites(trace: poutine.Trace) -> dict[str, Site]:
    sites = {}
    for name, node in _sample_sites(trace).items():
        fn: Any = node["fn"]
        batch, event = tuple(fn.batch_shape), tuple(fn.event_shape)
        sites[name] = Site(name, batch, event, support_name(fn.support), node["is_observed"])
    return sites


# -- latents: the model beside the guide ---------------------------------------------------------


def _check_latents(model: poutine.Trace, guide: poutine.Trace, complete: bool) -> None:
    """Compare the latents of both programs; `complete` says whether the model ran to its end."""
    priors, posteriors = _latents(model), _latents(guide)
    for name, prior in priors.items():
        if name in posteriors:
            _check_shapes(name, prior["fn"], posteriors[name]["fn"])
            check_latent_support(name, prior["fn"], posteriors[name])
        elif not is_enumerated(prior):
            raise PairError(
                f"the model draws the latent {name!r}, the guide does not: it would silently be "
                f"drawn from its prior. Sample {name!r} in the guide, or observe it in the model"
            )
    for name, posterior in posteriors.items():
        if complete and name not in priors and not posterior["infer"].get("is_auxiliary"):
            raise PairError(
                f"the guide draws the latent {name!r}, the model does not: sample {name!r} in the "
                "model under that name, or mark a helper variable of the guide by "
                "infer={'is_auxiliary': True}"
            )


def _check_shapes(name: str, prior: Any, posterior: Any) -> None:
    if prior.event_shape != posterior.event_shape:
        raise PairError(
            f"latent {name!r} has event shape {tuple(prior.event_shape)} in the model's prior and "
            f"{tuple(posterior.event_shape)} in the guide: give prior, decoder and guide one "
            "latent size, and .to_event() the same dimensions"
        )
    if prior.batch_shape != posterior.batch_shape:
        raise PairError(
            f"latent {name!r} has batch shape {tuple(prior.batch_shape)} in the model and "
            f"{tuple(posterior.batch_shape)} in the guide: look for a missing .to_event() or plate"
        )


# -- plates, objectives, observations ------------------------------------------------------------


def _check_batch_dimensions(model: poutine.Trace, guide: poutine.Trace) -> None:
    """Raise `PairError` unless each batch dimension belongs to a plate."""
    for role, trace in (("model", model), ("guide", guide)):
        for name, node in _sample_sites(trace).items():
            frames = [frame for frame in node["cond_indep_stack"] if frame.vectorized]
            dims = {frame.dim for frame in frames}
            batch_shape = tuple(node["fn"].batch_shape)
            if any(n > 1 and i - len(batch_shape) not in dims for i, n in enumerate(batch_shape)):
                raise PairError(
                    f"site {name!r} of the {role} has batch shape {batch_shape}, of which its "
                    f"plates {sorted(frame.name for frame in frames)} do not explain all: declare "
                    "one datum's dimensions as its event, by .to_event(), and put the data into "
                    "pyro.plate('data', len(x))"
                )


def _check_data_plate(model: poutine.Trace, plates: tuple[str, ...], num_data: int) -> None:
    """Raise `PairError` unless an observed site is in the plate over the data."""
    observed = {n: node for n, node in _sample_sites(model).items() if node["is_observed"]}
    if not observed:
        raise PairError("the model observes nothing: pass x as obs= of a pyro.sample")
    if not any(
        frame.name in plates and (frame.name == "data" or frame.size == num_data)
        for node in observed.values()
        for frame in node["cond_indep_stack"]
    ):
        raise PairError(
            f"no observed site ({', '.join(observed)}) stands in a plate over the {num_data} data, "
            "so that minibatches cannot be weighed: put it into pyro.plate('data', len(x))"
        )


def _check_objective(model: poutine.Trace, guide: poutine.Trace, objective: object) -> None:
    needed = getattr(
        objective,
        "needs_reparameterization",
        isinstance(objective, TraceMeanField_ELBO | RenyiELBO),
    )
    enumerates = isinstance(getattr(objective, "objective", objective), TraceEnum_ELBO)
    for name, node in {**_latents(model), **_latents(guide)}.items():
        if is_enumerated(node) and not enumerates:
            raise PairError(
                f"latent {name!r} is marked for enumeration, but {type(objective).__name__} does "
                "not enumerate: take TraceEnum_ELBO(), or leave the mark out"
            )
        if needed:
            check_reparameterized(name, node["fn"], objective)


def _check_observation(name: str, node: Any) -> None:
    distribution, value = node["fn"], node["value"]
    if distribution.event_shape != value.shape[len(distribution.batch_shape) :]:
        raise PairError(
            f"one observation {name!r} has shape {tuple(value.shape[1:])}, but the likelihood "
            f"describes one of shape {tuple(distribution.event_shape)}: give the decoder that "
            "out_shape"
        )
    check_support(distribution, value, name, node["mask"])
