"""The compiled training step: loss, gradients and the optimizer's update in one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sgc.capture.source import warn
from sgc.config import Backend
from sgc.emit.inductor.compiled_step import BuiltStep
from sgc.emit.train_step import new_flag
from sgc.errors import NanLossError, SgcError, StandInWarning
from sgc.guards.base import Call
from sgc.native import conditions
from sgc.native.conditions import Condition
from sgc.runtime.loss_module import LossModule
from sgc.runtime.specialization import Specialization
from sgc.runtime.speculation.speculate import instead
from sgc.runtime.turns import Token
from sgc.runtime.validity import RandomState, Trial
from sgc.training.bound_step import Bound, Step
from sgc.training.hindrances import HOOKS, UNTRACEABLE, hindrance, reason_of, unheld
from sgc.training.nan_loss import nan_loss_error
from sgc.training.optimizers.adapters import Optimizing
from sgc.training.optimizers.members import Member, obstacle
from sgc.training.optimizers.update import OwnSchedule, Uninitialised, Update

_MOVING = frozenset({"lr"})
"""Hyperparameters that are inputs of a compiled step from the start; others become so when they change."""


_VALUES = 4
"""How many compiled steps there may be for the values of a hyperparameter that cannot be an input."""


@dataclass
class _Compiled:
    """A compiled step, and what it is valid for."""

    specialization: Specialization
    signature: Any
    built: BuiltStep


@dataclass
class Stepper:
    """Takes the steps of one loss module and one optimizer, compiled where possible.

    The first step runs the optimizer in Python, because it makes its state then.

    :param loss_module: gives the loss module.
    :param optimizing: the optimizer.
    :param unchanged: conditions under which ``loss_module()`` is the one that it was.
    :param started: whether the optimizer has made its state.
    """

    loss_module: Callable[[], LossModule]
    optimizing: Optimizing
    unchanged: Callable[[], list[Condition]]
    started: bool = False
    _bound: list[Bound] = field(default_factory=list)
    _compiled: list[_Compiled] = field(default_factory=list)
    _failed: list[tuple[Specialization, Any]] = field(default_factory=list)
    _moving: frozenset[str] = _MOVING
    _constant: frozenset[str] = frozenset()
    _outside: set[str] = field(default_factory=set)
    _halted: dict[torch.device, Tensor] = field(default_factory=dict)
    _latest: Bound | None = None
    _token: Token = field(default_factory=Token)

    def step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        """Take one step; the loss before it. If that is NaN, it warns and changes nothing.

        :raises sgc.errors.SgcError: if the program or the step cannot be compiled; nothing has changed then.
        :raises ValueError: Pyro's own, if a parameter or value is not valid; likewise.
        """
        latest = self._latest
        taken = None if latest is None else latest.take(args, kwargs)
        if type(taken) is float:
            return taken
        call = Call(args, kwargs)
        with self.turn():
            if taken is not None:
                assert latest is not None
                outcome, call.tensors, state = taken
                before = None if state is None else RandomState(state, torch.device("cpu"), None)
                return self._concluded(latest.step(call), call, outcome, before)
            step = self.ready(call)
            if step is None:
                return self.eagerly(call).item()
            before = step.random_state()
            try:
                outcome = step.results()
            except Exception as error:
                outcome = error
            return self._concluded(step, call, outcome, before)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Around steps: no other thread takes one of the same optimizer, captures or compiles."""
        with self._token.turn():
            yield

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
        if self._latest is not None and self._latest.is_for(call):
            return self._latest.step(call)
        loss_module = self.loss_module()
        if loss_module._eager_only:
            return None
        try:
            with loss_module.param_store_scope():
                return self._ready(loss_module, call)
        except SgcError as error:
            if not loss_module._goes_on_after(error):
                raise
            return None

    def _ready(self, loss_module: LossModule, call: Call) -> Step | None:
        found, tensors = loss_module._select(call)
        self._heed_replaced(loss_module)
        if not self.started or found.backend(with_gradient=True) != "inductor":
            return None
        parameters = [tensors[i] for i in found.differentiated(tensors).gradient_of]
        why = hindrance(found, parameters)
        if why is not None:
            self._say_outside(why)
            return None
        members = self.optimizing.members(found, parameters)
        bound = self._find(found, members, parameters) or self._bind(found, members, tensors, parameters)
        if bound is None:
            return None
        if not bound.built.compiled:
            found.compile_step(bound.built)
            if bound.built.detour:
                warn(
                    "each step goes through Python, which is slower: sgc does not recognise what Inductor of torch "
                    f"{torch.__version__} compiles. The results are the same; please report it",
                    StandInWarning,
                )
        bound.bind(tensors)
        self._latest = bound
        if bound.note_unwatched():
            bound.watch(self._conditions(loss_module, bound, parameters), self._token.held)
        return bound.step(call)

    def _conditions(self, loss_module: LossModule, bound: Bound, parameters: list[Tensor]) -> list[Condition]:
        """All that :meth:`_ready` relies on besides guards and tensors."""
        found = bound.specialization
        return [
            *self.unchanged(),
            *loss_module._conditions(found),
            *found.steps_natively(),
            *self.optimizing.conditions(found),
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
        found, tensors = loss_module._select(call)
        self._heed_replaced(loss_module)
        # Inductor is for the whole step, unless there will be none: the loss by itself is not worth compiling.
        backend: Backend | None = None
        if found.backend(with_gradient=True) == "inductor" and not self._outside:
            backend = "eager"
        kept = [(t, t.detach().clone()) for t in found.written(tensors)]
        with torch.enable_grad():
            loss = self.optimizing.step_eagerly(found, lambda: loss_module._evaluate(call, backend))
        if math.isnan(loss):
            with torch.no_grad():
                for tensor, before in kept:
                    tensor.copy_(before)
        self.started = True
        return loss

    def _heed_replaced(self, loss_module: LossModule) -> None:
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
        if trial is not None and trial.found.tally is not None and (failure is not None or not step.valid):
            loss = self._by_pyro(trial, failure)
            return None if math.isnan(loss) else loss
        if failure is not None:
            self.loss_module()._explain(trial)
            raise failure
        if trial is None or step.valid:
            return None
        trial.valid = step.valid
        self.loss_module()._judge(trial)
        warn(
            "a value at the edge of what is valid is refused by compiled arithmetic and taken by Pyro's, by rounding: "
            "this step is taken in Python",
            StandInWarning,
        )
        trial.before.restore()
        return self.eagerly(trial.call)

    def _by_pyro(self, trial: Trial, failure: Exception | None) -> Tensor:
        """Take in Python a step for which an assumption of the compiled one is false; its loss is eager Pyro's."""
        loss_module, found = self.loss_module(), trial.found
        kept = [(t, t.detach().clone()) for t in found.written(trial.call.tensors + found.averages())]
        with torch.enable_grad(), loss_module.param_store_scope():
            loss = self.optimizing.step_eagerly(found, lambda: instead(loss_module, trial, failure))
        if math.isnan(loss):
            with torch.no_grad():
                for tensor, before in kept:
                    tensor.copy_(before)
        return loss

    def nan_error(self, step: str, call: Call) -> NanLossError:
        """The error for a step in Python whose loss was NaN.

        :param step: which one, in words.
        """
        loss_module = self.loss_module()
        if loss_module._eager_only:
            return NanLossError(f"the loss of {step} is NaN; the optimizer has not taken that step")
        return nan_loss_error(step, *loss_module._select(call))

    def data_size(self) -> int | None:
        """How many data the latest loss is of, where subsampling plates say so."""
        loss_module = self.loss_module()
        program = None if loss_module._eager_only else loss_module.graph.program
        return None if program is None else program.data_size

    def _find(self, found: Specialization, members: list[Member], parameters: list[Tensor]) -> Bound | None:
        for bound in self._bound:
            if bound.specialization is found and bound.update.holds(members, parameters):
                return bound
        return None

    def _bind(
        self, found: Specialization, members: list[Member], tensors: list[Tensor], parameters: list[Tensor]
    ) -> Bound | None:
        """A compiled step for optimizers that are new, or that someone has changed."""
        why = obstacle(members) or unheld(found, tensors, members)
        if why is not None:
            self._say_outside(why)
            return None
        for old in self._bound:
            if old.specialization is found:
                self._moving |= old.update.moved() - self._constant
        if self._constant and sum(made.specialization is found for made in self._compiled) > _VALUES:
            self._say_outside(f"{', '.join(sorted(self._constant))} of the optimizer changes, and it branches on it")
            return None
        while True:
            update = Update(members, parameters, self._moving)
            if any(spec is found and signature == update.signature for spec, signature in self._failed):
                return None
            try:
                built = self._build(found, update, tensors)
                break
            except OwnSchedule as schedule:
                schedule.keep_as_tensors(members)
            except Uninitialised:
                return None
            except UNTRACEABLE as error:
                if isinstance(error, SgcError):
                    raise
                if self._moving > _MOVING:
                    # The optimizer branches on such a number: each value of it is another step.
                    self._constant, self._moving = self._constant | (self._moving - _MOVING), _MOVING
                    continue
                self._failed.append((found, update.signature))
                kinds = {type(member.optimizer).__qualname__ for member in members}
                self._say_outside(f"{', '.join(sorted(kinds))} cannot be traced ({reason_of(error)})")
                return None
        for member in members:
            member.optimizer._opt_called = True  # type: ignore[attr-defined]  # schedulers look for it, and warn
        made = Bound(found, update, built, [*update.state, self._flag(found.differentiated(tensors).device)])
        self._bound = [made, *(b for b in self._bound if b.specialization is not found)][: found.options.cache_size]
        return made

    def _build(self, found: Specialization, update: Update, tensors: list[Tensor]) -> BuiltStep:
        for made in self._compiled:
            if made.specialization is found and made.signature == update.signature:
                return made.built
        try:
            built = found.build_step(tensors, update.state, update)
        except UNTRACEABLE as error:
            if isinstance(error, SgcError) or not update.has_capturable:
                raise
            built = found.build_step(tensors, update.state, partial(update, capturable=True))
        self._compiled = [_Compiled(found, update.signature, built), *self._compiled][: found.options.cache_size]
        return built

    def _flag(self, device: torch.device) -> Tensor:
        if device not in self._halted:
            self._halted[device] = new_flag(device)
        return self._halted[device]

    def _say_outside(self, why: str) -> None:
        if why not in self._outside:
            self._outside.add(why)
            warn(f"the optimizer runs outside of the compiled step: {why}", StandInWarning)
