"""The guards of a compiled step read the values of the user's programs, and not too many."""

import functools
import warnings

import pyro
import pytest
import torch

import pyro_vae as pv
from pyro_vae.engine import guards
from pyro_vae.engine.compilation_warning import CompilationWarning
from tests.support.pyro_programs import both
from tests.support.strided_net import ADAM, TABLE, Net, assert_equal_runs, train_net

SETTINGS = {"scale": 1.0}


def reads_setting(x):
    return SETTINGS["scale"]


@pytest.mark.usefixtures("double", "graph_only")
def test_a_setting_that_changes_is_followed():
    svi = both(reads_setting, lambda i: SETTINGS.update(scale=2.0 if i in (5, 6) else 1.0))
    assert svi.num_compiled_steps == 11


class OwnSVI(pv.SVI):
    """A user's subclass."""


HOLDERS = {
    "itself": lambda svi: svi,
    "a list": lambda svi: [svi],
    "a dictionary": lambda svi: {"svi": svi},
    "its method": lambda svi: svi.step,
    "a function": lambda svi: lambda: svi,
    "its optimizer": lambda svi: svi.optim,
    "a partial": lambda svi: functools.partial(svi.step),
}


@pytest.mark.usefixtures("graph_only")
@pytest.mark.parametrize("kind", [pv.SVI, OwnSVI, pyro.infer.SVI])
@pytest.mark.parametrize("name", HOLDERS)
def test_an_object_that_holds_its_svi_costs_what_it_costs_without(name, kind):
    def sizes(hold):
        torch.manual_seed(0)
        pyro.clear_param_store()
        net = Net()
        svi = pv.SVI(net.model, net.guide, ADAM, compile=True)
        held = (
            svi
            if kind is pv.SVI
            else kind(net.model, net.guide, pyro.optim.Adam({}), pyro.infer.Trace_ELBO())
        )
        if hold:
            net.trainer = HOLDERS[name](held)
        counts = []
        for _ in range(12):
            svi.step(TABLE[:, :6].contiguous())
            counts.append(len(svi._compiler._guards._reads))
        assert svi.num_compiled_steps == 11
        return counts

    alone, holding = sizes(False), sizes(True)
    assert max(holding) <= alone[-1] + 20
    assert len(set(holding)) == 1


@pytest.mark.usefixtures("graph_only")
def test_a_program_that_sees_too_much_runs_eagerly_and_says_so():
    batch = TABLE[:, :6].contiguous()

    def burden(i, svi):
        if i == 0:  # 10,000 containers of 10 values each
            svi.model.__self__.settings = [
                [[[j, k, m, n] for n in range(10)] for m in range(10)]
                for j in range(10) for k in range(10)
            ]  # fmt: skip

    with pytest.warns(CompilationWarning, match="more than 10,000 Python values"):
        ours = train_net(True, batch, between=burden)
    assert_equal_runs(ours, train_net(False, batch))
    assert len(ours[2]._compiler._guards._reads) <= guards.MAX_VALUES


class Hostile:
    """An object that raises on any attribute access."""

    def __getattribute__(self, name):
        raise RuntimeError("hands off")


@pytest.mark.parametrize("compile", [False, "auto", True])
def test_a_foreign_object_that_raises_is_no_error_of_the_step(compile):
    batch = TABLE[:, :6].contiguous()

    def hold(i, svi):
        vars(svi.model.__self__)["foreign"] = Hostile()  # not by setattr, which reads attributes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CompilationWarning)
        ours = train_net(compile, batch, steps=4, between=hold)
    assert_equal_runs(ours, train_net(False, batch, steps=4))


Alias = list[int]  # its `__dict__` is that of `list`, which is not a dictionary


@pytest.mark.usefixtures("graph_only")
def test_a_type_alias_does_not_stop_compilation():
    batch = TABLE[:, :6].contiguous()

    def hold(i, svi):
        svi.model.__self__.alias = Alias

    ours = train_net(True, batch, between=hold)
    assert_equal_runs(ours, train_net(False, batch))
    assert ours[2].num_compiled_steps == 13
