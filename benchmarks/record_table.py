"""The rows of docs/records.md: published scores, and the table of the scores of this package."""

import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

PAGE = Path(__file__).parents[1] / "docs" / "records.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"


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
    "ladder-flow": Row(
        "ladder-flow", "dynamic", f"-81.56, VampPrior; Exemplar -81.22 ({NOROUZI})", -81.2,
        "the same levels, flow prior",
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
        "1x500 SiLU, z = 40, flow prior, 2.5 minutes",
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


def table(out: Path, former: str = "") -> str:
    """Return the table of all records as Markdown.

    Args:
        out: Folder of all runs.
        former: Table whose lines are kept for the rows without runs in the folder.
    """
    kept = {line.split("`")[1]: line for line in former.splitlines() if line.startswith("| `")}
    lines = [
        "| row | model | data | published log p(x) | ELBO | log p(x) | K | k-hat too high "
        "| refined adds (k-hat too high) | epochs | training | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    found_runs = dict(records(out))
    for name, row in ROWS.items():
        if name not in found_runs:
            lines += [kept[name]] if name in kept else []
            continue
        found = found_runs[name]
        first = found[0]
        shares = [record["test_khat_share_above_threshold"] for record in found]
        epochs = [record["epochs"] for record in found]
        of_encoder = first.get("encoder_epochs", 0)
        seconds = statistics.mean(record["training_seconds"] for record in found)
        unit = "processor minutes" if first["device"] == "cpu" else f"minutes, {first['machine']}"
        cells = [
            f"`{name}`", row.description, row.binarization, row.published, spread_of(found, "elbo"),
            spread_of(found, "log_likelihood"), str(first["num_importance_samples"]),
            f"{statistics.mean(shares):.1%}" if None not in shares else "", refined_cell(found),
            " to ".join(map(str, sorted({min(epochs), max(epochs)})))
            + (f", encoder {of_encoder}" if of_encoder else ""), f"{seconds / 60:.1f} {unit}",
            ", ".join(str(record["seed"]) for record in found),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_table(out: Path) -> None:
    """Replace the table in the documentation."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    former, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(out, former)}\n{END}{after}")


def listing() -> Table:
    """Return a table of all rows."""
    found = Table("row", "recipe", "data", "model", "published", "goal", title="log p(x), nats")
    for name, row in ROWS.items():
        found.add_row(name, row.recipe, row.binarization, row.description, row.published,
                      f"above {row.goal}")  # fmt: skip
    return found
