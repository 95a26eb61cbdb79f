"""Tables are rendered as text."""

import numpy as np
import pytest
import rich.console
import rich.jupyter
from rich.table import Table

import pyro_vae as pv
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


ZERO, ONE = np.zeros(2), np.ones(60)
RESULTS = {
    "fit": (
        pv.Fit([{}] * 3, {"epoch": 2, "train_elbo": -7.5, "validation_elbo_se": 0.25}, num_steps=9),
        ["finished: 9 steps", "epoch 2 of 3", "train_elbo", "-7.50"],
    ),
    "fit of no epoch": (pv.Fit(stopped="interrupted"), ["interrupted: 0 steps"]),
    "ais": (
        pv.Annealed(ZERO - 5.125, ZERO + np.nan, ZERO + 0.5),
        ["lower bound", "-5.12", "2 data", "the prior", "0.50"],
    ),
    "bidirectional": (pv.Annealed(ZERO - 5, ZERO - 4, ZERO), ["upper bound", "-4.00"]),
    "collapse": (
        pv.Collapse(0.5 * ONE, ONE, ONE, ONE, np.zeros((9000, 60)), 1.25),
        ["0.500", "yes", "10 more latents", "all 60 latents are active", "1.25 nats"],
    ),
    "gaps": (pv.Gaps(ZERO - 9, ZERO - 8, ZERO - 7.5, ZERO), ["amortization", "0.50", "1.00"]),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_printed_as_tables_of_bounded_length(name):
    result, parts = RESULTS[name]
    text = str(result)
    assert all(part in text for part in parts), text
    assert len(text.splitlines()) < 70
    assert max(map(len, text.splitlines())) <= 100
    assert "nan" not in text
