"""Compare a description of a part with the header of its weights before anything is allocated."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_vae.part import Part
from pyro_vae.runtime.files import CheckpointError, read_file
from pyro_vae.runtime.json_schema import ListOf, Number, Record, Text, parse

MAX_HEADER_BYTES = 2**24  # about a hundred thousand tensors
SPARE_BYTES = 2**26  # of tensors that are not saved, such as a mask
CALLS_PER_TENSOR, SPARE_CALLS = 200, 20_000

_COUNT = Number(0, 2**62, integer=True)
_TENSOR = Record({"dtype": Text(), "shape": ListOf(_COUNT), "data_offsets": ListOf(_COUNT)})
_HEADER = Record(optional={"__metadata__": Record()}, others=_TENSOR)


@dataclass(frozen=True)
class Header:
    """Shapes of the tensors in a safetensors file by name, and the size of the file."""

    shapes: Mapping[str, tuple[int, ...]]
    file_size: int


def read_header(folder: Path, name: str) -> Header:
    """Read the header of a safetensors file, and no tensor.

    Raises:
        CheckpointError: If the header is damaged, or the file has another size than it states.
    """
    path = folder / name
    start = read_file(folder, name, first=8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER_BYTES
    if length >= MAX_HEADER_BYTES:
        raise CheckpointError(f"{path} is damaged: its header is longer than {MAX_HEADER_BYTES:,}")
    header = parse(read_file(folder, name, first=8 + length)[8:], path, _HEADER)
    header.pop("__metadata__", None)
    ends = [max(entry["data_offsets"], default=0) for entry in header.values()]
    expected, found = 8 + length + max(ends, default=0), path.lstat().st_size
    if found != expected:
        raise CheckpointError(f"{path} is damaged: expected {expected:,} bytes, got {found:,}")
    return Header({key: tuple(entry["shape"]) for key, entry in header.items()}, expected)


def check_builds(build: Callable[[], Part], header: Header) -> Part:
    """Build a part on the meta device, which allocates nothing, and compare it with a header.

    A constructor that reads values of its tensors cannot run there. Its part is built in memory,
    and each of its tensors is checked when it is made.

    Returns:
        The part, usually without values.

    Raises:
        CheckpointError: If the part has other tensors than the header, or is too large.
    """
    try:
        with torch.random.fork_rng(devices=[]), _Limited(header), torch.device("meta"):
            part = build()
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error):
            raise
        with torch.random.fork_rng(devices=[]), _Limited(header):
            part = build()
    shapes = {name: tuple(tensor.shape) for name, tensor in part.state_dict().items()}
    for name, shape in header.shapes.items():
        if name not in shapes:
            raise CheckpointError(f"the weights have a tensor {name!r}, which the model lacks")
        if shapes[name] != shape:
            raise CheckpointError(
                f"the weights have {name!r} of shape {shape}, and the model of {shapes[name]}"
            )
    for names in names_of_tensors(part).values():
        if header.shapes.keys().isdisjoint(names):
            raise CheckpointError(f"the weights lack the tensor {names[0]!r} of the model")
    return part


def names_of_tensors(part: Part) -> dict[Tensor, list[str]]:
    """Return parameters and buffers, each with its names: shared tensors have several."""
    named: dict[Tensor, list[str]] = {}
    for name, tensor in part.state_dict(keep_vars=True).items():
        named.setdefault(tensor, []).append(name)
    return named


class _Limited(TorchFunctionMode):
    """Raises `CheckpointError` if a constructor makes more or larger tensors than a file has."""

    def __init__(self, header: Header) -> None:
        super().__init__()
        self.left = SPARE_CALLS + CALLS_PER_TENSOR * len(header.shapes)
        self.most = SPARE_BYTES + 8 * header.file_size

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Call a function and check the size of its result."""
        self.left -= 1
        result = func(*args, **(kwargs or {}))
        size = result.numel() * result.element_size() if isinstance(result, Tensor) else 0
        if self.left < 0 or size > self.most:
            raise CheckpointError("the model is larger than its weights")
        return result
