"""Dates with and without a time zone are hours apart: later data of the other kind are reported."""

import itertools
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import pyro_vae as pv
from pyro_vae.data import DataError, DataWarning

DATES = pd.date_range("2024-01-01 10:00", periods=30, freq="7h")
NUMBERS = np.random.default_rng(0).normal(size=30)
FORMS = {
    "naive": DATES,
    "text": DATES.astype(str),
    "days": DATES.date,
    "zone": DATES.tz_localize("Europe/Oslo"),
    "text with Z": [f"{date}Z" for date in DATES],
    "text with offset": [f"{date}+02:00" for date in DATES],
}
HAVE_ZONES = {"zone", "text with Z", "text with offset"}


def table(form, library="pandas"):
    frame = pd.DataFrame({"a": NUMBERS, "when": FORMS[form]})
    return frame if library == "pandas" else pl.from_pandas(frame)


def said(function):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = function()
    return found, [str(w.message) for w in caught if w.category is DataWarning]


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize(("known", "given"), [*itertools.product(FORMS, FORMS)])
def test_dates_with_and_without_a_zone_are_told_apart(known, given, library):
    data, at_first = said(lambda: pv.data.open(table(known, library)))
    assert not at_first
    _, later = said(lambda: data.schema.read(table(given, library)))
    assert len(later) == ((known in HAVE_ZONES) != (given in HAVE_ZONES))
    assert all("'when'" in text and "time zone" in text for text in later)


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize("form", FORMS)
def test_restored_dates_are_read_again_without_a_warning(form, library):
    frame = table(form, library)
    data = pv.data.open(frame)
    restored = data.schema.restore(data[:], like=frame)
    again, texts = said(lambda: data.schema.read(restored))
    torch.testing.assert_close(again[:], data[:], atol=1e-4, rtol=0)
    assert not texts


def test_a_zone_is_saved_with_the_schema(tmp_path):
    vae = pv.suggest(table("zone"), latent_dim=1, hidden=[2], show=False)
    vae.save(tmp_path / "model")
    schema = pv.load(tmp_path / "model").schema
    assert said(lambda: schema.read(table("naive")))[1]
    assert not said(lambda: schema.read(table("zone")))[1]


def test_a_column_with_both_is_refused():
    dates = [f"{date}{'Z' * (i % 2)}" for i, date in enumerate(DATES)]
    with pytest.raises(DataError, match=r"'when', row 0: .* has no time zone, but .*Z' has one"):
        pv.data.open(pd.DataFrame({"a": NUMBERS, "when": dates}))


@pytest.mark.parametrize("known", ["zone", "naive"])
def test_context_and_constants_are_checked(known):
    other = {"zone": "naive", "naive": "zone"}[known]
    given = pv.data.open(table(known), context=["when"]).schema
    assert said(lambda: given.read(table(other)))[1]
    constant = table(known).assign(when=table(known)["when"][0], b=NUMBERS**2)
    schema = pv.data.open(constant).schema
    assert not said(lambda: schema.read(constant))[1]
    assert not said(lambda: schema.read(schema.restore(schema.read(constant)[:])))[1]
    assert any(
        "time zone" in text
        for text in said(lambda: schema.read(constant.assign(when=table(other)["when"][0])))[1]
    )
