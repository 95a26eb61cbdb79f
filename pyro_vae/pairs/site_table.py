"""The sample sites of a model/guide pair as a table."""

from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from pyro_vae.runtime.tables import rendered


@dataclass(frozen=True)
class Site:
    """A sample site of a program: its shapes, the support of its distribution, observed or not."""

    name: str
    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    support: str
    observed: bool

    def __str__(self) -> str:
        return f"{self.batch_shape} | {self.event_shape} on {self.support}"


@dataclass(frozen=True)
class SiteTable:
    """The sample sites of a model and its guide, side by side.

    Attributes:
        model: Sites of the model by name.
        guide: Sites of the guide by name.
        plate_nesting: Number of batch dimensions that the plates of both take.
        data_plates: Names of the plates over the data, the plate of the observed sites first.
        shared_sums: Names of the latents outside these plates that are summed out in the model.
        weighted: Names of the sites with a weighted log density in model or guide, as by
            `poutine.scale`. An objective of weighted terms is not the ELBO.
    """

    model: dict[str, Site]
    guide: dict[str, Site]
    plate_nesting: int
    data_plates: tuple[str, ...] = ()
    shared_sums: tuple[str, ...] = ()
    weighted: tuple[str, ...] = ()

    def __rich__(self) -> Table:
        table = Table("site", "model: batch | event on support", "guide: batch | event on support")
        for name in {**self.model, **self.guide}:
            model, guide = self.model.get(name), self.guide.get(name)
            if model is not None and model.observed:
                cells = (name, str(model), "observed")
            else:
                cells = (name, str(model or "auxiliary"), str(guide or "enumerated"))
            table.add_row(*map(Text, cells))  # names may contain brackets, which are no markup
        return table

    def __str__(self) -> str:
        return rendered(self, width=120)
