"""The objects that functions, methods and partial functions hold."""

import functools
import types


def callable_parts(value: object) -> list[tuple[str, object]] | None:
    """Return the parts of a method or a partial function, and their names; None for others."""
    if isinstance(value, types.MethodType):
        return [("", value.__self__), ("", value.__func__)]
    if isinstance(value, functools.partial):
        return [("", value.func), (".args", value.args), ("", value.keywords)]
    return None


def closure_of(function: types.FunctionType) -> list[tuple[str, object]]:
    """Return the variables that a function takes from the functions around it, and their names."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return [(name, cell.cell_contents) for name, cell in cells if cell != types.CellType()]
