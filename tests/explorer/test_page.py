"""The page of the explorer: a browser shows it, and its pictures are those of `vae.decode`."""

import base64
import html
import json
import re
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vae as pv
from pyro_vae.explorer import contents
from pyro_vae.explorer.explorer import SCRIPTS, module
from pyro_vae.networks import MLP, ConvDecoder, ConvEncoder, WithContext
from tests.explorer.cases import CHROMIUM, NODE

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is on PATH")
MAX_BYTES = 8_000_000
# Helpers of a script that uses the page as a person does.
ACT = """
const page = document.getElementById("explorer").explorer;
const canvas = page.canvas;
const point = (type, x, y) => {
  const box = canvas.getBoundingClientRect();
  canvas.dispatchEvent(new PointerEvent(type, { clientX: box.left + x, clientY: box.top + y,
    pointerId: 1, bubbles: true }));
};
const key = (name) => canvas.dispatchEvent(
  new KeyboardEvent("keydown", { key: name, bubbles: true }));
const slide = (input, value) => {
  input.value = value;
  input.dispatchEvent(new Event("input", { bubbles: true }));
};
const seen = [];
const look = (what) => {
  page.refresh();
  const picture = page.picture && page.picture.getContext("2d").getImageData(
    0, 0, page.picture.width, page.picture.height).data;
  seen.push({ what, z: Array.from(page.z), mean: Array.from(page.decoded.mean),
    pixels: picture && Array.from(picture), text: page.root.innerText });
};
"""


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    x = torch.rand(7, 3, 8, 8).round()
    vae = pv.VAE(
        pv.priors.StandardNormal(4),
        pv.likelihoods.Bernoulli(ConvDecoder(4, [6, 4], (3, 8, 8))),
        pv.guides.DiagonalNormal(ConvEncoder((3, 8, 8), [4], 8)),
    )
    data = pv.data.Dataset(
        x, labels=torch.arange(7) % 3, name="</script><b>", class_names=("a", "<i>", "c")
    )
    return vae, pv.explorer.Explorer(vae, data, num_samples=20, refine=True)


@pytest.fixture(scope="module")
def table():
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": random.normal(40, 9, 60).round(1),
            "income": random.lognormal(8, 1, 60),
            "colour": random.choice(["red", "green", "blue"], 60),
            "member": random.choice(["no", "yes"], 60),
            "since": pd.date_range("2020-01-01", periods=60, freq="9D"),
        }
    )
    frame.loc[3, "age"] = None
    data = pv.data.open(frame)
    torch.manual_seed(0)
    vae = pv.suggest(data, latent_dim=3, show=False)
    return vae, pv.explorer.Explorer(vae, data, num_samples=20)


def used(explorer, actions, tmp_path, width=1000):
    """Return what a script has seen that acts on the page."""
    script = f"""<script type="module">{ACT}
    try {{ {actions} }} catch (error) {{ seen.push(String(error.stack)); }}
    const found = document.createElement("p");
    found.id = "seen";
    found.textContent = JSON.stringify(seen);
    document.body.append(found);
    </script>"""
    path = tmp_path / "page.html"
    path.write_text(explorer.html().replace("</body>", script + "</body>"))
    if width < 500:  # Chromium's window has a least width, a frame has none
        page = html.escape(path.read_text())
        frame = f'<iframe style="width: {width}px; height: 800px" srcdoc="{page}">'
        copied = """<p id="seen"></p><script>addEventListener("load", () => setTimeout(() => {
          document.querySelector("#seen").textContent =
            document.querySelector("iframe").contentDocument.querySelector("#seen").textContent;
        }, 500));</script>"""
        path.write_text(f"{frame}</iframe>{copied}")
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"),
            *("--window-size=1000,800", "--virtual-time-budget=4000", "--dump-dom", path.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(html.unescape(re.findall(r'id="seen">(.+?)</p>', done.stdout)[-1]))


def check_means(vae, seen):
    for step in seen:
        assert isinstance(step, dict), step
        with torch.no_grad():
            mean = vae.decode(torch.tensor([step["z"]])).mean[0]
        difference = (torch.tensor(step["mean"]).reshape(mean.shape) - mean).abs()
        assert (difference / mean.abs().clamp(min=1)).max() < 1e-3
        if step.get("pixels"):
            shown = torch.tensor(step["pixels"]).reshape(*mean.shape[1:], 4)[..., :3].movedim(-1, 0)
            assert (shown / 255 - mean).abs().max() < 1 / 255 + 1e-3


@needs_chromium
def test_images_are_decoded_while_the_point_moves(images, tmp_path):
    vae, explorer = images
    actions = """
      look("first");
      point("pointerdown", 300, 200); look("pressed");
      for (let i = 0; i < 5; i++) point("pointermove", 300 + 10 * i, 200 + 4 * i);
      look("dragged");
      point("pointerup", 340, 216); point("pointermove", 100, 100); look("released");
      canvas.focus(); key("ArrowRight"); key("ArrowUp"); look("keys");
      slide(page.sliders[1].input, 1.25); look("slid");
      slide(page.slider, 0.5); look("halfway");
      slide(page.slider, 1); look("end");
      key("Enter"); look("chosen");
      page.tileBox.checked = true; page.tileBox.dispatchEvent(new Event("change")); look("tiles");
      seen.push({ z: page.z, mean: Array.from(page.decoded.mean), error: page.error,
        inactive: document.activeElement === canvas, fonts: Math.min(...Array.from(
          document.querySelectorAll("main *"), (e) => parseFloat(getComputedStyle(e).fontSize))) });
    """
    *steps, last = used(explorer, actions, tmp_path)
    check_means(vae, [*steps, last])
    by_name = {step["what"]: step for step in steps}
    order = ["first", "pressed", "dragged", "keys", "slid", "halfway", "end"]
    pictures = {tuple(by_name[name]["pixels"]) for name in order}
    assert len(pictures) == len(order)
    assert by_name["released"]["z"] == by_name["dragged"]["z"]
    largest = np.argsort([-latent["kl"] for latent in explorer.contents["latents"]])
    assert by_name["slid"]["z"][largest[1]] == pytest.approx(1.25, abs=0.05)
    moved = np.subtract(by_name["slid"]["z"], by_name["keys"]["z"])
    assert np.flatnonzero(np.abs(moved) > 1e-6).tolist() == [largest[1]]
    assert by_name["chosen"]["z"] == pytest.approx(
        by_name["end"]["z"]
    )  # the end of the path is a datum
    assert "k-hat" in by_name["chosen"]["text"]
    assert "× refined" in by_name["chosen"]["text"]
    assert last["error"] < 1e-3
    assert last["inactive"]
    assert last["fonts"] >= 11


@needs_chromium
def test_the_condition_of_a_conditional_vae_can_be_chosen(tmp_path):
    torch.manual_seed(0)
    y = torch.eye(3)[torch.arange(12) % 3]
    x = torch.rand(12, 1, 6, 6).round()
    vae = pv.ConditionalVAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(WithContext(MLP(2 + 3, [8], (1, 6, 6)), in_shape=2)),
        pv.guides.DiagonalNormal(WithContext(MLP(36 + 3, [8], 4), in_shape=(1, 6, 6))),
    )
    explorer = pv.explorer.Explorer(vae, (x, y), num_samples=20, refine=True)
    assert explorer.contents["conditions"]["names"] == ["y[2]", "y[1]", "y[0]"]
    scores = pv.evaluate(vae, (x, y), num_samples=20, seed=0)
    stored = base64.b64decode(explorer.contents["data"]["log_p"]["data"])
    assert np.allclose(np.frombuffer(stored, np.float32), scores.log_likelihood)
    actions = """
      page.choose(4); look("own");
      const choice = page.conditionSelect;
      for (const k of [1, 2, 3]) {
        choice.value = k; choice.dispatchEvent(new Event("change")); look(`condition ${k}`);
      }
      choice.value = 0; choice.dispatchEvent(new Event("change")); look("own again");
      page.choose(5); look("next");
      seen.push({ error: page.error, labels: [...choice.options].map((o) => o.textContent) });
    """
    *steps, last = used(explorer, actions, tmp_path)
    expected = [y[4], *y[[2, 1, 0]], y[4], y[5]]
    for step, condition in zip(steps, expected, strict=True):
        with torch.no_grad():
            mean = vae.decode(torch.tensor([step["z"]]), condition[None]).mean.flatten()
        assert torch.allclose(torch.tensor(step["mean"]), mean, atol=1e-5), step["what"]
    assert steps[0]["z"] == steps[3]["z"] != steps[5]["z"]
    assert "y[1] · log p(x|y)" in steps[0]["text"]
    assert last["labels"] == ["of the chosen datum", "y[2]", "y[1]", "y[0]"]
    assert last["error"] < 1e-5


@needs_chromium
def test_a_table_is_shown_as_columns_and_levels_on_a_phone(table, tmp_path):
    vae, explorer = table
    actions = """
      look("first");
      slide(page.sliders[0].input, 0.7); look("slid");
      page.choose(3); look("missing");
      const root = document.documentElement;
      seen.push({ z: page.z, mean: Array.from(page.decoded.mean), needed: root.scrollWidth,
        width: root.clientWidth, rows: page.rows.rows.map(({ column, text, mark, parts }) => [
          column.name, text.textContent, mark.hidden, parts.length]) });
    """
    *steps, last = used(explorer, actions, tmp_path, width=390)
    check_means(vae, [*steps, last])
    assert last["needed"] <= last["width"] <= 390
    assert [row[0] for row in last["rows"]] == ["age", "income", "colour", "member", "since"]
    texts = {row[0]: row[1] for row in last["rows"]}
    assert re.fullmatch(r"(red|green|blue) \d+%", texts["colour"])
    assert re.fullmatch(r"(no|yes) \d+%", texts["member"])
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", texts["since"])
    assert [row[2] for row in last["rows"]] == [True, False, False, False, False]  # age is missing
    assert [row[3] for row in last["rows"]] == [1, 1, 3, 2, 1]


@pytest.mark.parametrize("kind", ["images", "table"])
def test_the_page_refers_to_nothing_outside_of_itself(kind, request):
    _, explorer = request.getfixturevalue(kind)
    page = explorer.html()
    assert len(page.encode()) < MAX_BYTES
    assert not re.search(r"https?:|url\(|@import|\bimport |src=", page)
    assert page.count("</script>") == 2  # its contents are no markup
    assert "<b>" not in page
    assert "<i>" not in page


def test_a_page_of_large_images_has_fewer_data(monkeypatch):
    monkeypatch.setattr(contents, "MAX_DATA_BYTES", 20_000)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(MLP(2, [4], (3, 16, 16))),
        pv.guides.DiagonalNormal(MLP((3, 16, 16), [2], 4)),
    )
    explorer = pv.explorer.Explorer(vae, torch.zeros(60, 3, 16, 16), num_samples=2)
    assert len(explorer.contents["data"]["rows"]) == 20_000 // (3 * 16 * 16)
    assert "26 of 60 data" in explorer.contents["notes"][0]


@pytest.mark.parametrize(
    ("prior", "guide", "latent_dim", "geometry"),
    [
        (pv.priors.HypersphericalUniform(3), pv.guides.PowerSpherical(MLP(5, [4], 4)), 3, "sphere"),
        (pv.priors.Dirichlet(3), pv.guides.Dirichlet(MLP(5, [4], 3)), 3, "simplex"),
        (pv.priors.Categorical(3), pv.guides.Categorical(MLP(5, [4], 3)), 3, "codes"),
        (pv.priors.Flow(2), pv.guides.Flow(MLP(5, [4], 7), 2), 2, "plane"),
        (pv.priors.StandardNormal(1), pv.guides.DiagonalNormal(MLP(5, [4], 2)), 1, "normal"),
    ],
)
def test_points_stay_in_the_support_of_the_prior(prior, guide, latent_dim, geometry, tmp_path):
    likelihood = pv.likelihoods.Poisson(MLP(latent_dim, [4], 5))
    vae = pv.VAE(prior, likelihood, guide)
    explorer = pv.explorer.Explorer(vae, torch.ones(10, 5), num_samples=5)
    assert explorer.contents["geometry"] == geometry
    if NODE is None:
        pytest.skip("no node is on PATH to run the geometry with")
    (tmp_path / "explorer.mjs").write_text(
        module().replace("export default", "export const widget =")
    )
    (tmp_path / "run.mjs").write_text(
        f"""
        import {{ pathAt, projected, withLatent, View }} from "./explorer.mjs";
        const size = {latent_dim};
        const unit = (i) => Array.from({{ length: size }}, (_, k) => +(k === i));
        const a = projected(unit(0).map((v) => v + 0.1), "{geometry}");
        const b = projected(unit(size - 1).map((v) => 0.9 * v - 0.05), "{geometry}");
        const found = [0, 0.3, 0.5, 1].map((t) => pathAt(a, b, t, "{geometry}"));
        found.push(withLatent(a, size - 1, 0.7, "{geometry}"));
        const [across, up] = [unit(0), unit(size - 1)].map((vector) => ({{ vector, offset: 0.2 }}));
        const view = new View(across, up);
        found.push(projected(view.moved(a, [0.3, 0.4]), "{geometry}"));
        console.log(JSON.stringify({{ ends: [a, b], found }}));
        """
    )
    done = subprocess.run(
        [NODE, tmp_path / "run.mjs"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    result = json.loads(done.stdout)
    found = torch.tensor(result["found"], dtype=torch.float64)
    assert vae.model.prior().support.check(found.float()).all()
    assert torch.allclose(found[[0, 3]], torch.tensor(result["ends"], dtype=torch.float64))


def test_a_great_circle_keeps_the_speed_of_a_turn(tmp_path):
    if NODE is None:
        pytest.skip("no node is on PATH to run the geometry with")
    (tmp_path / "explorer.mjs").write_text(module())
    (tmp_path / "run.mjs").write_text(
        """
        import { pathAt } from "./explorer.mjs";
        const places = [0, 0.25, 0.5, 0.75, 1];
        console.log(JSON.stringify(places.map((t) => pathAt([2, 0, 0], [0, 3, 0], t, "normal"))));
        """
    )
    done = subprocess.run(
        [NODE, tmp_path / "run.mjs"], capture_output=True, text=True, timeout=60, check=True
    )
    path = np.array(json.loads(done.stdout))
    assert np.allclose(np.linalg.norm(path, axis=1), [2, 2.25, 2.5, 2.75, 3])
    assert np.allclose(np.degrees(np.arctan2(path[:, 1], path[:, 0])), [0, 22.5, 45, 67.5, 90])


def test_the_widget_needs_a_named_extra(images, monkeypatch):
    _, explorer = images
    monkeypatch.setitem(__import__("sys").modules, "anywidget", None)
    with pytest.raises(ImportError, match=r"anywidget: pip install 'pyro-vae\[notebook\]'"):
        explorer.widget()


def test_a_notebook_without_anywidget_shows_the_page_in_a_frame(images, monkeypatch):
    _, explorer = images
    monkeypatch.setitem(__import__("sys").modules, "anywidget", None)
    bundle = explorer._repr_mimebundle_()
    assert list(bundle) == ["text/html"]
    page = re.fullmatch(r'<iframe .*?srcdoc="([^"]*)".*></iframe>', bundle["text/html"], re.DOTALL)
    assert html.unescape(page[1]) == explorer.html()
    assert "<script" not in bundle["text/html"]


def test_the_widget_has_the_module_and_the_contents(images):
    pytest.importorskip("anywidget")
    _, explorer = images
    widget = explorer.widget()
    assert widget.contents == explorer.contents
    assert "export default" in str(widget._esm)


def test_the_module_has_no_imports_left():
    assert not re.search(r"^import", module(), re.MULTILINE)
    assert len(SCRIPTS) == 6
