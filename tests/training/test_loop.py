"""What follows after the steps of an epoch, as a table."""

import pytest

from pyro_vae.checkpointing.resumable import Progress
from pyro_vae.training.loop import (
    MAX_BACKTRACKS,
    Backtrack,
    Continue,
    EpochEnd,
    Raise,
    Save,
    Stop,
    next_action,
)
from pyro_vae.training.setup import FitConfig

BATCH = ()
KEEPS, GOES_BACK = {"out": "run"}, {"on_nan": "backtrack"}
FAILED = EpochEnd(failed_batch=BATCH)
DUE, COMPLETE, SIGNAL = EpochEnd(is_due=True), EpochEnd(is_complete=True), EpochEnd(signal=15)
LOWEST = 0.5**MAX_BACKTRACKS
ASKED = EpochEnd(is_complete=True, asks_to_stop=True)
ERROR = KeyError("callback")
BROKEN = EpochEnd(is_complete=True, error=ERROR)


def after(epoch, best=1, rate_factor=1.0):
    """Return the counters after `epoch` epochs; the best one was `best`."""
    return Progress(epoch=epoch + 1, best={"epoch": best}, rate_factor=rate_factor)


@pytest.mark.parametrize(
    ("progress", "end", "settings", "action"),
    [
        # An epoch that is not the last one.
        (after(1), COMPLETE, {}, Continue()),
        (after(1), COMPLETE, KEEPS, Save()),
        (after(1), COMPLETE, GOES_BACK, Save()),
        # Within an epoch.
        (after(1), DUE, KEEPS, Save()),
        (after(1), DUE, GOES_BACK, Save()),
        (after(3), DUE, KEEPS, Save()),
        # The last epoch.
        (after(3), COMPLETE, {}, Stop("finished")),
        (after(3), COMPLETE, KEEPS, Stop("finished")),
        (after(2), COMPLETE, KEEPS, Save()),
        # Early stopping.
        (after(2), COMPLETE, {"patience": 1}, Stop("early stopping")),
        (after(2), COMPLETE, {"patience": 1, **KEEPS}, Stop("early stopping")),
        (after(2, best=2), COMPLETE, {"patience": 1}, Continue()),
        (after(2), COMPLETE, {"patience": 2}, Continue()),
        (after(3, best=2), COMPLETE, {"patience": 1}, Stop("early stopping")),
        (after(3, best=3), COMPLETE, {"patience": 1}, Stop("finished")),
        (after(2), DUE, {"patience": 1, **KEEPS}, Save()),
        # A signal.
        (after(1), SIGNAL, {}, Stop("interrupted")),
        (after(3), SIGNAL, KEEPS, Stop("interrupted")),
        (after(2), SIGNAL, {"patience": 1}, Stop("interrupted")),
        # The callback.
        (after(1), ASKED, {}, Stop("callback")),
        (after(2), ASKED, {"patience": 1}, Stop("early stopping")),
        (after(3), ASKED, KEEPS, Stop("finished")),
        (after(1), BROKEN, {}, Raise(ERROR, Continue())),
        (after(1), BROKEN, KEEPS, Raise(ERROR, Save())),
        (after(3), BROKEN, KEEPS, Raise(ERROR, Stop("finished"))),
        # A loss or parameter that is not finite.
        (after(1), FAILED, {}, Stop("not finite")),
        (after(1), FAILED, KEEPS, Stop("not finite")),
        (after(1), FAILED, GOES_BACK, Backtrack()),
        (after(1, rate_factor=2 * LOWEST), FAILED, GOES_BACK, Backtrack()),
        (after(1, rate_factor=LOWEST), FAILED, GOES_BACK, Stop("not finite")),
        (after(1), EpochEnd(failed_batch=BATCH, signal=2), GOES_BACK, Backtrack()),
        (after(1), EpochEnd(failed_batch=BATCH, signal=2), {}, Stop("not finite")),
        (after(1), EpochEnd(failed_batch=BATCH, parameter="loc"), {}, Stop("not finite")),
    ],
)
def test_the_next_action(progress, end, settings, action):
    config = FitConfig.checked(has_validation=True, epochs=3, **settings)
    assert next_action(progress, end, config) == action


def test_the_next_action_changes_nothing():
    progress = after(2)
    next_action(progress, COMPLETE, FitConfig(epochs=2))
    assert progress == after(2)
