"""Which plates of a model and its guide are over the data: found once, then known by name.

The plate of the observed sites is the one called `"data"`. If there is none of that name, the
programs run on two numbers of rows, and the plate with one entry for each row is over the data.
Its size on one batch alone says nothing: a plate of 20 genes is no plate over 20 data.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide

from pyro_vae.pairs.batching import Arguments, Batch
from pyro_vae.pairs.pair import PairError
from pyro_vae.pairs.sites import PARTICLE_PLATES, ConditionLatents, sample_sites, values_of
from pyro_vae.runtime.devices import evaluating
from pyro_vae.runtime.random_state import preserved_state

Program = Callable[..., Any]

# How a program that was not written for one more dimension, or for fewer data, may fail.
MISFITS = (
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
)


def data_plates(
    traces: Sequence[poutine.Trace],
    programs: Sequence[Program] = (),
    arguments: Arguments | None = None,
) -> tuple[str, ...]:
    """Return the names of the plates over the data, the one of the observed sites first.

    Others follow if they have one entry for each row: a guide may call its plate as it likes.

    Args:
        traces: of a model and its guide; or of one of them.
        programs: the programs, the guide first, to be run on two numbers of rows if names alone
            do not decide. They and the random state are left as they were found.
        arguments: their arguments.

    Raises:
        PairError: when several plates of the observed sites may be the one over the data.
    """
    nodes = [node for trace in traces for _, node in sample_sites(trace)]
    frames = [frame for node in nodes for frame in _frames(node)]
    everywhere = {frame.name for frame in frames}
    observed = [{f.name for f in _frames(node)} for node in nodes if node["is_observed"]]
    at_observed = [names for names in observed if names]
    if observed and not at_observed:
        return ()
    # A guide observes nothing.
    names = set().union(*at_observed) if observed else everywhere & {"data"}
    names = names & {"data"} or names
    if everywhere == names and len(names) < 2:
        return tuple(names)
    following = _one_entry_per_row(programs, arguments)
    common = set.intersection(*at_observed) if observed else names
    vectorized = {frame.name for frame in frames if frame.vectorized}
    for hint in (following, common, vectorized):
        if len(names) > 1:
            names = names & hint or names
    if len(names) > 1:
        raise PairError(
            f"the observed sites are in the plates {sorted(names)}, and each of them may be the "
            "plate over the data: call that one 'data', as in pyro.plate('data', len(x)), or pass "
            "its name to from_pyro_svi by obs_plate="
        )
    return (*names, *sorted(following - names))


def data_plates_of(program: Program, *args: Any, **kwargs: Any) -> tuple[str, ...]:
    """Return the names of the plates over the data of one program, a model or a guide."""
    arguments = Arguments(args, kwargs)
    program = _without_state(program)
    with _aside(program):
        trace = _run(program, arguments.whole(), {})
    return data_plates([trace], [program], arguments)


def frame_of(node: Any, plates: Sequence[str]) -> Any:
    """Return a site's frame in the first of these plates that it is in, or None."""
    frames = {frame.name: frame for frame in node["cond_indep_stack"]}
    return next((frames[name] for name in plates if name in frames), None)


def _frames(node: Any) -> list[Any]:
    return [frame for frame in node["cond_indep_stack"] if frame.name not in PARTICLE_PLATES]


def _one_entry_per_row(programs: Sequence[Program], arguments: Arguments | None) -> set[str]:
    """Return the plates with one entry for each row of the data, on two numbers of rows."""
    if arguments is None or not arguments.num_rows:
        return set()
    if arguments.num_rows < 3:
        repeated = arguments.repeat(arguments.whole(), 3)
        arguments = Arguments(repeated.args, repeated.kwargs)
    for most in (3, arguments.num_rows):
        with contextlib.suppress(*MISFITS):
            runs = [_of_size(size, programs, arguments) for size in (most, most - 1)]
            return set.intersection(*runs)
    return set()


def _of_size(size: int, programs: Sequence[Program], arguments: Arguments) -> set[str]:
    """Return the plates of this size when the programs run on so many rows."""
    batch, values, names = arguments.rows(0, size), dict[str, Any](), set()
    programs = [_without_state(program) for program in programs]
    with _aside(*programs):
        for program in programs:
            trace = _run(program, batch, values)
            values = values_of(trace)
            for _, node in sample_sites(trace):
                names |= {f.name for f in _frames(node) if size in (f.size, f.full_size)}
    return names


def _without_state(program: Program) -> Program:
    """Return the model of an `AutoGuide`, which keeps the shapes of its first arguments."""
    return program.model if isinstance(program, AutoGuide) else program


def _run(program: Program, batch: Batch, values: dict[str, Any]) -> poutine.Trace:
    with ConditionLatents(values):
        return poutine.trace(program).get_trace(*batch.args, **batch.kwargs)


@contextlib.contextmanager
def _aside(*programs: Program) -> Any:
    """Run programs unseen by the handlers around them, and leave all state as it was found."""
    with (
        torch.no_grad(),
        preserved_state(),
        poutine.block(),
        evaluating(*programs),
        pyro.validation_enabled(False),
    ):
        yield
