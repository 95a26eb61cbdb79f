"""Figure 3: the marginal likelihood against training samples, with few and with many data.

    python examples/aevb/figure_3.py                     N_train = 1,000 and 50,000, 1e6 samples
    python examples/aevb/figure_3.py --num-train 1000 --samples 6e7       the budget of the paper
    python examples/aevb/figure_3.py --quick             a test run of a few seconds

Section 5 and Appendix E: 100 hidden units and 3 latents, so that Appendix D
(marginal_likelihood.py) can estimate log p(x) in the same way for all methods: AEVB, wake-sleep and
Monte Carlo EM. The last has no encoder and is trained only on few data. Adagrad uses the best step
of {0.01, 0.02, 0.1} early in training. Scores use the first data of both splits and 50 samples with
4 leapfrog steps each. Every update of the weights counts its M data as samples evaluated. Curves
are saved in figure_3.json, and a second call computes only the missing curves.
"""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import paper
import torch
import typer
from baselines import monte_carlo_em, wake_sleep
from marginal_likelihood import log_marginal_likelihood
from matplotlib.figure import Figure
from pyro.infer import TraceMeanField_ELBO
from rich import print
from typer import Option

import pyro_vae as pv

COLOURS = {"wake-sleep": "C2", "MCEM": "C0", "AEVB": "C3"}
LOSSES = {"AEVB": TraceMeanField_ELBO(), "wake-sleep": wake_sleep}
FEW = 10_000  # largest number of training data for Monte Carlo EM


def curve(
    data: dict[str, pv.data.Dataset],
    settings: dict[str, Any],
    step_size: float,
    samples: int,
    points: int,
) -> dict[str, Any]:
    """Train from the start on `data["train"]`; return log p(x) of all data during training."""
    train = data["train"]
    method, seed, scored = settings["method"], settings["seed"], settings["num_scored"]
    torch.manual_seed(seed)
    vae = paper.build(train, settings["latent_dim"], settings["hidden"], settings["init_sd"])
    optim = paper.optimizer("adagrad", step_size, vae, len(train))
    if method == "MCEM":
        training = monte_carlo_em(vae, train, samples, optim, seed, points)
    else:
        training = paper.algorithm_1(vae, train, samples, optim, LOSSES[method], seed, points)
    options = {"num_samples": settings["draws"], "warm_up": settings["warm_up"]}
    found: dict[str, Any] = {"seen": [], "step_size": step_size} | {name: [] for name in data}
    started = time.perf_counter()
    for seen in training:
        found["seen"].append(seen)
        for name, split in data.items():
            score = log_marginal_likelihood(vae, split[:scored], **options)
            found[name].append(score.mean().item())
    return found | {"seconds": time.perf_counter() - started}


def best_curve(split: pv.data.Split, settings: dict[str, Any]) -> dict[str, Any]:
    """Choose the step size by the training data after `pilot` samples, then train in full."""
    train, test = split
    steps, pilot = paper.STEP_SIZES["adagrad"], settings["pilot"]
    early = [curve({"train": train}, settings, step, pilot, 1)["train"][-1] for step in steps]
    best = steps[int(np.nan_to_num(early, nan=-np.inf).argmax())]
    samples, points = settings["samples"], settings["points"]
    return settings | curve({"train": train, "test": test}, settings, best, samples, points)


def draw(curves: list[dict[str, Any]]) -> Figure:
    """Arrange the panels as in the paper: few training data on the left, many on the right."""
    sizes = sorted({c["num_train"] for c in curves})
    figure = Figure(figsize=(5 * len(sizes), 4), layout="constrained")
    for place, size in enumerate(sizes, start=1):
        axes = figure.add_subplot(1, len(sizes), place, title=f"$N_{{train}}$ = {size}")
        panel = [c for c in curves if c["num_train"] == size]
        for c in panel:
            millions, colour = np.array(c["seen"]) / 1e6, COLOURS[c["method"]]
            axes.plot(millions, c["train"], "--", color=colour, label=f"{c['method']} (train)")
            axes.plot(millions, c["test"], color=colour, label=f"{c['method']} (test)")
        ends = (c[split][-1] for c in panel for split in ("train", "test"))
        axes.set_ylim(bottom=min(-160, min(ends) - 10))  # -160 as in the paper, or lower if needed
        axes.set(xlabel="training samples evaluated (millions)", ylabel="log p(x) (nats per datum)")
        axes.legend(fontsize=7)
    return figure


def main(
    samples: paper.Samples = 1e6,
    quick: paper.Quick = False,
    num_train: Annotated[
        list[int] | None, Option(min=1, max=59_999, help="N_train [default: both]")
    ] = None,
    pilot: Annotated[float, Option(min=1, help="Samples for the choice of the step size")] = 5e4,
    points: Annotated[int, Option(min=1, help="Points of a curve")] = 8,
    num_scored: Annotated[int, Option(min=1, help="Data of each split that are scored")] = 1000,
    draws: Annotated[int, Option(min=2, help="Posterior samples for each log p(x)")] = 50,
    warm_up: Annotated[int, Option(min=0, help="Transitions before the samples")] = 100,
    init_sd: paper.InitSd = 0.1,
    binarize: paper.Binarize = "dynamic",
    data_root: paper.DataRoot = None,
    seed: paper.Seed = 0,
    out: paper.Out = Path("runs/aevb/figure_3"),
) -> None:
    """Train every missing curve of Figure 3, and plot all curves."""
    path = out / "figure_3.json"
    curves = json.loads(path.read_text()) if path.is_file() else []
    sizes, hidden = num_train or [1000, 50_000], 100
    if quick:
        sizes, hidden, samples, pilot, points = num_train or [200, 2000], 30, 1e3, 500, 2
        num_scored, draws, warm_up = 20, 5, 5
    everything, test = paper.load("mnist", quick, data_root, binarize, seed)
    options = {"latent_dim": 3, "hidden": hidden, "init_sd": init_sd, "num_scored": num_scored}
    options |= {"pilot": int(pilot), "points": points, "draws": draws, "warm_up": warm_up}
    shown: list[dict[str, Any]] = []
    for size in sizes:
        train, _ = everything.hold_out(len(everything) - size)
        for method in COLOURS:
            if method == "MCEM" and size > FEW // (10 if quick else 1):
                continue
            options |= {"num_train": size, "method": method}
            settings = paper.settings(train, samples, seed, **options)
            c = next((c for c in curves if settings.items() <= c.items()), None)
            if c is None:
                c = best_curve((train, test), settings)
                curves.append(c)
                paper.write(path, curves)
            shown.append(c)
            print(f"N_train = {size}, {method}: {c['train'][-1]:.1f} train,", end=" ")
            print(f"{c['test'][-1]:.1f} test, step {c['step_size']}, {c['seconds']:.0f} s")
    draw(shown).savefig(out / "figure_3.png", dpi=150)


if __name__ == "__main__":
    typer.run(main)
