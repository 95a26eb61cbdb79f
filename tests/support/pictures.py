"""Reports without the time of drawing, for tests of their files."""

import numpy as np

from pyro_vae import plots
from pyro_vae.reporting import html_page


def draw_no_pictures(monkeypatch):
    """Give each picture of a report or a page the bytes of one small PNG image."""
    picture = plots.encoded(plots.image_grid(np.eye(4)[None], "picture"), dpi=30)
    for module in (plots, html_page):
        monkeypatch.setattr(module, "encoded", lambda *args, **kwargs: picture)
