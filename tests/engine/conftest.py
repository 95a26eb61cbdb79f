"""Fixtures of the engine's tests."""

import pytest
import torch

from pyro_vae.engine import compiled_step


@pytest.fixture
def graph_only(monkeypatch):
    """Run the graph itself, without the seconds that compiling it takes."""
    monkeypatch.setattr(compiled_step, "compile_graph", lambda graph, inputs: graph)


@pytest.fixture
def double():
    """Compute in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
