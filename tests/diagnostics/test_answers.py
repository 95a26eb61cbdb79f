"""The answer on single data advises a step if and only if a datum needs one."""

import itertools

import numpy as np
import pytest

from pyro_vae.diagnostics.answers import NOTHING, answer_on_data

GOOD = {"guide": ["trusted"], "refined": ["trusted", "cured"]}
BAD = {"guide": ["doubtful"], "refined": ["uncured", "improbable"]}


@pytest.mark.parametrize("proposal", ["guide", "refined"])
@pytest.mark.parametrize("num_bad", [0, 1, 20])
def test_a_step_is_advised_for_bad_data_only(proposal, num_bad):
    for good, bad in itertools.product(GOOD[proposal], BAD[proposal]):
        answer = answer_on_data(np.array([good] * 20 + [bad] * num_bad), proposal)
        assert (answer.next_step == NOTHING) == (num_bad == 0)
        assert (answer.verdict == "safe") == (num_bad <= 1)
        assert f"{num_bad if bad != 'improbable' else 0} of {20 + num_bad} data" in answer.reason
        if proposal == "guide":
            assert ("the encoder fails" in answer.reason) == (num_bad > 0)
