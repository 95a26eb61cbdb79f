"""Train the encoder alone after the model: on simulated data, and on refined posteriors.

    python examples/teach_encoder.py --model runs/mnist_svi/model    the README's model
    python examples/teach_encoder.py --quick                         a small model, a few seconds

The ELBO trains the encoder by KL(q || p), which makes q narrow. Its importance weights then have
heavy tails (k-hat), and its intervals are too short (SBC). Here the decoder is fixed and a copy of
the encoder maximizes E log q(z|x), that is, minimizes KL(p || q), over pairs (z, x) from

- sleep: the model itself, z ~ p(z) and x ~ p(x|z) (Hinton et al. 1995);
- wake: training images x, and z from the refined posterior of x (wake-phi: Bornschein & Bengio
  2015, Le et al. 2019, with samples of `pv.refine` in the place of weighted ones of q);
- both: half of the pairs from each.

The table compares the encoders on test images: ELBO, k-hat, calibration and time.
"""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich import print
from rich.table import Table
from torch import Tensor
from typer import Option

import pyro_vae as pv

Pairs = Callable[[int], tuple[Tensor, Tensor]]  # draws this number of latents and data


def simulated(vae: pv.VAE) -> Pairs:
    """Return pairs of the model."""

    @torch.no_grad()
    def pairs(number: int) -> tuple[Tensor, Tensor]:
        z = vae.model.prior().sample((number,))
        return z, vae.model.likelihood(z).sample()

    return pairs


def refined(vae: pv.VAE, x: Tensor, seed: int) -> Pairs:
    """Return pairs of data `x` and samples of their refined posteriors, if k-hat is low."""
    posterior = pv.refine(vae, x, num_samples=500, seed=seed)
    cured = np.flatnonzero(posterior.khat <= posterior.khat_threshold)
    z, x = posterior.sample(50, num_candidates=500, seed=seed)["z"][:, cured], x[cured]

    def pairs(number: int) -> tuple[Tensor, Tensor]:
        data = torch.randint(len(x), (number,))
        return z[torch.randint(len(z), (number,)), data], x[data]

    return pairs


def taught(vae: pv.VAE, sources: list[Pairs], num_steps: int, seed: int) -> pv.VAE:
    """Return a copy of the VAE with an encoder that maximizes log q(z|x) over pairs."""
    vae = copy.deepcopy(vae)
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(vae.guide.parameters(), lr=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        parts = [pairs(200 // len(sources)) for pairs in sources]
        z, x = (torch.cat(part) for part in zip(*parts, strict=True))
        optimizer.zero_grad()
        (-vae.guide.posterior(x).log_prob(z).mean()).backward()
        optimizer.step()
        schedule.step()
    return vae


def scores(vae: pv.VAE, x: Tensor, num_simulations: int, seed: int) -> list[str]:
    """Return the columns of the table for one encoder."""
    found = pv.evaluate(vae, x, num_samples=1000, seed=seed)
    split = pv.gaps(vae, x[:100], seed=seed)
    ranks = pv.sbc(vae, num_simulations=num_simulations, seed=seed)
    covered = float(ranks["joint_coverage/density"].sel(level=0.9))
    shown = [f"{found.elbo.mean():.2f}", f"{found.log_likelihood.mean():.2f}"]
    shown += [f"{np.mean(found.khat > 0.7):.0%}", f"{split.amortization.mean():.2f}"]
    return [*shown, f"{covered:.0%}"]


def main(
    quick: Annotated[bool, Option("--quick", help="A few seconds, for a first look")] = False,
    model: Annotated[Path | None, Option(help="Folder of a VAE of MNIST; else a small one")] = None,
    num_refined: Annotated[int, Option(help="Number of training images to refine")] = 2000,
    num_steps: Annotated[int, Option(help="Number of training steps")] = 5000,
    num_test: Annotated[int, Option(help="Number of test images")] = 200,
    seed: Annotated[int, Option(help="Random seed of the run")] = 0,
) -> None:
    """Teach three copies of an encoder and compare them."""
    num_simulations = 300
    if quick:
        num_refined, num_steps, num_test, num_simulations = 20, 20, 20, 20
    train, test = pv.data.load("mnist-5k" if quick else "mnist", binarize="dynamic", seed=seed)
    vae = pv.suggest(train, latent_dim=5) if model is None else pv.load(model)
    if model is None:
        pv.fit(vae, train, epochs=2, seed=seed)
    x = test[:num_test]
    table = Table("encoder", "ELBO", "log p(x)", "k-hat > 0.7", "amortization gap", "90% regions")
    table.add_row("as trained", *scores(vae, x, num_simulations, seed))
    start = time.process_time()
    asleep, awake = simulated(vae), refined(vae, train[:num_refined], seed)
    print(f"{num_refined} images refined in {time.process_time() - start:.0f} s")
    for name, sources in {"sleep": [asleep], "wake": [awake], "both": [asleep, awake]}.items():
        start = time.process_time()
        student = taught(vae, sources, num_steps, seed)
        print(f"{name}: taught in {time.process_time() - start:.0f} s")
        table.add_row(name, *scores(student, x, num_simulations, seed))
    print(table)


if __name__ == "__main__":
    typer.run(main)
