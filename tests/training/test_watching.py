"""Callbacks and trackers see every epoch and change nothing; a run that they end can be resumed."""

import random
import sys

import numpy as np
import pytest
import torch

import pyro_vae as pv
from tests.support.runs import (
    STEPS,
    Stop,
    assert_same_run,
    interrupt_after,
    stop_after,
    train,
    without_seconds,
)


class Recorder:
    """A tracker that records its calls, and fails at one of them."""

    def __init__(self, fails_at=None):
        self.calls, self.fails_at = [], fails_at

    def __getattr__(self, name):
        if name not in ("params", "metrics", "figure", "close"):
            raise AttributeError(name)

        def call(*given):
            torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002 - the global one
            self.calls.append((name, *given))
            if name == self.fails_at:
                raise OSError(f"{name} fails")

        return call

    def names(self):
        return [name for name, *_ in self.calls]


def epochs_of(entries):
    return [entry["epoch"] for entry in entries]


def test_callback_and_tracker_change_nothing(tmp_path):
    seen, recorder = [], Recorder()

    def callback(entry):
        torch.manual_seed(0)
        random.seed(0)
        seen.append(entry.copy())
        entry.clear()
        return entry  # neither True nor None

    alone = train(tmp_path / "alone")
    watched = train(tmp_path / "watched", callback=callback, tracker=recorder)
    assert_same_run(alone, watched)
    assert seen == watched[0].history
    assert recorder.names() == ["params", *["metrics"] * 4, "figure", "close"]
    assert recorder.calls[0][1]["batch_size"] == 16
    for (_, metrics, step), entry in zip(recorder.calls[1:5], seen, strict=True):
        assert {**metrics, "step": step} == entry
    _, name, figure, step = recorder.calls[-2]
    assert (name, step, len(figure.axes[0].lines)) == ("learning_curve", 4 * STEPS, 2)


@pytest.mark.parametrize("answer", [True, np.True_])
def test_a_callback_ends_a_run(answer, tmp_path):
    fit, _, _ = train(tmp_path, callback=lambda entry: answer if entry["epoch"] == 2 else None)
    assert (fit.stopped, epochs_of(fit.history)) == ("callback", [1, 2])
    again, _, _ = train(tmp_path, resume=True)
    assert (again.stopped, again.history) == ("callback", fit.history)


def test_a_run_that_a_callback_ended_is_extended(tmp_path):
    whole = train(tmp_path / "whole", schedule=None)
    train(tmp_path / "run", schedule=None, epochs=3, callback=lambda entry: entry["epoch"] == 2)
    assert_same_run(whole, train(tmp_path / "run", schedule=None, resume=True))


@pytest.mark.parametrize("epoch", [1, 2, 4])
def test_an_error_of_the_callback_leaves_a_run_that_can_be_resumed(epoch, tmp_path):
    def callback(entry):
        seen.append(entry["epoch"])
        if entry["epoch"] == epoch:
            raise ValueError("of the callback")

    seen, recorder, whole = [], Recorder(), train(tmp_path / "whole")
    with pytest.raises(ValueError, match="of the callback"):
        train(tmp_path / "run", callback=callback, tracker=recorder)
    assert recorder.names() == ["params", *["metrics"] * epoch, "close"]
    assert_same_run(whole, train(tmp_path / "run", resume=True, callback=callback))
    assert seen == [1, 2, 3, 4]


@pytest.mark.parametrize("method", ["params", "metrics", "figure", "close"])
def test_an_error_of_the_tracker_is_raised_and_the_tracker_closed(method, tmp_path):
    whole, recorder = train(tmp_path / "whole"), Recorder(method)
    with pytest.raises(OSError, match=f"{method} fails"):
        train(tmp_path / "run", tracker=recorder)
    assert recorder.names()[-1] == "close"
    assert_same_run(whole, train(tmp_path / "run", resume=True))


@pytest.mark.parametrize("steps", [STEPS - 1, STEPS, 2 * STEPS + 1])
def test_a_killed_run_misses_no_epoch(steps, tmp_path, monkeypatch):
    whole, seen = train(tmp_path / "whole"), []
    watch = {"callback": seen.append, "tracker": Recorder()}
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(Stop):
            train(tmp_path / "run", seconds=0.0, **watch)
    assert_same_run(whole, train(tmp_path / "run", resume=True, **watch))
    assert without_seconds(seen) == without_seconds(whole[0].history)


def test_a_partial_epoch_is_not_sent(tmp_path, monkeypatch):
    seen = []
    with monkeypatch.context() as patch:
        interrupt_after(patch, STEPS + 1)
        train(tmp_path, callback=seen.append)
    assert epochs_of(seen) == [1]
    train(tmp_path, callback=seen.append, resume=True)
    assert epochs_of(seen) == [1, 2, 3, 4]


@pytest.mark.parametrize("given", [lambda: True, lambda a, b: True, 3])
def test_a_callback_that_cannot_be_called_is_refused(given, tmp_path):
    with pytest.raises(pv.ArgumentError, match="callback must be a function of an entry"):
        train(tmp_path / "run", callback=given)
    assert not (tmp_path / "run").exists()


def test_a_missing_tensorboard_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(pv.ArgumentError, match=r"pyro-vae\[tensorboard\]"):
        pv.TensorBoard(tmp_path / "board")
    assert not (tmp_path / "board").exists()


def test_tensorboard_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit, _, _ = train(tmp_path / "run", tracker=pv.TensorBoard(tmp_path / "board"))
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    for name in ("train_elbo", "validation_elbo"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(entry["step"], pytest.approx(entry[name])) for entry in fit.history]
    assert [event.step for event in events.Images("learning_curve")] == [4 * STEPS]


@pytest.mark.parametrize("num_epochs", [0, 1, 300])
def test_a_result_is_shown_in_one_line(num_epochs):
    history = [
        {"epoch": i + 1, "train_elbo": -i / 3, "validation_elbo": -i / 2} for i in range(num_epochs)
    ]
    shown = repr(pv.Fit(history, history[-1] if history else {}, num_steps=2400, seconds=41.234))
    assert f"finished: {num_epochs} epochs, 2,400 steps, 41.2 s" in shown
    assert len(shown) < 200
    assert (f"epoch: {num_epochs}," in shown) == (num_epochs > 0)
