"""Runs a program through Pyro's own TraceGraph_ELBO and through sgc from the same state, and collects what each did."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, TraceGraph_ELBO
from torch import Tensor, nn

import sgc
from tests.reference.zoo import Case
from tests.reference.zoo.leaves import leaves_of

AVERAGE = "__baseline_avg_downstream_cost_"


@dataclass
class Outcome:
    """Loss, gradients by leaf (None: no gradient), and the state afterwards."""

    loss: float
    gradients: list[Tensor | None]
    buffers: list[Tensor]
    averages: dict[str, Tensor]


@dataclass
class Program:
    """A case whose parameters exist, with the leaves that its surrogate reaches and the buffers of its modules."""

    case: Case
    leaves: list[Tensor] = field(default_factory=list)
    buffers: list[Tensor] = field(default_factory=list)
    max_plate_nesting: float = float("inf")

    def __post_init__(self) -> None:
        modules: dict[int, nn.Module] = {}
        handle = nn.modules.module.register_module_forward_pre_hook(
            lambda module, _: modules.setdefault(id(module), module) and None
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            elbo = TraceGraph_ELBO(**self.case.options)
            program = (self.case.model, self.case.guide, self.case.args, self.case.kwargs)
            elbo._loss_and_surrogate_loss(*program)
            # Pyro's old baseline averages are leaves of its next surrogate; nobody ever reads their gradient.
            averages = [t for name, t in pyro.get_param_store()._params.items() if name.startswith(AVERAGE)]
            _, surrogate = elbo._loss_and_surrogate_loss(*program)
        handle.remove()
        self.max_plate_nesting = elbo.max_plate_nesting
        stored = [t for name, t in pyro.get_param_store()._params.items() if not name.startswith(AVERAGE)]
        ignored = {id(average) for average in averages}
        self.leaves = list({id(t): t for t in [*leaves_of(surrogate), *stored] if id(t) not in ignored}.values())
        for part in (self.case.model, self.case.guide):
            if isinstance(part, nn.Module):
                modules.setdefault(id(part), part)
        buffers = {id(b): b for module in modules.values() for b in module.buffers()}
        self.buffers = list(buffers.values())
        _drop_averages()

    def pyro(self, seed: int, make: Callable[..., ELBO] = TraceGraph_ELBO) -> Outcome:
        """One evaluation by Pyro, by one of its objectives."""
        elbo = make(**self.case.options)
        elbo.max_plate_nesting = self.max_plate_nesting
        with self._from_start(seed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = elbo.loss_and_grads(self.case.model, self.case.guide, *self.case.args, **self.case.kwargs)
            return self._outcome(loss)

    def sgc(self, seed: int, **options: Any) -> tuple[Outcome, sgc.LossModule]:
        """One evaluation by sgc."""
        module = sgc.compile(self.case.model, self.case.guide, **{**self.case.options, **options})
        with self._from_start(seed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = module(*self.case.args, **self.case.kwargs)
            if loss.requires_grad:
                loss.backward()
            return self._outcome(loss.item()), module

    def _outcome(self, loss: float) -> Outcome:
        store = pyro.get_param_store()._params
        return Outcome(
            loss,
            [None if leaf.grad is None else leaf.grad.clone() for leaf in self.leaves],
            [buffer.clone() for buffer in self.buffers],
            {name: t.detach().clone() for name, t in store.items() if name.startswith(AVERAGE)},
        )

    @contextmanager
    def _from_start(self, seed: int) -> Iterator[None]:
        saved = [buffer.clone() for buffer in self.buffers]
        for leaf in self.leaves:
            leaf.grad = None
        _drop_averages()
        pyro.set_rng_seed(seed)
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in zip(self.buffers, saved, strict=True):
                    buffer.copy_(value)
            for leaf in self.leaves:
                leaf.grad = None


def _drop_averages() -> None:
    store = pyro.get_param_store()
    for name in [name for name in store._params if name.startswith(AVERAGE)]:
        del store[name]
