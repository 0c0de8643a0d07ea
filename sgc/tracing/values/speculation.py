"""Speculation: branches on samples are assumed to go as in the captured run (``dynamic="speculate"``).

The answer of such a read is a Boolean. It is that of the call which is being captured: what is recorded of the program
is run on real tensors, from the random state before the call on. That the answer is the same again is a condition that
the compiled program checks; which answer is assumed decides what is compiled, and no number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from sgc.errors import DataDependenceError
from sgc.graph.effects import AUTOCAST
from sgc.tracing import tracer
from sgc.tracing.state.random_state import restore_torch_random_state, torch_random_state
from sgc.tracing.values.answers import asked_of
from sgc.tracing.values.autocast import switched_back, switches


class ConcreteRun:
    """Runs the recorded part of a program on real tensors, each operator once, without effects outside.

    :param concrete: the tensor that a placeholder or an attribute of the graph stands for.
    :param before: a tensor as it was before the call.
    """

    def __init__(self, concrete: Callable[[fx.Node], Tensor], before: Callable[[Tensor], Tensor]) -> None:
        self._concrete = concrete
        self._before = before
        self._values: dict[fx.Node, Any] = {}
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}
        self._random_state = torch_random_state()
        self._switches = switches()
        self._outer: list[Any] = []

    def truth(self, node: fx.Node) -> bool:
        """The value of a node of the graph under construction, a 0-d Boolean tensor."""
        new = [other for other in tracer.current_tracer().graph.nodes if other not in self._values]
        sources = {other: self._concrete(other) for other in new if other.op in ("placeholder", "get_attr")}
        outside = torch_random_state()
        restore_torch_random_state(self._random_state)
        try:
            with tracer.concrete(), torch._C.DisableTorchFunction(), torch.no_grad():
                for other in new:
                    with switched_back(self._switches):
                        copied = other in sources
                        self._values[other] = self._copy(sources[other]) if copied else self._run(other)
                self._random_state = torch_random_state()
                return bool(self._values[node])
        finally:
            restore_torch_random_state(outside)

    def _run(self, node: fx.Node) -> Any:
        if node.target is torch._C._set_grad_enabled:
            return None
        if node.target is AUTOCAST[0]:
            given: tuple[Any, ...] = node.args
            kind, dtype, enabled = given[:3]
            self._outer.append(self._switches)
            self._switches = {**self._switches, kind: (enabled, dtype or torch.get_autocast_dtype(kind))}
            return None
        if node.target is AUTOCAST[1]:
            self._switches = self._outer.pop()
            return None
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._values.__getitem__)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _copy(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor that the program may write into; the same copy each time."""
        known = self._copies.setdefault(id(tensor), (tensor, self._before(tensor).detach().clone()))
        return known[1]


class Speculation:
    """Answers reads of samples, and reports each answer as an assumption.

    :param run: gives the answers.
    :param assume: takes a 0-d Boolean tensor that must be true for the answer to be right, what it says, and the error
        that the read would be.
    """

    def __init__(self, run: ConcreteRun, assume: Callable[[Tensor, str, DataDependenceError], None]) -> None:
        self._run = run
        self._assume = assume
        self._suspended = False

    def answer(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], error: DataDependenceError
    ) -> bool:
        """What a read gives in this run.

        :raises DataDependenceError: the given one, if that is no Boolean.
        """
        truth = None if self._suspended or not tracer.is_capturing() else truth_of(func, args, kwargs)
        if truth is None:
            raise error
        answer = self._run.truth(tracer.node_of(truth))
        name = getattr(func, "__name__", str(func))
        self._assume(truth if answer else truth.logical_not(), f"Tensor.{name} gives {answer}", error)
        return answer

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Assume nothing inside; what cannot be traced becomes an opaque call."""
        before, self._suspended = self._suspended, True
        try:
            yield
        finally:
            self._suspended = before


def truth_of(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The result of a Boolean read as a 0-d tensor; None for other reads."""
    tensor = args[0] if args else None
    if func in (Tensor.item, Tensor.tolist) and isinstance(tensor, Tensor) and tensor.dtype is torch.bool:
        return tensor.reshape(()).ne(0) if func is Tensor.item or tensor.dim() == 0 else None
    asked = asked_of(func, args, kwargs)
    return asked if asked is not None and asked.dtype is torch.bool else None
