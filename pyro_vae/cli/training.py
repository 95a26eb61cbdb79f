"""The commands `describe` and `train`."""

import dataclasses
import functools
import math
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

import pyro_vae as pv
from pyro_vae.arguments import Count, Positive
from pyro_vae.cli import outputs
from pyro_vae.cli.options import (
    Columns,
    Context,
    DataRoot,
    Device,
    Key,
    Labels,
    Module,
    NumSamples,
    Reading,
    SchemaFile,
    Seed,
    Size,
    configured,
    imported,
    print_first,
    print_schema,
)
from pyro_vae.cli.reading import options_of
from pyro_vae.cli.sources import SCHEMA, Source, check_apart, schema_json

if TYPE_CHECKING:
    import torch

    from pyro_vae.data import Dataset
    from pyro_vae.models.any_vae import AnyVAE
    from pyro_vae.recipes import Recipe

EPOCHS = 18  # of datasets by name, and the fewest of other data
STEPS, MAX_EPOCHS = 3000, 300  # of other data: about this number of steps, at most these epochs
MANY = 20_000  # rows of other data from which minibatches are larger
LEARNING_RATE = 3e-3
PAGE_DATA = 200  # test data that page and explorer of `train` show
PAGE, EXPLORER = "page.html", "explorer.html"
EXPLORER_SAMPLES = 50  # of each of the same data, for the explorer
OBJECTIVES = ("elbo", "importance-weighted", "sticking-the-landing")


def describe(
    data: Annotated[str, Argument(help="File or folder, or the name of a dataset")],
    column: Columns = [],  # noqa: B006
    labels: Labels = None,
    context: Context = [],  # noqa: B006
    size: Size = None,
    key: Key = None,
    schema: SchemaFile = None,
    option: Reading = [],  # noqa: B006
    data_root: DataRoot = None,
    out: Annotated[
        Path | None, Option(help="File or folder for the schema, whose kinds can be edited")
    ] = None,
) -> None:
    """Print the kinds and ranges of data, and the code of a VAE that suits them."""
    options = options_of(column, labels, context, size, key, schema, option)
    if out is not None:
        path = out if out.suffix == ".json" else out / SCHEMA
        outputs.check(path, "--out", [data])
    rows = Source(data, options, root=data_root).open()
    print_schema(rows, options)
    if rows.schema is not None and out is not None:
        from pyro_vae.runtime.files import write_json

        write_json(path, schema_json(rows.schema))
        print_first(f"Wrote the schema to {path}; train --schema {path} uses its kinds")
    pv.suggest(rows)


def train(
    source: Annotated[
        str | None,
        Argument(metavar="DATA", help="File or folder, or a name: mnist, fashion-mnist, frey, "
                 "mnist-5k", show_default="mnist"),
    ] = None,
    data: Annotated[str | None, Option(help="The same as the argument DATA")] = None,
    config: Annotated[
        Path | None,
        Option(help="File with values of options, .toml, .yaml or .json", is_eager=True,
               callback=configured),
    ] = None,
    column: Columns = [],  # noqa: B006
    labels: Labels = None,
    context: Context = [],  # noqa: B006
    size: Size = None,
    key: Key = None,
    schema: SchemaFile = None,
    option: Reading = [],  # noqa: B006
    test: Annotated[
        str | None, Option(help="Test data", show_default="a tenth of the rows")
    ] = None,
    data_root: DataRoot = None,
    binarize: Annotated[
        str | None, Option(help="Binarization of pixels: dynamic, static, threshold or none")
    ] = None,
    likelihood: Annotated[
        str | None, Option(help="Name of a likelihood, or of a function of --module")
    ] = None,
    recipe: Annotated[
        str | None,
        Option(help="Name of a recipe, as in gated-vamp: parts, objective and schedule. Other "
               "options replace its values"),
    ] = None,
    prior: Annotated[
        str | None,
        Option(help="Name of a prior, or of a function of --module",
               show_default="standard-normal"),
    ] = None,
    guide: Annotated[
        str | None,
        Option(help="Name of a guide, or of a function of --module",
               show_default="diagonal-normal"),
    ] = None,
    module: Module = None,
    objective: Annotated[
        str | None, Option(help=f"Objective: {', '.join(OBJECTIVES)}", show_default="elbo")
    ] = None,
    particles: Annotated[Count | None, Option(help="Number of samples in the objective")] = None,
    epochs: Annotated[
        Count | None, Option(help="Number of passes over the data", show_default="by their number")
    ] = None,
    latent_dim: Annotated[
        list[int] | None,
        Option(help="Number of latents; repeat the option for the layers of a LadderVAE, from the "
               "data upwards", show_default="by the data, at most 20"),
    ] = None,
    hidden: Annotated[
        list[int] | None, Option(help="Number of hidden units; repeat the option for more layers")
    ] = None,
    conv: Annotated[
        bool | None, Option("--conv/--no-conv", help="Whether networks are convolutional")
    ] = None,
    batch_size: Annotated[
        Count | None, Option(help="Size of a minibatch", show_default="128, or 512 for many rows")
    ] = None,
    learning_rate: Annotated[
        Positive | None, Option(help="Maximum of the one-cycle schedule", show_default="0.003")
    ] = None,
    patience: Annotated[
        Count | None,
        Option(help="Stop after this number of epochs without a better validation ELBO"),
    ] = None,
    num_samples: NumSamples = 500,
    seed: Seed = 0,
    resume: Annotated[bool, Option(help="Continue from the latest checkpoint in --out")] = False,
    device: Device = "cpu",
    page: Annotated[
        bool,
        Option("--page/--no-page", help="Whether to write page.html, with a diagnosis of the "
               "posterior, and explorer.html"),
    ] = True,
    out: Annotated[Path, Option(help="Output folder")] = Path("runs/train"),
) -> None:  # fmt: skip
    """Train a VAE that suits the data; write its scores, figures and page to a folder."""
    import torch

    followed = _recipe(recipe, objective, particles, learning_rate)
    options = options_of(column, labels, context, size, key, schema, option)
    origin = Source(_data(source, data), options, binarize, data_root, test, seed)
    _check_output(out, origin)
    training, validation, held_out = origin.split()
    if training.schema is not None:
        print_schema(training, options)
    torch.manual_seed(seed)
    vae = _built(
        training,
        imported(module),
        recipe=followed,
        latent_dim=latent_dim or None,
        hidden=hidden or None,
        conv=conv,
        likelihood=likelihood,
        prior=prior,
        guide=guide,
    )
    sizes = {"epochs": epochs, "batch_size": batch_size}
    if followed is None:
        settings = _settings(learning_rate, objective, particles)
        settings |= _sizes(origin, len(training), **sizes)
    else:
        settings = followed.settings(len(training), **sizes)
        print_first(followed.code(len(training), **sizes))
    fit = pv.fit(
        vae,
        training,
        validation=validation,
        patience=patience,
        seed=seed,
        device=device,
        out=out,
        resume=resume,
        **settings,
    )
    fit.settings["source"] = origin.record()
    _write_results(out, vae, fit, held_out, num_samples, seed, page)


def _data(source: str | None, data: str | None) -> str:
    """Return the argument DATA or the option `--data`, by default mnist."""
    given = [name for name in (source, data) if name is not None]
    if len({*given}) > 1:
        raise ValueError(f"expected DATA or --data, got both: {source} and {data}")
    return given[0] if given else "mnist"


def _check_output(out: Path, origin: Source) -> None:
    """Check, before data are read, that a run can write into a folder and replaces no data."""
    from pyro_vae.checkpointing.earlier_results import FILES, check_results
    from pyro_vae.runtime.files import writable_folder

    for path in (out, *(out / name for name in FILES)):
        check_apart(path, "--out", origin.data, origin.test)
    if out.is_dir():
        writable_folder(out, FILES)
        check_results(out)


def _write_results(
    out: Path,
    vae: "AnyVAE",
    fit: "pv.Fit",
    test: "Dataset",
    num_samples: int,
    seed: int,
    page: bool,
) -> None:
    """Score a trained model on test data, and write scores, figures, schema and page."""
    from pyro_vae.runtime.records import write_json_result

    scores = pv.report(vae, fit, test, out, num_samples=num_samples, seed=seed)
    if test.schema is not None:
        content = schema_json(test.schema)
        pv.distributed.from_first(lambda: write_json_result(out / SCHEMA, content))
    print_first(scores)
    print_first(f"Wrote the metrics, figures, posterior.nc and the model to {out}")
    if page and scores is not None:
        _write_explorer(out / EXPLORER, vae, test, seed)
        shown = test.spread_batch(PAGE_DATA)
        write_page(out, out / PAGE, vae, shown, min(num_samples, 500), seed)


def _write_explorer(path: Path, vae: "AnyVAE", data: "Dataset", seed: int) -> None:
    """Write the latent explorer, or print why the page cannot run this model."""
    try:
        explorer = pv.explorer.Explorer(
            vae, data, num_data=PAGE_DATA, num_samples=EXPLORER_SAMPLES, seed=seed
        )
        explorer.save(path)
    except pv.PairError as error:
        print_first(f"No {path.name}: {error}")
    else:
        print_first(f"Wrote the explorer to {path}")


def write_page(
    run: Path,
    path: Path | None,
    vae: "AnyVAE",
    batch: "tuple[torch.Tensor, ...]",
    num_samples: int,
    seed: int,
    *,
    refine: bool = False,
    explorer: Any = None,
) -> None:
    """Diagnose a run, print and write its trust card, and write the page of the run to a path."""
    from pyro_vae.checkpointing.earlier_results import TRUST
    from pyro_vae.reporting import model_card
    from pyro_vae.reporting.html_page import write
    from pyro_vae.reporting.run_report import read_metrics

    x, *context = batch
    card = pv.diagnose(
        vae, batch if context else x, num_samples=num_samples, refine=refine, seed=seed
    )
    print_first(card)
    pv.distributed.from_first(lambda: card.save(run / TRUST))
    print_first(f"Wrote the trust card to {run / TRUST}")
    metrics = read_metrics(run)
    pv.distributed.from_first(lambda: model_card.write(run, metrics, vae, card.summary()))
    if path is not None:
        write(path, run, metrics, vae, batch, card, explorer)
        print_first(f"Wrote the page to {path}")


def _built(
    data: "Dataset", module: ModuleType | None, recipe: "Recipe | None", **given: Any
) -> "AnyVAE":
    """Return the VAE of a user's module, or a suggested one, with parts of the module by name.

    Args:
        data: Training data.
        module: The user's module.
        recipe: Recipe with other arguments of `suggest`.
        **given: Arguments of `suggest` from the command line, None for those of the recipe.
    """
    if module is not None and hasattr(module, "vae"):
        vae = module.vae(data)
        if not isinstance(vae, pv.VAE | pv.ConditionalVAE | pv.LadderVAE):
            raise ValueError(
                f"{module.__file__}: vae(data) returned a {type(vae).__name__}; expected a pv.VAE, "
                "a pv.ConditionalVAE or a pv.LadderVAE"
            )
        if vae.schema is None and data.schema is not None:
            vae.set_argument("schema", data.schema)
        return vae
    for name in ("likelihood", "prior", "guide"):
        given[name] = getattr(module, str(given[name]), given[name])
    chosen = {name: value for name, value in given.items() if value is not None}
    build = pv.suggest if recipe is None else recipe.build
    return build(data, show=pv.distributed.is_first(), **chosen)


def _recipe(
    name: str | None, objective: str | None, particles: int | None, learning_rate: float | None
) -> "Recipe | None":
    """Return a recipe by name with the given values in place of its values.

    Raises:
        ValueError: If the name is unknown, or an objective is given.
    """
    if name is None:
        return None
    if name not in pv.recipes.RECIPES:
        raise ValueError(
            f"unknown recipe {name!r}; expected one of {', '.join(pv.recipes.RECIPES)}"
        )
    if objective is not None:
        raise ValueError(
            f"expected --recipe or --objective, got both: {name} and {objective}. Give --particles "
            "to change the number of samples in the objective of a recipe"
        )
    changes = {"num_particles": particles, "learning_rate": learning_rate}
    chosen: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
    return dataclasses.replace(pv.recipes.RECIPES[name], **chosen)


def _settings(
    learning_rate: float | None, objective: str | None, particles: int | None
) -> dict[str, Any]:
    """Return objective, optimizer and schedule of a run without a recipe, as arguments of `fit`."""
    import torch

    rate = LEARNING_RATE if learning_rate is None else learning_rate
    return {
        "objective": _objective("elbo" if objective is None else objective, particles),
        "optimizer": functools.partial(torch.optim.Adam, lr=rate, fused=True),
        "schedule": pv.schedules.one_cycle,
    }


def _objective(name: str, particles: int | None) -> Any:
    """Return an objective by name; None for the ELBO with one sample, the default of `fit`."""
    from pyro.infer import Trace_ELBO

    if name not in OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}; expected one of {', '.join(OBJECTIVES)}")
    if name == "importance-weighted":
        return pv.objectives.ImportanceWeighted(5 if particles is None else particles)
    count = 1 if particles is None else particles
    if name == "sticking-the-landing":
        return pv.objectives.StickingTheLanding(count)
    return Trace_ELBO(count, vectorize_particles=True) if count > 1 else None


def _sizes(
    source: Source, num_data: int, epochs: int | None, batch_size: int | None
) -> dict[str, int]:
    """Return number of epochs and size of a minibatch; None is replaced by a choice by the data."""
    if batch_size is None:
        batch_size = 512 if not source.is_named and num_data > MANY else 128
    if epochs is None:
        steps = math.ceil(num_data / batch_size)
        suited = min(MAX_EPOCHS, max(EPOCHS, STEPS // steps))
        epochs = EPOCHS if source.is_named else suited
    return {"epochs": epochs, "batch_size": batch_size}
