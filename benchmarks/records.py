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
run has the result.
"""

import json
import math
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from typer import Argument, Option

import pyro_vae as pv

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "records.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
MEASURED = 100  # steps that measure the speed
SCORED = 250  # validation data that measure the speed of scores
REFINED_SAMPLES = 1000  # of each image, by refined posteriors
CHOICES = (5000, 2000, 1000)  # K, if the time for scores is limited


@dataclass(frozen=True)
class Row:
    """A published score.

    Attributes:
        recipe: Name of a recipe of the package.
        binarization: Binarization of MNIST.
        published: Published log p(x) of the test data, with its source.
        goal: Score to pass.
        description: Model and objective.
    """

    recipe: str
    binarization: str
    published: str
    goal: float
    description: str


BURDA, PYTHAE = "Burda et al. 2016", "pythae"
TOMCZAK, NOROUZI = "Tomczak & Welling 2018", "Norouzi et al. 2020"
ROWS = {
    "tanh": Row("tanh", "dynamic", f"-86.76 ({BURDA})", -86.76, "2x200 tanh, z = 50, ELBO"),
    "tanh-iwae-5": Row("tanh-iwae-5", "dynamic", f"-85.54 ({BURDA})", -85.2, "the same, IWAE-5"),
    "tanh-iwae-50": Row("tanh-iwae-50", "dynamic", f"-84.78 ({BURDA})", -84.7, "the same, IWAE-50"),
    "gated": Row("gated", "dynamic", f"-84.45 ({NOROUZI})", -84.4, "2x300 gated, z = 40, N(0, I)"),
    "gated-vamp": Row(
        "gated-vamp", "dynamic", f"-82.43, Exemplar -82.09 ({NOROUZI})", -82.0,
        "the same networks, VampPrior",
    ),
    "gated-flow": Row(
        "gated-flow", "dynamic", f"-82.43, Exemplar -82.09 ({NOROUZI})", -82.0,
        "the same networks, flow prior",
    ),
    "ladder": Row(
        "ladder", "dynamic", f"-82.39 ({NOROUZI})", -82.39, "two stochastic levels, 2x300 gated",
    ),
    "ladder-vamp": Row(
        "ladder-vamp", "dynamic", f"-81.56, Exemplar -81.22 ({NOROUZI})", -81.2,
        "the same levels, VampPrior",
    ),
    "relu": Row("relu", "static", f"-89.78 ({PYTHAE})", -89.78, "1x400 ReLU, z = 40, ELBO"),
    "relu-vamp": Row("relu-vamp", "static", f"-85.79 ({PYTHAE})", -85.79, "the same, VampPrior"),
    "relu-iwae-50": Row(
        "relu-iwae-50", "static", f"-86.82 ({PYTHAE})", -86.82, "the same, IWAE-50"
    ),
    "gated-static": Row(
        "gated", "static", f"-88.56 ({TOMCZAK})", -88.56, "2x300 gated, z = 40, N(0, I)"
    ),
    "gated-vamp-static": Row(
        "gated-vamp", "static", f"-85.57 ({TOMCZAK})", -85.57, "the same networks, VampPrior"
    ),
    "gated-flow-static": Row(
        "gated-flow", "static", f"-85.57, VampPrior ({TOMCZAK})", -85.57,
        "the same networks, flow prior",
    ),
    "quick": Row(
        "quick", "static", "-100.31 (jaanli/variational-autoencoder, z = 128)", -93.0,
        "1x500 tanh, z = 40, flow prior, 2.5 minutes",
    ),
    "conv-static": Row(
        "conv-flow", "static", f"-81.09, ConvHVAE + VampPrior ({TOMCZAK})", -79.0,
        "residual convolutions, z = 64, flows as prior and guide",
    ),
    "conv-dynamic": Row(
        "conv-flow", "dynamic", f"-79.67, ConvHVAE + VampPrior ({NOROUZI})", -79.0,
        "residual convolutions, z = 64, flows as prior and guide",
    ),
}  # fmt: skip


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


def carry_out(
    run: Run, name: str, minutes: float, epochs: int | None, num_samples: int,
    score_minutes: float | None, num_test: int | None, checkpoints: bool,
) -> dict[str, Any]:  # fmt: skip
    """Train and score one seed of a row, or continue; return its record."""
    started = clock(run.device)
    train, validation, test = run.data()
    plan_path = run.folder / "plan.json"
    if not plan_path.exists():
        plan = run.plan(train, validation, minutes)
        if epochs is not None:
            plan["epochs"] = epochs
        plan_path.write_text(json.dumps(plan, indent=1) + "\n")
    plan = json.loads(plan_path.read_text())
    print(f"{name}: {plan['epochs']} epochs of {plan['seconds_per_epoch']:.2f} s", flush=True)
    vae = run.build(train)
    spent, callback = spending(run.folder, run.device, checkpoints)
    settings = run.recipe.settings(len(train), epochs=plan["epochs"])
    kept = {"out": run.folder, "resume": True, "on_nan": "backtrack"} if checkpoints else {}
    fit = run.fit(vae, train, validation=validation, callback=callback, **settings, **kept)
    if fit.stopped == "interrupted":
        sys.exit(1)
    trained = clock(run.device)
    vae.save(run.folder / "model")
    scored = test.spread(num_test or len(test))
    if score_minutes is not None:
        num_samples = num_samples_within(vae, validation, len(scored), score_minutes)
    scores = pv.evaluate(vae, scored, num_samples=num_samples, seed=run.seed)
    record = {
        "row": name, **asdict(run.row), **fit.settings, **plan, **scores.metrics(),
        "num_test": len(scored), "best": fit.best, "num_steps": fit.num_steps,
        "elapsed_seconds": fit.seconds,
        "training_seconds": sum(s["seconds"] for s in json.loads(spent.read_text())),
        "scoring_seconds": clock(run.device) - trained,
        "session_seconds": clock(run.device) - started,
        "num_parameters": sum(p.numel() for p in vae.parameters()),
        "code": run.recipe.code(len(train), epochs=plan["epochs"]),
        "command": " ".join(["python benchmarks/records.py", *sys.argv[1:]]),
        "machine": torch.cuda.get_device_name() if run.device != "cpu" else platform.processor(),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "history": fit.history,
    }  # fmt: skip
    np.savez(run.folder / "scores.npz", elbo=scores.elbo, log_likelihood=scores.log_likelihood,
             khat=scores.khat)  # fmt: skip
    return record


def refined_scores(run: Run, num_test: int, num_samples: int) -> dict[str, Any]:
    """Score some test images by refined posteriors too; return the differences, paired by image."""
    *_, test = run.data()
    x, vae = test.spread(num_test), pv.load(run.folder / "model")
    guide = pv.evaluate(vae, x, num_samples=num_samples, seed=run.seed)
    refined = pv.evaluate(vae, x, num_samples=REFINED_SAMPLES, seed=run.seed, proposal="refined")
    more = refined.log_likelihood - guide.log_likelihood
    share = refined.metrics()["test_khat_share_above_threshold"]
    mean, error = float(more.mean()), float(more.std(ddof=1) / len(more) ** 0.5)
    return {"num_test": num_test, "khat_share_above_threshold": share, "more": mean,
            "more_se": error, "num_samples": REFINED_SAMPLES}  # fmt: skip


def records(out: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield each row with the records of its seeds."""
    for name in ROWS:
        found = [json.loads(path.read_text()) for path in sorted(out.glob(f"{name}-*/record.json"))]
        found = [record for record in found if record["row"] == name]
        if found:
            yield name, found


def spread_of(records: list[dict[str, Any]], score: str) -> str:
    """Return the mean over seeds and its standard error; for one seed, that over images."""
    values = [record[f"test_{score}"] for record in records]
    if len(values) == 1:
        return f"{values[0]:.2f} ± {records[0][f'test_{score}_se']:.2f}"
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.2f} ± {error:.2f}"


def refined_cell(records: list[dict[str, Any]]) -> str:
    """Return what refined posteriors add to log p(x), and their share of high k-hat."""
    found = [record["refined"] for record in records if "refined" in record]
    if not found:
        return ""
    more = statistics.mean(entry["more"] for entry in found)
    share = statistics.mean(entry["khat_share_above_threshold"] for entry in found)
    error = math.hypot(*(entry["more_se"] for entry in found)) / len(found)
    return f"{more:+.2f} ± {error:.2f} ({share:.1%})"


def table(out: Path) -> str:
    """Return the table of all records as Markdown."""
    lines = [
        "| row | model | data | published log p(x) | ELBO | log p(x) | K | k-hat too high "
        "| refined adds (k-hat too high) | epochs | training | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in records(out):
        row, first = ROWS[name], found[0]
        shares = [record["test_khat_share_above_threshold"] for record in found]
        seconds = statistics.mean(record["training_seconds"] for record in found)
        unit = "processor minutes" if first["device"] == "cpu" else f"minutes, {first['machine']}"
        cells = [
            f"`{name}`", row.description, row.binarization, row.published, spread_of(found, "elbo"),
            spread_of(found, "log_likelihood"), str(first["num_importance_samples"]),
            f"{statistics.mean(shares):.1%}" if None not in shares else "", refined_cell(found),
            str(first["epochs"]), f"{seconds / 60:.1f} {unit}",
            ", ".join(str(record["seed"]) for record in found),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_table(out: Path) -> None:
    """Replace the table in the documentation."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(out)}\n{END}{after}")


def listing() -> Table:
    """Return a table of all rows."""
    found = Table("row", "recipe", "data", "model", "published", "goal", title="log p(x), nats")
    for name, row in ROWS.items():
        found.add_row(name, row.recipe, row.binarization, row.description, row.published,
                      f"above {row.goal}")  # fmt: skip
    return found


def main(
    row: Annotated[str | None, Argument(help="Name of a row")] = None,
    show_list: Annotated[bool, Option("--list", help="Print the rows")] = False,
    show_table: Annotated[
        bool, Option("--table", help="Write the table of docs/records.md")
    ] = False,
    seed: Annotated[int, Option(help="Random seed")] = 0,
    minutes: Annotated[float, Option(help="Time to compile and train")] = 180.0,
    epochs: Annotated[int | None, Option(help="Epochs in place of those that fit")] = None,
    num_samples: Annotated[int, Option(help="K, samples of each test image")] = 5000,
    score_minutes: Annotated[
        float | None, Option(help="Elapsed time for scores: K is then 5000, 2000 or 1000")
    ] = None,
    num_test: Annotated[int | None, Option(help="Number of test images [default: all]")] = None,
    refined: Annotated[int, Option(help="Test images to score by refined posteriors, too")] = 0,
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
    if device == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    folder = (out / f"{row}-{seed}").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "record.json"
    run = Run(ROWS[row], seed, device, precision, folder, data_root, dataset)
    if not path.exists():
        record = carry_out(run, row, minutes, epochs, num_samples, score_minutes, num_test,
                           checkpoints)  # fmt: skip
        path.write_text(json.dumps(record, indent=1) + "\n")
    record = json.loads(path.read_text())
    if refined and "refined" not in record:
        record["refined"] = refined_scores(run, refined, record["num_importance_samples"])
        path.write_text(json.dumps(record, indent=1) + "\n")
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
