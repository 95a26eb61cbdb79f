"""Frames per second of the latent explorer in headless Chromium, for a decoder of 20-500-784.

A script in the page drags the point over the map. Each frame decodes z and draws the picture, the
map with 1,000 data, and the sliders.

    python benchmarks/explorer.py
"""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

import pyro_vae as pv

FRAMES = 300
DRAG = f"""<script type="module">
const page = document.getElementById("explorer").explorer, times = [];
for (let i = 0; i < {FRAMES}; i++) {{
  const angle = i / 20, start = performance.now();
  page.moveTo(page.map.view.moved(page.z, [Math.cos(angle), 2 * Math.sin(angle)]));
  page.refresh();
  page.canvas.getContext("2d").getImageData(0, 0, 1, 1);  // waits for the drawing
  times.push(performance.now() - start);
}}
times.sort((a, b) => a - b);
document.title = `median ${{times[{FRAMES // 2}].toFixed(2)}} ms, 99% ${{
  times[{FRAMES * 99 // 100}].toFixed(2)}} ms a frame`;
</script>"""


def main() -> None:
    """Print the median and the 99% quantile of the time of a frame."""
    torch.manual_seed(0)
    decoders = {
        "MLP 20-500-784": pv.networks.MLP(20, [500], (1, 28, 28)),
        "ConvDecoder 20-[64, 32]-784": pv.networks.ConvDecoder(20, [64, 32], (1, 28, 28)),
    }
    for name, decoder in decoders.items():
        vae = pv.VAE(
            pv.priors.StandardNormal(20),
            pv.likelihoods.Bernoulli(decoder),
            pv.guides.DiagonalNormal(pv.networks.MLP((1, 28, 28), [100], 40)),
        )
        x = torch.rand(1000, 1, 28, 28).round()
        explorer = pv.explorer.Explorer(vae, x, num_samples=5)
        print(f"{name}: {_measured(explorer.html().replace('</body>', DRAG + '</body>'))}")


def _measured(page: str) -> str:
    chromium = shutil.which("chromium") or shutil.which("chrome")
    if chromium is None:
        raise SystemExit("no chromium is on PATH")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(page)
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/p"]
        options += ["--window-size=1280,900", "--virtual-time-budget=60000", "--dump-dom"]
        # Virtual time stands still while a script runs, so performance.now() is the wall clock's.
        done = subprocess.run(
            [chromium, *options, path.as_uri()], capture_output=True, text=True, check=True
        )
    return re.findall(r"<title>(.*?)</title>", done.stdout)[0]


if __name__ == "__main__":
    main()
