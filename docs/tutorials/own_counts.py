# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own counts
#
# Gene expression, species per plot, words per document: each row is a vector of counts, most of
# them small or 0. This tutorial fits a VAE to such data, finds the groups of rows in the latents,
# and tests whether the likelihood matters.

# %%
import matplotlib.pyplot as plt
import numpy as np
import scipy.sparse
import torch

import pyro_vae as pv

# %% [markdown]
# ## The data
#
# A simulation with a known answer: 3,000 cells of three types, 40 genes, and a different number of
# molecules captured from each cell. Counts vary more than Poisson counts with the same mean $m$:
# the variance is $m + m^2 / r$ with $r = 2$. For real data, replace `matrix` by the path of a file:
# `pv.data.open` reads `.h5ad`, `.mtx` and `.npz` files.

# %%
rng = np.random.default_rng(0)
cell_type = rng.integers(3, size=3000)
profiles = rng.dirichlet(np.full(40, 2.0), size=3)  # shares of the genes, one row for each type
captured = np.exp(rng.normal(6, 0.5, size=(3000, 1)))  # molecules of each cell
mean = captured * profiles[cell_type]
counts = rng.negative_binomial(2, 2 / (2 + mean))
matrix = scipy.sparse.csr_array(counts)
print(f"{(counts == 0).mean():.0%} of the counts are 0; the largest is {counts.max()}")

# %% [markdown]
# ## A VAE that suits them
#
# `suggest` prints the code of the VAE that it builds, so that you can copy it and change a part. It
# compares variance, mean and share of zeros of each gene to choose the likelihood.

# %%
torch.manual_seed(0)
train, test = pv.data.open(matrix[:2400]), pv.data.open(matrix[2400:])
vae = pv.suggest(train, latent_dim=4)

# %%
fit = pv.fit(vae, train, epochs=40, learning_rate=3e-3, progress=False)
score = pv.evaluate(vae, test, num_samples=100)
print(score)

# %% [markdown]
# ## The latents find the types
#
# The types were not used in training. The first two principal axes of the posterior means separate
# them.

# %%
with torch.no_grad():
    z = vae.encode(test[:]).mean
z = z - z.mean(0)
axes = torch.linalg.svd(z, full_matrices=False).Vh[:2]
figure, axis = plt.subplots(figsize=(5, 4), layout="constrained")
for kind in range(3):
    axis.plot(*(z @ axes.T)[torch.as_tensor(cell_type[2400:] == kind)].T, ".", label=f"type {kind}")
axis.set(xlabel="first axis of E[z|x]", ylabel="second axis", title="600 test cells")
_ = axis.legend()

# %% [markdown]
# ## Does the likelihood matter?
#
# Replace one part and train again. Both models score the same cells, so the difference is taken
# cell by cell. Its standard error is much smaller than the one of each score.

# %%
torch.manual_seed(0)
decoder = pv.networks.MLP(4, [128], 40, output_bias=torch.as_tensor(counts.mean(0)).log())
poisson = pv.suggest(train, latent_dim=4, show=False)
poisson = poisson.replace(likelihood=pv.likelihoods.Poisson(decoder))
pv.fit(poisson, train, epochs=40, learning_rate=3e-3, progress=False)
other = pv.evaluate(poisson, test, num_samples=100)
difference = np.asarray(score.elbo - other.elbo)
error = difference.std() / len(difference) ** 0.5
print(f"negative binomial minus Poisson: {difference.mean():.1f} ± {error:.1f} nats per cell")

# %% [markdown]
# The Poisson model has no dispersion parameter. It spends latents on noise, and its predictions
# have too little variance. A *posterior predictive check* shows it without a second model: simulate
# new cells, and compare variance with mean, gene by gene.

# %%
figure, axis = plt.subplots(figsize=(5, 4), layout="constrained")
simulated = {"negative binomial": vae.sample(3000), "Poisson": poisson.sample(3000)}
for (name, table), marker in zip({"data": counts, **simulated}.items(), "o+x", strict=True):
    table = np.asarray(table, dtype=float)
    axis.loglog(table.mean(0), table.var(0), marker, label=name, alpha=0.7)
axis.set(xlabel="mean", ylabel="variance", title="each gene")
_ = axis.legend()

# %% [markdown]
# ## Next
#
# - Donors or batches shift all counts: [correct a batch effect](../howto/batch_correction).
# - `library_size` of a likelihood models shares of the total of each cell, as scVI does. log p(x)
#   is then conditional on the total, and cannot be compared with the scores above.
# - Can the posterior of a cell be trusted? [Can I believe it?](believe).
