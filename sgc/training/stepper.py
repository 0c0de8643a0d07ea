"""The compiled training step: loss, gradients and the optimizer's update in one call."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sgc.emit.backends.protocol import Backend, StepBackend
from sgc.emit.backends.registry import UNCOMPILED, backend_of
from sgc.errors import NanLossError, SgcError, StandInWarning
from sgc.guards.base import Call
from sgc.native import conditions
from sgc.native.conditions import Condition
from sgc.runtime.loss_module import LossModule
from sgc.runtime.restore_on_error import saved
from sgc.runtime.specializing.compiler import compile_step, differentiate_loss
from sgc.runtime.specializing.specialization import Specialization
from sgc.runtime.specializing.unused_versions import NotWorthCapturing
from sgc.runtime.speculation.speculate import loss_by_pyro
from sgc.runtime.turns import Token
from sgc.runtime.validity import RandomState, Trial
from sgc.tracing.source import warn
from sgc.training.bound_step import Bound, Step
from sgc.training.compiled_steps import CompiledSteps
from sgc.training.hindrances import HOOKS, hindrance
from sgc.training.nan_loss import nan_loss_error
from sgc.training.optimizers.adapters import Optimizing


@dataclass
class Stepper:
    """Takes the steps of one loss module and one optimizer, compiled where possible.

    The first step runs the optimizer in Python, because it makes its state then.

    :param loss_module: gives the loss module.
    :param optimizing: the optimizer.
    :param unchanged: conditions under which ``loss_module()`` is the one that it was.
    :param started: whether the optimizer has made its state.
    :param compiled: the compiled steps.
    :param latest: the one that was taken last; the next call is asked first whether it is for this one.
    :param token: taken out during a step.
    """

    loss_module: Callable[[], LossModule]
    optimizing: Optimizing
    unchanged: Callable[[], list[Condition]]
    started: bool = False
    compiled: CompiledSteps = field(default_factory=CompiledSteps)
    latest: Bound | None = None
    token: Token = field(default_factory=Token)
    _uncaptured: weakref.ref[Call] | None = None
    """The latest call that was not worth capturing."""

    def step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        """Take one step; the loss before it. If that is NaN, it warns and changes nothing.

        :raises sgc.errors.SgcError: if the program or the step cannot be compiled; nothing has changed then.
        :raises ValueError: Pyro's own, if a parameter or value is not valid; likewise.
        """
        latest = self.latest
        taken = None if latest is None else latest.take(args, kwargs)
        if type(taken) is float:
            return taken
        call = Call(args, kwargs)
        with self.turn():
            if taken is not None:
                assert latest is not None
                outcome, inputs, state = taken
                before = None if state is None else RandomState(state, torch.device("cpu"), None)
                return self._concluded(latest.step(inputs), call, outcome, before)
            step = self.ready(call)
            if step is None:
                return self.eagerly(call).item()
            before = step.random_state()
            try:
                outcome = step.results()
            except Exception as error:
                outcome = error
            return self._concluded(step, call, outcome, before)

    def turn(self) -> AbstractContextManager[None]:
        """Around steps: no other thread takes one of the same optimizer, captures or compiles."""
        return self.token.turn()

    def _concluded(
        self, step: Step, call: Call, outcome: Sequence[Any] | BaseException, before: RandomState | None
    ) -> float:
        may_explain = RuntimeError if step.specialization.tally is None else Exception
        failure = outcome if isinstance(outcome, may_explain) else None
        if isinstance(outcome, BaseException) and failure is None:
            raise outcome
        loss = step.loss_of(outcome) if not isinstance(outcome, BaseException) else math.nan
        if loss != loss:  # NaN: it has halted
            resumed = self.judged(step, step.trial(call, before), failure)
            if resumed is not None:
                return resumed.item()
            self.loss_module()._warn_if_nan(torch.tensor(loss))
        return loss

    def ready(self, call: Call) -> Step | None:
        """The compiled step for a call, or None where this one must be taken in Python.

        :raises sgc.errors.SgcError: if the program or the step cannot be compiled; nothing has changed then.
        """
        if self.latest is not None and not self.latest.is_due():
            inputs = self.latest.inputs_of(call)
            if inputs is not None:
                self.latest.specialization.is_reused = True
                return self.latest.step(inputs)
        loss_module = self.loss_module()
        if loss_module._eager_only:
            return None
        try:
            with loss_module.param_store_scope():
                return loss_module._with_sizes_closed(self._ready, loss_module, call)
        except NotWorthCapturing:
            self._uncaptured = weakref.ref(call)
            return None
        except SgcError as error:
            if not loss_module._goes_on_after(error):
                raise
            return None

    def _ready(self, loss_module: LossModule, call: Call) -> Step | None:
        specialization, inputs = loss_module._choose(call, needed=loss_module._needs_captures)
        tensors = specialization.with_averages(inputs)
        self._note_replaced(loss_module)
        backend = specialization.backend_of(with_gradient=True)
        if not self.started or not isinstance(backend, StepBackend):
            return None
        parameters = [tensors[i] for i in differentiate_loss(specialization, tensors).gradient_of]
        why = hindrance(specialization, parameters)
        if why is not None:
            self.compiled.say_outside(why)
            return None
        members = self.optimizing.members(specialization, parameters)
        bound = self.compiled.find(specialization, members, parameters)
        if bound is None:
            bound = self.compiled.bind(specialization, backend, members, tensors, parameters)
        if bound is None:
            return None
        why = bound.shared_memory(tensors)
        if why is not None:
            self.compiled.say_outside(why)
            return None
        if not bound.built.compiled:
            compile_step(specialization, bound.built)
            if bound.built.detour:
                warn(
                    "each step goes through Python, which is slower: sgc does not recognise what Inductor of torch "
                    f"{torch.__version__} compiles. The results are the same; please report it",
                    StandInWarning,
                )
        bound.bind(tensors)
        self.latest = bound
        if bound.note_unwatched():
            bound.watch(self._conditions(loss_module, bound, parameters), self.token.held)
        return bound.step(inputs)

    def _conditions(self, loss_module: LossModule, bound: Bound, parameters: list[Tensor]) -> list[Condition]:
        """All that :meth:`_ready` relies on besides guards and tensors."""
        specialization = bound.specialization
        return [
            *self.unchanged(),
            *loss_module._conditions(specialization),
            *specialization.keeps_backend(),
            *self.optimizing.conditions(specialization),
            *bound.update.conditions(),
            *(
                conditions.is_empty(conditions.attribute(p, name), getattr(p, name))
                for p in parameters
                for name in HOOKS
            ),
        ]

    def eagerly(self, call: Call) -> Tensor:
        """Take a step with the optimizer in Python; the loss is a 0-d tensor. If it is NaN, nothing is written."""
        loss_module = self.loss_module()
        with loss_module.param_store_scope():
            return self._eagerly(loss_module, call)

    def _eagerly(self, loss_module: LossModule, call: Call) -> Tensor:
        if loss_module._eager_only:
            return self.optimizing.step_eagerly(None, lambda: loss_module(*call.args, **call.kwargs))
        if self._is_uncaptured(call):
            return self._in_python(None, [], lambda: loss_module._uncaptured(call))
        specialization, inputs = loss_module._choose(call)
        self._note_replaced(loss_module)
        # A backend of steps is for the whole one, unless there will be none: the loss alone is not worth compiling.
        backend: Backend | None = None
        if isinstance(specialization.backend_of(with_gradient=True), StepBackend) and not self.compiled.outside:
            backend = backend_of(UNCOMPILED)
        written = specialization.written(specialization.with_averages(inputs))
        loss = self._in_python(specialization, written, lambda: loss_module._evaluate(call, backend))
        self.started = True
        return loss

    def _is_uncaptured(self, call: Call) -> bool:
        return self._uncaptured is not None and self._uncaptured() is call

    def _in_python(
        self, specialization: Specialization | None, written: list[Tensor], loss: Callable[[], Tensor]
    ) -> Tensor:
        """Take a step with the optimizer in Python; its loss. If that is NaN, buffers and averages stay.

        :param specialization: None for a call that eager Pyro makes.
        :param written: these buffers and averages.
        """
        restore = saved(written)
        with torch.enable_grad():
            value = self.optimizing.step_eagerly(specialization, loss)
        if math.isnan(value):
            restore()
        return value

    def _note_replaced(self, loss_module: LossModule) -> None:
        """Parameters that took the place of others are trained if the optimizer is given new ones; else it is told."""
        if self.optimizing.takes_new:
            loss_module._forget_replaced()
        else:
            loss_module._tell_of_replaced()

    def judged(self, step: Step, trial: Trial | None, failure: Exception | None = None) -> Tensor | None:
        """What follows from a step that has halted: Pyro's error if it was not valid, None if its loss is NaN.

        Where Pyro finds nothing wrong, the step is taken in Python, from the random state before it, and its loss
        returned; so it is where a branch on a sample has gone another way than assumed.

        :param failure: what the step has raised instead; it is raised again, unless such a branch explains it.
        :raises ValueError: Pyro's own; the random state is the one before the step then.
        """
        step.halted.zero_()
        if trial is not None and trial.specialization.tally is not None and (failure is not None or not step.valid):
            loss = self._by_pyro(trial, failure)
            return None if math.isnan(loss) else loss
        if failure is not None:
            self.loss_module()._explain(trial)
            raise failure
        if trial is None or step.valid:
            return None
        trial.valid = step.valid
        try:
            self.loss_module()._judge(trial)
        except SgcError as error:
            if not self.loss_module()._goes_on_after(error):
                raise
            return self.eagerly(trial.call)
        warn(
            "a value at the edge of what is valid is refused by compiled arithmetic and taken by Pyro's, by rounding: "
            "this step is taken in Python",
            StandInWarning,
        )
        trial.before.restore()
        return self.eagerly(trial.call)

    def _by_pyro(self, trial: Trial, failure: Exception | None) -> Tensor:
        """Take in Python a step for which an assumption of the compiled one is false; its loss is eager Pyro's."""
        loss_module, specialization = self.loss_module(), trial.specialization
        with loss_module.param_store_scope():
            written = specialization.written(specialization.with_averages(trial.inputs))
            return self._in_python(specialization, written, lambda: loss_by_pyro(loss_module, trial, failure))

    def nan_error(self, step: str, call: Call) -> NanLossError:
        """The error for a step in Python whose loss was NaN.

        :param step: which one, in words.
        """
        loss_module = self.loss_module()
        if loss_module._eager_only or self._is_uncaptured(call):
            return NanLossError(f"the loss of {step} is NaN; the optimizer has not taken that step")
        specialization, inputs = loss_module._choose(call)
        return nan_loss_error(step, specialization, specialization.with_averages(inputs))

    def runs_uncompiled(self) -> bool:
        """Whether the latest step has run operator by operator: another process compiles it."""
        return self.latest is not None and not self.latest.built.compiled

    def data_size(self) -> int | None:
        """How many data a loss is of, where subsampling plates say so, and say the same in all that was captured."""
        loss_module = self.loss_module()
        if loss_module._eager_only:
            return None
        sizes = {known.capture.program.data_size for known in loss_module.specializations}
        return sizes.pop() if len(sizes) == 1 else None
