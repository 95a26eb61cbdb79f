"""Values in objects of libraries are seen by the guards, and set back after a trial run.

A program reads a number from an object of the standard library, numpy, torch or Pyro. If the number
changes, so does the key of the guards; `restored` brings it back.
"""

import array
import collections
import configparser
import ctypes
import functools
import multiprocessing
import types
import warnings
import weakref

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae.engine.guards import GuardedState
from tests.support.effects import Net, assert_same


class Setting:
    """An object with one setting."""

    def __init__(self):
        self.beta = 1.0


@functools.lru_cache
def cached():
    return [1.0]


def parser():
    settings = configparser.ConfigParser()
    settings["kl"] = {"beta": "1.0"}
    return settings


def with_attribute(tensor):
    tensor.beta = 1.0
    return tensor


KEPT = Setting()
# How to make an object, to read its number, and to set it.
ITEM = (lambda o: o[0], lambda o, v: o.__setitem__(0, v))
KEY = (lambda o: o["beta"], lambda o, v: o.__setitem__("beta", v))
VALUE = (lambda o: o.value, lambda o, v: setattr(o, "value", v))
BETA = (lambda o: o.beta, lambda o, v: setattr(o, "beta", v))
FIRST = (lambda o: next(iter(o)).beta, lambda o, v: setattr(next(iter(o)), "beta", v))
OBJECTS = {
    "UserDict": (lambda: collections.UserDict(beta=1.0), *KEY),
    "UserList": (lambda: collections.UserList([1.0]), *ITEM),
    "ChainMap": (lambda: collections.ChainMap({"beta": 1.0}), *KEY),
    "ConfigParser": (
        parser,
        lambda o: o.getfloat("kl", "beta"),
        lambda o, v: o.set("kl", "beta", str(v)),
    ),
    "multiprocessing.Value": (lambda: multiprocessing.Value("d", 1.0), *VALUE),
    "c_double": (lambda: ctypes.c_double(1.0), *VALUE),
    "array of C": (lambda: (ctypes.c_double * 2)(1.0, 1.0), *ITEM),
    "array": (lambda: array.array("d", [1.0]), *ITEM),
    "bytearray": (lambda: bytearray([1]), lambda o: float(o[0]), lambda o, v: o.append(int(v))),
    "memoryview": (lambda: memoryview(bytearray([1])), *ITEM),
    "object array": (lambda: np.array([1.0, "a"], dtype=object), *ITEM),
    "masked array": (
        lambda: np.ma.array([1.0, 5.0], mask=[False, True]),
        lambda o: float(o.mean()),
        lambda o, v: setattr(o, "mask", [True, False]),
    ),
    "array of 3,000 numbers": (lambda: np.ones(3000), *ITEM),
    "result in a cache": (lambda: cached, lambda o: o()[0], lambda o, v: ITEM[1](o(), v)),
    "weak reference": (
        lambda: weakref.ref(KEPT),
        lambda o: o().beta,
        lambda o, v: setattr(o(), "beta", v),
    ),
    "weak dictionary": (
        lambda: weakref.WeakKeyDictionary({KEPT: 1.0}),
        lambda o: o[KEPT],
        lambda o, v: o.__setitem__(KEPT, v),
    ),
    "key of a dictionary": (lambda: {Setting(): 0}, *FIRST),
    "member of a set": (lambda: {Setting()}, *FIRST),
    "view of a dictionary": (lambda: {0: Setting()}.values(), *FIRST),
    "method of a dictionary": (
        lambda: {"beta": 1.0}.get,
        lambda o: o("beta"),
        lambda o, v: o.__self__.update(beta=v),
    ),
    "read-only dictionary": (lambda: types.MappingProxyType({0: Setting()}),
                             lambda o: o[0].beta, lambda o, v: setattr(o[0], "beta", v)),
    "attribute of a tensor": (lambda: with_attribute(torch.zeros(1)), *BETA),
    "attribute of a parameter": (lambda: with_attribute(nn.Parameter(torch.zeros(1))), *BETA),
    "parameter of a distribution": (
        lambda: dist.Normal(torch.tensor(1.0), 1.0),
        lambda o: o.loc.item(),
        lambda o, v: setattr(o, "loc", torch.tensor(float(v))),
    ),
    "parameter of independent distributions": (
        lambda: dist.Normal(torch.ones(1), 1.0).to_event(1),
        lambda o: o.base_dist.loc.item(),
        lambda o, v: setattr(o.base_dist, "loc", torch.full((1,), float(v))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("name", OBJECTS)
def test_a_change_is_seen_and_set_back(name, named):
    make, read, write = OBJECTS[name]
    KEPT.beta, value = 1.0, make()
    ITEM[1](cached(), 1.0)

    def program():
        return read(value)

    state = GuardedState([(tuple.__getitem__, (program,), 0)], named=named)
    key, before = state.key(), program()
    assert state.key() == key
    with state.restored(state.tensors):
        write(value, 3)
        assert state.key() != key
    assert state.key() == key
    assert program() == before


class Counted(Net):
    """Counts its runs in an object, and computes with the number."""

    def decode(self, z):
        calls = self.left() + 1
        self.count(calls)
        return self.decoder(z) * (1 + 0.01 * calls)


class Shared(Counted):
    def prepare(self):
        self.calls = multiprocessing.Value("d", 0.0)

    def count(self, calls):
        self.calls.value = calls

    def left(self):
        return self.calls.value


class Stored(Counted):
    """Counts in an entry of Pyro's parameter store that is no `param` site."""

    def prepare(self):
        pyro.get_param_store().setdefault("calls", torch.zeros(()))

    def count(self, calls):
        pyro.get_param_store()["calls"].data.fill_(calls)

    def left(self):
        return pyro.get_param_store()["calls"].item()


@pytest.mark.usefixtures("graphs_in_double")
@pytest.mark.parametrize("make", [Shared, Stored])
def test_trial_runs_do_not_count(make):
    assert_same(make=make, compiled=False)


class Context(Net):
    """Adds what another network computes outside of the program."""

    def prepare(self):
        self.context = torch.zeros(6)
        self.__dict__["other"] = nn.Linear(6, 6)  # no part of this module

    def decode(self, z):
        return self.decoder(z) + self.context

    def left(self):
        return self.other.weight.detach().clone()


def with_other_network(i, svi, net, x):
    net.context = 0.1 * net.other(x)
    svi.step(x)
    with torch.no_grad():
        net.other.weight -= 1e-3 * net.other.weight.grad
    net.other.zero_grad()


@pytest.mark.usefixtures("graphs_in_double")
def test_a_trial_run_takes_no_gradients_of_other_networks():
    assert_same(make=Context, step=with_other_network, compiled=False)


@pytest.mark.usefixtures("graphs_in_double")
def test_tensors_of_inference_mode_are_refused_as_in_pyro():
    def step(i, svi, net, x):
        with torch.inference_mode():
            x = x.clone()
        svi.step(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same(step=step, compiled=False)
