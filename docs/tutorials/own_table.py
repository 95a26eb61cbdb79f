# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own table
#
# A table has columns of different kinds: numbers, counts, categories, dates. `pv.data.open` finds
# the kind of each, `pv.suggest` builds a VAE with a likelihood for each, and everything takes and
# returns frames.

# %%
import numpy as np
import pandas as pd
import torch

import pyro_vae as pv

rng = np.random.default_rng(0)
size = 3000
wealth, stage = rng.normal(size=(2, size))
frame = pd.DataFrame(
    {
        "age": 45 + 12 * stage + 4 * rng.normal(size=size),
        "income": np.exp(10 + 0.6 * wealth + 0.2 * stage + 0.2 * rng.normal(size=size)),
        "owner": np.where(rng.normal(size=size) < stage + wealth, "yes", "no"),
        "children": rng.poisson(np.exp(0.2 + 0.5 * stage)),
        "education": np.array(["basic", "middle", "high"])[
            np.digitize(wealth + 0.5 * rng.normal(size=size), [-0.5, 0.7])
        ],
    }
)
frame.loc[rng.random(size) < 0.1, "income"] = np.nan  # one in ten does not say
frame.head()

# %%
data = pv.data.open(frame)
pd.DataFrame(data.schema.rows())

# %% [markdown]
# `suggest` prints the code of the VAE that it builds. Copy it to change a part. Shift and unit of
# each column are arguments of the parts, so there is no scaler to keep, and log p(x) is a density
# in the unit of the data.

# %%
torch.manual_seed(0)
train, test = data.hold_out(0.2)
vae = pv.suggest(train, latent_dim=3)

# %%
fit = pv.fit(vae, train, epochs=60, learning_rate=3e-3, progress=False)
print(pv.evaluate(vae, test, num_samples=100))

# %% [markdown]
# `pv.fit` maximized the ELBO of the training rows, and `pv.evaluate` scored rows that it has not
# seen. [How to read these numbers](../explanation/khat) is about the last line, k-hat.
#
# ## Samples, in the types and levels of the table

# %%
synthetic = vae.schema.restore(vae.sample(3000))
synthetic.head()

# %% [markdown]
# Each column of the samples should have the distribution of the data:

# %%
numbers = ["age", "income", "children"]
pv.plots.marginals(frame[numbers], synthetic[numbers], "3,000 rows and 3,000 samples of the model")

# %% [markdown]
# The columns should also depend on each other as in the data:

# %%
pd.DataFrame(
    {
        name: table.groupby("education")["income"].median()
        for name, table in {"data": frame, "model": synthetic}.items()
    }
).round(-2)

# %% [markdown]
# ## Missing values
#
# `impute` fills missing values with the median of samples given the observed columns of the row.
# The 10% and 90% quantiles of the samples show how uncertain each value is.

# %%
rows = frame[frame["income"].isna()].head()
filled = vae.impute(rows)
samples = vae.impute(rows, num_samples=500, draws=True)
low, high = np.quantile([sample["income"] for sample in samples], [0.1, 0.9], axis=0)
filled.assign(low=low, high=high).round({"age": 0, "income": -2, "low": -2, "high": -2})

# %% [markdown]
# ## Next
#
# - The same from a terminal, with files: [train on a CSV file](../howto/own_table).
# - Kinds of columns, and the assumption behind imputation: [tables](../models/tables).
# - Rows that do not belong: [find anomalies](../howto/anomalies).
# - Can the posterior of a row be trusted? [Can I believe it?](believe).
