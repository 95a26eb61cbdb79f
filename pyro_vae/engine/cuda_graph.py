"""Replay a compiled program on a GPU as one CUDA graph."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_vae.engine.capture import first_line, same_strides

log = logging.getLogger("pyro_vae")
Compiled = Callable[..., Sequence[Tensor]]


class CUDAGraph:
    """A compiled program whose kernels are launched together; called like the program.

    A small step has tens of kernels, and launching each takes longer than the GPU needs to run it.
    A replay draws the random numbers that the program would draw.

    Args:
        compiled: Program of the inputs and the tensors.
        inputs: Example inputs; each call copies its inputs into the memory that the graph reads.
        tensors: Tensors that the program changes in place. The graph contains their addresses. A
            call with other addresses runs the program without the graph.
    """

    def __init__(
        self, compiled: Compiled, inputs: Sequence[Tensor], tensors: Sequence[Tensor]
    ) -> None:
        self._compiled = compiled
        self._inputs = [same_strides(tensor) for tensor in inputs]
        self._addresses = [tensor.data_ptr() for tensor in tensors]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(stream):
            # cuBLAS allocates its workspace for the stream in a first run.
            compiled(*self._inputs, *[same_strides(tensor) for tensor in tensors])
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self._graph, stream=stream):
            self._results = compiled(*self._inputs, *tensors)  # recorded, not run

    def __call__(self, *flat: Tensor) -> list[Tensor]:
        """Run the program on its inputs and tensors; return its results."""
        inputs, tensors = flat[: len(self._inputs)], flat[len(self._inputs) :]
        if [tensor.data_ptr() for tensor in tensors] != self._addresses:
            return list(self._compiled(*flat))
        for memory, value in zip(self._inputs, inputs, strict=True):
            memory.copy_(value)
        self._graph.replay()
        return [result.clone() for result in self._results]  # the next replay overwrites them


def in_cuda_graph(
    compiled: Compiled, inputs: Sequence[Tensor], tensors: Sequence[Tensor]
) -> Compiled:
    """Return the program as a CUDA graph; if it cannot be recorded, return the program."""
    try:
        return CUDAGraph(compiled, inputs, tensors)
    except RuntimeError as error:  # an operation that waits for the GPU or copies from the CPU
        log.warning("the compiled step is not a CUDA graph: %s", first_line(error))
        return compiled
