"""Prepare an FX graph for TorchInductor and compile it."""

import contextlib
import functools
import logging
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import NotImplementedType
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Argument

from pyro_vae.engine.capture import first_line, one_fake_mode, same_strides
from pyro_vae.engine.matmul import product
from pyro_vae.engine.value_reader import NotCompilable

aten = torch.ops.aten
log = logging.getLogger("pyro_vae")


def _scaled(target: Callable[..., Tensor]) -> Callable[..., Tensor | NotImplementedType]:
    """Decompose `a + alpha * b`: torch 2.14's fusion of product and sum drops alpha."""

    def decomposition(
        a: Tensor, b: Tensor | float, *, alpha: float | Tensor = 1
    ) -> Tensor | NotImplementedType:
        return NotImplemented if alpha == 1 else target(a, alpha * b)

    return decomposition


def _log_sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute log sigmoid(x) = min(x, 0) - log1p(u), u = exp(-|x|), by the logarithm of 1 + u.

    TorchInductor vectorizes log but not log1p, which takes ten times as long. A first-order
    correction adds the rounding error of 1 + u, so no precision is lost.
    """
    u = (-x.abs()).exp()
    w = 1 + u
    return x.clamp(max=0) - (w.log() - ((w - 1) - u) / w), x.new_empty(0)


def _product_and_sum(
    bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor | NotImplementedType:
    return product(a, b, bias) if bias.dim() == beta == alpha == 1 else NotImplemented


def _upsampled(
    x: Tensor,
    size: Sequence[int],
    rows_scale: float | None = None,
    columns_scale: float | None = None,
) -> Tensor | NotImplementedType:
    """Repeat pixels by a view, with channels last, if the new size is a multiple of the old one.

    By default, the compiler writes them with channels first, in a loop without vector instructions,
    and reorders them for the next convolution. In the loop it computes again, for each copy,
    whatever the pixel is a function of.
    """
    factors = [new / old for new, old in zip(size, x.shape[2:], strict=True)]
    given = zip(factors, (rows_scale, columns_scale), strict=True)
    if x.is_cuda or not all(f == int(f) and scale in (None, f) for f, scale in given):
        return NotImplemented
    rows, columns = map(int, factors)
    pixels = x.permute(0, 2, 3, 1)[:, :, None, :, None]
    repeated = pixels.expand(-1, -1, rows, -1, columns, -1)
    return repeated.reshape(len(x), *size, x.shape[1]).permute(0, 3, 1, 2)


def _viewed(x: Tensor, size: Sequence[int]) -> Tensor | NotImplementedType:
    """View a tensor that is contiguous in the program, and may have its channels last here."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x.contiguous().view(size) if last and not x.is_contiguous() else NotImplemented


def _bernoulli(x: Tensor, p: float = 0.5) -> Tensor | NotImplementedType:
    """Draw in the order of memory, as `Tensor.bernoulli_` of a transposed tensor (dropout) does."""
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    in_memory = x.permute(order)
    if x.is_contiguous() or not in_memory.is_contiguous():
        return NotImplemented
    return aten.bernoulli.p(in_memory, p).permute([*map(order.index, range(x.dim()))])


@functools.cache
def _decompositions() -> Mapping[Any, Callable[..., object]]:
    from torch._decomp import get_decompositions

    return {
        aten.mm.default: product,
        aten.addmm.default: _product_and_sum,
        **get_decompositions([aten.binary_cross_entropy_with_logits, aten.log_sigmoid_backward]),
        aten.add.Tensor: _scaled(torch.add),
        aten.sub.Tensor: _scaled(torch.sub),
        aten.bernoulli.p: _bernoulli,
        aten.log_sigmoid_forward.default: _log_sigmoid,
        aten.upsample_nearest2d.default: _upsampled,
        aten.view.default: _viewed,
        aten._is_all_true.default: torch.all,  # of validation, which the compiler lacks
    }


def can_compile() -> bool:
    """Return whether a C++ compiler, which TorchInductor needs, is on the path."""
    return any(map(shutil.which, ("g++", "c++", "clang++", "cl")))


def try_out_processor() -> None:
    """Detect this processor's vector instructions in a thread, while a graph is recorded.

    TorchInductor builds and loads small programs for this, which takes 4 s with an empty cache.
    """
    # On import, TorchInductor logs a warning if there is no GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    with contextlib.suppress(ImportError):  # otherwise it is detected later, during compilation
        from torch._inductor.cpu_vec_isa import pick_vec_isa

        def detect() -> None:
            with contextlib.suppress(Exception):  # compilation reports the error
                pick_vec_isa()

        threading.Thread(target=detect).start()


def compile_graph(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Compile a graph for inputs of these shapes.

    The compiled program draws the same random numbers from torch's generator, in the same order as
    the graph. A compiled run therefore equals an eager run up to rounding.

    Raises:
        NotCompilable: If TorchInductor fails.
    """
    started = time.perf_counter()
    log.info("compiling the training step (%d operations) ...", len(graph.graph.nodes))
    copies = [same_strides(tensor) for tensor in inputs]
    # A single C++ program calls all kernels; by default, Python calls each. On a GPU this would
    # prevent CUDA graphs.
    in_cpp = all(tensor.is_cpu for tensor in inputs)
    try:
        from torch._inductor import standalone_compile

        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from inside the compiler
            # `torch.compile` would check every tensor before every call, which takes 0.1 ms. Here
            # the caller compares everything that can change between calls.
            compiled = standalone_compile(
                graph,
                [*copies],
                dynamic_shapes="from_example_inputs",
                options={"config_patches": {"fallback_random": True, "cpp_wrapper": in_cpp}},
            )
            compiled(*copies)
    except Exception as error:  # no C++ compiler, or an operation that Inductor lacks
        raise NotCompilable(f"torch's compiler fails: {first_line(error)}") from error
    log.info("compiled in %.1f s", time.perf_counter() - started)
    return compiled


def functional(function: Callable[..., object], inputs: list[Tensor]) -> fx.GraphModule:
    """Record `function(*inputs)` as a graph without in-place changes, except to its inputs."""
    # Imported here: torch's compiler stack is slow to import, and only compiled steps need it.
    from torch._functorch.compile_utils import fx_graph_cse
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad(), one_fake_mode():
        functionalized = torch.func.functionalize(function, remove="mutations")
        graph = make_fx(functionalized, decomposition_table=_decompositions())(*inputs)
    graph.graph.set_codegen(fx.graph.CodeGen())
    graph.graph.eliminate_dead_code()
    return fx.GraphModule(graph, fx_graph_cse(graph.graph))


def share_scalars(graph: fx.GraphModule, scalars: Sequence[int]) -> None:
    """Compute values that depend on scalar inputs alone once, before any loop over weights.

    TorchInductor would compute an optimizer's bias corrections, powers in float64, again for every
    weight. Stacking them into one tensor makes it compute them once; the loops read the tensor.

    Args:
        graph: Graph without in-place changes, modified here.
        scalars: Positions of the scalar inputs, such as learning rates and step counts.
    """
    nodes = graph.graph
    placeholders = [node for node in nodes.nodes if node.op == "placeholder"]
    scalar = {placeholders[i]: None for i in scalars}
    for node in nodes.nodes:
        arguments = node.all_input_nodes
        if node.op == "call_function" and arguments and all(a in scalar for a in arguments):
            scalar[node] = None
    derived = [node for node in scalar if node.op == "call_function"]
    shared = [
        node
        for node in derived
        if any(u not in scalar and u.op == "call_function" and u.target is not aten.copy_.default
               and u.target is not aten.where.self for u in node.users)
    ]  # fmt: skip
    if not shared:
        return
    anchor = placeholders[-1]
    for node in derived:
        anchor.append(node)
        anchor = node

    def insert(target: Callable[..., object], *args: Argument) -> fx.Node:
        nonlocal anchor
        with nodes.inserting_after(anchor):
            anchor = nodes.call_function(target, args)
        return anchor

    stack = insert(aten.stack.default, shared)
    for i, node in enumerate(shared):
        once = insert(aten.select.int, stack, 0, i)
        node.replace_all_uses_with(once, lambda user: user not in scalar and user is not stack)
    nodes.lint()
    graph.recompile()
