"""The sample sites of a model/guide pair as a table."""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Site:
    """One sample site of one program: its shapes and the support of its distribution."""

    name: str
    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    support: str
    observed: bool

    def __str__(self) -> str:
        return f"{self.batch_shape} | {self.event_shape} on {self.support}"


@dataclass(frozen=True)
class SiteTable:
    """The sample sites of a pair, those of the model beside those of the guide.

    `plate_nesting` is the number of batch dimensions that the plates of both take, `data_plates`
    are the names of the plates over the data, the one of the observed sites first.
    """

    model: dict[str, Site]
    guide: dict[str, Site]
    plate_nesting: int
    data_plates: tuple[str, ...] = ()

    def __rich__(self) -> Table:
        table = Table("site", "model: batch | event on support", "guide: batch | event on support")
        for name in {**self.model, **self.guide}:
            here, there = self.model.get(name), self.guide.get(name)
            if here is not None and here.observed:
                table.add_row(name, str(here), "observed")
            else:
                table.add_row(name, str(here or "auxiliary"), str(there or "enumerated"))
        return table

    def __str__(self) -> str:
        console = Console(width=120)
        with console.capture() as capture:
            console.print(self)
        return capture.get()
