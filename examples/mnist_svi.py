"""Auto-Encoding Variational Bayes on MNIST (Kingma & Welling, 2013), sections 2 and 3.

    python examples/mnist_svi.py                       20 latents, a few minutes on two cores
    python examples/mnist_svi.py --latent-dim 2        draws the latent manifold of Figure 4
    python examples/mnist_svi.py --help                all options

The model p(z) p(x|z) and the guide q(z|x) are plain Pyro programs made of three parts that can be
swapped; `SVI` with `Trace_ELBO` trains them, so that Pyro builds the reparameterized bound.
"""

import functools
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from pyro.infer import Trace_ELBO
from rich import print
from torch.optim.lr_scheduler import OneCycleLR
from typer import Option

import pyro_vae as pv


def main(
    data: Annotated[str, Option(help="mnist, fashion-mnist or mnist-5k")] = "mnist",
    data_root: Annotated[
        Path | None, Option(help="Folder with the data [default: $PYRO_VAE_DATA or a cache]")
    ] = None,
    binarize: Annotated[
        str, Option(help="dynamic (fresh draws each epoch), static or threshold")
    ] = "dynamic",
    epochs: Annotated[int, Option(help="Passes over the training data")] = 18,
    latent_dim: Annotated[int, Option(help="N_z, the number of latents")] = 20,
    hidden: Annotated[int, Option(help="Hidden units of encoder and decoder")] = 500,
    batch_size: Annotated[int, Option(help="M, data in a minibatch")] = 128,
    num_particles: Annotated[int, Option(help="L, draws of z for each datum and step")] = 1,
    learning_rate: Annotated[float, Option(help="The highest of the one-cycle schedule")] = 3e-3,
    num_samples: Annotated[int, Option(help="K, importance samples for log p(x)")] = 500,
    patience: Annotated[
        int | None, Option(help="Stop after so many epochs without a better validation ELBO")
    ] = None,
    seed: Annotated[int, Option(help="Repeats the run")] = 0,
    resume: Annotated[bool, Option(help="Go on from the newest checkpoint in --out")] = False,
    device: Annotated[str, Option(help="cpu, cuda, ...")] = "cpu",
    out: Annotated[Path, Option(help="Folder for results")] = Path("runs/mnist_svi"),
) -> None:
    """Train a variational autoencoder on images by SVI, score it, and draw what it learned."""
    train, test = pv.data.load(data, binarize=binarize, root=data_root, seed=seed)
    train, validation = train.hold_out(len(train) // 12)
    x_shape = train.event_shape
    torch.manual_seed(seed)

    # The generative model (section 2.1): a prior p(z) = N(z; 0, I) and a likelihood p(x|z) whose
    # parameters a decoder network computes. Its output starts at the data's mean.
    prior = pv.priors.StandardNormal(latent_dim)
    decoder = pv.networks.MLP(latent_dim, [hidden], x_shape, output_bias=train.log_odds())
    likelihood = pv.likelihoods.Bernoulli(decoder)

    # The recognition model q(z|x) (eq. 9): an encoder network computes its mean and scale.
    encoder = pv.networks.MLP(x_shape, [hidden], 2 * latent_dim)
    guide = pv.guides.DiagonalNormal(encoder)

    # Swap any of the three: the rest stays as it is.
    vae = pv.VAE(prior, likelihood, guide)
    print(vae.check(train[:8]))

    # The estimator of the bound (eq. 6, reparameterized) is Pyro's, as for any Pyro program.
    svi = pv.SVI(
        vae.model,
        vae.guide,
        optim=functools.partial(torch.optim.Adam, lr=learning_rate, fused=True),
        loss=Trace_ELBO(num_particles, vectorize_particles=True, max_plate_nesting=1),
    )

    # Algorithm 1: minibatches, noise, gradients, updates.
    fit = pv.fit(
        svi,
        train,
        validation=validation,
        epochs=epochs,
        batch_size=batch_size,
        schedule=lambda optimizer, steps: OneCycleLR(optimizer, learning_rate, total_steps=steps),
        patience=patience,
        seed=seed,
        device=device,
        out=out,
        resume=resume,
    )

    vae.save(out / "model")
    scores = pv.report(vae, fit, test, out, num_samples=num_samples, seed=seed)
    print(scores)
    print(f"{fit.stopped} after {len(fit.history)} epochs and {fit.seconds:.0f} s; best epoch")
    print(f"by validation ELBO: {fit.best['epoch']}. Metrics, pictures, posterior.nc, model: {out}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except ValueError as error:
        sys.exit(f"error: {error}")
