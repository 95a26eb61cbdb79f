"""`FitConfig` and `prepare`, without training."""

import dataclasses
import inspect

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

import pyro_vae as pv
from pyro_vae.training.setup import STEPS_WORTH_COMPILING, FitConfig, prepare
from tests.models.test_vae import small_vae


def test_the_settings_are_the_arguments_of_fit():
    arguments = dict(inspect.signature(pv.fit).parameters)
    for name in ("pair", "train", "validation"):
        del arguments[name]
    fields = {field.name: field.default for field in dataclasses.fields(FitConfig)}
    assert fields == {name: argument.default for name, argument in arguments.items()}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"patience": 2}, "patience needs validation data"),
        ({"objective": Trace_ELBO(), "num_particles": 2}, "belongs to the objective"),
        ({"on_nan": "ignore"}, "on_nan must be 'stop' or 'backtrack', got 'ignore'"),
        ({"resume": True}, "pass out="),
    ],
)
def test_settings_are_checked_without_a_pair(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        FitConfig.checked(has_validation=False, **settings)


def test_a_job_has_everything_ready_and_nothing_trained(tmp_path):
    vae, x = small_vae(), torch.ones(20, 1, 4, 4)
    before = [parameter.clone() for parameter in vae.parameters()]
    random = torch.get_rng_state()
    config = FitConfig.checked(has_validation=True, epochs=3, batch_size=8, out=tmp_path / "run")
    job = prepare(vae, x, x[:4], config)
    assert (job.batch_size, job.steps_per_epoch, job.total_steps) == (8, 3, 9)
    assert (job.curve, job.svi.compile) == ("train_elbo", False)
    assert job.sampler is not None
    assert job.folder.is_dir()
    assert list(job.folder.iterdir()) == []
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(old, new) for old, new in zip(before, vae.parameters(), strict=True))
    again = prepare(vae, x, x[:4], config)
    assert (job.data_seed, job.noise_seeds) == (again.data_seed, again.noise_seeds)
    assert job.settings == again.settings
    assert job.total_steps < STEPS_WORTH_COMPILING


def test_rows_chosen_by_the_program_are_refused_by_a_sentence():
    def rows(x):
        return pyro.plate("data", 10, subsample=torch.arange(4))

    def model(x):
        with rows(x) as index:
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def guide(x):
        with rows(x) as index:
            pyro.sample("z", dist.Normal(x[index], 1.0))

    with pytest.raises(pv.PairError, match="given batches of any size"):
        pv.fit(pv.Pair(model, guide), torch.randn(10), epochs=1, progress=False)
