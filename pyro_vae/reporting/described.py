"""The parts of a model as text."""

from pyro_vae.models.base import Autoencoder
from pyro_vae.part import Part


def parts_of(vae: Autoencoder) -> list[tuple[str, str, int]]:
    """Return name, description and number of parameters of the constructor arguments."""
    return [
        (
            name,
            _described(value),
            sum(parameter.numel() for parameter in value.parameters())
            if isinstance(value, Part)
            else 0,
        )
        for name, value in vae.build_arguments.items()
    ]


def _described(value: object) -> str:
    """Return the constructor call of a part as text."""
    if isinstance(value, Part):
        arguments = ", ".join(
            f"{name}={_described(argument)}"
            for name, argument in value.build_arguments.items()
            if argument is not None  # an initial value given as a tensor, or a default
        )
        return f"{type(value).__name__}({arguments})"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_described, value))}]"
    return repr(value)
