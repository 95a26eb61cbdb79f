"""Time an epoch of other libraries for `performance.py`, in an interpreter that has them.

    python benchmarks/peers.py numpyro pixels.npy 400 20 128 3    784-400-20, batch 128, 3 epochs
    python benchmarks/peers.py pythae pixels.npy 400 20 128 3

`pixels.npy` has bytes of shape `(num_data, 784)`. The script prints as JSON the seconds of each
epoch after the first, which compiles or warms up. Neither library binarizes dynamically by itself:
here, NumPyro's binarization is part of the compiled epoch, and pythae's data are binarized
beforehand.
"""

import json
import logging
import sys
import tempfile
import time

import numpy as np


def numpyro_epochs(pixels, hidden, latent_dim, batch, epochs):
    """Return the seconds of epochs; each is one compiled scan over minibatches."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    def layer(key, fan_in, fan_out):
        bound = fan_in**-0.5
        weight = jax.random.uniform(key, (fan_in, fan_out), minval=-bound, maxval=bound)
        return {"weight": weight, "bias": jnp.zeros(fan_out)}

    def network(key, *sizes):
        keys = jax.random.split(key, len(sizes) - 1)
        return [layer(k, m, n) for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)]

    def apply(layers, x):
        for i, w in enumerate(layers):
            x = (jnp.tanh(x) if i else x) @ w["weight"] + w["bias"]
        return x

    keys = jax.random.split(jax.random.PRNGKey(0), 3)
    encoder = network(keys[0], 784, hidden, 2 * latent_dim)
    decoder = network(keys[1], latent_dim, hidden, 784)

    def model(x):
        weights = numpyro.param("decoder", decoder)
        with numpyro.plate("data", len(x)):
            prior = dist.Normal(jnp.zeros(latent_dim), 1.0).to_event(1)
            z = numpyro.sample("z", prior)
            numpyro.sample("x", dist.Bernoulli(logits=apply(weights, z)).to_event(1), obs=x)

    def guide(x):
        weights = numpyro.param("encoder", encoder)
        with numpyro.plate("data", len(x)):
            loc, log_scale = jnp.split(apply(weights, x), 2, axis=-1)
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(1e-3), numpyro.infer.Trace_ELBO())
    data = jnp.asarray(pixels)
    state = svi.init(keys[2], data[:batch].astype(jnp.float32) / 255)

    @jax.jit
    def epoch(state, key):
        order, *draws = jax.random.split(key, 1 + len(data) // batch)
        rows = jax.random.permutation(order, len(data))[: len(draws) * batch]

        def step(state, inputs):
            index, key = inputs
            x = jax.random.uniform(key, (batch, 784)) < data[index].astype(jnp.float32) / 255
            return svi.update(state, x.astype(jnp.float32))

        return jax.lax.scan(step, state, (rows.reshape(-1, batch), jnp.stack(draws)))

    seconds = []
    for key in jax.random.split(keys[2], epochs + 1):
        started = time.perf_counter()
        state, losses = epoch(state, key)
        losses.block_until_ready()
        seconds.append(time.perf_counter() - started)
    return numpyro.__version__, seconds[1:]


def pythae_epochs(pixels, hidden, latent_dim, batch, epochs):
    """Return the seconds of epochs of pythae's trainer, with its default networks."""
    import importlib.metadata

    import torch
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback
    from torch import nn

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Sequential(nn.Linear(784, hidden), nn.Tanh())
            self.heads = nn.ModuleList([nn.Linear(hidden, latent_dim) for _ in range(2)])

        def forward(self, x):
            features = self.hidden(x.flatten(1))
            loc, log_variance = (head(features) for head in self.heads)
            return ModelOutput(embedding=loc, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(latent_dim, hidden), nn.Tanh(), nn.Linear(hidden, 784), nn.Sigmoid()
            )

        def forward(self, z):
            return ModelOutput(reconstruction=self.layers(z).unflatten(1, (1, 28, 28)))

    ends = []

    class Clock(TrainingCallback):
        def on_epoch_end(self, *args, **kwargs):
            ends.append(time.perf_counter())

    x = (torch.from_numpy(pixels) >= 128).float().unflatten(1, (1, 28, 28))
    config = VAEConfig((1, 28, 28), latent_dim, reconstruction_loss="bce")
    with tempfile.TemporaryDirectory() as folder:
        training = BaseTrainerConfig(
            output_dir=folder, num_epochs=epochs + 1, learning_rate=1e-3, no_cuda=True,
            per_device_train_batch_size=batch, per_device_eval_batch_size=batch,
        )  # fmt: skip
        pipeline = TrainingPipeline(VAE(config, Encoder(), Decoder()), training)
        pipeline(x, callbacks=[Clock()])
    return importlib.metadata.version("pythae"), np.diff(ends).tolist()


if __name__ == "__main__":
    library, path, *numbers = sys.argv[1:]
    logging.disable(logging.WARNING)
    run = {"numpyro": numpyro_epochs, "pythae": pythae_epochs}[library]
    version, epoch_seconds = run(np.load(path), *map(int, numbers))
    print(json.dumps({"version": version, "seconds": epoch_seconds}))
