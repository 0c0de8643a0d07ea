"""Chooses the specialization for a call: one whose guards hold, or a new one."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from sgc.config import AUTO, ENUMERATE, EstimatorName, Options
from sgc.emit.backends.registry import backend_of
from sgc.errors import BaselineWarning, MeanFieldWarning, RespecializationWarning, SgcError
from sgc.guards.base import Call
from sgc.guards.handlers import unobserved
from sgc.guards.miss import Miss
from sgc.native import conditions
from sgc.native.conditions import Condition
from sgc.passes.baselines.idle_baselines import idle_baselines
from sgc.passes.objectives.closed_forms import wrong_closed_forms
from sgc.passes.site_plan import make_plan, undecided
from sgc.runtime.dynamo import untraced
from sgc.runtime.restore_on_error import state_restored_on_error
from sgc.runtime.specializing.compiler import specialize
from sgc.runtime.specializing.misses import Misses, with_what_is_open
from sgc.runtime.specializing.specialization import FIRST_CALL, OTHER_BRANCHES, SizesNeededError, Specialization
from sgc.runtime.specializing.unused_versions import NotWorthCapturing, UnusedVersions
from sgc.runtime.turns import TURN, capturing, nothing_captured
from sgc.runtime.view.module_view import Showing
from sgc.tracing.program_call import ProgramCall
from sgc.tracing.prototype import PrototypeRun, run_prototype
from sgc.tracing.python.garbage import rarely_collected
from sgc.tracing.source import warn
from sgc.tracing.state.param_store import Store

if TYPE_CHECKING:
    from sgc.runtime.variance.choice_report import EstimatorChoice

T = TypeVar("T")

_WARN_AFTER = 4
"""How many specializations are made before a warning says why."""


class Choosing(Showing):
    """Keeps up to ``cache_size`` specializations of a program, the latest last.

    :raises sgc.errors.BackendError: if the backend is unknown.
    """

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any], options: Options) -> None:
        backend_of(options.backend)
        super().__init__(model, guide)
        self.options = options
        self._eager_only = False
        self._choice: EstimatorChoice | None = None

    def _begin(self, program: tuple[Callable[..., Any], Callable[..., Any]], store: Store) -> None:
        super()._begin(program, store)
        self._specializations: list[Specialization] = []
        self._misses: list[Miss] = []
        self._unused = UnusedVersions()

    @untraced
    def specialization_for(self, *args: Any, **kwargs: Any) -> tuple[Specialization, list[Tensor]]:
        """The specialization that a call with these arguments would run, captured if need be, and its inputs.

        It is for those who look into a compilation, tests above all; nothing is run.

        :raises sgc.errors.SgcError: if the program cannot be captured.
        """
        with TURN:
            return self._choose(Call(args, kwargs))

    @property
    def specializations(self) -> tuple[Specialization, ...]:
        """What is in the cache, the latest last."""
        return tuple(self._specializations)

    def _latest(self) -> Specialization:
        if not self._specializations:
            raise SgcError(
                "nothing has been captured yet",
                remedy="call loss_module.initialize(*args) or loss_module(*args) first",
            )
        return self._specializations[-1]

    def _conditions(self, specialization: Specialization) -> list[Condition]:
        """Where these and its guards are true, :meth:`_choose` would choose it again, with the same averages."""
        latest = conditions.item(self._specializations, -1)
        compiles = conditions.is_same(conditions.entry(vars(self), "_eager_only"), False)
        own = [nothing_captured(), compiles, conditions.is_same(latest, specialization)]
        return [*own, *specialization.baselines.conditions()]

    def _choose(self, call: Call, *, needed: bool = True) -> tuple[Specialization, list[Tensor]]:
        """The specialization for a call, captured if need be, and its inputs.

        :param needed: whether the call cannot be made without one.
        :raises NotWorthCapturing: if it can, and would most likely be the only one that is served.
        """
        chosen = self._match(call)
        if chosen is not None:
            return chosen
        reason = self._specializations[-1].miss(call) if self._specializations else None
        gone = any(known.tensors.gone() for known in self._specializations)
        if not needed and not gone and not self._is_worth_capturing():
            raise NotWorthCapturing
        untied = gone or any(known.is_untied() for known in self._specializations)
        with self._capturing():
            program = self._program_of(call)
            run = self._run_prototype(program)
            if untied:
                # Pyro's store was cleared or loaded: the prototype run has registered the parameters anew.
                for known in self._specializations:
                    self._show_tensors(known)
                chosen = self._match(call)
                if chosen is not None:
                    return chosen
                reason = self._specializations[-1].miss(call)
            if reason is None:
                return self._specialize(program, call, run, FIRST_CALL)
            self._note_miss(reason)
            made = self._specialize(program, call, run, str(reason))
            self._misses[-1] = with_what_is_open(reason, made[0])
            return made

    @contextmanager
    def _capturing(self) -> Iterator[None]:
        with capturing(), self._store.lent(), state_restored_on_error(), unobserved(), rarely_collected():
            yield

    def _match(self, call: Call) -> tuple[Specialization, list[Tensor]] | None:
        """The specialization whose guards hold, the latest first, and its inputs."""
        for position in range(len(self._specializations) - 1, -1, -1):
            specialization = self._specializations[position]
            inputs = specialization.inputs_of(call)
            if inputs is not None:
                specialization.note_call(call)
                if position != len(self._specializations) - 1:
                    self._specializations.append(self._specializations.pop(position))
                return specialization, inputs
        return None

    def _is_worth_capturing(self) -> bool:
        averaged = any(known.emitted.averages for known in self._specializations)  # each has averages of its own
        return averaged or self._unused.allow(self._specializations)

    def _program_of(self, call: Call) -> ProgramCall:
        return ProgramCall(*self._program, call.args, call.kwargs, self._options_now())

    def _options_now(self) -> Options:
        """The options, with what was chosen at sites that ask for ``"auto"``."""
        if self._choice is None:
            return self.options
        nothing = dict.fromkeys(self._choice.others)
        return replace(self.options, measured=(*self._choice.estimators.items(), *nothing.items()))

    def _run_prototype(self, program: ProgramCall) -> PrototypeRun:
        run = run_prototype(program, self._store)
        self._adopt(run)
        return run

    def _specialize(
        self, program: ProgramCall, call: Call, run: PrototypeRun, reason: str
    ) -> tuple[Specialization, list[Tensor]]:
        try:
            if undecided(run.requests):
                return self._decide(program, call, run, reason)
            specialization = specialize(program, call, run, self._specializations)
            specialization.reason = reason
            specialization.captured_for = weakref.ref(call)
            self._tell_of_idle_baselines(specialization)
            for site, reason in wrong_closed_forms(specialization.graph):
                warn(f"at site '{site.key}': {reason}", MeanFieldWarning, site.source)
        except BaseException:
            run.empty_again()
            raise
        self._specializations.append(specialization)
        self._is_initialized = True
        del self._specializations[: -self.options.cache_size]
        self._show_tensors(specialization)
        inputs = specialization.tensors.check(call)
        assert isinstance(inputs, list), inputs
        return specialization, inputs

    def _decide(
        self, program: ProgramCall, call: Call, run: PrototypeRun, reason: str
    ) -> tuple[Specialization, list[Tensor]]:
        """Choose at the sites that ask for ``"auto"`` and have no choice yet, then specialize with it."""
        from sgc.runtime.variance.enumeration_choice import Draft, choose_with_enumeration

        def drafted(sites: tuple[str, ...]) -> Draft:
            decided: list[tuple[str, EstimatorName | None]] = [(site, ENUMERATE) for site in sites]
            options = replace(program.options, measured=(*program.options.measured, *decided))
            own = replace(program, options=options)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the first run has given every warning
                own_run = self._run_prototype(own) if sites else run
                draft = specialize(own, call, own_run, self._specializations)
            inputs = draft.tensors.check(call)
            assert isinstance(inputs, list), inputs
            return Draft(draft, inputs, make_plan(own_run.requests, options))

        choice = choose_with_enumeration(drafted, run.requests, undecided(run.requests))
        before = self._choice
        self._choice = choice if before is None else before.and_later(choice)
        try:
            program = self._program_of(call)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the first run has given every warning
                again = self._run_prototype(program)
            return self._specialize(program, call, again, reason)
        except BaseException:
            self._choice = before
            raise

    def choice(self) -> EstimatorChoice:
        """What was chosen at the sites that ask for ``"auto"``, with the figures; prints as a table.

        It is made when the program is first captured, and stays: later specializations and copies have it too.

        :raises sgc.errors.SgcError: if nothing has been captured yet, or no site asks for ``"auto"``.
        """
        if self._choice is None:
            self._latest()
            if any(wanted == AUTO for _, wanted in self.options.estimators):
                raise SgcError(
                    'the option estimators asks for "auto" by a pattern, and every site with a score function asks for '
                    "something else by its infer, which goes before it",
                    remedy='name the site in the option, estimators={"z": "auto"}, or take its baseline out of infer',
                )
            raise SgcError(
                'no site asks for "auto", so that nothing was chosen',
                remedy='ask for it by the option estimators={"*": "auto"}, or by infer={"estimator": "auto"} at a site',
            )
        return self._choice

    def _tell_of_idle_baselines(self, specialization: Specialization) -> None:
        for site, reason in idle_baselines(specialization.graph):
            warn(f"at site '{site.key}': {reason}", BaselineWarning, site.source)

    def _capture_again(self, call: Call) -> Specialization:
        """Capture anew for a call, with the branches on samples that it takes from the present random state on."""
        with self._capturing():
            program = self._program_of(call)
            return self._specialize(program, call, self._run_prototype(program), OTHER_BRANCHES)[0]

    def _with_sizes_closed(self, attempt: Callable[..., T], *args: Any) -> T:
        """What a function gives; once more, for the sizes of the call, where a version cannot leave them open."""
        try:
            return attempt(*args)
        except SizesNeededError as error:
            self._close_sizes(error)
            return attempt(*args)

    def _close_sizes(self, error: SizesNeededError) -> None:
        """Let a program have the sizes of each call from now on, in the place of a version that left them open."""
        sizes = error.specialization.capture.sizes
        assert sizes is not None
        # By identity: equality would compare what they hold, tensors among it.
        self._specializations[:] = [known for known in self._specializations if known is not error.specialization]
        for known in self._specializations:
            known.needed_sizes = {**known.needed_sizes, **dict.fromkeys(sizes.axes, error.reason)}

    def misses(self) -> Misses:
        """Why it was compiled anew: each reason with how often it was one and a remedy, the most frequent first."""
        return Misses(self._misses)

    def _note_miss(self, reason: Miss) -> None:
        self._misses.append(reason)
        if len(self._misses) >= _WARN_AFTER and len(self._misses) & (len(self._misses) - 1) == 0:
            text = f"this loss module is compiling for the {len(self._misses) + 1}th time. It was compiled anew\n"
            warn(f"{text}{self.misses()}", RespecializationWarning)
