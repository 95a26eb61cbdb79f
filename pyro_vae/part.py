"""What a part is: a module that remembers how it was built.

Every network, prior, likelihood and guide of the package is a `Part`. A part records the arguments
of its constructor, so that a trained pair can be saved as data (class names and arguments, no
code) and built again, and so that `VAE.replace` can swap one part and keep the rest.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn


class Part(nn.Module):
    """An `nn.Module` that remembers its constructor's arguments in `build_arguments`.

    Arguments are remembered by name, defaults left out. A tensor argument is a starting value, not
    architecture: it reaches the constructor and is remembered as `None`, since what it set is in
    the parameters and buffers. `Part.classes` has every subclass by name, for loading.
    """

    build_arguments: dict[str, Any]
    class_name: ClassVar[str]
    classes: ClassVar[dict[str, "type[Part]"]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.class_name = f"{cls.__module__}.{cls.__qualname__}"
        Part.classes[cls.class_name] = cls
        if "__init__" in cls.__dict__:
            cls.__init__ = _remember(cls.__init__)  # type: ignore[method-assign]


def _remember(init: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self: Part, *args: Any, **kwargs: Any) -> None:
        # A subclass's __init__ calls its parent's: only the outermost call describes the part.
        outermost = "build_arguments" not in self.__dict__
        if outermost:
            bound = signature.bind(self, *args, **kwargs)
            arguments = dict(list(bound.arguments.items())[1:])
            for name, parameter in signature.parameters.items():
                if parameter.kind is parameter.VAR_KEYWORD:
                    arguments.update(arguments.pop(name, {}))
            # nn.Module's own __setattr__ needs its __init__ first, and would register modules.
            self.__dict__["build_arguments"] = {
                name: None if isinstance(value, Tensor) else value
                for name, value in arguments.items()
            }
        init(self, *args, **kwargs)

    return wrapper
