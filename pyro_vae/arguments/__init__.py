"""Checks of arguments, stated in signatures.

    Count: TypeAlias = Annotated[int, Whole(1)]

    @checked
    def sample(num_samples: Count) -> Tensor: ...

`sample("64")` then raises "num_samples must be a whole number of at least 1, got '64'" before the
function runs, and `sample(np.int64(64))` runs it with the integer 64. `checked` also checks
parameters of the types `bool`, `str` and `Literal`, and unions and sequences of all of these.
"""

import os
from typing import Annotated, TypeAlias

from pyro_vae.arguments.checks import ArgumentError, Check, Unfit, shown, takes
from pyro_vae.arguments.kinds import Instance, IsDevice, IsPath, Number, OneOf, Whole
from pyro_vae.arguments.settings import ANY, setting, settings_written_by
from pyro_vae.arguments.signatures import check_all, check_fields, check_of, checked, checks_of

__all__ = [
    "ANY",
    "MAX_SAMPLES",
    "ArgumentError",
    "AtLeastZero",
    "Check",
    "Count",
    "CountOrZero",
    "FilePath",
    "Finite",
    "Instance",
    "IsDevice",
    "Number",
    "OneOf",
    "Positive",
    "Samples",
    "Seed",
    "Unfit",
    "Whole",
    "check_all",
    "check_fields",
    "check_of",
    "checked",
    "checks_of",
    "setting",
    "settings_written_by",
    "shown",
    "takes",
]

Count: TypeAlias = Annotated[int, Whole(1)]
# Samples of a datum: their log weights and copies of them take about 3 GB.
MAX_SAMPLES = 10**8
Samples: TypeAlias = Annotated[int, Whole(1, MAX_SAMPLES)]
CountOrZero: TypeAlias = Annotated[int, Whole(0)]
Seed: TypeAlias = Annotated[int, Whole(0, 2**64 - 1)]  # the seeds of torch
Positive: TypeAlias = Annotated[float, Number(above=0)]
AtLeastZero: TypeAlias = Annotated[float, Number(minimum=0)]
Finite: TypeAlias = Annotated[float, Number()]
FilePath: TypeAlias = Annotated[str | os.PathLike[str], IsPath()]
