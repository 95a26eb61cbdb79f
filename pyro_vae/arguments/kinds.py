"""Checks of numbers, texts, paths, devices and instances of classes."""

import math
import numbers
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Protocol, TypeGuard, cast

from pyro_vae.arguments.checks import Check, Unfit, array_shape, has_forward, takes

MAX_NAME, MAX_PATH = 255, 4000  # bytes, of most file systems


class _OneNumber(Protocol):
    def item(self) -> object: ...


def _is_one_number(value: object) -> TypeGuard[_OneNumber]:
    """Return whether a value is an array of no dimensions."""
    return array_shape(value) == ()


def _scalar(value: object) -> object:
    """Return the number in an array of no dimensions, and any other value unchanged.

    Raises:
        Unfit: If the array has no values, as on the meta device.
    """
    try:
        return value.item() if _is_one_number(value) else value
    except RuntimeError:
        raise Unfit("it has no values") from None


def _real(value: object) -> float:
    """Return a real number, also one in an array of no dimensions; raise `Unfit` for others."""
    value = _scalar(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise Unfit
    return cast(float, value)  # or a number with the same operations, such as a Fraction


@dataclass(frozen=True)
class Whole(Check):
    """A whole number in a range. Integers of numpy and whole floats are converted to `int`.

    Args:
        minimum: Smallest accepted number.
        maximum: Largest accepted number.

    Example:
        >>> from pyro_vae.arguments import Whole
        >>> Whole(1, 10)("depth", 3.0)
        3
        >>> Whole(1)("depth", 2.5)
        Traceback (most recent call last):
        ...
        pyro_vae.arguments.checks.ArgumentError: depth must be a whole number of at least 1, got 2.5

    See also: `Number`, `checked`.
    """

    minimum: int
    maximum: int | None = None

    @property
    def expected(self) -> str:  # type: ignore[override]
        """Description of the range."""
        if self.maximum is None:
            return f"a whole number of at least {self.minimum}"
        return f"a whole number from {self.minimum} to {self.maximum}"

    def convert(self, value: object) -> int:
        """Return the number as an `int`."""
        given = _real(value)
        if not math.isfinite(given) or given != int(given):
            raise Unfit
        number = int(given)
        if number < self.minimum or (self.maximum is not None and number > self.maximum):
            raise Unfit
        return number


@dataclass(frozen=True)
class Number(Check):
    """A number, not NaN.

    Args:
        above: Exclusive lower bound.
        minimum: Inclusive lower bound.
        maximum: Inclusive upper bound.
        finite: Whether infinities are excluded.

    Example:
        >>> from pyro_vae.arguments import Number
        >>> Number(above=0)("scale", -1)
        Traceback (most recent call last):
        ...
        pyro_vae.arguments.checks.ArgumentError: scale must be a positive number, got -1

    See also: `Whole`, `checked`.
    """

    above: float | None = None
    minimum: float = -math.inf
    maximum: float = math.inf
    finite: bool = True

    @property
    def expected(self) -> str:  # type: ignore[override]
        """Description of the range."""
        kind = "a finite number" if self.finite else "a number"
        if self.above is not None:
            return "a positive number" if self.above == 0 else f"{kind} above {self.above:g}"
        if self.maximum < math.inf:
            return f"a number from {self.minimum:g} to {self.maximum:g}"
        return kind if self.minimum == -math.inf else f"{kind} of at least {self.minimum:g}"

    def convert(self, value: object) -> float:
        """Return the number. Numbers of other types are converted to `float`."""
        given = _real(value)
        try:
            number = float(given)
        except OverflowError:
            raise Unfit from None
        inside = self.minimum <= number <= self.maximum
        inside = inside and (self.above is None or number > self.above)
        if not inside or (self.finite and math.isinf(number)):
            raise Unfit
        return given if type(given) in (int, float) else number


@dataclass(frozen=True)
class OneOf(Check):
    """One of some values.

    Args:
        values: The accepted values.

    Example:
        >>> from pyro_vae.arguments import OneOf
        >>> OneOf(("sum", "mean"))("reduction", "max")
        Traceback (most recent call last):
        ...
        pyro_vae.arguments.checks.ArgumentError: reduction must be 'sum' or 'mean', got 'max'

    See also: `Instance`, `checked`.
    """

    values: tuple[object, ...]

    @property
    def expected(self) -> str:  # type: ignore[override]
        """The values."""
        *first, last = [repr(value) for value in self.values]
        return f"{', '.join(first)} or {last}" if first else last

    def convert(self, value: object) -> object:
        """Return the equal value of the same type."""
        value = _scalar(value)  # of a bool of numpy
        for accepted in self.values:
            if type(value) is type(accepted) and value == accepted:
                return accepted
            if isinstance(accepted, str) and isinstance(value, str) and value == accepted:
                return accepted
        raise Unfit


class IsText(Check):
    """A string."""

    expected = "a string"

    def convert(self, value: object) -> str:
        """Return the string."""
        if not isinstance(value, str):
            raise Unfit
        return value


class IsPath(Check):
    """The path of a file or folder."""

    expected = "a path, a string or an os.PathLike"

    def convert(self, value: object) -> object:
        """Return the path."""
        if not isinstance(value, str | os.PathLike):
            raise Unfit
        text = os.fspath(value)
        if not isinstance(text, str) or not text or "\0" in text:
            raise Unfit
        try:
            lengths = [len(os.fsencode(name)) for name in PurePath(text).parts]
        except UnicodeEncodeError:
            raise Unfit("it has characters that no file name can have") from None
        if max(lengths, default=0) > MAX_NAME or sum(lengths) + len(lengths) > MAX_PATH:
            raise Unfit(f"it has more than {MAX_PATH} bytes, or a name of more than {MAX_NAME}")
        return value


class IsDevice(Check):
    """An available device of torch.

    Example:
        >>> from pyro_vae.arguments import IsDevice
        >>> IsDevice()("device", "abacus")
        Traceback (most recent call last):
        ...
        pyro_vae.arguments.checks.ArgumentError: device must be an available torch device ('cpu'...

    See also: `pyro_vae.resolve_device`.
    """

    @property
    def expected(self) -> str:  # type: ignore[override]
        """The available kinds of devices."""
        import torch

        kinds = ["'cpu'", *(["'cuda'"] if torch.cuda.is_available() else [])]
        return f"an available torch device ({', '.join(kinds)} or the like)"

    def convert(self, value: object) -> object:
        """Return the device."""
        import torch

        if isinstance(value, bool) or not isinstance(value, str | int | torch.device):
            raise Unfit
        try:
            device = torch.device(value)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError, ValueError):
            raise Unfit from None
        if device.type == "meta":
            raise Unfit("tensors on the device meta have no values")
        return value


@dataclass(frozen=True)
class Instance(Check):
    """An instance of a class.

    Args:
        kinds: Accepted classes.
        expected: Description of the instances.
        functions: Whether functions are accepted, too.
        factories: Whether the classes themselves are among these functions.
        num_inputs: Number of arguments that the functions are called with, if it is checked.
        hint: Advice for other values.

    Example:
        >>> from pyro_vae.arguments import Instance
        >>> check = Instance((dict,), "options by name", hint="for example {'epochs': 5}")
        >>> check("options", [5])
        Traceback (most recent call last):
        ...
        pyro_vae.arguments.checks.ArgumentError: options must be options by name, got [5]: for ...

    See also: `OneOf`, `takes`.
    """

    kinds: tuple[type, ...]
    expected: str
    functions: bool = False
    factories: bool = False
    num_inputs: int | None = None
    hint: str = ""

    def convert(self, value: object) -> object:
        """Return the instance."""
        if isinstance(value, self.kinds):
            return value
        if isinstance(value, type) and issubclass(value, self.kinds) and not self.factories:
            raise Unfit(f"pass an instance, {value.__name__}(...)")
        if self.functions and callable(value) and self._fits(value):
            return value
        raise Unfit(self.hint)

    def _fits(self, function: Callable[..., object]) -> bool:
        return has_forward(function) and (
            self.num_inputs is None or takes(function, self.num_inputs)
        )
