"""Checks of one argument: what it accepts, what it converts to, and the error otherwise."""

import contextlib
import inspect
import math
import numbers
import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import PurePath
from typing import Protocol, TypeGuard, cast

MAX_NAME, MAX_PATH = 255, 4000  # bytes, of most file systems


class ArgumentError(ValueError):
    """An argument of the wrong type or value. The message names it and states the expected values.

    Example:
        >>> import pyro_vae as pv
        >>> pv.priors.StandardNormal(1.5)
        Traceback (most recent call last):
        ...
        pyro_vae.arguments.checks.ArgumentError: latent_dim must be a whole number of at least ...

    See also: `PairError`, `data.DataError`.
    """


class Check(ABC):
    """A check of one argument.

    Attributes:
        expected: Description of the accepted values, a noun phrase.
    """

    expected: str

    @abstractmethod
    def convert(self, value: object) -> object:
        """Return the value to use.

        Raises:
            Unfit: If the value is not accepted. The message is a hint for the user, or empty.
        """

    def __call__(self, name: str, value: object) -> object:
        """Return the value to use for the argument `name`.

        Raises:
            ArgumentError: If the value is not accepted.
        """
        try:
            return self.convert(value)
        except Unfit as unfit:
            hint = f": {unfit}" if str(unfit) else ""
            raise ArgumentError(
                f"{name} must be {self.expected}, got {shown(value)}{hint}"
            ) from None


class Unfit(Exception):  # noqa: N818 - never leaves this module's `Check`
    """A value that a `Check` does not accept."""


def shown(value: object) -> str:
    """Return a short description of an argument for an error message."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, str | bytes | bool | numbers.Number):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    shape = _shape(value)
    if shape is not None:
        return f"{_a(type(value).__name__)} of shape {tuple(shape)}"
    if isinstance(value, list | tuple):
        with contextlib.suppress(RecursionError):
            if len(text := repr(value)) <= 60:
                return text
    return _a(type(value).__name__)


def _a(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def _shape(value: object) -> tuple[int, ...] | None:
    """Return the shape of an array; None for other values and for nested tensors."""
    try:
        shape = getattr(value, "shape", None)
    except RuntimeError:
        return None
    return tuple(shape) if isinstance(shape, tuple) else None


class _OneNumber(Protocol):
    def item(self) -> object: ...


def _is_one_number(value: object) -> TypeGuard[_OneNumber]:
    """Return whether a value is an array of no dimensions."""
    return _shape(value) == ()


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
    """One of some values."""

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
    """An available device of torch."""

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
        return self.num_inputs is None or takes(function, self.num_inputs)


class Each(Check):
    """A sequence of values that each pass a check."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self.expected = f"a sequence, each entry {check.expected}"

    def convert(self, value: object) -> object:
        """Return the sequence; a list of the values to use if one of them was converted."""
        if isinstance(value, str | bytes | type | Mapping | Set) or not isinstance(value, Iterable):
            raise Unfit
        try:
            entries = list(value)
        except TypeError:  # an array of no dimensions
            raise Unfit from None
        converted = []
        for i, entry in enumerate(entries):
            try:
                converted.append(self.check.convert(entry))
            except Unfit as unfit:
                hint = f": {unfit}" if str(unfit) else ""
                raise Unfit(f"entry {i} is {shown(entry)}{hint}") from None
        same = all(map(operator.is_, entries, converted)) and isinstance(value, Sequence)
        return value if same else converted


class Either(Check):
    """A value that passes one of some checks, or is an instance of one of some classes."""

    def __init__(self, checks: list[Check], kinds: tuple[type, ...], optional: bool) -> None:
        self.checks, self.kinds, self.optional = checks, kinds, optional
        names = [check.expected for check in checks]
        names += [_a(kind.__name__) for kind in kinds]
        self.expected = " or ".join([*names, *(["None"] if optional else [])])

    def convert(self, value: object) -> object:
        """Return the result of the first check that accepts the value."""
        if (value is None and self.optional) or isinstance(value, self.kinds):
            return value
        hints = ""
        for check in self.checks:
            try:
                return check.convert(value)
            except Unfit as unfit:
                hints = hints or str(unfit)
        raise Unfit(hints)


def takes(value: Callable[..., object], count: int) -> bool:
    """Return whether a callable can be called with this number of arguments, if it is known."""
    try:
        signature = inspect.signature(getattr(value, "forward", value))
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*(None,) * count)
    except TypeError:
        return False
    return True
