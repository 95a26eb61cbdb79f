"""A run is not resumed with other settings, data or programs."""

import functools

import pytest
import torch

import pyro_vae as pv
from pyro_vae.objectives.annealing import Beta, Linear
from tests.models.test_vae import small_vae
from tests.support.runs import (
    arguments,
    half_a_run,
    pixels,
    train,
)


@pytest.mark.thinned(3)
@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"epochs": 3}, "epochs was 4 and is 3"),
        ({"batch_size": 8}, "batch_size was 16 and is 8"),
        ({"patience": 2}, "patience was None and is 2"),
        ({"precision": "bf16"}, "precision was 'fp32' and is 'bf16'"),
        ({"compile": True}, "compile was False and is True"),
        ({"train": pixels(5)}, "train_sha256 was"),
        ({"validation": pixels(5, 20)}, "validation_sha256 was"),
        ({"validation": None}, "validation_sha256 was"),
        ({"objective": Beta(2.0)}, "objective was 'Trace_ELBO' and is 'Beta'"),
        ({"schedule": None}, "other optimizer or schedule: lr was"),
        (
            {"optimizer": functools.partial(torch.optim.Adam, eps=1e-3)},
            "eps was 1e-08 and is 0.001",
        ),
        ({"optimizer": functools.partial(torch.optim.SGD, lr=1e-2)}, "momentum was"),
    ],
)
def test_other_settings_or_data_are_refused(changed, sentence, tmp_path, monkeypatch):
    half_a_run(tmp_path, monkeypatch)
    with pytest.raises(pv.CheckpointError, match=sentence):
        train(tmp_path, resume=True, **changed)


def test_another_beta_or_model_is_refused(tmp_path):
    for folder, objective in [("a", Beta(2.0)), ("b", Beta(Linear(5)))]:
        train(tmp_path / folder, objective=objective, epochs=1)
        with pytest.raises(pv.CheckpointError, match="objectives: beta was"):
            train(tmp_path / folder, objective=Beta(3.0), epochs=1, resume=True)
    with pytest.raises(pv.CheckpointError, match="model was"):
        pv.fit(small_vae(4), out=tmp_path / "a", resume=True,
               **arguments(objective=Beta(2.0), epochs=1))  # fmt: skip
