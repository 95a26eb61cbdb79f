"""One training step: the bound, its gradients and the optimizer's update; eager or compiled."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, MutableMapping
from typing import Annotated, Literal, Self, TypeAlias, TypeGuard

import pyro.infer
import torch
from pyro import poutine
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from pyro_vae import distributed
from pyro_vae.arguments import Instance, checked
from pyro_vae.engine.bfloat16 import LayersInBFloat16
from pyro_vae.engine.compiler import Batch, Compiler
from pyro_vae.engine.guards import modules_of
from pyro_vae.engine.inductor import can_compile
from pyro_vae.engine.matmul import fast_layers
from pyro_vae.engine.step import (
    Arguments,
    Keywords,
    Loss,
    LossValue,
    Precision,
    Program,
    loss_values,
)
from pyro_vae.engine.torch_optim import OptimizerFactory, TorchOptim
from pyro_vae.objectives.annealing import Beta
from pyro_vae.objectives.nats_per_datum import has_value, objectives_of
from pyro_vae.pairs.ownership import check_registered, claim_parameters
from pyro_vae.pairs.pair import AnyProgram
from pyro_vae.pairs.particles import accepts_particles
from pyro_vae.pairs.sites import CheckGivenRows, parameters_of, plate_nesting
from pyro_vae.runtime.allocator import keep_freed_memory
from pyro_vae.runtime.files import JSONObject

Compile: TypeAlias = bool | Literal["auto"]

AnyOptim: TypeAlias = Annotated[
    PyroOptim | Optimizer | OptimizerFactory,
    Instance(
        (PyroOptim, Optimizer),
        "an optimizer of torch or pyro.optim, or a function of a list of parameters that returns "
        "one",
        functions=True,
        factories=True,
        hint="for example, torch.optim.Adam(vae.parameters(), lr=1e-3)",
    ),
]
AnyLoss: TypeAlias = Annotated[
    pyro.infer.ELBO | Callable[..., Loss],
    Instance(
        (pyro.infer.ELBO,),
        "an objective such as Trace_ELBO(), or a function of model, guide and their arguments",
        functions=True,
    ),
]

# Parameters that have had a gradient in a step of any `SVI`. Pyro leaves zero gradients behind, and
# an optimizer moves these parameters by momentum in the steps of every other SVI that has them.
TRAINED: MutableMapping[Tensor, None] = WeakTensorKeyDictionary()


class SVI(pyro.infer.SVI):
    """Stochastic variational inference: a drop-in for `pyro.infer.SVI` with compiled steps.

    The first steps run eagerly, as in Pyro. Then the bound, its gradients and the optimizer's
    update are traced into one graph and compiled. The compiled step is used if it gives the same
    results as the eager step. Steps that the graph does not cover (another shape, a number that
    changed, a branch that depends on the data) run eagerly.

    If the loss of a step is not finite, the step warns and leaves the parameters unchanged. The
    loss of `TraceTailAdaptive_ELBO` is always infinite; with it, steps are taken as in Pyro, and
    not compiled.

    Args:
        model: Pyro model.
        guide: Pyro guide with the model's latent sites.
        optim: Torch optimizer, callable that makes one from a list of parameters, or
            `pyro.optim` optimizer.
        loss: Objective, a `pyro.infer.ELBO` or a function of model, guide and their arguments.
        loss_and_grads: Function that fills the gradients, as in `pyro.infer.SVI`, if `loss` is a
            function.
        compile: When to compile. `True` compiles as soon as the parameters exist; `False` never.
            `"auto"` compiles the models of this package, such as `VAE` and `LadderVAE`, after 1,000
            steps with arguments of the same shapes, if there is a C++ compiler, and runs other
            programs eagerly.
        precision: Precision of linear and convolutional layers. `"bf16"` computes them in bfloat16;
            log densities, sums and the optimizer stay in float32.
        **kwargs: Further arguments of `pyro.infer.SVI`.

    Raises:
        ValueError: If `compile` or `precision` has an unknown value.
        PairError: In the first step, if the guide replaces rows of a plate that the model gives by
            `subsample=`, or `pyro.module` finds the parameters of another module in the store.

    Warns:
        CompilationWarning: If a program cannot be compiled or the compiled step fails. The message
            gives the reason. The step is then taken eagerly, on the same random numbers.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Bernoulli(pv.networks.MLP(2, [8], 5)),
        ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [8], 4)),
        ... )
        >>> svi = pv.SVI(vae.model, vae.guide, torch.optim.Adam(vae.parameters(), lr=1e-3))
        >>> x = torch.ones(4, 5)
        >>> loss = svi.step(x)  # negative ELBO, summed over the batch
        >>> loss > 0
        True
        >>> svi.step_tensor(x).shape
        torch.Size([])

    See also: `fit`, which runs the epochs; `pyro_vae.objectives` for other losses.
    """

    @checked
    def __init__(
        self,
        model: AnyProgram,
        guide: AnyProgram,
        optim: AnyOptim,
        loss: AnyLoss | None = None,
        loss_and_grads: Callable[..., Loss] | None = None,
        compile: Compile = "auto",
        precision: Precision = "fp32",
        **kwargs: object,
    ) -> None:
        if not isinstance(optim, PyroOptim):
            optim = TorchOptim(optim)
        loss = pyro.infer.Trace_ELBO() if loss is None else loss
        super().__init__(model, guide, optim, loss, loss_and_grads, **kwargs)
        self.objective = loss
        self.compile = compile
        if isinstance(loss, Beta):
            self.loss_and_grads = loss.loss_and_grads_at_beta
        self.precision: Precision = precision
        # Every parameter seen so far, in order of appearance. A dict keeps the order, which must be
        # the same in all processes; a set would not.
        self.parameters: dict[Tensor, None] = {}
        self.trained: set[Tensor] = set()
        keep_freed_memory()
        self._modules: list[nn.Module] | None = None  # candidates for `fast_layers`; found once
        self._has_value = has_value(loss)
        self._without_plates = [o for o in objectives_of(self) if _needs_plates(o)]
        self._vectorized = [o for o in objectives_of(self) if _has_particle_plate(o)]
        self._compiler = Compiler(self, loss, at_once=compile is True)
        # A compiled step is declined by its loss, which has to be a value.
        self._compiler.enabled = self._has_value and (
            compile is True or (compile == "auto" and can_compile() and is_own(model, guide))
        )

    def __copy__(self) -> Self:
        """Return a copy that shares model, guide and optimizer, and compiles its own steps."""
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        other._compiler = object.__new__(Compiler)
        other._compiler.__setstate__({**self._compiler.__getstate__(), "svi": other})
        return other

    def step(self, *args: object, **kwargs: object) -> LossValue:
        """Take one gradient step; arguments go to model and guide. Return the loss, a float."""
        return self.step_of(args, kwargs)

    def step_of(self, args: Arguments, kwargs: Keywords, share: float | None = None) -> LossValue:
        """Take the step of `step`, possibly together with other processes.

        Args:
            args: Positional arguments of model and guide.
            kwargs: Keyword arguments of model and guide.
            share: Fraction of the minibatch's rows that this process computes, if several processes
                take the step together. Losses and gradients are averaged with these weights.

        Returns:
            The loss, a float; a tuple of floats if the objective has several losses.
        """
        self._begin(args, kwargs)
        loss = self._compiler.step(args, kwargs, share)
        if loss is None:
            return self.eager_step(args, kwargs, share)
        if not isinstance(loss, list):
            return loss
        values = tuple(x.item() for x in loss)
        if not all(map(math.isfinite, values)):
            return self._compiler.repeat_eagerly(args, kwargs, share)
        return self._compiler.result(values)

    def step_tensor(self, *args: object, **kwargs: object) -> Tensor:
        """Take one gradient step as `step` does; return the loss as a tensor of shape `()`.

        On a GPU this does not wait for the step to finish; read the loss every few steps only. A
        NaN loss means that the step's loss was not finite and that the parameters are unchanged.
        """
        self._begin(args, kwargs)
        loss = self._compiler.step(args, kwargs, None)
        if loss is None:
            return torch.as_tensor(self.eager_step(args, kwargs, None))
        if not isinstance(loss, list):
            return torch.as_tensor(loss)
        if self._compiler.must_check_loss and not loss[0].isfinite():
            return torch.as_tensor(self._compiler.repeat_eagerly(args, kwargs, None))
        return loss[0]

    def compilation(self, batches: Iterable[Batch]) -> JSONObject:
        """Return the state of compilation for arguments and shares of `step_of` like these."""
        return self._compiler.state(batches)

    def restore_compilation(self, batches: Iterable[Batch], state: JSONObject) -> None:
        """Compile the programs that a run had when `compilation` was called, if `compile=True`.

        Compiled sums round differently, so a resumed run compiles the same steps. Parameters and
        random state do not change.
        """
        self._compiler.restore(batches, state)

    @property
    def update_outside(self) -> bool:
        """Whether the optimizer updates outside of compiled steps: its hyperparameters change."""
        return self._compiler.update_outside

    @update_outside.setter
    def update_outside(self, value: bool) -> None:
        self._compiler.update_outside = value

    def take_steps_again(self) -> None:
        """Keep the arguments of the steps since the last verified one.

        If compiled steps turn out to be wrong, they are then taken again eagerly. By default, a
        step does not keep its arguments, and wrong steps are taken back only.
        """
        self._compiler.verified.takes_again = True

    def verify_next_step(self) -> None:
        """Compare the next compiled step with the eager step, as in the last step of a run."""
        self._compiler.verified.verifies_next = True

    def nothing_changed(self) -> None:
        """Promise that nothing but steps has run since the last step.

        A compiled step then reads the values that its program depends on in every tenth step only,
        and the optimizer's hyperparameters in each. `fit` promises it if no code of the user runs
        between two steps.
        """
        self._compiler.nothing_changed = True

    @property
    def num_compiled_steps(self) -> int:
        """Number of steps that compiled programs have taken; the others ran eagerly."""
        return self._compiler.num_steps

    def evaluate_loss(self, *args: object, **kwargs: object) -> LossValue:
        """Return an estimate of the loss, a float; arguments go to model and guide."""
        self._find_plates(args, kwargs)
        with self.arithmetic():
            return super().evaluate_loss(*args, **kwargs)

    def nest_plates(self, depth: int) -> None:
        """Set the number of batch dimensions of the programs' plates on objectives without it."""
        for objective in self._without_plates:
            objective.max_plate_nesting = depth + _has_particle_plate(objective)
        self._without_plates = []

    def choose_particles(self, args: Arguments, kwargs: Keywords) -> None:
        """Run particles one after another if the programs do not accept a plate over particles."""
        objectives, self._vectorized = self._vectorized, []
        if objectives and not accepts_particles(self.model, self.guide, args, kwargs):
            for objective in objectives:
                objective.vectorize_particles = False

    def _find_plates(self, args: Arguments, kwargs: Keywords) -> None:
        self.choose_particles(args, kwargs)
        if self._without_plates:
            # Pyro's objectives trace the programs for this too, but warn about it.
            guide = poutine.trace(self.guide).get_trace(*args, **kwargs)
            replayed = poutine.replay(self.model, trace=guide)
            model = poutine.trace(replayed).get_trace(*args, **kwargs)
            self.nest_plates(plate_nesting(model, guide))

    def _begin(self, args: Arguments, kwargs: Keywords) -> None:
        self._find_plates(args, kwargs)
        # Counted here, not in the traced code: a graph reads beta and does not count steps.
        if isinstance(self.objective, Beta):
            self.objective.advance()

    def eager_step(
        self,
        args: Arguments,
        kwargs: Keywords,
        share: float | None,
        observe: Callable[[list[Tensor], tuple[float, ...]], None] | None = None,
    ) -> LossValue:
        """Take the step without a compiled program; return the loss.

        If `observe` is given, it is called with the parameters before the update and the losses of
        this process.
        """
        first = self._modules is None
        if self._modules is None:
            self._modules = modules_of(self.model, self.guide) if self.precision == "fp32" else []
        with fast_layers(self._modules):
            loss, parameters = self.gradients(args, kwargs, check_rows=not self.parameters)
        if first:  # the first run may create the parameters
            claim_parameters(self.model, self.guide)
        if observe is not None:
            observe(parameters, loss_values(loss))
        values = self.update(loss_values(loss), parameters, share)
        if not all(map(math.isfinite, values)) and self.any_process(False, share):
            # The compiled step of another process was declined. All processes repeat the step.
            return self.eager_step(args, kwargs, share)
        return values if isinstance(loss, tuple) else values[0]

    def update(
        self, values: tuple[float, ...], parameters: list[Tensor], share: float | None
    ) -> tuple[float, ...]:
        """Update parameters by their gradients; set the gradients to None afterwards.

        If several processes take the step, their losses and gradients are averaged first.

        Returns:
            The losses. If one is not finite, nothing was updated.
        """
        if share is not None:
            parameters = list(self.parameters)
            values = distributed.average(values, parameters, share)
            parameters = [p for p in parameters if p.grad is not None]
        if not self._has_value or all(map(math.isfinite, values)):
            self.optim(parameters)
        elif any(map(math.isinf, values)):  # Pyro warns of NaN
            warnings.warn(
                f"Encountered {values[0]} as the loss; the step leaves the parameters unchanged",
                stacklevel=5,  # the caller of `step`
            )
        trained = [p for p in parameters if p.grad is not None and p not in self.trained]
        self.trained.update(trained)
        TRAINED.update((parameter, None) for parameter in trained)
        for parameter in parameters:
            parameter.grad = None
        return values

    def any_process(self, compiled: bool, share: float | None) -> bool:
        """Return whether any process took the step with a compiled program."""
        return compiled if share is None else any(distributed.gather(compiled))

    def gradients(
        self, args: Arguments, kwargs: Keywords, *, check_rows: bool = False
    ) -> tuple[Loss, list[Tensor]]:
        """Compute the bound and its gradients; return the loss and the parameters of all sites.

        As in Pyro, a parameter that has had a gradient before and has none now gets a zero
        gradient, so that an optimizer's momentum still moves it.
        """
        # A function as the loss may read attributes of the model.
        wrap = check_rows and isinstance(self.objective, pyro.infer.ELBO)
        model = CheckGivenRows()(self.model) if wrap else self.model
        with self.arithmetic(), poutine.trace(param_only=True) as traced:
            loss = self.loss_and_grads(model, self.guide, *args, **kwargs)
        if check_rows:
            check_registered(traced.trace, self.model, self.guide)
        parameters = parameters_of(traced.trace)
        self.parameters |= dict.fromkeys(parameters)
        for parameter in parameters:
            if parameter.grad is None and (parameter in self.trained or parameter in TRAINED):
                parameter.grad = torch.zeros_like(parameter)
        return loss, parameters

    def bound(self, args: Arguments, kwargs: Keywords) -> Loss:
        """Compute the loss as an eager step does, with its gradients but without an update."""
        with fast_layers(self._modules or []), self.arithmetic():
            return self.loss_and_grads(self.model, self.guide, *args, **kwargs)

    def arithmetic(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which model and guide run with this precision."""
        return LayersInBFloat16() if self.precision == "bf16" else contextlib.nullcontext()


def is_own(*programs: Program) -> bool:
    """Return whether all programs are modules of this package, such as a `VAE`'s model."""
    return all(type(program).__module__.startswith("pyro_vae.") for program in programs)


def _has_particle_plate(objective: object) -> TypeGuard[pyro.infer.ELBO]:
    """Return whether an objective runs all of its particles in one plate."""
    vectorized = getattr(objective, "vectorize_particles", False)
    return vectorized and getattr(objective, "num_particles", 1) > 1


def _needs_plates(objective: object) -> TypeGuard[pyro.infer.ELBO]:
    """Return whether an objective needs `max_plate_nesting` and does not have it yet."""
    enumerates = isinstance(objective, pyro.infer.TraceEnum_ELBO | pyro.infer.TraceTMC_ELBO)
    needs = enumerates or getattr(objective, "vectorize_particles", False)
    return needs and getattr(objective, "max_plate_nesting", None) == math.inf
