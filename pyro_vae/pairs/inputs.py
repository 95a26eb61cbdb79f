"""Data as a pair takes them: tensors on the device and in the type of its parameters."""

import contextlib
import warnings
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pyro_vae.data.any_data import Data, as_dataset
from pyro_vae.data.conversion import advice_for, as_tensor, check_layout
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.errors import DataWarning
from pyro_vae.data.sources import frames
from pyro_vae.data.sources.column_order import ColumnOrder, check_agreement
from pyro_vae.data.sources.frames import is_frame, is_matrix, is_source
from pyro_vae.data.sources.schema import Schema
from pyro_vae.pairs.pair import Pair, PairError, PairLike
from pyro_vae.part import Part
from pyro_vae.runtime.devices import device_of, dtype_of

# Data in the form of the source, which the schema of a pair reads, or of the model.
UserData: TypeAlias = Data | frames.Table


def dataset_of(
    pair: PairLike,
    data: Data,
    device: torch.device | None = None,
    order: ColumnOrder | None = None,
) -> Dataset:
    """Return data as a `Dataset` on the device and in the floating-point type of a pair.

    Args:
        pair: Object with a `.model` and a `.guide`.
        data: Data, as for `fit`.
        device: Device; by default that of the parameters.
        order: Columns of x, if the pair has no schema.

    Raises:
        DataError: If the data cannot be used.
        PairError: If the parameters have no values.

    Warns:
        DataWarning: If x is converted from another floating-point type.
    """
    check_has_values(pair.model, pair.guide)
    dataset = in_schema(pair, data, order).to(device or device_of(pair.model, pair.guide))
    dtype = dtype_of(pair.model, pair.guide)
    _say_conversion(dataset.x_dtype, dtype)
    return dataset.astype(dtype)


def in_schema(pair: PairLike, data: UserData, order: ColumnOrder | None = None) -> Dataset:
    """Return data as a `Dataset`, read by the schema of the pair if it has one.

    Paths, frames, numpy arrays, sparse matrices and AnnData are data in the form of the source.
    Tensors and datasets are in the form of the model.

    Raises:
        DataError: If the data cannot be used, or do not have the schema.
    """
    schema: Schema | None = getattr(pair, "schema", None) or order
    if schema is None:
        return as_dataset(cast(Data, data))
    if is_source(data):
        return schema.read(data)
    if isinstance(data, tuple) and data and (is_frame(data[0]) or is_matrix(data[0])):
        data = (schema.read(data[0]), *data[1:])
    dataset = as_dataset(cast(Data, data))
    if dataset.schema is not None:
        check_agreement(schema, dataset.schema)
    return dataset


def keep_order(pair: object, data: Dataset) -> None:
    """Give a pair without a schema the names of the columns of its training data, if they have any.

    Frames with these columns in another order are then read by name. A saved model keeps them, if
    its constructor has the argument `schema`. Objects that refuse attributes are left as they are.
    """
    order = ColumnOrder.of(data.schema)
    if order is None or getattr(pair, "schema", None) is not None:
        return
    if isinstance(pair, Part):
        pair.set_argument("schema", order)
    elif isinstance(pair, Pair):
        object.__setattr__(pair, "schema", order)  # it is frozen
    else:
        with contextlib.suppress(AttributeError):
            pair.schema = order  # type: ignore[attr-defined]


def as_input(pair: PairLike, x: object, name: str = "x") -> Tensor:
    """Return x as a tensor in the floating-point type of a pair. Arrays are moved to its device.

    Raises:
        PairError: If x is no tensor or array of floats, or on another device.

    Warns:
        DataWarning: If x is converted from another floating-point type.
    """
    value = as_tensor(x)
    has_schema = getattr(pair, "schema", None) is not None
    if is_frame(x) or is_matrix(x) or (has_schema and is_source(x)):
        value = in_schema(pair, cast(UserData, x))[:]
    if not isinstance(value, Tensor):
        advice = advice_for(x) or f"torch.as_tensor({name}, dtype=torch.float32) converts numbers"
        if isinstance(x, Dataset):
            advice = f"{name}[:] has all of its rows"
        elif isinstance(x, DataLoader):
            advice = "pass its batches one after another"
        raise PairError(
            f"{name} must be a numpy array or a torch tensor, got {type(x).__name__}: {advice}"
        )
    programs = (pair.model, pair.guide)
    check_has_values(*programs, value, name=name)
    check_data_values(value, name)
    if any(isinstance(program, nn.Module) for program in programs):
        device = device_of(*programs)
        if value is not x:
            value = value.to(device)
        elif value.device != device and any(True for _ in _parameters(*programs)):
            raise PairError(
                f"{name} is on {value.device}, but the parameters are on {device}: move it by "
                f"{name}.to({str(device)!r})"
            )
    dtype = dtype_of(*programs)
    _say_conversion(value.dtype, dtype)
    return value.to(dtype) if dtype and value.is_floating_point() else value


def check_data_values(x: Tensor, name: str = "x") -> None:
    """Check the dtype of data, and that they are neither empty nor infinite.

    Raises:
        PairError: If x is empty, infinite, complex, boolean or 8-bit.
        DataError: If x is nested, quantized or sparse.
    """
    if x.layout != torch.sparse_coo:  # the programs of a user may take these
        check_layout(x, name)
    if x.dim() == 0 or len(x) == 0:
        raise PairError(f"{name} must hold at least one datum, got shape {tuple(x.shape)}")
    if x.dtype in (torch.uint8, torch.bool) or x.is_complex():
        raise PairError(
            f"{name} has dtype {x.dtype}; floating point is expected. Convert bytes 0..255 by "
            f"{name}.float() / 255; for a Bernoulli likelihood, binarize them (binarize=)"
        )
    if torch.isinf(x).any():
        raise PairError(f"{name} holds infinite values")


def check_has_values(*given: object, name: str = "x") -> None:
    """Check that tensors and the parameters of modules have values. On the device meta, none have.

    Args:
        given: Tensors, modules and other objects, which are not checked.
        name: Name of the tensors.

    Raises:
        PairError: If one is on the device meta.
    """
    tensors = [value for value in given if isinstance(value, Tensor)]
    devices = sorted({str(parameter.device) for parameter in _parameters(*given)})
    if any(tensor.is_meta for tensor in tensors):
        raise PairError(
            f"{name} is on the device meta, which has shapes but no values"
            f"{f' (parameters: {devices[0]})' if devices else ''}: create it on another device"
        )
    if "meta" in devices:
        raise PairError(
            "parameters are on the device meta, which has shapes but no values: move the modules "
            "by .to_empty(device='cpu') and load their weights, or create them on another device"
        )


def _parameters(*programs: object) -> list[nn.Parameter]:
    return [p for fn in programs if isinstance(fn, nn.Module) for p in fn.parameters()]


def _say_conversion(given: torch.dtype, expected: torch.dtype | None) -> None:
    if expected is not None and given.is_floating_point and given != expected:
        # The same text at the same line: Python's default filter shows it once.
        warnings.warn(
            f"x has dtype {given}, but the parameters are {expected}: x is converted. Pass "
            f"x.to({expected}) to avoid this warning, or convert the pair, as in vae.double()",
            DataWarning,
            stacklevel=2,
        )


def program_error(role: str, x: object, error: Exception, *programs: object) -> PairError:
    """Return the error to raise if a program fails on x.

    Args:
        role: `"model"`, `"guide"` or the name of a part.
        x: First argument of the program.
        error: Error that the program raised.
        programs: Modules with the parameters of the program.
    """
    given = f" on x of shape {tuple(x.shape)} and dtype {x.dtype}" if isinstance(x, Tensor) else ""
    failure = PairError(f"the {role} fails{given}: {explanation(x, error, *programs)}")
    failure.__cause__ = error
    return failure


def explanation(x: object, error: Exception, *programs: object) -> str:
    """Return why programs fail on x: the text of the error, or the property of x that causes it."""
    text, devices = str(error), {parameter.device for parameter in _parameters(*programs)}
    if not isinstance(x, Tensor):
        return text
    if "Shape mismatch inside plate" in text:
        return (
            f"{text}. Declare the dimensions of one datum as its event, by .to_event(), and give "
            "the plate the size of the batch, as in pyro.plate('data', len(x))"
        )
    if isinstance(error, PairError):
        return text
    if isinstance(error, IndexError):
        return (
            f"{text}. The pair is given batches of any size: index only rows that a batch has, and "
            "leave `subsample` of the plate over the data to Pyro"
        )
    if x.is_floating_point() and x.isnan().any():
        return (
            "x holds NaN entries. Replace or drop them, or wrap the encoder in networks.WithMask "
            "and the likelihood in likelihoods.Missing"
        )
    if x.dim() and not len(x):
        return f"x must hold at least one datum, got shape {tuple(x.shape)}"
    if "dtype" in text and x.dtype == torch.float64:
        return (
            "x is float64, but other tensors of the program are not. Convert x by x.float(), or "
            "the modules by .double()"
        )
    if "dtype" in text and x.is_floating_point() and x.dtype != dtype_of(*programs):
        kind = str(x.dtype).removeprefix("torch.")
        return (
            f"x is {kind}, but other tensors of the program are not. Convert x to their dtype, as "
            f"by x.double(), or the modules by .to(x.dtype)"
        )
    if not x.is_floating_point() and ("dtype" in text or "Long" in text):
        return (
            "the program computes with floats. Convert counts by x.float(), or embed tokens in the "
            "encoder"
        )
    if devices and devices != {x.device}:
        return f"x is on {x.device}, but the parameters are on {', '.join(map(str, devices))}"
    return text
