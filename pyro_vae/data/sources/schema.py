"""`Schema`: the protocol of descriptions of data."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

from torch import Tensor

from pyro_vae.arguments import Check, Unfit

if TYPE_CHECKING:
    from pyro_vae.data.dataset import Dataset


class Schema(Protocol):
    """A description of data, saved with the model that is trained on them.

    Implemented by parts (`pyro_vae.part.Part`), so a saved model contains the schema of its data.

    Attributes:
        content: The content of the data: `"table"`, `"images"`, `"counts"` or `"array"`.
        build_arguments: The constructor arguments, see `pyro_vae.part.Part`.
    """

    content: ClassVar[str]
    build_arguments: dict[str, object]

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""

    def read(self, source: object) -> "Dataset":
        """Return other data of this schema.

        Raises:
            DataError: If the data do not have this schema; the message has column and row.
        """

    def standardized_by(self, data: "Dataset") -> Self:
        """Return the schema with the shift and unit of other data, such as the training rows.

        Kinds, levels, ranges and origins of dates are unchanged.
        """

    def restore(self, x: Tensor) -> object:
        """Return data of the model, shape `(num_data, *event)`, in the form of the source.

        A table is returned as a frame with its types and levels, images as 8-bit pixels, other
        data as numpy arrays.
        """

    def names(self) -> Sequence[str]:
        """Return a name for each entry of one datum, or an empty sequence for images."""

    def rows(self) -> list[dict[str, str]]:
        """Return a description of the data for people: one row for each column or property."""


class IsSchema(Check):
    """A description of data, such as the `schema` of the result of `pyro_vae.data.open`."""

    expected = "the schema of a dataset of pyro_vae.data.open, or None"

    def convert(self, value: object) -> object:
        """Return the schema."""
        names = ("content", "event_shape", "read", "standardized_by", "restore", "names", "rows")
        if value is not None and not all(hasattr(type(value), name) for name in names):
            raise Unfit
        return value
