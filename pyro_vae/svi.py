"""One training step: a bound, its gradients, the optimizer's update; eager or compiled."""

import contextlib
import math
from collections.abc import Callable
from typing import Any, Literal

import pyro.infer
import torch
from pyro import poutine
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_vae import distributed
from pyro_vae.engine.bfloat16 import _LayersInBFloat16
from pyro_vae.engine.compiler import Compiler, numbers
from pyro_vae.engine.guards import modules_of
from pyro_vae.engine.inductor import can_compile
from pyro_vae.engine.matmul import fast_layers
from pyro_vae.engine.torch_optim import OptimizerFactory, TorchOptim
from pyro_vae.objectives.annealing import Beta
from pyro_vae.objectives.nats_per_datum import objectives_of
from pyro_vae.pairs.sites import plate_nesting
from pyro_vae.runtime.allocator import keep_freed_memory

Compile = bool | Literal["auto"]
Precision = Literal["fp32", "bf16"]


class SVI(pyro.infer.SVI):
    """Stochastic variational inference: a drop-in for `pyro.infer.SVI`, compiled.

    Pyro builds the bound; its first steps run as Pyro runs them. Then the bound, its gradients and
    the optimizer's update are traced into one graph and compiled, and the compiled step takes over
    where it has been shown to give the same. Whatever the graph does not see (another shape, a
    number that changed, a branch that depends on the data) runs eagerly, as before.

    A step whose loss is not finite warns, as Pyro's does, but leaves the parameters as they were.

    Args:
        model: a Pyro model.
        guide: a Pyro guide with the model's latent sites.
        optim: a torch optimizer, a callable that makes one of a list of parameters, or a
            `pyro.optim` optimizer.
        loss: a `pyro.infer.ELBO`, or a function of model, guide and their arguments.
        loss_and_grads: as in `pyro.infer.SVI`, for a `loss` that is a function.
        compile: `True` compiles as soon as the parameters exist; `False` never. `"auto"` compiles
            the model and guide of a `VAE`, `LadderVAE` or `MixedVAE` after 1,000 steps with
            arguments of the same shapes, if there is a C++ compiler, and runs other programs
            eagerly.
        precision: `"bf16"` computes linear and convolutional layers in bfloat16, everything else
            (log densities, sums, the optimizer) as before.

    Warns:
        CompilationWarning: if a program cannot be compiled or the compiled step fails. The message
            gives the reason. The step is then taken eagerly, on the same random numbers.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: PyroOptim | Optimizer | OptimizerFactory,
        loss: pyro.infer.ELBO | Callable[..., Any] | None = None,
        loss_and_grads: Callable[..., Any] | None = None,
        compile: Compile = "auto",
        precision: Precision = "fp32",
        **kwargs: Any,
    ) -> None:
        if compile not in (True, False, "auto"):
            raise ValueError(f"compile must be True, False or 'auto', got {compile!r}")
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be 'fp32' or 'bf16', got {precision!r}")
        if not isinstance(optim, PyroOptim):
            optim = TorchOptim(optim)
        loss = pyro.infer.Trace_ELBO() if loss is None else loss
        super().__init__(model, guide, optim, loss, loss_and_grads, **kwargs)
        self.objective = loss
        self.compile = compile
        if isinstance(loss, Beta):
            self.loss_and_grads = loss.loss_and_grads_at_beta
        self.precision = precision
        # Every parameter that a step has met, in the order of their appearance; a dict as a set
        # that keeps its order, which would otherwise differ from process to process.
        self.parameters: dict[Tensor, None] = {}
        self.trained: set[Tensor] = set()
        # This process's share of the minibatch, where several processes take each step together.
        self.share: float | None = None
        keep_freed_memory()
        self._modules: list[nn.Module] | None = None  # that may compute faster; found once
        self._without_plates = [o for o in objectives_of(self) if _needs_plates(o)]
        self._compiler = Compiler(self, loss, at_once=compile is True)
        self._compiler.enabled = compile is True or (
            compile == "auto" and can_compile() and is_own(model, guide)
        )

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take one gradient step; arguments go to model and guide. Return the loss, a float."""
        self._begin(args, kwargs)
        loss = self._compiler.step(args, kwargs)
        if loss is None:
            return self._eager_step(args, kwargs)
        values = tuple(x.item() for x in loss)
        if not all(map(math.isfinite, values)):
            return self._compiler.repeat_eagerly(args, kwargs)
        return self._compiler.result(values)

    def step_tensor(self, *args: Any, **kwargs: Any) -> Tensor:
        """Take one gradient step as `step` does; return the loss as a tensor of shape `()`.

        On a GPU this does not wait for the step to be done: read the loss every so many steps. NaN
        means that the step's loss was not finite and that the parameters are as they were.
        """
        self._begin(args, kwargs)
        loss = self._compiler.step(args, kwargs)
        if loss is None:
            return torch.as_tensor(self._eager_step(args, kwargs))
        if self._compiler.must_look and not loss[0].isfinite():
            return torch.as_tensor(self._compiler.repeat_eagerly(args, kwargs))
        return loss[0]

    def prepare(self, *args: Any, **kwargs: Any) -> None:
        """Compile at once for arguments of these shapes, where `compile=True` and a run is resumed.

        A run that goes on in the middle then has the programs that it had before, whatever the
        shape of its next batch. Nothing is changed and no random number is drawn.
        """
        self._compiler.prepare(args, kwargs)

    @property
    def update_outside(self) -> bool:
        """Whether the optimizer updates outside of compiled steps: its hyperparameters change."""
        return self._compiler.update_outside

    @update_outside.setter
    def update_outside(self, value: bool) -> None:
        self._compiler.update_outside = value

    @property
    def num_compiled_steps(self) -> int:
        """Number of steps that compiled programs have taken; the others ran eagerly."""
        return self._compiler.num_steps

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Return an estimate of the loss, a float; arguments go to model and guide."""
        self._find_plates(args, kwargs)
        with self.arithmetic():
            return super().evaluate_loss(*args, **kwargs)

    def nest_plates(self, depth: int) -> None:
        """Tell objectives that need to know how many batch dimensions the programs' plates take."""
        for objective in self._without_plates:
            particles = objective.vectorize_particles and objective.num_particles > 1
            objective.max_plate_nesting = depth + particles
        self._without_plates = []

    def _find_plates(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._without_plates:
            # As Pyro's objectives do themselves, which announce it, too.
            guide = poutine.trace(self.guide).get_trace(*args, **kwargs)
            replayed = poutine.replay(self.model, trace=guide)
            model = poutine.trace(replayed).get_trace(*args, **kwargs)
            self.nest_plates(plate_nesting(model, guide))

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._find_plates(args, kwargs)
        # Outside of what is traced: a graph reads beta, it does not count.
        if isinstance(self.objective, Beta):
            self.objective.advance()

    def _eager_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._modules is None:
            self._modules = modules_of(self.model, self.guide) if self.precision == "fp32" else []
        with fast_layers(self._modules):
            loss, parameters = self.gradients(args, kwargs)
        values = self.update(numbers(loss), parameters)
        if not all(map(math.isfinite, values)) and self.any_process(False):
            return self._eager_step(args, kwargs)  # as those do whose program declined the step
        return type(loss)(values) if isinstance(loss, tuple) else values[0]

    def update(self, values: tuple[float, ...], parameters: list[Tensor]) -> tuple[float, ...]:
        """Let the optimizer update parameters by their gradients, which are None afterwards.

        Where several processes take the step, losses and gradients are averaged over them first.

        Returns:
            The losses; where one is not finite, nothing was updated.
        """
        if self.share is not None:
            parameters = list(self.parameters)
            values = distributed.average(values, parameters, self.share)
            parameters = [p for p in parameters if p.grad is not None]
        if all(map(math.isfinite, values)):
            self.optim(parameters)
        self.trained.update(p for p in parameters if p.grad is not None)
        for parameter in parameters:
            parameter.grad = None
        return values

    def any_process(self, compiled: bool) -> bool:
        """Tell whether the step was a compiled one, in any of the processes that took it."""
        return compiled if self.share is None else any(distributed.gather(compiled))

    def gradients(self, args: Any, kwargs: Any) -> tuple[Any, list[Tensor]]:
        """Run the bound and its backward pass; return its loss and the parameters that have sites.

        As in Pyro, a parameter that has had a gradient before and has none now has a zero one, by
        which an optimizer's momentum goes on.
        """
        with self.arithmetic(), poutine.trace(param_only=True) as traced:
            loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
        sites: Any = traced.trace.nodes.values()
        parameters = dict.fromkeys(site["value"].unconstrained() for site in sites)
        self.parameters |= parameters
        for parameter in parameters:
            if parameter.grad is None and parameter in self.trained:
                parameter.grad = torch.zeros_like(parameter)
        return loss, list(parameters)

    def arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which the programs run, for this precision."""
        return _LayersInBFloat16() if self.precision == "bf16" else contextlib.nullcontext()


def is_own(*programs: Callable[..., Any]) -> bool:
    """Whether all programs are modules of this package, such as a `VAE`'s model and guide."""
    return all(type(program).__module__.startswith("pyro_vae.") for program in programs)


def _needs_plates(objective: Any) -> bool:
    """Tell whether an objective has yet to learn what dimensions are left of the plates'."""
    enumerates = isinstance(objective, pyro.infer.TraceEnum_ELBO | pyro.infer.TraceTMC_ELBO)
    needs = enumerates or getattr(objective, "vectorize_particles", False)
    return needs and objective.max_plate_nesting == math.inf
