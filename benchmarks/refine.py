"""Importance weights of the encoder and of refined proposals on test data of a trained VAE.

    python examples/mnist_svi.py --activation tanh --seed 0
    python benchmarks/refine.py --model runs/mnist_svi/model --out runs/refine

Digits are scored in blocks. Each block is written to the output folder when it is complete, and a
second call continues after the last one. Encoder and refined proposal take turns on each block, and
their times are those of the processor. `--inverted` scores digits with black and white exchanged,
and `--images` the byte images of a NumPy file: both are far from the training data. Images with
k-hat above 0.7 after refinement are written to `uncured.png`.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from typer import Option

import pyro_vae as pv

LIMIT = 0.7


def with_error(values, statistic, seed=0):
    """Return a statistic over data and its bootstrap standard error."""
    draw = np.random.default_rng(seed).choice
    again = [statistic(draw(values, len(values))) for _ in range(500)]
    return [float(statistic(values)), float(np.std(again, ddof=1))]


def block_scores(vae, x, num_samples, seed):
    """Score some data with both proposals; return arrays and seconds by name."""
    start = time.process_time()
    encoder = pv.evaluate(vae, x, num_samples=num_samples, seed=seed)
    middle = time.process_time()
    refined = pv.refine(vae, x, num_samples=num_samples, seed=seed)
    end = time.process_time()
    return {
        "encoder_khat": encoder.khat.tolist(),
        "encoder_log_likelihood": encoder.log_likelihood.tolist(),
        "elbo": encoder.elbo.tolist(),
        "refined_khat": refined.khat.tolist(),
        "refined_ess": refined.ess.tolist(),
        "refined_log_likelihood": refined.log_likelihood.tolist(),
        "encoder_seconds": middle - start,
        "refined_seconds": end - middle,
    }


def summary(blocks):
    """Return the figures of all blocks with bootstrap standard errors over data."""

    def joined(name):
        return np.concatenate([block[name] for block in blocks])

    encoder, refined = joined("encoder_log_likelihood"), joined("refined_log_likelihood")
    result = {"num_data": len(refined)}
    for proposal in ("encoder", "refined"):
        high = joined(f"{proposal}_khat") > LIMIT
        result[f"{proposal}: share of k-hat above {LIMIT}"] = with_error(high, np.mean)
    result["refined: median effective sample size"] = with_error(joined("refined_ess"), np.median)
    result["ELBO"] = with_error(joined("elbo"), np.mean)
    result["encoder: log p(x)"] = with_error(encoder, np.mean)
    result["refined: log p(x)"] = with_error(refined, np.mean)
    result["refined minus encoder"] = with_error(refined - encoder, np.mean)
    seconds = [sum(block[f"{name}_seconds"] for block in blocks) for name in ("encoder", "refined")]
    ratios = [block["refined_seconds"] / block["encoder_seconds"] for block in blocks]
    return {**result, "seconds": seconds, "median ratio of times": float(np.median(ratios))}


def khat_of(blocks):
    """Return the refined k-hat of all data."""
    return np.concatenate([block["refined_khat"] for block in blocks])


def draw_uncured(test, blocks, path):
    """Write the images with the highest refined k-hat above the limit, at most 64."""
    khat = khat_of(blocks)
    places = np.argsort(-khat)[: min(64, (khat > LIMIT).sum())]
    if len(places) and test.values.dim() > 3:
        x = test[torch.from_numpy(places.copy())]
        pv.plots.image_grid(x, "k-hat above 0.7 after refinement").savefig(path)


def annealed(vae, test, blocks, seed):
    """Bound log p(x) of uncured data by AIS from the refined proposals; return the differences."""
    refined = np.concatenate([block["refined_log_likelihood"] for block in blocks])
    places = np.flatnonzero(khat_of(blocks) > LIMIT)
    settings = {"num_chains": 20, "num_temperatures": 50, "start": "refined", "seed": seed}
    bounds = pv.ais(vae, test[torch.from_numpy(places)], **settings)
    difference = bounds.lower - refined[places]
    return {
        "uncured": places.tolist(),
        "AIS minus refined, mean": float(difference.mean()),
        "AIS minus refined, range": [float(difference.min()), float(difference.max())],
    }


def main(
    model: Annotated[Path, Option(help="Folder of the model")] = Path("runs/mnist_svi/model"),
    data: Annotated[str, Option(help=f"One of {', '.join(pv.data.NAMES)}")] = "mnist",
    binarize: Annotated[str, Option(help="dynamic, static or none")] = "dynamic",
    inverted: Annotated[bool, Option(help="Exchange black and white")] = False,
    images: Annotated[Path | None, Option(help="NumPy file of other images to score")] = None,
    num_data: Annotated[int, Option(help="Number of test data")] = 10_000,
    num_samples: Annotated[int, Option(help="K, weighted draws of each datum")] = 1000,
    anneal: Annotated[bool, Option("--anneal", help="Bound uncured data by AIS, too")] = False,
    block: Annotated[int, Option(help="Number of data of a block")] = 250,
    seed: Annotated[int, Option(help="Random seed")] = 0,
    out: Annotated[Path, Option(help="Folder of the results")] = Path("runs/refine"),
) -> None:
    """Score test data block by block; print and write a summary."""
    vae = pv.load(model)
    _, test = pv.data.load(data, binarize=binarize, seed=seed)
    if inverted:
        test = dataclasses.replace(test, values=255 - test.values, name=f"{test.name} inverted")
    if images is not None:
        values = torch.from_numpy(np.load(images)).reshape(-1, *test.values.shape[1:])
        test = dataclasses.replace(test, values=values, labels=None, name=images.stem)
    folder = out / f"{test.name.replace(' ', '-')}-{num_samples}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    blocks = []
    for start in range(0, min(num_data, len(test)), block):
        path = folder / f"{start:06d}.json"
        if not path.exists():
            x = test[start : min(start + block, num_data)]
            scores = block_scores(vae, x, num_samples, seed + start)
            path.with_suffix(".new").write_text(json.dumps(scores))
            path.with_suffix(".new").rename(path)
        blocks.append(json.loads(path.read_text()))
        found = summary(blocks)
        (folder / "summary.json").write_text(json.dumps(found, indent=1))
        print(f"{found['num_data']:6d}", json.dumps(found), flush=True)
    draw_uncured(test, blocks, folder / "uncured.png")
    if anneal:
        bounds = annealed(vae, test, blocks, seed)
        (folder / "annealed.json").write_text(json.dumps(bounds, indent=1))
        print(json.dumps(bounds))


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
