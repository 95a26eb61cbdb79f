"""Graph capture: trace a function of tensors into one FX graph and check the trace.

Pyro's bound cannot be compiled directly. It reads tensor values (`loss.item()`, the NaN warnings,
the masks of an enumerated bound) and many Python objects. A single run, backward pass included, is
a plain sequence of tensor operations. `capture` records that sequence.

A recorded graph can differ from the program in five ways:

- The program branches on a tensor's value (`if x.sum() > 0`). The value becomes a *guard*, which
  the graph computes in every step. If it differs, the step changes nothing and returns NaN.
- The program uses a tensor that is not an argument (parameters, buffers, globals). The tensor
  becomes an input of the graph, so in-place changes are seen.
- The program uses a number from elsewhere (`random`, numpy). `capture` records the program twice
  and raises `NotCompilable` if the two graphs differ.
- torch validates parameters of distributions and observed values. The results become guards, so
  that the eager step raises the error. The checks of latent variables are dropped.
- The program reads another Python value, such as a global number. `capture` does not detect a
  change of it; see `guards.py`.
"""

import contextlib
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vae.engine.value_reader import NotCompilable, ValueReader

aten = torch.ops.aten


@dataclass(frozen=True)
class Capture:
    """The graph of one run: `graph(*inputs, *tensors)` repeats the function's computation.

    Attributes:
        graph: Graph module that returns `(losses, guards, gradients)`.
        tensors: Tensors, other than the inputs, that the function used; held by reference.
        parameters: Tensors among `tensors` that have gradients, in the gradients' order.
        mutated: Positions in `tensors` of the tensors that the function changed in place.
        guards: Values that the function read. The graph is valid for these values only.
        branches: Whether the function read any value other than "is some entry NaN?".
        stops_gradients: Whether code of the user detaches tensors, disables gradients or registers
            hooks.
    """

    graph: fx.GraphModule
    tensors: list[Tensor]
    parameters: list[Tensor]
    mutated: list[int]
    guards: list[bool | float]
    branches: bool
    stops_gradients: bool


def capture(
    function: Callable[..., tuple[Sequence[float | Tensor], list[Tensor]]], inputs: list[Tensor]
) -> Capture:
    """Run `function(*inputs)` twice and record it as a graph.

    Args:
        function: Function that returns its losses and the parameters of which it filled `.grad`.
            Both runs draw random numbers and change buffers; the caller must restore these.
        inputs: Tensor arguments of the function.

    Raises:
        NotCompilable: If one graph cannot replace the function.
    """
    first, second = _record(function, inputs), _record(function, inputs)
    if first.graph.code != second.graph.code or first.guards != second.guards:
        raise NotCompilable(
            "two runs on the same data differ: it uses randomness from outside torch, or changes "
            "its state from call to call"
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


@functools.cache
def _explicit_mutation() -> Mapping[Any, Callable[..., object]]:
    """Return decompositions of batch norm.

    Its operations change the running statistics, and their schemas do not declare it.
    """
    from torch._decomp import get_decompositions

    return get_decompositions([aten.native_batch_norm, aten.cudnn_batch_norm])


def one_fake_mode() -> contextlib.AbstractContextManager[object]:
    """Return a context in which `make_fx` describes all tensors of a graph in one fake mode.

    By default it makes a mode for every operation, which takes most of the time of recording.
    """
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode

    return tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True)))


def _record(
    function: Callable[..., tuple[Sequence[float | Tensor], list[Tensor]]], inputs: list[Tensor]
) -> Capture:
    # Imported here: torch's compiler stack is slow to import, and only compiled steps need it.
    from torch.fx.experimental.proxy_tensor import make_fx

    reader = ValueReader()
    parameters: list[Tensor] = []
    used: list[Tensor] = []

    def traced(*inputs: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
        with reader:
            values, parameters[:] = function(*inputs)
            losses = [torch.as_tensor(value, dtype=torch.double).detach() for value in values]
        used[:] = [parameter for parameter in parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in used]
        return losses, [*(tensor for tensor, _ in reader.read), *reader.valid], gradients

    versions = [tensor._version for tensor in inputs]
    try:
        # The backward pass of a GPU would otherwise run in another thread, where nothing is traced.
        with torch.autograd.set_multithreading_enabled(False), one_fake_mode():
            graph = make_fx(traced, decomposition_table=_explicit_mutation())(*inputs)
    except NotCompilable:
        raise
    except Exception as error:  # a traced program can raise anything
        if "_local_scalar_dense" in str(error):  # torch's advice is for callers of make_fx
            raise NotCompilable(
                "it reads the number in a tensor, for example in x[i] with a tensor i of shape (): "
                "use an int, or an index of shape (1,)"
            ) from error
        raise NotCompilable(f"it cannot be traced: {first_line(error)}") from error
    finally:
        for parameter in parameters:
            parameter.grad = None
    if versions != [tensor._version for tensor in inputs]:
        raise NotCompilable("it changes its arguments in place")
    for node in reversed(graph.graph.nodes):
        if node.target is aten.index.Tensor and not node.users:
            graph.graph.erase_node(node)  # a mask selection that `ValueReader` replaced
    for node in graph.graph.nodes:
        if _has_dynamic_shape(node):
            raise NotCompilable(f"the shape of a result depends on the data ({node.target})")
    num_valid = _drop_constant_checks(graph, len(reader.read))
    tensors = _lift_tensors(graph)
    mutated = _mutated(graph, len(inputs))
    guards = [value for _, value in reader.read]
    branches = _branches(graph, len(guards))
    guards += [True] * num_valid
    return Capture(graph, tensors, used, mutated, guards, branches, reader.stops_gradients)


def _drop_constant_checks(graph: fx.GraphModule, num_reads: int) -> int:
    """Drop validations that do not depend on the graph's inputs; return the number of the others.

    Args:
        graph: Graph of which the guards are reads, followed by results of validation.
        num_reads: Number of reads.
    """
    output = next(node for node in graph.graph.nodes if node.op == "output")
    losses, guards, gradients = output.args[0]
    checks = [node for node in guards[num_reads:] if node.op != "get_attr"]
    output.args = ([losses, [*guards[:num_reads], *checks], gradients],)
    return len(checks)


def _branches(graph: fx.GraphModule, num_reads: int) -> bool:
    output = next(node for node in graph.graph.nodes if node.op == "output")
    guards: Any = output.args[0][1][:num_reads]
    return not all(map(_asks_for_nan, guards))


def _asks_for_nan(node: Any) -> bool:
    """Return whether a node is `isnan(x).any()`, as in torch's checks of a sum for NaN."""
    while node.target is aten.detach.default:
        node = node.args[0]
    return bool(node.target is aten.any.default and node.args[0].target is aten.isnan.default)


def same_strides(tensor: Tensor) -> Tensor:
    """Return a copy with the same strides, because compiled programs are specific to strides.

    `clone` keeps the strides of a dense tensor, but not of a slice or an expanded tensor.
    """
    tensor = tensor.detach()
    copy = tensor.clone()
    if copy.stride() == tensor.stride():
        return copy
    extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    memory = tensor.as_strided((extent,), (1,)).clone()
    return memory.as_strided(tensor.shape, tensor.stride(), 0)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if the message is empty."""
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
    """Turn the tensors that a graph holds into inputs of the graph, and return them."""
    nodes = graph.graph
    inputs = [node for node in nodes.nodes if node.op == "placeholder"]
    tensors: list[Tensor] = []
    placeholders: list[fx.Node] = []
    for node in list(nodes.nodes):
        if node.op != "get_attr" or all(user.target in LITERAL for user in node.users):
            continue  # a literal in the program, such as torch.tensor(0.5)
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
    """Return the positions of the lifted tensors that the graph changes in place."""
    lifted = [node for node in graph.graph.nodes if node.op == "placeholder"][num_inputs:]
    written = {
        _base(changed)
        for node in graph.graph.nodes
        for is_write, value in _shared(node)
        if is_write
        for changed in (value if isinstance(value, list | tuple) else [value])
    }
    return [i for i, node in enumerate(lifted) if node in written]


def _base(node: Any) -> Any:
    """Return the node of which a node is a view, a view of a view, and so on."""
    while isinstance(node, fx.Node) and node.op == "call_function":
        if node.target is operator.getitem:  # of the results of an operation with several
            source = node.args[0]
        else:
            source = next((value for _, value in _shared(node)), None)
        if source is None:
            break
        node = source
    return node


def _shared(node: fx.Node) -> list[tuple[bool, Any]]:
    """Return the arguments that an operation changes, or of which its results can be views.

    Returns:
        Whether the operation changes the argument, and the argument, by the operation's schema.
    """
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return []
    given = dict(zip((known.name for known in schema.arguments), node.args, strict=False))
    given |= node.kwargs
    return [
        (known.alias_info.is_write, given[known.name])
        for known in schema.arguments
        if known.alias_info is not None and known.name in given
    ]
