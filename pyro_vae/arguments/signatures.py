"""Read the checks from the type annotations of a signature, and apply them."""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union

from pyro_vae.arguments.checks import Check, Each, Either
from pyro_vae.arguments.kinds import IsText, OneOf

P = ParamSpec("P")
T = TypeVar("T")


def check_of(annotation: object) -> Check | None:
    """Return the check that the type annotation of a parameter states, or None.

    Args:
        annotation: Type annotation, such as `Count`, `bool`, `Literal["sum", "mean"]` or a union.

    Returns:
        The check, or None if the annotation states none.

    Example:
        >>> from typing import Literal
        >>> from pyro_vae.arguments import Count, check_of
        >>> check_of(Count | Literal["all"] | None).expected
        "a whole number of at least 1 or 'all' or None"

    See also: `checks_of`, `checked`.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        checks = [note for note in arguments[1:] if isinstance(note, Check)]
        return checks[0] if checks else check_of(arguments[0])
    if annotation is bool:
        return OneOf((True, False))
    if annotation is str:
        return IsText()
    if origin is Literal:
        return OneOf(arguments)
    if origin in (Union, types.UnionType):
        return _check_of_union(arguments)
    if origin is Sequence and (check := check_of(arguments[0])):
        return Each(check)
    return None


def _check_of_union(members: tuple[object, ...]) -> Check | None:
    checks: list[Check] = []
    kinds: list[type] = []
    values: list[object] = []
    checked = False
    for member in members:
        check = check_of(member)
        if isinstance(check, OneOf):
            values += check.values
        elif check is not None:
            checks.append(check)
        elif isinstance(member, type):
            kinds += [member] if member is not types.NoneType else []
        else:
            return None  # of no known class
        checked = checked or check is not None
    if values:
        checks.append(OneOf(tuple(values)))
    return Either(checks, tuple(kinds), types.NoneType in members) if checked else None


def checks_of(function: Callable[..., object]) -> dict[str, Check]:
    """Return the checks of a function's parameters by name.

    Args:
        function: The function. Parameters without a check, `*args` and `**kwargs` are left out.

    Returns:
        The checks by the names of the parameters.

    Example:
        >>> from pyro_vae.arguments import Count, checks_of
        >>> def repeat(text: str, times: Count, separator: object = None): ...
        >>> {name: check.expected for name, check in checks_of(repeat).items()}
        {'text': 'a string', 'times': 'a whole number of at least 1'}

    See also: `check_all`, `checked`.
    """
    hints = inspect.get_annotations(function)
    variadic = {
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    found = {
        name: check_of(hint)
        for name, hint in hints.items()
        if name != "return" and name not in variadic
    }
    return {name: check for name, check in found.items() if check is not None}


def check_all(checks: dict[str, Check], arguments: dict[str, object]) -> None:
    """Replace the arguments by the values to use.

    Raises:
        ArgumentError: If an argument is not accepted.

    Args:
        checks: Checks by the names of arguments.
        arguments: Arguments by name, which are replaced in-place.

    Example:
        >>> from pyro_vae.arguments import Whole, check_all
        >>> arguments = {"epochs": 5.0, "name": "run"}
        >>> check_all({"epochs": Whole(1)}, arguments)
        >>> arguments
        {'epochs': 5, 'name': 'run'}

    See also: `checks_of`, `check_fields`.
    """
    for name, value in arguments.items():
        if name in checks:
            arguments[name] = checks[name](name, value)


@functools.cache
def _checks_of_class(cls: Any) -> dict[str, Check]:
    return checks_of(cls.__init__)


def check_fields(instance: object) -> None:
    """Check the fields of a dataclass as their annotations state: its `__post_init__`.

    Raises:
        ArgumentError: If a field is not accepted.

    Args:
        instance: The dataclass instance, which may be frozen.

    Example:
        >>> from dataclasses import dataclass
        >>> from pyro_vae.arguments import Positive, check_fields
        >>> @dataclass(frozen=True)
        ... class Rate:
        ...     value: Positive
        ...     __post_init__ = check_fields
        >>> Rate(-1.0)
        Traceback (most recent call last):
        ...
        pyro_vae.arguments.checks.ArgumentError: value must be a positive number, got -1.0

    See also: `checked`.
    """
    kind: Any = type(instance)
    for name, check in _checks_of_class(kind).items():
        object.__setattr__(instance, name, check(name, getattr(instance, name)))


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function so that its arguments are checked as its signature states.

    Args:
        function: The function or method.

    Returns:
        A function of the same signature, which raises `ArgumentError` for other arguments.

    Example:
        >>> from pyro_vae.arguments import Count, checked
        >>> @checked
        ... def repeat(text: str, times: Count) -> str:
        ...     return text * times
        >>> repeat("ab", 2)
        'abab'
        >>> repeat("ab", times=0)
        Traceback (most recent call last):
        ...
        pyro_vae.arguments.checks.ArgumentError: times must be a whole number of at least 1, got 0

    See also: `check_of`, `Check`.
    """
    signature = inspect.signature(function)
    # The names in the annotations may be defined after the function.
    checks = functools.cache(functools.partial(checks_of, function))

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # raises the error that names the function
        check_all(checks(), bound.arguments)
        return function(*bound.args, **bound.kwargs)

    return wrapper
