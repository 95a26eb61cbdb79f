"""A step of `SVI` does not replace the rows that a model gives to a plate by `subsample=`."""

import functools

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal

import pyro_vae as pv

N, SOME, OTHERS = 6, torch.tensor([1, 4, 5]), torch.tensor([0, 4, 5])
ORDERED, REVERSED = torch.arange(N), torch.arange(N).flip(0)
X = torch.linspace(-1, 1, N)
PARTICLES = functools.partial(Trace_ELBO, num_particles=2)
VECTORIZED = functools.partial(PARTICLES, vectorize_particles=True)
OBJECTIVES = {
    **{o.__name__: o for o in (Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO)},
    **{"two particles": PARTICLES, "a plate of two particles": VECTORIZED},
    **{"importance weighted": functools.partial(pv.objectives.ImportanceWeighted, num_particles=2)},
    **{"sticking the landing": pv.objectives.StickingTheLanding},
}


def model_of(rows):
    def model(x):
        with pyro.plate("data", N, subsample=rows):
            z = pyro.sample("z", Normal(torch.zeros(()), 1.0))
            pyro.sample("x", Normal(z, 1.0), obs=x[rows])

    return model


def guide_of(**which):
    def guide(x):
        loc = pyro.param("loc", torch.zeros(N))
        with pyro.plate("data", N, **which) as rows:
            pyro.sample("z", Normal(loc[rows], 1.0))

    return guide


def plates_of(rows):
    return lambda x: pyro.plate("data", N, subsample=rows)


# name: (rows of the model, guide, whether they agree)
PAIRS = {
    "AutoNormal": (SOME, AutoNormal, False),
    "create_plates": (SOME, functools.partial(AutoNormal, create_plates=plates_of(SOME)), True),
    "others": (SOME, lambda model: guide_of(subsample=OTHERS), False),
    "the same": (SOME, lambda model: guide_of(subsample=SOME.clone()), True),
    "sampled": (SOME, lambda model: guide_of(subsample_size=3), False),
    "another order": (REVERSED, lambda model: guide_of(), False),
    "all": (ORDERED, lambda model: guide_of(), True),
}


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_first_step_refuses_other_rows(name, objective):
    rows, make, agree = PAIRS[name]
    model = model_of(rows)
    guide = make(model)
    optim = functools.partial(torch.optim.SGD, lr=0.1)
    svi = pv.SVI(model, guide, optim, OBJECTIVES[objective](), compile=False)
    if agree:
        svi.step(X)
        return
    found = []
    for _ in range(2):
        with pytest.raises(pv.PairError, match=r"'data' its rows by subsample=.*create_plates"):
            svi.step(X)
        found.append([p.detach().clone() for p in pyro.get_param_store().values()])
    assert found[0]
    assert all(map(torch.equal, *found)), "a step is taken"
