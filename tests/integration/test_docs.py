"""The tutorials run, and every how-to guide is listed."""

import re
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.py"))
matplotlib.use("agg")


def run(code, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(path), "exec"), {"__name__": "__page__"})


@pytest.mark.parametrize("script", TUTORIALS, ids=lambda script: script.stem)
def test_a_tutorial_runs_with_fewer_epochs(script, tmp_path, monkeypatch):
    code = script.read_text()
    if script.stem != "own_model":  # it compares with an exact value
        code, found = re.subn(r"epochs=\d+", "epochs=1", code)
        assert found
    run(code, script, tmp_path, monkeypatch)


def test_each_guide_is_in_the_index():
    listed = (ROOT / "docs/howto/index.md").read_text().split()
    pages = {page.stem for page in (ROOT / "docs/howto").glob("*.md")} - {"index"}
    assert pages <= set(listed)
