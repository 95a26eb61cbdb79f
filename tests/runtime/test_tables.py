"""Tables are rendered as text."""

import rich.console
import rich.jupyter
from rich.table import Table

from pyro_vae.runtime.tables import rendered


class Scores:
    def __rich__(self):
        table = Table("score", "mean")
        table.add_row("ELBO", "-1.25")
        return table


def test_in_a_notebook_the_text_is_returned_and_nothing_is_displayed(monkeypatch):
    displayed = []
    plain = rendered(Scores(), width=40)
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    monkeypatch.setattr(rich.jupyter, "display", lambda *output: displayed.append(output))
    assert rendered(Scores(), width=40) == plain
    assert "ELBO" in plain
    assert displayed == []
