"""The options of the command line that say how data are read, and how messages write them."""

import inspect
import json
import re
import shlex
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_vae.arguments import ANY
from pyro_vae.cli.options import pairs_of

# Arguments that are options of commands. Other arguments of readers are values of --option.
OPTIONS = {
    "columns": "--column",
    **{name: f"--{name}" for name in ("labels", "context", "size", "key", "schema")},
    **{name: f"--{name}" for name in ("binarize", "likelihood", "conv", "hidden")},
    **{"out": "--out", "resume": "--resume"},
    **{"prior": "--prior", "guide": "--guide", "latent_dim": "--latent-dim"},
}
REPEATED = ("hidden", "latent_dim")  # options that are given once for each value


def options_of(
    columns: list[str],
    labels: str | None,
    context: list[str],
    size: str | None,
    key: str | None,
    schema: Path | None,
    reading: list[str],
) -> dict[str, object]:
    """Return the options of `pyro_vae.data.open` from those of the command line.

    Raises:
        ValueError: If a value cannot be read.
    """
    known = {} if schema is None else _roles_in(schema)
    kinds = known.get("columns", {}) | pairs_of(columns, "--column")
    given: dict[str, object] = {
        "labels": known.get("labels") if labels is None else labels,
        "key": key,
        "columns": kinds or None,
        "context": context or known.get("context") or None,
    }
    if size is not None:
        sides = size.lower().split("x")
        if not all(side.isdigit() for side in sides) or len(sides) > 2:
            raise ValueError(f"--size {size}: expected a number of pixels, or HEIGHTxWIDTH")
        given["size"] = int(size) if len(sides) == 1 else [int(side) for side in sides]
    found = {name: value for name, value in given.items() if value is not None}
    return found | read_options(reading)


def read_options(given: Sequence[str]) -> dict[str, object]:
    """Return the values of `--option`, converted to the types that the readers state.

    Raises:
        ValueError: If a value is not of its type, or belongs to another option.
    """
    from pyro_vae.data.sources.opening import READERS

    kinds: dict[str, object] = {}
    for reader in READERS:
        kinds |= typing.get_type_hints(reader.read)
    lists = [name for name, kind in kinds.items() if typing.get_origin(kind) is Sequence]
    return {
        name: _value(name, text, kinds.get(name, str))
        for name, text in pairs_of(given, "--option", lists).items()
    }


def as_option(name: str, value: object = ANY, flags: Collection[str] | None = None) -> str:
    """Return an argument and its value as words of a shell, such as `--column age=real`.

    The inverse of `options_of`; a `Form` of `pyro_vae.arguments.settings`.

    Args:
        name: Name of the argument.
        value: Its value; by default, the message is about any value.
        flags: Options of the command that writes the message; by default those of `train`. An
            option that the command lacks is written as one of `train`.
    """
    option = OPTIONS.get(name, "--option")
    if flags is not None and "--column" not in flags and "--option" in flags:
        # A command that reads more data with the schema of a run.
        option = "--option" if name in read_again() else f"train {option}"
    elif flags is not None and option not in flags:
        option = f"train {option}"
    is_own = not option.endswith("--option")
    if value is ANY:
        return option if is_own else f"{option} {name}"
    if isinstance(value, Mapping):
        words = [f"{key}={item}" for key, item in value.items()]
    elif isinstance(value, Sequence) and name in REPEATED:
        words = f" {option} ".join(map(str, value)).split()
    elif isinstance(value, Sequence) and not isinstance(value, str):
        words = [("x" if name == "size" else ",").join(map(str, value))]
    elif isinstance(value, bool):
        words = [] if value and is_own else [str(value).lower()]
    else:
        words = [str(value)]
    if not is_own:
        words = [f"{name}={word}" for word in words]
    # Words with punctuation are quoted, too, so that they end visibly in a sentence.
    plain = re.compile(r"[\w=./-]+", re.ASCII)
    return " ".join([option, *(w if plain.fullmatch(w) else _quoted(w) for w in words)])


def _quoted(word: str) -> str:
    return shlex.quote(word) if shlex.quote(word) != word else f"'{word}'"


def _value(name: str, text: str, kind: object) -> object:
    """Convert the text of an option to the type of a reader's argument."""
    if name in ("columns", "schema", "size"):  # these have no form in one text
        raise ValueError(f"--option {name}={text}: pass {OPTIONS[name]} instead")
    if kind is int and not text.isdecimal():
        raise ValueError(f"--option {name}={text}: expected a whole number of at least 0")
    if kind is bool and text.lower() not in ("true", "false"):
        raise ValueError(f"--option {name}={text}: expected true or false")
    if typing.get_origin(kind) is Sequence:
        return text.split(",")
    return int(text) if kind is int else text.lower() == "true" if kind is bool else text


def _roles_in(path: Path) -> dict[str, Any]:
    """Return the roles of columns in a schema.json, as options of `pyro_vae.data.open`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        context = content.get("context") or []
        columns = [*content["columns"], *context]
        return {
            "columns": {str(column["name"]): str(column["kind"]) for column in columns},
            "labels": content.get("labels"),
            "context": [str(column["name"]) for column in context],
        }
    except OSError as error:
        raise ValueError(f"--schema {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} has no kinds of columns: expected the schema.json of a table ({error!r})"
        ) from error


def read_again() -> set[str]:
    """Return the names of the options with which schemas read other data."""
    from pyro_vae.data.sources import arrays, counts, images, table_schema

    schemas = (
        table_schema.TableSchema,
        arrays.ArraySchema,
        counts.CountsSchema,
        images.ImageSchema,
    )
    found = (inspect.signature(schema.read).parameters for schema in schemas)
    return {name for names in found for name in names} - {"self", "source"}
