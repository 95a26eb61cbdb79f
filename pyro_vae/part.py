"""`Part`: a module that remembers its constructor arguments, so that it can be saved as data.

Every network, prior, likelihood, guide and model of the package is a `Part`. A saved part is a
tree of class names and constructor arguments plus the tensors of its `state_dict`; no code is
stored.
"""

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution


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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call `forward`, in `torch.export` without validation of distributions.

        Validation reads values of tensors, which do not exist while a program is exported.
        """
        if not torch.compiler.is_exporting():
            return super().__call__(*args, **kwargs)
        with pyro.validation_enabled(False):
            return _without_validation(super().__call__(*args, **kwargs))


def _without_validation(result: Any) -> Any:
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
    """Wrap a constructor so that it records its arguments before it runs."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self: Part, *args: object, **kwargs: object) -> None:
        # A subclass's __init__ calls the __init__ of its parent. Only the outermost call counts.
        outermost = "build_arguments" not in self.__dict__
        if outermost:
            bound = signature.bind(self, *args, **kwargs)
            arguments = dict(list(bound.arguments.items())[1:])
            for name, parameter in signature.parameters.items():
                if parameter.kind is parameter.VAR_KEYWORD:
                    arguments.update(arguments.pop(name, {}))
            # nn.Module.__setattr__ would fail before nn.Module.__init__, and register modules.
            self.__dict__["build_arguments"] = {
                name: None if isinstance(value, Tensor) else value
                for name, value in arguments.items()
            }
        init(self, *args, **kwargs)

    return wrapper


def check_at_least(name: str, value: int, minimum: int) -> None:
    """Raise `ValueError` if an argument is below its minimum."""
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")


def check_positive(name: str, value: float) -> None:
    """Raise `ValueError` if an argument is not positive."""
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
