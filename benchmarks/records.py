"""Records: published scores on MNIST and the scores of this package, one row a command.

    python benchmarks/records.py --list                           rows, published scores, goals
    python benchmarks/records.py quick --seed 0 --minutes 2.5     train and score one row
    python benchmarks/records.py conv-static --device cuda --precision bf16 --minutes 6
    python benchmarks/records.py --table                          write the table of docs/records.md

`--minutes` is the time to compile and to train: processor time of one thread on a CPU; elapsed time
on a GPU, with the time to measure the speed. The number of epochs that fits is measured once and
kept in `plan.json`, so that an interrupted run is resumed bit for bit by the same command. The
weights are those of the epoch with the best validation ELBO. The test data are read once, after
training, and scored by K samples of the guide for each image. `record.json` in the folder of the
run has the result. With `--no-scores`, a run ends after training; the same command without it, on
another device too, scores its model.
"""

import copy
import json
import math
import os
import platform
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from record_table import ROWS, Row, listing, spread_of, write_table
from rich.console import Console
from typer import Argument, Option

import pyro_vae as pv

MEASURED = 100  # steps that measure the speed
SCORED = 250  # validation data that measure the speed of scores
ENCODER_SAMPLES = 5  # of each image, when the encoder is trained alone
WITH_ENCODER = "model-with-encoder"
REFINED_SAMPLES = 1000  # of each image, by refined posteriors
CHOICES = (5000, 2000, 1000)  # K, if the time for scores is limited


def clock(device: str) -> float:
    """Return processor seconds on a CPU, with those of the compiler, and elapsed ones on a GPU."""
    if device != "cpu":
        return time.perf_counter()
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    spent = [resource.getrusage(kind) for kind in kinds]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


@dataclass(frozen=True)
class Run:
    """One seed of a row: its data, its settings and its folder."""

    row: Row
    seed: int
    device: str
    precision: str
    folder: Path
    data_root: Path | None
    dataset: str

    def data(self) -> tuple[Any, Any, Any]:
        """Return training, validation and test data, with the usual sizes for MNIST."""
        binarize = self.row.binarization
        train, test = pv.data.load(self.dataset, binarize=binarize, root=self.data_root)
        held_out = len(train) // (6 if binarize == "static" else 12)
        return *train.hold_out(held_out), test

    @property
    def scored_model(self) -> Path:
        """Folder of the model to score."""
        path = self.folder / WITH_ENCODER
        return path if path.exists() else self.folder / "model"

    @property
    def recipe(self) -> Any:
        """The recipe of the row."""
        return pv.recipes.RECIPES[self.row.recipe]

    def build(self, train: Any) -> Any:
        """Return the model with the initial weights of the seed."""
        torch.manual_seed(self.seed)
        return self.recipe.build(train, show=False)

    def fit(self, vae: Any, train: Any, **settings: Any) -> pv.Fit:
        """Train with a compiled step."""
        return pv.fit(
            vae, train, seed=self.seed, device=self.device, compile=True,
            precision=self.precision, **settings,
        )  # fmt: skip

    def plan(self, train: Any, validation: Any, minutes: float) -> dict[str, Any]:
        """Measure the time of an epoch; return the number of epochs that fit into the time."""
        start = clock(self.device)
        batch_size = self.recipe.batch_size
        few = min(len(train) // 2, MEASURED * batch_size)
        part, _ = train.hold_out(len(train) - few)
        settings, marks = self.recipe.settings(few, epochs=3), [start]
        on_cpu = self.device == "cpu"
        for _ in range(2 if on_cpu else 1):  # the second time the programs are in the cache
            vae, marks[:] = self.build(train), [clock(self.device)]
            self.fit(vae, part, callback=lambda _: marks.append(clock(self.device)), **settings)
        steps = marks[3] - marks[2]
        compiling = (marks[1] - marks[0] - steps) * (1 if on_cpu else 0.5)
        scoring = clock(self.device)
        pv.evaluate(vae, validation, num_samples=1, progress=False)
        scoring = clock(self.device) - scoring
        epoch = steps * len(train) / few + scoring
        measuring = clock(self.device) - start
        # A GPU is lent for a time, which measuring shortens.
        left = minutes * 60 - compiling - (0 if on_cpu else measuring)
        return {
            "minutes": minutes, "epochs": max(1, int(left / epoch)), "seconds_per_epoch": epoch,
            "measuring_seconds": measuring, "device": self.device,
            "precision": self.precision, "seed": self.seed,
        }  # fmt: skip


def leave_if_interrupted(fit: pv.Fit) -> None:
    """End the program if Ctrl-C ended a run: its model is not to be scored."""
    if fit.stopped == "interrupted":
        sys.exit(1)


def spending(folder: Path, device: str, checkpoints: bool) -> tuple[Path, Any]:
    """Return the file of the seconds of each session, and a callback that updates it."""
    path, start = folder / "seconds.json", clock(device)
    before = json.loads(path.read_text()) if checkpoints and path.exists() else []

    def callback(entry: dict[str, float]) -> None:
        spent = clock(device) - start
        path.write_text(json.dumps([*before, {"epoch": entry["epoch"], "seconds": spent}]))

    return path, callback


def num_samples_within(vae: Any, data: Any, num_test: int, minutes: float) -> int:
    """Return the largest K of `CHOICES` for which test data are scored in some minutes."""
    few = data.spread(SCORED)
    pv.evaluate(vae, few, num_samples=100, progress=False)
    for choice in CHOICES:
        start = time.perf_counter()
        pv.evaluate(vae, few, num_samples=choice, progress=False)
        if (time.perf_counter() - start) * num_test / len(few) < minutes * 60:
            return choice
    return CHOICES[-1]


def trained(run: Run, minutes: float, epochs: int | None, checkpoints: bool) -> dict[str, Any]:
    """Train one seed of a row, or continue; save its model and return what is known of the run."""
    train, validation, _ = run.data()
    plan_path = run.folder / "plan.json"
    if not plan_path.exists():
        given = {"epochs": epochs, "device": run.device, "precision": run.precision,
                 "seed": run.seed}  # fmt: skip
        plan = run.plan(train, validation, minutes) if epochs is None else given
        plan_path.write_text(json.dumps(plan, indent=1) + "\n")
    plan = json.loads(plan_path.read_text())
    print(f"{plan['epochs']} epochs", flush=True)
    vae = run.build(train)
    spent, callback = spending(run.folder, run.device, checkpoints)
    settings = run.recipe.settings(len(train), epochs=plan["epochs"])
    kept = {"out": run.folder, "resume": True, "on_nan": "backtrack"} if checkpoints else {}
    fit = run.fit(vae, train, validation=validation, callback=callback, **settings, **kept)
    leave_if_interrupted(fit)
    vae.save(run.folder / "model")
    return {
        **fit.settings, **plan, "best": fit.best, "num_steps": fit.num_steps,
        "elapsed_seconds": fit.seconds,
        "training_seconds": sum(s["seconds"] for s in json.loads(spent.read_text())),
        "num_parameters": sum(p.numel() for p in vae.parameters()),
        "code": run.recipe.code(len(train), epochs=plan["epochs"]),
        "command": " ".join(["python benchmarks/records.py", *sys.argv[1:]]),
        "machine": machine(run.device), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "history": fit.history,
    }  # fmt: skip


def encoder_phase(vae: Any, train: Any, **settings: Any) -> Any:
    """Return the VAE with an encoder that was trained alone; p(x) does not change.

    The bound of a few samples makes it a wider proposal than the ELBO does. A VampPrior keeps the
    encoder that it had.
    """
    vae = vae.replace(guide=copy.deepcopy(vae.parts["guide"]))
    vae.model.requires_grad_(False)
    bound = pv.objectives.ImportanceWeighted(ENCODER_SAMPLES, doubly_reparameterized=True)
    leave_if_interrupted(pv.fit(vae, train, compile=True, **settings | {"objective": bound}))
    vae.model.requires_grad_(True)
    return vae


def with_trained_encoder(run: Run, epochs: int) -> dict[str, Any]:
    """Train the encoder of a run alone; save the model with it and return what is known of it."""
    train, *_ = run.data()
    vae, start = pv.load(run.folder / "model", run.device), clock(run.device)
    settings = run.recipe.settings(len(train), epochs=epochs)
    vae = encoder_phase(vae, train, seed=run.seed, precision=run.precision, **settings)
    seconds = clock(run.device) - start
    vae.save(run.folder / WITH_ENCODER)
    return {"encoder_epochs": epochs, "encoder_seconds": seconds}


def machine(device: str) -> str:
    """Return the name of the GPU, or of the processor."""
    return torch.cuda.get_device_name() if device != "cpu" else platform.processor()


def scored(
    run: Run, num_samples: int, score_minutes: float | None, num_test: int | None
) -> dict[str, Any]:
    """Score the model of a run on the test data."""
    started = clock(run.device)
    vae = pv.load(run.scored_model, run.device)
    _, validation, test = run.data()
    x = test.spread(num_test or len(test))
    if score_minutes is not None:
        num_samples = num_samples_within(vae, validation, len(x), score_minutes)
    scores = pv.evaluate(vae, x, num_samples=num_samples, seed=run.seed)
    np.savez(run.folder / "scores.npz", elbo=scores.elbo, log_likelihood=scores.log_likelihood,
             khat=scores.khat)  # fmt: skip
    return {**scores.metrics(), "num_test": len(x), "scored_on": machine(run.device),
            "scoring_seconds": clock(run.device) - started}  # fmt: skip


def refined_scores(run: Run, num_test: int, num_samples: int) -> dict[str, Any]:
    """Score some test images by refined posteriors too; return the differences, paired by image."""
    *_, test = run.data()
    x, vae = test.spread(num_test), pv.load(run.scored_model, run.device)
    guide = pv.evaluate(vae, x, num_samples=num_samples, seed=run.seed)
    refined = pv.evaluate(vae, x, num_samples=REFINED_SAMPLES, seed=run.seed, proposal="refined")
    more = refined.log_likelihood - guide.log_likelihood
    share = refined.metrics()["test_khat_share_above_threshold"]
    mean, error = float(more.mean()), float(more.std(ddof=1) / len(more) ** 0.5)
    return {"num_test": num_test, "khat_share_above_threshold": share, "more": mean,
            "more_se": error, "num_samples": REFINED_SAMPLES}  # fmt: skip


def written(path: Path, record: dict[str, Any]) -> None:
    """Write a record."""
    path.write_text(json.dumps(record, indent=1) + "\n")


def main(
    row: Annotated[str | None, Argument(help="Name of a row")] = None,
    show_list: Annotated[bool, Option("--list", help="Print the rows")] = False,
    show_table: Annotated[
        bool, Option("--table", help="Write the table of docs/records.md")
    ] = False,
    seed: Annotated[int, Option(help="Random seed")] = 0,
    minutes: Annotated[float, Option(help="Time to compile and train")] = 180.0,
    epochs: Annotated[
        int | None, Option(help="Epochs; the speed is then not measured, nor the time limited")
    ] = None,
    encoder_epochs: Annotated[
        int, Option(min=0, help="Epochs that train the encoder alone; not for several layers")
    ] = 0,
    num_samples: Annotated[int, Option(help="K, samples of each test image")] = 5000,
    score_minutes: Annotated[
        float | None, Option(help="Elapsed time for scores: K is then 5000, 2000 or 1000")
    ] = None,
    num_test: Annotated[int | None, Option(help="Number of test images [default: all]")] = None,
    refined: Annotated[int, Option(help="Test images to score by refined posteriors, too")] = 0,
    scores: Annotated[
        bool, Option("--scores/--no-scores", help="Whether to score a model that is trained")
    ] = True,
    device: Annotated[str, Option(help="torch device, cpu or cuda")] = "cpu",
    precision: Annotated[str, Option(help="fp32 or bf16")] = "fp32",
    checkpoints: Annotated[
        bool, Option("--checkpoints/--no-checkpoints", help="Whether the run can be resumed")
    ] = True,
    dataset: Annotated[str, Option(help="mnist, or mnist-5k for a test run")] = "mnist",
    data_root: Annotated[Path | None, Option(help="Folder, else $PYRO_VAE_DATA")] = None,
    out: Annotated[Path, Option(help="Folder for all runs")] = Path("runs/records"),
) -> None:
    """Train and score one row; list the rows; write the table."""
    if show_table:
        write_table(out)
    if show_list:
        Console(width=140).print(listing())
    if row is None:
        return
    if row not in ROWS:
        raise typer.BadParameter(f"unknown row {row!r}; expected one of {', '.join(ROWS)}")
    folder = (out / f"{row}-{seed}").resolve()
    run = Run(ROWS[row], seed, device, precision, folder, data_root, dataset)
    if encoder_epochs and not isinstance(run.recipe.parts["latent_dim"], int):
        raise typer.BadParameter(f"--encoder-epochs needs one layer of latents; {row} has several")
    if device == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    folder.mkdir(parents=True, exist_ok=True)
    path, of_training = folder / "record.json", folder / "training.json"
    if not path.exists():
        if not of_training.exists():
            written(of_training, trained(run, minutes, epochs, checkpoints))
        training = json.loads(of_training.read_text())
        if encoder_epochs and "encoder_epochs" not in training:
            training |= with_trained_encoder(run, encoder_epochs)
            training["training_seconds"] += training["encoder_seconds"]
            written(of_training, training)
        if not scores:
            return
        record = scored(run, num_samples, score_minutes, num_test)
        written(path, {"row": row, **asdict(run.row), **training, **record})
    record = json.loads(path.read_text())
    if encoder_epochs not in (0, record.get("encoder_epochs", 0)):
        raise typer.BadParameter(f"{path} has the scores of another encoder; choose another --out")
    if refined and "refined" not in record:
        record["refined"] = refined_scores(run, refined, record["num_importance_samples"])
        written(path, record)
    share = record["test_khat_share_above_threshold"]
    print(
        f"{row}, seed {seed}: ELBO {spread_of([record], 'elbo')}, log p(x) "
        f"{spread_of([record], 'log_likelihood')} (K = {record['num_importance_samples']}, "
        f"{record['num_test']} images, k-hat too high for {share or math.nan:.1%}), "
        f"{record['epochs']} epochs, {record['training_seconds'] / 60:.2f} minutes; "
        f"published {ROWS[row].published}, goal {ROWS[row].goal}"
    )


if __name__ == "__main__":
    typer.run(main)
