"""Grids of which the fast suite walks a part and `pytest -m slow` the rest."""

import pytest


def thinned(rows, every, start=0):
    """Return rows as parameters of pytest; all but each `every`-th from `start` on are slow."""
    return [
        pytest.param(
            *(row if isinstance(row, tuple) else (row,)),
            marks=() if number % every == start else pytest.mark.slow,
        )
        for number, row in enumerate(rows)
    ]
