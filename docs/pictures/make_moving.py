"""Make the moving pictures of the README: training, and the latent explorer.

`training.webp` shows images of the model after each epoch, next to the validation ELBO.
`explorer.webp` is made of screenshots of the page of `pyro_vae.explorer` in headless Chromium.

    python docs/pictures/make_moving.py            # trains a model and makes both
    python docs/pictures/make_moving.py runs/mnist # the explorer of a run of examples/mnist_svi.py
"""

import io
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

import pyro_vae as pv

HERE = Path(__file__).parent
LATENTS, EPOCHS = 20, 12
WIDTH, HEIGHT = 1180, 640  # of the screenshots
SHOWN = 900  # width of the moving picture
MAX_BYTES = 1_000_000
# The point goes along a path, and a slider is moved.
STEP = """<script type="module">
const page = document.getElementById("explorer").explorer;
page.choose(START);
page.setEnd(0, START);
page.setEnd(1, END);
if (SHARE <= 1) page.walk(SHARE);
else {
  page.walk(1);
  const [across, up] = page.map.view.of(page.z), angle = 2 * Math.PI * (SHARE - 1);
  page.moveTo(page.map.view.moved(page.z,
    [across - 2.2 * Math.sin(angle), up - 1.6 * (1 - Math.cos(angle))]));
}
page.refresh();
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
    shares = [0.0, 0.0, *np.linspace(0, 1, 16), 1.0, *np.linspace(1, 2, 16)[1:]]
    return [_screenshot(explorer.html(), start, end, share) for share in shares]


def _screenshot(page: str, start: int, end: int, share: float) -> Image.Image:
    chromium = shutil.which("chromium") or shutil.which("chrome")
    if chromium is None:
        raise SystemExit("no chromium is on PATH")
    script = STEP.replace("START", str(start)).replace("END", str(end))
    script = script.replace("SHARE", f"{share:.4f}")
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "page.html", Path(folder) / "page.png"
        path.write_text(page.replace("</body>", script + "</body>"))
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/p"]
        options += [f"--window-size={WIDTH},{HEIGHT}", "--hide-scrollbars", f"--screenshot={out}"]
        subprocess.run(
            [chromium, *options, "--virtual-time-budget=2000", path.as_uri()],
            check=True,
            capture_output=True,
        )
        picture = Image.open(out).convert("RGB")
    return picture.resize((SHOWN, SHOWN * HEIGHT // WIDTH), Image.Resampling.LANCZOS)


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
