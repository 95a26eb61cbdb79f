"""The data of a run: read from a name or a path, split, and recorded with the run."""

import dataclasses
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pyro_vae as pv
from pyro_vae.arguments import setting
from pyro_vae.cli.reading import read_options

if TYPE_CHECKING:
    from pyro_vae.data import Dataset
    from pyro_vae.data.sources.schema import Schema
    from pyro_vae.models.any_vae import AnyVAE
    from pyro_vae.runtime.files import JSONObject

SCHEMA = "schema.json"
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
        known = ", ".join(pv.data.NAMES)
        check_exists(self.data, f", and no dataset of this name; the datasets are {known}")
        data = pv.data.open(Path(self.data), **self.options)
        return self.binarized(data)

    def split(self) -> tuple["Dataset", "Dataset", "Dataset"]:
        """Return training, validation and test data.

        Kinds and levels are found on all rows; shift and unit on the training rows only.
        """
        if self.test is not None:
            check_exists(self.test)
        if self.is_named:
            full, test = self._named()
            return (*full.hold_out(len(full) // 12), test)
        rest = self.open()
        needed = 2 if self.test is not None else 3  # one for training, validation and tests each
        if len(rest) < needed:
            raise ValueError(
                f"{self.data}: expected at least {needed} rows, of which some are held out for "
                f"validation{' and tests' * (needed > 2)}, got {len(rest)}"
            )
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
        if self.options or self.test is not None:
            given = next(iter([*self.options, "test"]))
            option = "--test" if given == "test" else setting(given)
            raise ValueError(f"the dataset {self.data} takes no {option}")
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
        binarize, test = entry.get("binarize"), entry.get("test")
        paths = [entry["data"], *([test] if test else [])]
        if len(paths) != len(entry["sha256"]):
            raise ValueError(
                f"the metrics.json of the run is damaged: expected {len(paths)} checksums of its "
                f"data, got {len(entry['sha256'])}"
            )
        for path, recorded in zip(paths, entry["sha256"], strict=True):
            if not Path(path).exists():
                raise ValueError(f"the data of the run, {path}, are not there: pass DATA")
            if digest(Path(path)) != recorded:
                raise ValueError(
                    f"{path} has changed since the run, so its test rows are not known: restore "
                    "it, or pass it as DATA to use all of its rows"
                )
        return cls(entry["data"], entry["options"], binarize, None, test, metrics["seed"])


def check_apart(path: Path, option: str, *data: str | None) -> None:
    """Check that an output does not replace data, and is not written into a folder of data.

    Args:
        path: File or folder to write.
        option: Option that names it.
        *data: Names of datasets, paths of data, or None.

    Raises:
        ValueError: If it is data, or in a folder of data.
    """
    from pyro_vae.data.sources.matrices import GENE_FILES

    target = path.resolve()
    for source in data:
        if not source or source in pv.data.NAMES:
            continue
        place = Path(source).resolve()
        if place == target or (place.is_dir() and place in target.parents):
            raise ValueError(
                f"{option} {path}: expected another path than that of the data, {source}, and "
                "outside it"
            )
        if ".mtx" in place.name.lower() and target in map(place.with_name, GENE_FILES):
            raise ValueError(
                f"{option} {path}: expected another name, because it is read as the names of the "
                f"genes in {source}"
            )


def check_exists(path: str, more: str = "") -> None:
    """Check that a path of data exists; `more` is added to the error.

    Raises:
        ValueError: If it does not, or is empty, which is no path.
    """
    if not path:
        raise ValueError("the path of the data is empty: expected a file or a folder")
    if not Path(path).exists():
        raise ValueError(f"{path}: no such file or directory{more}")


def data_in(metrics: "JSONObject") -> list[str | None]:
    """Return the paths of the data of a run, as they are recorded."""
    entry = metrics.get("source") or {}
    return [entry.get("data"), entry.get("test")]


def data_of(
    vae: "AnyVAE",
    metrics: "JSONObject",
    data: str | None,
    root: Path | None = None,
    reading: Sequence[str] = (),
) -> "Dataset":
    """Return data in the schema of a run's model: given ones, or the test rows of the run.

    Args:
        vae: Model of the run.
        metrics: Metrics of the run.
        data: Name of a dataset (its test data), a path, or None.
        root: Folder of datasets.
        reading: Values of `--option`, which replace those of the run for other data.

    Raises:
        ValueError: If the data are not there, have changed, or do not have the schema.
    """
    if reading and (data is None or data in pv.data.NAMES):
        raise ValueError(f"--option {reading[0]}: expected the path of other data as DATA")
    seed = metrics["seed"]
    if data is not None and data not in pv.data.NAMES:
        check_exists(data)
        schema = getattr(vae, "schema", None)
        source = Source(data, binarize=metrics["binarization"], seed=seed)
        options = options_again(schema, metrics, reading)
        try:
            return source.binarized(read_by(schema, data, options))
        except ValueError as error:
            given = read_options(reading)
            of_run = [setting(k, v) for k, v in options.items() if k not in given]
            if not of_run:
                raise
            raise ValueError(
                f"{str(error).rstrip('.')}. The data were read with the options of the run, "
                f"{', '.join(of_run)}: pass --option to replace one"
            ) from error
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


def options_again(
    schema: "Schema | None", metrics: "JSONObject", reading: Sequence[str]
) -> dict[str, object]:
    """Return the options to read other data of a run: those of its data, or of `--option`.

    Words for missing values are added to those of the run, which are still no values.

    Raises:
        ValueError: If a schema takes no such option, because it is one of training.
    """
    given = read_options(reading)
    if schema is None:
        return given
    known = sorted(inspect.signature(schema.read).parameters.keys() - {"source"})
    if unknown := sorted(given.keys() - {*known}):
        expected = f"expected some of {', '.join(known)}" if known else "such data take no option"
        raise ValueError(
            f"--option {unknown[0]}={given[unknown[0]]}: {expected}. Columns and their kinds are "
            "those of the run"
        )
    recorded = taken_by(schema.read, (metrics.get("source") or {}).get("options", {}))
    lists = {name: value for name, value in given.items() if isinstance(value, list)}
    added = {name: [*recorded.get(name, []), *value] for name, value in lists.items()}
    return recorded | given | added


def read_by(schema: "Schema | None", path: str, options: Mapping[str, object]) -> "Dataset":
    """Read a file by a schema, with those options of the first file that the schema takes."""
    if schema is None:
        return pv.data.open(Path(path), **options)
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


def schema_json(schema: "Schema") -> "JSONObject":
    """Return a schema as JSON: its content, and the arguments that it was built with."""
    arguments = schema.build_arguments.items()
    return {"content": schema.content, **{name: _plain(value) for name, value in arguments}}


def _plain(value: object) -> object:
    if isinstance(value, pv.Part):
        return {name: _plain(item) for name, item in value.build_arguments.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
