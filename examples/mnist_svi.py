"""Auto-Encoding Variational Bayes on MNIST (Kingma & Welling, 2013), sections 2 and 3.

    python examples/mnist_svi.py                   20 latents, about two minutes on two cores
    python examples/mnist_svi.py --latent-dim 2    draws the latent manifold of Figure 4
    python examples/mnist_svi.py --prior vamp --guide full-normal    other parts, see --help
    torchrun --nproc-per-node 2 examples/mnist_svi.py    two processes

Model p(z) p(x|z) and guide q(z|x) are Pyro programs of three parts, trained by `Trace_ELBO`. The
defaults are the paper's parts, with GELU units in place of tanh (`--activation tanh`).
"""

import functools
import sys
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from rich.console import Console
from typer import Option

import pyro_vae as pv

print = Console(quiet=not pv.distributed.is_first()).print
Prior = Literal["standard-normal", "mixture", "vamp", "flow"]
Likelihood = Literal["bernoulli", "continuous-bernoulli", "normal", "discretized-logistic"]
Guide = Literal["diagonal-normal", "full-normal", "flow"]
Objective = Literal["elbo", "analytic-kl", "importance-weighted", "sticking-the-landing"]


def main(
    prior: Annotated[Prior, Option(help="p(z)")] = "standard-normal",
    likelihood: Annotated[Likelihood, Option(help="p(x|z)")] = "bernoulli",
    guide: Annotated[Guide, Option(help="q(z|x)")] = "diagonal-normal",
    objective: Annotated[Objective, Option(help="Bound to maximize, with L particles")] = "elbo",
    data: Annotated[str, Option(help=f"One of {', '.join(pv.data.NAMES)}")] = "mnist",
    data_root: Annotated[Path | None, Option(help="Folder, else $PYRO_VAE_DATA")] = None,
    binarize: Annotated[str | None, Option(help="dynamic, static, threshold or none")] = None,
    epochs: Annotated[int, Option(help="Passes over the training data")] = 18,
    latent_dim: Annotated[int, Option(help="N_z, the number of latents")] = 20,
    hidden: Annotated[int, Option(help="Hidden units of encoder and decoder")] = 500,
    batch_size: Annotated[int, Option(help="M, minibatch size")] = 128,
    num_particles: Annotated[int, Option(help="L, samples of z per datum and step")] = 1,
    activation: Annotated[str, Option(help="Of hidden units; tanh in the paper")] = "gelu",
    learning_rate: Annotated[float, Option(help="Maximum of the one-cycle schedule")] = 3e-3,
    num_samples: Annotated[int, Option(help="K, importance samples for log p(x)")] = 500,
    patience: Annotated[int | None, Option(help="Stop after so many epochs without gain")] = None,
    seed: Annotated[int, Option(help="Random seed of the run")] = 0,
    resume: Annotated[bool, Option(help="Continue from the newest checkpoint in --out")] = False,
    device: Annotated[str, Option(help="cpu, cuda, ...")] = "cpu",
    out: Annotated[Path, Option(help="Folder for results")] = Path("runs/mnist_svi"),
) -> None:
    """Train a variational autoencoder on images by SVI, score it, and plot the results."""
    if likelihood != "bernoulli" and binarize not in (None, "none"):
        raise ValueError(f"--likelihood {likelihood} needs --binarize none, got {binarize}")
    binarize = binarize or ("dynamic" if likelihood == "bernoulli" else "none")
    train, test = pv.data.load(data, binarize=binarize, root=data_root, seed=seed)
    train, validation = train.hold_out(len(train) // 12)
    torch.manual_seed(seed)

    # The likelihood p(x|z) (section 2.1): a decoder, whose output bias is the mean of the data.
    mean = train.log_odds() if likelihood.endswith("bernoulli") else train.mean()
    mlp = functools.partial(pv.networks.MLP, activation=activation)
    decoder = mlp(latent_dim, [hidden], train.event_shape, output_bias=mean)
    p_x = {
        "bernoulli": pv.likelihoods.Bernoulli,
        "continuous-bernoulli": pv.likelihoods.ContinuousBernoulli,
        "normal": pv.likelihoods.Normal,
        "discretized-logistic": lambda net: pv.likelihoods.DiscretizedLogistic(net, "learned"),
    }[likelihood](decoder)

    # The recognition model q(z|x) (eq. 9): an encoder network computes its parameters.
    encoder = functools.partial(mlp, train.event_shape, [hidden])
    full_size = pv.guides.FullNormal.num_outputs(latent_dim)
    q = {
        "diagonal-normal": lambda: pv.guides.DiagonalNormal(encoder(2 * latent_dim)),
        "full-normal": lambda: pv.guides.FullNormal(encoder(full_size)),
        "flow": lambda: pv.guides.Flow(encoder(3 * latent_dim), latent_dim),
    }[guide]()

    # The prior p(z): N(0, I) in the paper.
    p_z = {
        "standard-normal": lambda: pv.priors.StandardNormal(latent_dim),
        "mixture": lambda: pv.priors.MixtureOfGaussians(latent_dim, num_components=10),
        "vamp": lambda: pv.priors.VampPrior(q, 200, train.event_shape, pseudo_inputs=train[:200]),
        "flow": lambda: pv.priors.Flow(latent_dim),
    }[prior]()

    vae = pv.VAE(prior=p_z, likelihood=p_x, guide=q)
    print(vae.check(train[:8]))
    # The estimator of the bound (eq. 6, reparameterized) is Pyro's.
    elbo = {
        "elbo": Trace_ELBO,
        "analytic-kl": TraceMeanField_ELBO,  # eq. 7, if the KL divergence has a closed form
        "importance-weighted": pv.objectives.ImportanceWeighted,
        "sticking-the-landing": pv.objectives.StickingTheLanding,
    }[objective]
    loss = elbo(num_particles=num_particles, vectorize_particles=True)
    optim = functools.partial(torch.optim.Adam, lr=learning_rate, fused=True)
    svi = pv.SVI(vae.model, vae.guide, optim, loss)
    # Algorithm 1: minibatches, noise, gradients, updates.
    fit = pv.fit(
        svi, train, validation=validation, epochs=epochs, batch_size=batch_size, patience=patience,
        schedule=pv.schedules.one_cycle, seed=seed, device=device, out=out, resume=resume,
    )  # fmt: skip

    print(pv.report(vae, fit, test, out, num_samples=num_samples, seed=seed))
    print(f"{fit.stopped} after {len(fit.history)} epochs and {fit.seconds:.0f} s, best epoch by")
    print(f"validation ELBO {fit.best['epoch']}; metrics, pictures, posterior.nc, model: {out}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except ValueError as error:
        sys.exit(f"error: {error}")
