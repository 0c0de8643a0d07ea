"""``SVI``: Pyro's interface, with the whole step compiled into one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyro.infer
import torch
from pyro.infer.elbo import ELBO
from pyro.optim import PyroOptim
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.optim import Optimizer

from sgc.errors import ArgumentError, SgcError
from sgc.guards.base import Call
from sgc.infer.compiled import CompiledELBO
from sgc.infer.own_loss import compiled_class, own_loss, refuse_options
from sgc.infer.uncompiled import PyroSteps, compiled_elbo, shown
from sgc.native import conditions
from sgc.native.conditions import Condition
from sgc.runtime.dynamo import untraced
from sgc.training import checkpoint
from sgc.training.callbacks.callback import Callback, TrainingRun, as_callback
from sgc.training.callbacks.monitor import Monitor, as_monitor
from sgc.training.loop import Loop
from sgc.training.losses import RunResult
from sgc.training.minibatches import Minibatches
from sgc.training.optimizers.adapters import Factory, TorchOptimizing, optimizing
from sgc.training.optimizers.refused import refuse_all_but_pyros
from sgc.training.stepper import Stepper
from sgc.training.steps_protocol import Steps

_PYROS_OPTIONS = ("num_samples", "num_steps", "num_chains")
"""Arguments of Pyro's class that are not a loss's."""


class SVI(pyro.infer.SVI):
    """Stochastic variational inference as with Pyro's ``SVI``, each step one compiled call.

    The call computes the loss, the surrogate's gradient and the optimizer's update, and writes parameters, baseline
    averages and the optimizer's state in place, in the tensors that Pyro's store, the user's modules and the optimizer
    hold. The first step runs the optimizer in Python, where it makes its state. Optimizers that cannot be traced (a
    user's own, ``LBFGS``) go on doing so, after one warning. A step whose loss is NaN changes nothing, nor does one
    with an invalid parameter or value, which raises Pyro's ``ValueError`` for it.

    :param model: a callable of Pyro statements.
    :param guide: likewise, with the same arguments.
    :param optim: a torch optimizer; a callable that makes one from the parameters, such as ``torch.optim.Adam`` itself;
        or a ``pyro.optim`` optimizer or scheduler. One made by a callable gets every parameter that the loss shows, an
        instance trains those it was given, Pyro's trains those in Pyro's store.
    :param loss: an ELBO, or a function of ``(model, guide, *args, **kwargs)``. By default a
        :class:`sgc.infer.TraceGraph_ELBO` that compiles with Inductor at once. Any other ELBO, and a subclass with a
        ``loss_and_grads`` of its own, is stepped as by Pyro, with a :class:`sgc.errors.StandInWarning`.
    :param loss_and_grads: as in Pyro, for a ``loss`` that is a function.
    :param options: where no ``loss`` is given, those of the one that is made: ``num_particles``, ``estimators``,
        ``dynamic``, ``backend``, ``wait`` and the other arguments of :class:`sgc.infer.TraceGraph_ELBO`.
    :raises sgc.errors.ArgumentError: if there is no such option, or a loss has been given, too.
    :raises sgc.errors.OptimizerError: if ``optim`` is none of these, or not Pyro's while the loss is not compiled.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: PyroOptim | Optimizer | Factory,
        loss: ELBO | Callable[..., Any] | None = None,
        loss_and_grads: Callable[..., Any] | None = None,
        **options: Any,
    ) -> None:
        pyros = {name: options.pop(name) for name in _PYROS_OPTIONS if name in options}
        if loss is None:
            loss = own_loss(options)
        else:
            refuse_options(options, loss)
        self._elbo = compiled_elbo(loss)
        self._loop: Loop | None = None
        self._not_compiled = shown(loss), compiled_class(loss)
        # Pyro's class takes its own optimizers only; it is refused here what it would refuse.
        theirs = optim if isinstance(optim, PyroOptim) else PyroOptim(torch.optim.SGD, {})
        super().__init__(model, guide, theirs, loss, loss_and_grads, **pyros)
        self.optim = optim

    @property
    def optim(self) -> Any:
        """The optimizer, as it was given. Another one may be set: the next step is the first one with it."""
        return self._optim

    @optim.setter
    def optim(self, optim: Any) -> None:
        stepper = None
        if self._elbo is None:
            refuse_all_but_pyros(optim, *self._not_compiled)
        else:
            of_optimizer = optimizing(optim, self._own_module, self._elbo.retain_graph)
            stepper = Stepper(self._own_module, of_optimizer, self._conditions)
        self._optim = optim
        self._stepper: Stepper | None = stepper

    @property
    def optimizer(self) -> Optimizer:
        """The torch optimizer that takes the steps: the one that ``optim`` is, or the one that it has made.

        Its options may be changed between two steps (``svi.optimizer.param_groups[0]["lr"] = 0.001``), and a scheduler
        of torch's may be made for it.

        :raises sgc.errors.SgcError: if the parameters that it is to be made of are not there yet, or ``optim`` is one
            of Pyro's, which makes an optimizer for each parameter, or the loss is not one of sgc's.
        """
        optimizing = self.stepper.optimizing
        if not isinstance(optimizing, TorchOptimizing):
            raise SgcError(
                "an optimizer of pyro.optim makes one of torch's for each parameter",
                remedy="look at svi.optim.optim_objs, or pass a torch.optim optimizer, or a callable that makes one",
            )
        if optimizing.takes_new and not self.loss_module.specializations:
            raise SgcError(
                "the optimizer is made of the parameters, which are not there yet",
                remedy="call svi.initialize(*args) first, with the arguments of a step",
            )
        return optimizing.optimizer

    def __repr__(self) -> str:
        named = (getattr(part, "__qualname__", type(part).__name__) for part in (self.model, self.guide, self._optim))
        model, guide, optim = named
        if isinstance(self._optim, PyroOptim):
            optim = f"pyro.optim.{getattr(self._optim.pt_optim_constructor, '__name__', optim)}"
        loss = self._not_compiled[0] if self._elbo is None else type(self._elbo).__name__
        return f"SVI({model}, {guide}, optim={optim}, loss={loss})"

    def _own_module(self) -> CompiledELBO:
        return self.loss_module

    def _conditions(self) -> list[Condition]:
        """Where these are true, the compiled loss is still the same."""
        assert self._elbo is not None
        own = [
            conditions.is_same(conditions.entry(vars(self), name), vars(self)[name])
            for name in ("model", "guide", "_elbo")
        ]
        return [*own, *self._elbo._conditions()]

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle has nothing compiled; an optimizer made by a callable is made anew, from its start.

        Its parameters are those of its loss module: a deep copy has its own, a pickle brings their values.
        """
        state = {**self.__dict__, "_stepper": None, "_loop": None}
        if self._elbo is None:
            return state
        loss_module = self.loss_module
        if loss_module._program == (self.model, self.guide):
            del state["model"], state["guide"]  # a loss module can be pickled where what it is of can not
        return {**state, "loss_module": loss_module}

    def __setstate__(self, state: dict[str, Any]) -> None:
        loss_module = state.pop("loss_module", None)
        self.__dict__.update(state)
        if "model" not in state:
            self.model, self.guide = loss_module._program
        if self._elbo is not None:
            self._elbo._adopt(loss_module)
        self.optim = self._optim

    @property
    def loss_module(self) -> CompiledELBO:
        """The compiled loss, an ``nn.Module``: its ``graph``, ``parameters()``, ``verify(*args)``.

        :raises sgc.errors.SgcError: if the loss is not one of sgc's.
        """
        if self._elbo is None:
            raise SgcError("the loss of this SVI is not compiled", remedy="use an sgc.infer.TraceGraph_ELBO")
        return self._elbo.compiled(self.model, self.guide)

    @untraced
    def initialize(self, *args: Any, **kwargs: Any) -> SVI:
        """Capture the program for these arguments without taking a step, so that the parameters are there."""
        self.loss_module.initialize(*args, **kwargs)
        return self

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Take one step; the loss (minus the ELBO, in nats) before it. Warns if it is NaN, and changes nothing then.

        :raises sgc.errors.SgcError: if the program cannot be compiled; nothing has changed then.
        :raises ValueError: Pyro's own, if a parameter or value is not valid; nothing has changed then.
        """
        if self._stepper is None:
            return super().step(*args, **kwargs)
        if is_dynamo_compiling():
            return _step(self._stepper, args, kwargs)
        return self._stepper.step(args, kwargs)

    @untraced
    def run(
        self,
        steps: int | Iterable[Any],
        *args: Any,
        epochs: int = 1,
        progress_bar: bool = False,
        monitor: int | Monitor | None = None,
        callbacks: Sequence[Callback | Callable[[TrainingRun], Any]] = (),
        **kwargs: Any,
    ) -> RunResult:
        """Take many steps, without a look at the losses in between.

        ``svi.run(10_000, data)`` takes 10,000 steps with the arguments ``(data)``; ``svi.run(loader, epochs=20)`` takes
        one for each minibatch, whose parts are the arguments (a tuple or list), the keyword arguments (a mapping), or
        the one argument (anything else); ``args`` and ``kwargs`` follow them.

        Ctrl-C takes effect between two steps, and ``svi.result`` has the losses until then, whatever else ends the run.

        :param steps: how many, or an iterable of minibatches.
        :param epochs: how often to go through the minibatches.
        :param progress_bar: show the progress with the running ELBO: the mean over the minibatches of an epoch (at most
            a thousand), else over the last 100 steps; for each datum where a subsampling plate says how many there are.
            On a terminal and in a notebook that is a bar, which needs tqdm; elsewhere a line at each tenth of the run.
        :param monitor: record the ELBO and the gradient's norm after each so many steps, in ``result.monitored``; an
            :class:`sgc.Monitor` says more. It does not change the training.
        :param callbacks: functions of an :class:`sgc.TrainingRun`, called after each step, and objects of classes
            derived from :class:`sgc.Callback`; :class:`sgc.EarlyStopping` and :class:`sgc.TensorBoard` are two.
        :return: the losses, a float tensor of one entry a step, and the time taken.
        :raises sgc.errors.NanLossError: if a loss is NaN, which names the step and its minibatch; parameters and
            optimizer are as they were before that step.
        :raises ValueError: Pyro's own, if a parameter or value is not valid; likewise. A note on it (``__notes__``)
            names the step, as on every error that is raised in one.
        :raises sgc.errors.SgcError: if the program cannot be compiled.
        """
        monitoring = as_monitor(monitor)
        watching = [*([] if monitoring is None else [monitoring]), *map(as_callback, _listed(callbacks))]
        if isinstance(steps, int):
            if epochs != 1:
                raise ArgumentError(
                    "epochs go with minibatches, not with a number of steps",
                    remedy="svi.run(steps, *args), or svi.run(loader, epochs=10)",
                )
            if steps < 0:
                raise ArgumentError(f"a number of steps must not be negative: {steps}")
            loop = self._loop = Loop(self._steps(), steps, progress_bar, watching)
            loop.repeat(self, Call(args, kwargs), steps)
            return loop.result()
        if isinstance(steps, (str, Tensor)) or not isinstance(steps, Iterable):
            raise ArgumentError(
                f"run takes a number of steps or minibatches, not a {type(steps).__name__}",
                remedy="the number is the first argument: svi.run(1000, data); or pass a list or loader of minibatches",
            )
        if epochs > 1 and isinstance(steps, Iterator):
            raise ArgumentError(
                "an iterator can be gone through only once",
                remedy="pass a list or a DataLoader, or epochs=1",
            )
        minibatches = Minibatches(steps, epochs, args, kwargs)
        loop = self._loop = Loop(self._steps(), minibatches.total, progress_bar, watching)
        loop.over(self, minibatches)
        return loop.result()

    @property
    def result(self) -> RunResult:
        """The losses of the latest :meth:`run`, which may have been interrupted.

        :raises sgc.errors.SgcError: if there was none.
        """
        if self._loop is None:
            raise SgcError("there has been no run yet", remedy="call svi.run(steps, *args)")
        return self._loop.result()

    @untraced
    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """An estimate of minus the ELBO, in nats, without gradients; the averages of baselines stay as they are.

        :raises sgc.errors.SgcError: if the program cannot be compiled; nothing has changed then.
        """
        loss: float = super().evaluate_loss(*args, **kwargs)
        return loss

    def profile(self) -> str:
        """How the compiled step was rewritten before the backend: a table of passes, with nodes before and after.

        :raises sgc.errors.SgcError: if nothing has been compiled yet.
        """
        return self.loss_module.profile()

    def state_dict(self) -> dict[str, Any]:
        """Parameters, buffers, baseline averages, the optimizer with its schedulers, and the random state.

        ``torch.save`` takes it, and ``torch.load`` reads it with ``weights_only=True``. A run that goes on from it
        takes, to the last bit, the steps that it would have taken.

        :raises sgc.errors.SgcError: if no step has been taken, or the loss is not one of sgc's.
        """
        return checkpoint.state_dict(self.stepper)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put everything back, in the very tensors that Pyro's store and the modules hold.

        In a new process call :meth:`initialize` first, with the arguments of a step.

        :raises sgc.errors.SgcError: if the state is another program's, or nothing has been captured yet.
        """
        checkpoint.load_state_dict(self.stepper, dict(state))

    def _steps(self) -> Steps:
        return self._stepper or PyroSteps(super().step)

    @property
    def stepper(self) -> Stepper:
        """What takes the compiled steps: its optimizers and compiled steps, for those who look into them.

        :raises sgc.errors.SgcError: if the loss is not one of sgc's.
        """
        if self._stepper is None:
            raise SgcError("the loss of this SVI is not compiled", remedy="use an sgc.infer.TraceGraph_ELBO")
        return self._stepper


def _listed(callbacks: Any) -> Sequence[Any]:
    """Callbacks as they are to be given.

    :raises sgc.errors.ArgumentError: if there is no list around them.
    """
    if isinstance(callbacks, (list, tuple)):
        return callbacks
    raise ArgumentError(f"callbacks are a list, not a {type(callbacks).__name__}", remedy="callbacks=[...]")


@untraced
def _step(stepper: Stepper, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    return stepper.step(args, kwargs)
