"""Make the moving pictures of the README: training, and the latent explorer.

`training.webp` shows images of the model after each epoch, next to the validation ELBO.
`explorer.webp` is drawn by the page of `pyro_vae.explorer` in headless Chromium.

    python docs/pictures/make_moving.py            # trains a model and makes both
    python docs/pictures/make_moving.py runs/mnist # the explorer of a run of examples/mnist_svi.py
"""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

import pyro_vae as pv

HERE = Path(__file__).parent
LATENTS, EPOCHS = 20, 20
WIDTH, HEIGHT = 1180, 900  # of the browser
SHOWN, SIDE = 620, 260  # widths of map and decoded image
MAX_BYTES = 1_000_000
# The point goes along a path, and then around the map.
STEPS = """<script type="module">
const page = document.getElementById("explorer").explorer, frames = [];
page.choose(START);
page.setEnd(0, START);
page.setEnd(1, END);
const look = () => {
  page.refresh();
  frames.push([page.canvas.toDataURL(), page.picture.toDataURL()]);
};
for (let i = 0; i <= 20; i++) { page.walk(i / 20); look(); }
const [across, up] = page.map.view.of(page.z);
for (let i = 1; i <= 20; i++) {
  const angle = (2 * Math.PI * i) / 20;
  page.moveTo(page.map.view.moved(page.z,
    [across - 2.2 * Math.sin(angle), up - 1.6 * (1 - Math.cos(angle))]));
  look();
}
const found = document.createElement("p");
found.id = "frames";
found.textContent = frames.flat().join(" ");
document.body.append(found);
</script>"""


def main() -> None:
    """Train a model and write both pictures, or write the explorer of a run."""
    torch.manual_seed(0)
    if sys.argv[1:]:
        run = Path(sys.argv[1])
        name = json.loads((run / "metrics.json").read_text())["dataset"]
        test = pv.data.load(name, binarize="dynamic")[1]
        _write(HERE / "explorer.webp", _explorer_frames(pv.load(run / "model"), test), 130)
        return
    train, test = pv.data.mnist(binarize="dynamic")
    train, validation = train.hold_out(1 / 12)
    vae = pv.VAE(
        pv.priors.StandardNormal(LATENTS),
        pv.likelihoods.Bernoulli(
            pv.networks.MLP(LATENTS, [500], (1, 28, 28), output_bias=train.log_odds())
        ),
        pv.guides.DiagonalNormal(pv.networks.MLP((1, 28, 28), [500], 2 * LATENTS)),
    )
    z = torch.randn(48, LATENTS)
    seen = []

    @torch.no_grad()
    def look(epoch: dict[str, float]) -> None:
        curve = [*seen[-1][1], epoch["validation_elbo"]]
        seen.append((vae.decode(z).mean[:, 0].numpy(), curve))

    with torch.no_grad():
        seen.append((vae.decode(z).mean[:, 0].numpy(), []))
    pv.fit(vae, train, validation=validation, epochs=EPOCHS, callback=look)
    frames = [_training_frame(images, elbo) for images, elbo in seen]
    _write(HERE / "training.webp", [*frames, *[frames[-1]] * 4], 350)
    _write(HERE / "explorer.webp", _explorer_frames(vae, test), 130)


def _training_frame(images: np.ndarray, elbo: list[float]) -> Image.Image:
    grid = images.reshape(6, 8, 28, 28).swapaxes(1, 2).reshape(6 * 28, 8 * 28)
    figure = Figure(figsize=(5, 6.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=[2.4, 1])
    top.imshow(grid, cmap="gray", vmin=0, vmax=1)
    top.set_axis_off()
    top.set_title(f"E[x|z] for z from the prior, epoch {len(elbo)}")
    bottom.plot(range(1, len(elbo) + 1), elbo, marker="o", color="#0072B2")
    bottom.set(xlim=(0, EPOCHS + 0.5), ylim=(-135, -95), xlabel="epoch", ylabel="nats per datum")
    bottom.set_title("ELBO on validation data")
    bottom.grid(alpha=0.3)
    file = io.BytesIO()
    figure.savefig(file, dpi=84)
    return Image.open(file).convert("RGB")


def _explorer_frames(vae: pv.VAE, test: pv.data.Dataset) -> list[Image.Image]:
    explorer = pv.explorer.Explorer(vae, test, num_samples=50)
    labels = explorer.contents["data"]["labels"]
    # Only data with draws of their posterior, whose clouds are shown.
    places = [i for i in explorer.contents["clouds"]["data"] if labels[i] in (0, 7)]
    start = next(i for i in places if labels[i] == 0)
    end = next(i for i in places if labels[i] == 7)
    return [_composed(*pair) for pair in _pictures(explorer.html(), start, end)]


def _pictures(page: str, start: int, end: int) -> list[tuple[Image.Image, Image.Image]]:
    """Return the map and the decoded image of each step, drawn by the page in Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chrome")
    if chromium is None:
        raise SystemExit("no chromium is on PATH")
    script = STEPS.replace("START", str(start)).replace("END", str(end))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(page.replace("</body>", script + "</body>"))
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/p"]
        options += [f"--window-size={WIDTH},{HEIGHT}", "--virtual-time-budget=5000", "--dump-dom"]
        done = subprocess.run(
            [chromium, *options, path.as_uri()], check=True, capture_output=True, text=True
        )
    found = re.findall(r'id="frames">(.*?)</p>', done.stdout)[0].split()
    images = [Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) for url in found]
    return list(zip(images[::2], images[1::2], strict=True))


def _composed(place: Image.Image, decoded: Image.Image) -> Image.Image:
    """Return a frame: the map, and the decoded image next to it."""
    height = SHOWN * place.height // place.width
    frame = Image.new("RGB", (SHOWN + SIDE + 16, height), "white")
    layer = place.resize((SHOWN, height), Image.Resampling.LANCZOS)
    frame.paste(layer, (0, 0), layer)
    top = (height - SIDE) // 2
    frame.paste(decoded.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST), (SHOWN, top))
    font = ImageFont.load_default(size=16)
    ImageDraw.Draw(frame).text((SHOWN, top + SIDE + 8), "E[x|z] at the point", "#1c2330", font)
    return frame


def _write(path: Path, frames: list[Image.Image], milliseconds: int) -> None:
    first, *others = frames
    first.save(
        path,
        save_all=True,
        append_images=others,
        duration=milliseconds,
        loop=0,
        quality=60,
        method=4,
    )
    print(f"{path.name}: {path.stat().st_size:,} bytes")
    assert path.stat().st_size < MAX_BYTES


if __name__ == "__main__":
    main()
