"""`Reader`: a function that reads one kind of source, and the rule by which it is chosen."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from pyro_vae.data.dataset import Dataset

Source: TypeAlias = object  # a path, or an object in memory


@dataclass(frozen=True)
class Reader:
    """A kind of source.

    Attributes:
        name: Name in messages, such as `"table"`.
        accepts: Whether a source is of this kind, decided by its name or its class. Paths are
            given as `pathlib.Path`. No content is read, except the names in a zip archive.
        read: Reads the source, given the options of `open` by name, as a `Dataset` with a schema.
        options: Names of the options that `read` takes.
        examples: Endings or classes of the sources, for messages.
    """

    name: str
    accepts: Callable[[Path | object], bool]
    read: Callable[..., Dataset]
    options: frozenset[str]
    examples: str
