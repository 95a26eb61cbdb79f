"""`Explorer`: the latent space of a VAE as an interactive page or a notebook widget."""

import json
from html import escape
from importlib.resources import files
from typing import Annotated, Any

from jinja2 import Environment, StrictUndefined

from pyro_vae.arguments import FilePath, Samples, Seed, Whole, checked
from pyro_vae.data.any_data import Data
from pyro_vae.distributed import from_first
from pyro_vae.explorer.contents import contents_of
from pyro_vae.models.any_vae import AnyVAE
from pyro_vae.pairs.inputs import dataset_of
from pyro_vae.runtime.records import write_result

PACKAGE = "pyro_vae.explorer"
SCRIPTS = ("decoder.js", "geometry.js", "drawing.js", "map.js", "data.js", "explorer.js")
FRAME = (
    '<iframe title="{title}" srcdoc="{page}" loading="lazy" '
    'style="width: 100%; height: 62rem; border: 0" '
    'onload="this.style.height = `${{this.contentDocument.body.scrollHeight + 40}}px`"></iframe>'
)
STYLE, TEMPLATE = "explorer.css", "page.html.jinja"


class Explorer:
    """The latent space of a VAE, to walk in: a map of data, sliders, paths, and the decoded x.

    The decoder runs in the page, without a server or network access. MLPs, convolutional decoders
    and chains of common torch modules are supported, with every likelihood of the package.

    Args:
        vae: Trained `VAE`, `ConditionalVAE` or `LadderVAE`. A condition y can be chosen in the
            page. The latents of a `LadderVAE` are those of its top layer, decoded at the means of
            the layers below.
        x: At least two data, as for `evaluate`. Labels and the schema of a `Dataset` are shown.
        num_data: Number of data on the map, from evenly spaced places. Large images are fewer, so
            that a page stays below 8 MB.
        num_samples: K, number of samples for log p(x) and k-hat of each datum.
        refine: Whether to show draws of the refined posterior of some data, next to those of the
            encoder.
        seed: Random seed.

    Raises:
        PairError: If a module of the decoder cannot be run in a page, or if `refine` is given and
            a latent cannot be refined.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(3),
        ...     pv.likelihoods.Bernoulli(pv.networks.MLP(3, [8], 5)),
        ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [8], 6)),
        ... )
        >>> explorer = pv.explorer.Explorer(vae, torch.rand(20, 5).round(), num_samples=10)
        >>> explorer.html()[:15]
        '<!DOCTYPE html>'

    See also: `diagnose`, `refine`, `VAE.decode`.
    """

    @checked
    def __init__(
        self,
        vae: AnyVAE,
        x: Data,
        *,
        num_data: Annotated[int, Whole(2)] = 1000,
        num_samples: Samples = 200,
        refine: bool = False,
        seed: Seed = 0,
    ) -> None:
        self.contents = contents_of(
            vae,
            dataset_of(vae, x),
            num_data=num_data,
            num_samples=num_samples,
            refine=refine,
            seed=seed,
        )

    def html(self) -> str:
        """Return a page with the explorer, which loads no other file."""
        template = files(PACKAGE).joinpath(TEMPLATE).read_text(encoding="utf-8")
        environment = Environment(autoescape=True, undefined=StrictUndefined)
        page = environment.from_string(template)
        return page.render(title=self.contents["title"], section=self.section())

    def section(self) -> str:
        """Return style, contents and script of the explorer as HTML, to be part of a page."""
        # "<" could end the element that contains the JSON.
        contents = json.dumps(self.contents, allow_nan=False).replace("<", "\\u003c")
        return (
            f"<style>\n{style()}</style>\n"
            '<div id="explorer"></div>\n'
            f'<script type="application/json" id="explorer-contents">{contents}</script>\n'
            f'<script type="module">\n{module()}\n'
            'mount(document.getElementById("explorer"),\n'
            '  JSON.parse(document.getElementById("explorer-contents").textContent));\n'
            "</script>\n"
        )

    @checked
    def save(self, path: FilePath) -> None:
        """Write the page, atomically. With several processes, the first one writes.

        Args:
            path: File to write.

        Raises:
            OSError: If the file cannot be written.
        """
        from_first(lambda: write_result(path, self.html().encode()))

    def widget(self) -> Any:
        """Return a widget for notebooks.

        Raises:
            ImportError: If anywidget is not installed.
        """
        try:
            import anywidget
            import traitlets
        except ImportError as error:
            raise ImportError(
                "the widget of an explorer needs anywidget: pip install 'pyro-vae[notebook]', or "
                "write a page with save('explorer.html')"
            ) from error

        class Widget(anywidget.AnyWidget):
            _esm, _css = module(), style()
            contents = traitlets.Dict().tag(sync=True)

        return Widget(contents=self.contents)

    def _repr_mimebundle_(self, **kwargs: object) -> object:
        """Return the widget for a notebook, or its page in a frame if there is no anywidget."""
        try:
            return self.widget()._repr_mimebundle_(**kwargs)
        except ImportError:
            page = escape(self.html())
            return {"text/html": FRAME.format(page=page, title=escape(self.contents["title"]))}


def module() -> str:
    """Return the ES module of the explorer: its files, without the imports of each other."""
    scripts = [files(PACKAGE).joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS]
    lines = "\n".join(scripts).splitlines()
    return "\n".join(line for line in lines if not line.startswith("import {"))


def style() -> str:
    """Return the style sheet of the explorer."""
    return files(PACKAGE).joinpath(STYLE).read_text(encoding="utf-8")
