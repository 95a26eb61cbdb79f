"""Checks of one argument: what it accepts, what it converts to, and the error otherwise."""

import contextlib
import inspect
import itertools
import numbers
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence, Set

from pyro_vae.arguments.settings import is_python

MAX_ENTRIES = 10**6  # of a sequence that is an argument, other than data
SHOWN = 60  # characters of an argument in an error


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

    Example:
        >>> from pyro_vae.arguments import Check, Unfit
        >>> class Even(Check):
        ...     expected = "an even number"
        ...
        ...     def convert(self, value):
        ...         if value % 2:
        ...             raise Unfit("the filters are split into halves")
        ...         return value
        >>> Even()("num_filters", 3)
        Traceback (most recent call last):
        ...
        pyro_vae.arguments.checks.ArgumentError: num_filters must be an even number, got 3: ...

    See also: `checked`, `Instance`, `OneOf`, `Whole`.
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
    """A value that a `Check` does not accept.

    Example:
        >>> from pyro_vae.arguments import Whole
        >>> Whole(1).convert(0)
        Traceback (most recent call last):
        ...
        pyro_vae.arguments.checks.Unfit

    See also: `Check`, `ArgumentError`.
    """


def shown(value: object) -> str:
    """Return a short description of an argument for an error message.

    Args:
        value: The argument.

    Returns:
        Its value if it is short, or else its type and its shape.

    Example:
        >>> import torch
        >>> from pyro_vae.arguments import shown
        >>> shown(torch.zeros(2, 3)), shown("sum")
        ('a Tensor of shape (2, 3)', "'sum'")

    See also: `Check`.
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, int) and abs(value) >= 10**SHOWN:  # Python refuses to print long ones
        return f"an integer of more than {SHOWN} digits"
    if value is None or isinstance(value, str | bytes | bool | numbers.Number):
        text = repr(value[:SHOWN] if isinstance(value, str | bytes) else value)
        is_short = len(text) <= SHOWN
        return text if is_short else f"{text[: SHOWN - 3]}..."
    shape = array_shape(value)
    if shape is not None:
        name = _a(type(value).__name__)
        if not shape and hasattr(value, "item"):
            with contextlib.suppress(RuntimeError, ValueError):  # of a tensor without values
                return f"{name} of {shown(value.item())}"
        return f"{name} of shape {tuple(shape)}"
    if isinstance(value, list | tuple) and _has_few_entries(value):
        with contextlib.suppress(RecursionError):
            if len(text := repr(value)) <= SHOWN:
                return text
    return _a(type(value).__name__)


def _has_few_entries(value: Sequence[object]) -> bool:
    """Return whether a nested list can have a short text; lists may contain each other often."""
    entries = list(value[:SHOWN])
    for entry in entries:  # grows
        if len(entries) >= SHOWN:
            return False
        if isinstance(entry, list | tuple):
            entries.extend(entry[:SHOWN])
    return True


def _a(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def array_shape(value: object) -> tuple[int, ...] | None:
    """Return the shape of an array; None for other values and for nested tensors."""
    try:
        shape = getattr(value, "shape", None)
    except RuntimeError:
        return None
    return tuple(shape) if isinstance(shape, tuple) else None


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
            entries = list(itertools.islice(value, MAX_ENTRIES + 1))
        except (TypeError, RuntimeError):  # an array of no dimensions, a nested tensor
            raise Unfit from None
        if len(entries) > MAX_ENTRIES:
            raise Unfit(f"it has more than {MAX_ENTRIES:,} entries")
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

    @property
    def expected(self) -> str:  # type: ignore[override]
        """Description of the accepted values, without None in a command, which cannot give it."""
        names = [check.expected for check in self.checks]
        names += [_a(kind.__name__) for kind in self.kinds]
        return " or ".join([*names, *(["None"] if self.optional and is_python() else [])])

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


def has_forward(value: Callable[..., object]) -> bool:
    """Return False for a module of torch without a `forward`, and True for other callables."""
    forward = getattr(value, "forward", None)
    return getattr(forward, "__name__", "") != "_forward_unimplemented"


def takes(value: Callable[..., object], count: int) -> bool:
    """Return whether a callable can be called with this number of arguments, if it is known.

    Args:
        value: The callable; of a module, its `forward` is examined.
        count: Number of positional arguments.

    Returns:
        Whether the call is possible; True if the callable has no known signature.

    Example:
        >>> from pyro_vae.arguments import takes
        >>> takes(lambda x, y: x + y, 2), takes(lambda x, y: x + y, 1)
        (True, False)

    See also: `Instance`.
    """
    try:
        signature = inspect.signature(getattr(value, "forward", value))
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*(None,) * count)
    except TypeError:
        return False
    return True
