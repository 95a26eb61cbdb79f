# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own model and guide in plain Pyro
#
# `pv.fit`, `pv.evaluate`, `pv.refine` and `pv.from_pyro_svi` accept any object with a Pyro `.model`
# and a `.guide`. This tutorial writes both by hand, for data with a known answer.

# %%
import pyro
import pyro.distributions as dist
import torch

import pyro_vae as pv

torch.manual_seed(0)
weights = torch.tensor([[1.0, 0.5, -0.3, 0.0], [0.2, -0.8, 0.6, 1.0]])
x = torch.randn(2000, 2) @ weights + 0.5 * torch.randn(2000, 4)
train, test = x[:1600], x[1600:]

# %% [markdown]
# The model is probabilistic PCA: $z \sim \mathcal N(0, I)$, $x \sim \mathcal N(Wz + b, s^2 I)$. The
# networks are registered by `pyro.module`, as in any Pyro program. Every row is independent given
# $z$, which the plate declares. `.to_event(1)` declares the entries of one row as one event.

# %%
decoder = pv.networks.MLP(2, [], 4)
encoder = pv.networks.MLP(4, [32], 4)


def model(x):
    pyro.module("decoder", decoder)
    noise = pyro.param("noise", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decoder(z), noise).to_event(1), obs=x)


def guide(x):
    pyro.module("encoder", encoder)
    loc, log_scale = encoder(x).chunk(2, dim=-1)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


pair = pv.Pair(model, guide)
print(pv.check(pair, train[:8]))

# %%
fit = pv.fit(pair, train, epochs=40, learning_rate=5e-3, progress=False)
result = pv.evaluate(pair, test, num_samples=500)
print(result)

# %% [markdown]
# For this model, $\log p(x)$ has a closed form, $\mathcal N(x;\, b, WW' + s^2 I)$. The importance
# sampling estimate should agree with it.

# %%
with torch.no_grad():
    b = decoder(torch.zeros(2))
    w = decoder(torch.eye(2)) - b
    covariance = w.T @ w + pyro.param("noise") ** 2 * torch.eye(4)
    exact = dist.MultivariateNormal(b, covariance).log_prob(test)
print(f"exact log p(x): {exact.mean():.4f}; estimate: {result.mean('log_likelihood'):.4f}")
assert abs(exact.mean() - result.mean("log_likelihood")) < 0.02

# %% [markdown]
# ## The posterior, for ArviZ

# %%
tree = pv.from_pyro_svi(model, guide, model_args=(test[:50],), num_samples=200)
tree
