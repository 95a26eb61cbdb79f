"""Figure 2: the bound against training samples seen, for AEVB and wake-sleep.

    python examples/aevb/figure_2.py                      1e6 samples a curve, MNIST and Frey Face
    python examples/aevb/figure_2.py --samples 1e7        as in the docs
    python examples/aevb/figure_2.py --optimizer adam --method AEVB       add curves with Adam
    python examples/aevb/figure_2.py --quick              a test run of a few seconds

Section 5: M = 100, L = 1, one tanh layer of 500 units (Frey Face: 200) in encoder and decoder,
Adagrad with the best step of {0.01, 0.02, 0.1} early in training, by the bound of the training
data, and weight decay for the prior p(theta) = N(0, I). AEVB maximizes estimator B (eq. 10);
wake-sleep trains the same two networks. Curves are saved in figure_2.json. A second call computes
only the missing curves, so an interrupted study continues, and plots all of this budget and seed.
"""

import json
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import paper
import torch
import typer
from baselines import wake_sleep
from matplotlib.figure import Figure
from pyro.infer import TraceMeanField_ELBO
from rich import print
from typer import Option

import pyro_vae as pv

LATENTS = {"mnist": (3, 5, 10, 20, 200), "frey": (2, 5, 10, 20)}
# Ends of the paper's AEVB test curves, read off its figure to 3 nats, and 100 on Frey Face.
ENDS = {
    "mnist": {3: -127, 5: -116, 10: -104, 20: -100, 200: -101},
    "frey": {2: 1150, 5: 1300, 10: 1370, 20: 1370},
}
SPAN = {"mnist": (50, 10), "frey": (1200, 300)}  # range of a panel, below and above the paper's end
LOSSES = {"AEVB": TraceMeanField_ELBO(), "wake-sleep": wake_sleep}
COLOURS = {"AEVB": {"adagrad": "C3", "adam": "C1"}, "wake-sleep": {"adagrad": "C2", "adam": "C0"}}


def curve(
    split: pv.data.Split, settings: dict[str, Any], step_size: float, samples: int
) -> dict[str, Any]:
    """Train from the start; return the bound on train and test data against samples seen."""
    train, test = split
    torch.manual_seed(settings["seed"])
    vae = paper.build(train, settings["latent_dim"], settings["hidden"], settings["init_sd"])
    optim = paper.optimizer(settings["optimizer"], step_size, vae, len(train))
    loss, scored = LOSSES[settings["method"]], settings["num_scored"]
    points: dict[str, Any] = {"seen": [], "train": [], "test": []}
    started = time.perf_counter()
    for seen in paper.algorithm_1(vae, train, samples, optim, loss, settings["seed"], points=20):
        points["seen"].append(seen)
        points["train"].append(paper.bound(vae, train, scored))
        points["test"].append(paper.bound(vae, test, scored))
    return {**points, "step_size": step_size, "seconds": time.perf_counter() - started}


def best_curve(split: pv.data.Split, settings: dict[str, Any]) -> dict[str, Any]:
    """Choose the step size by the training bound after `pilot` samples, then train in full."""
    steps = paper.STEP_SIZES[settings["optimizer"]]
    early = [curve(split, settings, step, settings["pilot"])["train"][-1] for step in steps]
    best = steps[int(np.nan_to_num(early, nan=-np.inf).argmax())]
    return {**settings, **curve(split, settings, best, settings["samples"])}


def draw(curves: list[dict[str, Any]]) -> Figure:
    """Arrange the panels as in the paper: a row for each dataset, N_z from left to right."""
    names = sorted({c["panel"] for c in curves}, reverse=True)
    columns = max(len({c["latent_dim"] for c in curves if c["panel"] == name}) for name in names)
    figure = Figure(figsize=(3 * columns, 3 * len(names)), layout="constrained")
    for row, name in enumerate(names):
        dims = sorted({c["latent_dim"] for c in curves if c["panel"] == name})
        for column, latent_dim in enumerate(dims):
            axes = figure.add_subplot(len(names), columns, row * columns + column + 1)
            shown = [c for c in curves if (c["panel"], c["latent_dim"]) == (name, latent_dim)]
            for c in shown:
                colour = COLOURS[c["method"]][c["optimizer"]]
                label = f"{c['method']}, {c['optimizer']}"
                axes.plot(c["seen"], c["test"], color=colour, label=f"{label} (test)")
                axes.plot(c["seen"], c["train"], "--", color=colour, label=f"{label} (train)")
            last = min(min(c["test"][-1], c["train"][-1]) for c in shown)
            (below, above), top = SPAN[name], ENDS[name].get(latent_dim, last)
            if latent_dim in ENDS[name]:
                axes.axhline(top, color="0.5", ls=":", label="the paper's AEVB ends here (test)")
            axes.set_ylim(min(top - below, last - below / 5), top + above)
            ylabel = "" if column else "bound (nats per datum)"
            axes.set(xscale="log", xlabel="training samples seen", ylabel=ylabel)
            axes.set_title(f"{shown[0]['dataset']}, $N_z$ = {latent_dim}", fontsize=10)
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    figure.legend(handles=[*lines.values()], loc="outside lower center", ncols=5, fontsize=8)
    return figure


def main(
    samples: paper.Samples = 1e6,
    quick: paper.Quick = False,
    optimizer: paper.OptimizerName = "adagrad",
    pilot: Annotated[float, Option(min=1, help="Samples for the choice of the step size")] = 5e4,
    data: Literal["both", "mnist", "frey"] = "both",
    latent_dim: Annotated[list[int] | None, Option(min=1, help="N_z [default: all]")] = None,
    method: Annotated[Literal["both", "AEVB", "wake-sleep"], Option(help="Methods")] = "both",
    num_scored: Annotated[int, Option(min=1, help="Data of each split to score")] = 5000,
    init_sd: paper.InitSd = 0.1,
    binarize: paper.Binarize = "dynamic",
    data_root: paper.DataRoot = None,
    seed: paper.Seed = 0,
    out: paper.Out = Path("runs/aevb/figure_2"),
) -> None:
    """Train every missing curve of Figure 2, and plot all curves."""
    path = out / "figure_2.json"
    curves = json.loads(path.read_text()) if path.is_file() else []
    samples, pilot, num_scored = (2e3, 500, 200) if quick else (samples, pilot, num_scored)
    shown: list[dict[str, Any]] = []
    for name in ["mnist", "frey"] if data == "both" else [data]:
        try:
            split = paper.load(name, quick, data_root, binarize, seed)
        except pv.data.DataNotFoundError as error:
            print(f"Frey Face is left out: {error}")
            continue
        for dim in latent_dim or (LATENTS[name][:2] if quick else LATENTS[name]):
            options: dict[str, Any] = {"hidden": 50 if quick else paper.HIDDEN[name]}
            options |= {"latent_dim": dim, "init_sd": init_sd, "num_scored": num_scored}
            shared = paper.settings(
                split[0], samples, seed, panel=name, pilot=int(pilot), **options
            )
            for trained in LOSSES if method == "both" else [method]:
                settings = {**shared, "method": trained, "optimizer": optimizer}
                c = next((c for c in curves if settings.items() <= c.items()), None)
                if c is None:
                    c = best_curve(split, settings)
                    curves.append(c)
                    paper.write(path, curves)
                print(f"{name}, N_z = {dim}, {trained}: {c['train'][-1]:.1f} train,", end=" ")
                print(f"{c['test'][-1]:.1f} test, step {c['step_size']}, {c['seconds']:.0f} s")
            panel = [c for c in curves if shared.items() <= c.items()]
            ends = {c["optimizer"]: c for c in panel if c["method"] == "AEVB"}
            if len(ends) == 2:
                seen, test = np.array([ends["adam"]["seen"], ends["adam"]["test"]])
                there = seen[test >= ends["adagrad"]["test"][-1]].min(initial=np.inf)
                print(f"Adam is by {there:.1e} samples where Adagrad ends")
            shown += panel
    draw(shown).savefig(out / "figure_2.png", dpi=150)


if __name__ == "__main__":
    typer.run(main)
