"""Each kind of check accepts, converts or refuses a value exactly as its description says."""

import fractions
import math
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_vae.arguments import (
    ArgumentError,
    Instance,
    IsDevice,
    IsPath,
    Number,
    OneOf,
    Whole,
    shown,
)

REFUSED = object()


class Unreadable(os.PathLike):
    def __fspath__(self):
        return b"bytes"


CELLS = [
    (Whole(1, 3), 2, 2),
    (Whole(1, 3), True, REFUSED),
    (Whole(1, 3), 2.0, 2),
    (Whole(1, 3), 2.5, REFUSED),
    (Whole(1, 3), 0, REFUSED),
    (Whole(1, 3), 4, REFUSED),
    (Whole(1, 3), "2", REFUSED),
    (Whole(1, 3), None, REFUSED),
    (Whole(1, 3), np.array([2]), REFUSED),
    (Whole(1, 3), fractions.Fraction(4, 2), 2),
    (Whole(1), math.inf, REFUSED),
    (Whole(1), math.nan, REFUSED),
    (Whole(1), 10**30, 10**30),
    (Number(), 2, 2),
    (Number(), np.float32(0.5), 0.5),
    (Number(), fractions.Fraction(1, 4), 0.25),
    (Number(), math.nan, REFUSED),
    (Number(), math.inf, REFUSED),
    (Number(), 10**400, REFUSED),
    (Number(), 1j, REFUSED),
    (Number(finite=False), math.inf, math.inf),
    (Number(above=0), 0.0, REFUSED),
    (Number(minimum=0), 0.0, 0.0),
    (Number(minimum=0, maximum=1), 1.5, REFUSED),
    (Number(), torch.empty((), device="meta"), REFUSED),
    (OneOf(("sum", "mean")), "sum", "sum"),
    (OneOf(("sum", "mean")), np.str_("sum"), "sum"),
    (OneOf(("sum", "mean")), "Sum", REFUSED),
    (OneOf((True, False)), np.bool_(True), True),
    (OneOf((True, False)), 1, REFUSED),
    (OneOf((1, 2)), True, REFUSED),
    (IsPath(), "runs/1", "runs/1"),
    (IsPath(), Path("runs"), Path("runs")),
    (IsPath(), "", REFUSED),
    (IsPath(), b"runs", REFUSED),
    (IsPath(), "a\0b", REFUSED),
    (IsPath(), "a" * 300, REFUSED),
    (IsPath(), Path, REFUSED),
    (IsPath(), Unreadable(), REFUSED),
    (IsPath(), 3, REFUSED),
    (IsDevice(), "cpu", "cpu"),
    (IsDevice(), "meta", REFUSED),
    (IsDevice(), True, REFUSED),
    (IsDevice(), "abacus", REFUSED),
    (Instance((dict,), "options"), {}, {}),
    (Instance((dict,), "options"), dict, REFUSED),
    (Instance((dict,), "options", functions=True), len, len),
    (Instance((dict,), "options", functions=True, num_inputs=2), lambda x: x, REFUSED),
]


@pytest.mark.parametrize(("check", "value", "expected"), CELLS)
def test_a_value_is_converted_or_refused(check, value, expected):
    if expected is REFUSED:
        with pytest.raises(ArgumentError, match=f"^given must be {check.expected[:8]}"):
            check("given", value)
    else:
        found = check("given", value)
        assert found == expected
        assert type(found) is type(expected)


@pytest.mark.parametrize("wrap", [np.array, torch.tensor, lambda number: number])
def test_random_numbers_have_the_same_answer_in_an_array(wrap):
    draw = random.Random(0)
    for _ in range(300):
        number = draw.choice([draw.randint(-5, 5), draw.uniform(-5, 5), float(draw.randint(-5, 5))])
        low, high = sorted(draw.sample(range(-5, 6), 2))
        whole = number == int(number) and low <= number <= high
        for check, accepts in (
            (Whole(low, high), whole),
            (Number(None, low, high), low <= number <= high),
        ):
            if accepts:
                assert check("given", wrap(number)) == pytest.approx(number, rel=1e-6)
            else:
                with pytest.raises(ArgumentError):
                    check("given", wrap(number))


def test_errors_show_arguments_of_any_size():
    nested, itself = [1], []
    for _ in range(40):
        nested = [nested] * 10  # 10^40 entries
    itself.append(itself)
    for value in (nested, itself, tuple(nested), list(range(1000)), 10**5000, -(10**5000),
                  "x" * 10**7, b"x" * 10**7, [["x" * 10**6]]):  # fmt: skip
        assert 2 < len(shown(value)) <= 60
    assert shown([[1, 2], (3, "a")]) == "[[1, 2], (3, 'a')]"
