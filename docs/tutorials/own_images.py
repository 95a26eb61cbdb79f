# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own images
#
# From a folder of image files to a model that reconstructs them, generates new ones, and finds the
# files that do not belong.

# %%
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

import pyro_vae as pv

# %% [markdown]
# ## A folder
#
# One folder for each class, as in torchvision, or all files in one folder. Here, 2,000 images of
# bars at random angles are drawn, so that the tutorial needs no download. To use your own, set
# `folder` to its path.

# %%
rng = np.random.default_rng(0)
folder = Path(tempfile.mkdtemp())
y, x = np.mgrid[-1:1:20j, -1:1:20j]


def bar(angle, width):
    """Return a blurred bar through the center, 8-bit grey values."""
    distance = np.abs(x * np.sin(angle) - y * np.cos(angle))
    noisy = 230 * np.exp(-0.5 * (distance / width) ** 2) + rng.normal(0, 6, x.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


for name, width in {"thin": 0.1, "thick": 0.25}.items():
    (folder / name).mkdir()
    for i in range(1000):
        bar(rng.uniform(0, np.pi), width).save(folder / name / f"{i:04}.png")

# %% [markdown]
# `size` resizes every image, and `channels="colour"` keeps colours. The schema shows what was
# found.

# %%
data = pv.data.open(folder, size=20)
pd.DataFrame(data.schema.rows())

# %% [markdown]
# ## Train
#
# 8-bit pixels get a discretized logistic likelihood: a probability for each of the 256 values, and
# not a density. Images of 32 x 32 pixels or more get convolutional networks.

# %%
torch.manual_seed(0)
train, test = data.hold_out(0.2)
vae = pv.suggest(train, latent_dim=4, hidden=[128])

# %%
fit = pv.fit(
    vae, train, validation=test, epochs=60, batch_size=50, learning_rate=3e-3, progress=False
)
pv.plots.learning_curve(fit.history, "bars, 4 latents, seed 0")

# %%
score = pv.evaluate(vae, test, num_samples=50)
bits = -score.mean("log_likelihood") / (20 * 20 * np.log(2))
print(score)
print(f"{bits:.2f} bits per pixel; uncompressed: 8")

# %% [markdown]
# ## Look
#
# Reconstructions first. If they are poor, samples cannot be good. Then new images.

# %%
x_test = test[:12]
pv.plots.reconstructions(x_test, vae.reconstruct(x_test), "test images")

# %%
with torch.no_grad():
    z = vae.model.prior().sample((25,))
    new = vae.decode(z).mean
pv.plots.image_grid(new, "E[x|z] for z from the prior")

# %% [markdown]
# Some of them show two bars or a smear. The angles form a circle, and a normal prior has no hole:
# its middle has no meaning. [A prior that fits](better_prior) treats that.
#
# ## Which file does not belong?
#
# log p(x) is low for images unlike the training data. Here is a file that got into the folder by
# mistake.

# %%
stray = torch.from_numpy(rng.integers(0, 256, (1, 1, 20, 20))).float() / 255
scores = pv.evaluate(vae, torch.cat([test[:200], stray]), num_samples=50)
log_p = np.asarray(scores.log_likelihood)
print(f"test images: {log_p[:-1].min():.0f} to {log_p[:-1].max():.0f} nats; stray: {log_p[-1]:.0f}")

# %% [markdown]
# [Set an anomaly threshold](../howto/anomalies) chooses the limit from the scores of held-out data.
# The opposite is not certain: an image with a high log p(x) may still be of another kind (Nalisnick
# et al. 2019).
