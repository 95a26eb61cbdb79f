"""Calls of public functions with random arguments: a finite result, or an error of this package.

Each call has valid arguments, of which one or two are replaced: by numpy scalars, frames, sparse
and meta tensors, nested lists, huge numbers, strings, objects and functions.
"""

import collections
import contextlib
import copy
import datetime
import decimal
import fractions
import functools
import io
import math
import random
import reprlib
import signal
import traceback
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vae as pv

PACKAGE = Path(pv.__file__).parent
SECONDS = 30
X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))


@functools.cache
def trained():
    torch.manual_seed(0)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(pv.networks.MLP(2, [4], 6)),
        pv.guides.DiagonalNormal(pv.networks.MLP(6, [4], 4)),
    )
    return vae, pv.fit(vae, X, epochs=1, progress=False)


def numbers(draw):
    """Return a number of some type: small, huge, negative, not whole, not finite."""
    value = draw.choice([0, 1, 2, 3, 7, -1, 0.5, 1e-3, 10**9, 2**31, 2**63, 2**64, 10**30, 1e308])
    value = draw.choice([value, value, float("nan"), float("inf"), -float("inf")])
    kinds = [
        lambda v: v, lambda v: v, np.float64, np.float32, np.float16, float, str, torch.tensor,
        np.array, lambda v: [v], decimal.Decimal, complex, lambda v: v * 1j,
        lambda v: np.int64(int(v)), lambda v: np.uint8(int(v)), lambda v: bool(v),
        lambda v: np.bool_(v), lambda v: fractions.Fraction(v),
        lambda v: torch.tensor(v, device="meta"), lambda v: np.datetime64(int(v), "s"),
    ]  # fmt: skip
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return draw.choice(kinds)(value)
    except (ValueError, OverflowError, TypeError, RuntimeError):
        return value


def tables(draw):
    """Return data of some container, shape, type and content."""
    rows, columns = draw.choice([0, 1, 2, 3, 12, 12]), draw.choice([0, 1, 5, 6, 6, 6])
    generator = np.random.default_rng(draw.randrange(2**32))
    array = generator.normal(size=(rows, columns)).round(3)
    if draw.random() < 0.4 and array.size:
        array.flat[draw.randrange(array.size)] = draw.choice(
            [np.nan, np.inf, -np.inf, 1e30, 1e300, 2.0**70]
        )
    frame = pd.DataFrame(array.astype("f4"))
    makers = [
        lambda: torch.tensor(array), lambda: torch.tensor(array).float(),
        lambda: torch.tensor(array).bfloat16(), lambda: torch.tensor(array).to(torch.complex64),
        lambda: torch.tensor(array).float().to_sparse(),
        lambda: torch.tensor(array).float().to_sparse_csr(),
        lambda: torch.empty(rows, columns, device="meta"), lambda: array, lambda: array.astype("O"),
        lambda: array.astype("U"), lambda: array.astype("f4"), lambda: array > 0,
        lambda: array.astype("f2"), lambda: array.astype(">f4"), lambda: array.tolist(),
        lambda: np.ma.masked_invalid(array), lambda: frame, lambda: frame.astype(str),
        lambda: frame.assign(date=datetime.datetime(2020, 1, 1)), lambda: frame[0],
        lambda: frame.astype("category"), lambda: frame.astype("Float32"),
        lambda: frame.astype(pd.SparseDtype("f4", 0.0)), lambda: [frame, [frame]],
        lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        lambda: torch.quantize_per_tensor(torch.zeros(3, 6), 0.1, 0, torch.quint8),
        lambda: (X, X[:3]), lambda: (X, "labels"), lambda: {"x": X}, lambda: iter(X),
        lambda: X.expand(2, 12, 6), lambda: X[None, :, None], lambda: X.clone().requires_grad_(),
        lambda: torch.nn.Parameter(X), lambda: np.void(b"abc"), lambda: np.rec.array([(1, 2.0)]),
        lambda: torch.utils.data.DataLoader(X, batch_size=5),
        lambda: torch.utils.data.DataLoader([]), lambda: pv.data.Dataset(X),
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return draw.choice(makers)()
        except (ValueError, KeyError, TypeError, RuntimeError):
            return array


def others(draw):
    """Return a value of any other kind."""
    deep = []
    for _ in range(draw.choice([1, 50, 2000])):
        deep = [deep]
    return draw.choice([
        None, "", "x" * 10**5, "mnist", "\0", "\ud800", "$x^{$", b"x", [], (), {}, set(), object(),
        object, print, lambda *_: None, lambda x: x, deep, range(3), range(10**12), Path("x"),
        Path("/dev/null/x"), torch.device("meta"), "cuda:99", torch.float32, slice(None), ...,
        NotImplemented, Exception("x"), np.random.default_rng(0), torch.nn.Linear(2, 2),
        torch.optim.Adam, pv.priors.StandardNormal(2), trained()[0], pv.VAE, io.BytesIO(),
        collections.UserDict(), type("Odd", (), {"__len__": lambda self: 10**9})(),
    ])  # fmt: skip


def junk(draw):
    """Return an argument of any kind."""
    return draw.choice([numbers, numbers, tables, others])(draw)


def method(name, **given):
    def call(**arguments):
        return getattr(trained()[0], name)(**arguments)

    return call, given


def entries(folder):
    """Return public functions with valid arguments, by name."""
    vae, result = trained()
    parts, networks, objectives = pv.priors, pv.networks, pv.objectives
    mlp = networks.MLP(2, [4], 6)
    small = {"num_samples": 5, "seed": 0}
    data = {"values": X, "labels": None, "name": "a", "split": "train", "binarization": "none"}
    return {
        "fit": (pv.fit, {
            "pair": copy.deepcopy(vae), "train": X, "validation": X, "batch_size": 5,
            "num_particles": 1,
            "learning_rate": 1e-9, "patience": 3, "seed": 0, "device": "cpu", "compile": False,
            "precision": "fp32", "progress": False, "on_nan": "stop", "drop_last": False,
            "objective": None, "optimizer": None, "schedule": None, "epochs": 1,
        }),
        "evaluate": (pv.evaluate, {"pair": vae, "data": X, "proposal": "guide", **small}),
        "diagnose": (pv.diagnose, {
            "pair": vae, "x": X, "num_gap_data": 0, "num_simulations": 0, **small}),
        "refine": (pv.refine, {"pair": vae, "x": X, "num_rounds": 1, **small}),
        "gaps": (pv.gaps, {"pair": vae, "x": X[:3], "num_steps": 2, "num_particles": 2, **small}),
        "sbc": (pv.sbc, {"pair": vae, "x": X, "num_simulations": 5, "num_draws": 3, "seed": 0}),
        "from_pyro_svi": (pv.from_pyro_svi, {
            "model": vae.model, "guide": vae.guide, "model_args": (X,), **small}),
        "report": (pv.report, {
            "vae": vae, "fit": result, "test": X, "out": folder / "report", **small}),
        "Dataset": (pv.data.Dataset, {**data, "seed": 0}),
        "as_tensor": (pv.data.as_tensor, {"x": X}),
        "data.load": (functools.partial(pv.data.load, download=False), {
            "name": "frey", "binarize": "none", "root": folder, "seed": 0}),
        "load": (pv.load, {"path": folder / "no model", "device": "cpu"}),
        "save": method("save", path=folder / "model"),
        "check": method("check", x=X),
        "encode": method("encode", x=X),
        "decode": method("decode", z=X[:, :2]),
        "reconstruct": method("reconstruct", x=X),
        "sample": method("sample", num_samples=3),
        "VAE": (pv.VAE, {
            "prior": parts.StandardNormal(2), "likelihood": vae.model.likelihood,
            "guide": vae.guide.posterior}),
        "StudentT": (parts.StudentT, {"latent_dim": 2, "df": 3.0}),
        "MLP": (networks.MLP, {"in_shape": 2, "hidden": [4], "out_shape": 6}),
        "Normal": (pv.likelihoods.Normal, {"decoder": mlp, "scale": 0.5}),
        "Bernoulli": (pv.likelihoods.Bernoulli, {"decoder": mlp}),
        "DiagonalNormal": (pv.guides.DiagonalNormal, {"encoder": networks.MLP(6, [4], 4)}),
        "Beta": (objectives.Beta, {"beta": 0.5}),
        "ImportanceWeighted": (objectives.ImportanceWeighted, {"num_particles": 2}),
        "FreeBits": (objectives.FreeBits, {"free_nats": 0.5, "num_particles": 1}),
    }  # fmt: skip


SIZES = {"in_shape", "hidden", "out_shape", "latent_dim", "epochs", "num_rounds", "num_steps",
         "num_particles", "num_simulations", "num_draws", "num_samples"}  # fmt: skip


def is_large(value):
    """Return whether an argument asks for so much work or memory that a result takes hours."""
    entries = value if isinstance(value, list | tuple) else [value]
    with contextlib.suppress(Exception):
        return any(100 < abs(float(entry)) <= 10**8 or float(entry) > 10**8 for entry in entries)
    return isinstance(value, range | np.datetime64)


def has_one_datum(data):
    """Return whether data are a single row."""
    with contextlib.suppress(Exception):
        return len(data[0] if isinstance(data, tuple) else data) == 1
    return False


def finite(result, arguments):
    """Return whether the numbers of a result are finite."""
    if isinstance(result, pv.Evaluation):
        return all(np.isfinite(getattr(result, name)).all() for name in ("elbo", "log_likelihood"))
    if isinstance(result, pv.Fit):
        epoch = {**result.history[-1]}
        if has_one_datum(arguments.get("validation")):
            assert math.isnan(epoch.pop("validation_elbo_se"))  # one datum has no spread
        return all(np.isfinite(value) for value in epoch.values())
    if isinstance(result, torch.Tensor) and result.is_floating_point():
        is_plain = result.layout == torch.strided and not (result.is_meta or result.is_nested)
        return not is_plain or bool(result.isfinite().all())
    return True


def is_own(error):
    """Return whether an error was raised by this package, on purpose."""
    if isinstance(error, UserWarning) or type(error).__module__.startswith("pyro_vae"):
        return True
    where = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return isinstance(error, ValueError | TypeError) and PACKAGE in where.parents


def outcome(name, arguments, call):
    """Return what is wrong with a call; None if nothing is."""

    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        result = call(**arguments)
        signal.alarm(0)
        is_kept = name == "as_tensor"  # which only converts
        return None if is_kept or finite(result, arguments) else "a result that is not finite"
    except Exception as error:
        signal.alarm(0)
        if is_own(error):
            return None
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:90]} ({where.filename}:{where.lineno})"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def replaced(draw, name, valid):
    """Return replacements for one or two arguments; none of those that take hours."""
    count = min(len(valid), draw.choice([1, 1, 1, 1, 2]))
    changed = {key: junk(draw) for key in draw.sample(sorted(valid), count)}
    large = [key for key, value in changed.items() if key in SIZES and is_large(value)]
    if large == ["num_samples"] and count == 1 and name != "sample":
        return {"num_samples": draw.choice([10**9, 2.0**40, np.int64(2**62), 10**30])}
    return {key: value for key, value in changed.items() if key not in large}


def fuzz(seed, count, folder):
    """Return what is wrong with some random calls."""
    draw, found, short = random.Random(seed), {}, reprlib.Repr()
    for number in range(count):
        calls = entries(folder)
        name = draw.choice(sorted(calls))
        call, valid = calls[name]
        changed = replaced(draw, name, valid)
        wrong = outcome(name, {**valid, **changed}, call)
        if wrong is not None:
            shown = {key: f"{type(v).__name__} {short.repr(v)}" for key, v in changed.items()}
            found[f"{seed}/{number} {name}({shown})"] = wrong
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in an empty folder, into which random paths may be written."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore")
def test_random_calls(folder):
    assert fuzz(0, 200, folder) == {}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(1, 21))
def test_random_calls_many_times(seed, folder):
    assert fuzz(seed, 1000, folder) == {}
