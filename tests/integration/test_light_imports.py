"""`import pyro_vae` and `pyro-vae --help` load no library that they do not use."""

import ast
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

import pyro_vae as pv
from pyro_vae import cli

HEAVY = ("matplotlib", "arviz", "arviz_stats", "arviz_plots", "scipy.stats", "torch._inductor")
TRAINING = ("VAE", "SVI", "fit", "evaluate", "load", "check", "priors", "likelihoods", "guides")


def loaded_by(code):
    """Return the modules that a new process has loaded after running code."""
    code += "\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split("\n")[-2].split())


def test_importing_the_package_loads_no_heavy_library():
    found = loaded_by("import pyro_vae")
    assert not found & {*HEAVY, "torch", "torchvision", "xarray"}


def test_training_and_evaluation_load_no_plotting_library():
    names = "; ".join(f"pv.{name}" for name in TRAINING)
    found = loaded_by(f"import pyro_vae as pv; {names}") - loaded_by("import pyro")
    assert not found & {*HEAVY, "torchvision", "xarray"}


def test_help_loads_neither_torch_nor_matplotlib():
    code = """
import sys
from pyro_vae.cli import main
for command in ([], ["train"], ["inspect"]):
    try:
        sys.argv = ["pyro-vae", *command, "--help"]
        main()
    except SystemExit as end:
        assert end.code == 0
"""
    assert not loaded_by(code) & {*HEAVY, "torch", "pyro"}


def test_help_lists_every_dataset():
    done = CliRunner().invoke(cli.app, ["train", "--help"], env={"COLUMNS": "200"})
    assert all(name in done.output for name in pv.data.NAMES)


def test_every_public_name_can_be_fetched_and_is_listed():
    for name in pv.__all__:
        assert getattr(pv, name) is not None
        assert name in dir(pv)
    assert not hasattr(pv, "no_such_name")


def test_every_public_name_is_declared_for_type_checkers():
    tree = ast.parse(Path(pv.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    declared = {
        alias.name: node.module.removeprefix("pyro_vae.")
        for node in block.body
        for alias in node.names
    }
    assert declared.keys() == set(pv.__all__)
    assert {n: m for n, m in declared.items() if m != "pyro_vae"} == pv._MODULE_OF


def test_no_public_function_hides_a_module():
    code = """
import sys, types, pyro_vae as pv
for name in pv.__all__:
    getattr(pv, name)
for name, module in list(sys.modules.items()):
    parent, _, child = name.rpartition(".")
    if name.startswith("pyro_vae."):
        assert getattr(sys.modules[parent], child) is module, name
import pyro_vae.diagnostics.gaps, pyro_vae.plots, pyro_vae.priors
assert isinstance(pyro_vae.diagnostics.gaps, types.ModuleType)
"""
    loaded_by(code)
