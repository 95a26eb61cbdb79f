"""From Python to one graph: a function of tensors is traced, and the trace checked.

Pyro's bound cannot be compiled as it stands: it looks at the values of tensors (`loss.item()`, the
warnings about NaN, the masks of an enumerated bound) and at Python objects without end. But one run
of it, with its backward pass, is a plain sequence of tensor operations, and `capture` records it.

What could make the record differ from the program, and what is done about it:

- a tensor's value decides what is run (`if x.sum() > 0`): the value that was read becomes a
  *guard*, computed in every step; where it differs, the step changes nothing and returns NaN;
- a tensor that is not an argument (parameters, buffers, globals) becomes an input of the graph,
  so that changes in place are seen;
- a number that came from elsewhere (`random`, numpy): two records must be equal, else
  `NotCompilable` is raised;
- everything else (a global number that changes): the caller's affair; see `surroundings.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

aten = torch.ops.aten

# F.batch_norm's own operation changes the running statistics without saying so in its signature.
EXPLICIT_MUTATION: Any = get_decompositions([aten.native_batch_norm, aten.cudnn_batch_norm])


class NotCompilable(Exception):  # noqa: N818 - it is a finding, not an error
    """A function that one graph cannot stand for; the message completes "because ..."."""


@dataclass(frozen=True)
class Capture:
    """The record of one run: `graph(*inputs, *tensors)` computes what the function did.

    Attributes:
        graph: returns `(losses, guards, gradients)`.
        tensors: the tensors that the function used beside its inputs, by reference.
        parameters: those tensors among `tensors` that have gradients, in the gradients' order.
        mutated: positions in `tensors` of those that the function changed in place.
        guards: the values that the function read; a step with others is not this program's.
        branches: whether it read more than if something is NaN.
    """

    graph: fx.GraphModule
    tensors: list[Tensor]
    parameters: list[Tensor]
    mutated: list[int]
    guards: list[Any]
    branches: bool


class ValueReader(TorchFunctionMode):
    """Answers what a program asks of a tensor's value while it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[tuple[Tensor, Any]] = []
        self._selected: dict[int, Selection] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.item and args[0].is_floating_point():
            # A float that goes into sums: it stays a tensor, with the precision that it had.
            return args[0].detach().double()
        if func in READS:
            with _disable_current_modes():
                value = func(*args, **kwargs)
            self.read.append((args[0].detach(), value))
            return value
        if func in (torch.equal, Tensor.equal):
            same_shape = args[0].shape == args[1].shape
            return same_shape and bool((args[0] == args[1]).all())
        if func in UNTRACEABLE:
            raise NotCompilable(f"it takes a tensor's values into Python by {func.__name__}()")
        if kwargs.get("generator") is not None:
            raise NotCompilable("it draws from a random generator of its own")
        if func is Tensor.register_hook:  # called in the backward pass, where no mode is active
            return func(args[0], lambda gradient: self._run(args[1], gradient))
        if func is DATA:
            return args[0].detach()
        # `a[mask] = b[mask]`, as Pyro's splines have it, needs no selection, whose size depends on
        # the data. One that goes elsewhere, too, stays in the record, and is refused there.
        if func is Tensor.__getitem__ and _is_mask(args[1], args[0]):
            part = func(*args)
            self._selected[id(part)] = Selection(part, *args)
            return part
        if func is Tensor.__setitem__ and id(args[2]) in self._selected:
            selection = self._selected[id(args[2])]
            if selection.fits(*args[:2]):
                args[0].copy_(torch.where(args[1], selection.source, args[0]))
                return None
        # An optimizer scales by numbers (`alpha`, `value`) which here are tensors.
        if func in SCALED and isinstance(kwargs.get("alpha", kwargs.get("value")), Tensor):
            scale: Any = kwargs.get("alpha", kwargs.get("value"))
            return args[0].add_(scale * SCALED[func](*args[1:]))
        if func is Tensor.lerp_ and isinstance(args[2], Tensor):
            return args[0].lerp_(args[1], args[2].to(args[0].dtype))
        return func(*args, **kwargs)

    def _run(self, hook: Callable[[Tensor], Any], gradient: Tensor) -> Any:
        with self:
            return hook(gradient)


class Selection:
    """What a mask selected: `part = source[mask]`."""

    def __init__(self, part: Tensor, source: Tensor, mask: Tensor) -> None:
        self.part, self.source, self.mask = part, source, mask
        self._versions = self._current_versions()

    def fits(self, target: Tensor, mask: Tensor) -> bool:
        """Tell whether `target[mask] = part` can be read off the source, as it was then."""
        same = mask is self.mask and target.shape == self.source.shape
        return same and self._versions == self._current_versions()

    def _current_versions(self) -> tuple[int, ...]:
        return self.part._version, self.source._version, self.mask._version


def _is_mask(index: Any, tensor: Tensor) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool and index.shape == tensor.shape


DATA = Tensor.data.__get__  # type: ignore[attr-defined]
READS = {
    Tensor.item,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.is_nonzero,
    torch.is_nonzero,
}
UNTRACEABLE = {Tensor.numpy, Tensor.tolist, Tensor.__array__, torch.allclose, Tensor.allclose}
SCALED: dict[Any, Callable[..., Tensor]] = {
    Tensor.add_: lambda other: other,
    Tensor.addcdiv_: torch.div,
    Tensor.addcmul_: torch.mul,
}


def capture(
    function: Callable[..., tuple[Sequence[Tensor], list[Tensor]]], inputs: list[Tensor]
) -> Capture:
    """Run `function(*inputs)` and record it.

    Args:
        function: returns losses and the parameters whose `.grad` it has filled. It runs twice, for
            real: it draws random numbers and changes buffers, which the caller must restore.
        inputs: the tensors that it is called with.

    Raises:
        NotCompilable: when a graph cannot stand for the function.
    """
    first, second = _record(function, inputs), _record(function, inputs)
    if first.graph.code != second.graph.code or first.guards != second.guards:
        raise NotCompilable(
            "two runs on the same data differ: it uses randomness from outside torch, or changes "
            "itself from call to call"
        )
    constants = _constants(first.graph)
    if (
        any(a is not b for a, b in zip(first.tensors, second.tensors, strict=True))
        or any(
            not torch.equal(a, b) for a, b in zip(constants, _constants(second.graph), strict=True)
        )
        or any(not constant.untyped_storage().resizable() for constant in constants)  # of numpy
    ):
        raise NotCompilable(
            "it makes tensors of numpy arrays, or of numbers that differ from run to run"
        )
    return first


def _record(function: Callable[..., Any], inputs: list[Tensor]) -> Capture:
    reader = ValueReader()
    parameters: list[Tensor] = []
    used: list[Tensor] = []

    def traced(*inputs: Tensor) -> Any:
        with reader:
            losses, parameters[:] = function(*inputs)
            losses = [torch.as_tensor(loss, dtype=torch.double).detach() for loss in losses]
        used[:] = [parameter for parameter in parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in used]
        return losses, [tensor for tensor, _ in reader.read], gradients

    versions = [tensor._version for tensor in inputs]
    try:
        graph = make_fx(traced, decomposition_table=EXPLICIT_MUTATION)(*inputs)
    except NotCompilable:
        raise
    except Exception as error:  # whatever a foreign program may raise under a tracer
        raise NotCompilable(f"it cannot be traced: {first_line(error)}") from error
    finally:
        for parameter in parameters:
            parameter.grad = None
    if versions != [tensor._version for tensor in inputs]:
        raise NotCompilable("it changes its arguments in place")
    for node in reversed(graph.graph.nodes):
        if node.target is aten.index.Tensor and not node.users:
            graph.graph.erase_node(node)  # a selection by a mask that `ValueReader` did without
    for node in graph.graph.nodes:
        if _has_dynamic_shape(node):
            raise NotCompilable(f"the shape of a result depends on the data ({node.target})")
    tensors = _lift_tensors(graph)
    mutated = _mutated(graph, len(inputs))
    guards = [value for _, value in reader.read]
    return Capture(graph, tensors, used, mutated, guards, _branches(graph))


def _branches(graph: fx.GraphModule) -> bool:
    output = next(node for node in graph.graph.nodes if node.op == "output")
    guards: Any = output.args[0][1]
    return not all(
        guard.target is aten.any.default and guard.args[0].target is aten.isnan.default
        for guard in guards
    )


def same_strides(tensor: Tensor) -> Tensor:
    """Return a copy with the tensor's own strides, for which a program is compiled.

    `clone` alone keeps those of a dense tensor, but not of a slice or an expanded one.
    """
    tensor = tensor.detach()
    copy = tensor.clone()
    if copy.stride() == tensor.stride():
        return copy
    extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    memory = tensor.as_strided((extent,), (1,)).clone()
    return memory.as_strided(tensor.shape, tensor.stride(), 0)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _has_dynamic_shape(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    if torch.Tag.dynamic_output_shape not in tags:
        return False
    if node.target is aten.index.Tensor:  # dynamic for masks, not for integers
        indices: Any = node.args[1]
        types = [index.meta["tensor_meta"].dtype for index in indices if index is not None]
        return torch.bool in types or torch.uint8 in types
    return True


def _lift_tensors(graph: fx.GraphModule) -> list[Tensor]:
    """Turn the tensors that a graph holds into inputs of it, and return them."""
    nodes = graph.graph
    inputs = [node for node in nodes.nodes if node.op == "placeholder"]
    tensors: list[Tensor] = []
    placeholders: list[fx.Node] = []
    for node in list(nodes.nodes):
        if node.op != "get_attr" or all(user.target in LITERAL for user in node.users):
            continue  # a literal is a number written in the program, such as torch.tensor(0.5)
        value = getattr(graph, str(node.target))
        known = [i for i, tensor in enumerate(tensors) if tensor is value]
        if not known:
            known = [len(tensors)]
            after = [*inputs, *placeholders]
            first = next(iter(nodes.nodes))
            with nodes.inserting_after(after[-1]) if after else nodes.inserting_before(first):
                placeholders.append(nodes.placeholder(f"tensor_{len(tensors)}"))
            tensors.append(value)
        node.replace_all_uses_with(placeholders[known[0]])
        nodes.erase_node(node)
    nodes.set_codegen(fx.graph.CodeGen())
    nodes.lint()
    graph.recompile()
    graph.delete_all_unused_submodules()
    return tensors


LITERAL = {aten.lift_fresh_copy.default, aten.lift_fresh.default}


def _constants(graph: fx.GraphModule) -> list[Tensor]:
    return [getattr(graph, str(n.target)) for n in graph.graph.nodes if n.op == "get_attr"]


def _mutated(graph: fx.GraphModule, num_inputs: int) -> list[int]:
    """Return which of the lifted tensors an operation of the graph writes to."""
    lifted = [node for node in graph.graph.nodes if node.op == "placeholder"][num_inputs:]
    written = set()
    for node in graph.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable:
            continue
        for argument, value in zip(schema.arguments, node.args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                base = value
                while base.op == "call_function" and base.target in ALIASES:
                    base = base.args[0]
                written.add(base)
    return [i for i, node in enumerate(lifted) if node in written]


ALIASES = {aten.alias.default, aten.detach.default, aten.view.default, aten.t.default}
