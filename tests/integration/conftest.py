import importlib
from pathlib import Path

import pytest


@pytest.fixture
def script(monkeypatch):
    """Import a script of examples/aevb by its name."""
    folder = Path(__file__).parents[2] / "examples" / "aevb"
    monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module
