"""Options that several commands have, and output to the terminal."""

import importlib.util
import json
import sys
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

import pyro_vae as pv
from pyro_vae.arguments import Samples, shown
from pyro_vae.arguments import Seed as AnySeed

if TYPE_CHECKING:
    from pyro_vae.data import Dataset

MAX_CONFIG_BYTES = 2**20
_OURS = "_pyro_vae_option"  # attribute of modules of --module

DataRoot = Annotated[
    Path | None,
    Option(
        help="Folder that contains the dataset", show_default="$PYRO_VAE_DATA or a cache folder"
    ),
]
Run = Annotated[Path, Argument(help="Folder of a training run")]
OtherData = Annotated[
    str | None, Argument(help="File or folder to use", show_default="the test rows of the run")
]
Data = Annotated[str, Argument(help="File or folder, or the name of a dataset (its test data)")]
Seed = Annotated[AnySeed, Option(help="Random seed")]
Device = Annotated[str, Option(help="torch device, such as cpu or cuda")]
NumSamples = Annotated[Samples, Option(help="K, the number of importance samples for log p(x)")]
Refine = Annotated[bool, Option("--refine", help="Correct the posterior of each datum first")]
Module = Annotated[
    Path | None, Option(help="Python file that defines parts of the model; it is executed")
]
Columns = Annotated[
    list[str],
    Option("--column", "--columns", help="Kind of a column, as in age=real; may be repeated"),
]
Labels = Annotated[
    str | None, Option(help="Column of classes, which is not modelled and colours figures")
]
Context = Annotated[
    list[str],
    Option(
        help="Column that is context of a conditional model, or label, the class folder of an "
        "image; may be repeated"
    ),
]
Size = Annotated[str | None, Option(help="Size of images, as in 64 or 48x64 (height x width)")]
Key = Annotated[str | None, Option(help="Name of an array in the file")]
SchemaFile = Annotated[
    Path | None, Option(help="schema.json of `describe --out` or of a run, with edited kinds")
]
Reading = Annotated[
    list[str],
    Option("--option", help="Option of the reader, as in encoding=latin-1; may be repeated"),
]
ReadingAgain = Annotated[
    list[str],
    Option(
        "--option",
        help="Option of the reader for DATA, as in encoding=latin-1, in place of that of the run "
        "(words of na are added); may be repeated",
    ),
]


def print_first(message: object) -> None:
    """Print in the first process only."""
    from rich.console import Console

    Console(quiet=not pv.distributed.is_first(), highlight=False).print(message, markup=False)


def print_schema(data: "Dataset", options: Mapping[str, object]) -> None:
    """Print the description of data, read by options of `pyro_vae.data.open`."""
    from rich.table import Table
    from rich.text import Text

    from pyro_vae.runtime.tables import printable

    shape = " x ".join(map(str, data.event_shape))
    title = f"{printable(data.name)}: {len(data):,} data of shape {shape or 'one number'}"
    if data.schema is None:
        print_first(title)
        return
    rows, shown = data.schema.rows(), 100
    table = Table(*rows[0], title=Text(title), title_justify="left")
    for row in rows[:shown]:
        table.add_row(*map(printable, row.values()))
    print_first(table)
    if len(rows) > shown:
        print_first(f"... and {len(rows) - shown:,} more rows")
    if data.schema.content == "table":
        for note in data.schema.notes(data, options.get("columns", ())):
            print_first(note)


def pairs_of(values: Sequence[str], option: str, lists: Collection[str] = ()) -> dict[str, str]:
    """Return options of the form NAME=VALUE as a dictionary.

    Args:
        values: Values of the option.
        option: The option, for messages.
        lists: Names with several values, which are joined by commas if the name is repeated.

    Raises:
        ValueError: If a value has another form, or a name has two different values.
    """
    found: dict[str, str] = {}
    for text in values:
        name, equals, value = text.rpartition("=")
        if not equals:
            raise ValueError(f"{option} {text}: expected NAME=VALUE")
        if name in lists and name in found:
            value = f"{found[name]},{value}"
        elif found.setdefault(name, value) != value:
            raise ValueError(f"{option} {text}: {name} is also {found[name]}; expected one of them")
        found[name] = value
    return found


def configured(context: typer.Context, path: Path | None) -> Path | None:
    """Read the values of options from a file. Options of the command line replace them.

    Raises:
        ValueError: If the file cannot be read, names no option or one option twice, or has a value
            that an option cannot have.
    """
    if path is None:
        return None
    options = {str(o.name): o for o in context.command.params if o.name not in (None, "config")}
    named: dict[str, object] = {}
    for given, value in _read_config(path):
        name = str(given).replace("-", "_")
        if name not in options:
            raise ValueError(
                f"{path}: unknown option {shown(given)}; expected some of {sorted(options)}"
            )
        if name in named:
            raise ValueError(f"{path}: the option {given!r} is given twice")
        is_list, is_flag = (getattr(options[name], key, False) for key in ("multiple", "is_flag"))
        entries = value if is_list and isinstance(value, list) else [value]
        kinds = bool | None if is_flag else str | int | float | None
        for entry in entries:
            if not isinstance(entry, kinds) or (isinstance(entry, bool) and not is_flag):
                expected = "true or false" if is_flag else "a text or a number"
                raise ValueError(
                    f"{path}: {name}: expected {expected}{', or a list of them' * is_list}, got "
                    f"{shown(entry)}"
                )
        named[name] = entries if is_list and value is not None else value
    context.default_map = {**(context.default_map or {}), **named}
    return path


def _read_config(path: Path) -> list[tuple[object, object]]:
    """Return the names and values in a file, with repeated names."""
    if not path.is_file():
        kind = "expected a file" if path.exists() else "no such file"
        raise ValueError(f"--config {path}: {kind}")
    if (size := path.stat().st_size) > MAX_CONFIG_BYTES:
        raise ValueError(f"{path}: expected at most {MAX_CONFIG_BYTES:,} bytes, got {size:,}")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix in (".yaml", ".yml"):
            import yaml

            values = yaml.safe_load(text)
            if isinstance(values, dict) and len(nodes := yaml.compose(text).value) > len(values):
                return [(name.value, None) for name, _ in nodes]  # a name is repeated
        elif path.suffix == ".json":
            values = json.loads(text, object_pairs_hook=_Pairs)
        else:
            values = tomllib.loads(text)  # refuses repeated names
    except ImportError as error:
        raise ValueError(
            f"reading {path.name} needs PyYAML: pip install 'pyro-vae[config]', or write "
            "it as .toml"
        ) from error
    except OSError:
        raise
    except Exception as error:  # each format has errors of its own
        raise ValueError(f"{path} cannot be read: {error}") from error
    if isinstance(values, _Pairs):
        return list(values)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected options by name, got a {type(values).__name__}")
    return list(values.items())


class _Pairs(tuple[tuple[str, object], ...]):
    """The names and values of a JSON object, with repeated names."""


def imported(path: Path | None) -> ModuleType | None:
    """Execute a Python file as a module, so that it can define parts and saved ones can be loaded.

    Raises:
        ValueError: If the file does not exist or fails.
    """
    if path is None:
        return None
    if not path.is_file():
        raise ValueError(f"--module {path}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--module {path}: expected a Python file")
    known = sys.modules.get(path.stem)
    if path.stem in sys.stdlib_module_names or (known is not None and not hasattr(known, _OURS)):
        raise ValueError(
            f"--module {path}: the name {path.stem!r} is that of another module: rename the file"
        )
    module = importlib.util.module_from_spec(spec)
    setattr(module, _OURS, True)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also SystemExit, which would end the command without an error
        raise ValueError(f"--module {path} fails: {type(error).__name__}: {error}") from error
    return module
