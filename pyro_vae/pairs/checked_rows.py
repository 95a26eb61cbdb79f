"""Check all rows of a dataset against the support of their likelihood as they are read.

The package's densities do not check their arguments: outside the support they return numbers that
are not normalized. Rows in memory are checked before any work. Rows on disk and of a `DataLoader`
are checked when they are read for the first time, and those of a loader in every pass.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from pyro import poutine
from pyro.distributions import Unit
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_vae.data.dataset import Chunk, Dataset
from pyro_vae.pairs.batching import Batch, batch_of
from pyro_vae.pairs.chunking import data_per_chunk
from pyro_vae.pairs.guides import is_automatic, model_of
from pyro_vae.pairs.latents import check_samples
from pyro_vae.pairs.pair import PairError, PairLike
from pyro_vae.pairs.plates import MISFITS, isolated
from pyro_vae.pairs.sites import observed_sites
from pyro_vae.pairs.supports import (
    DATUM,
    IN_BATCH,
    Observed,
    check_gradients,
    check_observed,
    fixed_support,
    known_support,
)

NAN_ROWS = 8  # rows with NaN of a batch that the guide is run on

Observe: TypeAlias = Callable[[Batch], Observed]


class SupportCheck:
    """Checks batches of data against the supports of a pair's observed sites.

    If an argument of the programs is observed, and the class of its distribution defines the
    support, the argument is compared with it directly. Otherwise, and before an error, the pair
    runs on the batch: the support and the mask of a site may depend on the datum.

    Args:
        observe: Runs the pair on a batch; returns its observed sites.
        batch: Some data.
        nan_passes: Whether observations with NaN pass. Their log density is NaN.
        gradients: Whether log densities are differentiated, so that a masked NaN is an error.
    """

    def __init__(
        self, observe: Observe, batch: Batch, *, nan_passes: bool = False, gradients: bool = False
    ) -> None:
        self._observe, self._nan_passes, self._gradients = observe, nan_passes, gradients
        # Arguments and their supports; None if the pair has to run.
        self.fixed: list[tuple[int | str, Constraint]] | None = None
        with contextlib.suppress(*MISFITS):
            self.fixed = _fixed(observe(batch), batch)

    def __call__(self, batch: Batch, start: int | None = 0) -> None:
        """Check a batch.

        Args:
            batch: Data.
            start: Position of its first datum in all data; None if it is not known.

        Raises:
            PairError: If a value is outside the support of its distribution.
        """
        if self.fixed is not None and all(
            support.check(_argument(batch, key)).all() for key, support in self.fixed
        ):
            return
        rows = range(start or 0, (start or 0) + len(batch.indices))
        place = IN_BATCH if start is None else DATUM
        try:
            found = self._observe(batch)
        except IndexError as error:
            where = "a batch" if start is None else f"the data {rows.start} to {rows.stop - 1}"
            raise PairError(
                f"the pair fails on {where}: {error}. A value may be outside the likelihood's "
                "support, or in no row of an embedding"
            ) from error
        except MISFITS:
            return  # the programs do not run on these rows alone
        check_observed(found, rows, place=place, nan_passes=self._nan_passes)
        if self._gradients:
            check_gradients(found, rows, place)


def _fixed(sites: Observed, batch: Batch) -> list[tuple[int | str, Constraint]] | None:
    fixed: list[tuple[int | str, Constraint]] = []
    arguments: list[tuple[int | str, object]] = [*enumerate(batch.args), *batch.kwargs.items()]
    for node in sites.values():
        if isinstance(node["fn"], Unit) or known_support(node["fn"]) is None:
            continue
        key = next((key for key, value in arguments if value is node["value"]), None)
        support = fixed_support(node["fn"])
        if key is None or support is None:
            return None
        fixed.append((key, support))
    return fixed


def _argument(batch: Batch, key: int | str) -> Tensor:
    value = batch.args[key] if isinstance(key, int) else batch.kwargs[key]
    assert isinstance(value, Tensor)
    return value


class CheckedRows:
    """The rows of a dataset, checked once against the supports of a pair's observed sites.

    Rows in memory are checked now, others when `chunks` or `batches` read them. Rows of a loader,
    which may differ from pass to pass, are checked each time if this needs no run of the pair.

    Args:
        pair: Object with a `.model` and a `.guide`.
        data: Data that `check` accepts for the pair.
        gradients: Whether log densities are differentiated, so that a masked NaN is an error.
        guide: Whether the guide is run on all rows. Its samples for rows with NaN must be finite.

    Raises:
        PairError: If a row is outside the support, or has NaN entries that the guide cannot take.
    """

    def __init__(
        self, pair: PairLike, data: Dataset, *, gradients: bool = False, guide: bool = True
    ) -> None:
        self.data, self._seen = data, 0
        # Generated guides do not read x.
        self._guide = pair.guide if guide and not is_automatic(pair.guide) else None

        few = data.batch(slice(8))
        observe = functools.partial(_observed, pair)
        self._check = SupportCheck(observe, batch_of(few), gradients=gradients)
        self._check_batch(few, 0)
        if data.binarization in ("dynamic", "threshold") and self._check.fixed is not None:
            # The first rows have shown that 0 and 1 are in the support.
            self._check.fixed = [(key, support) for key, support in self._check.fixed if key != 0]
        self._due = self._check.fixed != []
        # A loader may give other rows in each pass. Without a run of the pair, a check is fast.
        self._always = data.loader is not None and self._check.fixed is not None and self._due
        if all(isinstance(values, Tensor) for values in (data.values, *data.context)):
            for _, read in self.chunks(data_per_chunk(data.event_shape, 1)):
                read()

    def __len__(self) -> int:
        return len(self.data)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return self.data.event_shape

    def chunks(self, rows: int, least: int = 1) -> Iterator[Chunk]:
        """Yield all data in order, as `Dataset.chunks`, and check them at the first pass."""
        if not self._due:
            yield from self.data.chunks(rows, least)
            return
        for place, read in self.data.chunks(rows, least):
            yield place, functools.partial(self._read, place, read)
        self._due = self._always

    def batches(self, batches: Iterable[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
        """Yield training batches, and check as many rows as there are data, or all of a loader."""
        for batch in batches:
            if self._due:
                self._check_batch(batch, None)
                self._seen += len(batch[0])
                self._due = self._always or self._seen < len(self)
            yield batch

    def _read(self, place: int, read: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        batch = read()
        self._check_batch(batch, place)
        return batch

    def _check_batch(self, batch: tuple[Tensor, ...], place: int | None) -> None:
        self._check(batch_of(batch), place)
        x = batch[0]
        if self._guide is None or not (x.is_floating_point() and x.isnan().any()):
            return
        rows = x.isnan().reshape(len(x), -1).any(1).nonzero()[:NAN_ROWS, 0]
        with isolated(self._guide):
            try:
                some = tuple(part[rows] for part in batch)
                trace = poutine.trace(self._guide).get_trace(*some)
            except MISFITS:
                return  # the guide does not run on these rows alone
        check_samples(trace, x)


def _observed(pair: PairLike, batch: Batch) -> Observed:
    """Run a pair on some data; return its observed sites. If the guide fails, the model runs alone.

    An `AutoGuide` is not run, because it stores the shapes of its first call.
    """
    with isolated(pair.model, pair.guide):
        model = pair.model
        try:
            guide = poutine.trace(model_of(pair.guide)).get_trace(*batch.args)
            model = poutine.replay(model, trace=guide)
            return observed_sites(poutine.trace(model).get_trace(*batch.args))
        except MISFITS as error:
            try:
                return observed_sites(poutine.trace(pair.model).get_trace(*batch.args))
            except MISFITS:
                raise error from None
