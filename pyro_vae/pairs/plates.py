"""Find the plates over the data of a model and its guide. Other modules use their names.

The plate over the data is the only plate of the observed sites. If there are several, the programs
run on two numbers of rows, and the plate with one entry per row is over the data. If this does not
decide, it is the plate `"data"`. The size of a plate on one batch does not decide: a plate of 20
genes is as large as a batch of 20 data.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import pyro
import torch
from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyro_vae.pairs.batching import Arguments, Batch
from pyro_vae.pairs.guides import is_automatic, model_of
from pyro_vae.pairs.pair import PairError, Program
from pyro_vae.pairs.sites import (
    PARTICLE_PLATES,
    ConditionLatents,
    Node,
    full_size_of,
    is_data,
    sample_sites,
    subsampled_plates,
    values_of,
)
from pyro_vae.pairs.state import unchanged

# Errors of a program that does not accept one more dimension, or fewer data.
MISFITS = (
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
)


class AmbiguousPlatesError(PairError):
    """Several plates of the observed sites may be the one over the data."""


def data_plates(
    traces: Sequence[poutine.Trace],
    programs: Sequence[Program] = (),
    arguments: Arguments | None = None,
) -> tuple[str, ...]:
    """Return the names of the plates over the data, the plate of the observed sites first.

    The other plates with one entry per row follow. A guide may name its plate differently.

    Args:
        traces: Traces of a model and its guide, or of one of them.
        programs: The programs, the guide first. They run on two numbers of rows if names do not
            decide. Their state and the random state are preserved.
        arguments: Arguments of the programs.

    Raises:
        AmbiguousPlatesError: If several plates of the observed sites may be the one over the data.
        PairError: If a plate has no size.
    """
    nodes = [node for trace in traces for _, node in sample_sites(trace)]
    frames = [frame for node in nodes for frame in _frames(node)]
    for frame in frames:
        if frame.size < 0:  # as Pyro notes an unknown size
            raise PairError(
                f"pyro.plate({frame.name!r}) has no size, so its sites cannot be counted or "
                f"weighted: give it one, as in pyro.plate({frame.name!r}, len(x))"
            )
    everywhere = {frame.name for frame in frames}
    observed = [{f.name for f in _frames(node)} for node in nodes if is_data(node)]
    at_observed = [names for names in observed if names]
    if observed and not at_observed:
        return ()
    # A guide has no observed site.
    names = set().union(*at_observed) if observed else everywhere & {"data"}
    if everywhere == names and len(names) < 2:
        return tuple(names)
    following = _one_entry_per_row(programs, arguments)
    common = set.intersection(*at_observed) if observed else names
    vectorized = {frame.name for frame in frames if frame.vectorized}
    for hint in (following, {"data"}, common, vectorized):
        if len(names) > 1:
            names = names & hint or names
    if len(names) > 1:
        raise AmbiguousPlatesError(
            f"the observed sites are in the plates {sorted(names)}, and each of them may be the "
            "plate over the data: call that one 'data', as in pyro.plate('data', len(x)), or pass "
            "its name as obs_plate= to from_pyro_svi"
        )
    return (*names, *sorted(following - names))


def data_frame(
    traces: Sequence[poutine.Trace],
    programs: Sequence[Program],
    arguments: Arguments,
    name: str | None = None,
) -> CondIndepStackFrame | None:
    """Return the plate over the data at the observed sites, or None if there is none.

    Args:
        traces: Traces of a model and its guide.
        programs: The programs, the guide first.
        arguments: Arguments of the programs.
        name: Name of the plate. By default, `data_plates` finds it.

    Raises:
        PairError: If no observed site is in the plate `name`, if several plates may be the one over
            the data, or if another plate is subsampled.
    """
    nodes = [node for trace in traces for _, node in sample_sites(trace)]
    names: tuple[str, ...] = () if name is None else (name,)
    try:
        names = names or data_plates(traces, programs, arguments)
    except AmbiguousPlatesError:
        # Without rows, there are no batches to find. The log weights are joint.
        if arguments.num_rows or subsampled_plates(*traces):
            raise
    at_observed = [frame for node in nodes if is_data(node) for frame in node["cond_indep_stack"]]
    frame = next((frame for frame in at_observed if frame.name in names[:1]), None)
    if name is not None and frame is None:
        plates = sorted({frame.name for frame in at_observed})
        raise PairError(f"obs_plate={name!r}, but the observed sites are in the plates {plates}")
    others = subsampled_plates(*traces) - {None if frame is None else frame.name}
    if others:
        raise PairError(
            f"the plates {sorted(others)} are subsampled and are not over the data, so log "
            "p(x, z) is known only up to the entries that are left out: run them whole, "
            "without subsample_size= and subsample=, for all but training"
        )
    if frame is not None and frame.size < full_size_of(frame):
        _check_rows_can_be_set(frame, traces, programs)
    return frame


def _check_rows_can_be_set(
    frame: CondIndepStackFrame, traces: Sequence[poutine.Trace], programs: Sequence[Program]
) -> None:
    """Raise `PairError` unless each run of the programs can be given other rows of the data."""
    if frame.dim is None:
        raise PairError(
            f"the loop over pyro.plate({frame.name!r}) visits a part of the data, and so the sites "
            f"differ from run to run: use it as a context (with pyro.plate({frame.name!r}, ...) as "
            "i: x[i]), or loop over all data, for all but training"
        )
    for trace, program in zip(traces, programs, strict=True):
        used = {other.name for _, node in sample_sites(trace) for other in _frames(node)}
        if frame.name in used - set(trace.nodes) and not is_automatic(program):
            raise PairError(
                f"pyro.plate({frame.name!r}) is subsampled and created outside of the program, and "
                "so each run has the same rows of the data: create it inside, as in "
                f"with pyro.plate({frame.name!r}, ...) as i: x[i]"
            )


def data_plates_of(program: Program, *args: object, **kwargs: object) -> tuple[str, ...]:
    """Return the names of the plates over the data of one program, a model or a guide."""
    arguments = Arguments(args, kwargs)
    program = model_of(program)
    with isolated(program):
        trace = _run(program, arguments.whole(), {})
    return data_plates([trace], [program], arguments)


def frame_of(node: Node, plates: Sequence[str]) -> CondIndepStackFrame | None:
    """Return the first of the named plates that a site is in, or None."""
    frames = {frame.name: frame for frame in node["cond_indep_stack"]}
    return next((frames[name] for name in plates if name in frames), None)


def _frames(node: Node) -> list[CondIndepStackFrame]:
    return [frame for frame in node["cond_indep_stack"] if frame.name not in PARTICLE_PLATES]


def _one_entry_per_row(programs: Sequence[Program], arguments: Arguments | None) -> set[str]:
    """Return the plates with one entry per row of the data, for two numbers of rows."""
    if arguments is None or not arguments.num_rows:
        return set()
    enough = arguments
    if arguments.num_rows < 3:
        repeated = arguments.repeat(arguments.whole(), 3)
        enough = Arguments(repeated.args, repeated.kwargs)
    # A program with a fixed number of data may accept no more rows than these.
    for rows, most in ((enough, 3), (arguments, arguments.num_rows)):
        with contextlib.suppress(*MISFITS):
            runs = [_of_size(size, programs, rows) for size in (most, most - 1) if size]
            return set.intersection(*runs)
    return set()


def _of_size(size: int, programs: Sequence[Program], arguments: Arguments) -> set[str]:
    """Return the plates of size `size` when the programs run on `size` rows."""
    batch, values, names = arguments.rows(0, size), dict[str, Tensor](), set[str]()
    programs = [model_of(program) for program in programs]
    with isolated(*programs):
        for program in programs:
            trace = _run(program, batch, values)
            values = values_of(trace)
            for _, node in sample_sites(trace):
                names |= {f.name for f in _frames(node) if size in (f.size, f.full_size)}
    return names


def _run(program: Program, batch: Batch, values: Mapping[str, Tensor]) -> poutine.Trace:
    with ConditionLatents(values):
        return poutine.trace(program).get_trace(*batch.args, **batch.kwargs)


@contextlib.contextmanager
def isolated(*programs: Program) -> Iterator[None]:
    """Run programs outside the surrounding effect handlers, and restore all state afterwards."""
    with (
        torch.no_grad(),
        unchanged(*programs),
        poutine.block(),
        pyro.validation_enabled(False),
    ):
        yield
