"""Careless arguments: every public call is right, or refuses in a sentence of this package."""

import inspect
import math
import random

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO

import pyro_vae as pv
from pyro_vae.arguments import (
    Instance,
    IsDevice,
    IsPath,
    Number,
    OneOf,
    Whole,
    checks_of,
)
from pyro_vae.arguments.checks import Each, Either
from pyro_vae.arguments.kinds import IsText
from pyro_vae.data.sources.schema import IsSchema
from pyro_vae.pairs.pair import IsPair, IsProgram
from pyro_vae.part import Role
from pyro_vae.tracking import IsTracker, Tracker

MLP = pv.networks.MLP
NAN, INF = math.nan, math.inf


def prior():
    return pv.priors.StandardNormal(2)


def likelihood():
    return pv.likelihoods.Normal(MLP(2, [4], 3))


def guide():
    return pv.guides.DiagonalNormal(MLP(3, [4], 4))


def vae():
    torch.manual_seed(0)
    return pv.VAE(prior(), likelihood(), guide())


X = torch.linspace(-1, 1, 24).reshape(8, 3)
CODE = pv.guides.Categorical(MLP(3, [], 2))

# Right arguments of every public function and constructor with checked arguments, by its name.
CALLS = {
    "fit": lambda: {"pair": vae(), "train": X, "epochs": 1, "progress": False},
    "evaluate": lambda: {"pair": vae(), "data": X, "num_samples": 2, "progress": False},
    "check": lambda: {"pair": vae(), "x": X},
    "report": lambda: {"vae": vae(), "fit": pv.Fit(), "test": X, "out": "run"},
    "ais": lambda: {"pair": vae(), "x": X, "num_temperatures": 2, "num_chains": 1},
    "bidirectional": lambda: {"pair": vae(), "x": X, "num_data": 2, "num_temperatures": 2},
    "collapse": lambda: {"pair": vae(), "x": X, "num_samples": 2},
    "diagnose": lambda: {
        "pair": vae(),
        "x": X,
        "num_samples": 30,
        "num_gap_data": 0,
        "num_simulations": 0,
    },
    "gaps": lambda: {"pair": vae(), "x": X, "num_steps": 1, "num_samples": 2},
    "mcmc_draws": lambda: {"pair": vae(), "x": X[:1], "num_samples": 2, "warmup_steps": 1},
    "sbc": lambda: {"pair": vae(), "x": X, "num_simulations": 2, "num_draws": 2},
    "from_pyro_svi": lambda: {
        "model": vae().model,
        "guide": vae().guide,
        "model_args": (X,),
        "num_samples": 2,
    },
    "load": lambda: {"path": "nowhere"},
    "resolve_device": lambda: {"device": "cpu"},
    "VAE": lambda: {"prior": prior(), "likelihood": likelihood(), "guide": guide()},
    "LadderVAE": lambda: {
        "prior": prior(),
        "decoders": [MLP(2, [], 4)],
        "likelihood": likelihood(),
        "encoders": [MLP(3, [], 4), MLP(4, [], 4)],
        "latent_dims": [2, 2],
    },
    "MixedVAE": lambda: {
        "discrete_prior": pv.priors.Categorical(2),
        "prior": prior(),
        "likelihood": pv.likelihoods.Normal(MLP(4, [], 3)),
        "discrete_guide": CODE,
        "guide": guide(),
    },
    "TensorBoard": lambda: {"folder": "board"},
    "ConditionalVAE": lambda: {
        "prior": prior(),
        "likelihood": pv.likelihoods.Normal(pv.networks.WithContext(MLP(3, [], 3), 2)),
        "guide": pv.guides.DiagonalNormal(pv.networks.WithContext(MLP(4, [], 4), 3)),
    },
    "Pair": lambda: {"model": vae().model, "guide": vae().guide},
    "SVI": lambda: {
        "model": vae().model,
        "guide": vae().guide,
        "optim": torch.optim.Adam,
        "loss": Trace_ELBO(),
    },
    "VAE.sample": lambda: {"self": vae(), "num_samples": 2},
    "VAE.save": lambda: {"self": vae(), "path": "model"},
    "VAE.impute": lambda: {"self": vae(), "x": X, "num_samples": 2},
    "networks.MLP": lambda: {"in_shape": 2, "hidden": [3], "out_shape": 2},
    "networks.ConvEncoder": lambda: {"in_shape": (1, 4, 4), "channels": [2], "out_shape": 2},
    "networks.ConvDecoder": lambda: {"in_shape": 2, "channels": [2], "out_shape": (1, 4, 4)},
    "networks.WithContext": lambda: {"network": MLP(4, [], 2), "in_shape": 3},
    "networks.WithMask": lambda: {"network": MLP(2, [], 2)},
    "networks.Standardized": lambda: {"network": MLP(2, [], 2), "shift": [0.0, 1.0], "unit": 2.0},
    "guides.LowRankNormal": lambda: {"encoder": MLP(2, [], 6), "rank": 1},
    "guides.Flow": lambda: {"encoder": MLP(3, [], 6), "latent_dim": 2},
    "priors.StudentT": lambda: {"latent_dim": 2, "df": 3.0},
    "priors.Dirichlet": lambda: {"latent_dim": 2, "concentration": 1.0},
    "priors.Fixed": lambda: {"distribution": prior()()},
    "priors.Flow": lambda: {"latent_dim": 2},
    "priors.MixtureOfGaussians": lambda: {"latent_dim": 2, "num_components": 2},
    "priors.VampPrior": lambda: {"guide": guide(), "num_pseudo_inputs": 2, "event_shape": 3},
    "likelihoods.Normal": lambda: {"decoder": MLP(2, [], 3), "scale": "learned", "unit": [1.0] * 3},
    "likelihoods.StudentT": lambda: {"decoder": MLP(2, [], 3), "scale": 1.0, "df": 3.0},
    "likelihoods.Categorical": lambda: {"decoder": MLP(2, [], 8), "num_levels": 4, "spacing": 1.0},
    "likelihoods.DiscretizedLogisticMixture": lambda: {
        "decoder": MLP(2, [], 6),
        "num_components": 2,
    },
    "likelihoods.NegativeBinomial": lambda: {"decoder": MLP(2, [], 3), "library_size": 9.0},
    "likelihoods.Columns": lambda: {"likelihoods": [likelihood()], "trunk": MLP(1, [], 2)},
    "likelihoods.Missing": lambda: {"likelihood": likelihood()},
    "objectives.Beta": lambda: {"beta": 1.0},
    "objectives.FreeBits": lambda: {"free_nats": 0.1},
    "objectives.ImportanceWeighted": lambda: {"num_particles": 2},
    "objectives.StickingTheLanding": lambda: {"num_particles": 2},
    "objectives.Linear": lambda: {"num_steps": 2},
    "objectives.Cyclic": lambda: {"period": 2},
    "data.load": lambda: {"name": "mnist-5k", "root": "nowhere", "download": False},
    "data.Dataset": lambda: {"values": X},
    "data.Dataset.hold_out": lambda: {"self": pv.data.Dataset(X), "count": 2},
    "data.bernoulli": lambda: {
        "pixels": torch.zeros(2, 2, dtype=torch.uint8),
        "generator": torch.Generator(),
    },
}

NO_NUMBERS = ["64", "", NAN, None, [], object, object(), torch.zeros(2, 2), {}, b"1"]
NO_OBJECTS = ["x", 3, 1.5, NAN, None, [], object(), torch.zeros(2)]


def careless(check):
    """Return arguments that a check does not accept."""
    if isinstance(check, Either):
        found = [value for each in check.checks for value in careless(each)]
        return [value for value in found if not accepts(check, value)]
    if isinstance(check, Each):
        return [3.5, "ab", object, [object()], [None], np.array(1.5)]
    values = {
        Whole: [*NO_NUMBERS, 1.5, INF, -1, True, np.float64(2.5), np.array(1.5), -0.5],
        Number: [*NO_NUMBERS, True, np.array(NAN), 1j],
        OneOf: ["foo", 7, None, object, [], NAN, np.array(2)],
        IsText: [3, None, object, ["a"], b"a"],
        IsPath: [3, 1.5, "", "a\0b", b"a", object, ["a"]],
        IsDevice: ["gpu", "cuda:99", 1.5, object, "", torch.zeros(1)],
        IsPair: [*NO_OBJECTS, pv.VAE, pv.Fit(), vae().model, torch.nn.Linear(2, 2)],
        IsProgram: [*NO_OBJECTS, pv.VAE],
        Role: [*NO_OBJECTS, pv.VAE, MLP, pv.guides.DiagonalNormal],
        Instance: NO_OBJECTS,
        IsSchema: [*NO_OBJECTS, pv.data.Column, X, [1], {"a": 1}],
        IsTracker: [*NO_OBJECTS, Tracker, pv.TensorBoard, vae()],
    }[type(check)]
    if isinstance(check, Number) and check.finite:
        values = [*values, INF, -INF]
    if isinstance(check, Whole) and check.maximum is not None:
        values = [*values, 2**70]
    if isinstance(check, Role):
        parts = {"network": MLP(2, [], 2), "prior": prior(), "guide": guide()}
        parts["likelihood"] = likelihood()
        values = [*values, *(part for role, part in parts.items() if role != check.role)]
    return [value for value in values if not accepts(check, value)]


def accepts(check, value):
    """Return whether a value is of an accepted kind, decided without the check's own code."""
    if isinstance(check, Either):
        return any(accepts(each, value) for each in check.checks) or (
            value is None if check.optional else False
        )
    if isinstance(check, Each):
        return isinstance(value, list) and not value
    if isinstance(check, Number):  # careless only for another check of a union
        return isinstance(value, int | float | np.ndarray) and value in (3, 1.5, 2, 3.5, 7)
    if isinstance(check, Role) and check.role == "guide":  # also a prior given y
        return isinstance(value, pv.guides.DiagonalNormal)
    if isinstance(check, Instance):
        return isinstance(value, check.kinds) or (check.functions and callable(value))
    if isinstance(check, IsSchema):
        return value is None
    return isinstance(check, IsText) and isinstance(value, str)


def target_of(name):
    found = pv
    for part in name.split("."):
        found = getattr(found, part)
    return found


def checks_of_call(name):
    target = inspect.unwrap(target_of(name))
    return checks_of(inspect.unwrap(target.__init__) if inspect.isclass(target) else target)


def sampled(values, seed, count=8):
    """Return a random subset with its positions. Over all arguments, each kind of value occurs."""
    return sorted(
        random.Random(seed).sample(list(enumerate(values)), min(count, len(values))),
        key=lambda cell: cell[0],
    )


CELLS = [
    pytest.param(name, argument, value, id=f"{name}-{argument}-{i}")
    for name in CALLS
    for argument, check in checks_of_call(name).items()
    for i, value in sampled(careless(check), f"{name}.{argument}")
]


@pytest.mark.thinned(3)
@pytest.mark.parametrize(("name", "argument", "value"), CELLS)
def test_careless_arguments_are_named_before_any_work(name, argument, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {**CALLS[name](), argument: value}
    with pytest.raises(ValueError, match=argument) as raised:
        target_of(name)(**arguments)
    assert raised.type.__module__.startswith("pyro_vae.")
    assert not list(tmp_path.iterdir())


def public_callables():
    """Yield the names of the public functions and constructors with parameters."""
    spaces = ("data", "guides", "likelihoods", "networks", "objectives", "plots", "priors")
    for name in pv.__all__:
        yield name
    for space in spaces:
        for name in getattr(target_of(space), "__all__", ()):
            yield f"{space}.{name}"


@pytest.mark.parametrize("name", sorted(public_callables()))
def test_every_setting_of_a_public_call_is_checked(name):
    target = target_of(name)
    results = ("Evaluation", "Fit", "Annealed", "Collapse", "Gaps", "RefinedPosterior", "TrustCard")
    if not callable(target) or name.endswith("Error") or name in results:
        return
    if inspect.isclass(target) and issubclass(target, Exception):
        return
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    try:
        annotations = inspect.get_annotations(function)
    except TypeError:
        return
    plain = {
        argument
        for argument, annotation in annotations.items()
        if argument not in ("return", "max_plate_nesting") and annotation in (int, float, bool, str)
    }
    if plain:
        wrapped = target.__init__ if inspect.isclass(target) else target
        assert hasattr(wrapped, "__wrapped__") or "__post_init__" in vars(target), plain
    # A bare number type has no range.
    assert not {argument for argument in plain if annotations[argument] in (int, float)}


@pytest.mark.parametrize("convert", [np.int64, np.array, torch.tensor, float, np.uint8])
def test_whole_numbers_of_other_types_are_the_same_numbers(convert, tmp_path):
    runs = [
        pv.fit(vae(), X, epochs=number(2), seed=number(3), batch_size=number(4), out=tmp_path / out)
        for number, out in ((int, "int"), (convert, "other"))
    ]
    assert [entry["train_elbo"] for entry in runs[0].history] == [
        entry["train_elbo"] for entry in runs[1].history
    ]
    assert runs[0].settings == runs[1].settings
    shapes = [MLP(number(2), [number(3)], number(4)).build_arguments for number in (int, convert)]
    assert shapes[0] == shapes[1]


BAD_DATA = {
    "list": X.tolist(),
    "text": "people.csv",
    "number": 3,
    "class": torch.Tensor,
    "none": None,
    "integers": X.long(),
    "objects": np.array([["a", 1.0]] * 8, dtype=object),
    "no dimensions": np.array(1.0),
    "empty": X[:0],
    "infinite": X / 0,
    "complex": X + 1j,
    "other width": X[:, :2],
    "not a number": X * NAN,
    "without values": X.to("meta"),
}
FOREIGN = ("mat1", "must be Tensor", "object has no attribute", "Expected parameter", "unsupported")


@pytest.mark.parametrize("data", BAD_DATA)
@pytest.mark.parametrize(
    "name", ["fit", "evaluate", "check", "ais", "collapse", "gaps", "diagnose"]
)
def test_bad_data_are_refused(name, data):
    arguments = CALLS[name]()
    arguments[list(arguments)[1]] = BAD_DATA[data]
    with pytest.raises(ValueError, match=r".") as raised:
        target_of(name)(**arguments)
    assert raised.type.__module__.startswith("pyro_vae."), raised.value
    assert not any(text in str(raised.value) for text in FOREIGN)


@pytest.mark.parametrize("data", BAD_DATA)
@pytest.mark.parametrize("method", ["encode", "decode", "reconstruct", "impute"])
def test_bad_inputs_of_a_vae_are_refused(method, data):
    if (method, data) == ("decode", "other width"):
        return  # two latents
    with pytest.raises(ValueError, match=r".") as raised:
        getattr(vae(), method)(BAD_DATA[data])
    assert raised.type.__module__.startswith("pyro_vae."), raised.value
    assert not any(text in str(raised.value) for text in FOREIGN)


@pytest.mark.parametrize("kind", ["tensor", "numpy", "memmap", "loader", "tuple"])
def test_doubles_are_converted_for_a_float32_model(kind, tmp_path):
    double = X.double()
    if kind == "memmap":
        array = np.memmap(tmp_path / "x", np.float64, "w+", shape=(8, 3))
        array[:] = double
    data = {
        "tensor": double,
        "numpy": double.numpy(),
        "memmap": array if kind == "memmap" else None,
        "loader": torch.utils.data.DataLoader(double, batch_size=4),
        "tuple": (double,),
    }[kind]
    pair = vae()
    expected = pv.evaluate(pair, X, num_samples=3)
    with pytest.warns(pv.data.DataWarning, match="float64.*float32"):
        scores = pv.evaluate(pair, data, num_samples=3)
    np.testing.assert_array_equal(scores.elbo, expected.elbo)
    with pytest.warns(pv.data.DataWarning, match="float64.*float32"):
        pv.fit(pair, data, epochs=1)


@pytest.mark.parametrize("method", ["encode", "reconstruct", "impute"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_vae_takes_numpy_arrays(method, dtype):
    pair = vae()
    torch.manual_seed(1)
    right = getattr(pair, method)(X)
    torch.manual_seed(1)
    if dtype is np.float64:
        with pytest.warns(pv.data.DataWarning, match="float64"):
            found = getattr(pair, method)(X.numpy().astype(dtype))
    else:
        found = getattr(pair, method)(X.numpy())
    right, found = (
        getattr(value, "mean", None) if method == "encode" else value for value in (right, found)
    )
    torch.testing.assert_close(found, right, rtol=0, atol=0)


@pytest.mark.parametrize("row", [0, 6])  # among the first rows of a chunk, and the last ones
@pytest.mark.parametrize("masked", ["likelihood", "encoder", "both"])
@pytest.mark.parametrize("name", ["fit", "evaluate", "ais", "collapse", "gaps", "mcmc_draws"])
def test_missing_entries_need_a_likelihood_and_an_encoder_for_them(name, masked, row):
    arguments = CALLS[name]()
    x = torch.cat([X, X + 1])
    x[row + 8, 1] = NAN
    encoder = MLP(3, [4], 4) if masked == "likelihood" else pv.networks.WithMask(MLP(6, [4], 4))
    parts = {"guide": pv.guides.DiagonalNormal(encoder)}
    if masked != "encoder":
        parts["likelihood"] = pv.likelihoods.Missing(likelihood())
    first, second = list(arguments)[:2]
    arguments |= {first: vae().replace(**parts), second: x[7:9] if name == "mcmc_draws" else x}
    if masked == "both" or (name, masked) == ("ais", "likelihood"):  # AIS does not use the guide
        target_of(name)(**arguments)
        return
    if name == "mcmc_draws" and row:
        return  # a datum without missing entries
    missing = "NaN.*likelihoods.Missing" if masked == "encoder" else "NaN.*networks.WithMask"
    with pytest.raises(pv.PairError, match=missing):
        target_of(name)(**arguments)
