"""The code of the how-to pages runs, in the order of the page, without data or network."""

import importlib.util
import re
from pathlib import Path

import pytest

HOWTO = Path(__file__).parents[2] / "docs/howto"


def blocks(page):
    """Return the Python blocks of a page, and the libraries that each needs."""
    found = re.findall(r"```python\n(.*?)```", (HOWTO / page).read_text(), re.DOTALL)
    needs = [re.match(r"# needs (.*)\n", block) for block in found]
    return [
        (block, [] if need is None else need[1].split(", "))
        for block, need in zip(found, needs, strict=True)
    ]


PAGES = sorted(path.name for path in HOWTO.glob("*.md") if "```python" in path.read_text())


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::pyro_vae.data.DataWarning"
)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    ran = 0
    for block, needed in blocks(page):
        if all(importlib.util.find_spec(name) for name in needed):
            exec(compile(block, page, "exec"), names)
            ran += 1
    assert ran
