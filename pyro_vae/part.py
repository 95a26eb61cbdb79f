"""`Part`: a module that remembers its constructor arguments, so that it can be saved as data.

Every network, prior, likelihood, guide and model of the package is a `Part`. A saved part is a
tree of class names and constructor arguments plus the tensors of its `state_dict`; no code is
stored.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, ClassVar, get_args

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vae.arguments import Check, Unfit, check_all, checks_of, takes

PACKAGE = __name__.partition(".")[0]
LINE_LENGTH = 88  # of printed code


class Part(nn.Module):
    """An `nn.Module` that records its constructor arguments in `build_arguments`.

    Arguments are recorded by name, without defaults. A tensor argument is an initial value, not
    architecture. The constructor receives it, but `None` is recorded in its place, because the
    parameters and buffers already hold its effect. `Part.classes` maps class names to subclasses;
    `load` looks classes up there.

    Example:
        >>> import pyro_vae as pv
        >>> pv.networks.MLP(2, [4], out_shape=3).build_arguments
        {'in_shape': 2, 'hidden': [4], 'out_shape': 3}

        A custom part is a subclass:

        >>> import torch
        >>> class Bias(pv.Part):
        ...     def __init__(self, size):
        ...         super().__init__()
        ...         self.bias = torch.nn.Parameter(torch.zeros(size))
        ...
        ...     def forward(self, values):
        ...         return values + self.bias
        >>> Bias(2).build_arguments
        {'size': 2}

    See also: `load`, `VAE.save`, `VAE.replace`.
    """

    build_arguments: dict[str, object]
    class_name: ClassVar[str]
    classes: ClassVar[dict[str, "type[Part]"]] = {}

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        cls.class_name = f"{cls.__module__}.{cls.__qualname__}"
        Part.classes[cls.class_name] = cls
        if "__init__" in cls.__dict__:
            cls.__init__ = _record_arguments(cls.__init__)  # type: ignore[method-assign]

    def __init__(self) -> None:
        super().__init__()
        # A class without a constructor has no arguments.
        self.__dict__.setdefault("build_arguments", {})

    def set_argument(self, name: str, value: object) -> None:
        """Set an attribute; if the constructor has an argument of its name, as if it were given."""
        setattr(self, name, value)
        if name in inspect.signature(type(self)).parameters:
            self.build_arguments[name] = value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call `forward`, in `torch.export` without validation of distributions.

        Validation reads values of tensors, which do not exist while a program is exported.
        """
        if not torch.compiler.is_exporting():
            return super().__call__(*args, **kwargs)
        with pyro.validation_enabled(False):
            return _without_validation(super().__call__(*args, **kwargs))


def _without_validation(result: object) -> object:
    """Return a copy of a distribution, and of those inside it, that does not check values."""
    if isinstance(result, list):
        return [_without_validation(item) for item in result]
    if not isinstance(result, Distribution):
        return result
    unchecked = copy.copy(result)
    unchecked.__dict__ = {name: _without_validation(item) for name, item in vars(result).items()}
    unchecked._validate_args = False
    return unchecked


def _record_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """Wrap a constructor so that it checks and records its arguments before it runs."""
    signature = inspect.signature(init)
    own = init.__module__.startswith(f"{PACKAGE}.")
    # The names in the annotations may be defined after the class.
    checks = functools.cache(functools.partial(checks_of, init))

    @functools.wraps(init)
    def wrapper(self: Part, *args: object, **kwargs: object) -> None:
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError:
            return init(self, *args, **kwargs)  # raises the error that names the class
        if own:
            check_all(checks(), bound.arguments)
        # A subclass's __init__ calls the __init__ of its parent. Only the outermost call counts.
        if "build_arguments" not in self.__dict__:
            arguments = dict(list(bound.arguments.items())[1:])
            for name, parameter in signature.parameters.items():
                if parameter.kind is parameter.VAR_KEYWORD:
                    arguments.update(arguments.pop(name, {}))
            # nn.Module.__setattr__ would fail before nn.Module.__init__, and register modules.
            self.__dict__["build_arguments"] = {
                name: None if isinstance(value, Tensor) else value
                for name, value in arguments.items()
            }
        return init(*bound.args, **bound.kwargs)

    return wrapper


@dataclass(frozen=True)
class Role(Check):
    """A callable in one role of a model.

    Args:
        role: `"network"`, `"prior"`, `"likelihood"` or `"guide"`.
        inputs: Names of the inputs that the callable is called with.
        kinds: Classes whose instances are accepted without being callables of the inputs.
    """

    role: str
    inputs: tuple[str, ...] = ()
    kinds: tuple[type, ...] = ()

    @property
    def expected(self) -> str:  # type: ignore[override]
        """Description of the role."""
        result = "a tensor" if self.role == "network" else "a distribution"
        return f"a callable of {', '.join(self.inputs) or 'no arguments'} that returns {result}"

    def convert(self, value: object) -> object:
        """Return the callable."""
        if isinstance(value, self.kinds):
            return value
        if isinstance(value, type):
            raise Unfit(f"pass an instance, {value.__name__}(...)")
        if isinstance(value, Distribution):
            raise Unfit(f"a distribution is no {self.role}; wrap it in a function")
        role = role_of(value)
        if role and role != self.role:
            hint = "the parts may be in the wrong order"
            if role == "network":
                hint = f"pass the network to a {self.role} of pyro_vae.{self.role}s"
            raise Unfit(f"{type(value).__name__} is a {role}; {hint}")
        if not callable(value) or not takes(value, len(self.inputs)):
            raise Unfit
        return value


def code_of(
    value: object,
    indent: str = "",
    line_length: float = LINE_LENGTH,
    names: Mapping[nn.Module, str] | None = None,
) -> str:
    """Return the constructor call of a part as code. Initial values given as tensors are omitted.

    Args:
        value: The part, or an argument of a part.
        indent: Indentation of the lines after the first.
        line_length: Longest line; `math.inf` for one line.
        names: Names of variables that contain some of the parts.

    Example:
        >>> import pyro_vae as pv
        >>> print(pv.part.code_of(pv.networks.MLP(2, [4], 3)))
        pv.networks.MLP(in_shape=2, hidden=[4], out_shape=3)
    """
    inner = f"{indent}    "
    if isinstance(value, Part):
        if names and value in names:
            return names[value]
        parameters = inspect.signature(type(value).__init__).parameters
        arguments = [
            f"{name}={code_of(argument, inner, line_length, names)}"
            for name, argument in value.build_arguments.items()
            if argument is not None or _is_choice(parameters.get(name))
        ]
        return _call(_public_name(type(value)), "()", arguments, indent, line_length)
    if isinstance(value, list | tuple) and len(value) > 2 and all(i == value[0] for i in value):
        return f"[{code_of(value[0], inner, line_length, names)}] * {len(value)}"
    if isinstance(value, list | tuple):
        items = [code_of(item, inner, line_length, names) for item in value]
        return _call("", "[]", items, indent, line_length)
    return repr(value)


def _is_choice(parameter: inspect.Parameter | None) -> bool:
    """Return whether None is an accepted value of a parameter, and not its default."""
    if parameter is None or parameter.default is None:
        return False
    return NoneType in get_args(parameter.annotation)


def _call(name: str, brackets: str, items: list[str], indent: str, line_length: float) -> str:
    line = f"{name}{brackets[0]}{', '.join(items)}{brackets[1]}"
    if len(indent) + len(line) <= line_length and "\n" not in line:
        return line
    lines = "".join(f"{indent}    {item},\n" for item in items)
    return f"{name}{brackets[0]}\n{lines}{indent}{brackets[1]}"


def _public_name(kind: type[Part]) -> str:
    package, namespace, *_ = f"{kind.class_name}.".split(".")
    if package != PACKAGE:
        return kind.__name__
    return f"pv.{kind.__name__}" if namespace == "models" else f"pv.{namespace}.{kind.__name__}"


def role_of(value: object) -> str:
    """Return the role of a part of this package: the name of its namespace. "" if unknown."""
    for cls in type(value).__mro__:
        if "forward" in cls.__dict__:  # the method that defines what the part returns
            package, _, rest = cls.__module__.partition(".")
            role = rest.split(".")[0].removesuffix("s")
            known = package == PACKAGE and role in ("guide", "likelihood", "network", "prior")
            return role if known else ""
    return ""
