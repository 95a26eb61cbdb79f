"""The commands that use trained runs."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

import pyro_vae as pv
from pyro_vae.arguments import Count, CountOrZero, Samples, Whole
from pyro_vae.cli import outputs
from pyro_vae.cli.options import (
    Data,
    DataRoot,
    Device,
    Module,
    NumSamples,
    OtherData,
    ReadingAgain,
    Refine,
    Run,
    Seed,
    imported,
    print_first,
)
from pyro_vae.cli.sources import Source, data_in, data_of, options_again
from pyro_vae.cli.training import EXPLORER, PAGE, write_page

if TYPE_CHECKING:
    from pyro_vae.models.any_vae import AnyVAE
    from pyro_vae.runtime.files import JSONObject


def evaluate(
    run: Run,
    data: OtherData = None,
    option: ReadingAgain = [],  # noqa: B006
    data_root: DataRoot = None,
    num_samples: NumSamples = 5000,
    refine: Refine = False,
    seed: Seed = 0,
    device: Device = "cpu",
    module: Module = None,
) -> None:
    """Print the ELBO and log p(x) of a run's test data, with standard errors."""
    vae, metrics = _open(run, device, module)
    test = data_of(vae, metrics, data, data_root, option)
    proposal: Literal["refined", "guide"] = "refined" if refine else "guide"
    print_first(pv.evaluate(vae, test, num_samples=num_samples, proposal=proposal, seed=seed))


def inspect(
    run: Run,
    data: OtherData = None,
    option: ReadingAgain = [],  # noqa: B006
    html: Annotated[
        Path | None, Option(help="HTML page to write: trust card, figures, scores")
    ] = None,
    data_root: DataRoot = None,
    num_data: Annotated[int, Whole(2), Option(help="Number of test data to diagnose")] = 1000,
    num_samples: Annotated[Samples, Option(help="K, the number of samples per datum")] = 500,
    refine: Refine = False,
    explorer: Annotated[
        bool, Option("--explorer", help="Add the latent explorer to the page, which needs scripts")
    ] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    module: Module = None,
) -> None:
    """Diagnose a run's posterior and print its trust card; with --html, also write a page."""
    from pyro_vae.runtime.files import writable_folder

    vae, metrics = _open(run, device, module)
    if explorer and html is None:
        raise ValueError("--explorer adds to the page of --html: pass --html page.html")
    if html is not None:
        outputs.check(html, "--html", [data, *data_in(metrics)], own=[PAGE])
    writable_folder(run, ["trust.json", "model_card.md"])
    rows = data_of(vae, metrics, data, data_root, option)
    section = None
    if explorer:
        section = pv.explorer.Explorer(
            vae, rows, num_data=num_data, num_samples=num_samples, refine=refine, seed=seed
        )
    batch = rows.spread_batch(num_data)
    write_page(run, html, vae, batch, num_samples, seed, refine=refine, explorer=section)


def explore(
    run: Run,
    data: OtherData = None,
    option: ReadingAgain = [],  # noqa: B006
    out: Annotated[
        Path | None, Option(help="HTML page to write", show_default="explorer.html in RUN")
    ] = None,
    data_root: DataRoot = None,
    num_data: Annotated[Count, Option(help="Number of data on the map")] = 1000,
    num_samples: NumSamples = 200,
    refine: Annotated[
        bool, Option("--refine", help="Also show draws of the refined posterior of some data")
    ] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    module: Module = None,
) -> None:
    """Write a page with the latent space of a run: a map of the data, sliders, the decoded x."""
    path = out or run / EXPLORER
    vae, metrics = _open(run, device, module)
    outputs.check(path, "--out", [data, *data_in(metrics)], own=[EXPLORER])
    rows = data_of(vae, metrics, data, data_root, option)
    explorer = pv.explorer.Explorer(
        vae, rows, num_data=num_data, num_samples=num_samples, refine=refine, seed=seed
    )
    explorer.save(path)
    print_first(f"Wrote the explorer to {path}")


def compare(
    runs: Annotated[list[Path], Argument(help="Folders of training runs on the same data")],
    data: Annotated[str | None, Option(help="Data to use instead of the runs' test rows")] = None,
    option: ReadingAgain = [],  # noqa: B006
    data_root: DataRoot = None,
    num_samples: NumSamples = 500,
    seed: Seed = 0,
    device: Device = "cpu",
    module: Module = None,
) -> None:
    """Compare log p(x) of runs on the same test rows, by paired differences."""
    from pyro_vae.reporting import comparison

    if len({*runs}) < 2:
        raise ValueError("expected at least two runs")
    models = {}
    for run in runs:
        vae, metrics = _open(run, device, module)
        models[str(run)] = (vae, data_of(vae, metrics, data, data_root, option))
    print_first(comparison.compare(models, num_samples=num_samples, seed=seed))


def encode(
    run: Run,
    data: Data,
    out: Annotated[Path, Option(help="File to write: .csv, .parquet, .feather or .h5ad")],
    option: ReadingAgain = [],  # noqa: B006
    data_root: DataRoot = None,
    num_samples: NumSamples = 500,
    seed: Seed = 0,
    device: Device = "cpu",
    module: Module = None,
) -> None:
    """Write mean and standard deviation of q(z|x), log p(x) and k-hat of each row.

    z is the top layer of a LadderVAE.
    """
    from pyro_vae.reporting.rows import latent_moments

    vae, metrics = _open(run, device, module)
    outputs.check(out, "--out", [data, *data_in(metrics)], (*outputs.TABLES, ".h5ad"))
    rows = data_of(vae, metrics, data, data_root, option)
    means, scales = (v.cpu().numpy() for v in latent_moments(vae, rows.to(device), seed))
    scores = pv.evaluate(vae, rows, num_samples=num_samples, seed=seed)
    if out.suffix == ".h5ad":
        found = {"X_vae": means, "X_vae_sd": scales}
        outputs.write_anndata(out, data, found, scores.log_likelihood, scores.khat)
    else:
        columns: outputs.Columns = {}
        for i in range(means.shape[1]):
            columns |= {f"z{i}_mean": means[:, i], f"z{i}_sd": scales[:, i]}
        columns |= {"log_p": scores.log_likelihood, "khat": scores.khat}
        outputs.write_rows(out, rows, columns)
    print_first(f"Wrote {len(rows):,} rows with {means.shape[1]} latents to {out}")


def score(
    run: Run,
    data: Data,
    out: Annotated[Path, Option(help="File to write: .csv, .parquet or .feather")],
    false_alarms: Annotated[
        float, Option(help="Expected share of rows like the training data below the threshold")
    ] = 0.05,
    option: ReadingAgain = [],  # noqa: B006
    data_root: DataRoot = None,
    num_samples: NumSamples = 500,
    seed: Seed = 0,
    device: Device = "cpu",
    module: Module = None,
) -> None:
    """Write log p(x) and k-hat of each row, and the contribution E log p(x_c|z) of each column.

    Rows with log p(x) below a threshold from the run's validation rows are marked.
    """
    from pyro_vae.reporting.rows import contributions

    if not 0 < false_alarms < 1:
        raise ValueError(f"--false-alarms {false_alarms}: expected a share between 0 and 1")
    vae, metrics = _open(run, device, module)
    outputs.check(out, "--out", [data, *data_in(metrics)], outputs.TABLES)
    rows = data_of(vae, metrics, data, data_root, option)
    scores = pv.evaluate(vae, rows, num_samples=num_samples, seed=seed)
    columns: outputs.Columns = {"log_p": scores.log_likelihood, "khat": scores.khat}
    threshold, words = _threshold(vae, metrics, data_root, false_alarms, num_samples, seed)
    below = scores.log_likelihood < threshold
    columns["below_threshold"] = below
    columns["kl"] = scores.kl
    names = rows.schema.names() if rows.schema is not None else ()
    if names:
        entries = contributions(vae, rows.to(device), min(num_samples, 100), seed).cpu().numpy()
        columns |= {f"log_p_{name}": entries[:, i] for i, name in enumerate(names)}
    outputs.write_rows(out, rows, columns)
    print_first(f"Wrote the scores of {len(rows):,} rows to {out}")
    print_first(words)
    if math.isfinite(threshold):
        marked = int(below.sum())
        print_first(f"{marked:,} of {len(rows):,} rows are below the threshold")


def _threshold(
    vae: "AnyVAE",
    metrics: "JSONObject",
    root: Path | None,
    rate: float,
    num_samples: int,
    seed: int,
) -> tuple[float, str]:
    """Return the k-th smallest log p(x) of n validation rows, k = floor(rate (n + 1)).

    A new row like them is below it with probability k / (n + 1): all n + 1 ranks of exchangeable
    rows are equally probable.
    """
    try:
        _, validation, _ = Source.of_run(metrics, root).split()
    except ValueError as error:
        return -math.inf, f"No threshold, since the validation rows cannot be read: {error}"
    scores = pv.evaluate(vae, validation, num_samples=num_samples, seed=seed).log_likelihood
    k = math.floor(rate * (len(scores) + 1))
    if k < 1:
        needed = math.ceil(1 / rate) - 1
        return -math.inf, (
            f"No threshold: {len(scores)} validation rows are too few for a false-alarm rate of "
            f"{rate:.3g}, which needs {needed}"
        )
    threshold = float(sorted(scores)[k - 1])
    return threshold, (
        f"Threshold log p(x) = {threshold:.2f} nats, from {len(scores):,} validation rows: "
        f"{k / (len(scores) + 1):.1%} of rows like them are expected below it"
    )


def impute(
    run: Run,
    data: Data,
    out: Annotated[Path, Option(help="File to write: .csv, .parquet or .feather; .npy for arrays")],
    intervals: Annotated[
        Path | None, Option(help="Table of the 50% and 90% intervals of each imputed value")
    ] = None,
    draws: Annotated[
        CountOrZero,
        Option(help="Write this number of completed tables of samples, instead of medians"),
    ] = 0,
    option: ReadingAgain = [],  # noqa: B006
    num_samples: Annotated[Samples, Option(help="Number of samples for each row")] = 200,
    seed: Seed = 0,
    module: Module = None,
) -> None:
    """Fill missing values with the median, or the most frequent level, of samples.

    Arrays with --draws have the shape (draws, rows, columns).
    """
    import torch

    from pyro_vae.data.sources import array_files
    from pyro_vae.models.any_vae import KINDS
    from pyro_vae.reporting.rows import imputed

    vae, metrics = _open(run, "cpu", module)
    rows = data_of(vae, metrics, data, None, option)
    content = getattr(rows.schema, "content", "array")
    kept, is_array = [data, *data_in(metrics)], Path(data).suffix.lower() in array_files.ENDINGS
    endings = outputs.TABLES * (content == "table") + (".npy",) * (content != "table" or is_array)
    outputs.check(out, "--out", kept, endings)
    if intervals is not None:
        outputs.check(intervals, "--intervals", [*kept, str(out)], outputs.TABLES)
    if not isinstance(vae, KINDS):
        raise ValueError(
            "impute needs a run of a VAE, a ConditionalVAE or a LadderVAE, got one of a "
            f"{type(vae).__name__}"
        )
    if len(rows.event_shape) != 1:
        raise ValueError(f"impute fills tables and vectors, not data of shape {rows.event_shape}")
    batch = rows.batch(slice(None))
    missing = batch[0].isnan()
    levels = [c.num_levels for c in rows.schema.modelled] if content == "table" else None
    levels = levels or [0] * rows.event_shape[0]
    found = imputed(vae, rows, levels, num_samples, seed)
    torch.manual_seed(seed)
    tables = vae.completed(*batch, num_samples=draws) if draws else found["value"]
    outputs.write_completed(out, data, options_again(rows.schema, metrics, option), rows, tables)
    print_first(f"Wrote {len(rows):,} rows with {int(missing.sum()):,} imputed values to {out}")
    if intervals is not None:
        outputs.write_intervals(intervals, rows, missing, found)
        print_first(f"Wrote the intervals to {intervals}")


def sample(
    run: Run,
    num_samples: Annotated[Samples, Option("--num-samples", "-n", help="Number of samples")] = 100,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        Option(help="File to write", show_default="prior_samples.png or .csv in RUN"),
    ] = None,
    module: Module = None,
) -> None:
    """Sample x ~ p(x) from a run's model and write an image file, a table or an array.

    A conditional model samples x in the contexts of the run's test data.
    """
    import torch

    from pyro_vae.reporting.rows import contexts
    from pyro_vae.runtime.records import write_result

    vae, metrics = _open(run, "cpu", module)
    given: Any = num_samples
    if isinstance(vae, pv.ConditionalVAE):
        given = contexts(data_of(vae, metrics, None), num_samples)
    torch.manual_seed(seed)
    x, schema = vae.sample(given), getattr(vae, "schema", None)
    is_image = x.dim() == 4
    default = f"prior_samples.{'png' if is_image else 'csv'}"
    if out is not None:
        endings = outputs.endings_of_samples(schema, is_image)
        is_png = is_image and not out.suffix
        outputs.check(out, "--out", data_in(metrics), None if is_png else endings, [default])
    out = out or run / default
    if is_image and out.suffix != ".npy":
        title = f"{metrics['dataset']}: draws from p(x), seed {seed}"
        figure = pv.plots.image_grid(x, title)
        write_result(out, pv.plots.encoded(figure, out.suffix[1:] or "png"))
    else:
        outputs.write_samples(out, schema, x, given)
    print_first(f"Wrote {num_samples} samples from p(x) to {out}")


def _open(run: Path, device: str, module: Path | None = None) -> tuple["AnyVAE", "JSONObject"]:
    """Return the model and the metrics of a run."""
    from pyro_vae.reporting.run_report import read_metrics
    from pyro_vae.runtime.files import check_folder

    if not run.is_dir():
        raise ValueError(f"{run}: no such directory")
    for name in ("metrics.json", "model"):
        if not (run / name).exists():
            raise ValueError(f"{run} is not the folder of a training run: it has no {name}")
    check_folder(run / "model")
    metrics = read_metrics(run)
    imported(module)
    try:
        return pv.load(run / "model", pv.resolve_device(device)), metrics
    except pv.CheckpointError as error:
        if module is None and "not imported" in str(error):
            raise ValueError(f"{error}: pass the file that defines it as --module") from error
        raise
