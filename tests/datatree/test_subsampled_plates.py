"""Trees of programs that subsample their data: right for all data, or refused by a sentence."""

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv

N = 12
X = torch.randn(N, generator=torch.Generator().manual_seed(0)).double()
EXACT = dist.Normal(0.0, 2**0.5).log_prob(X).numpy()


def prior(x):
    return dist.Normal(x.new_zeros(()), 1.0)


PLATES = {
    "subsample_size of N": lambda x, size: pyro.plate("data", N, subsample_size=size),
    "subsample_size of len(x)": lambda x, size: pyro.plate("data", len(x), subsample_size=size),
    "subsample": lambda x, size: pyro.plate("data", N, subsample=torch.arange(size)),
    "whole": lambda x, size: pyro.plate("data", N),
}


def local(model_plate, guide_plate, size):
    """x ~ N(z, 1), with the exact guide."""

    def model(x):
        with PLATES[model_plate](x, size) as i:
            z = pyro.sample("z", prior(x))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[i])

    def guide(x):
        with PLATES[guide_plate](x, size) as i:
            pyro.sample("z", dist.Normal(x[i] / 2, 0.5**0.5))

    return model, guide


def outside():
    plate = pyro.plate("data", N, subsample_size=3)
    return (
        lambda x: in_plate(plate, x),
        lambda x: guide_in_plate(plate, x),
    )


def in_plate(plate, x):
    with plate as i:
        pyro.sample("x", dist.Normal(pyro.sample("z", prior(x)), 1.0), obs=x[i])


def guide_in_plate(plate, x):
    with plate as i:
        pyro.sample("z", dist.Normal(x[i] / 2, 0.5**0.5))


def in_a_loop(size):
    def model(x):
        for i in pyro.plate("data", N, subsample_size=size):
            z = pyro.sample(f"z_{i}", prior(x))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

    def guide(x):
        for i in pyro.plate("data", N, subsample_size=size):
            pyro.sample(f"z_{i}", dist.Normal(x[i] / 2, 0.5**0.5))

    return model, guide


def tree(model, guide, args=(X,), **settings):
    return pv.from_pyro_svi(
        model, guide, model_args=args, num_samples=4, seed=0,
        groups=("posterior", "sample_stats"), **settings,
    )  # fmt: skip


@pytest.mark.parametrize("size", [1, 5, N])
@pytest.mark.parametrize(("model_plate", "guide_plate"), list(itertools.product(PLATES, PLATES)))
def test_local_latents(model_plate, guide_plate, size):
    programs = local(model_plate, guide_plate, size)
    fixed_rows = "subsample" in (model_plate, guide_plate) and size < N
    model_alone = model_plate != "whole" and guide_plate == "whole" and size < N
    if fixed_rows or model_alone:
        with pytest.raises(pv.PairError, match=r"rows|subsample_size does not match"):
            tree(*programs)
    else:  # the guide is exact, so that every weight is p(x)
        log_weight = tree(*programs)["sample_stats/log_weight"].to_numpy()
        np.testing.assert_allclose(log_weight, EXACT[None, None].repeat(4, 1), atol=1e-12)
    with pytest.raises(pv.PairError):
        tree(*programs, posterior="resampled")


REFUSED = {
    "a plate of the module": (outside, "created outside of the program.*create it inside"),
    "a loop": (lambda: in_a_loop(3), "visits a part of the data.*use it as a context"),
}


@pytest.mark.parametrize("posterior", ["guide", "resampled"])
@pytest.mark.parametrize("name", REFUSED)
def test_plates_that_cannot_visit_all_data(name, posterior):
    make, sentence = REFUSED[name]
    with pytest.raises(pv.PairError, match=sentence):
        tree(*make(), posterior=posterior)


def test_a_loop_over_all_data_is_run():
    weights = tree(*in_a_loop(N))["sample_stats/log_weight"].to_numpy()
    np.testing.assert_allclose(weights, EXACT.sum(), atol=1e-12)


RESAMPLED = {
    "subsample_size of N": (*local("subsample_size of N", "subsample_size of N", 5), (X,)),
    "subsample_size of len(x)": (
        *local("subsample_size of len(x)", "subsample_size of len(x)", 1), (X,),
    ),
    "a fixed number of rows": (*local("whole", "whole", N), (X,)),
    "a mean over rows": (
        lambda x: in_plate(pyro.plate("data", len(x)), x - x.mean()),
        lambda x: guide_in_plate(pyro.plate("data", len(x)), x), (X,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RESAMPLED)
def test_a_refined_posterior_runs_on_parts_of_the_data(name):
    model, guide, args = RESAMPLED[name]
    with pytest.raises(pv.PairError, match=r"on parts of the data.*pyro.plate\('data', len\(x\)\)"):
        tree(model, guide, args, posterior="resampled")


def test_a_refined_posterior_needs_arguments():
    model, guide = local("subsample_size of N", "subsample_size of N", 5)
    with pytest.raises(pv.PairError, match="needs model_args of tensors"):
        tree(lambda: model(X), lambda: guide(X), (), posterior="resampled")


def test_a_minibatch_of_more_data_is_refined():
    def model(x):
        with pyro.plate("data", 1000, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", prior(x)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 1000, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    found = tree(model, guide, posterior="resampled")["sample_stats/log_weight"]
    weights = np.exp(found.to_numpy()[0] - EXACT)
    error = weights.std(0) / len(weights) ** 0.5
    assert (np.abs(weights.mean(0) - 1) < 5 * error).all()
