"""``TraceGraph_ELBO`` for users of Pyro: its constructor, its methods, its numbers, compiled."""

from __future__ import annotations

import math
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import pyro
import pyro.infer.tracegraph_elbo
import torch
from pyro import poutine
from pyro.infer.util import torch_backward, torch_item
from pyro.poutine import runtime
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.util import warn_if_nan
from torch import Tensor

from sgc.capturing.rehearsal import BASELINE_PREFIX
from sgc.config import Backend, Options, Rng
from sgc.errors import ArgumentError, BackendError, CaptureError, DataDependenceError, RespecializationWarning
from sgc.run.loss import LossModule

Dynamic = Literal["error", "eager"]

_PROGRAMS = 8
"""How many pairs of model and guide one ELBO keeps compiled."""

_PATIENCE = 1000
"""After how many calls a specialization with ``backend=None`` is compiled by Inductor."""


class TraceGraph_ELBO(pyro.infer.tracegraph_elbo.TraceGraph_ELBO):
    """Pyro's ``TraceGraph_ELBO`` (Schulman et al. 2015), compiled for each model, guide and structure.

    It takes the same arguments, and ``pyro.infer.SVI`` takes it. Under one seed its losses and gradients are Pyro's:
    equal to the last bits while a program runs eagerly, to rounding once Inductor has compiled it. One instance
    may serve many models; the latest eight are kept, with strong references, so that a new function can
    never be mistaken for an old one and fresh closures do not pile up.

    Effect handlers around a call act on the program as in Pyro. Of what happens inside, outer traces are
    told the parameters (as ``SVI`` needs), not the samples.

    :param backend: ``None`` (default) runs the compiled graph eagerly, which costs no compilation, and hands a
        specialization to Inductor once it has been called a thousand times; or a backend of :func:`sgc.compile`
        from the first call on.
    :param rng: ``"torch"`` (default) draws the random numbers that Pyro would draw; ``"fast"`` leaves the choice
        to Inductor.
    :param dynamic: what to do with a program whose structure depends on a sample, or that cannot be captured for
        another reason: ``"error"`` raises, ``"eager"`` runs it by eager Pyro and warns once.
    :raises sgc.errors.ArgumentError: if an option is of the wrong kind.
    :raises sgc.errors.BackendError: if the backend is unknown.

    ``ignore_jit_warnings``, ``jit_options``, ``strict_enumeration_warning`` and ``tail_adaptive_beta`` are accepted
    for compatibility and have no effect, as in Pyro's own class.
    """

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
        backend: Backend | None = None,
        rng: Rng = "torch",
        dynamic: Dynamic = "error",
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
        if dynamic not in get_args(Dynamic):
            raise ArgumentError(f"dynamic must be one of {get_args(Dynamic)}, not {dynamic!r}")
        self.backend = backend
        self.rng = rng
        self.dynamic = dynamic
        self._programs: list[CompiledELBO] = []
        self._forgotten = 0
        self._options()  # checks them now, not at the first call

    # -- Pyro's methods

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """An estimate of minus the ELBO, without gradients; baselines are left as they are.

        :raises sgc.errors.SgcError: if the program cannot be compiled, and whatever Pyro raises for it.
        """
        with torch.no_grad():
            return torch_item(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """An estimate of minus the ELBO; the surrogate's gradient is added to the ``.grad`` of the parameters.

        :raises sgc.errors.SgcError: if the program cannot be compiled, and whatever Pyro raises for it.
        """
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        torch_backward(loss, retain_graph=self.retain_graph)
        return torch_item(loss)

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """A 0-d tensor whose value is an estimate of minus the ELBO and whose gradient is the surrogate's.

        :raises sgc.errors.SgcError: if the program cannot be compiled, and whatever Pyro raises for it.
        """
        return self.program(model, guide)(*args, **kwargs)

    def __call__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> CompiledELBO:
        """A torch module that computes minus the ELBO, with the surrogate's gradient, from the model's arguments.

        It shows the parameters of model and guide, those in Pyro's store too, once it has been called or
        ``initialize(*args)`` has been.
        """
        return CompiledELBO(self, model, guide, self._options())

    # -- the programs

    def program(self, model: Callable[..., Any], guide: Callable[..., Any]) -> CompiledELBO:
        """The compiled loss of this model and guide: its ``graph``, ``code``, ``guards()``, ``verify(*args)``."""
        options = self._options()
        for position in range(len(self._programs) - 1, -1, -1):
            candidate = self._programs[position]
            if candidate.is_of(model, guide, options):
                if position != len(self._programs) - 1:
                    self._programs.append(self._programs.pop(position))
                return candidate
        made = CompiledELBO(self, model, guide, options)
        self._programs.append(made)
        if len(self._programs) > _PROGRAMS:
            del self._programs[0]
            self._forgotten += 1
            if self._forgotten == 2 * _PROGRAMS:
                warnings.warn(
                    f"this {type(self).__name__} was given {_PROGRAMS + self._forgotten} pairs of model and guide and "
                    f"keeps {_PROGRAMS} compiled. Define model and guide once, outside of the training loop, or take an "
                    "ELBO for each.",
                    RespecializationWarning,
                    stacklevel=4,
                )
        return made

    def _options(self) -> Options:
        nesting = self.max_plate_nesting
        if self.vectorize_particles and self.num_particles > 1:
            nesting -= 1  # Pyro has counted the plate of the particles
        return Options(
            num_particles=self.num_particles,
            vectorize_particles=self.vectorize_particles,
            max_plate_nesting=nesting,
            backend=self.backend or "eager",
            rng=self.rng,
        )

    def __getstate__(self) -> dict[str, Any]:
        """A copy or pickle starts with nothing compiled."""
        return {**self.__dict__, "_programs": []}

    def _eager(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """Eager Pyro's loss, for a program that cannot be compiled."""
        with poutine.block(hide_fn=_is_average):
            elbo, surrogate = super()._loss_and_surrogate_loss(model, guide, args, kwargs)
        loss = -torch.as_tensor(elbo).detach()
        warn_if_nan(loss, "loss")
        if isinstance(surrogate, Tensor) and surrogate.requires_grad:
            return _Value.apply(surrogate, loss)
        return loss


class JitTraceGraph_ELBO(TraceGraph_ELBO):
    """:class:`TraceGraph_ELBO` under the name of Pyro's compiled variant, without that one's restrictions.

    Keyword arguments, arguments that are no tensors, changes of shape and closed-over modules are all fine. No
    TorchScript is involved unless ``backend="torchscript"`` asks for it; ``jit_options`` has nothing to act on.
    """


class CompiledELBO(LossModule):
    """The :class:`sgc.LossModule` behind an ELBO class: it tells effect handlers the parameters, and changes tiers."""

    def __init__(
        self, elbo: TraceGraph_ELBO, model: Callable[..., Any], guide: Callable[..., Any], options: Options
    ) -> None:
        super().__init__(model, guide, options)
        self._elbo = elbo
        self._tiered = elbo.backend is None
        self._dynamic = False

    def is_of(self, model: Callable[..., Any], guide: Callable[..., Any], options: Options) -> bool:
        """Whether this is the compiled loss of these very callables."""
        own_model, own_guide = self._program
        return _same(own_model, model) and _same(own_guide, guide) and self.options == options

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the ELBO, a 0-d tensor; its ``backward()`` gives the surrogate's gradient.

        :raises sgc.errors.SgcError: if the program cannot be compiled; nothing has changed then.
        """
        if not self._dynamic:
            try:
                return self._compiled(*args, **kwargs)
            except (DataDependenceError, CaptureError) as error:
                if self._elbo.dynamic != "eager":
                    raise
                self._dynamic = True
                warnings.warn(f"this program is run by eager Pyro: {error}", UserWarning, stacklevel=4)
        return self._elbo._eager(*self._program, args, kwargs)

    def _compiled(self, *args: Any, **kwargs: Any) -> Tensor:
        with _unobserved():
            try:
                loss = super().forward(*args, **kwargs)
            except BackendError as error:
                if not self._tiered or self._latest().options.backend == "eager":
                    raise
                warnings.warn(f"this program stays on the eager backend: {error}", UserWarning, stacklevel=5)
                self._tiered = False
                for made in self.specializations:
                    made.use_backend("eager")
                loss = super().forward(*args, **kwargs)
        latest = self._latest()
        if self._tiered and latest.hits == _PATIENCE:
            latest.use_backend("inductor")
        if runtime.am_i_wrapped():
            with torch.no_grad():
                for name in latest.params:
                    pyro.param(name)
        return loss


@contextmanager
def _unobserved() -> Iterator[None]:
    """Hide from outer traces what happens while a program is rehearsed and captured; other handlers act on it."""
    stack = runtime._PYRO_STACK
    kept = list(stack)
    stack[:] = [handler for handler in kept if not isinstance(handler, TraceMessenger)]
    try:
        yield
    finally:
        stack[:] = kept


def _is_average(message: Any) -> bool:
    return message["type"] == "param" and message["name"].startswith(BASELINE_PREFIX)


def _same(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether two callables are one. ``obj.method`` is a new object each time it is written."""
    if isinstance(one, types.MethodType) and isinstance(other, types.MethodType):
        return one.__self__ is other.__self__ and one.__func__ is other.__func__
    return one is other


class _Value(torch.autograd.Function):
    """The gradient of one scalar, the value of another (a difference of the two would be NaN where one is infinite)."""

    @staticmethod
    def forward(ctx: Any, surrogate: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return gradient, None
