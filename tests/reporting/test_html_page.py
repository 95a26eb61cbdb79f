"""The page of a run: it stands alone, says what the card says, and shows in a browser."""

import base64
import dataclasses
import html
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import matplotlib.image
import pytest

import pyro_vae as pv
from pyro_vae import cli
from pyro_vae.reporting import html_page as pages
from pyro_vae.reporting.glossary import GLOSSARY

pytestmark = pytest.mark.xdist_group("html page")  # a module's runs are made once

EVIL = "<script>alert('x')</script>&\""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


class Page(HTMLParser):
    """The tags of a page with their attributes, the values of its <data>, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)
        self.values = [float(attrs["value"]) for tag, attrs in self.tags if tag == "data"]
        self.images = [attrs for tag, attrs in self.tags if tag == "img"]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def inspect(monkeypatch, *arguments):
    """Run the command as a shell does; return its exit status or the sentence it ends with."""
    monkeypatch.setattr(sys, "argv", ["pyro-vae", "inspect", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of one epoch, and its model."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train, test = pv.data.load("mnist-5k", seed=3)
    vae = pv.VAE(
        pv.priors.StandardNormal(3),
        pv.likelihoods.Bernoulli(pv.networks.MLP(3, [16], (1, 28, 28))),
        pv.guides.DiagonalNormal(pv.networks.MLP((1, 28, 28), [16], 6)),
    )
    fit = pv.fit(vae, train, epochs=1, seed=3, out=out)
    pv.report(vae, fit, test, out, num_samples=10, seed=3)
    return out


@pytest.fixture(scope="module")
def inspected(trained, tmp_path_factory):
    """The run once more, with its card as JSON and its page, by the command."""
    run = tmp_path_factory.mktemp("inspected") / "run"
    shutil.copytree(trained, run)
    path = run.parent / "new" / "report.html"
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert inspect(monkeypatch, run, "--html", path, "--num-data", 20, "--num-samples", 50) == 0
    return run, path.read_text()


def test_the_page_refers_to_nothing_outside_of_itself(inspected):
    _, text = inspected
    page = Page(text)
    references = [
        value
        for _, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "srcset", "href", "action", "data", "poster", "style")
    ]
    assert references
    assert all(reference.startswith(("data:", "#")) for reference in references)
    assert {"script", "iframe", "object", "base"}.isdisjoint(tag for tag, _ in page.tags)
    assert not re.search(r"url\(|@import|https?:", text)


def test_every_picture_has_words_and_decodes(inspected):
    run, text = inspected
    page = Page(text)
    pictures = []
    for image in page.images:
        assert len(image["alt"]) > 20
        scheme, encoded = image["src"].split(",")
        assert scheme == "data:image/png;base64"
        pictures.append(base64.b64decode(encoded, validate=True))
        assert matplotlib.image.imread(io.BytesIO(pictures[-1])).size > 1000
    assert len({image["alt"] for image in page.images}) == len(pictures)
    assert sum(tag == "figcaption" for tag, _ in page.tags) == len(pictures)
    kept = [path.read_bytes() for path in run.glob("*.png")]
    assert len(kept) == 5  # those of `report` for three latents, as they are
    assert all(picture in pictures for picture in kept)
    assert len(pictures) == len(kept) + 5


def test_the_page_says_what_the_json_says(inspected):
    run, text = inspected
    page = Page(text)
    card = json.loads((run / "trust.json").read_text())
    metrics = json.loads((run / "metrics.json").read_text())
    scores = [f"test_{name}" for name in ("elbo", "reconstruction", "kl", "log_likelihood")]
    assert page.values == [
        *(finding["value"] for finding in card["findings"].values()),
        *(metrics[name + suffix] for name in scores for suffix in ("", "_se")),
    ]
    assert len(card["findings"]) == 9
    assert (card["num_data"], card["num_samples"], card["seed"]) == (20, 50, 0)
    assert f"Verdict: {card['verdict']}" in page.text
    words = [card["latents"], *card["reasons"], *card["findings"]]
    words += [finding["meaning"] for finding in card["findings"].values()]
    words += ["mnist-5k", "dynamic", "pv.likelihoods.Bernoulli(", *metrics["versions"].values()]
    words += [f"{metrics['test_elbo']:.2f}", f"{metrics['test_elbo_se']:.2f}"]
    assert [word for word in words if word not in page.text] == []


def test_headings_go_down_one_at_a_time_and_the_page_fits_a_phone(inspected):
    page = Page(inspected[1])
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    (viewport,) = [attrs for tag, attrs in page.tags if attrs.get("name") == "viewport"]
    assert "width=device-width" in viewport["content"]


def test_what_a_user_named_is_text_and_never_markup(trained, tmp_path):
    run = tmp_path / "<script>alert('run')<"
    shutil.copytree(trained, run)
    vae = pv.load(run / "model")
    metrics = json.loads((run / "metrics.json").read_text())
    metrics |= {"dataset": EVIL, "binarization": EVIL, "versions": {"torch": EVIL}}
    vae.build_arguments[EVIL] = EVIL
    x = pv.data.load("mnist-5k", seed=3)[1][:5]
    card = pv.diagnose(vae, x, num_samples=30, num_gap_data=0, num_simulations=0)
    worst = dataclasses.replace(card.findings[0], name=EVIL, unit=EVIL, meaning=EVIL, value=1.0)
    card = dataclasses.replace(card, findings=(worst, *card.findings[1:]))
    pages.write(tmp_path / "page.html", run, metrics, vae, x, card)
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert "<script" not in text
    assert page.text.count(EVIL) >= 9
    assert run.name in page.text
    assert len(page.images) == 5 + 4  # no gaps where none were found


def test_the_page_of_a_refined_card_shows_the_encoder_the_answers_and_a_glossary(trained, tmp_path):
    vae = pv.load(trained / "model")
    metrics = json.loads((trained / "metrics.json").read_text())
    x = pv.data.load("mnist-5k", seed=3)[1][:6]
    settings = {"num_gap_data": 2, "num_simulations": 0}
    card = pv.diagnose(vae, x, num_samples=200, refine=True, **settings)
    card.per_datum["khat"][1] = 0.9  # uncured
    pages.write(tmp_path / "page.html", trained, metrics, vae, x, card)
    page = Page((tmp_path / "page.html").read_text())
    for answer in card.answers:
        for words in (answer.question, answer.short, answer.reason, answer.next_step):
            assert words in page.text
    assert "uncured data, by position in the data of this page from 0: 1" in page.text
    assert "Data not to be trusted" in page.text
    assert "The encoder" in page.text
    found = [finding.value for finding in (*card.findings, *card.encoder)]
    assert page.values[: len(found)] == found
    for word, meaning in GLOSSARY.items():
        assert word in page.text
        assert meaning in page.text


def test_the_explorer_is_a_section_of_the_page(trained, tmp_path):
    vae = pv.load(trained / "model")
    metrics = json.loads((trained / "metrics.json").read_text())
    x = pv.data.load("mnist-5k", seed=3)[1][:5]
    card = pv.diagnose(vae, x, num_samples=30, num_gap_data=0, num_simulations=0)
    explorer = pv.explorer.Explorer(vae, x, num_samples=5)
    pages.write(tmp_path / "page.html", trained, metrics, vae, x, card, explorer)
    text = (tmp_path / "page.html").read_text()
    assert explorer.section() in text
    assert "Latent space" in Page(text).text
    assert not re.search(r"url\(|@import|https?:", text)
    assert len(text) < 8_000_000


@pytest.mark.parametrize("refine", [False, True])
def test_the_commands_pass_refine_on(trained, monkeypatch, refine):
    calls = {}

    def record(name):
        def call(*args, **settings):
            calls[name] = settings
            raise ValueError("recorded")

        return call

    for name in ("evaluate", "diagnose"):
        monkeypatch.setattr(pv, name, record(name), raising=False)
        command = {"evaluate": "evaluate", "diagnose": "inspect"}[name]
        options = ["--refine"] if refine else []
        monkeypatch.setattr(sys, "argv", ["pyro-vae", command, str(trained), *options])
        with pytest.raises(SystemExit, match="recorded"):
            cli.main()
    assert calls["evaluate"]["proposal"] == ("refined" if refine else "guide")
    assert calls["diagnose"]["refine"] == refine


def test_a_number_that_is_not_known_is_said_to_be(trained, tmp_path):
    vae = pv.load(trained / "model")
    metrics = json.loads((trained / "metrics.json").read_text())
    x = pv.data.load("mnist-5k", seed=3)[1][:2]
    # Ten draws have no tail that k-hat could be fitted to.
    card = pv.diagnose(vae, x, num_samples=10, num_gap_data=0, num_simulations=0)
    pages.write(tmp_path / "page.html", trained, metrics, vae, x, card)
    page = Page((tmp_path / "page.html").read_text())
    assert page.values[0] != page.values[0]
    assert "inspect: share of k-hat above the limit is unknown" in page.text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "nowhere: no such directory"),
        (["empty"], "empty is not the folder of a training run: it has no metrics.json"),
        (["half"], "half is not the folder of a training run: it has no model"),
        (["damaged"], "damaged/metrics.json is damaged: "),
        (["silent"], "silent/metrics.json is damaged: .* lacks binarization, dataset, num_import"),
        (["arrays"], "cannot load the test data of the run: unknown dataset 'arrays'"),
        (
            ["fashion-mnist"],
            "cannot load the test data of the run: .* not in .* and not downloaded",
        ),
        (["mnist"], "cannot load the test data of the run: expected mnist, found mnist-5k"),
        (["run", "--num-data", "0"], "--num-data must be a whole number of at least 2, got 0"),
        (["run", "--num-data", "1"], "--num-data must be a whole number of at least 2, got 1"),
        (
            ["run", "--num-samples", "0"],
            r"--num-samples must be a whole number from 1 to 100000000, got 0",
        ),
        (["run", "--html", "empty"], "--html empty is a folder"),
        (["run", "--html", "/dev/null/x/page.html"], "the output folder '/dev/null/x' cannot be"),
    ],
)
@pytest.mark.filterwarnings("ignore:using mnist-5k:pyro_vae.data.catalogue.DataWarning")
def test_a_mistake_is_a_sentence_before_any_work(
    trained, tmp_path, monkeypatch, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path / "data"))
    for scheme in ("http", "https"):  # a proxy that nobody listens at
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(pv, "diagnose", lambda *args, **kwargs: pytest.fail("work was begun"))
    metrics = json.loads((trained / "metrics.json").read_text())
    shutil.copytree(trained, "run")
    for name in ("arrays", "fashion-mnist", "mnist", "damaged", "silent", "half"):
        (tmp_path / name).mkdir()
        text = json.dumps(metrics | {"dataset": name})
        (tmp_path / name / "metrics.json").write_text(
            {"damaged": text[:20], "silent": "{}"}.get(name, text)
        )
        if name != "half":
            shutil.copytree(trained / "model", tmp_path / name / "model")
    (tmp_path / "empty").mkdir()
    said = inspect(monkeypatch, *arguments)
    assert re.match(f"error: .*{sentence}", str(said)), said
    assert not list(tmp_path.rglob("trust.json"))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is on PATH to open the page with")
@pytest.mark.parametrize("width", [400, 1280])
def test_a_browser_shows_all_pictures_and_no_sideways_scrolling(inspected, tmp_path, width):
    # Chromium's window has a least width, a frame has none; its width is what the page adapts to.
    (tmp_path / "frame.html").write_text(f"""
        <iframe style="width: {width}px; height: 800px; border: 0"
            srcdoc="{html.escape(inspected[1])}"></iframe>
        <p id="seen"></p>
        <script>
        addEventListener("load", () => {{
          const page = document.querySelector("iframe").contentDocument;
          const root = page.documentElement;
          document.querySelector("#seen").textContent = JSON.stringify({{
            width: root.clientWidth, needed: root.scrollWidth,
            boxes: Array.from(page.querySelectorAll(".box"), b => b.scrollWidth - b.clientWidth),
            images: Array.from(page.images, image => image.naturalWidth),
            shown: Array.from(page.images, image => image.width),
          }});
        }});
        </script>""")
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"),
            *("--virtual-time-budget=10000", "--dump-dom", (tmp_path / "frame.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    seen = json.loads(re.search(r'id="seen">(.+?)</p>', done.stdout)[1])
    assert width - 20 <= seen["width"] <= width  # but for a scroll bar
    assert seen["needed"] <= seen["width"]
    assert set(seen["boxes"]) == {0}
    assert len(seen["images"]) == len(Page(inspected[1]).images)
    assert min(seen["images"]) > 100
    assert min(seen["shown"]) > 100
