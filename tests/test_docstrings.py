"""Each public class and function says how it is called, and has an example that pytest runs."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import textwrap

import pytest

import pyro_vae

VERBS = ("Return", "Yield", "Decorate")  # a summary that starts so says what is returned


def modules():
    """Return the modules of the package, without those that run when they are imported."""
    found = pkgutil.walk_packages(pyro_vae.__path__, "pyro_vae.")
    return [
        pyro_vae,
        *(importlib.import_module(m.name) for m in found if m.name[-8:] != "__main__"),
    ]


def public():
    """Return the classes and functions in any `__all__`, by the name of their definition."""
    values = [getattr(m, name) for m in modules() for name in getattr(m, "__all__", ())]
    values = [value for value in values if inspect.isclass(value) or inspect.isfunction(value)]
    return {f"{value.__module__}.{value.__qualname__}": value for value in values}


def faults(value):
    """Return the sections that a docstring lacks."""
    text = inspect.getdoc(value) or ""
    found = [section for section in (">>>", "See also: ") if section not in text]
    function = value
    if inspect.isclass(value):  # Python writes the `__init__` of a dataclass
        written = "__post_init__" if dataclasses.is_dataclass(value) else "__init__"
        function = vars(value).get(written)
    else:
        returns = inspect.get_annotations(inspect.unwrap(value)).get("return") is not None
        if returns and not text.startswith(VERBS) and not {"Returns:", "Yields:"} & {*text.split()}:
            found.append("Returns:")
    if raises(function) and "Raises:" not in text:
        found.append("Raises:")
    return found


def raises(function):
    """Return whether the body of a function of this package has a `raise` of an exception."""
    if function is None or function.__module__ in ("typing", "abc"):
        return False
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    return any(isinstance(node, ast.Raise) and node.exc is not None for node in ast.walk(tree))


PUBLIC = public()


def test_there_are_public_names():
    assert len(PUBLIC) > 150


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_has_all_sections(name):
    assert not faults(PUBLIC[name])


def test_an_undocumented_function_is_found():
    def halved(x: int) -> int:
        """Halve a number."""
        if x % 2:
            raise ValueError("odd")
        return x // 2

    assert faults(halved) == [">>>", "See also: ", "Returns:", "Raises:"]
