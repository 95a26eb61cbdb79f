"""The pages of the documentation run, link to what exists, and name what is public."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import matplotlib
import pytest
import torch

import pyro_vae as pv
from pyro_vae.checkpointing.earlier_results import FILES
from tests.integration.test_howto import HOWTO

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TUTORIALS = sorted((DOCS / "tutorials").glob("*.py"))
PAGES = sorted(
    path
    for path in [*DOCS.rglob("*.md"), *TUTORIALS, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    if not {"build", "generated"} & set(path.relative_to(ROOT).parts)
)
EXECUTED = [page for page in PAGES if page.suffix == ".md" and "{code-cell}" in page.read_text()]
SHORT = {
    r"epochs=\d+": "epochs=1",
    r"steps=\d+": "steps=20",
    r"range\((?:300|2000)\)": "range(20)",
    r"100_000": "1000",
    r"num_samples=\d{3}": "num_samples=50",
    r"test\[:60\]": "test[:10]",
}
matplotlib.use("agg")


def run(code, path, tmp_path, monkeypatch, settings=SHORT):
    for setting, short in settings.items():
        code = re.sub(setting, short, code)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(path), "exec"), {"__name__": "__page__"})


@pytest.mark.parametrize("script", TUTORIALS, ids=lambda script: script.stem)
def test_a_tutorial_runs_with_short_settings(script, tmp_path, monkeypatch):
    settings = {} if script.stem == "own_model" else SHORT  # it compares with an exact value
    run(script.read_text(), script, tmp_path, monkeypatch, settings)


def cells(page):
    """Return the code of a page that the site executes."""
    found = r"```\{code-cell\} python\n(?::[^\n]*\n)*(.*?)```"
    return re.findall(found, page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: str(page.relative_to(DOCS)))
def test_an_executed_page_runs_with_short_settings(page, tmp_path, monkeypatch):
    run("\n".join(cells(page)), page, tmp_path, monkeypatch)


def test_the_executed_pages_are_found():
    assert len(cells(DOCS / "aevb.md")) > 15
    assert {page.parent.name for page in EXECUTED} == {"docs", "explanation", "models"}


def test_each_tutorial_and_guide_is_in_its_index():
    for folder, suffix in ((DOCS / "tutorials", "py"), (HOWTO, "md"), (DOCS / "models", "md")):
        listed = (folder / "index.md").read_text().split()
        assert {page.stem for page in folder.glob(f"*.{suffix}")} - {"index"} <= set(listed)


def prose(path):
    """Return the text of a page without code blocks; of a script, its Markdown cells."""
    text = path.read_text()
    if path.suffix == ".py":
        cells = re.findall(r"^# %% \[markdown\]\n((?:#.*\n)*)", text, re.MULTILINE)
        return re.sub(r"^# ?", "", "\n".join(cells), flags=re.MULTILINE)
    return re.sub(r"^(```+|:::+).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(path):
    """Return the anchors of a page: its labels, and its headings as GitHub and MyST slug them."""
    text = prose(path)
    found = set(re.findall(r"^\(([\w-]+)\)=", text, re.MULTILINE))
    for heading in re.findall(r"^#+ (.*)", text, re.MULTILINE):
        plain = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower().strip()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


def broken_links(path):
    """Yield the links of a page that lead to no file, page or anchor."""
    text = re.sub(r"`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$", "", prose(path), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", link):
            continue
        target, _, anchor = unquote(link).partition("#")
        to = (path.parent / target).resolve() if target else path
        found = [to, to.with_name(f"{to.name}.md"), to.with_name(f"{to.name}.py")]
        file = next((name for name in found if name.exists()), None)
        if file is None or (anchor and anchor not in anchors(file)):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page):
    assert list(broken_links(page)) == []


def test_broken_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One two\n(here)=\n[a](#one-two) [b](#here) [c](page) [d](no.md) [e](#no)\n")
    assert list(broken_links(page)) == ["no.md", "#no"]


def long_lines(path):
    """Return the lines of prose over 140 characters: no tables, indented code or formulas."""
    text = re.sub(r"\$\$.*?\$\$", "", prose(path), flags=re.DOTALL)
    lines = re.sub(r"^(\||    ).*", "", text, flags=re.MULTILINE).splitlines()
    return [line for line in lines if len(line) > 140]


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_lines_of_prose_have_at_most_140_characters(page):
    assert long_lines(page) == []


def test_long_lines_are_found(tmp_path):
    page, line = tmp_path / "page.md", 29 * "word "
    page.write_text(f"# One\n{line}\n| {line} |\n\n    {line}\n\n```py\n{line}\n```\n- two\n")
    assert long_lines(page) == [line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_formulas_of_a_page_can_be_displayed(page, monkeypatch):
    pytest.importorskip("docutils.utils.math.latex2mathml")
    monkeypatch.syspath_prepend(DOCS / "_ext")
    mathml = importlib.import_module("mathml").mathml
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    for block, inline in re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", text, re.DOTALL):
        mathml((block or inline).strip(), bool(block))


@pytest.mark.parametrize(
    ("formula", "tags"),
    [
        (r"\hat\mu_i", ["msub", "mover", "mi", "mo", "mi"]),
        (r"\hat\mu_i^2", ["msubsup", "mover", "mi", "mo", "mi", "mn"]),
        (r"\sum_i^n x", ["munderover", "mo", "mi", "mi", "mi"]),
        (r"\mu_i^2", ["msubsup", "mi", "mi", "mn"]),
    ],
)
def test_subscripts_are_next_to_an_accented_letter(formula, tags, monkeypatch):
    pytest.importorskip("docutils.utils.math.latex2mathml")
    monkeypatch.syspath_prepend(DOCS / "_ext")
    written = importlib.import_module("mathml").mathml(formula, True)
    assert [part.tag.partition("}")[2] for part in ElementTree.fromstring(written).iter()] == [
        "math",
        *tags,
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_names_on_a_page_exist(page):
    for name in set(re.findall(r"\bpv((?:\.[A-Za-z_]\w*)+)", page.read_text())):
        found = pv
        for part in name[1:].split("."):
            found = getattr(found, part)


def test_each_public_name_has_a_place_in_the_reference():
    listed = set((DOCS / "reference/index.md").read_text().split())
    assert set(pv.__all__) <= listed


def test_the_page_of_the_run_folder_names_each_file_and_key(tmp_path):
    page = (DOCS / "reference/run_folder.md").read_text()
    named = set(re.findall(r"`([\w./-]+)`", page))
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.networks.MLP(2, [4], 5)),
        pv.guides.DiagonalNormal(pv.networks.MLP(5, [4], 4)),
    )
    x = torch.rand(8, 5).round()
    fit = pv.fit(vae, x, validation=x, epochs=1, progress=False, out=tmp_path)
    pv.report(vae, fit, x, tmp_path, num_samples=5)
    files = {path.name + "/" * path.is_dir() for path in tmp_path.iterdir()}
    assert {name for name in files if not name.startswith(".")} | set(FILES) <= named
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics) | set(metrics["history"][0]) <= named


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The documentation, built with warnings as errors and without running its code."""
    for library in ("sphinx", "myst_nb", "pydata_sphinx_theme", "sphinx_copybutton"):
        pytest.importorskip(library)
    out = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--builder", "html", "--quiet"]
    done = subprocess.run(
        [*build, "--define", "nb_execution_mode=off", str(DOCS), str(out)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_the_site_is_built_and_its_links_lead_somewhere(site):
    identifiers, broken = {}, []
    pages = {path: path.read_text() for path in site.rglob("*.html") if "_modules" not in str(path)}
    for path, text in pages.items():
        identifiers[path] = set(re.findall(r'\bid="([^"]+)"', text))
    for path, text in pages.items():
        for link in set(re.findall(r'<a [^>]*href="([^"]+)"', text)):
            if re.match(r"https?://|mailto:", link):
                continue
            target, _, anchor = unquote(link).partition("#")
            to = (path.parent / target).resolve() if target else path
            if not to.exists() or (anchor and anchor not in identifiers.get(to, {anchor})):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


@pytest.mark.slow
def test_names_link_to_the_reference_and_to_other_projects(site):
    page = (site / "howto/class_of_svi.html").read_text()
    assert 'href="../reference/generated/pyro_vae.SVI.html#pyro_vae.SVI"' in page
    assert "https://docs.pyro.ai/en/stable/inference_algos.html#pyro.infer.svi.SVI" in page
    commands = (site / "reference/cli.html").read_text()
    for name in ("describe", "train", "evaluate", "inspect", "encode", "score", "impute"):
        assert f"pyro-vae {name}" in re.sub(r"<[^>]+>", "", commands)
    llms = (site / "llms.txt").read_text()
    for link in re.findall(r"\]\(([^)]+)\)", llms):
        assert (site / link).exists(), link
