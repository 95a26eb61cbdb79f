"""The data of a run: read from a name or a path, split, and recorded with the run."""

import dataclasses
import hashlib
import inspect
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pyro_vae as pv
from pyro_vae.arguments import ANY
from pyro_vae.cli.options import pairs_of

if TYPE_CHECKING:
    from pyro_vae.data import Dataset
    from pyro_vae.data.sources.schema import Schema
    from pyro_vae.models.any_vae import AnyVAE
    from pyro_vae.runtime.files import JSONObject

SCHEMA = "schema.json"
LISTS = ("na", "covariates")  # options of readers that are lists
# Arguments that are options of commands. Other arguments of readers are values of --option.
OPTIONS = {
    "columns": "--column",
    **{name: f"--{name}" for name in ("labels", "context", "size", "key", "schema")},
    **{name: f"--{name}" for name in ("binarize", "likelihood", "conv", "hidden")},
    **{"prior": "--prior", "guide": "--guide", "latent_dim": "--latent-dim"},
}
REPEATED = ("hidden", "latent_dim")  # options that are given once for each value
HELD_OUT = 0.1  # share of the rows for tests, and another one for validation


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the data of a run are, and how they are read and split.

    Attributes:
        data: Name of a dataset, or a path.
        options: Options of `pyro_vae.data.open`.
        binarize: Binarization, or None for the default.
        root: Folder of datasets, or None.
        test: Path of the test data. Without it, rows are held out.
        seed: Random seed of splits and fixed draws.
    """

    data: str
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    binarize: str | None = None
    root: Path | None = None
    test: str | None = None
    seed: int = 0

    @property
    def is_named(self) -> bool:
        """Whether the data are a dataset of the package."""
        return self.data in pv.data.NAMES

    def open(self) -> "Dataset":
        """Return all rows, or the training data of a named dataset."""
        if self.is_named:
            return self._named()[0]
        if not Path(self.data).exists():
            known = ", ".join(pv.data.NAMES)
            raise ValueError(
                f"{self.data}: no such file or directory, and no dataset of this name; the "
                f"datasets are {known}"
            )
        data = pv.data.open(Path(self.data), **self.options)
        return self.binarized(data)

    def split(self) -> tuple["Dataset", "Dataset", "Dataset"]:
        """Return training, validation and test data.

        Kinds and levels are found on all rows; shift and unit on the training rows only.
        """
        if self.is_named:
            full, test = self._named()
            return (*full.hold_out(len(full) // 12), test)
        rest = self.open()
        if self.test is not None:
            test = read_by(rest.schema, self.test, self.options)
            test = dataclasses.replace(self.binarized(test), split="test")
        else:
            rest, test = rest.hold_out(HELD_OUT, seed=self.seed)
            test = dataclasses.replace(test, split="test")
        share = HELD_OUT if self.test is not None else HELD_OUT / (1 - HELD_OUT)
        training, validation = rest.hold_out(share, seed=self.seed)
        if rest.schema is None:
            return training, validation, test
        schema = rest.schema.standardized_by(training)
        training, validation, test = (
            dataclasses.replace(rows, schema=schema) for rows in (training, validation, test)
        )
        return training, validation, test

    def _named(self) -> tuple["Dataset", "Dataset"]:
        if self.options or self.test:
            given = next(iter([*self.options, "test"]))
            raise ValueError(f"the dataset {self.data} takes no option {given!r}")
        train, test = pv.data.load(
            self.data, binarize=self.binarize, root=self.root, seed=self.seed
        )
        return train, test

    def binarized(self, data: "Dataset") -> "Dataset":
        """Return data with the binarization of the source."""
        if self.binarize in (None, "none"):
            return data
        return dataclasses.replace(data, binarization=self.binarize, seed=self.seed)

    def record(self) -> "JSONObject":
        """Return the entry `source` of a run's metrics.json."""
        paths = [] if self.is_named else [self.data, *([self.test] if self.test else [])]
        return {
            "data": self.data if self.is_named else str(Path(self.data).resolve()),
            "options": dict(self.options),
            "binarize": self.binarize,
            "test": None if self.test is None else str(Path(self.test).resolve()),
            "sha256": [digest(Path(path)) for path in paths],
        }

    @classmethod
    def of_run(cls, metrics: "JSONObject", root: Path | None = None) -> Self:
        """Return the source of a run.

        Raises:
            ValueError: If the data have been moved or changed.
        """
        entry = metrics.get("source")
        if entry is None or entry["data"] in pv.data.NAMES:
            name, binarize, seed = (metrics[key] for key in ("dataset", "binarization", "seed"))
            return cls(name, binarize=binarize, root=root, seed=seed)
        paths = [entry["data"], *([entry["test"]] if entry["test"] else [])]
        for path, recorded in zip(paths, entry["sha256"], strict=True):
            if not Path(path).exists():
                raise ValueError(f"the data of the run, {path}, are not there: pass DATA")
            if digest(Path(path)) != recorded:
                raise ValueError(
                    f"{path} has changed since the run, so its test rows are not known: restore "
                    "it, or pass it as DATA to use all of its rows"
                )
        return cls(
            entry["data"], entry["options"], entry["binarize"], None, entry["test"], metrics["seed"]
        )


def check_apart(path: Path, option: str, *data: str | None) -> None:
    """Check that an output does not replace data, and is not written into a folder of data.

    Args:
        path: File or folder to write.
        option: Option that names it.
        *data: Names of datasets, paths of data, or None.

    Raises:
        ValueError: If it is data, or in a folder of data.
    """
    target = path.resolve()
    for source in data:
        if source is None or source in pv.data.NAMES:
            continue
        place = Path(source).resolve()
        if place == target or (place.is_dir() and place in target.parents):
            raise ValueError(
                f"{option} {path}: expected another path than that of the data, {source}, and "
                "outside it"
            )


def data_in(metrics: "JSONObject") -> list[str | None]:
    """Return the paths of the data of a run, as they are recorded."""
    entry = metrics.get("source") or {}
    return [entry.get("data"), entry.get("test")]


def data_of(
    vae: "AnyVAE", metrics: "JSONObject", data: str | None, root: Path | None = None
) -> "Dataset":
    """Return data in the schema of a run's model: given ones, or the test rows of the run.

    Args:
        vae: Model of the run.
        metrics: Metrics of the run.
        data: Name of a dataset (its test data), a path, or None.
        root: Folder of datasets.

    Raises:
        ValueError: If the data are not there, have changed, or do not have the schema.
    """
    seed = metrics["seed"]
    if data is not None and data not in pv.data.NAMES:
        if not Path(data).exists():
            raise ValueError(f"{data}: no such file or directory")
        options = metrics.get("source", {}).get("options", {})
        source = Source(data, binarize=metrics["binarization"], seed=seed)
        return source.binarized(read_by(getattr(vae, "schema", None), data, options))
    if data is not None:
        metrics = {**metrics, "dataset": data, "source": None}
    try:
        source = Source.of_run(metrics, root)
        if source.is_named or metrics.get("source") is None:
            _, test = pv.data.load(source.data, binarize=source.binarize, root=root, seed=seed)
        else:
            _, _, test = source.split()
    except ValueError as error:
        raise ValueError(f"cannot load the test data of the run: {error}") from error
    if source.is_named and test.name != source.data:
        raise ValueError(
            f"cannot load the test data of the run: expected {source.data}, found {test.name}, "
            "which may contain its training data. Set --data-root or PYRO_VAE_DATA"
        )
    return test


def read_by(schema: "Schema | None", path: str, options: Mapping[str, object]) -> "Dataset":
    """Read a file by a schema, with those options of the first file that the schema takes."""
    if schema is None:
        return pv.data.open(Path(path))
    return schema.read(Path(path), **taken_by(schema.read, options))


def taken_by(function: Callable[..., object], options: Mapping[str, object]) -> dict[str, Any]:
    """Return the options that a function takes."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in known}


def digest(path: Path) -> str:
    """Return the SHA-256 of a file; of a folder, that of the names and sizes of the files read.

    Other files of a folder of images, such as .DS_Store, may come and go.
    """
    from pyro_vae.data.sources import images

    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    is_images = images.READER.accepts(path)
    found = hashlib.sha256()
    for item in images.files_in(path) if is_images else sorted(path.rglob("*")):
        if item.is_file():
            found.update(f"{item.relative_to(path)}\0{item.stat().st_size}\n".encode())
    return found.hexdigest()


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
    kinds, known_labels = ({}, None) if schema is None else _kinds_in(schema)
    kinds |= pairs_of(columns, "--column")
    given: dict[str, object] = {
        "labels": labels or known_labels,
        "key": key,
        "columns": kinds or None,
        "context": context or None,
    }
    if size is not None:
        sides = size.lower().split("x")
        if not all(side.isdigit() for side in sides) or len(sides) > 2:
            raise ValueError(f"--size {size}: expected a number of pixels, or HEIGHTxWIDTH")
        given["size"] = int(size) if len(sides) == 1 else [int(side) for side in sides]
    found = {name: value for name, value in given.items() if value is not None}
    return found | {k: _value(k, v) for k, v in pairs_of(reading, "--option").items()}


def as_option(name: str, value: object = ANY) -> str:
    """Return an argument and its value as words of a shell, such as `--column age=real`.

    The inverse of `options_of`; a `Form` of `pyro_vae.arguments.settings`.
    """
    option = OPTIONS.get(name, "--option")
    if value is ANY:
        return option if name in OPTIONS else f"{option} {name}"
    if isinstance(value, Mapping):
        words = [f"{key}={item}" for key, item in value.items()]
    elif isinstance(value, Sequence) and name in REPEATED:
        words = f" {option} ".join(map(str, value)).split()
    elif isinstance(value, Sequence) and not isinstance(value, str):
        words = [("x" if name == "size" else ",").join(map(str, value))]
    elif isinstance(value, bool):
        words = [] if value and name in OPTIONS else [str(value).lower()]
    else:
        words = [str(value)]
    if name not in OPTIONS:
        words = [f"{name}={word}" for word in words]
    # Words with punctuation are quoted, too, so that they end visibly in a sentence.
    plain = re.compile(r"[\w=./-]+", re.ASCII)
    return " ".join([option, *(w if plain.fullmatch(w) else _quoted(w) for w in words)])


def _quoted(word: str) -> str:
    return shlex.quote(word) if shlex.quote(word) != word else f"'{word}'"


def _value(name: str, text: str) -> object:
    if name in LISTS:
        return text.split(",")
    if name == "skip" and text.isdigit():
        return int(text)
    return text.lower() == "true" if text.lower() in ("true", "false") else text


def _kinds_in(path: Path) -> tuple[dict[str, str], str | None]:
    """Return the kinds of columns in a schema.json, and the name of the column of classes."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kinds = {str(column["name"]): str(column["kind"]) for column in content["columns"]}
        return kinds, content.get("labels")
    except OSError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} has no kinds of columns: expected the schema.json of a table ({error!r})"
        ) from error


def schema_json(schema: "Schema") -> "JSONObject":
    """Return a schema as JSON: its content, and the arguments that it was built with."""
    arguments = schema.build_arguments.items()
    return {"content": schema.content, **{name: _plain(value) for name, value in arguments}}


def _plain(value: object) -> object:
    if isinstance(value, pv.Part):
        return {name: _plain(item) for name, item in value.build_arguments.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
