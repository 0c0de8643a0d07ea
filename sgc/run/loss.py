"""The loss module: chooses the specialization for a call, runs it, and hands its gradients to autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pyro
import pyro.util
import torch
from torch import Tensor, fx, nn

from sgc.capturing.garbage import rarely_collected
from sgc.capturing.parameters import ArgumentOwner, FixedOwner, ModuleOwner, StoreOwner
from sgc.capturing.rehearsal import Rehearsal, rehearse
from sgc.capturing.source import warn
from sgc.config import Backend, Options
from sgc.errors import ArgumentError, RespecializationWarning, SgcError
from sgc.graph.graph import StochasticGraph
from sgc.native import watch
from sgc.native.watch import Condition
from sgc.run.average_tree import AverageTree
from sgc.run.gradients import Loss
from sgc.run.guards import Call
from sgc.run.handlers import unobserved
from sgc.run.late import LateNumber
from sgc.run.specialization import Specialization, specialize
from sgc.run.tensors import TensorTree, inside, network_name
from sgc.run.undone import undone_on_error
from sgc.run.validity import RandomState, Trial, judge, late_error

if TYPE_CHECKING:
    from sgc.run.reference import Verification

_WARN_AFTER = 4


class LossModule(nn.Module):
    """A compiled ``TraceGraph_ELBO`` of one model and guide; made by :func:`sgc.compile`.

    ``loss_module(*args, **kwargs)`` takes the model's arguments and returns minus the ELBO, a scalar whose
    gradient is the surrogate's. The first call captures and compiles; a later call that breaks a guard does so
    again, and up to ``cache_size`` specializations are kept.

    ``options`` are those that it was made with. Its submodules hold what ``parameters()`` and ``state_dict()`` show, in
    the very tensors of their owners: ``model`` and ``guide`` where these are modules, ``networks`` that they close over
    or register, ``param_store`` of Pyro's parameters, ``closed_over`` leaf tensors, and the ``baselines``' averages.
    """

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any], options: Options) -> None:
        super().__init__()
        for name, part in (("model", model), ("guide", guide)):
            if not callable(part):
                raise ArgumentError(f"the {name} is not callable: {part!r}")
        self._program = (model, guide)
        self.options = options
        if isinstance(model, nn.Module):
            self.model = model
        if isinstance(guide, nn.Module) and guide is not model:
            self.guide = guide
        self._eager_only = False
        self._begin()

    def _begin(self) -> None:
        """Nothing is captured yet."""
        self.networks = nn.ModuleDict()
        self.param_store = TensorTree()
        self.closed_over = TensorTree()
        self.baselines = AverageTree()
        self._specializations: list[Specialization] = []
        self._misses: list[str] = []
        self._unchecked: LateNumber | float | None = None
        self._unjudged: tuple[Trial, LateNumber | float] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle has captured nothing; it shows model and guide if these are modules."""
        kept = {name: part for name, part in self._modules.items() if name in ("model", "guide")}
        return {**self.__dict__, "_modules": kept, "_specializations": [], "_unchecked": None, "_unjudged": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin()

    # -- what a user sees

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the ELBO, a 0-d tensor; its ``backward()`` gives the surrogate's gradient.

        :raises sgc.errors.SgcError: if the program cannot be compiled; nothing has changed then.
        """
        return self._evaluate(Call(args, kwargs))

    def _evaluate(self, call: Call, backend: Backend | None = None) -> Tensor:
        """What :meth:`forward` returns, on another backend than the loss module's own where one is given."""
        found, tensors = self._select(call)
        with_gradient = torch.is_grad_enabled()
        tensors = tensors if with_gradient else call.tensors
        backend = backend or found.backend(with_gradient=with_gradient)
        compiled = found.compiled(tensors, with_gradient=with_gradient, backend=backend)
        trial = Trial.of(call, found, backend)
        try:
            loss: Tensor = Loss.apply(compiled, tensors, trial, *(tensors[i] for i in compiled.gradient_of))
        except RuntimeError:
            self._explain(trial)
            raise
        compiled.calls += 1
        if trial is not None:
            self._heed(trial)
        self._warn_if_nan(loss)
        return loss

    def _select(self, call: Call) -> tuple[Specialization, list[Tensor]]:
        """The specialization for a call, captured if need be, and the tensors that its emitted module takes."""
        found = self._lookup(call)
        return found, call.tensors + found.averages() if found.emitted.averages else call.tensors

    def _conditions(self, found: Specialization) -> list[Condition]:
        """Where these and the guards are true, :meth:`_select` would choose ``found`` again, with the same averages."""
        latest = watch.item(self._specializations, -1)
        compiles = watch.is_same(watch.entry(vars(self), "_eager_only"), False)
        return [compiles, watch.is_same(latest, found), *found.baselines.conditions()]

    def _goes_on_after(self, error: SgcError) -> bool:
        """Whether calls will be answered in another way after an error."""
        return False

    def initialize(self, *args: Any, **kwargs: Any) -> LossModule:
        """Capture for these arguments without taking a step, so that ``parameters()`` is complete."""
        self._lookup(Call(args, kwargs))
        return self

    def verify(self, *args: Any, **kwargs: Any) -> Verification:
        """Compare with eager Pyro under the same seed, site by site and parameter by parameter.

        What differs because of a known fault of Pyro's is told apart, with the reason; the result is true if nothing
        else differs. Nothing changes: not the parameters, their gradients, the buffers, or the random state.
        """
        from sgc.run.reference import verify

        model, guide = self._program
        call = Call(args, kwargs)
        found = self._lookup(call)
        return verify(model, guide, call, found, call.tensors, self._modules_of())

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

    @property
    def specializations(self) -> tuple[Specialization, ...]:
        """What is in the cache, the latest last."""
        return tuple(self._specializations)

    def guards(self) -> str:
        """What the latest specialization relies on, in words."""
        return "\n".join(self._latest().describe())

    def _refresh(self) -> None:
        """Show the tensors that Pyro's store holds now; it may have been cleared and filled again by others.

        :raises sgc.errors.SgcError: if the store lacks them.
        """
        for candidate in self._specializations:
            if candidate.tensors.gone():
                raise SgcError(
                    "the parameters are gone from Pyro's store", remedy="call initialize(*args), which makes them anew"
                )
            self._show_tensors(candidate)

    def profile(self) -> str:
        """How the modules of the latest specialization were rewritten before their backend: nodes by pass.

        :raises sgc.errors.SgcError: if nothing has been compiled yet.
        """
        tables = [f"{title}\n{report}" for title, report in self._latest().reports()]
        if not tables:
            raise SgcError("nothing has been compiled yet", remedy="call loss_module(*args) first")
        return "\n\n".join(tables)

    # -- choosing a specialization

    def _latest(self) -> Specialization:
        if not self._specializations:
            raise SgcError(
                "nothing has been captured yet",
                remedy="call loss_module.initialize(*args) or loss_module(*args) first",
            )
        return self._specializations[-1]

    def _lookup(self, call: Call) -> Specialization:
        """The specialization for a call, made if need be; ``call.tensors`` holds its inputs then."""
        found = self._match(call)
        if found is not None:
            return found
        reason = self._specializations[-1].miss(call) if self._specializations else None
        recreated = any(candidate.tensors.gone() for candidate in self._specializations)
        with undone_on_error(), unobserved(), rarely_collected():
            rehearsal = self._rehearse(call)
            if recreated:
                # clear_param_store() was called: the rehearsal has created the parameters anew.
                for candidate in self._specializations:
                    self._show_tensors(candidate)
                found = self._match(call)
                if found is not None:
                    return found
                reason = self._specializations[-1].miss(call)
            if reason is not None:
                self._note_miss(reason)
            return self._specialize(call, rehearsal)

    def _match(self, call: Call) -> Specialization | None:
        """The specialization whose guards hold, the latest first."""
        for position in range(len(self._specializations) - 1, -1, -1):
            candidate = self._specializations[position]
            if candidate.holds(call):
                if position != len(self._specializations) - 1:
                    self._specializations.append(self._specializations.pop(position))
                return candidate
        return None

    def _rehearse(self, call: Call) -> Rehearsal:
        model, guide = self._program
        rehearsal = rehearse(model, guide, call.args, call.kwargs, self.options)
        self._adopt(rehearsal)
        return rehearsal

    def _specialize(self, call: Call, rehearsal: Rehearsal) -> Specialization:
        model, guide = self._program
        try:
            made = specialize(model, guide, call, self.options, rehearsal, self._specializations)
        except BaseException:
            rehearsal.empty_again()
            raise
        self._specializations.append(made)
        del self._specializations[: -self.options.cache_size]
        self._show_tensors(made)
        missed = made.tensors.miss(call)
        assert missed is None, missed
        return made

    def _note_miss(self, reason: str) -> None:
        self._misses.append(reason)
        if len(self._misses) >= _WARN_AFTER and len(self._misses) & (len(self._misses) - 1) == 0:
            warn(
                f"this loss module is compiling for the {len(self._misses) + 1}th time, because {reason}. Pass values "
                "that change from call to call as tensors, and pad data to a few shapes.",
                RespecializationWarning,
            )

    # -- the tensors it shows

    def _modules_of(self) -> list[nn.Module]:
        own = [part for part in self._program if isinstance(part, nn.Module)]
        return [*own, *self.networks.values()]

    def _adopt(self, rehearsal: Rehearsal) -> None:
        """Show the closed-over networks, so that ``train()``, ``to()`` and ``state_dict()`` reach them."""
        known = {id(module) for module in self._modules_of()}
        for module in rehearsal.modules:
            if id(module) not in known:
                name = network_name(module)
                number = 1
                while name in self.networks:
                    name, number = f"{network_name(module)}_{number}", number + 1
                self.networks[name] = module

    def _show_tensors(self, made: Specialization) -> None:
        shown = inside(self._modules_of())
        for name, owner in made.owners.items():
            tensor = owner.fetch()
            if isinstance(owner, (ArgumentOwner, ModuleOwner)) or tensor is None or id(tensor) in shown:
                continue
            if isinstance(owner, StoreOwner):
                self.param_store.put(name, tensor, owner)
            elif isinstance(owner, FixedOwner) and tensor.requires_grad and tensor.is_leaf:
                self.closed_over.put(name, tensor, owner)
        self.baselines.show(made.baselines)

    # -- validity

    def _judge(self, trial: Trial) -> None:
        """Let Pyro raise its error for a call that was not valid, and put the random state back to before that call.

        :raises ValueError: unless Pyro, given the same numbers, finds nothing wrong.
        """
        after = RandomState.now(trial.before.device)
        trial.before.restore()
        with undone_on_error(), unobserved():
            judge(trial, *self._program, self.options)
        after.restore()

    def _explain(self, trial: Trial | None) -> None:
        """An operator has refused its input in the midst of a call; Pyro may have refused it before.

        :raises ValueError: Pyro's own.
        :raises RuntimeError: Pyro's own too: that of a compiled operator names generated code. Of an assertion it says
            more than Pyro.
        """
        if trial is not None:
            with suppress(AssertionError):
                self._judge(trial)

    def _heed(self, trial: Trial) -> None:
        """Look whether a call was valid; on a GPU one call late, so that no step waits for the device."""
        if trial.before.device.type == "cpu":
            if not trial.valid:
                self._judge(trial)
            return
        assert isinstance(trial.valid, Tensor)
        late, self._unjudged = self._unjudged, (trial, LateNumber(trial.valid))
        if late is not None and not float(late[1]):
            self._unjudged = None
            self._judge(late[0])
            raise late_error()

    # -- NaN

    def _warn_if_nan(self, loss: Tensor) -> None:
        """Warn as Pyro does; on a GPU one call late, so that no step waits for the device."""
        if loss.is_cpu:
            number: float | None = loss.item()
        else:
            late, self._unchecked = self._unchecked, LateNumber(loss)
            number = None if late is None else float(late)
        if number is not None and math.isnan(number):
            pyro.util.warn_if_nan(torch.tensor(number), "loss")
