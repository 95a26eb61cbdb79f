"""Fit a plain Pyro regression by SVI with an AutoGuide, and summarize it with ArviZ.

python examples/svi_to_arviz.py
"""

import arviz_stats
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal

import pyro_vae as pv


def model(x, y):
    """Linear regression of y on x with normal noise."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("people", len(x)):
        pyro.sample("y", dist.Normal(offset + slope * x, noise), obs=y)


pyro.set_rng_seed(0)
x = torch.linspace(-2, 2, 50)
y = 0.5 - 1.5 * x + 0.3 * torch.randn(50)

guide = AutoMultivariateNormal(model)
svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.998}), Trace_ELBO())
for _ in range(1500):
    svi.step(x, y)

tree = pv.from_pyro_svi(model, guide, model_args=(x, y), num_samples=1000, seed=0)
print(arviz_stats.summary(tree, kind="stats"))
print(arviz_stats.loo(tree, var_name="y"))  # valid here, because all latents are global
tree.to_netcdf("regression.nc")
