"""Text files with points and commas in one column: one reading, or a refusal."""

import pytest

import pyro_vae as pv
from pyro_vae.data.errors import DataError


@pytest.mark.parametrize(
    ("line", "options", "words"),
    [
        ("1.234,50", {"decimal": ","}, "'a', row 5: '12.5' has a decimal point, but '1.234,50' in"),
        ("1,50", {"decimal": ","}, "row 5: '12.5' has a decimal point, but '1,50' in row 0 has"),
        ("1.234", {"decimal": ",", "na": ["1,0"]}, None),
        ("0,979", {"thousands": ","}, "'0,979' looks like.* read a file with decimal=',', or give"),
    ],
)
def test_numbers_in_two_forms_are_refused(line, options, words, tmp_path):
    path = tmp_path / "table.csv"
    rows = [f"{'12.5' if i == 5 else line};{i % 7}" for i in range(60)]
    path.write_text("\n".join(["a;x", *rows, ""]))
    if words is None:
        x = pv.data.open(path, **options)[:][:, 0]
        assert sorted({*x.tolist()}) == [0.0, 1.0]  # positions of the levels 1.234 and 12.5
        return
    with pytest.raises(DataError, match=words):
        pv.data.open(path, **options)
