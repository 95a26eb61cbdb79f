"""Colours that are distinguished with common forms of colour blindness.

The first seven are those of Okabe & Ito (2008) without yellow, which is pale on white.
"""

BLUE, VERMILION, GREEN, PINK, ORANGE, SKY = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
)  # fmt: skip
GREY, DARK = "0.55", "0.25"
CLASSES = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, "#7B6FD0", "#8A8A2A", "#882255", "#777777")
