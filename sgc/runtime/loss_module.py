"""The loss module: runs the specialization for a call, and hands its gradients to autograd."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pyro.util
import torch
from pyro import poutine
from torch import Tensor, fx

from sgc.emit.backends.protocol import Backend
from sgc.errors import SgcError, StandInWarning
from sgc.graph.graph import StochasticGraph
from sgc.guards.base import Call
from sgc.guards.handlers import unobserved
from sgc.runtime.async_number import AsyncNumber
from sgc.runtime.autograd import Compiled, Loss
from sgc.runtime.dynamo import untraced
from sgc.runtime.eager_loss import eager_loss
from sgc.runtime.inspection.stages import Stages, reports
from sgc.runtime.restore_on_error import saved, state_restored_on_error
from sgc.runtime.specializing.choosing import Choosing
from sgc.runtime.specializing.compiler import compile_loss
from sgc.runtime.specializing.specialization import Specialization
from sgc.runtime.speculation.speculate import speculate
from sgc.runtime.turns import TURN, capturing
from sgc.runtime.validity import RandomState, Trial, error_of_call_before, judge
from sgc.table import Text
from sgc.tracing.prototype import validated
from sgc.tracing.reference.loss_of_objective import pyro_elbo
from sgc.tracing.source import warn
from sgc.tracing.state.param_store import Store

if TYPE_CHECKING:
    from sgc.runtime.inspection.explanation import Explanation
    from sgc.runtime.parity.verification import Verification
    from sgc.runtime.variance.variance_report import GradientVariance


class LossModule(Choosing):
    """A compiled ``TraceGraph_ELBO`` of one model and guide; made by :func:`sgc.compile`.

    ``loss_module(*args, **kwargs)`` takes the model's arguments and returns minus the ELBO, a scalar whose
    gradient is the surrogate's. The first call captures and compiles; a later call that breaks a guard does so
    again, and up to ``cache_size`` specializations are kept.

    ``options`` are those that it was made with. Its submodules hold what ``parameters()`` and ``state_dict()`` show, in
    the very tensors of their owners: ``model`` and ``guide`` where these are modules, ``networks`` that they close over
    or register, ``param_store`` of Pyro's parameters, ``closed_over`` leaf tensors, and the ``baselines``' averages.
    """

    _OF_CAPTURES = frozenset(("_specializations", "_misses", "_unused", "_unchecked", "_unjudged"))

    _needs_captures = True
    """Whether there is no other way to make a call than by a specialization."""

    def _begin(self, program: tuple[Callable[..., Any], Callable[..., Any]], store: Store) -> None:
        super()._begin(program, store)
        self._unchecked: AsyncNumber | float | None = None
        self._unjudged: tuple[Trial, AsyncNumber | float] | None = None

    # -- what a user sees

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the ELBO, a 0-d tensor; its ``backward()`` gives the surrogate's gradient.

        :raises sgc.errors.SgcError: if the program cannot be compiled; nothing has changed then.
        """
        if torch.compiler.is_dynamo_compiling():
            return _call(self, args, kwargs)
        return self._called(args, kwargs)

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        loss = self._evaluate(Call(args, kwargs))
        if self._replaced:
            self._tell_of_replaced()
        return loss

    def _evaluate(self, call: Call, backend: Backend | None = None) -> Tensor:
        """What :meth:`forward` returns, on another backend than the loss module's own where one is given."""
        return self._with_sizes_closed(self._evaluated, call, backend)

    def _evaluated(self, call: Call, backend: Backend | None) -> Tensor:
        with TURN:
            specialization, inputs = self._choose(call, needed=self._needs_captures)
            with_gradient = torch.is_grad_enabled()
            averaged = specialization.with_averages(inputs)  # makes those that are not there yet
            tensors = averaged if with_gradient else inputs
            backend = backend or specialization.backend_of(with_gradient=with_gradient)
            compiled = compile_loss(specialization, tensors, with_gradient=with_gradient, backend=backend)
            trial = Trial.of(call, specialization, inputs, backend)
            wanted = [tensors[i] for i in compiled.gradient_of]
            owned = wanted if compiled.owned is compiled.gradient_of else [tensors[i] for i in compiled.owned]
            if compiled.trained != list(map(id, owned)):
                self._note_trained(specialization, compiled, owned)
            run = partial(Loss.apply, compiled, tensors, trial, *wanted)
            if trial is not None and specialization.tally is not None:
                compiled.calls += 1
                return speculate(self, trial, run)
            try:
                loss: Tensor = run()
            except RuntimeError:
                self._explain(trial)
                raise
            compiled.calls += 1
            if trial is not None:
                self._raise_if_invalid(trial)
            self._warn_if_nan(loss)
            return loss

    def _uncaptured(self, call: Call) -> Tensor:
        """Eager Pyro's loss for a call that is not worth capturing, with the gradient of its surrogate."""
        if not self._unused.is_told:
            self._unused.is_told = True
            warn(
                "this program differs from call to call, so that what is compiled for one serves no other. Calls that "
                f"are like none of those are made by eager Pyro from now on. It was compiled anew\n{self.misses()}",
                StandInWarning,
            )
        elbo = pyro_elbo(self._options_now(), self._latest().prototype.max_plate_nesting)
        restore = saved([buffer for module in self._modules_of() for buffer in module.buffers()])
        try:
            with (
                capturing(),
                self.param_store_scope(),
                state_restored_on_error(),
                validated(self.options, at_least=False),
                poutine.trace(param_only=True) as asked,
            ):
                loss = eager_loss(elbo, *self._program, call.args, call.kwargs)
        except BaseException:
            restore()
            raise
        if loss.detach().isnan():
            restore()
        self._show_asked(asked.trace.nodes)
        self._warn_if_nan(loss.detach())
        return loss

    def _goes_on_after(self, error: SgcError) -> bool:
        """Whether calls will be answered in another way after an error."""
        return False

    @untraced
    def initialize(self, *args: Any, **kwargs: Any) -> LossModule:
        """Capture for these arguments without taking a step, so that ``parameters()`` is complete."""
        with TURN:
            self._choose(Call(args, kwargs))
        return self

    @untraced
    def verify(self, *args: Any, **kwargs: Any) -> Verification:
        """Compare with eager Pyro under the same seed, site by site and parameter by parameter.

        What differs because of a known fault of Pyro's is told apart, with the reason; the result is true if nothing
        else differs. Nothing changes: not the parameters, their gradients, the buffers, or the random state.
        """
        return self._with_sizes_closed(self._verified, Call(args, kwargs))

    def _verified(self, call: Call) -> Verification:
        from sgc.runtime.parity.compare import verify

        model, guide = self._program
        with capturing(), self._store.lent():
            specialization, inputs = self._choose(call)
            return verify(model, guide, call, specialization, inputs, self._modules_of())

    @untraced
    def gradient_variance(self, *args: Any, samples: int = 200, **kwargs: Any) -> GradientVariance:
        """Measure how the gradient varies at the present parameters, on these arguments, and which sites it comes from.

        Draws gradients of the emitted module, term by term: the variance of the whole (the sum over the elements of all
        parameters), each site's share of it, what it would be without baselines and without Rao-Blackwellisation, and
        each parameter's. Nothing changes: not the parameters, their gradients, the averages, or the random state.

        :param samples: how many gradients are drawn. The relative standard error of a variance is about
            ``sqrt(2 / samples)`` where gradients are nearly normal, and larger where they are not.
        :raises sgc.errors.ArgumentError: if there are fewer than two samples.
        :raises sgc.errors.SgcError: if the program cannot be compiled.
        """
        call = Call(args, kwargs)
        return self._with_sizes_closed(self._measured, call, samples)

    def _measured(self, call: Call, samples: int) -> GradientVariance:
        from sgc.runtime.variance.sampling import measure

        with capturing(), self._store.lent():
            specialization, inputs = self._choose(call)
            return measure(specialization, inputs, samples)

    @property
    def graph(self) -> StochasticGraph:
        """The stochastic computation graph of the latest specialization."""
        return self._latest().graph

    @property
    def module(self) -> fx.GraphModule:
        """The emitted fx module of the latest specialization: inputs to ``(loss, surrogate_loss)``.

        Where calls are checked, a third result says whether this one was valid.
        """
        return self._latest().emitted.module

    @property
    def code(self) -> str:
        """The Python of :attr:`module`."""
        return str(self.module.code)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return self.graph._repr_mimebundle_() if self._specializations else {"text/plain": repr(self)}

    def extra_repr(self) -> str:
        """What it is of, and how much of it was captured."""
        named = (getattr(part, "__qualname__", type(part).__name__) for part in self._program)
        count = len(self._specializations)
        captured = "nothing captured yet" if not count else f"{count} specialization{'s' * (count > 1)}"
        return f"{', '.join(named)}, backend={self.options.backend!r}: {captured}"

    def guards(self) -> str:
        """What the latest specialization relies on, in words."""
        return Text("\n".join(self._latest().describe()))

    def explain(self) -> Explanation:
        """What was made of the program, in tables that print as text and are shown as HTML in a notebook.

        Of the latest specialization: each latent site with its estimator and why it has it, its downstream costs and
        baseline; parameters; constants with their sizes in bytes; what is a call of Python; guards; why each
        specialization was made; what each pass did once something is compiled.

        :raises sgc.errors.SgcError: if nothing has been captured yet.
        """
        from sgc.runtime.inspection.explanation import explained

        self._latest()
        return explained(self._specializations)

    def _refresh(self) -> None:
        """Show the tensors that Pyro's store holds now; it may have been cleared and filled again by others.

        :raises sgc.errors.SgcError: if the store lacks them.
        """
        for specialization in self._specializations:
            if specialization.tensors.gone():
                raise SgcError(
                    "the parameters are gone from Pyro's store", remedy="call initialize(*args), which makes them anew"
                )
            self._show_tensors(specialization)

    def stages(self) -> Stages:
        """What each stage of the compilation has given for the latest specialization; prints as one program after each.

        :raises sgc.errors.SgcError: if nothing has been captured yet.
        """
        return Stages(self._latest())

    def profile(self) -> str:
        """How the modules of the latest specialization were rewritten before their backend: nodes by pass.

        :raises sgc.errors.SgcError: if nothing has been compiled yet.
        """
        tables = [f"{title}\n{report}" for title, report in reports(self._latest())]
        if not tables:
            raise SgcError("nothing has been compiled yet", remedy="call loss_module(*args) first")
        return Text("\n\n".join(tables))

    def _note_trained(self, specialization: Specialization, compiled: Compiled, tensors: list[Tensor]) -> None:
        """Other parameters get gradients than in the call before, or these are the first."""
        names = [specialization.inputs[i].name for i in compiled.owned]
        now = [*map(id, tensors)]
        for name, known in zip(names, compiled.references, strict=False):
            before = known()
            if before is not None and id(before) not in now:
                self._replaced.append((name, known))
        compiled.trained, compiled.references = now, [*map(weakref.ref, tensors)]
        self._show_tensors(specialization)

    # -- validity

    def _judge(self, trial: Trial) -> None:
        """Let Pyro raise its error for a call that was not valid, and put the random state back to before that call.

        :raises ValueError: unless Pyro, given the same numbers, finds nothing wrong.
        """
        with capturing(), self._store.lent():
            after = RandomState.now(trial.before.device)
            trial.before.restore()
            with state_restored_on_error(), unobserved():
                judge(trial, self._program_of(trial.call))
            after.restore()

    def _explain(self, trial: Trial | None) -> None:
        """Raise Pyro's error where an operator of a call has raised: Pyro's checks may refuse its input before.

        :raises ValueError: Pyro's own.
        :raises RuntimeError: Pyro's own too: that of a compiled operator names generated code. Of an assertion it says
            more than Pyro.
        """
        if trial is not None:
            with suppress(AssertionError):
                self._judge(trial)

    def _raise_if_invalid(self, trial: Trial) -> None:
        """Look whether a call was valid; on a GPU one call late, so that no step waits for the device."""
        if trial.before.device.type == "cpu":
            if not trial.valid:
                self._judge(trial)
            return
        assert isinstance(trial.valid, Tensor)
        late, self._unjudged = self._unjudged, (trial, AsyncNumber(trial.valid))
        if late is not None and not float(late[1]):
            self._unjudged = None
            self._judge(late[0])
            raise error_of_call_before()

    # -- NaN

    def _warn_if_nan(self, loss: Tensor) -> None:
        """Warn as Pyro does; on a GPU one call late, so that no step waits for the device."""
        if loss.is_cpu:
            number: float | None = loss.item()
        else:
            late, self._unchecked = self._unchecked, AsyncNumber(loss)
            number = None if late is None else float(late)
        if number is not None and math.isnan(number):
            pyro.util.warn_if_nan(torch.tensor(number), "loss")


@untraced
def _call(loss_module: LossModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return loss_module.forward(*args, **kwargs)
