"""Prepare an FX graph for TorchInductor and compile it."""

import contextlib
import logging
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import get_decompositions
from torch._functorch.compile_utils import fx_graph_cse
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.engine.capture import NotCompilable, first_line, same_strides
from pyro_vae.engine.matmul import product

aten = torch.ops.aten
log = logging.getLogger("pyro_vae")


def _scaled(target: Any) -> Callable[..., Any]:
    """Write `a + alpha * b` out: a compiler's fusion of product and sum forgets alpha (2.14)."""

    def decomposition(a: Tensor, b: Any, *, alpha: Any = 1) -> Any:
        return NotImplemented if alpha == 1 else target(a, alpha * b)

    return decomposition


def _log_sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Write log sigmoid(x) = min(x, 0) - log1p(u), u = exp(-|x|), by a logarithm of 1 + u.

    The compiler has vector code for log, but takes log1p number by number, at ten times the cost.
    What 1 + u rounds off is added in first order, so that nothing is lost.
    """
    u = (-x.abs()).exp()
    w = 1 + u
    return x.clamp(max=0) - (w.log() - ((w - 1) - u) / w), x.new_empty(0)


def _sum_and_product(bias: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Any:
    return product(a, b, bias) if bias.dim() == beta == alpha == 1 else NotImplemented


DECOMPOSITIONS: Any = {
    aten.mm.default: product,
    aten.addmm.default: _sum_and_product,
    **get_decompositions([aten.binary_cross_entropy_with_logits, aten.log_sigmoid_backward]),
    aten.add.Tensor: _scaled(torch.add),
    aten.sub.Tensor: _scaled(torch.sub),
    aten.log_sigmoid_forward.default: _log_sigmoid,
}


def can_compile() -> bool:
    """Tell whether there is what torch's compiler needs: a C++ compiler."""
    return any(map(shutil.which, ("g++", "c++", "clang++", "cl")))


def try_out_processor() -> None:
    """Have the compiler find out this processor's vector instructions while a graph is recorded.

    For that it builds and loads some small programs, which takes 4 s where its cache is empty.
    """
    # The compiler tells those without a GPU that they have none, when it is first imported.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    with contextlib.suppress(ImportError):  # else it will find out when it has to know
        from torch._inductor.cpu_vec_isa import pick_vec_isa

        def find_out() -> None:
            with contextlib.suppress(Exception):  # no compiler, say: told when it is needed
                pick_vec_isa()

        threading.Thread(target=find_out).start()


def compile_graph(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """Compile a graph for inputs of these shapes.

    The compiled program draws its random numbers as the graph does, from torch's generator in the
    same order, so that a run is the same compiled or not, up to rounding.
    """
    started = time.perf_counter()
    log.info("compiling the training step (%d operations) ...", len(graph.graph.nodes))
    copies = [same_strides(tensor) for tensor in inputs]
    # One C++ program that calls all kernels, in the place of Python that calls each. On a GPU it
    # would be in the way of CUDA graphs.
    in_cpp = all(tensor.is_cpu for tensor in inputs)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler's own code
            # torch.compile would look at every tensor before every call, and takes 0.1 ms for it.
            # What may change between calls is the caller's to compare.
            compiled = torch._inductor.standalone_compile(
                graph,
                [*copies],
                dynamic_shapes="from_example_inputs",
                options={"config_patches": {"fallback_random": True, "cpp_wrapper": in_cpp}},
            )
            compiled(*copies)
    except Exception as error:  # a compiler that is missing or broken, an operation it lacks
        raise NotCompilable(f"torch's compiler fails: {first_line(error)}") from error
    log.info("compiled in %.1f s", time.perf_counter() - started)
    return compiled


def functional(function: Callable[..., Any], inputs: list[Tensor]) -> fx.GraphModule:
    """Record `function(*inputs)` as a graph without changes in place, save those of its inputs."""
    with torch.no_grad():
        functionalized = torch.func.functionalize(function, remove="mutations")
        graph = make_fx(functionalized, decomposition_table=DECOMPOSITIONS)(*inputs)
    graph.graph.set_codegen(fx.graph.CodeGen())
    graph.graph.eliminate_dead_code()
    return fx.GraphModule(graph, fx_graph_cse(graph.graph))


def share_scalars(graph: fx.GraphModule, scalars: Sequence[int]) -> None:
    """Have everything that follows from scalar inputs alone computed once, before any loop.

    The compiler would compute an optimizer's bias corrections, powers in float64, anew for every
    weight. Stacked into one array they are computed once, and the loops read them.

    Args:
        graph: a graph without changes in place; it is changed.
        scalars: positions of the scalar inputs, such as learning rates and step counts.
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

    def insert(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        nonlocal anchor
        with nodes.inserting_after(anchor):
            anchor = nodes.call_function(target, args, kwargs)
        return anchor

    stack = insert(aten.stack.default, shared)
    for i, node in enumerate(shared):
        once = insert(aten.select.int, stack, 0, i)
        node.replace_all_uses_with(once, lambda user: user not in scalar and user is not stack)
    nodes.lint()
    graph.recompile()
