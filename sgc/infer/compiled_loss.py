"""What the compiled classes of :mod:`sgc.infer` have in common: Pyro's constructor, its methods, its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, get_args

import torch
from pyro.infer.elbo import ELBO
from pyro.infer.util import torch_backward, torch_item
from torch import Tensor

from sgc.config import Dynamic, Objective, Options, Rng
from sgc.emit.backends.registry import TIERS, backend_of
from sgc.errors import ArgumentError, RespecializationWarning
from sgc.infer.compiled import CompiledELBO, Settings
from sgc.infer.rewrapped import Rewrapped, is_wrapped
from sgc.native import conditions
from sgc.native.conditions import Condition
from sgc.runtime.dynamo import untraced
from sgc.tracing.source import warn

_KEPT = 8
"""How many pairs of model and guide one ELBO keeps compiled."""


_CLASSES = "sgc.infer.elbo"
"""The module of the classes that users take."""

_OF_PYROS = (
    "_differentiable_loss_particle",
    "_get_trace",
    "_get_traces",
    "_get_vectorized_trace",
    "_guess_max_plate_nesting",
    "_loss_and_surrogate_loss",
    "_loss_and_surrogate_loss_particle",
    "_vectorized_num_particles",
)
"""Methods by which a subclass of Pyro's own changes what it computes."""


class CompiledLoss(ELBO):
    """One of Pyro's ELBO classes, compiled for each model, guide and structure; mixed into Pyro's class, before it.

    It takes the same arguments, and ``pyro.infer.SVI`` takes it. Under one seed its losses and gradients are Pyro's:
    equal to the last bits while a program runs eagerly, to rounding once Inductor has compiled it. One instance
    may serve many models. It keeps the eight pairs of model and guide that it saw last, told apart by identity and
    held strongly, so that a new function is never mistaken for an old one and fresh closures do not pile up.

    Effect handlers around a call act on the program as in Pyro; outer traces are told the parameters (as ``SVI``
    needs), not the samples.

    :param backend: ``None`` (default) runs the compiled graph eagerly, which costs no compilation, and hands a
        specialization to Inductor once it has been called a thousand times; or one of :func:`sgc.compile`'s
        backends, from the first call on.
    :param rng: ``"torch"`` (default) draws the random numbers that Pyro would draw, on every backend; ``"fast"``
        leaves the choice to Inductor.
    :param dynamic: what is done about a program that cannot be captured, because its structure depends on a sample,
        say: ``"error"`` (default) raises, ``"eager"`` runs it by eager Pyro and warns once. ``"speculate"`` assumes
        that a branch on a sample goes as in the call that is captured, checks that at each call, and lets eager Pyro
        make the calls where it does not; it implies ``rng="torch"``, and raises for all else.
    :param validate: whether the compiled program checks parameters and values as Pyro's validation does: ``None``
        (default) as Pyro's switch says, ``True`` and ``False`` whatever it says.
    :param wait: whether calls wait for Inductor (:func:`sgc.compile`), where it compiles.
    :raises sgc.errors.ArgumentError: if an option is of the wrong kind.
    :raises sgc.errors.BackendError: if the backend is unknown.

    ``ignore_jit_warnings`` and ``jit_options`` are accepted and have nothing to act on, as in Pyro's own class.
    """

    _objective: ClassVar[Objective]
    """The list of passes."""

    _SETTINGS: ClassVar[tuple[str, ...]] = (
        "num_particles",
        "vectorize_particles",
        "max_plate_nesting",
        "strict_enumeration_warning",
        "backend",
        "rng",
        "dynamic",
        "validate",
        "wait",
    )
    """Attributes that a user may change between two calls."""

    def __init__(
        self,
        num_particles: int = 1,
        max_plate_nesting: float = math.inf,
        max_iarange_nesting: int | None = None,
        vectorize_particles: bool = False,
        strict_enumeration_warning: bool = True,
        ignore_jit_warnings: bool = False,
        jit_options: dict[str, Any] | None = None,
        retain_graph: bool | None = None,
        tail_adaptive_beta: float = -1.0,
        *,
        backend: str | None = None,
        rng: Rng = "torch",
        dynamic: Dynamic = "error",
        validate: bool | None = None,
        wait: bool | None = None,
    ) -> None:
        super().__init__(
            num_particles,
            max_plate_nesting,
            max_iarange_nesting,
            vectorize_particles,
            strict_enumeration_warning,
            ignore_jit_warnings,
            jit_options,
            retain_graph,
            tail_adaptive_beta,
        )
        self._set_options(backend, rng, dynamic, validate, wait)

    def _set_options(
        self, backend: str | None, rng: Rng, dynamic: Dynamic, validate: bool | None, wait: bool | None
    ) -> None:
        """Take the options that are not Pyro's, once Pyro's are set."""
        self._refuse_overridden()
        if dynamic not in get_args(Dynamic):
            raise ArgumentError(f"dynamic must be one of {get_args(Dynamic)}, not {dynamic!r}")
        self.backend = backend
        self.rng = rng
        self.dynamic = dynamic
        self.validate = validate
        self.wait = wait
        self._compiled: list[CompiledELBO] = []
        self._given: tuple[Any, ...] = ()
        self._current: Settings
        self._forgotten = 0
        self._settings()  # refuses wrong options now, not at the first call

    @untraced
    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """An estimate of minus the ELBO, without gradients; the averages of baselines stay as they are.

        :raises sgc.errors.SgcError: if the program cannot be compiled; and whatever Pyro raises for it.
        """
        with torch.no_grad():
            return torch_item(self.differentiable_loss(model, guide, *args, **kwargs))

    @untraced
    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """An estimate of minus the ELBO; the surrogate's gradient is added to the ``.grad`` of the parameters.

        :raises sgc.errors.SgcError: if the program cannot be compiled; and whatever Pyro raises for it.
        """
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        torch_backward(loss, retain_graph=self.retain_graph)
        return torch_item(loss)

    @untraced
    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """A 0-d tensor whose value is an estimate of minus the ELBO and whose gradient is the surrogate's.

        :raises sgc.errors.SgcError: if the program cannot be compiled; and whatever Pyro raises for it.
        """
        return self.compiled(model, guide)(*args, **kwargs)

    def __call__(  # type: ignore[override]
        self, model: Callable[..., Any], guide: Callable[..., Any]
    ) -> CompiledELBO:
        """A torch module that maps the model's arguments to minus the ELBO, with the surrogate's gradient.

        It shows the parameters of model and guide, those in Pyro's store too, once it has been called or its
        ``initialize(*args)`` has been.
        """
        return CompiledELBO(model, guide, self._settings())

    def compiled(self, model: Callable[..., Any], guide: Callable[..., Any]) -> CompiledELBO:
        """What runs for this model and guide, a :class:`sgc.LossModule`: its ``graph``, ``code``, ``verify(*args)``."""
        settings = self._settings()
        for position in range(len(self._compiled) - 1, -1, -1):
            candidate = self._compiled[position]
            if candidate._is_of(model, guide, settings):
                if position != len(self._compiled) - 1:
                    self._compiled.append(self._compiled.pop(position))
                return candidate
        made = self._rewrapped(model, guide, settings)
        if made is not None:
            return made
        made = CompiledELBO(model, guide, settings)
        self._keep(made)
        return made

    def _rewrapped(
        self, model: Callable[..., Any], guide: Callable[..., Any], settings: Settings
    ) -> CompiledELBO | None:
        """What runs for a model and guide that are wrapped as others were, but for numbers and tensors."""
        if not is_wrapped((model, guide)):
            return None
        like = [one for one in self._compiled if one._settings == settings and one._is_like(model, guide)]
        made = next((one for one in like if one._wrappers is not None), None)
        if made is not None:
            made._wrappers.take((model, guide))  # type: ignore[union-attr]
            self._compiled.append(self._compiled.pop(self._compiled.index(made)))
        elif like:
            wrappers = Rewrapped((model, guide))
            made = CompiledELBO(*wrappers.program, settings)
            made._wrappers = wrappers
            self._keep(made)
        return made

    def _keep(self, made: CompiledELBO) -> None:
        self._compiled.append(made)
        if len(self._compiled) > _KEPT:
            del self._compiled[0]
            self._forgotten += 1
            if self._forgotten == 2 * _KEPT:
                self._warn_of_many()

    def _adopt(self, loss_module: CompiledELBO) -> None:
        """Take over what runs for a model and guide, made by another ELBO with the same settings."""
        if not any(known is loss_module for known in self._compiled):
            self._compiled.append(loss_module)

    def _conditions(self) -> list[Condition]:
        """Where these are true, :meth:`compiled` gives for the same model and guide what it gave last."""
        if self._compiled[-1]._wrappers is not None:
            return [conditions.NEVER]  # it is to be given the numbers of the wrappers
        kept = [conditions.is_same(conditions.entry(vars(self), name), getattr(self, name)) for name in self._SETTINGS]
        return [*kept, conditions.is_same(conditions.item(self._compiled, -1), self._compiled[-1])]

    def _settings(self) -> Settings:
        """What the attributes say now: a user may change them between two calls."""
        given = tuple(getattr(self, name) for name in self._SETTINGS)
        if given != self._given:
            self._current, self._given = self._read_settings(), given
        return self._current

    def _read_settings(self) -> Settings:
        nesting = self.max_plate_nesting
        if self.vectorize_particles and self.num_particles > 1:
            nesting -= 1  # Pyro has counted the plate of the particles
        options = Options(
            num_particles=self.num_particles,
            vectorize_particles=self.vectorize_particles,
            max_plate_nesting=nesting,
            backend=backend_of(TIERS[0] if self.backend is None else self.backend).name,
            rng="torch" if self.dynamic == "speculate" else self.rng,
            validate=self.validate,
            speculate=self.dynamic == "speculate",
            wait=self.wait,
            objective=self._objective,
            strict_enumeration_warning=self.strict_enumeration_warning,
            **self._own_options(),
        )
        return Settings(options, tiered=self.backend is None, dynamic=self.dynamic)

    def _own_options(self) -> dict[str, Any]:
        """What the objective alone has among the options."""
        return {}

    def _refuse_overridden(self) -> None:
        """What Pyro's class computes by these methods, a compiled program computes by none: theirs would go unheard."""
        ours = next(cls for cls in type(self).__mro__ if cls.__module__ == _CLASSES)
        missing = object()
        own = [name for name in _OF_PYROS if getattr(type(self), name, missing) is not getattr(ours, name, missing)]
        if own:
            raise ArgumentError(
                f"{type(self).__qualname__} overrides {', '.join(own)}, which a compiled ELBO does not call",
                remedy=f"derive it from pyro.infer.{ours.__name__}, which eager Pyro runs; or override loss_and_grads",
            )

    def _warn_of_many(self) -> None:
        warn(
            f"this {type(self).__name__} was given {_KEPT + self._forgotten} pairs of model and guide, and keeps "
            f"{_KEPT} compiled. Define model and guide once, outside of the training loop, or take an ELBO for each.",
            RespecializationWarning,
        )

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle has nothing compiled."""
        return {**self.__dict__, "_compiled": []}
