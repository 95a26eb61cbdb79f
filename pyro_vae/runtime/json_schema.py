"""One check of types and ranges for each JSON file, before its values are used."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pyro_vae.runtime.files import CheckpointError

MAX_BYTES = 128 * 2**20  # of a file, such as a history of about 700,000 epochs
MAX_DEPTH, MAX_COUNT = 64, 10_000_000


class Schema(Protocol):
    """The expected type and range of a JSON value."""

    def check(self, value: object, where: str) -> None:
        """Raise `SchemaError` if a value has another type or is out of range."""


class SchemaError(ValueError):
    """A JSON value of another type, or out of range."""


@dataclass(frozen=True)
class Plain:
    """Any JSON value up to a depth and a number of entries."""

    depth: int = MAX_DEPTH
    count: int = MAX_COUNT

    def check(self, value: object, where: str) -> None:
        """Raise `SchemaError` if the value is too deep or too large."""
        level, left = [value], self.count
        for _ in range(self.depth):
            left -= len(level)
            if left < 0:
                raise SchemaError(f"{where} has more than {self.count:,} entries")
            level = [
                item
                for entry in level
                if isinstance(entry, list | dict)
                for item in (entry.values() if isinstance(entry, dict) else entry)
            ]
            if not level:
                return
        raise SchemaError(f"{where} is nested more than {self.depth} levels deep")


@dataclass(frozen=True)
class Number:
    """A number in a range; NaN if it may be infinite."""

    minimum: float = -math.inf
    maximum: float = math.inf
    integer: bool = False

    def check(self, value: object, where: str) -> None:
        """Raise `SchemaError` if the value is no such number."""
        kind = "an integer" if self.integer else "a number"
        if isinstance(value, bool) or not isinstance(value, int if self.integer else int | float):
            raise SchemaError(f"expected {where} to be {kind}, got {type(value).__name__}")
        is_free = self.minimum == -math.inf and self.maximum == math.inf
        if not (self.minimum <= value <= self.maximum or (is_free and value != value)):
            raise SchemaError(
                f"expected {where} to be {kind} from {self.minimum:g} to {self.maximum:g}, got "
                f"{str(value)[:20]}"
            )


@dataclass(frozen=True)
class Text:
    """A string that matches a pattern."""

    pattern: str = r"(?s).{0,10000}"

    def check(self, value: object, where: str) -> None:
        """Raise `SchemaError` if the value is no such string."""
        if not isinstance(value, str):
            raise SchemaError(f"expected {where} to be a string, got {type(value).__name__}")
        if not re.fullmatch(self.pattern, value):
            raise SchemaError(f"{where} is {value[:40]!r}, which is too long or has another form")


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def check(self, value: object, where: str) -> None:
        """Raise `SchemaError` if the value is neither true nor false."""
        if not isinstance(value, bool):
            raise SchemaError(f"expected {where} to be true or false, got {type(value).__name__}")


@dataclass(frozen=True)
class Maybe:
    """Null or another value."""

    schema: Schema

    def check(self, value: object, where: str) -> None:
        """Raise `SchemaError` if the value is neither null nor fits the schema."""
        if value is not None:
            self.schema.check(value, where)


@dataclass(frozen=True)
class ListOf:
    """A list of entries of one schema."""

    schema: Schema

    def check(self, value: object, where: str) -> None:
        """Raise `SchemaError` if the value is no such list."""
        if not isinstance(value, list):
            raise SchemaError(f"expected {where} to be a list, got {type(value).__name__}")
        for i, item in enumerate(value):
            self.schema.check(item, f"{where}[{i}]")


@dataclass(frozen=True)
class Record:
    """An object with some required and some optional entries.

    Args:
        required: Schemas of the required entries.
        optional: Schemas of entries that may be missing.
        others: Schema of all other entries.
    """

    required: Mapping[str, Schema] = field(default_factory=dict)
    optional: Mapping[str, Schema] = field(default_factory=dict)
    others: Schema = Plain()

    def check(self, value: object, where: str) -> None:
        """Raise `SchemaError` if the value is no such object."""
        if not isinstance(value, dict):
            raise SchemaError(f"expected {where} to be an object, got {type(value).__name__}")
        if missing := self.required.keys() - value.keys():
            raise SchemaError(f"{where} lacks {', '.join(sorted(missing))}")
        for key, item in value.items():
            schema = self.required.get(key) or self.optional.get(key) or self.others
            schema.check(item, f"{where}.{key}")


COUNT = Number(0, 2**53, integer=True)
PLACE = Number(1, 2**53, integer=True)
TEXTS = Record(others=Text())
EPOCH = Record({"epoch": PLACE, "step": COUNT, "num_data": COUNT}, others=Maybe(Number()))
HISTORY = ListOf(EPOCH)


def parse(data: bytes, path: object, schema: Schema) -> Any:
    """Parse a JSON file and check it against a schema.

    Args:
        data: Content of the file.
        path: Path of the file, for the error.
        schema: Expected types and ranges.

    Raises:
        CheckpointError: If the content is not JSON, or does not fit.
    """
    try:
        value = json.loads(data)
        Plain().check(value, "the content")
        schema.check(value, "the content")
    except (ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return value
