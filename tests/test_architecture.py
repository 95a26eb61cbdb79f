"""Packages import what the table in docs/architecture.md allows, and nothing in a circle."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pyro_vae"
MAX_LINES = 400


def box_of(path):
    """Return the package that a file belongs to: a folder, or a file at the top."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def allowed():
    """Return the table of docs/architecture.md: each package and the packages it may import."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.split("## Packages")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|.*\|([^|]*)\|$", section, re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", others)) for name, others in rows}


def imported(path):
    """Yield the packages that a file imports, by whatever form of import."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "pyro_vae":
            yield from (a.name if a.name in allowed() else "__init__" for a in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyro_vae."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "pyro_vae":
                    yield [*alias.name.split("."), "__init__"][1]


def test_the_table_has_every_package():
    assert {box_of(path) for path in PACKAGE.rglob("*.py")} == set(allowed())


def test_packages_import_only_what_the_table_allows():
    table = allowed()
    others = {
        f"{path.relative_to(PACKAGE)} imports {package}"
        for path in PACKAGE.rglob("*.py")
        for package in imported(path)
        if package != box_of(path) and package not in table[box_of(path)]
    }
    assert not others


def test_the_table_has_no_circle():
    list(graphlib.TopologicalSorter(allowed()).static_order())


def test_the_table_allows_nothing_that_is_not_used():
    used = {name: set() for name in allowed()}
    for path in PACKAGE.rglob("*.py"):
        used[box_of(path)] |= set(imported(path)) - {box_of(path)}
    assert used == allowed()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=str)
def test_every_package_says_its_job(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("folder", ["pyro_vae", "tests", "examples", "benchmarks", "contrib"])
def test_files_are_short(folder):
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / folder).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert not long


def test_every_folder_of_code_has_a_folder_of_tests():
    folders = {path.parent.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")}
    assert {f for f in folders if not (ROOT / "tests" / f / "__init__.py").is_file()} == set()
