"""Read the checks from the type annotations of a signature, and apply them."""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union

from pyro_vae.arguments.checks import Check, Each, Either, IsText, OneOf

P = ParamSpec("P")
T = TypeVar("T")


def check_of(annotation: object) -> Check | None:
    """Return the check that the type annotation of a parameter states, or None."""
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
    """Return the checks of a function's parameters by name."""
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
    """
    kind: Any = type(instance)
    for name, check in _checks_of_class(kind).items():
        object.__setattr__(instance, name, check(name, getattr(instance, name)))


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function so that its arguments are checked as its signature states."""
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
