"""Checks of a compiled step detect changes and leave no trace."""

import pytest
import torch
from torch import nn

from pyro_vae.engine import compiler
from pyro_vae.engine.compilation_warning import CompilationWarning
from pyro_vae.engine.tolerances import check_close
from pyro_vae.engine.value_reader import NotCompilable
from tests.support.pyro_programs import both
from tests.support.strided_net import TABLE, assert_equal_runs, train_net


class Cell:
    """A setting that guards do not find, because its class claims to be of a library."""

    __module__ = "torch"

    def __init__(self):
        self.value = [1.0]

    def __call__(self, x):
        return self.value[0]


@pytest.mark.usefixtures("double", "graph_only")
def test_what_nothing_else_sees_is_seen_by_the_check_of_a_later_step(monkeypatch):
    monkeypatch.setattr(compiler, "CHECKED_RUNS", {9, 10})
    cell = Cell()

    def change(i):
        cell.value[0] = 1.0 if i < 10 else 2.0

    with pytest.warns(CompilationWarning, match="something that the graph does not see"):
        svi = both(lambda x: cell(x), change)  # the change happens at the tenth compiled step
    assert svi.num_compiled_steps == 9


@pytest.mark.usefixtures("graph_only")
def test_gradients_of_a_reference_that_failed_are_not_added_to_the_next():
    batch = TABLE[:, :6].contiguous()
    eager = train_net(False, batch)

    def fail_after_backward(i, svi):
        if i != 1:
            return
        whole = svi.gradients

        def gradients(*args):
            svi.gradients = whole
            whole(*args)
            raise RuntimeError("broken")

        svi.gradients = gradients

    with pytest.warns(CompilationWarning, match="broken"):
        ours = train_net(True, batch, between=fail_after_backward)
    assert_equal_runs(ours, eager)


@pytest.mark.usefixtures("graph_only")
def test_gradients_that_belong_to_others_stay():
    batch = TABLE[:, :6].contiguous()

    def critic_has_a_gradient(i, svi):
        net = svi.model.__self__
        if i == 0:
            net.critic = nn.Linear(6, 1)
            net.critic(batch).sum().backward()
        assert torch.equal(net.critic.weight.grad, batch.sum(0, keepdim=True))

    assert_equal_runs(
        train_net(True, batch, between=critic_has_a_gradient),
        train_net(False, batch, between=critic_has_a_gradient),
    )


def test_entries_that_are_missing_in_both_are_equal():
    x = torch.tensor([1.0, float("nan")])
    check_close("the updates", [x], [x.clone()], 1e-6)
    for other in (torch.tensor([float("nan"), 1.0]), torch.tensor([2.0, float("nan")])):
        with pytest.raises(NotCompilable):
            check_close("the updates", [x], [other], 1e-6)
