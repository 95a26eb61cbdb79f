"""Every public entry, on whatever is given to it: a finite result or an error of our own.

Never a traceback that ends in torch, numpy or Pyro, and never a number that is silently wrong.
"""

import functools
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyro_vae as pv
from pyro_vae.checkpointing import model_folder as checkpoints
from tests.models.test_vae import small_vae

PACKAGE = Path(pv.__file__).parent
DTYPES = [*["float32"] * 6, "float16", "float64", "int64", "uint8", "bool", "complex64"]
SHAPES = st.one_of(
    st.integers(1, 12).map(lambda num_data: (num_data, 1, 4, 4)),
    st.integers(2, 9).map(lambda num_data: (num_data, 1, 4, 4)),
    st.lists(st.integers(0, 5), max_size=4).map(tuple),
)
VALUES = [0.0, 1.0, 0.5, -1.0, 2.0, 255.0, 1e30, 6e4, float("nan"), float("inf"), -float("inf")]
JUNK = [None, "mnist", 3, 2.5, [], [1.0, 2.0], {}, (), object]


@st.composite
def arrays(draw):
    """Arrays of any shape, type, content and layout; tensors or numpy's; or no array at all."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.sampled_from(JUNK))
    shape, dtype = draw(SHAPES), draw(st.sampled_from(DTYPES))
    generator = np.random.default_rng(draw(st.integers(0, 2**16)))
    array = (generator.random(shape) < 0.5).astype("float64")
    for value in draw(st.one_of(st.just([]), st.lists(st.sampled_from(VALUES), max_size=2))):
        chosen = generator.random(shape) < draw(st.sampled_from([0.05, 1.0]))
        array = np.where(chosen, value, array)
    with np.errstate(all="ignore"):
        array = np.asarray(array).astype(dtype, subok=False)
    array = np.array(array)
    layout = draw(st.sampled_from(["plain", "strided", "reversed", "read-only", "transposed"]))
    if layout == "strided":
        array = np.repeat(array, 2, axis=0)[::2] if array.ndim else array
    elif layout == "reversed":
        array = array[::-1] if array.ndim else array
    elif layout == "transposed":
        array = array.swapaxes(-1, -2) if array.ndim > 1 else array
    if draw(st.booleans()):
        tensor = torch.from_numpy(array.copy())
        strided = layout == "strided" and tensor.dim()
        return tensor.repeat_interleave(2, 0)[::2] if strided else tensor
    array.flags.writeable = layout != "read-only"
    return array


def normal_vae():
    return small_vae().replace(likelihood=pv.likelihoods.Normal(pv.networks.MLP(3, [4], (1, 4, 4))))


def missing_vae():
    network = pv.networks.WithMask(pv.networks.MLP((2, 4, 4), [4], 6))
    vae = normal_vae()
    return vae.replace(
        likelihood=pv.likelihoods.Missing(vae.model.likelihood),
        guide=pv.guides.DiagonalNormal(network),
    )


@functools.cache
def pairs():
    torch.manual_seed(0)
    return {"Bernoulli": small_vae(), "Normal": normal_vae(), "Missing": missing_vae()}


def finite(*results):
    for values in results:
        assert np.isfinite(np.asarray(values)).all()


def do_check(vae, x):
    vae.check(x)


def do_evaluate(vae, x):
    scores = pv.evaluate(vae, x, num_samples=3)
    finite(scores.elbo, scores.log_likelihood, scores.reconstruction, scores.kl)


def do_fit(vae, x):
    fit = pv.fit(vae, x, epochs=1, batch_size=5, learning_rate=1e-6)
    finite(fit.history[0]["train_elbo"], *(p.detach() for p in vae.parameters()))


def do_from_pyro_svi(vae, x):
    tree = pv.from_pyro_svi(vae.model, vae.guide, model_args=(x,), num_samples=3, seed=0)
    finite(tree["log_likelihood/x"], tree["sample_stats/log_weight"], tree["posterior/z"])


def do_dataset(vae, x):
    data = pv.data.Dataset(pv.data.as_tensor(x))
    assert not torch.isinf(data[:]).any()  # NaN entries are missing ones, and stay


def do_impute(vae, x):
    finite(vae.impute(x, num_samples=2))


def do_diagnose(vae, x):
    card = pv.diagnose(vae, x, num_samples=5, num_gap_data=0, num_simulations=0)
    finite(card.per_datum["elbo"], card.per_datum["log_likelihood"])


ENTRIES = {
    name: globals()[f"do_{name}"]
    for name in ("check", "evaluate", "fit", "from_pyro_svi", "dataset", "impute", "diagnose")
}


def gives_a_result_or_an_error_of_ours(call):
    """Return whether it gave a result."""
    try:
        call()
        return True
    except Exception as error:
        if type(error).__module__.startswith("pyro_vae"):
            return False
        where = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        # A warning, an error under pytest, says what cannot be relied on.
        if not (
            isinstance(error, ValueError | TypeError | UserWarning) and PACKAGE in where.parents
        ):
            raise
        return False


repeatable = functools.partial(
    settings,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def fuzz(entry, count):
    results = []

    @repeatable(max_examples=count)
    @given(st.sampled_from(sorted(pairs())), arrays())
    def case(pair, x):
        entered = gives_a_result_or_an_error_of_ours(lambda: ENTRIES[entry](pairs()[pair], x))
        results.append(entered)

    case()
    assert 0.02 < np.mean(results) < 0.9  # both were seen


COUNTS = {"check": 80, "evaluate": 60, "fit": 40, "from_pyro_svi": 50, "dataset": 80, "impute": 60,
          "diagnose": 40}  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES)
def test_whatever_is_given_to_an_entry(entry):
    fuzz(entry, COUNTS[entry])


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES)
def test_whatever_is_given_to_an_entry_many_times(entry):
    fuzz(entry, 20 * COUNTS[entry])


def fuzz_load(count, folder):
    small_vae().save(folder)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    weights = next(pv.load(folder).parameters()).detach().clone()

    @repeatable(max_examples=count)
    @given(
        st.sampled_from(sorted(whole)),
        st.integers(0, 10**4),
        st.binary(min_size=0, max_size=8),
        st.sampled_from([0, 1, 8, 10**6]),
        st.booleans(),
    )
    def case(name, start, replacement, length, with_sums):
        data = whole[name]
        start %= len(data) + 1
        files = {**whole, name: data[:start] + replacement + data[start + length :]}
        for other, content in files.items():
            (folder / other).write_bytes(content)
        if not with_sums:  # as a forger would leave it
            described = files[checkpoints.ARCHITECTURE].replace(b'"format": 3', b'"format": 1')
            (folder / checkpoints.ARCHITECTURE).write_bytes(described)
            (folder / "SHA256SUMS").unlink()

        def load():
            loaded = next(pv.load(folder).parameters())
            if with_sums:
                assert torch.equal(loaded, weights)

        gives_a_result_or_an_error_of_ours(load)

    case()


def test_damaged_models_load_or_are_refused(tmp_path):
    fuzz_load(100, tmp_path / "model")


@pytest.mark.slow
def test_damaged_models_load_or_are_refused_many_times(tmp_path):
    fuzz_load(2000, tmp_path / "model")
