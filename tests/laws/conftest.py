"""Fixtures of the laws."""

import pytest
import torch

from pyro_vae.engine import compiled_step


@pytest.fixture
def graphs_in_double(monkeypatch):
    """Run recorded graphs in the place of compiled code, in double precision."""
    monkeypatch.setattr(compiled_step, "compile_graph", lambda graph, inputs: graph)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
