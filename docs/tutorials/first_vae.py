# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From the paper's equations to a picture
#
# A variational autoencoder has a latent $z$ for each datum $x$. The generative model is
# $p(z)\,p(x\mid z)$: a simple prior, and a likelihood with parameters that a neural network, the
# decoder, computes from $z$. The posterior $p(z\mid x)$ has no closed form. A second network, the
# encoder, computes the parameters of an approximation $q(z\mid x)$, the *guide*.
#
# Kingma & Welling (2013) train both by maximizing a lower bound on $\log p(x)$, the ELBO (eq. 2):
#
# $$\mathcal L = \mathbb E_{q(z\mid x)}\bigl[\log p(x, z) - \log q(z\mid x)\bigr] \le \log p(x).$$

# %%
import torch

import pyro_vae as pv

torch.manual_seed(0)
train, test = pv.data.load("mnist-5k", binarize="dynamic")  # 5,000 digits that need no download
train, validation = train.hold_out(0.1)
train.event_shape, len(train), len(validation), len(test)

# %% [markdown]
# ## Three parts
#
# Each part is a module that returns a distribution. Two latents are few, but they can be drawn on a
# plane.

# %%
vae = pv.VAE(
    prior=pv.priors.StandardNormal(2),
    likelihood=pv.likelihoods.Bernoulli(
        pv.networks.MLP(2, [200], (1, 28, 28), output_bias=train.log_odds())
    ),
    guide=pv.guides.DiagonalNormal(pv.networks.MLP((1, 28, 28), [200], 2 * 2)),
)
print(vae.check(train[:8]))

# %% [markdown]
# `check` runs model and guide once and prints their sites: `z` is latent in both, `x` is observed.
# The guide samples $z = \mu(x) + \sigma(x)\,\epsilon$ with $\epsilon \sim \mathcal N(0, I)$, so
# gradients of the ELBO with respect to the encoder pass through the sample (section 2.4 of the
# paper). One sample for each datum is enough, because each step averages over a batch.
#
# ## Training

# %%
fit = pv.fit(vae, train, validation=validation, epochs=40, learning_rate=5e-3, progress=False)
pv.plots.learning_curve(fit.history, "mnist-5k, 2 latents, seed 0")

# %% [markdown]
# Both curves should rise. If the validation curve falls while the training curve rises, the model
# overfits.
#
# ## Scores
#
# The ELBO is a lower bound. Importance sampling with K samples of the guide gives a tighter bound
# on log p(x). Its k-hat shows for how many data that estimate can be trusted; see
# [Can I believe it?](believe).

# %%
print(pv.evaluate(vae, test, num_samples=100))

# %% [markdown]
# ## The latent plane
#
# The decoder turns each point of the plane into an image. The grid has the quantiles of the prior
# as coordinates, as in Figure 4 of the paper.

# %%
quantiles = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.05, 0.95, 12))
grid = torch.stack(torch.meshgrid(quantiles, -quantiles, indexing="xy"), dim=-1)
with torch.no_grad():
    images = vae.decode(grid).mean
pv.plots.mosaic(images, "E[x|z] over the quantiles of the prior")

# %% [markdown]
# ## Walk in it
#
# Drag the point over the encoded test digits, or move a slider: the decoder runs in this page.
# Choose two digits to see the path between them, and colour the map by k-hat to see where the
# encoder fails. `explorer.save("explorer.html")` writes the same as a page of its own; see
# [explore the latent space](../howto/explore).

# %%
pv.explorer.Explorer(vae, test, num_data=400)

# %% [markdown]
# ## Next
#
# - Another prior, likelihood or guide is another argument: [swap a part](../howto/swap_a_part).
# - The same model in plain Pyro: [your own model and guide](own_model).
# - The paper, equation by equation: [the paper's page](../aevb).
