"""Arguments in messages, written as the user gives them: in Python, or as options of a command."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TypeAlias

ANY = object()  # in the place of a value


def in_python(name: str, value: object = ANY) -> str:
    """Return an argument as it is written in a call: `size=64`, or `size=` for any value."""
    return f"{name}=" if value is ANY else f"{name}={value!r}"


Form: TypeAlias = Callable[[str, object], str]

_form: ContextVar[Form] = ContextVar("form", default=in_python)


def is_python() -> bool:
    """Return whether messages are for a caller in Python, not for one of a command."""
    return _form.get() is in_python


def setting(name: str, value: object = ANY) -> str:
    """Return an argument and its value for a message, as the user writes it.

    Args:
        name: Name of the argument in Python.
        value: Its value; by default, the message is about any value.

    Returns:
        `columns={'age': 'real'}` in Python, `--column age=real` in a command.

    Example:
        >>> from pyro_vae.arguments import setting
        >>> setting("columns", {"age": "real"})
        "columns={'age': 'real'}"

    See also: `settings_written_by`.
    """
    return _form.get()(name, value)


@contextlib.contextmanager
def settings_written_by(form: Form) -> Iterator[None]:
    """Write arguments in messages by another function of name and value.

    Args:
        form: Function that writes an argument.

    Returns:
        A context manager.

    Example:
        >>> from pyro_vae.arguments import setting, settings_written_by
        >>> with settings_written_by(lambda name, value: f"--{name} {value}"):
        ...     setting("size", 64)
        '--size 64'

    See also: `setting`.
    """
    token = _form.set(form)
    try:
        yield
    finally:
        _form.reset(token)
