"""`is_elbo`, and the keys of the history that depend on it."""

from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO

import pyro_vae as pv
from pyro_vae.objectives import (
    Beta,
    FreeBits,
    ImportanceWeighted,
    Linear,
    StickingTheLanding,
    is_elbo,
)
from tests.support.objectives import imperfect_vae


def test_objectives_say_what_they_are():
    assert is_elbo(Trace_ELBO())
    assert is_elbo(TraceEnum_ELBO())
    assert is_elbo(StickingTheLanding())
    assert is_elbo(ImportanceWeighted(1))
    assert not is_elbo(ImportanceWeighted(2))
    assert not is_elbo(RenyiELBO(num_particles=2))
    assert not is_elbo(FreeBits(0.1))
    assert not is_elbo(Beta(1.0))
    assert ImportanceWeighted(2).is_bound
    assert Beta(4.0).is_bound
    assert not Beta(0.5).is_bound
    assert not Beta(Linear(10)).is_bound


def test_fit_calls_elbo_only_what_is_the_elbo():
    vae, x = imperfect_vae()
    for objective, key in [
        (None, "train_elbo"),
        (StickingTheLanding(), "train_elbo"),
        (Beta(4.0), "train_objective"),
        (ImportanceWeighted(3), "train_objective"),
    ]:
        fit = pv.fit(vae, x, validation=x, epochs=1, objective=objective)
        assert {"train_elbo", "train_objective"} & set(fit.history[0]) == {key}
        assert "validation_elbo" in fit.history[0]
