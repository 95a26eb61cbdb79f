"""The guards of a compiled step read the values of the user's programs, and not too many."""

import functools
import warnings
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.engine import guards
from pyro_vae.engine.compilation_warning import CompilationWarning
from tests.support.catalogue import EVENT_SHAPE, GUIDES, LIKELIHOODS, PRIORS
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
@pytest.mark.thinned(8)
@pytest.mark.parametrize("name", HOLDERS)
@pytest.mark.parametrize("kind", [pv.SVI, OwnSVI, pyro.infer.SVI])
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
            svi.model.__self__.loc.settings = [
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


class Doubled(torch.distributions.transforms.Transform):
    """A transform with torch's caches; some versions keep the inverse by a weak reference."""

    domain = codomain = torch.distributions.constraints.real
    bijective = True
    sign = 1

    def _call(self, x):
        self._inv = weakref.ref(self.inv) if self._inv is None or self._inv() is None else self._inv
        return 2 * x

    @property
    def inv(self):
        return torch.distributions.transforms.AffineTransform(0.0, 0.5)

    def log_abs_det_jacobian(self, x, y):
        return torch.full_like(x, 2.0).log()

    def _inverse(self, y):
        return y / 2


@pytest.mark.usefixtures("graph_only")
def test_caches_of_transforms_are_no_settings():
    transform = Doubled(cache_size=1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample(
                "z", dist.TransformedDistribution(dist.Normal(0.0, x.new_ones(())), [transform])
            )
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    svi = pv.SVI(model, guide, ADAM, compile=True)
    for _ in range(10):
        svi.step(torch.ones(5))
    assert svi.num_compiled_steps == 9


def support(described):
    inner = described.support
    while hasattr(inner, "base_constraint"):
        inner = inner.base_constraint
    return str(inner), described.event_shape


@pytest.mark.usefixtures("graph_only")
@pytest.mark.thinned(7)
@pytest.mark.parametrize(
    ("prior", "guide"),
    [(name, None) for name in PRIORS] + [("StandardNormal", name) for name in GUIDES],
)
def test_the_first_step_of_a_resumed_run_is_compiled(prior, guide):
    x = torch.rand(1, *EVENT_SHAPE)
    guides = {name: support(line.build()(x)) for name, line in GUIDES.items()}
    wanted = support(PRIORS[prior].build()())
    if guide is None:  # any that fits and has gradients
        fitting = [n for n in guides if guides[n] == wanted and GUIDES[n].reparameterized]
        guide = next(iter(fitting), None)
    if guide is None or guides[guide] != wanted or not GUIDES[guide].reparameterized:
        pytest.skip("no guide with gradients has the support of this prior")

    def started(state=None):
        pyro.clear_param_store()
        torch.manual_seed(0)
        first = PRIORS[prior].build()
        likelihood = LIKELIHOODS["Normal"].build(wanted[1][0])
        vae = pv.VAE(first, likelihood, GUIDES[guide].build())
        optimizer = torch.optim.Adam(vae.parameters())
        if state is not None:
            vae.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])
        return vae, optimizer, pv.SVI(vae.model, vae.guide, optimizer, compile=True)

    data = torch.rand(20, *EVENT_SHAPE)
    vae, optimizer, svi = started()
    for _ in range(3):
        svi.step(data)
    assert svi.num_compiled_steps == 2
    _, _, resumed = started((vae.state_dict(), optimizer.state_dict()))
    resumed.step(data)
    assert resumed.num_compiled_steps == 1
