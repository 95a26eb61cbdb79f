# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From ELBO to "can I believe it?"
#
# An ELBO says nothing about a single datum. This tutorial follows one model from its bound to a
# corrected posterior with a certificate for each datum.

# %%
import arviz_plots
import arviz_stats
import numpy as np
import pandas as pd
import torch

import pyro_vae as pv

torch.manual_seed(0)
train, test = pv.data.load("mnist-5k", binarize="dynamic")
decoder = pv.networks.MLP(10, [200], (1, 28, 28), output_bias=train.log_odds())
encoder = pv.networks.MLP((1, 28, 28), [200], 2 * 10)
vae = pv.VAE(
    pv.priors.StandardNormal(10),
    pv.likelihoods.Bernoulli(decoder),
    pv.guides.DiagonalNormal(encoder),
)
fit = pv.fit(vae, train, epochs=15, learning_rate=2e-3, progress=False)
x = test[:60]

# %% [markdown]
# ## 1. The bound, and the weights behind it
#
# Each sample $z_k \sim q(z\mid x)$ has a weight $w_k = p(x, z_k) / q(z_k\mid x)$. The mean of
# $\log w$ is the ELBO; the log of the mean of $w$ estimates $\log p(x)$. If q is the posterior, all
# weights are equal. If a few weights dominate, the mean depends on them, and on those that were not
# drawn.

# %%
guide_scores = pv.evaluate(vae, x, num_samples=500, seed=1)
print(guide_scores)

# %% [markdown]
# ## 2. k-hat: the tail of the weights
#
# k-hat is the fitted tail index of the weights of one datum (Vehtari et al. 2024). Below 0.7 the
# mean of the weights converges in practice; above, it does not, and the estimate of log p(x) is
# too low by an unknown amount.

# %%
khat = np.asarray(guide_scores.khat)
print(f"k-hat above 0.7 for {np.mean(khat > 0.7):.0%} of the data; median {np.median(khat):.2f}")

# %% [markdown]
# ## 3. The cure
#
# `pv.refine` finds a better proposal for each datum: the modes and curvatures of $p(z\mid x)$,
# Student t distributions there, and rounds of adaptive importance sampling. The weights that are
# reported come from fresh samples.

# %%
refined = pv.refine(vae, x, num_samples=500, seed=1)
refined_khat = np.asarray(refined.khat)
scores = pv.evaluate(vae, x, num_samples=500, proposal="refined", seed=1)
print(f"k-hat above 0.7 for {np.mean(refined_khat > 0.7):.0%} of the data")
print(f"log p(x): {guide_scores.mean('log_likelihood'):.2f} from the guide,")
print(f"          {scores.mean('log_likelihood'):.2f} from the refined proposal (a higher bound)")

# %% [markdown]
# ## 4. The certificate
#
# The data that are still above the limit are named. Leave them out, or quote their log p(x) as a
# bound only.

# %%
uncured = np.flatnonzero(refined_khat > 0.7)
print("still unreliable:", uncured.tolist())

# %% [markdown]
# ## 5. The posterior in ArviZ
#
# `from_pyro_svi` packs samples, data and weights into the `DataTree` that ArviZ reads. Here are the
# latents of the datum with the largest k-hat: first from the guide, then resampled by the weights
# of the refined proposal. Samples are independent, so R-hat has no meaning: `kind="stats"`.

# %%
worst = int(khat.argmax())
trees = {
    name: pv.from_pyro_svi(
        vae.model,
        vae.guide,
        model_args=(x[worst : worst + 1],),
        num_samples=500,
        posterior=posterior,
        seed=1,
    )
    for name, posterior in {"guide": "guide", "refined": "resampled"}.items()
}
tables = {
    name: arviz_stats.summary(tree, var_names=["z"], kind="stats").iloc[:, :2].astype(float)
    for name, tree in trees.items()
}
pd.concat(tables, axis=1)

# %%
plot = arviz_plots.plot_forest(trees, var_names=["z"])

# %% [markdown]
# The guide is usually narrower than the posterior and sometimes displaced. For log p(x) with its
# k-hat as an ArviZ object, for `compare` and `plot_khat`, use `pv.elpd_marginal`. `arviz_stats.loo`
# is wrong for such a model: it leaves out the datum, and the latent of the datum returns to the
# prior.

# %%
tree = pv.from_pyro_svi(vae.model, vae.guide, model_args=(x,), num_samples=500, seed=1)
print(pv.elpd_marginal(tree))
